//! The Semantic-FPN head and the light semantic decoder beside it.

use super::{Features, HeadInit, ModelConfig};
use crate::nn::{BatchNorm, Conv1x1, Conv3x3, Init, ParameterScope};
use crate::{Tape, Tensor, ops};

/// Semantic FPN (Kirillov et al. 2019, <https://arxiv.org/abs/1901.02446>): each level is convolved
/// and doubled until it has stride 4, the sum is classified.
#[derive(Debug)]
pub struct FpnHead {
    scale_heads: Vec<Vec<Unit>>,
    conv_seg: Conv1x1,
    dropout: f32,
}

/// Convolution, batch norm, rectifier.
#[derive(Debug)]
struct Unit {
    conv: Conv3x3,
    bn: BatchNorm,
}

impl FpnHead {
    /// The head of `config`.
    pub fn new(mut scope: ParameterScope<'_>, config: &ModelConfig) -> Self {
        let (channels, classes) = (config.channels, config.num_classes);
        let init = |inputs: usize| match config.head_init {
            HeadInit::Official => Init::kaiming_normal(9 * channels),
            HeadInit::Pytorch => Init::pytorch(9 * inputs),
        };
        let classifier_init = match config.head_init {
            HeadInit::Official => Init::Normal { std: 0.01 },
            HeadInit::Pytorch => Init::pytorch(channels),
        };
        let mut heads = scope.at("scale_heads");
        let mut head = |level: usize| {
            let mut chain = heads.at(level);
            let unit = |k: usize| {
                let inputs = if k == 0 { config.stage_channels(level) } else { channels };
                // The chain's odd places are the doublings, which have no parameters.
                let mut scope = chain.at(2 * k);
                Unit {
                    conv: Conv3x3::new(scope.at("conv"), inputs, channels, init(inputs)),
                    bn: BatchNorm::new(scope.at("bn"), channels),
                }
            };
            (0..level.max(1)).map(unit).collect()
        };
        let scale_heads = (0..config.depths.len()).map(&mut head).collect();
        Self {
            scale_heads,
            conv_seg: Conv1x1::new(scope.at("conv_seg"), channels, classes, classifier_init),
            dropout: config.dropout,
        }
    }

    /// Class logits `[B, H / 4, W / 4, K]`.
    pub fn forward(&self, tape: &mut Tape, maps: &[Tensor]) -> Tensor {
        let mut total: Option<Tensor> = None;
        for (level, (units, map)) in self.scale_heads.iter().zip(maps).enumerate() {
            let x = tape.scope(format!("scale_heads.{level}"), |tape| {
                let mut x = map.clone();
                for unit in units {
                    x = unit.conv.forward(tape, &x);
                    x = unit.bn.forward_relu(tape, &x);
                    if level > 0 {
                        x = double(tape, &x);
                    }
                }
                x
            });
            total = Some(match &total {
                None => x,
                // Sizes differ by one where a stage's was odd.
                Some(total) => ops::resize_add(tape, &x, total),
            });
        }
        let total = total.expect("four levels");
        let total = ops::dropout2d(tape, &total, self.dropout);
        tape.scope("conv_seg", |tape| self.conv_seg.forward(tape, &total))
    }
}

/// The semantic decoder: the stages' class logits, doubled to stride 4 and summed. It has no
/// parameters and is only used for its loss.
///
/// `align_corners`: how maps are resized; with Semantic FPN the centres of corners move
/// ([`ops::resize`]), with heads that find masks they do not ([`ops::resize_corners`]).
pub fn semantic_branch(
    tape: &mut Tape,
    features: &Features,
    align_corners: bool,
) -> Option<Tensor> {
    let mut total: Option<Tensor> = None;
    for (level, prior) in features.priors.iter().enumerate() {
        let Some(prior) = prior else { continue };
        let mut p = prior.clone();
        for _ in 0..level {
            p = match align_corners {
                true => ops::resize_corners(tape, &p, 2 * p.dims()[1], 2 * p.dims()[2]),
                false => double(tape, &p),
            };
        }
        total = Some(match &total {
            None => p,
            Some(total) if align_corners => ops::resize_corners_add(tape, &p, total),
            Some(total) => ops::resize_add(tape, &p, total),
        });
    }
    total
}

fn double(tape: &mut Tape, x: &Tensor) -> Tensor {
    ops::resize(tape, x, 2 * x.dims()[1], 2 * x.dims()[2])
}
