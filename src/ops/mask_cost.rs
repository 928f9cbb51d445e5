//! Costs of matching queries to targets: `shaders/mask_cost.wgsl`.

use super::MaskTargets;
use crate::Tensor;
use crate::gpu::{Grid, Kernel, Params as _, Recorder, Source, params, source};

const SOURCES: &[Source] =
    &[source!("mask_cost"), source!("lib/point"), source!("lib/logistic"), source!("lib/reduce")];

static SPOTS_AT_POINTS: Kernel = kernel("spots_at_points", &["points", "labels", "spots_out"]);
static SPOTS_AT_PIXELS: Kernel = kernel("spots_at_pixels", &["labels", "spots_out"]);
static COSTS: Kernel = kernel("costs", &["logits", "masks", "targets", "spots", "cost"]);
pub(super) const KERNELS: &[&Kernel] = &[&SPOTS_AT_POINTS, &SPOTS_AT_PIXELS, &COSTS];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("mask_cost", entry, SOURCES, Params::FIELDS, bindings)
}

params! {
    struct Params {
        queries: u32,
        height: u32,
        width: u32,
        goal_height: u32,
        goal_width: u32,
        classes: u32,
        samples: u32,
        rows: u32,
        class_w: f32,
        mask_w: f32,
        dice_w: f32,
        first_group: u32,
    }
}

/// What the terms of a loss, and of what it costs to match, are multiplied by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MaskWeights {
    /// Of the class.
    pub class: f32,
    /// Of the mask, pixel by pixel.
    pub mask: f32,
    /// Of the mask's overlap.
    pub dice: f32,
}

/// Costs of matching each query to each target of its picture, `[B, Q, K]`; of the K columns as many
/// are written as the picture has targets.
///
/// - `logits`: `[B, Q, K + 1]`, of the classes and "no object"
/// - `masks`: `[B, Q, h, w]`, before the sigmoid
/// - `points`: `[B, P, 2]`: masks and targets are sampled there, as by [`point_sample`](super::point_sample),
///   and the mask's cost is binary cross entropy, as Mask2Former has it (Cheng et al. 2021,
///   <https://arxiv.org/abs/2112.01527>). `None`: at the pixels of the masks, where a target is that of the
///   nearest label, and the mask's cost is focal, as MaskFormer has it (Cheng et al. 2021,
///   <https://arxiv.org/abs/2107.06278>).
///
/// # Panics
///
/// If the shapes do not fit together.
#[track_caller]
pub fn mask_costs(
    recorder: &mut Recorder,
    logits: &Tensor,
    masks: &Tensor,
    targets: &MaskTargets,
    points: Option<&Tensor>,
    weights: MaskWeights,
) -> Tensor {
    let ([batch, goal_height, goal_width], classes) = (targets.size, targets.classes());
    let [_, queries, height, width] = *masks.dims() else {
        panic!("mask costs: masks {:?}", masks.shape())
    };
    assert_eq!(masks.dims()[0], batch, "mask costs: masks for {:?}", targets.size);
    assert_eq!(logits.dims(), [batch, queries, classes + 1], "mask costs: logits");
    let samples = points.map_or(height * width, |p| p.shape().len() / (2 * batch));
    let params = Params {
        queries: queries as u32,
        height: height as u32,
        width: width as u32,
        goal_height: goal_height as u32,
        goal_width: goal_width as u32,
        classes: classes as u32,
        samples: samples as u32,
        rows: batch as u32,
        class_w: weights.class,
        mask_w: weights.mask,
        dice_w: weights.dice,
        first_group: 0,
    };
    let spots = recorder.empty([batch, samples, 4]);
    let grid = Grid::elements(batch * samples);
    match points {
        Some(points) => {
            assert_eq!(points.dims(), [batch, samples, 2], "mask costs: points");
            recorder.run(&SPOTS_AT_POINTS, params, &[points, &targets.labels, &spots], grid);
        }
        None => {
            recorder.run(&SPOTS_AT_PIXELS, params, &[&targets.labels, &spots], grid);
        }
    }
    let cost = recorder.empty([batch, queries, classes]);
    let rows = batch * queries;
    let params = Params { rows: rows as u32, ..params };
    let bound = [logits, masks, &targets.list, &spots, &cost];
    // Pictures have a few targets.
    let flops = 150 * rows * samples;
    let dispatch = recorder.run(&COSTS, params, &bound, Grid::rows(rows));
    dispatch.constant("DENSE", points.is_none()).flops(flops);
    cost
}
