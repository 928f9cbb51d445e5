//! Softmax cross entropy with upsampling and hard example mining: `shaders/cross_entropy.wgsl`.

use super::{elementwise, reduce, resize};
use crate::gpu::{Grid, Kernel, Params as _, Recorder, Source, params, source};
use crate::{Tape, Tensor};

const SOURCES: &[Source] = &[source!("cross_entropy"), source!("lib/bilinear")];

static FORWARD: Kernel = kernel("forward", &["logits", "labels", "lse_out", "ce_out", "correct"]);
static COUNT: Kernel = kernel("count", &["lse", "ce", "choice", "bins"]);
static PICK: Kernel = kernel("pick", &["bins", "choice"]);
static DROP_EASY: Kernel = kernel("drop_easy", &["choice", "lse_out", "ce_out"]);
static BACKWARD: Kernel = kernel("backward", &["logits", "labels", "lse", "dy", "dlogits"]);
pub(super) const KERNELS: &[&Kernel] = &[&FORWARD, &COUNT, &PICK, &DROP_EASY, &BACKWARD];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("cross_entropy", entry, SOURCES, Params::FIELDS, bindings)
}

params! {
    struct Params {
        rows: u32,
        height: u32,
        width: u32,
        goal_height: u32,
        goal_width: u32,
        classes: u32,
        chunks: u32,
        strip: u32,
        pixels: u32,
        kept: u32,
        digit: u32,
        shift: u32,
        mask: u32,
        coefficient: f32,
    }
}

/// What a [`cross_entropy`] is taken over.
#[derive(Clone, Copy, Debug)]
pub struct CrossEntropy {
    /// Rows of the label map.
    pub height: usize,
    /// Columns of the label map.
    pub width: usize,
    /// Factor of the loss.
    pub weight: f32,
    /// Online hard example mining: how many pixels per image have a loss at most. The hardest
    /// ones of the whole batch are taken, wherever they are.
    pub ohem_min_kept: Option<usize>,
}

/// See [`cross_entropy`].
#[derive(Clone, Debug)]
pub struct CrossEntropyOutput {
    /// `[1]`
    pub loss: Tensor,
    /// `[1]`: percent of all pixels, ignored ones too, whose largest logit is that of their label;
    /// the first of equal ones counts. No gradient.
    pub accuracy: Tensor,
}

