//! The encoder as a Mix Transformer, whose stages each end in a semantic layer, too.

use super::semantic::SemanticLayer;
use super::{Features, ModelConfig};
use crate::nn::{Init, LayerNorm, Linear, ParameterScope};
use crate::ops::{self, Image};
use crate::{Tape, Tensor};

/// What the blocks' and the stages' norms add to the variance; other norms keep PyTorch's default.
const EPS: f32 = 1e-6;

/// SeMask on a Mix Transformer, SegFormer's encoder (Xie et al. 2021, <https://arxiv.org/abs/2105.15203>);
/// without semantic blocks that encoder alone. Parameters have SegFormer's names.
///
/// SeMask's paper (Jain et al. 2021, <https://arxiv.org/abs/2112.12782>) evaluates this pair, but its code was
/// not published. A stage's semantic layer, `semantic_layer1` to `semantic_layer4`, stands where it stands in
/// SeMask-Swin: between the last block and the stage's norm. There it leaves pretrained weights their
/// meaning: its gates start at 0, and normalising twice is as normalising once.
#[derive(Debug)]
pub struct MixTransformer {
    stages: Vec<Stage>,
}

#[derive(Debug)]
struct Stage {
    patch_embed: OverlapPatchEmbed,
    blocks: Vec<MixBlock>,
    semantic_layer: Option<SemanticLayer>,
    norm: LayerNorm,
}

impl MixTransformer {
    /// The encoder of `config`.
    pub fn new(mut scope: ParameterScope<'_>, config: &ModelConfig) -> Self {
        let rates = config.drop_path_rates();
        let mut stages = Vec::new();
        for (i, rates) in rates.iter().enumerate() {
            let channels = config.stage_channels(i);
            let (inputs, kernel, stride) = match i {
                0 => (3, 7, 4),
                _ => (config.stage_channels(i - 1), 3, 2),
            };
            let n = i + 1;
            let patch_embed = OverlapPatchEmbed::new(
                scope.at(format!("patch_embed{n}")),
                [inputs, channels],
                kernel,
                stride,
            );
            let mut within = scope.at(format!("block{n}"));
            let block = |(j, &rate): (usize, &f32)| {
                let (heads, reduction) = (config.num_heads[i], config.sr_ratios[i]);
                let hidden = config.mlp_ratio * channels;
                MixBlock::new(within.at(j), [channels, hidden], heads, reduction, rate)
            };
            let blocks = rates.iter().enumerate().map(block).collect();
            let place = scope.at(format!("semantic_layer{n}"));
            let semantic_layer = SemanticLayer::of_stage(place, config, i);
            let norm = LayerNorm::with_eps(scope.at(format!("norm{n}")), channels, EPS);
            stages.push(Stage { patch_embed, blocks, semantic_layer, norm });
        }
        Self { stages }
    }

    /// `image`: pictures of any size, or a tensor of normalised ones, `[B, H, W, 3]`.
    pub fn forward(&self, tape: &mut Tape, image: impl Into<Image>) -> Features {
        let mut map = image.into();
        let mut features = Features { maps: Vec::new(), priors: Vec::new() };
        for (i, stage) in self.stages.iter().enumerate() {
            let n = i + 1;
            let embed = |tape: &mut Tape| stage.patch_embed.forward(tape, &map);
            let mut x = tape.scope(format!("patch_embed{n}"), embed);
            for (j, block) in stage.blocks.iter().enumerate() {
                let block = block.clone();
                x = tape.scope(format!("block{n}.{j}"), |tape| {
                    let [y] = tape.segment(&x, move |tape, x| [block.forward(tape, x)]);
                    y
                });
            }
            let mut prior = None;
            if let Some(layer) = stage.semantic_layer.clone() {
                let [logits, y] = tape.scope(format!("semantic_layer{n}"), |tape| {
                    tape.segment(&x, move |tape, x| layer.forward(tape, x).into())
                });
                (prior, x) = (Some(logits), y);
            }
            // Unlike Swin's next stage, this one's sees what the norm has made.
            x = tape.scope(format!("norm{n}"), |tape| stage.norm.forward(tape, &x));
            map = Image::from(&x);
            features.maps.push(x);
            features.priors.push(prior);
        }
        features
    }
}

