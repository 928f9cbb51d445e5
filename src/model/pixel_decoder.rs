//! Pixel decoders that go up a pyramid: MaskFormer's feature pyramid, and FaPN, which aligns each level
//! to the finer one.

use crate::nn::{Conv1x1, Conv3x3, GroupNorm, Init, ParameterScope};
use crate::{Tape, Tensor, ops};

/// What a pixel decoder makes of the encoder's maps.
#[derive(Debug)]
pub struct PixelFeatures {
    /// `[B, H / 4, W / 4, mask_dim]`: their products with a query are the query's mask.
    pub mask_features: Tensor,
    /// `[B, h, w, dim]` each, strides 32, 16 and 8: what queries attend to.
    pub memory: [Tensor; 3],
}

/// A convolution without bias, a group norm and perhaps a rectifier.
#[derive(Debug)]
pub(super) struct ConvNorm {
    conv: Conv,
    norm: GroupNorm,
    relu: bool,
}

#[derive(Debug)]
enum Conv {
    One(Conv1x1),
    Three(Conv3x3),
}

impl ConvNorm {
    /// A 1 × 1 convolution and its norm.
    pub(super) fn lateral(mut scope: ParameterScope<'_>, inputs: usize, outputs: usize) -> Self {
        let norm = GroupNorm::new(scope.at("norm"), outputs);
        let init = Init::kaiming_uniform(inputs);
        let conv = Conv::One(Conv1x1::without_bias(scope, inputs, outputs, init));
        Self { conv, norm, relu: false }
    }

    /// A 3 × 3 convolution with rectifier. Its norm is its own or that of the level's `align`.
    pub(super) fn output(
        mut scope: ParameterScope<'_>,
        inputs: usize,
        outputs: usize,
        align: Option<&FeatureAlign>,
    ) -> Self {
        let norm = match align {
            Some(align) => align.offset.norm.shared(scope.at("norm")),
            None => GroupNorm::new(scope.at("norm"), outputs),
        };
        let init = Init::kaiming_uniform(9 * inputs);
        let conv = Conv::Three(Conv3x3::new(scope, inputs, outputs, init));
        Self { conv, norm, relu: true }
    }

    pub(super) fn forward(&self, tape: &mut Tape, x: &Tensor) -> Tensor {
        let y = match &self.conv {
            Conv::One(conv) => conv.forward(tape, x),
            Conv::Three(conv) => conv.forward(tape, x),
        };
        match self.relu {
            true => self.norm.forward_relu(tape, &y),
            false => self.norm.forward(tape, &y),
        }
    }
}

/// Feature alignment (Huang et al. 2021, <https://arxiv.org/abs/2108.07058>): a coarse map is sampled where
/// offsets, learned from it and from the finer one beside it, lead.
#[derive(Debug)]
pub struct FeatureAlign {
    offset: ConvNorm,
    conv_offset_mask: Conv3x3,
    /// `[dim, dim, 3, 3]`
    weight: Tensor,
    /// `[dim]`
    bias: Tensor,
}

impl FeatureAlign {
    /// Groups of channels, each with offsets of its own.
    const GROUPS: usize = 8;

    /// A block for maps of `dim` channels; offsets start at 0 and masks at ½.
    pub fn new(mut scope: ParameterScope<'_>, dim: usize) -> Self {
        let offset = ConvNorm::lateral(scope.at("offset"), 2 * dim, dim);
        let mut scope = scope.at("dcpack_L2");
        let zero = Init::Constant(0.0);
        let of = scope.at("conv_offset_mask");
        let conv_offset_mask = Conv3x3::with_bias(of, dim, 27 * Self::GROUPS, zero);
        Self {
            offset,
            conv_offset_mask,
            weight: scope.create("weight", [dim, dim, 3, 3], Init::pytorch(9 * dim)),
            bias: scope.create("bias", [dim], zero),
        }
    }

    /// `lateral`: `[B, H, W, dim]`, `coarse`: `[B, h, w, dim]` → `[B, H, W, dim]`.
    ///
    /// The paper's feature selection before it is not used by the official model.
    pub fn forward(&self, tape: &mut Tape, lateral: &Tensor, coarse: &Tensor) -> Tensor {
        let coarse = ops::resize(tape, coarse, lateral.dims()[1], lateral.dims()[2]);
        let twice = ops::scale(tape, &coarse, 2.0);
        let both = ops::concat(tape, [lateral, &twice], 3);
        let guide = self.offset.forward(tape, &both);
        let offset_mask = self.conv_offset_mask.forward(tape, &guide);
        let aligned = ops::deform_conv(tape, &coarse, &offset_mask, &self.weight, &self.bias);
        let aligned = ops::relu(tape, &aligned);
        ops::add(tape, &aligned, lateral)
    }
}

/// Goes from the coarsest map to the finest: each is doubled and added to the next one. With alignment it
/// is FaPN's (`PixelFANDecoder`), without it MaskFormer's (`BasePixelDecoder`).
#[derive(Debug)]
pub struct FpnPixelDecoder {
    /// Of the strides 4, 8 and 16.
    levels: [Level; 3],
    layer_4: ConvNorm,
    mask_features: Conv3x3,
}

#[derive(Debug)]
struct Level {
    adapter: ConvNorm,
    align: Option<FeatureAlign>,
    layer: ConvNorm,
}

impl FpnPixelDecoder {
    /// A decoder of maps of `in_channels`, finest first.
    pub fn new(
        mut scope: ParameterScope<'_>,
        in_channels: [usize; 4],
        dim: usize,
        mask_dim: usize,
        align: bool,
    ) -> Self {
        let levels = [1, 2, 3].map(|i| {
            let adapter =
                ConvNorm::lateral(scope.at(format!("adapter_{i}")), in_channels[i - 1], dim);
            let align = align.then(|| FeatureAlign::new(scope.at(format!("align_{i}")), dim));
            let layer = ConvNorm::output(scope.at(format!("layer_{i}")), dim, dim, align.as_ref());
            Level { adapter, align, layer }
        });
        let layer_4 = ConvNorm::output(scope.at("layer_4"), in_channels[3], dim, None);
        let init = Init::kaiming_uniform(9 * dim);
        let mask_features = Conv3x3::with_bias(scope.at("mask_features"), dim, mask_dim, init);
        Self { levels, layer_4, mask_features }
    }

    /// `maps`: strides 4, 8, 16 and 32.
    pub fn forward(&self, tape: &mut Tape, maps: &[Tensor]) -> PixelFeatures {
        let [finer @ .., coarsest] = maps else { panic!("FpnPixelDecoder: no maps") };
        let mut y = tape.scope("layer_4", |tape| self.layer_4.forward(tape, coarsest));
        let mut memory = vec![y.clone()];
        for (i, (level, map)) in self.levels.iter().zip(finer).enumerate().rev() {
            y = tape.scope(format!("layer_{}", i + 1), |tape| {
                let lateral = level.adapter.forward(tape, map);
                // The sum has the lateral map in it, and alignment adds it once more.
                let sum = ops::nearest_add(tape, &y, &lateral);
                let sum = match &level.align {
                    Some(align) => align.forward(tape, &lateral, &sum),
                    None => sum,
                };
                level.layer.forward(tape, &sum)
            });
            memory.push(y.clone());
        }
        memory.pop();
        let mask_features =
            tape.scope("mask_features", |tape| self.mask_features.forward(tape, &y));
        PixelFeatures { mask_features, memory: memory.try_into().expect("four maps") }
    }
}
