//! Softmax cross entropy with upsampling and hard example mining: `shaders/cross_entropy.wgsl`.

use super::{elementwise, reduce, resize};
use crate::gpu::{Grid, Kernel, Params as _, Recorder, Source, params, source};
use crate::{Tape, Tensor};

const SOURCES: &[Source] =
    &[source!("cross_entropy"), source!("lib/bilinear"), source!("lib/bilinear_centres")];
/// With `align_corners`.
const CORNERS: &[Source] =
    &[source!("cross_entropy"), source!("lib/bilinear"), source!("lib/bilinear_corners")];

static FORWARD: Kernel = kernel("forward", FORWARD_BINDINGS);
static FORWARD_CORNERS: Kernel = corners("forward", FORWARD_BINDINGS);
const FORWARD_BINDINGS: &[&str] = &["logits", "labels", "lse_out", "ce_out", "correct"];
static COUNT: Kernel = kernel("count", &["lse", "ce", "choice", "bins"]);
static PICK: Kernel = kernel("pick", &["bins", "choice"]);
static DROP_EASY: Kernel = kernel("drop_easy", &["choice", "lse_out", "ce_out"]);
static MEAN: Kernel = kernel("mean", &["total", "marked", "mean_out"]);
static BACKWARD: Kernel = kernel("backward", BACKWARD_BINDINGS);
static BACKWARD_CORNERS: Kernel = corners("backward", BACKWARD_BINDINGS);
const BACKWARD_BINDINGS: &[&str] = &["logits", "labels", "lse", "dy", "dlogits"];
pub(super) const KERNELS: &[&Kernel] =
    &[&FORWARD, &FORWARD_CORNERS, &COUNT, &PICK, &DROP_EASY, &MEAN, &BACKWARD, &BACKWARD_CORNERS];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("cross_entropy", entry, SOURCES, Params::FIELDS, bindings)
}

const fn corners(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("cross_entropy", entry, CORNERS, Params::FIELDS, bindings)
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
    let CrossEntropy { height, width, weight, ohem_min_kept } = options;
    let pixels = Pixels::new("cross_entropy", logits, labels, [height, width], false);
    let all = pixels.all;
    let kept = ohem_min_kept.map_or(0, |kept| (logits.dims()[0] * kept).min(all)) as u32;
    let coefficient = weight / all as f32;
    let params = Params { kept, coefficient, ..pixels.params };
    let recorder = tape.recorder();
    let [lse, ce, correct] = pixels.forward(recorder);
    if ohem_min_kept.is_some() {
        keep_hardest(recorder, params, &lse, &ce);
    }
    let loss = sum(recorder, &ce, coefficient);
    let accuracy = sum(recorder, &correct, 100.0 / all as f32);
    let loss = tape.record([logits], loss, move |recorder, dy| {
        [Some(pixels.backward(recorder, &lse, dy, coefficient))]
    });
    CrossEntropyOutput { loss, accuracy }
}

/// `weight · mean(−log softmax(resize(logits))[label])`: the mean over the pixels that have a label; 0 if
/// none has.
///
/// - `logits`: `[B, h, w, K]`, K up to 255; resized bilinearly (`align_corners=True`) to the size
///   of the labels within the kernel
/// - `labels`: `[B, height, width]` of `u8`, four to an element, row after row without gaps; 255 is
///   ignored
/// - returns `[1]`
///
/// Equals `torch.nn.functional.cross_entropy(interpolate(logits, align_corners=True), labels,
/// ignore_index=255)`, which is NaN where no pixel has a label. Keeps `logits`, `labels` and one number
/// per pixel for the backward pass.
///
/// # Panics
///
/// As [`cross_entropy`].
#[track_caller]
pub fn labelled_cross_entropy(
    tape: &mut Tape,
    logits: &Tensor,
    labels: &Tensor,
    goal: [usize; 2],
    weight: f32,
) -> Tensor {
    let name = "labelled_cross_entropy";
    let pixels = Pixels::new(name, logits, labels, goal, true);
    let recorder = tape.recorder();
    let [lse, ce, labelled] = pixels.forward(recorder);
    let [total, count] = [&ce, &labelled].map(|map| sum(recorder, map, 1.0));
    let params = Params { coefficient: weight, ..pixels.params };
    let over_count = move |recorder: &mut Recorder, total: &Tensor| {
        let mean = recorder.empty([1]);
        recorder.run(&MEAN, params, &[total, &count, &mean], Grid::rows(1));
        mean
    };
    let loss = over_count(recorder, &total);
    tape.record([logits], loss, move |recorder, dy| {
        let dy = over_count(recorder, dy);
        [Some(pixels.backward(recorder, &lse, &dy, 1.0))]
    })
}

