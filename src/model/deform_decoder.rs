//! The pixel decoder of Mask2Former, a deformable transformer over three maps, and MSFaPN, which aligns
//! its result to the finest map.

use super::pixel_decoder::{ConvNorm, FeatureAlign, PixelFeatures};
use crate::nn::{Conv1x1, GroupNorm, Init, LayerNorm, Linear, ParameterScope};
use crate::{Tape, Tensor, ops};

/// Maps that are attended to.
const LEVELS: usize = 3;

/// Places that a head looks at in each map.
const POINTS: usize = 4;

/// Extents of a deformable transformer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeformEncoderConfig {
    /// Channels of a token.
    pub dim: usize,
    /// Attention heads.
    pub heads: usize,
    /// Channels inside of a layer's MLP.
    pub ffn: usize,
    /// Layers.
    pub layers: usize,
}

impl Default for DeformEncoderConfig {
    /// Mask2Former's.
    fn default() -> Self {
        Self { dim: 256, heads: 8, ffn: 1024, layers: 6 }
    }
}

/// Attention of each pixel of three maps to a few places in each of them, from [`ops::deform_attention`].
#[derive(Debug)]
pub struct MsDeformAttention {
    sampling_offsets: Linear,
    attention_weights: Linear,
    value_proj: Linear,
    output_proj: Linear,
    heads: usize,
}

impl MsDeformAttention {
    /// A layer of `heads` heads for tokens of `dim` channels. It starts as an average of places around each
    /// pixel, in another direction for each head.
    pub fn new(mut scope: ParameterScope<'_>, dim: usize, heads: usize) -> Self {
        let (zero, xavier) = (Init::Constant(0.0), Init::xavier(dim, dim));
        let ring = Init::Ring { heads, levels: LEVELS, points: POINTS };
        let samples = heads * LEVELS * POINTS;
        let mut linear = |name: &str, outputs: usize, weight: Init, bias: Init| {
            Linear::with_init(scope.at(name), dim, outputs, weight, bias)
        };
        Self {
            sampling_offsets: linear("sampling_offsets", 2 * samples, zero, ring),
            attention_weights: linear("attention_weights", samples, zero, zero),
            value_proj: linear("value_proj", dim, xavier, zero),
            output_proj: linear("output_proj", dim, xavier, zero),
            heads,
        }
    }

    /// `residual +` what the queries find in `value`.
    ///
    /// - `query`, `value`, `residual`: `[B, S, dim]`, the pixels of the maps, one map after the other
    /// - `sizes`: height and width of each map
    pub fn forward_residual(
        &self,
        tape: &mut Tape,
        query: &Tensor,
        value: &Tensor,
        residual: &Tensor,
        sizes: &[[usize; 2]; LEVELS],
    ) -> Tensor {
        let [batch, tokens, _] = *query.dims() else {
            panic!("MsDeformAttention: {:?}", query.shape())
        };
        let value = self.value_proj.forward(tape, value);
        let offsets = self.sampling_offsets.forward(tape, query);
        let offsets = offsets.reshape([batch, tokens, self.heads, LEVELS, POINTS, 2]);
        let logits = self.attention_weights.forward(tape, query);
        let logits = logits.reshape([batch, tokens, self.heads, LEVELS * POINTS]);
        let found = ops::deform_attention(tape, &value, &offsets, &logits, sizes);
        self.output_proj.forward_residual(tape, &found, residual, None)
    }
}

/// A layer of the deformable transformer: attention and MLP, each with a norm after it.
#[derive(Debug)]
pub struct DeformEncoderLayer {
    self_attn: MsDeformAttention,
    norm1: LayerNorm,
    linear1: Linear,
    linear2: Linear,
    norm2: LayerNorm,
}

impl DeformEncoderLayer {
    /// A layer of `config`.
    pub fn new(mut scope: ParameterScope<'_>, config: DeformEncoderConfig) -> Self {
        let DeformEncoderConfig { dim, heads, ffn, .. } = config;
        let xavier = Init::xavier(dim, ffn);
        Self {
            self_attn: MsDeformAttention::new(scope.at("self_attn"), dim, heads),
            norm1: LayerNorm::new(scope.at("norm1"), dim),
            linear1: Linear::with_init(scope.at("linear1"), dim, ffn, xavier, Init::pytorch(dim)),
            linear2: Linear::with_init(scope.at("linear2"), ffn, dim, xavier, Init::pytorch(ffn)),
            norm2: LayerNorm::new(scope.at("norm2"), dim),
        }
    }

    /// `x`: `[B, S, dim]`, `pos`: `[S, dim]` → `[B, S, dim]`.
    pub fn forward(
        &self,
        tape: &mut Tape,
        x: &Tensor,
        pos: &Tensor,
        sizes: &[[usize; 2]; LEVELS],
    ) -> Tensor {
        let [batch, tokens, dim] = *x.dims() else { panic!("DeformEncoderLayer: {:?}", x.shape()) };
        let map = x.reshape([batch, tokens, 1, dim]);
        let query = ops::add_position(tape, &map, &pos.reshape([tokens, 1, dim]));
        let query = query.reshape([batch, tokens, dim]);
        let x = self.self_attn.forward_residual(tape, &query, x, x, sizes);
        let x = self.norm1.forward(tape, &x);
        let hidden = self.linear1.forward(tape, &x);
        let hidden = ops::relu(tape, &hidden);
        let x = self.linear2.forward_residual(tape, &hidden, &x, None);
        self.norm2.forward(tape, &x)
    }
}