/// `weight · mean(−log softmax(resize(logits))[label])`: the mean over all pixels, of which those
/// without a label count 0.
///
/// - `logits`: `[B, h, w, K]`, K up to 255; resized bilinearly (`align_corners=False`) to the size
///   of the labels within the kernel
/// - `labels`: `[B, height, width]` of `u8`, four to an element, row after row without gaps; 255 is
///   ignored
///
/// Equals `torch.nn.functional.cross_entropy(interpolate(logits), labels, reduction="none",
/// ignore_index=255).mean()`. With `ohem_min_kept` the sum runs over the `B · ohem_min_kept` pixels
/// of largest loss only (of equal ones, the first), still divided by the number of all pixels.
/// Keeps `logits`, `labels` and one number per pixel for the backward pass.
///
/// # Panics
///
/// If the shapes do not fit together, K is above 255, or a side is 0 or above 32 767.
#[track_caller]
pub fn cross_entropy(
    tape: &mut Tape,
    logits: &Tensor,
    labels: &Tensor,
    options: CrossEntropy,
) -> CrossEntropyOutput {
    let [batch, height, width, classes] = resize::image("cross_entropy", logits);
    let CrossEntropy { height: goal_height, width: goal_width, weight, ohem_min_kept } = options;
    let sides = 1..=resize::MAX_SIDE;
    assert!(
        sides.contains(&goal_height) && sides.contains(&goal_width),
        "cross_entropy: labels of {goal_height} × {goal_width}"
    );
    assert!(classes <= 255, "cross_entropy: {classes} classes do not fit labels of one byte");
    let all = batch * goal_height * goal_width;
    assert_eq!(
        labels.shape().len(),
        all.div_ceil(4),
        "cross_entropy: labels for {batch} × {goal_height} × {goal_width}"
    );

    let chunks = goal_width.div_ceil(64);
    let pixels = batch * goal_height * chunks * 64;
    let recorder = tape.recorder();
    let params = Params {
        rows: (batch * goal_height) as u32,
        height: height as u32,
        width: width as u32,
        goal_height: goal_height as u32,
        goal_width: goal_width as u32,
        classes: classes as u32,
        chunks: chunks as u32,
        // A strip reads one cell beside it in vain; short ones are for devices of many cores.
        strip: if recorder.profile().cpu { 32 } else { 8 },
        pixels: pixels as u32,
        kept: ohem_min_kept.map_or(0, |kept| (batch * kept).min(all)) as u32,
        digit: 0,
        shift: 0,
        mask: 0,
        coefficient: weight / all as f32,
    };
    let same_size = (height, width) == (goal_height, goal_width);

    let map = [batch, goal_height, chunks * 64];
    let [lse, ce, correct] = [(); 3].map(|()| recorder.empty(map));
    let bound = [logits, labels, &lse, &ce, &correct];
    let grid = Grid::rows(batch * goal_height * chunks);
    let work = if same_size { 20 } else { 30 };
    let dispatch = recorder.run(&FORWARD, params, &bound, grid);
    dispatch.constant("SAME_SIZE", same_size).flops(work * all * classes);
    if ohem_min_kept.is_some() {
        keep_hardest(recorder, params, &lse, &ce);
    }
    let loss = sum(recorder, &ce, params.coefficient);
    let accuracy = sum(recorder, &correct, 100.0 / all as f32);

    let (logits_, labels) = (logits.clone(), labels.clone());
    let loss = tape.record([logits], loss, move |recorder, dy| {
        let dlogits = recorder.empty(logits_.shape().clone());
        let params = Params { rows: (batch * height) as u32, ..params };
        let strips = width.div_ceil(params.strip as usize);
        let grid = Grid::rows(batch * height * strips * classes.div_ceil(32));
        let bound = [&logits_, &labels, &lse, dy, &dlogits];
        let dispatch = recorder.run(&BACKWARD, params, &bound, grid);
        // A pixel meets two rows of logits.
        let work = if same_size { 20 } else { 2 * 30 };
        dispatch.constant("SAME_SIZE", same_size).flops(work * all * classes);
        [Some(dlogits)]
    });
    CrossEntropyOutput { loss, accuracy }
}

/// Leaves a loss to the `params.kept` hardest pixels only.
fn keep_hardest(recorder: &mut Recorder, params: Params, lse: &Tensor, ce: &Tensor) {
    let pixels = params.pixels as usize;
    let places = (32 - (params.pixels - 1).leading_zeros()).div_ceil(8);
    // Four bytes of loss, then as many of a pixel's place as there are.
    let shifts = [24, 16, 8, 0].into_iter().chain((0..places).rev().map(|byte| 8 * byte));
    let bins = elementwise::fill(recorder, [4 + places as usize, 256], 0.0);
    let choice = elementwise::fill(recorder, [3], 0.0);
    for (digit, shift) in (0..).zip(shifts) {
        let mask = u32::MAX.checked_shl(shift + 8).unwrap_or(0);
        let params = Params { digit, shift, mask, ..params };
        let bound = [lse, ce, &choice, &bins];
        recorder.run(&COUNT, params, &bound, Grid::rows(pixels.div_ceil(4096))).flops(8 * pixels);
        recorder.run(&PICK, params, &[&bins, &choice], Grid::rows(1));
    }
    recorder.run(&DROP_EASY, params, &[&choice, lse, ce], Grid::elements(pixels)).flops(8 * pixels);
}

/// `alpha · Σ x`, `[1]`; the length is a multiple of 64.
fn sum(recorder: &mut Recorder, x: &Tensor, alpha: f32) -> Tensor {
    let columns = reduce::sum_rows(recorder, x, x.shape().len() / 64, 64);
    let y = recorder.empty([1]);
    reduce::sum_rows_into(recorder, &columns, 64, 1, &y, alpha, false);
    y
}
