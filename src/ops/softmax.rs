//! Softmax: `shaders/softmax.wgsl`.

use super::layer_norm::row_workgroup;
use crate::gpu::{Grid, Kernel, Params as _, Recorder, Source, params, source};
use crate::{Tape, Tensor};

const SOURCES: &[Source] =
    &[source!("softmax"), source!("lib/reduce", subgroup "lib/reduce_subgroup")];

static FORWARD: Kernel = kernel("forward", &["x", "y"]);
static BACKWARD: Kernel = kernel("backward", &["probability", "dy", "dx"]);
pub(super) const KERNELS: &[&Kernel] = &[&FORWARD, &BACKWARD];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("softmax", entry, SOURCES, Params::FIELDS, bindings)
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
    run(recorder, &FORWARD, &[x, &y], 8);
    y
}

/// The gradient of [`softmax_rows`]: `y (dy − Σ y dy)`.
pub(super) fn softmax_rows_backward(recorder: &mut Recorder, y: &Tensor, dy: &Tensor) -> Tensor {
    let dx = recorder.empty(y.shape().clone());
    run(recorder, &BACKWARD, &[y, dy, &dx], 4);
    dx
}

fn run(recorder: &mut Recorder, kernel: &'static Kernel, tensors: &[&Tensor], flops: usize) {
    let shape = tensors[0].shape();
    let (rows, channels) = (shape.rows(), shape.last());
    let (workgroup, subgroup) = row_workgroup(recorder.profile(), channels);
    let params = Params { rows: rows as u32, channels: channels as u32 };
    recorder
        .run(kernel, params, tensors, Grid::rows(rows))
        .constant("WORKGROUP", workgroup)
        .subgroup(subgroup)
        .flops(flops * rows * channels);
}
