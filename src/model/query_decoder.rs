//! Transformer decoders of the mask-classification heads: MaskFormer's, and Mask2Former's, whose queries
//! look where their masks are.

use super::{PixelFeatures, Prediction};
use crate::nn::{Conv1x1, Init, LayerNorm, Linear, MultiheadAttention, ParameterScope};
use crate::{Tape, Tensor, ops};

/// Maps that Mask2Former's queries look at, one after the other.
const LEVELS: usize = 3;

/// Extents of a transformer decoder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueryDecoderConfig {
    /// Channels of queries, of memory and of mask features.
    pub dim: usize,
    /// K: classes, not counting "no object".
    pub classes: usize,
    /// Q: masks that can be found in a picture.
    pub queries: usize,
    /// Attention heads.
    pub heads: usize,
    /// Channels inside of a layer's MLP.
    pub ffn: usize,
    /// Layers.
    pub layers: usize,
    /// Dropout within the layers; Mask2Former has none.
    pub dropout: f32,
}

/// What is predicted from the queries after each layer.
#[derive(Debug)]
struct Predictor {
    norm: LayerNorm,
    class_embed: Linear,
    mask_embed: [Linear; 3],
}

impl Predictor {
    fn new(mut scope: ParameterScope<'_>, norm: LayerNorm, config: QueryDecoderConfig) -> Self {
        let QueryDecoderConfig { dim, classes, .. } = config;
        let init = Init::pytorch(dim);
        let class_embed = Linear::with_init(scope.at("class_embed"), dim, classes + 1, init, init);
        let mut layers = scope.at("mask_embed");
        let mut layers = layers.at("layers");
        let mask_embed = [0, 1, 2].map(|i| Linear::with_init(layers.at(i), dim, dim, init, init));
        Self { norm, class_embed, mask_embed }
    }

    /// `t`: `[B, Q, dim]`, `mask_features`: `[B, h, w, dim]`.
    fn forward(&self, tape: &mut Tape, t: &Tensor, mask_features: &Tensor) -> Prediction {
        let [batch, height, width, dim] = *mask_features.dims() else {
            panic!("mask features {:?}", mask_features.shape())
        };
        let t = self.norm.forward(tape, t);
        let class_logits = tape.scope("class_embed", |tape| self.class_embed.forward(tape, &t));
        let mask = tape.scope("mask_embed", |tape| {
            let [first, second, last] = &self.mask_embed;
            let mask = first.forward(tape, &t);
            let mask = ops::relu(tape, &mask);
            let mask = second.forward(tape, &mask);
            let mask = ops::relu(tape, &mask);
            last.forward(tape, &mask)
        });
        let pixels = mask_features.reshape([batch, height * width, dim]);
        let mask_logits = ops::matmul(tape, &mask, &pixels, (false, true));
        let mask_logits = mask_logits.reshape([batch, t.dims()[1], height, width]);
        Prediction { class_logits, mask_logits }
    }
}

/// Two linear layers with a rectifier between them.
#[derive(Debug)]
struct Mlp {
    linear1: Linear,
    linear2: Linear,
    dropout: f32,
}

impl Mlp {
    fn new(scope: &mut ParameterScope<'_>, config: QueryDecoderConfig) -> Self {
        let QueryDecoderConfig { dim, ffn, dropout, .. } = config;
        let xavier = Init::xavier(dim, ffn);
        Self {
            linear1: Linear::with_init(scope.at("linear1"), dim, ffn, xavier, Init::pytorch(dim)),
            linear2: Linear::with_init(scope.at("linear2"), ffn, dim, xavier, Init::pytorch(ffn)),
            dropout,
        }
    }

    fn forward(&self, tape: &mut Tape, t: &Tensor) -> Tensor {
        let hidden = self.linear1.forward(tape, t);
        let hidden = ops::relu(tape, &hidden);
        let hidden = ops::dropout(tape, &hidden, self.dropout);
        self.linear2.forward(tape, &hidden)
    }
}

/// `norm(t + dropout(branch))`: what ends each part of a layer.
fn residual(
    tape: &mut Tape,
    t: &Tensor,
    branch: &Tensor,
    dropout: f32,
    norm: &LayerNorm,
) -> Tensor {
    let branch = ops::dropout(tape, branch, dropout);
    let t = ops::add(tape, t, &branch);
    norm.forward(tape, &t)
}

/// A learned `[Q, dim]`, one row for each query.
fn embedding(mut scope: ParameterScope<'_>, rows: usize, dim: usize) -> Tensor {
    scope.create("weight", [rows, dim], Init::Normal { std: 1.0 })
}

/// `[B, h, w, C]` as tokens, `[B, h · w, C]`.
fn tokens(map: &Tensor) -> Tensor {
    let [batch, height, width, channels] = *map.dims() else { panic!("a map {:?}", map.shape()) };
    map.reshape([batch, height * width, channels])
}