/// A convolution whose patches overlap, and a norm.
#[derive(Debug)]
pub struct OverlapPatchEmbed {
    /// `[C', C, k, k]`
    weight: Tensor,
    /// `[C']`
    bias: Tensor,
    stride: usize,
    norm: LayerNorm,
}

impl OverlapPatchEmbed {
    /// A layer from `channels[0]` to `channels[1]`; `kernel` is odd.
    pub fn new(
        mut scope: ParameterScope<'_>,
        [inputs, outputs]: [usize; 2],
        kernel: usize,
        stride: usize,
    ) -> Self {
        let (weight, bias) = convolution(scope.at("proj"), [inputs, outputs], kernel);
        Self { weight, bias, stride, norm: LayerNorm::new(scope.at("norm"), outputs) }
    }

    /// `x`: pictures, or a map, `[B, H, W, C]` → `[B, ⌈H / stride⌉, ⌈W / stride⌉, C']`.
    pub fn forward(&self, tape: &mut Tape, x: impl Into<Image>) -> Tensor {
        let kernel = self.weight.shape().last();
        let patches = ops::unfold(tape, x, kernel, self.stride, kernel / 2);
        let y = project(tape, &patches, &self.weight, &self.bias);
        self.norm.forward(tape, &y)
    }
}

/// Weight and bias of a convolution, as SegFormer's start.
fn convolution(
    mut scope: ParameterScope<'_>,
    [inputs, outputs]: [usize; 2],
    kernel: usize,
) -> (Tensor, Tensor) {
    let init = Init::kaiming_normal(kernel * kernel * outputs);
    let weight = scope.create("weight", [outputs, inputs, kernel, kernel], init);
    (weight, scope.create("bias", [outputs], Init::Constant(0.0)))
}

/// The convolution of `weight`, `[C', C, k, k]`, whose patches are `[.., C k²]`.
fn project(tape: &mut Tape, patches: &Tensor, weight: &Tensor, bias: &Tensor) -> Tensor {
    let weight = weight.reshape([bias.dims()[0], patches.shape().last()]);
    ops::linear(tape, patches, &weight, Some(bias))
}

/// Attention to a coarser map and an MLP that sees a token's neighbours, each with a norm before it and a
/// skip around it.
#[derive(Clone, Debug)]
pub struct MixBlock {
    norm1: LayerNorm,
    attn: ReducedAttention,
    norm2: LayerNorm,
    fc1: Linear,
    /// `[hidden, 1, 3, 3]`
    dwconv_weight: Tensor,
    /// `[hidden]`
    dwconv_bias: Tensor,
    fc2: Linear,
    drop_path: f32,
}

impl MixBlock {
    /// A block for `channels` channels whose MLP has `hidden`.
    pub fn new(
        mut scope: ParameterScope<'_>,
        [channels, hidden]: [usize; 2],
        num_heads: usize,
        reduction: usize,
        drop_path: f32,
    ) -> Self {
        let norm1 = LayerNorm::with_eps(scope.at("norm1"), channels, EPS);
        let attn = ReducedAttention::new(scope.at("attn"), channels, num_heads, reduction);
        let norm2 = LayerNorm::with_eps(scope.at("norm2"), channels, EPS);
        let mut mlp = scope.at("mlp");
        let fc1 = Linear::new(mlp.at("fc1"), channels, hidden);
        let fc2 = Linear::new(mlp.at("fc2"), hidden, channels);
        let mut dwconv = mlp.at("dwconv");
        let mut dwconv = dwconv.at("dwconv");
        let dwconv_weight = dwconv.create("weight", [hidden, 1, 3, 3], Init::kaiming_normal(9));
        let dwconv_bias = dwconv.create("bias", [hidden], Init::Constant(0.0));
        Self { norm1, attn, norm2, fc1, dwconv_weight, dwconv_bias, fc2, drop_path }
    }

