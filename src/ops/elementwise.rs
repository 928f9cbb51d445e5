//! Element by element: `shaders/elementwise.wgsl`, and `shaders/elementwise_lanes.wgsl` for eight lanes of a CPU.

use super::reduce;
use crate::gpu::{Dispatch, Grid, Kernel, Params as _, Profile, Recorder, Source, params, source};
use crate::{Shape, Tape, Tensor};

const SOURCES: &[Source] = &[
    source!("elementwise"),
    source!("lib/vectors"),
    source!("lib/gelu"),
    source!("lib/f32", half "lib/f16"),
];

const LANES_SOURCES: &[Source] =
    &[source!("elementwise_lanes"), source!("lib/lanes"), source!("lib/gelu")];

static FILL: Kernel = kernel("fill", &["y"]);
static SUM: Kernel = kernel("sum", &["x", "other", "y"]);
static ACCUMULATE: Kernel = kernel("accumulate", &["x", "y"]);
static NARROWED: Kernel = kernel("narrowed", &["wide", "narrow"]);
static SCALE: Kernel = kernel("scale", &["x", "y"]);
static GELU_FORWARD: Kernel = kernel("gelu_forward", &["x", "y"]);
static GELU_BACKWARD: Kernel = kernel("gelu_backward", &["preactivation", "dy", "dpreactivation"]);
static ADD_BIAS: Kernel = kernel("add_bias", &["x", "other", "y"]);
static RELU_FORWARD: Kernel = kernel("relu_forward", &["x", "y"]);
static RELU_BACKWARD: Kernel = kernel("relu_backward", &["x", "dy", "dx"]);
/// Kernels that do what those of the same name above do.
static LANES: [Kernel; 2] =
    [on_lanes("gelu_forward", &["x", "y"]), on_lanes("gelu_backward", &["x", "dy", "dx"])];
pub(super) const KERNELS: &[&Kernel] = &[
    &FILL,
    &SUM,
    &ACCUMULATE,
    &NARROWED,
    &SCALE,
    &GELU_FORWARD,
    &GELU_BACKWARD,
    &ADD_BIAS,
    &RELU_FORWARD,
    &RELU_BACKWARD,
    &LANES[0],
    &LANES[1],
];

/// Elements that a workgroup of [`LANES`] has.
const LANES_SHARE: usize = 256;

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("elementwise", entry, SOURCES, Params::FIELDS, bindings)
}

const fn on_lanes(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("elementwise_lanes", entry, LANES_SOURCES, Params::FIELDS, bindings).on_lanes()
}

params! {
    struct Params { len: u32, value: f32, period: u32 }
}

impl Params {
    fn new(x: &Tensor, value: f32) -> Self {
        Self { len: x.shape().len() as u32, value, period: 0 }
    }
}

/// How `shaders/lib/vectors.wgsl` shares out the elements of tensors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vectors {
    workgroup: usize,
    each: usize,
}

impl Vectors {
    /// For kernels with `flops` operations per element. A CPU driver does scalars faster than it gathers
    /// vectors, as long as there is little to compute.
    pub(crate) fn new(profile: &Profile, flops: usize) -> Self {
        match (profile.cpu, flops) {
            (true, 0..4) => Self { workgroup: 1, each: 32 },
            (true, _) => Self { workgroup: 8, each: 8 },
            (false, _) => Self { workgroup: 64, each: 4 },
        }
    }

    /// Lanes of a workgroup.
    pub(crate) fn lanes(self) -> usize {
        self.workgroup
    }

    /// Workgroups' shares in `len` elements.
    pub(crate) fn spans(self, len: usize) -> usize {
        len.div_ceil(4 * self.workgroup * self.each)
    }

    /// A workgroup for each share.
    pub(crate) fn grid(self, len: usize) -> Grid {
        Grid::rows(self.spans(len))
    }

    /// Tells the kernel.
    pub(crate) fn set(self, dispatch: &mut Dispatch) -> &mut Dispatch {
        dispatch.constant("WORKGROUP", self.workgroup as u32).constant("EACH", self.each as u32)
    }
}

/// Records a kernel with `flops` operations for each element.
fn run(
    recorder: &mut Recorder,
    kernel: &'static Kernel,
    params: Params,
    tensors: &[&Tensor],
    flops: usize,
) {
    let len = params.len as usize;
    let half = tensors.iter().any(|tensor| tensor.is_half());
    let in_lanes = recorder.profile().lanes && len.is_multiple_of(2) && !half;
    if let Some(kernel) = LANES.iter().find(|it| in_lanes && it.entry == kernel.entry) {
        let grid = Grid::rows(len.div_ceil(LANES_SHARE));
        recorder.run(kernel, params, tensors, grid).flops(flops * len);
        return;
    }
    let vectors = Vectors::new(recorder.profile(), flops);
    let dispatch = recorder.run(kernel, params, tensors, vectors.grid(len)).half(half);
    vectors.set(dispatch).flops(flops * len);
}

/// A tensor whose elements are all `value`.
pub fn fill(recorder: &mut Recorder, shape: impl Into<Shape>, value: f32) -> Tensor {
    let y = recorder.empty(shape);
    run(recorder, &FILL, Params::new(&y, value), &[&y], 0);
    y
}

/// `x + other`, not recorded on a tape.
pub fn sum_of(recorder: &mut Recorder, x: &Tensor, other: &Tensor) -> Tensor {
    let y = recorder.empty(x.shape().clone());
    run(recorder, &SUM, Params::new(x, 1.0), &[x, other, &y], 1);
    y
}

/// `x` with elements of 16 bits, not recorded on a tape. What is beyond their range becomes infinite.
pub(crate) fn narrowed(recorder: &mut Recorder, x: &Tensor) -> Tensor {
    let y = recorder.empty_as(x.shape().clone(), true);
    run(recorder, &NARROWED, Params::new(x, 0.0), &[x, &y], 0);
    y
}

/// `x` with 16 bits if `like` has as many.
pub(super) fn narrowed_like(recorder: &mut Recorder, x: &Tensor, like: &Tensor) -> Tensor {
    if like.is_half() && !x.is_half() { narrowed(recorder, x) } else { x.clone() }
}

/// `y += value · x`, in place, not recorded on a tape.
pub fn accumulate(recorder: &mut Recorder, y: &Tensor, x: &Tensor, value: f32) {
    run(recorder, &ACCUMULATE, Params::new(x, value), &[x, y], 2);
}

/// Zeroes `y`, in place, not recorded on a tape.
pub(crate) fn clear(recorder: &mut Recorder, y: &Tensor) {
    run(recorder, &FILL, Params::new(y, 0.0), &[y], 0);
}

/// Copies `x` to where `y` is, not recorded on a tape.
pub(crate) fn copy(recorder: &mut Recorder, x: &Tensor, y: &Tensor) {
    run(recorder, &SCALE, Params::new(x, 1.0), &[x, y], 0);
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
    run(recorder, &ADD_BIAS, params, &[x, bias, &y], 1);
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
        run(recorder, &SCALE, Params::new(x, value), &[x, &y], 1);
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

/// The gradient of [`gelu`], for kernels that compute it in their epilogue: `dy · gelu'(x)`, of as many
/// bits as `x`.
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
    run(recorder, forward, Params::new(x, 0.0), &[x, &y], flops);
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
    let dx = recorder.empty_as(x.shape().clone(), x.is_half());
    run(recorder, kernel, Params::new(x, 0.0), &[x, dy, &dx], flops);
    dx
}
