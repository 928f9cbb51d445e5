//! The loss of mask classification: [`set_losses`].

use super::Predictions;
use crate::ops::{self, MaskPoints, MaskTargets, MaskWeights, PointSource};
use crate::{Tape, Tensor};

/// How the losses of a mask-classification head are weighed and where masks are compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MaskSettings {
    /// Weights of the terms, in the loss and in what it costs to match.
    pub weights: MaskWeights,
    /// How much a query counts that has no target, next to one that has.
    pub no_object: f32,
    /// At sampled points, as in Mask2Former; `None`: on the whole picture, as in MaskFormer.
    pub points: Option<PointSettings>,
}

/// See [`MaskSettings::points`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PointSettings {
    /// Points at which a mask is compared with its target.
    pub count: usize,
    /// Candidates, in units of `count`.
    pub oversample: f32,
    /// Part of the points that are the most uncertain candidates.
    pub importance: f32,
}

impl Default for MaskSettings {
    /// Mask2Former's.
    fn default() -> Self {
        Self {
            weights: MaskWeights { class: 2.0, mask: 5.0, dice: 5.0 },
            no_object: 0.1,
            points: Some(PointSettings { count: 12_544, oversample: 3.0, importance: 0.75 }),
        }
    }
}

impl MaskSettings {
    /// MaskFormer's.
    pub fn dense() -> Self {
        let weights = MaskWeights { class: 1.0, mask: 20.0, dice: 1.0 };
        Self { weights, no_object: 0.1, points: None }
    }
}

impl PointSettings {
    /// How many candidates there are, how many of them count, and how many further points.
    pub fn split(self) -> [usize; 3] {
        let of = |part: f32| (self.count as f64 * f64::from(part)) as usize;
        let hard = of(self.importance);
        [if hard == 0 { 0 } else { of(self.oversample) }, hard, self.count - hard]
    }
}

/// Points of one layer that are given instead of drawn.
#[derive(Clone, Debug)]
pub struct GivenPoints {
    /// `[B, P, 2]`, for the costs.
    pub matching: Tensor,
    /// `[A, candidates + further ones, 2]`, for the loss of each pair of the A that there can be.
    pub loss: Tensor,
}

/// The losses of a batch.
#[derive(Clone, Debug)]
pub struct SetLosses {
    /// `[1]`: the sum of all terms.
    pub total: Tensor,
    /// Of each layer, in the order of the predictions.
    pub layers: Vec<LayerLosses>,
    /// `[1]`: of the priors, times its weight.
    pub cate: Option<Tensor>,
}

/// The terms of one layer, each times its weight.
#[derive(Clone, Debug)]
pub struct LayerLosses {
    /// `[1]`
    pub class: Tensor,
    /// `[2]`: mask, dice.
    pub masks: Tensor,
    /// `[B, Q]` of `u32`: the class that each query should have, K for "no object".
    pub goals: Tensor,
}

/// The loss of each layer's queries against the classes of their pictures, matched layer by layer at the
/// least cost, and of the priors (Cheng et al. 2021, <https://arxiv.org/abs/2107.06278>,
/// <https://arxiv.org/abs/2112.01527>).
///
/// - `labels`: class ids of `[B, H, W]`, four to an element, 255 where ignored; each class that a picture
///   has is a target, and a picture may have none
/// - `size`: B, H, W
/// - `cate_w`: weight of the priors' loss, the mean over the pixels that have a label
/// - `given`: points of each layer, in the order of the predictions, instead of random ones
///
/// # Panics
///
/// If shapes do not fit together; if points are wanted but the tape is not random and none are given.
#[track_caller]
pub fn set_losses(
    tape: &mut Tape,
    predictions: &Predictions,
    labels: &Tensor,
    size: [usize; 3],
    settings: MaskSettings,
    cate_w: f32,
    given: Option<&[GivenPoints]>,
) -> SetLosses {
    let [batch, height, width] = size;
    let classes = predictions.layers[0].class_logits.shape().last() - 1;
    let targets = MaskTargets::new(tape.recorder(), labels, size, classes);
    let layers = predictions.layers.len();
    let name = |i: usize| match i + 1 == layers {
        true => "the last layer".to_owned(),
        false => format!("layer {i}"),
    };

    // All costs before the first match: the host matches one layer while the device is at the next.
    let costs: Vec<Tensor> = (predictions.layers.iter().enumerate())
        .map(|(i, layer)| {
            let points = settings.points.map(|points| match given {
                Some(given) => given[i].matching.clone(),
                None => {
                    let stream = tape.stream().expect("points are drawn: the tape must be random");
                    ops::uniform_points(tape.recorder(), &stream, batch, points.count)
                }
            });
            ops::mask_costs(
                tape.recorder(),
                &layer.class_logits,
                &layer.mask_logits,
                &targets,
                points.as_ref(),
                settings.weights,
            )
        })
        .collect();
    let mut total: Option<Tensor> = None;
    let mut add = |tape: &mut Tape, term: &Tensor| {
        let sum = total.take().map(|sum| ops::add(tape, &sum, term));
        total = Some(sum.unwrap_or_else(|| term.clone()));
    };
    let mut terms = Vec::new();
    for (i, (layer, costs)) in predictions.layers.iter().zip(&costs).enumerate() {
        let matching = ops::match_masks(tape.recorder(), costs, &targets, &name(i));
        let class = ops::class_loss(
            tape,
            &layer.class_logits,
            &matching.goals,
            settings.no_object,
            settings.weights.class,
        );
        let points = settings.points.map(|points| {
            let [candidates, hard, extra] = points.split();
            let source = match given {
                Some(given) => PointSource::Given(given[i].loss.clone()),
                None => {
                    let stream = tape.stream().expect("the costs had one");
                    PointSource::Random(stream)
                }
            };
            MaskPoints { candidates, hard, extra, source }
        });
        let masks =
            ops::mask_loss(tape, &layer.mask_logits, &targets, &matching, points, settings.weights);
        add(tape, &class);
        add(tape, &masks.loss);
        terms.push(LayerLosses { class, masks: masks.terms, goals: matching.goals });
    }
    let cate = predictions.prior.as_ref().map(|prior| {
        let cate = ops::labelled_cross_entropy(tape, prior, labels, [height, width], cate_w);
        add(tape, &cate);
        cate
    });
    SetLosses { total: total.expect("a head has layers"), layers: terms, cate }
}
