//! From logits to predictions and scores: `shaders/predict.wgsl`, and `shaders/argmax_lanes.wgsl` for eight
//! lanes of a CPU. Nothing here has a gradient.
//!
//! - one scale: [`argmax`] of the logits
//! - several scales, mirrored or not: [`softmax_accumulate`] each, then [`argmax`] of the sum
//! - the same of [scores](super::mask_scores): [`scores_accumulate`] each
//! - sliding windows: [`window_accumulate`] each, [`divide_by_count`], then [`argmax`]
//! - scores: [`confusion`]

use std::ops::Range;

use super::resize;
use crate::gpu::{Dispatch, Grid, Kernel, Params as _, Recorder, Source, params, source};
use crate::{Tape, Tensor};

const SOURCES: &[Source] = &[
    source!("predict"),
    source!("lib/axis"),
    source!("lib/bilinear"),
    source!("lib/bilinear_centres"),
];
const LANES: &[Source] = &[
    source!("argmax_lanes"),
    source!("lib/axis"),
    source!("lib/bilinear"),
    source!("lib/bilinear_centres"),
];

static NORMALISE: Kernel = kernel("normalise", &["logits", "lse_out"]);
static ACCUMULATE: Kernel = kernel("accumulate", &["logits", "lse", "sum"]);
static ACCUMULATE_SCORES: Kernel = kernel("accumulate_scores", &["logits", "sum"]);
static ARGMAX: Kernel = kernel("argmax", &["logits", "words"]);
static CONFUSION: Kernel = kernel("confusion", &["predicted", "labels", "counts"]);
static ADD_WINDOW: Kernel = kernel("add_window", &["logits", "sum", "hits_out"]);
static DIVIDE: Kernel = kernel("divide", &["hits", "sum"]);
static LANES_ARGMAX: Kernel = on_lanes("argmax", &["logits", "found_out"]);
static LANES_PACK: Kernel = on_lanes("pack", &["found", "words"]);
pub(super) const KERNELS: &[&Kernel] = &[
    &NORMALISE,
    &ACCUMULATE,
    &ACCUMULATE_SCORES,
    &ARGMAX,
    &CONFUSION,
    &ADD_WINDOW,
    &DIVIDE,
    &LANES_ARGMAX,
    &LANES_PACK,
];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("predict", entry, SOURCES, Params::FIELDS, bindings)
}

const fn on_lanes(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("argmax_lanes", entry, LANES, LanesParams::FIELDS, bindings).on_lanes()
}

params! {
    #[derive(Default)]
    struct Params {
        rows: u32,
        height: u32,
        width: u32,
        via_height: u32,
        via_width: u32,
        goal_height: u32,
        goal_width: u32,
        classes: u32,
        band: u32,
        first_row: u32,
        held_rows: u32,
        held_first: u32,
        pixels: u32,
        mirror: u32,
        add: u32,
        top: u32,
        left: u32,
        map_height: u32,
        map_width: u32,
        first_word: u32,
    }
}

params! {
    struct LanesParams {
        batch: u32,
        height: u32,
        width: u32,
        via_height: u32,
        via_width: u32,
        goal_height: u32,
        goal_width: u32,
        classes: u32,
        band: u32,
        first_row: u32,
        held_rows: u32,
        held_first: u32,
        pixels: u32,
        first_word: u32,
        first_group: u32,
    }
}

impl LanesParams {
    fn new(params: &Params, batch: usize) -> Self {
        Self {
            batch: batch as u32,
            height: params.height,
            width: params.width,
            via_height: params.via_height,
            via_width: params.via_width,
            goal_height: params.goal_height,
            goal_width: params.goal_width,
            classes: params.classes,
            band: params.band,
            first_row: params.first_row,
            held_rows: params.held_rows,
            held_first: params.held_first,
            pixels: params.pixels,
            first_word: params.first_word,
            first_group: 0,
        }
    }
}

