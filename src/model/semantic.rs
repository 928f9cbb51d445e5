//! The semantic layer: attention by agreement of class vectors, which closes a stage.

use super::ModelConfig;
use crate::nn::{Init, LayerNorm, Linear, ParameterScope};
use crate::{Tape, Tensor, ops};

/// One semantic block: `t + gamma · dropout(res(softmax(q kᵀ) v))`, where `q` and `k` are class
/// logits of the tokens and `q` is also the block's prediction.
#[derive(Clone, Debug)]
pub struct SemanticAttention {
    mlp_cls_q: Linear,
    mlp_cls_k: Linear,
    mlp_v: Linear,
    mlp_res: Linear,
    /// `[1]`
    gamma: Tensor,
    dropout: f32,
}

impl SemanticAttention {
    /// A block for tokens of `channels` channels and `classes` classes.
    pub fn new(
        mut scope: ParameterScope<'_>,
        channels: usize,
        classes: usize,
        dropout: f32,
    ) -> Self {
        Self {
            mlp_cls_q: Linear::new(scope.at("mlp_cls_q"), channels, classes),
            mlp_cls_k: Linear::new(scope.at("mlp_cls_k"), channels, classes),
            mlp_v: Linear::new(scope.at("mlp_v"), channels, channels),
            mlp_res: Linear::new(scope.at("mlp_res"), channels, channels),
            gamma: scope.create("gamma", [1], Init::Constant(0.0)),
            dropout,
        }
    }

    /// `t`: `[G, N, C]`, groups of tokens → class logits `[G, N, K]` and the new tokens.
    pub fn forward(&self, tape: &mut Tape, t: &Tensor) -> (Tensor, Tensor) {
        let prior = self.mlp_cls_q.forward(tape, t);
        let key = self.mlp_cls_k.forward(tape, t);
        let value = self.mlp_v.forward(tape, t);
        let mixed = ops::semantic_attention(tape, &prior, &key, &value);
        let update = self.mlp_res.forward(tape, &mixed);
        let update = ops::dropout(tape, &update, self.dropout);
        let t = ops::gated_residual(tape, t, &update, &self.gamma);
        (prior, t)
    }
}

/// Layer norm, then a chain of semantic blocks inside windows or over the whole map.
///
/// The map is replaced by its normalised version: there is no skip around the norm.
#[derive(Clone, Debug)]
pub struct SemanticLayer {
    norm1: LayerNorm,
    class_injection: Vec<SemanticAttention>,
    /// Side of the windows; none for the whole map.
    window: Option<usize>,
}

impl SemanticLayer {
    /// The layer of stage `i`, if `config` has one there.
    pub fn of_stage(scope: ParameterScope<'_>, config: &ModelConfig, i: usize) -> Option<Self> {
        let (blocks, classes) = (config.num_sem_blocks[i], config.num_classes);
        let window = config.semantic_windows()[i].then_some(config.sem_window_size);
        let channels = config.stage_channels(i);
        (blocks > 0)
            .then(|| Self::new(scope, channels, classes, blocks, window, config.sem_dropout))
    }

    /// A layer of `blocks` blocks, at least one.
    pub fn new(
        mut scope: ParameterScope<'_>,
        channels: usize,
        classes: usize,
        blocks: usize,
        window: Option<usize>,
        dropout: f32,
    ) -> Self {
        let norm1 = LayerNorm::new(scope.at("norm1"), channels);
        let mut scope = scope.at("class_injection");
        let block = |b| SemanticAttention::new(scope.at(b), channels, classes, dropout);
        Self { norm1, class_injection: (0..blocks).map(block).collect(), window }
    }

    /// `x`: `[B, H, W, C]` → class logits `[B, H, W, K]` of the last block, and the new map.
    pub fn forward(&self, tape: &mut Tape, x: &Tensor) -> (Tensor, Tensor) {
        let [batch, height, width, channels] = *x.dims() else {
            panic!("SemanticLayer: {:?}", x.shape())
        };
        let x = tape.scope("norm1", |tape| self.norm1.forward(tape, x));
        let mut t = match self.window {
            // Padding comes after the norm: zeros, which are keys and values like any other.
            Some(window) => ops::window_partition(tape, &x, window),
            None => x.reshape([batch, height * width, channels]),
        };
        let mut prior = None;
        for (i, block) in self.class_injection.iter().enumerate() {
            let name = format!("class_injection.{i}");
            let (logits, next) = tape.scope(name, |tape| block.forward(tape, &t));
            (prior, t) = (Some(logits), next);
        }
        let prior = prior.expect("at least one block");
        let mut to_map = |t: &Tensor| match self.window {
            Some(window) => ops::window_reverse(tape, t, batch, height, width, window),
            None => t.reshape([batch, height, width, t.shape().last()]),
        };
        (to_map(&prior), to_map(&t))
    }
}