/// The pixels of a label map and the logits that are resized to them.
struct Pixels {
    logits: Tensor,
    labels: Tensor,
    /// How many.
    all: usize,
    params: Params,
    /// Whether a mean over labelled pixels is wanted, and corners stay corners.
    labelled: bool,
}

impl Pixels {
    #[track_caller]
    fn new(
        op: &str,
        logits: &Tensor,
        labels: &Tensor,
        [goal_height, goal_width]: [usize; 2],
        labelled: bool,
    ) -> Self {
        let [batch, height, width, classes] = resize::image(op, logits);
        let sides = 1..=resize::MAX_SIDE;
        assert!(
            sides.contains(&goal_height) && sides.contains(&goal_width),
            "{op}: labels of {goal_height} × {goal_width}"
        );
        assert!(classes <= 255, "{op}: {classes} classes do not fit labels of one byte");
        let all = batch * goal_height * goal_width;
        assert_eq!(
            labels.shape().len(),
            all.div_ceil(4),
            "{op}: labels for {batch} × {goal_height} × {goal_width}"
        );
        let chunks = goal_width.div_ceil(64);
        let params = Params {
            rows: (batch * goal_height) as u32,
            height: height as u32,
            width: width as u32,
            goal_height: goal_height as u32,
            goal_width: goal_width as u32,
            classes: classes as u32,
            chunks: chunks as u32,
            strip: 0,
            pixels: (batch * goal_height * chunks * 64) as u32,
            kept: 0,
            digit: 0,
            shift: 0,
            mask: 0,
            coefficient: 0.0,
        };
        // What is recorded backwards reads values alone.
        let (logits, labels) = (logits.clone().detached(), labels.clone());
        Self { logits, labels, all, params, labelled }
    }

    fn same_size(&self) -> bool {
        let Params { height, width, goal_height, goal_width, .. } = self.params;
        (height, width) == (goal_height, goal_width)
    }

    /// Of each pixel: the logarithm of the sum of exponentials, the loss, and whether it is predicted
    /// right, or labelled.
    fn forward(&self, recorder: &mut Recorder) -> [Tensor; 3] {
        let Self { logits, labels, params, labelled, .. } = self;
        let [rows, chunks] = [params.rows, params.chunks].map(|n| n as usize);
        let maps = [(); 3].map(|()| recorder.empty([rows, chunks * 64]));
        let [lse, ce, mark] = &maps;
        let bound = [logits, labels, lse, ce, mark];
        let kernel = if *labelled { &FORWARD_CORNERS } else { &FORWARD };
        let dispatch = recorder.run(kernel, *params, &bound, Grid::rows(rows * chunks));
        dispatch.constant("SAME_SIZE", self.same_size()).constant("MARK_LABELLED", *labelled);
        let work = if self.same_size() { 20 } else { 30 };
        dispatch.flops(work * self.all * params.classes as usize);
        maps
    }

    fn backward(
        &self,
        recorder: &mut Recorder,
        lse: &Tensor,
        dy: &Tensor,
        coefficient: f32,
    ) -> Tensor {
        let [batch, height, width, classes] = *self.logits.dims() else {
            unreachable!("is an image")
        };
        let dlogits = recorder.empty([batch, height, width, classes]);
        // A strip reads one cell beside it in vain; short ones are for devices of many cores.
        let strip = if recorder.profile().cpu { 32 } else { 8 };
        let params = Params {
            rows: (batch * height) as u32,
            strip: strip as u32,
            coefficient,
            ..self.params
        };
        // A lane of a CPU's vector has up to five classes, as many in each slice.
        let (lanes, most) = if recorder.profile().cpu { (8, 5) } else { (32, 1) };
        let slices = classes.div_ceil(lanes * most);
        let each = classes.div_ceil(lanes * slices);
        let grid = Grid::rows(batch * height * width.div_ceil(strip) * slices);
        let bound = [&self.logits, &self.labels, lse, dy, &dlogits];
        let kernel = if self.labelled { &BACKWARD_CORNERS } else { &BACKWARD };
        let dispatch = recorder.run(kernel, params, &bound, grid);
        dispatch.constant("LANES", lanes as u32).constant("EACH", each as u32);
        dispatch.constant("SAME_SIZE", self.same_size());
        // A pixel meets two rows of logits.
        let work = if self.same_size() { 20 } else { 2 * 30 };
        dispatch.flops(work * self.all * classes);
        dlogits
    }
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
