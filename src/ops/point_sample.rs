//! Samples of maps at points: `shaders/point_sample.wgsl`.

use super::elementwise;
use crate::gpu::{Grid, Kernel, Params as _, Recorder, Source, params, source};
use crate::tape::Stream;
use crate::{Tape, Tensor};

const SOURCES: &[Source] = &[source!("point_sample"), source!("lib/point"), source!("lib/philox")];

static DRAW: Kernel = kernel("draw", &["random", "points_out"]);
static DRAW_PAIRS: Kernel = kernel("draw_pairs", &["random", "matching", "points_out"]);
static FORWARD: Kernel = kernel("forward", &["maps", "points", "y"]);
static FORWARD_PAIRS: Kernel = kernel("forward_pairs", &["maps", "points", "matching", "y"]);
static BOUND: Kernel = kernel("bound", &["dy", "largest_out"]);
static BOUND_PAIRS: Kernel = kernel("bound_pairs", &["dy", "matching", "largest_out"]);
static SCATTER: Kernel = kernel("scatter", &["points", "dy", "largest", "units_out"]);
static FINISH: Kernel = kernel("finish", &["largest", "units", "dmaps"]);
static FINISH_PAIRS: Kernel = kernel("finish_pairs", &["largest", "units", "matching", "dmaps"]);
pub(super) const KERNELS: &[&Kernel] = &[
    &DRAW,
    &DRAW_PAIRS,
    &FORWARD,
    &FORWARD_PAIRS,
    &BOUND,
    &BOUND_PAIRS,
    &SCATTER,
    &FINISH,
    &FINISH_PAIRS,
];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("point_sample", entry, SOURCES, Params::FIELDS, bindings)
}

params! {
    struct Params {
        rows: u32,
        height: u32,
        width: u32,
        points: u32,
        first_pair: u32,
        bits: u32,
        stream: u32,
        first_group: u32,
    }
}

/// Samples each map at its points: bilinear, 0 outside; the gradient flows to the maps alone.
///
/// - `maps`: `[N, h, w]`
/// - `points`: `[N, P, 2]`, (x, y) in 0..1, where pixel `i` of `n` has its centre at `(i + ½) / n`
/// - returns `[N, P]`
///
/// Equals `torch.nn.functional.grid_sample(maps[:, None], 2 * points[:, :, None] - 1,
/// align_corners=False)`, detectron2's `point_sample`. Keeps `points` for the backward pass.
///
/// # Panics
///
/// If the shapes do not fit together, or there are more than 65 535 maps.
#[track_caller]
pub fn point_sample(tape: &mut Tape, maps: &Tensor, points: &Tensor) -> Tensor {
    let [rows, height, width] = *maps.dims() else { panic!("point_sample: {:?}", maps.shape()) };
    let count = points.shape().len() / (2 * rows.max(1));
    assert_eq!(points.dims(), [rows, count, 2], "point_sample: points for {:?}", maps.shape());
    let params = params([height, width], rows, count, 0);
    let y = tape.recorder().empty([rows, count]);
    let bound = [maps, points, &y];
    tape.recorder().run(&FORWARD, params, &bound, of_rows(rows, count)).flops(20 * rows * count);
    let points = points.clone();
    tape.record([maps], y, move |recorder, dy| {
        let dmaps = recorder.empty([rows, height, width]);
        let (largest, units) = scatter(recorder, &points, dy, None, params);
        let grid = of_rows(rows, height * width);
        recorder.run(&FINISH, params, &[&largest, &units, &dmaps], grid);
        [Some(dmaps)]
    })
}

/// An invocation for each of the `count` elements of each row.
pub(super) fn of_rows(rows: usize, count: usize) -> Grid {
    Grid::rows_of(count.div_ceil(64), rows)
}

fn params([height, width]: [usize; 2], rows: usize, points: usize, first_pair: usize) -> Params {
    Params {
        rows: rows as u32,
        height: height as u32,
        width: width as u32,
        points: points as u32,
        first_pair: first_pair as u32,
        bits: points.max(1).next_power_of_two().ilog2(),
        stream: 0,
        first_group: 0,
    }
}

