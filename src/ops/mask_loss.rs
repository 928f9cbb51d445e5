//! Losses of the masks of matched queries: `shaders/mask_loss.wgsl`.

use super::{MaskTargets, MaskWeights, Matching, elementwise, point_sample};
use crate::gpu::{Grid, Kernel, Params as _, Recorder, Source, params, source};
use crate::tape::Stream;
use crate::{Tape, Tensor};

const SOURCES: &[Source] = &[
    source!("mask_loss"),
    source!("lib/bilinear"),
    source!("lib/bilinear_centres"),
    source!("lib/point"),
    source!("lib/logistic"),
    source!("lib/reduce"),
];

static CHOOSE: Kernel = kernel("choose", &["z", "matching", "choice_out"]);
static POINT_SUMS: Kernel =
    kernel("point_sums", &["z", "points", "labels", "matching", "choice", "sums_out"]);
static PIXEL_PARTS: Kernel = kernel("pixel_parts", &["masks", "labels", "matching", "parts_out"]);
static FOLD: Kernel = kernel("fold", &["parts", "matching", "sums_out"]);
static TOTAL: Kernel = kernel("total", &["sums", "matching", "loss", "terms"]);
static POINT_SLOPES: Kernel =
    kernel("point_slopes", &["z", "points", "labels", "matching", "choice", "sums", "dy", "dz"]);
static PIXEL_SLOPES: Kernel =
    kernel("pixel_slopes", &["masks", "labels", "matching", "sums", "dy", "dmasks"]);
pub(super) const KERNELS: &[&Kernel] =
    &[&CHOOSE, &POINT_SUMS, &PIXEL_PARTS, &FOLD, &TOTAL, &POINT_SLOPES, &PIXEL_SLOPES];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("mask_loss", entry, SOURCES, Params::FIELDS, bindings)
}

params! {
    struct Params {
        height: u32,
        width: u32,
        goal_height: u32,
        goal_width: u32,
        queries: u32,
        rows: u32,
        first_pair: u32,
        capacity: u32,
        points: u32,
        candidates: u32,
        hard: u32,
        samples: u32,
        chunks: u32,
        mask_w: f32,
        dice_w: f32,
        first_group: u32,
    }
}

/// Where masks are compared with their targets.
#[derive(Clone, Debug)]
pub struct MaskPoints {
    /// Points of a pair among which the uncertain ones are chosen.
    pub candidates: usize,
    /// How many are chosen: those whose logit is nearest to 0.
    pub hard: usize,
    /// Points that count whatever the logit is.
    pub extra: usize,
    /// Where the points come from.
    pub source: PointSource,
}

/// Where points come from.
#[derive(Clone, Debug)]
pub enum PointSource {
    /// Uniform in 0..1, drawn on the device.
    Random(Stream),
    /// `[pairs, candidates + extra, 2]`, given.
    Given(Tensor),
}

/// See [`mask_loss`].
#[derive(Clone, Debug)]
pub struct MaskLoss {
    /// `[1]`
    pub loss: Tensor,
    /// `[2]`: the mask's part of it and the overlap's. No gradient.
    pub terms: Tensor,
}

/// Bytes of the points, samples and gradients of pairs that are in memory at one time, if one pair needs
/// no more.
const PAIRS_BYTES: usize = 32 << 20;

/// How many classes a picture has, for estimates; those of ADE20K have about ten.
const USUAL_TARGETS: usize = 10;

/// Pixels of the label map that a workgroup adds up.
const SPAN: usize = 16_384;

/// `(weights.mask · Σ mask + weights.dice · Σ dice) / M`, summed over the matched pairs, with M the number of
/// targets in the batch, at least 1.
///
/// - `masks`: `[B, Q, h, w]`, before the sigmoid
/// - with `points`, Mask2Former's: masks and targets are sampled at the points that are chosen for each
///   pair; the mask's loss is the mean binary cross entropy (Cheng et al. 2021,
///   <https://arxiv.org/abs/2112.01527>, after PointRend). No gradient flows through the choice
/// - without, MaskFormer's: masks are resized to the label map, bilinearly with `align_corners=False`; the mask's
///   loss is the mean focal loss, alpha ¼, gamma 2 (Lin et al. 2017, <https://arxiv.org/abs/1708.02002>)
///
/// Keeps `masks` and a few numbers per pair for the backward pass, which draws and samples again.
///
/// # Panics
///
/// If the shapes do not fit together.
#[track_caller]
pub fn mask_loss(
    tape: &mut Tape,
    masks: &Tensor,
    targets: &MaskTargets,
    matching: &Matching,
    points: Option<MaskPoints>,
    weights: MaskWeights,
) -> MaskLoss {
    let [batch, queries, height, width] = *masks.dims() else {
        panic!("mask_loss: masks {:?}", masks.shape())
    };
    let ([_, goal_height, goal_width], capacity) = (targets.size, matching.capacity());
    assert_eq!([batch, queries], matching.goals.dims(), "mask_loss: masks {:?}", masks.shape());
    assert_eq!(batch, targets.size[0], "mask_loss: targets");
    let samples = points.as_ref().map_or(goal_height * goal_width, |p| p.hard + p.extra);
    let params = Params {
        height: height as u32,
        width: width as u32,
        goal_height: goal_height as u32,
        goal_width: goal_width as u32,
        queries: queries as u32,
        rows: 0,
        first_pair: 0,
        capacity: capacity as u32,
        points: points.as_ref().map_or(0, |p| p.candidates + p.extra) as u32,
        candidates: points.as_ref().map_or(0, |p| p.candidates) as u32,
        hard: points.as_ref().map_or(0, |p| p.hard) as u32,
        samples: samples as u32,
        chunks: samples.div_ceil(SPAN) as u32,
        mask_w: weights.mask,
        dice_w: weights.dice,
        first_group: 0,
    };
    let of = Pairs {
        masks: masks.clone().detached(),
        labels: targets.labels.clone(),
        matching: matching.pairs.clone(),
        points,
        params,
    };
    let recorder = tape.recorder();
    let sums = recorder.empty([capacity, 4]);
    let choice = of.sums(recorder, &sums);
    let [loss, terms] = [1, 2].map(|len| recorder.empty([len]));
    let bound = [&sums, &of.matching, &loss, &terms];
    recorder.run(&TOTAL, params, &bound, Grid::rows(1));
    let loss = tape.record([masks], loss, move |recorder, dy| {
        // Queries without a target have no gradient.
        let dmasks = elementwise::fill(recorder, of.masks.shape().clone(), 0.0);
        of.slopes(recorder, choice.as_ref(), &sums, dy, &dmasks);
        [Some(dmasks)]
    });
    MaskLoss { loss, terms }
}