/// A deformable transformer over the three coarser maps, and one step to the finest. With alignment it is
/// MSFaPN's (`MSDeformAttnPixelFANDecoder`), without it Mask2Former's (`MSDeformAttnPixelDecoder`, Cheng et
/// al. 2022, <https://arxiv.org/abs/2112.01527>).
#[derive(Debug)]
pub struct DeformPixelDecoder {
    /// Coarsest map first.
    input_proj: [(Conv1x1, GroupNorm); LEVELS],
    /// `[3, dim]`
    level_embed: Tensor,
    layers: Vec<DeformEncoderLayer>,
    adapter_1: ConvNorm,
    align_1: Option<FeatureAlign>,
    layer_1: ConvNorm,
    mask_features: Conv1x1,
}

impl DeformPixelDecoder {
    /// A decoder of maps of `in_channels`, finest first.
    pub fn new(
        mut scope: ParameterScope<'_>,
        in_channels: [usize; 4],
        config: DeformEncoderConfig,
        mask_dim: usize,
        align: bool,
    ) -> Self {
        let dim = config.dim;
        let mut projections = scope.at("input_proj");
        let input_proj = [0, 1, 2].map(|j| {
            let mut scope = projections.at(j);
            let inputs = in_channels[LEVELS - j];
            let init = Init::xavier(inputs, dim);
            (Conv1x1::new(scope.at(0), inputs, dim, init), GroupNorm::new(scope.at(1), dim))
        });
        let mut transformer = scope.at("transformer");
        let level_embed =
            transformer.create("level_embed", [LEVELS, dim], Init::Normal { std: 1.0 });
        let mut encoder = transformer.at("encoder");
        let mut layers = encoder.at("layers");
        let layers =
            (0..config.layers).map(|l| DeformEncoderLayer::new(layers.at(l), config)).collect();
        let align_1 = align.then(|| FeatureAlign::new(scope.at("align_1"), dim));
        let init = Init::kaiming_uniform(dim);
        Self {
            input_proj,
            level_embed,
            layers,
            adapter_1: ConvNorm::lateral(scope.at("adapter_1"), in_channels[0], dim),
            layer_1: ConvNorm::output(scope.at("layer_1"), dim, dim, align_1.as_ref()),
            align_1,
            mask_features: Conv1x1::new(scope.at("mask_features"), dim, mask_dim, init),
        }
    }

    /// `maps`: strides 4, 8, 16 and 32.
    pub fn forward(&self, tape: &mut Tape, maps: &[Tensor]) -> PixelFeatures {
        let [finest, eighth, sixteenth, coarsest] = maps else {
            panic!("DeformPixelDecoder: {} maps", maps.len())
        };
        let coarse = [coarsest, sixteenth, eighth];
        let sizes = coarse.map(|map| [map.dims()[1], map.dims()[2]]);
        let mut memory = tape.scope("transformer", |tape| self.transform(tape, coarse, &sizes));
        for (map, [height, width]) in memory.iter_mut().zip(sizes) {
            *map = map.reshape([map.dims()[0], height, width, map.shape().last()]);
        }
        let y = tape.scope("layer_1", |tape| {
            let lateral = self.adapter_1.forward(tape, finest);
            let sum = ops::resize_add(tape, &memory[2], &lateral);
            let sum = match &self.align_1 {
                Some(align) => align.forward(tape, &lateral, &sum),
                None => sum,
            };
            self.layer_1.forward(tape, &sum)
        });
        let mask_features =
            tape.scope("mask_features", |tape| self.mask_features.forward(tape, &y));
        PixelFeatures { mask_features, memory }
    }

    /// Three maps of the encoder, coarsest first → the same maps, `[B, h · w, dim]`, after the transformer.
    fn transform(
        &self,
        tape: &mut Tape,
        maps: [&Tensor; LEVELS],
        sizes: &[[usize; 2]; LEVELS],
    ) -> [Tensor; LEVELS] {
        let (batch, dim) = (maps[0].dims()[0], self.level_embed.shape().last());
        let levels = [0, 1, 2];
        let tokens = levels.map(|j| {
            let (conv, norm) = &self.input_proj[j];
            let map = conv.forward(tape, maps[j]);
            norm.forward(tape, &map).reshape([batch, sizes[j][0] * sizes[j][1], dim])
        });
        let pos = levels.map(|j| {
            let [height, width] = sizes[j];
            let code = ops::sine_position(tape.recorder(), height, width, dim);
            let level = ops::slice(tape, &self.level_embed, 0, j..j + 1).reshape([dim]);
            ops::add_bias(tape, &code.reshape([height * width, dim]), &level)
        });
        let mut x = ops::concat(tape, tokens.each_ref(), 1);
        let pos = ops::concat(tape, pos.each_ref(), 0);
        for (l, layer) in self.layers.iter().enumerate() {
            let name = format!("encoder.layers.{l}");
            x = tape.scope(name, |tape| layer.forward(tape, &x, &pos, sizes));
        }
        let mut start = 0;
        sizes.map(|[height, width]| {
            let range = start..start + height * width;
            start = range.end;
            ops::slice(tape, &x, 1, range)
        })
    }
}