/// The size that logits are resized to within a kernel, bilinearly (`align_corners=False`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resizing {
    /// Height and width to resize to before, if any: those of the network's input.
    pub via: Option<[usize; 2]>,
    /// Height and width of the result.
    pub to: [usize; 2],
}

impl Resizing {
    /// Straight to `height` × `width`.
    pub fn to(height: usize, width: usize) -> Self {
        Self { via: None, to: [height, width] }
    }

    /// To `height` × `width` from what was resized to `via` first; the same as resizing twice,
    /// without the map in between.
    pub fn via(via: [usize; 2], height: usize, width: usize) -> Self {
        Self { via: Some(via), to: [height, width] }
    }
}

/// Rows of a map, or all of it: what is resized need not be there as a whole.
#[derive(Clone, Debug)]
pub struct Part {
    /// `[B, h, w, K]`
    pub tensor: Tensor,
    /// The map's row that is the tensor's first.
    pub first: usize,
    /// Rows of the map.
    pub height: usize,
}

impl From<&Tensor> for Part {
    fn from(tensor: &Tensor) -> Self {
        Self {
            tensor: tensor.clone(),
            first: 0,
            height: tensor.dims().get(1).copied().unwrap_or(0),
        }
    }
}

impl Part {
    /// The rows that output rows `rows` of `goal` are made of, when a map of `height` rows is
    /// resized.
    pub fn rows_for(rows: Range<usize>, height: usize, goal: usize) -> Range<usize> {
        // Where output row d lies, less than a row off.
        let at = |d: usize| (d as f64 + 0.5) * height as f64 / goal as f64 - 0.5;
        let first = (at(rows.start).floor() - 1.0).max(0.0) as usize;
        let end = (at(rows.end.saturating_sub(1)).ceil() + 2.0) as usize;
        first.min(height - 1)..end.min(height)
    }
}

/// How a kernel reads `logits` at another size: the tensor to bind, and fields and taps for it.
#[track_caller]
fn resized(
    op: &str,
    recorder: &mut Recorder,
    part: &Part,
    resizing: Resizing,
) -> (Tensor, Params, u32) {
    let logits = &part.tensor;
    let [_, held, width, _] = resize::image(op, logits);
    let height = part.height;
    assert!(part.first + held <= height, "{op}: rows {} of {height}", part.first + held);
    let via = resizing.via.filter(|&via| via != [height, width] && via != resizing.to);
    // The kernels expect an enlargement first, as networks have it.
    if let Some([via_height, via_width]) = via.filter(|via| via[0] < height || via[1] < width) {
        assert_eq!(held, height, "{op}: a whole map is wanted");
        let smaller = Part::from(&resize_once(recorder, logits, via_height, via_width));
        return resized(op, recorder, &smaller, Resizing { via: None, ..resizing });
    }
    let [batch, _, _, classes] = resize::image(op, logits);
    let [goal_height, goal_width] = resizing.to;
    let sides = 1..=resize::MAX_SIDE;
    assert!(
        sides.contains(&goal_height) && sides.contains(&goal_width),
        "{op}: a map of {goal_height} × {goal_width}"
    );
    let [via_height, via_width] = via.unwrap_or(resizing.to);
    let params = Params {
        rows: (batch * goal_height) as u32,
        height: height as u32,
        width: width as u32,
        via_height: via_height as u32,
        via_width: via_width as u32,
        goal_height: goal_height as u32,
        goal_width: goal_width as u32,
        classes: classes as u32,
        band: goal_height as u32,
        held_rows: held as u32,
        held_first: part.first as u32,
        pixels: (batch * goal_height * goal_width) as u32,
        ..Params::default()
    };
    let taps = match via {
        Some(_) => 3,
        None if [height, width] == resizing.to => 1,
        None => 2,
    };
    (logits.clone(), params, taps)
}

/// [`resize`](super::resize) without a tape.
fn resize_once(recorder: &mut Recorder, x: &Tensor, height: usize, width: usize) -> Tensor {
    let mut tape = Tape::inference(recorder.profile());
    let y = super::resize(&mut tape, x, height, width);
    recorder.append(tape.finish());
    y
}