/// The largest magnitude of each row of `dy` as bits, and the sums of its pixels as 64-bit numbers; of rows that
/// are pairs, where there is a matching.
fn scatter(
    recorder: &mut Recorder,
    points: &Tensor,
    dy: &Tensor,
    matching: Option<&Tensor>,
    params: Params,
) -> (Tensor, Tensor) {
    let [rows, height, width, count] =
        [params.rows, params.height, params.width, params.points].map(|n| n as usize);
    let largest = recorder.empty([rows]);
    // Zero bits are 0, of both types.
    let units = elementwise::fill(recorder, [rows, height, width, 2], 0.0);
    match matching {
        None => recorder.run(&BOUND, params, &[dy, &largest], Grid::rows(rows)),
        Some(matching) => {
            recorder.run(&BOUND_PAIRS, params, &[dy, matching, &largest], Grid::rows(rows))
        }
    };
    let bound = [points, dy, &largest, &units];
    recorder.run(&SCATTER, params, &bound, of_rows(rows, count)).flops(60 * rows * count);
    (largest, units)
}

/// `count` points for each of `rows` rows, uniform in 0..1: `[rows, count, 2]`.
pub(crate) fn uniform_points(
    recorder: &mut Recorder,
    stream: &Stream,
    rows: usize,
    count: usize,
) -> Tensor {
    let points = recorder.empty([rows, count, 2]);
    let params = Params { stream: stream.id, ..params([1, 1], rows, count, 0) };
    let grid = of_rows(rows, count.div_ceil(2));
    recorder.run(&DRAW, params, &[&stream.state, &points], grid).flops(100 * rows * count);
    points
}

/// [`uniform_points`] of the matched pairs `first..`. Those of a pair do not depend on `first`, and rows
/// beyond the last pair are left as they are. `likely`: rows that are pairs, for estimates.
pub(super) fn points_of_pairs(
    recorder: &mut Recorder,
    stream: &Stream,
    matching: &Tensor,
    [first, rows, likely]: [usize; 3],
    count: usize,
) -> Tensor {
    let points = recorder.empty([rows, count, 2]);
    let params = Params { stream: stream.id, ..params([1, 1], rows, count, first) };
    let grid = of_rows(rows, count.div_ceil(2));
    let bound = [&stream.state, matching, &points];
    recorder.run(&DRAW_PAIRS, params, &bound, grid).flops(100 * likely * count);
    points
}

/// Samples the masks of the matched pairs `first..`: `maps` `[B, Q, h, w]`, `points` `[rows, P, 2]` →
/// `[rows, P]`. Rows beyond the last pair are left as they are.
pub(super) fn sample_pairs(
    recorder: &mut Recorder,
    maps: &Tensor,
    points: &Tensor,
    matching: &Tensor,
    first: usize,
) -> Tensor {
    let ([rows, count, _], [.., height, width]) = (points.dims(), maps.dims()) else {
        unreachable!("called with masks and points")
    };
    let y = recorder.empty([*rows, *count]);
    let params = params([*height, *width], *rows, *count, first);
    let grid = of_rows(*rows, *count);
    let bound = [maps, points, matching, &y];
    recorder.run(&FORWARD_PAIRS, params, &bound, grid).flops(20 * rows * count);
    y
}

/// The gradient of [`sample_pairs`], into the maps of these pairs in `dmaps`. Rows of `dy` beyond the
/// last pair are not read.
pub(super) fn scatter_pairs(
    recorder: &mut Recorder,
    points: &Tensor,
    dy: &Tensor,
    matching: &Tensor,
    first: usize,
    dmaps: &Tensor,
) {
    let ([rows, count], [.., height, width]) = (dy.dims(), dmaps.dims()) else {
        unreachable!("called with masks and slopes")
    };
    let params = params([*height, *width], *rows, *count, first);
    let (largest, units) = scatter(recorder, points, dy, Some(matching), params);
    let grid = of_rows(*rows, height * width);
    recorder.run(&FINISH_PAIRS, params, &[&largest, &units, matching, dmaps], grid);
}