/// `tokens` of `map`, with where they are in it: `[B, h · w, C]`.
fn with_places(tape: &mut Tape, tokens: &Tensor, map: &Tensor) -> Tensor {
    let [_, height, width, _] = *map.dims() else { panic!("a map {:?}", map.shape()) };
    let channels = tokens.shape().last();
    let code = ops::sine_position(tape.recorder(), height, width, channels);
    ops::add_position(tape, tokens, &code.reshape([height * width, channels]))
}

/// A layer of MaskFormer's decoder: self attention, attention to the picture, an MLP.
#[derive(Debug)]
struct DetrLayer {
    self_attn: MultiheadAttention,
    multihead_attn: MultiheadAttention,
    mlp: Mlp,
    norms: [LayerNorm; 3],
    dropout: f32,
}

impl DetrLayer {
    fn new(mut scope: ParameterScope<'_>, config: QueryDecoderConfig) -> Self {
        let QueryDecoderConfig { dim, heads, dropout, .. } = config;
        let mut attention =
            |name: &str| MultiheadAttention::new(scope.at(name), dim, heads, dropout);
        Self {
            self_attn: attention("self_attn"),
            multihead_attn: attention("multihead_attn"),
            mlp: Mlp::new(&mut scope, config),
            norms: [1, 2, 3].map(|i| LayerNorm::new(scope.at(format!("norm{i}")), dim)),
            dropout,
        }
    }

    /// `t`: `[B, Q, dim]`, `query_embed`: `[Q, dim]`, `keys`, `memory`: `[B, N, dim]` → as `t`.
    fn forward(
        &self,
        tape: &mut Tape,
        t: &Tensor,
        query_embed: &Tensor,
        keys: &Tensor,
        memory: &Tensor,
    ) -> Tensor {
        let q = ops::add_position(tape, t, query_embed);
        let y = self.self_attn.forward(tape, &q, &q, t, None);
        let t = residual(tape, t, &y, self.dropout, &self.norms[0]);
        let q = ops::add_position(tape, &t, query_embed);
        let y = self.multihead_attn.forward(tape, &q, keys, memory, None);
        let t = residual(tape, &t, &y, self.dropout, &self.norms[1]);
        let y = self.mlp.forward(tape, &t);
        residual(tape, &t, &y, self.dropout, &self.norms[2])
    }
}

/// MaskFormer's transformer decoder (Cheng et al. 2021, <https://arxiv.org/abs/2107.06278>), that of DETR:
/// queries start from nothing and look at the encoder's coarsest map.
#[derive(Debug)]
pub struct PlainQueryDecoder {
    layers: Vec<DetrLayer>,
    /// `[Q, dim]`
    query_embed: Tensor,
    /// Absent if the map has `dim` channels.
    input_proj: Option<Conv1x1>,
    predictor: Predictor,
}

impl PlainQueryDecoder {
    /// A decoder that looks at a map of `in_channels`.
    pub fn new(
        mut scope: ParameterScope<'_>,
        in_channels: usize,
        config: QueryDecoderConfig,
    ) -> Self {
        let QueryDecoderConfig { dim, queries, layers, .. } = config;
        let mut transformer = scope.at("transformer");
        let mut decoder = transformer.at("decoder");
        let norm = LayerNorm::new(decoder.at("norm"), dim);
        let mut layer = decoder.at("layers");
        let layers = (0..layers).map(|j| DetrLayer::new(layer.at(j), config)).collect();
        let project =
            |scope| Conv1x1::new(scope, in_channels, dim, Init::kaiming_uniform(in_channels));
        Self {
            layers,
            query_embed: embedding(scope.at("query_embed"), queries, dim),
            input_proj: (in_channels != dim).then(|| project(scope.at("input_proj"))),
            predictor: Predictor::new(scope, norm, config),
        }
    }

    /// `map`: `[B, h, w, in_channels]`, `mask_features`: `[B, H, W, dim]` → a prediction after each layer.
    pub fn forward(
        &self,
        tape: &mut Tape,
        map: &Tensor,
        mask_features: &Tensor,
    ) -> Vec<Prediction> {
        let memory = match &self.input_proj {
            Some(conv) => conv.forward(tape, map),
            None => map.clone(),
        };
        let memory = tokens(&memory);
        let keys = with_places(tape, &memory, map);
        let [queries, dim] = *self.query_embed.dims() else { unreachable!("made in new") };
        let mut t = ops::fill(tape.recorder(), [map.dims()[0], queries, dim], 0.0);
        let mut predictions = Vec::new();
        for (j, layer) in self.layers.iter().enumerate() {
            t = tape.scope(format!("transformer.decoder.layers.{j}"), |tape| {
                layer.forward(tape, &t, &self.query_embed, &keys, &memory)
            });
            predictions.push(self.predictor.forward(tape, &t, mask_features));
        }
        predictions
    }
}

/// A layer of Mask2Former's decoder: attention to the places of the queries' masks, self attention, an MLP.
#[derive(Debug)]
struct MaskedLayer {
    index: usize,
    cross: (MultiheadAttention, LayerNorm),
    own: (MultiheadAttention, LayerNorm),
    ffn: (Mlp, LayerNorm),
}