/// States the variant and the work: `elements` values of `taps`² products each.
fn sized(dispatch: &mut Dispatch, taps: u32, elements: usize) {
    dispatch.constant("TAPS", taps).flops((2 * taps * taps) as usize * elements);
}

/// Adds the softmax of resized logits to `sum`.
///
/// - `logits`: `[B, h, w, K]`
/// - `resizing`: to the size of the map, H × W
/// - `sum`: `[B, R, W, K]`: R rows of the map from `first_row` on; a whole map of 150 classes may be
///   larger than a device can bind
/// - `mirror`: whether the logits are those of the mirrored image
/// - `first`: overwrite `sum`
///
/// # Panics
///
/// If the shapes do not fit together.
#[track_caller]
pub fn softmax_accumulate(
    recorder: &mut Recorder,
    logits: impl Into<Part>,
    resizing: Resizing,
    first_row: usize,
    mirror: bool,
    sum: &Tensor,
    first: bool,
) {
    accumulate(recorder, &logits.into(), resizing, first_row, mirror, sum, first, true);
}

/// [`softmax_accumulate`] without softmax: adds what are scores already.
///
/// # Panics
///
/// If the shapes do not fit together.
#[track_caller]
pub fn scores_accumulate(
    recorder: &mut Recorder,
    scores: impl Into<Part>,
    resizing: Resizing,
    first_row: usize,
    mirror: bool,
    sum: &Tensor,
    first: bool,
) {
    accumulate(recorder, &scores.into(), resizing, first_row, mirror, sum, first, false);
}

#[track_caller]
#[allow(clippy::too_many_arguments, reason = "those of the two functions above")]
fn accumulate(
    recorder: &mut Recorder,
    part: &Part,
    resizing: Resizing,
    first_row: usize,
    mirror: bool,
    sum: &Tensor,
    first: bool,
    softmax: bool,
) {
    let (logits, params, taps) = resized("accumulate", recorder, part, resizing);
    let [batch, _, _, classes] = resize::image("accumulate", &logits);
    let [sum_batch, band, width, sum_classes] = resize::image("accumulate", sum);
    assert_eq!(
        [sum_batch, width, sum_classes],
        [batch, resizing.to[1], classes],
        "accumulate: sum {:?} for logits {:?}, {resizing:?}",
        sum.shape(),
        logits.shape()
    );
    assert!(first_row + band <= resizing.to[0], "accumulate: rows of {resizing:?}");
    let rows = batch * band;
    let params = Params {
        rows: rows as u32,
        band: band as u32,
        first_row: first_row as u32,
        pixels: (rows * width) as u32,
        mirror: u32::from(mirror),
        add: u32::from(!first),
        ..params
    };
    let grid = resize::walks(rows, width, classes, 32);
    let dispatch = if softmax {
        let lse = recorder.empty([batch, band, width]);
        let pixels = Grid::elements(rows * width);
        sized(recorder.run(&NORMALISE, params, &[&logits, &lse], pixels), taps, sum.shape().len());
        recorder.run(&ACCUMULATE, params, &[&logits, &lse, sum], grid)
    } else {
        recorder.run(&ACCUMULATE_SCORES, params, &[&logits, sum], grid)
    };
    sized(dispatch, taps, sum.shape().len());
}

/// The class of the largest value of each pixel, of resized `x`; the first of equal ones, and 255
/// where one is NaN.
///
/// - `x`: `[B, h, w, K]`, logits or probabilities, K up to 255
/// - returns `[B, H, W]` of `u8`, four to an element, row after row without gaps; zeros at the end
///
/// # Panics
///
/// If `x` is no image, or K is above 255.
#[track_caller]
pub fn argmax(recorder: &mut Recorder, x: impl Into<Part>, resizing: Resizing) -> Tensor {
    argmax_rows(recorder, x, resizing, 0..resizing.to[0])
}