/// What the losses of pairs are computed from.
struct Pairs {
    masks: Tensor,
    labels: Tensor,
    matching: Tensor,
    points: Option<MaskPoints>,
    params: Params,
}

impl Pairs {
    /// Fills `sums`; answers the choice of points where there is one.
    fn sums(&self, recorder: &mut Recorder, sums: &Tensor) -> Option<Tensor> {
        let Self { masks, labels, matching, params, .. } = self;
        let (capacity, chunks) = (params.capacity as usize, params.chunks as usize);
        let Some(points) = &self.points else {
            let parts = recorder.empty([capacity, chunks, 4]);
            let bound = [masks, labels, matching, &parts];
            let grid = Grid::rows(capacity * chunks);
            let flops = 60 * params.samples as usize * self.likely_pairs();
            recorder.run(&PIXEL_PARTS, *params, &bound, grid).flops(flops);
            recorder.run(&FOLD, *params, &[&parts, matching, sums], Grid::elements(capacity));
            return None;
        };
        let choice = recorder.empty([capacity, 2]);
        for chunk @ [first, rows, likely] in self.chunks() {
            let params = Params { first_pair: first as u32, rows: rows as u32, ..*params };
            let places = self.places(recorder, points, chunk);
            let z = point_sample::sample_pairs(recorder, masks, &places, matching, first);
            let (grid, samples) = (Grid::rows(rows), likely * params.points as usize);
            let bound = [&z, matching, &choice];
            recorder.run(&CHOOSE, params, &bound, grid).flops(20 * samples);
            let bound = [&z, &places, labels, matching, &choice, sums];
            recorder.run(&POINT_SUMS, params, &bound, grid).flops(30 * samples);
        }
        Some(choice)
    }

    /// Adds the gradient to `dmasks`.
    fn slopes(
        &self,
        recorder: &mut Recorder,
        choice: Option<&Tensor>,
        sums: &Tensor,
        dy: &Tensor,
        dmasks: &Tensor,
    ) {
        let Self { masks, labels, matching, params, .. } = self;
        let (Some(points), Some(choice)) = (&self.points, choice) else {
            let len = (params.capacity * params.height * params.width) as usize;
            let bound = [masks, labels, matching, sums, dy, dmasks];
            let flops = 4 * 80 * params.samples as usize * self.likely_pairs();
            recorder.run(&PIXEL_SLOPES, *params, &bound, Grid::elements(len)).flops(flops);
            return;
        };
        for chunk @ [first, rows, likely] in self.chunks() {
            let params = Params { first_pair: first as u32, rows: rows as u32, ..*params };
            let places = self.places(recorder, points, chunk);
            let z = point_sample::sample_pairs(recorder, masks, &places, matching, first);
            let dz = recorder.empty(z.shape().clone());
            let bound = [&z, &places, labels, matching, choice, sums, dy, &dz];
            let grid = point_sample::of_rows(rows, params.points as usize);
            let flops = 40 * likely * params.points as usize;
            recorder.run(&POINT_SLOPES, params, &bound, grid).flops(flops);
            point_sample::scatter_pairs(recorder, &places, &dz, matching, first, dmasks);
        }
    }

    /// Pairs that there are likely to be.
    fn likely_pairs(&self) -> usize {
        (self.params.capacity as usize).min(USUAL_TARGETS * self.masks.dims()[0])
    }

    /// Of the pairs that are worked on at one time: the first, how many there can be, and are likely to be.
    fn chunks(&self) -> impl Iterator<Item = [usize; 3]> + use<> {
        let Params { points, height, width, capacity, .. } = self.params;
        let bytes = 16 * points as usize + 8 * (height * width) as usize;
        let (capacity, at_once) = (capacity as usize, (PAIRS_BYTES / bytes).max(1));
        let likely = self.likely_pairs();
        (0..capacity).step_by(at_once).map(move |first| {
            let rows = at_once.min(capacity - first);
            [first, rows, likely.saturating_sub(first).min(rows)]
        })
    }

    /// The points of a chunk's pairs.
    fn places(&self, recorder: &mut Recorder, points: &MaskPoints, chunk: [usize; 3]) -> Tensor {
        let count = points.candidates + points.extra;
        match &points.source {
            PointSource::Random(stream) => {
                point_sample::points_of_pairs(recorder, stream, &self.matching, chunk, count)
            }
            PointSource::Given(given) => {
                assert_eq!(given.dims(), [self.params.capacity as usize, count, 2], "given points");
                assert_eq!(chunk[1], given.dims()[0], "given points fill one chunk");
                given.clone()
            }
        }
    }
}
