//! The encoder: a Swin transformer whose stages each end in a semantic layer.

use super::ModelConfig;
use super::semantic::SemanticLayer;
use crate::nn::{Init, LayerNorm, Linear, ParameterScope};
use crate::ops::{self, Image, Windows};
use crate::{Tape, Tensor};

/// Side of the patches that a picture is cut into.
const PATCH: usize = 4;

/// What the encoder makes of a picture, per stage: strides 4, 8, 16, 32.
#[derive(Debug)]
pub struct Features {
    /// `[B, H_i, W_i, C_i]`
    pub maps: Vec<Tensor>,
    /// Class logits `[B, H_i, W_i, K]`; none for stages without semantic layer.
    pub priors: Vec<Option<Tensor>>,
}

/// SeMask-Swin (Jain et al. 2021, <https://arxiv.org/abs/2112.12782>); without semantic blocks the
/// plain Swin transformer (Liu et al. 2021, <https://arxiv.org/abs/2103.14030>).
#[derive(Debug)]
pub struct Swin {
    patch_embed: PatchEmbed,
    /// `[1, E, S, S]`
    absolute_pos_embed: Option<Tensor>,
    layers: Vec<Stage>,
    norms: Vec<LayerNorm>,
}

impl Swin {
    /// The encoder of `config`.
    pub fn new(mut scope: ParameterScope<'_>, config: &ModelConfig) -> Self {
        let patch_embed = PatchEmbed::new(scope.at("patch_embed"), config.embed_dim);
        let absolute_pos_embed = config.ape.then(|| {
            let side = config.pretrain_img_size / PATCH;
            let shape = [1, config.embed_dim, side, side];
            scope.create("absolute_pos_embed", shape, Init::Normal { std: 0.02 })
        });
        let mut layers = Vec::new();
        for (i, rates) in config.drop_path_rates().into_iter().enumerate() {
            layers.push(Stage::new(scope.at("layers").at(i), config, i, rates));
        }
        let norm = |i| LayerNorm::new(scope.at(format!("norm{i}")), config.stage_channels(i));
        let norms = (0..config.depths.len()).map(norm).collect();
        Self { patch_embed, absolute_pos_embed, layers, norms }
    }

    /// `image`: pictures of any size, or a tensor of normalised ones, `[B, H, W, 3]`.
    pub fn forward(&self, tape: &mut Tape, image: impl Into<Image>) -> Features {
        let mut x = tape.scope("patch_embed", |tape| self.patch_embed.forward(tape, image));
        if let Some(table) = &self.absolute_pos_embed {
            let (height, width) = (x.dims()[1], x.dims()[2]);
            let position = ops::resize_bicubic(tape, table, height, width);
            x = ops::add_position(tape, &x, &position);
        }
        let mut features = Features { maps: Vec::new(), priors: Vec::new() };
        for (i, (stage, norm)) in self.layers.iter().zip(&self.norms).enumerate() {
            let (prior, map) = tape.scope(format!("layers.{i}"), |tape| stage.forward(tape, &x));
            let of_stage = |tape: &mut Tape| norm.forward(tape, &map);
            features.maps.push(tape.scope(format!("norm{i}"), of_stage));
            features.priors.push(prior);
            // The next stage reads what the stage's own norm has not touched.
            x = match &stage.downsample {
                Some(downsample) => tape
                    .scope(format!("layers.{i}.downsample"), |tape| downsample.forward(tape, &map)),
                None => map,
            };
        }
        features
    }
}

/// A 4×4 convolution of stride 4, and a norm.
#[derive(Debug)]
pub struct PatchEmbed {
    /// `[E, 3, 4, 4]`
    weight: Tensor,
    /// `[E]`
    bias: Tensor,
    norm: LayerNorm,
}

impl PatchEmbed {
    /// A layer that makes `embed_dim` channels.
    pub fn new(mut scope: ParameterScope<'_>, embed_dim: usize) -> Self {
        // torch.nn.Conv2d's default, which the official initialiser leaves alone.
        let inputs = 3 * PATCH * PATCH;
        let init = Init::Uniform { bound: (inputs as f32).sqrt().recip() };
        let mut proj = scope.at("proj");
        let weight = proj.create("weight", [embed_dim, 3, PATCH, PATCH], init);
        let bias = proj.create("bias", [embed_dim], init);
        Self { weight, bias, norm: LayerNorm::new(scope.at("norm"), embed_dim) }
    }

    /// `image`: pictures, or a tensor of normalised ones, `[B, H, W, 3]` → `[B, ⌈H / 4⌉, ⌈W / 4⌉, E]`.
    pub fn forward(&self, tape: &mut Tape, image: impl Into<Image>) -> Tensor {
        let patches = ops::patchify(tape, image, PATCH);
        let weight = self.weight.reshape([self.bias.dims()[0], 3 * PATCH * PATCH]);
        let x = ops::linear(tape, &patches, &weight, Some(&self.bias));
        self.norm.forward(tape, &x)
    }
}

/// Transformer blocks, a semantic layer, patch merging.
#[derive(Debug)]
struct Stage {
    blocks: Vec<SwinBlock>,
    semantic_layer: Option<SemanticLayer>,
    downsample: Option<PatchMerging>,
}