/// [`argmax`] of some rows of the map.
///
/// # Panics
///
/// As [`argmax`], and if the map does not have these rows.
#[track_caller]
pub fn argmax_rows(
    recorder: &mut Recorder,
    x: impl Into<Part>,
    resizing: Resizing,
    rows: Range<usize>,
) -> Tensor {
    let x = x.into();
    let pixels = x.tensor.dims()[0] * rows.len() * resizing.to[1];
    let words = recorder.empty([pixels.div_ceil(4)]);
    argmax_to(recorder, &x, resizing, rows, &words, 0);
    words
}

/// [`argmax_rows`] of one image, to where those rows are in `words`, the labels of the whole map.
///
/// # Panics
///
/// As [`argmax_rows`], and if the rows do not begin with a word or `words` are not those of such a map.
#[track_caller]
pub fn argmax_rows_into(
    recorder: &mut Recorder,
    x: impl Into<Part>,
    resizing: Resizing,
    rows: Range<usize>,
    words: &Tensor,
) {
    let x = x.into();
    let [height, width] = resizing.to;
    let before = rows.start * width;
    assert!(before.is_multiple_of(4), "argmax: {before} pixels before rows {rows:?}");
    assert_eq!(x.tensor.dims()[0], 1, "argmax: {:?} is not one image", x.tensor.shape());
    assert_eq!(words.dims(), [(height * width).div_ceil(4)], "argmax: words of {resizing:?}");
    argmax_to(recorder, &x, resizing, rows, words, before / 4);
}

#[track_caller]
fn argmax_to(
    recorder: &mut Recorder,
    x: &Part,
    resizing: Resizing,
    rows: Range<usize>,
    words: &Tensor,
    first_word: usize,
) {
    let (x, params, taps) = resized("argmax", recorder, x, resizing);
    assert!(x.shape().last() <= 255, "argmax: {} classes", x.shape().last());
    assert!(!rows.is_empty() && rows.end <= resizing.to[0], "argmax: rows of {resizing:?}");
    let pixels = x.dims()[0] * rows.len() * resizing.to[1];
    let params = Params {
        band: rows.len() as u32,
        first_row: rows.start as u32,
        pixels: pixels as u32,
        first_word: first_word as u32,
        ..params
    };
    let (elements, grid) = (pixels * x.shape().last(), Grid::elements(pixels.div_ceil(4)));
    // In lanes there is a word per pixel first.
    if recorder.profile().lanes && 4 * pixels as u64 <= recorder.profile().max_binding {
        let found = recorder.empty([pixels]);
        let params = LanesParams::new(&params, x.dims()[0]);
        let spans = x.dims()[2].div_ceil(8);
        let places = Grid::rows(x.dims()[0] * x.dims()[1] * spans);
        let dispatch = recorder.run(&LANES_ARGMAX, params, &[&x, &found], places);
        sized(dispatch, taps, elements);
        dispatch.constant("EACH", x.shape().last().div_ceil(8) as u32);
        recorder.run(&LANES_PACK, params, &[&found, words], grid);
    } else {
        sized(recorder.run(&ARGMAX, params, &[&x, words], grid), taps, elements);
    }
}

/// Counts pixels by label and prediction: `counts[label, predicted] += 1`.
///
/// - `predicted`, `labels`: `pixels` of `u8`, four to an element; pixels whose label (255) or
///   prediction is no class are left out
/// - `counts`: `[K, K]` of `u32`, added to
///
/// # Panics
///
/// If the shapes do not fit together.
#[track_caller]
pub fn confusion(
    recorder: &mut Recorder,
    predicted: &Tensor,
    labels: &Tensor,
    pixels: usize,
    counts: &Tensor,
) {
    let words = pixels.div_ceil(4);
    let [classes, columns] = *counts.dims() else {
        panic!("confusion: counts {:?} is not a matrix", counts.shape())
    };
    assert_eq!(classes, columns, "confusion: counts");
    assert_eq!(predicted.shape().len(), words, "confusion: predictions of {pixels} pixels");
    assert_eq!(labels.shape().len(), words, "confusion: labels of {pixels} pixels");
    let params = Params { pixels: pixels as u32, classes: classes as u32, ..Params::default() };
    recorder
        .run(&CONFUSION, params, &[predicted, labels, counts], Grid::elements(words))
        .flops(pixels);
}

