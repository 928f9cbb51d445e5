//! Softmax: `shaders/softmax.wgsl`, and `shaders/softmax_lanes.wgsl` for eight lanes of a CPU.

use super::layer_norm::row_workgroup;
use crate::gpu::{Grid, Kernel, Params as _, Recorder, Source, params, source};
use crate::{Tape, Tensor};

const SOURCES: &[Source] =
    &[source!("softmax"), source!("lib/reduce", subgroup "lib/reduce_subgroup")];
const LANES: &[Source] = &[source!("softmax_lanes"), source!("lib/lanes")];

static FORWARD: Kernel = kernel("forward", &["x", "y"]);
static BACKWARD: Kernel = kernel("backward", &["probability", "dy", "dx"]);
static FORWARD_ROWS: Kernel = kernel("forward_rows", &["x", "y"]);
static BACKWARD_ROWS: Kernel = kernel("backward_rows", &["probability", "dy", "dx"]);
static LANES_FORWARD: Kernel = on_lanes("forward", &["x", "y"]);
static LANES_BACKWARD: Kernel = on_lanes("backward", &["probability", "dy", "dx"]);
pub(super) const KERNELS: &[&Kernel] =
    &[&FORWARD, &BACKWARD, &FORWARD_ROWS, &BACKWARD_ROWS, &LANES_FORWARD, &LANES_BACKWARD];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("softmax", entry, SOURCES, Params::FIELDS, bindings)
}

const fn on_lanes(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("softmax_lanes", entry, LANES, Params::FIELDS, bindings).on_lanes()
}

params! {
    struct Params { rows: u32, channels: u32 }
}

/// `exp(x) / Σ exp(x)` over the last axis, shifted by the maximum so that it cannot overflow.
/// Equals `torch.nn.functional.softmax` over `dim=-1`. Keeps its result.
pub fn softmax(tape: &mut Tape, x: &Tensor) -> Tensor {
    let y = softmax_rows(tape.recorder(), x);
    let saved = y.clone();
    tape.record([x], y, move |recorder, dy| [Some(softmax_rows_backward(recorder, &saved, dy))])
}

/// [`softmax`], not recorded on a tape.
pub(super) fn softmax_rows(recorder: &mut Recorder, x: &Tensor) -> Tensor {
    let y = recorder.empty(x.shape().clone());
    run(recorder, [&FORWARD, &FORWARD_ROWS, &LANES_FORWARD], &[x, &y], 8);
    y
}

/// The gradient of [`softmax_rows`]: `y (dy − Σ y dy)`.
pub(super) fn softmax_rows_backward(recorder: &mut Recorder, y: &Tensor, dy: &Tensor) -> Tensor {
    let dx = recorder.empty(y.shape().clone());
    run(recorder, [&BACKWARD, &BACKWARD_ROWS, &LANES_BACKWARD], &[y, dy, &dx], 4);
    dx
}

/// Records the first of `kernels`, or the second where a CPU driver's subgroup can hold a row in
/// registers, or the third where it can hold two in lanes.
fn run(recorder: &mut Recorder, kernels: [&'static Kernel; 3], tensors: &[&Tensor], flops: usize) {
    const ROWS: usize = 8;
    const MOST: usize = 16;
    let shape = tensors[0].shape();
    let (rows, channels) = (shape.rows(), shape.last());
    let (workgroup, subgroup) = row_workgroup(recorder.profile(), channels);
    let params = Params { rows: rows as u32, channels: channels as u32 };
    let each = channels.div_ceil(workgroup as usize);
    if recorder.profile().lanes && each <= MOST && rows.is_multiple_of(2) {
        let grid = Grid::rows((rows / 2).div_ceil(ROWS));
        let dispatch = recorder.run(kernels[2], params, tensors, grid);
        dispatch.constant("CHANNELS", params.channels).constant("EACH", each as u32);
        dispatch.flops(flops * rows * channels);
        return;
    }
    let held = recorder.profile().cpu && subgroup && each <= MOST;
    let dispatch = if held {
        recorder.run(kernels[1], params, tensors, Grid::rows(rows.div_ceil(ROWS)))
    } else {
        recorder.run(kernels[0], params, tensors, Grid::rows(rows))
    };
    dispatch.constant("WORKGROUP", workgroup).subgroup(subgroup).flops(flops * rows * channels);
    if held {
        dispatch.constant("EACH", each as u32);
    }
}