impl Stage {
    fn new(mut scope: ParameterScope<'_>, config: &ModelConfig, i: usize, rates: Vec<f32>) -> Self {
        let channels = config.stage_channels(i);
        let block = |(j, drop_path): (usize, f32)| {
            let size = config.window_size;
            let windows = Windows { size, shift: if j % 2 == 0 { 0 } else { size / 2 } };
            let (heads, ratio) = (config.num_heads[i], config.mlp_ratio);
            SwinBlock::new(scope.at("blocks").at(j), channels, heads, windows, ratio, drop_path)
        };
        let blocks = rates.into_iter().enumerate().map(block).collect();
        let semantic_layer = SemanticLayer::of_stage(scope.at("semantic_layer"), config, i);
        let last = i + 1 == config.depths.len();
        let downsample = (!last).then(|| PatchMerging::new(scope.at("downsample"), channels));
        Self { blocks, semantic_layer, downsample }
    }

    fn forward(&self, tape: &mut Tape, x: &Tensor) -> (Option<Tensor>, Tensor) {
        let mut x = x.clone();
        for (i, block) in self.blocks.iter().enumerate() {
            let block = block.clone();
            x = tape.scope(format!("blocks.{i}"), |tape| {
                let [y] = tape.segment(&x, move |tape, x| [block.forward(tape, x)]);
                y
            });
        }
        match &self.semantic_layer {
            Some(layer) => {
                let layer = layer.clone();
                let [prior, x] = tape.scope("semantic_layer", |tape| {
                    tape.segment(&x, move |tape, x| layer.forward(tape, x).into())
                });
                (Some(prior), x)
            }
            None => (None, x),
        }
    }
}

/// Attention within windows and an MLP, each with a norm before it and a skip around it.
#[derive(Clone, Debug)]
pub struct SwinBlock {
    norm1: LayerNorm,
    attn: WindowAttention,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    drop_path: f32,
}

impl SwinBlock {
    /// A block for `channels` channels.
    pub fn new(
        mut scope: ParameterScope<'_>,
        channels: usize,
        num_heads: usize,
        windows: Windows,
        mlp_ratio: usize,
        drop_path: f32,
    ) -> Self {
        let hidden = mlp_ratio * channels;
        Self {
            norm1: LayerNorm::new(scope.at("norm1"), channels),
            attn: WindowAttention::new(scope.at("attn"), channels, num_heads, windows),
            norm2: LayerNorm::new(scope.at("norm2"), channels),
            fc1: Linear::new(scope.at("mlp").at("fc1"), channels, hidden),
            fc2: Linear::new(scope.at("mlp").at("fc2"), hidden, channels),
            drop_path,
        }
    }

    /// `x`: `[B, H, W, C]` → the same shape.
    pub fn forward(&self, tape: &mut Tape, x: &Tensor) -> Tensor {
        let batch = x.dims()[0];
        let keep = ops::drop_path(tape, batch, self.drop_path);
        let y = tape.scope("norm1", |tape| self.norm1.forward_operand(tape, x));
        let x = self.attn.forward_residual(tape, &y, x, keep.as_ref());
        let keep = ops::drop_path(tape, batch, self.drop_path);
        let y = tape.scope("norm2", |tape| self.norm2.forward_operand(tape, &x));
        let y = self.fc1.forward_gelu(tape, &y);
        self.fc2.forward_residual(tape, &y, &x, keep.as_ref())
    }
}

/// Attention within windows, with a learned bias per relative position (W-MSA, SW-MSA).
#[derive(Clone, Debug)]
pub struct WindowAttention {
    qkv: Linear,
    proj: Linear,
    /// `[(2M − 1)², heads]`
    relative_position_bias_table: Tensor,
    windows: Windows,
}

impl WindowAttention {
    /// Attention of `num_heads` heads over `channels` channels.
    pub fn new(
        mut scope: ParameterScope<'_>,
        channels: usize,
        num_heads: usize,
        windows: Windows,
    ) -> Self {
        let entries = (2 * windows.size - 1).pow(2);
        let init = Init::Normal { std: 0.02 };
        Self {
            relative_position_bias_table: scope.create(
                "relative_position_bias_table",
                [entries, num_heads],
                init,
            ),
            qkv: Linear::new(scope.at("qkv"), channels, 3 * channels),
            proj: Linear::new(scope.at("proj"), channels, channels),
            windows,
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
        let table = &self.relative_position_bias_table;
        let qkv = self.qkv.forward_operand(tape, x);
        let bias = ops::relative_position_bias(tape, table, self.windows.size);
        let y = ops::window_attention(tape, &qkv, &self.qkv.bias, &bias, self.windows);
        self.proj.forward_residual(tape, &y, residual, keep)
    }
}

/// Four neighbours become one token of twice the channels.
#[derive(Debug)]
pub struct PatchMerging {
    norm: LayerNorm,
    /// `[2C, 4C]`
    reduction: Tensor,
}

impl PatchMerging {
    /// A layer for `channels` channels.
    pub fn new(mut scope: ParameterScope<'_>, channels: usize) -> Self {
        let init = Init::Normal { std: 0.02 };
        let shape = [2 * channels, 4 * channels];
        Self {
            norm: LayerNorm::new(scope.at("norm"), 4 * channels),
            reduction: scope.at("reduction").create("weight", shape, init),
        }
    }

    /// `x`: `[B, H, W, C]` → `[B, ⌈H / 2⌉, ⌈W / 2⌉, 2C]`.
    pub fn forward(&self, tape: &mut Tape, x: &Tensor) -> Tensor {
        let x = ops::patch_merge(tape, x);
        let x = self.norm.forward_operand(tape, &x);
        ops::linear(tape, &x, &self.reduction, None)
    }
}