/// Adds a window's logits to those of the whole image, and 1 to the hits of its pixels.
///
/// - `logits`: `[B, h, w, K]`, resized to `size`, that of the window
/// - `top`, `left`: where the window lies in the image
/// - `sum`: `[B, H, W, K]`, zero before the first window
/// - `hits`: `[H, W]`, zero before the first window
///
/// # Panics
///
/// If the shapes do not fit together or the window leaves the image.
#[track_caller]
pub fn window_accumulate(
    recorder: &mut Recorder,
    logits: &Tensor,
    size: [usize; 2],
    [top, left]: [usize; 2],
    sum: &Tensor,
    hits: &Tensor,
) {
    let height = resize::image("window_accumulate", sum)[1];
    assert!(top + size[0] <= height, "window_accumulate: {} rows at {top} of {height}", size[0]);
    window_accumulate_rows(recorder, logits, size, [top, left], 0, sum, hits);
}

/// [`window_accumulate`] to rows of the whole image: `sum` and `hits` begin with row `first_row`. What
/// the window has above and below them is left out.
///
/// # Panics
///
/// If the shapes do not fit together or the window does not meet those rows.
#[track_caller]
pub fn window_accumulate_rows(
    recorder: &mut Recorder,
    logits: &Tensor,
    size: [usize; 2],
    [top, left]: [usize; 2],
    first_row: usize,
    sum: &Tensor,
    hits: &Tensor,
) {
    let resizing = Resizing::to(size[0], size[1]);
    let (logits, params, taps) =
        resized("window_accumulate", recorder, &Part::from(logits), resizing);
    let [batch, _, _, classes] = resize::image("window_accumulate", &logits);
    let [_, height, width, _] = resize::image("window_accumulate", sum);
    assert_eq!(sum.dims(), [batch, height, width, classes], "window_accumulate: sum");
    assert_eq!(hits.dims(), [height, width], "window_accumulate: hits");
    let start = top.max(first_row);
    let end = (top + size[0]).min(first_row + height);
    assert!(
        start < end && left + size[1] <= width,
        "window_accumulate: {size:?} at {top}, {left} of {height} × {width} from row {first_row}"
    );
    let rows = batch * (end - start);
    let params = Params {
        rows: rows as u32,
        band: (end - start) as u32,
        first_row: (start - top) as u32,
        // Below zero for a window that begins above; the kernel's sum wraps back.
        top: (top as u32).wrapping_sub(first_row as u32),
        left: left as u32,
        map_height: height as u32,
        map_width: width as u32,
        ..params
    };
    let grid = resize::walks(rows, size[1], classes, 32);
    let dispatch = recorder.run(&ADD_WINDOW, params, &[&logits, sum, hits], grid);
    sized(dispatch, taps, rows * size[1] * classes);
}

/// `sum / hits`, in place: the mean of all windows over a pixel. NaN where there was none.
///
/// - `sum`: `[B, H, W, K]`
/// - `hits`: `[H, W]`
///
/// # Panics
///
/// If the shapes do not fit together.
#[track_caller]
pub fn divide_by_count(recorder: &mut Recorder, sum: &Tensor, hits: &Tensor) {
    let [batch, height, width, classes] = resize::image("divide_by_count", sum);
    assert_eq!(hits.dims(), [height, width], "divide_by_count: hits for {:?}", sum.shape());
    let params = Params {
        rows: (batch * height) as u32,
        goal_height: height as u32,
        goal_width: width as u32,
        classes: classes as u32,
        ..Params::default()
    };
    let grid = resize::walks(batch * height, width, classes, 32);
    recorder.run(&DIVIDE, params, &[hits, sum], grid).flops(sum.shape().len());
}