    /// `x`: `[B, H, W, C]` → the same shape.
    pub fn forward(&self, tape: &mut Tape, x: &Tensor) -> Tensor {
        let batch = x.dims()[0];
        let keep = ops::drop_path(tape, batch, self.drop_path);
        let y = tape.scope("norm1", |tape| self.norm1.forward(tape, x));
        let x = self.attn.forward_residual(tape, &y, x, keep.as_ref());
        let keep = ops::drop_path(tape, batch, self.drop_path);
        let y = tape.scope("norm2", |tape| self.norm2.forward(tape, &x));
        let y = tape.scope("mlp.fc1", |tape| self.fc1.forward(tape, &y));
        let y = tape.scope("mlp.dwconv", |tape| {
            ops::depthwise_conv3x3(tape, &y, &self.dwconv_weight, &self.dwconv_bias)
        });
        let y = ops::gelu(tape, &y);
        self.fc2.forward_residual(tape, &y, &x, keep.as_ref())
    }
}

/// Attention of each token to squares of tokens, each of which a convolution has made one key.
#[derive(Clone, Debug)]
pub struct ReducedAttention {
    q: Linear,
    kv: Linear,
    proj: Linear,
    /// None where each token is a key.
    reduction: Option<Reduction>,
    num_heads: usize,
}

#[derive(Clone, Debug)]
struct Reduction {
    /// `[C, C, R, R]`
    weight: Tensor,
    /// `[C]`
    bias: Tensor,
    norm: LayerNorm,
}

impl ReducedAttention {
    /// Attention of `num_heads` heads over `channels` channels, to squares of side `reduction`.
    pub fn new(
        mut scope: ParameterScope<'_>,
        channels: usize,
        num_heads: usize,
        reduction: usize,
    ) -> Self {
        let reduction = (reduction > 1).then(|| {
            let (weight, bias) = convolution(scope.at("sr"), [channels; 2], reduction);
            Reduction { weight, bias, norm: LayerNorm::new(scope.at("norm"), channels) }
        });
        Self {
            q: Linear::new(scope.at("q"), channels, channels),
            kv: Linear::new(scope.at("kv"), channels, 2 * channels),
            proj: Linear::new(scope.at("proj"), channels, channels),
            reduction,
            num_heads,
        }
    }

    /// `residual + keep[sample] · attention(x)`, all `[B, H, W, C]`.
    pub fn forward_residual(
        &self,
        tape: &mut Tape,
        x: &Tensor,
        residual: &Tensor,
        keep: Option<&Tensor>,
    ) -> Tensor {
        let [batch, height, width, channels] = *x.dims() else {
            panic!("ReducedAttention: {:?}", x.shape())
        };
        let q = self.q.forward(tape, x).reshape([batch, height * width, channels]);
        let seen = match &self.reduction {
            Some(reduction) => reduction.forward(tape, x),
            None => x.clone(),
        };
        let keys = seen.shape().rows() / batch;
        let kv = self.kv.forward(tape, &seen).reshape([batch, keys, 2 * channels]);
        let k = ops::slice(tape, &kv, 2, 0..channels);
        let v = ops::slice(tape, &kv, 2, channels..2 * channels);
        let y = ops::attention(tape, &q, &k, &v, self.num_heads, None, 0.0);
        let y = y.reshape([batch, height, width, channels]);
        self.proj.forward_residual(tape, &y, residual, keep)
    }
}

impl Reduction {
    /// `x`: `[B, H, W, C]` → `[B, ⌊H / R⌋, ⌊W / R⌋, C]`: what is left over at the border is not seen.
    fn forward(&self, tape: &mut Tape, x: &Tensor) -> Tensor {
        let side = self.weight.shape().last();
        // The official code fails on maps that are smaller than one square; here zeros fill it up.
        let squares = match x.dims()[1].min(x.dims()[2]) < side {
            true => ops::patchify(tape, x, side),
            false => ops::unfold(tape, x, side, side, 0),
        };
        let y = project(tape, &squares, &self.weight, &self.bias);
        self.norm.forward(tape, &y)
    }
}