impl MaskedLayer {
    fn new(scope: &mut ParameterScope<'_>, i: usize, config: QueryDecoderConfig) -> Self {
        let QueryDecoderConfig { dim, heads, .. } = config;
        let mut attention = |place: &str, name: &str| {
            let mut scope = scope.at(place);
            let mut scope = scope.at(i);
            let attention = MultiheadAttention::new(scope.at(name), dim, heads, 0.0);
            (attention, LayerNorm::new(scope.at("norm"), dim))
        };
        let cross = attention("transformer_cross_attention_layers", "multihead_attn");
        let own = attention("transformer_self_attention_layers", "self_attn");
        let mut scope = scope.at("transformer_ffn_layers");
        let mut scope = scope.at(i);
        let ffn = (Mlp::new(&mut scope, config), LayerNorm::new(scope.at("norm"), dim));
        Self { index: i, cross, own, ffn }
    }

    /// As [`DetrLayer::forward`], with the keys that each query may see.
    fn forward(
        &self,
        tape: &mut Tape,
        t: &Tensor,
        query_embed: &Tensor,
        [keys, memory]: [&Tensor; 2],
        mask: &Tensor,
    ) -> Tensor {
        let [cross, own, ffn] = ["cross_attention", "self_attention", "ffn"]
            .map(|part| format!("transformer_{part}_layers.{}", self.index));
        let t = tape.scope(cross, |tape| {
            let q = ops::add_position(tape, t, query_embed);
            let y = self.cross.0.forward(tape, &q, keys, memory, Some(mask));
            residual(tape, t, &y, 0.0, &self.cross.1)
        });
        let t = tape.scope(own, |tape| {
            let q = ops::add_position(tape, &t, query_embed);
            let y = self.own.0.forward(tape, &q, &q, &t, None);
            residual(tape, &t, &y, 0.0, &self.own.1)
        });
        tape.scope(ffn, |tape| {
            let y = self.ffn.0.forward(tape, &t);
            residual(tape, &t, &y, 0.0, &self.ffn.1)
        })
    }
}

/// Mask2Former's transformer decoder (Cheng et al. 2022, <https://arxiv.org/abs/2112.01527>): each layer's
/// queries look at one of three maps, coarse to fine and over again, where the masks of the layer before are.
#[derive(Debug)]
pub struct MaskedQueryDecoder {
    layers: Vec<MaskedLayer>,
    /// `[Q, dim]`: what queries start from.
    query_feat: Tensor,
    /// `[Q, dim]`
    query_embed: Tensor,
    /// `[3, dim]`
    level_embed: Tensor,
    predictor: Predictor,
}

impl MaskedQueryDecoder {
    /// A decoder of `config`, whose dropout is left out.
    pub fn new(mut scope: ParameterScope<'_>, config: QueryDecoderConfig) -> Self {
        let config = QueryDecoderConfig { dropout: 0.0, ..config };
        let QueryDecoderConfig { dim, queries, layers, .. } = config;
        let norm = LayerNorm::new(scope.at("decoder_norm"), dim);
        Self {
            layers: (0..layers).map(|i| MaskedLayer::new(&mut scope, i, config)).collect(),
            query_feat: embedding(scope.at("query_feat"), queries, dim),
            query_embed: embedding(scope.at("query_embed"), queries, dim),
            level_embed: embedding(scope.at("level_embed"), LEVELS, dim),
            predictor: Predictor::new(scope, norm, config),
        }
    }

    /// A prediction from the queries as they start, and one after each layer.
    pub fn forward(&self, tape: &mut Tape, features: &PixelFeatures) -> Vec<Prediction> {
        let PixelFeatures { mask_features, memory: maps } = features;
        let [queries, dim] = *self.query_feat.dims() else { unreachable!("made in new") };
        let levels = [0, 1, 2].map(|j| {
            let level = ops::slice(tape, &self.level_embed, 0, j..j + 1).reshape([dim]);
            let memory = ops::add_bias(tape, &tokens(&maps[j]), &level);
            (with_places(tape, &memory, &maps[j]), memory)
        });
        let nothing = ops::fill(tape.recorder(), [maps[0].dims()[0], queries, dim], 0.0);
        let mut t = ops::add_position(tape, &nothing, &self.query_feat);
        let mut predictions = vec![self.predictor.forward(tape, &t, mask_features)];
        for (i, layer) in self.layers.iter().enumerate() {
            let level = i % LEVELS;
            let [_, height, width, _] = *maps[level].dims() else { unreachable!("a map") };
            let masks = &predictions[i].mask_logits;
            let mask = ops::attention_mask(tape.recorder(), masks, height, width);
            let (keys, memory) = &levels[level];
            t = layer.forward(tape, &t, &self.query_embed, [keys, memory], &mask);
            predictions.push(self.predictor.forward(tape, &t, mask_features));
        }
        predictions
    }
}
