//! Sums over the leading axis: `shaders/reduce.wgsl`, and `shaders/reduce_lanes.wgsl` for eight lanes of a CPU.

use crate::Tensor;
use crate::gpu::{Grid, Kernel, Params as _, Recorder, Source, params, source};

const SOURCES: &[Source] = &[source!("reduce"), source!("lib/f32", half "lib/f16")];
const LANES: &[Source] = &[source!("reduce_lanes"), source!("lib/lanes")];

static SUM_ROWS: Kernel = kernel("sum_rows", &["x", "y"]);
static SUM_PAIRS: Kernel = kernel("sum_pairs", &["x", "y", "z"]);
static LANES_SUM_ROWS: Kernel =
    Kernel::new("reduce_lanes", "sum_rows", LANES, Params::FIELDS, &["x", "y"]).on_lanes();
pub(super) const KERNELS: &[&Kernel] = &[&SUM_ROWS, &SUM_PAIRS, &LANES_SUM_ROWS];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("reduce", entry, SOURCES, Params::FIELDS, bindings)
}

params! {
    struct Params { rows: u32, columns: u32, rows_per_part: u32, accumulate: u32, alpha: f32 }
}

/// Rows that one workgroup adds up.
const ROWS_PER_PART: usize = 256;

/// The sum of the rows of `x`, `[rows, columns]` → `[columns]`, not recorded on a tape.
pub(crate) fn sum_rows(recorder: &mut Recorder, x: &Tensor, rows: usize, columns: usize) -> Tensor {
    let y = recorder.empty([columns]);
    sum_rows_into(recorder, x, rows, columns, &y, 1.0, false);
    y
}

/// `y = alpha · Σ rows of x`, or added to what is in `y`.
pub(crate) fn sum_rows_into(
    recorder: &mut Recorder,
    x: &Tensor,
    rows: usize,
    columns: usize,
    y: &Tensor,
    alpha: f32,
    accumulate: bool,
) {
    assert!(x.shape().len() >= rows * columns && y.shape().len() == columns, "sum_rows: shapes");
    let parts = rows.div_ceil(ROWS_PER_PART).max(1);
    // More than 65 535 parts: longer ones.
    let rows_per_part = ROWS_PER_PART * parts.div_ceil(65_535);
    let parts = rows.div_ceil(rows_per_part).max(1);
    let params = Params {
        rows: rows as u32,
        columns: columns as u32,
        rows_per_part: rows_per_part as u32,
        accumulate: u32::from(accumulate),
        alpha,
    };
    if parts == 1 {
        run(recorder, params, x, y, parts);
        return;
    }
    let partial = recorder.empty([parts, columns]);
    run(recorder, Params { accumulate: 0, alpha: 1.0, ..params }, x, &partial, parts);
    sum_rows_into(recorder, &partial, parts, columns, y, alpha, accumulate);
}

/// Records the kernel for `parts` parts.
fn run(recorder: &mut Recorder, params: Params, x: &Tensor, y: &Tensor, parts: usize) {
    let columns = params.columns as usize;
    let grid = Grid([columns.div_ceil(64) as u32, parts as u32, 1]);
    let dispatch = if recorder.profile().lanes && columns.is_multiple_of(2) && !x.is_half() {
        let vectors = columns.div_ceil(16).min(4);
        recorder.run(&LANES_SUM_ROWS, params, &[x, y], grid).constant("VECTORS", vectors as u32)
    } else {
        recorder.run(&SUM_ROWS, params, &[x, y], grid).half(x.is_half())
    };
    dispatch.flops(params.rows as usize * columns);
}

/// `y = Σ x[r, 0]` and `z = Σ x[r, 1]` for `x` `[rows, 2, columns]`: two gradients from one pass.
pub(crate) fn sum_pairs(
    recorder: &mut Recorder,
    x: &Tensor,
    rows: usize,
    columns: usize,
    y: &Tensor,
    z: &Tensor,
) {
    let params = Params {
        rows: rows as u32,
        columns: columns as u32,
        rows_per_part: rows as u32,
        accumulate: 0,
        alpha: 1.0,
    };
    let grid = Grid([columns.div_ceil(64) as u32, 1, 1]);
    recorder.run(&SUM_PAIRS, params, &[x, y, z], grid).flops(2 * rows * columns);
}
