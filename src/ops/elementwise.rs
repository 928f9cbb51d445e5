//! Element by element: `shaders/elementwise.wgsl`.

use super::reduce;
use crate::gpu::{Grid, Kernel, Params as _, Recorder, Source, params, source};
use crate::{Shape, Tape, Tensor};

const SOURCES: &[Source] = &[source!("elementwise"), source!("lib/gelu")];

static FILL: Kernel = kernel("fill", &["y"]);
static SUM: Kernel = kernel("sum", &["x", "other", "y"]);
static ACCUMULATE: Kernel = kernel("accumulate", &["x", "y"]);
static SCALE: Kernel = kernel("scale", &["x", "y"]);
static GELU_FORWARD: Kernel = kernel("gelu_forward", &["x", "y"]);
static GELU_BACKWARD: Kernel = kernel("gelu_backward", &["x", "dy", "dx"]);
static ADD_BIAS: Kernel = kernel("add_bias", &["x", "other", "y"]);
static RELU_FORWARD: Kernel = kernel("relu_forward", &["x", "y"]);
static RELU_BACKWARD: Kernel = kernel("relu_backward", &["x", "dy", "dx"]);
pub(super) const KERNELS: &[&Kernel] = &[
    &FILL,
    &SUM,
    &ACCUMULATE,
    &SCALE,
    &GELU_FORWARD,
    &GELU_BACKWARD,
    &ADD_BIAS,
    &RELU_FORWARD,
    &RELU_BACKWARD,
];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("elementwise", entry, SOURCES, Params::FIELDS, bindings)
}

params! {
    struct Params { len: u32, value: f32, period: u32 }
}

impl Params {
    fn new(x: &Tensor, value: f32) -> Self {
        Self { len: x.shape().len() as u32, value, period: 0 }
    }
}

/// A workgroup does 256 elements.
fn grid(x: &Tensor) -> Grid {
    Grid::rows(x.shape().len().div_ceil(256))
}

/// A tensor whose elements are all `value`.
pub fn fill(recorder: &mut Recorder, shape: impl Into<Shape>, value: f32) -> Tensor {
    let y = recorder.empty(shape);
    recorder.run(&FILL, Params::new(&y, value), &[&y], grid(&y));
    y
}

/// `x + other`, not recorded on a tape.
pub fn sum_of(recorder: &mut Recorder, x: &Tensor, other: &Tensor) -> Tensor {
    let y = recorder.empty(x.shape().clone());
    recorder.run(&SUM, Params::new(x, 1.0), &[x, other, &y], grid(x)).flops(x.shape().len());
    y
}

/// `y += value · x`, in place, not recorded on a tape.
pub fn accumulate(recorder: &mut Recorder, y: &Tensor, x: &Tensor, value: f32) {
    recorder.run(&ACCUMULATE, Params::new(x, value), &[x, y], grid(x));
}

/// Zeroes `y`, in place, not recorded on a tape.
pub(crate) fn clear(recorder: &mut Recorder, y: &Tensor) {
    recorder.run(&FILL, Params::new(y, 0.0), &[y], grid(y));
}

/// Copies `x` to where `y` is, not recorded on a tape.
pub(crate) fn copy(recorder: &mut Recorder, x: &Tensor, y: &Tensor) {
    recorder.run(&SCALE, Params::new(x, 1.0), &[x, y], grid(x));
}

/// `x + other`.
///
/// # Panics
///
/// If the shapes differ.
#[track_caller]
pub fn add(tape: &mut Tape, x: &Tensor, other: &Tensor) -> Tensor {
    assert_eq!(x.shape(), other.shape(), "add");
    let y = sum_of(tape.recorder(), x, other);
    tape.record([x, other], y, |_, dy| [Some(dy.clone()), Some(dy.clone())])
}

/// `x + bias` in every row.
///
/// - `x`: `[.., C]`
/// - `bias`: `[C]`
///
/// # Panics
///
/// If `bias` is not `[C]`.
#[track_caller]
pub fn add_bias(tape: &mut Tape, x: &Tensor, bias: &Tensor) -> Tensor {
    let (rows, channels) = (x.shape().rows(), x.shape().last());
    assert_eq!(bias.dims(), [channels], "add_bias: bias for x {:?}", x.shape());
    let recorder = tape.recorder();
    let y = recorder.empty(x.shape().clone());
    let params = Params { period: channels as u32, ..Params::new(x, 0.0) };
    recorder.run(&ADD_BIAS, params, &[x, bias, &y], grid(x)).flops(x.shape().len());
    let with_bias = bias.is_tracked();
    tape.record([x, bias], y, move |recorder, dy| {
        let dbias = with_bias.then(|| reduce::sum_rows(recorder, dy, rows, channels));
        [Some(dy.clone()), dbias]
    })
}

/// `value · x`.
pub fn scale(tape: &mut Tape, x: &Tensor, value: f32) -> Tensor {
    let scaled = move |recorder: &mut Recorder, x: &Tensor| {
        let y = recorder.empty(x.shape().clone());
        recorder.run(&SCALE, Params::new(x, value), &[x, &y], grid(x)).flops(x.shape().len());
        y
    };
    let y = scaled(tape.recorder(), x);
    tape.record([x], y, move |recorder, dy| [Some(scaled(recorder, dy))])
}

/// Gaussian error linear unit `x Φ(x)`, Φ the normal distribution (Hendrycks & Gimpel 2016,
/// <https://arxiv.org/abs/1606.08415>). Equals `torch.nn.functional.gelu` with
/// `approximate="none"`. Keeps `x` for the backward pass.
pub fn gelu(tape: &mut Tape, x: &Tensor) -> Tensor {
    pointwise(tape, x, &GELU_FORWARD, &GELU_BACKWARD, 20)
}

/// The gradient of [`gelu`], for kernels that compute it in their epilogue: `dy · gelu'(x)`.
pub(super) fn gelu_backward(recorder: &mut Recorder, x: &Tensor, dy: &Tensor) -> Tensor {
    backward(recorder, &GELU_BACKWARD, x, dy, 25)
}

/// `max(x, 0)`. Equals `torch.nn.functional.relu`; the slope at 0 is 0. Keeps `x`.
pub fn relu(tape: &mut Tape, x: &Tensor) -> Tensor {
    pointwise(tape, x, &RELU_FORWARD, &RELU_BACKWARD, 1)
}

fn pointwise(
    tape: &mut Tape,
    x: &Tensor,
    forward: &'static Kernel,
    slope: &'static Kernel,
    flops: usize,
) -> Tensor {
    let recorder = tape.recorder();
    let y = recorder.empty(x.shape().clone());
    let work = flops * x.shape().len();
    recorder.run(forward, Params::new(x, 0.0), &[x, &y], grid(x)).flops(work);
    let saved = x.clone();
    tape.record([x], y, move |recorder, dy| [Some(backward(recorder, slope, &saved, dy, flops))])
}

fn backward(
    recorder: &mut Recorder,
    kernel: &'static Kernel,
    x: &Tensor,
    dy: &Tensor,
    flops: usize,
) -> Tensor {
    let dx = recorder.empty(x.shape().clone());
    let work = flops * x.shape().len();
    recorder.run(kernel, Params::new(x, 0.0), &[x, dy, &dx], grid(x)).flops(work);
    dx
}
