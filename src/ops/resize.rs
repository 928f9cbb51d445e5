//! Bilinear resizing: `shaders/resize.wgsl`, and `shaders/resize_lanes.wgsl` for eight lanes of a CPU.

use super::elementwise;
use crate::gpu::{Grid, Kernel, Params as _, Recorder, Source, params, source};
use crate::{Tape, Tensor};

/// Without and with `align_corners`.
const SOURCES: [&[Source]; 2] = [
    &[
        source!("resize"),
        source!("lib/doubled"),
        source!("lib/bilinear"),
        source!("lib/bilinear_centres"),
    ],
    &[
        source!("resize"),
        source!("lib/doubled"),
        source!("lib/bilinear"),
        source!("lib/bilinear_corners"),
    ],
];
const LANES: &[Source] = &[source!("resize_lanes"), source!("lib/doubled"), source!("lib/lanes")];

static FORWARD: [Kernel; 2] = kernels("forward", &["x", "y"]);
static FORWARD_ADD: [Kernel; 2] = kernels("forward_add", &["x", "other", "y"]);
static BACKWARD: [Kernel; 2] = kernels("backward", &["dy", "dx"]);
static DOUBLE: Kernel = kernel("double", SOURCES[0], &["x", "y"]);
static DOUBLE_ADD: Kernel = kernel("double_add", SOURCES[0], &["x", "other", "y"]);
static DOUBLE_BACKWARD: Kernel = kernel("double_backward", SOURCES[0], &["dy", "dx"]);
static LANES_DOUBLE: Kernel = on_lanes("double", &["x", "y"]);
static LANES_DOUBLE_ADD: Kernel = on_lanes("double_add", &["x", "other", "y"]);
static LANES_DOUBLE_BACKWARD: Kernel = on_lanes("double_backward", &["dy", "dx"]);
pub(super) const KERNELS: &[&Kernel] = &[
    &FORWARD[0],
    &FORWARD[1],
    &FORWARD_ADD[0],
    &FORWARD_ADD[1],
    &BACKWARD[0],
    &BACKWARD[1],
    &DOUBLE,
    &DOUBLE_ADD,
    &DOUBLE_BACKWARD,
    &LANES_DOUBLE,
    &LANES_DOUBLE_ADD,
    &LANES_DOUBLE_BACKWARD,
];

const fn kernel(
    entry: &'static str,
    sources: &'static [Source],
    bindings: &'static [&'static str],
) -> Kernel {
    Kernel::new("resize", entry, sources, Params::FIELDS, bindings)
}

const fn kernels(entry: &'static str, bindings: &'static [&'static str]) -> [Kernel; 2] {
    [kernel(entry, SOURCES[0], bindings), kernel(entry, SOURCES[1], bindings)]
}

const fn on_lanes(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("resize_lanes", entry, LANES, LanesParams::FIELDS, bindings).on_lanes()
}

params! {
    struct Params {
        rows: u32,
        height: u32,
        width: u32,
        goal_height: u32,
        goal_width: u32,
        channels: u32,
    }
}

params! {
    struct LanesParams {
        rows: u32,
        height: u32,
        width: u32,
        goal_height: u32,
        goal_width: u32,
        pairs: u32,
    }
}

impl LanesParams {
    /// If there are whole pairs of channels, and a device to take them.
    fn new(recorder: &Recorder, params: &Params) -> Option<Self> {
        let Params { rows, height, width, goal_height, goal_width, channels } = *params;
        let pairs = channels / 2;
        let params = Self { rows, height, width, goal_height, goal_width, pairs };
        (recorder.profile().lanes && channels.is_multiple_of(2)).then_some(params)
    }
}

/// Largest side of an image: `(2 d + 1) · side` stays below 2³².
pub(super) const MAX_SIDE: usize = 32_767;

/// `x` as `[B, h, w, C]`.
#[track_caller]
pub(super) fn image(op: &str, x: &Tensor) -> [usize; 4] {
    let [batch, height, width, channels] = *x.dims() else {
        panic!("{op}: {:?} is not [B, h, w, C]", x.shape())
    };
    let most = height.max(width);
    assert!(!x.shape().is_empty() && most <= MAX_SIDE, "{op}: an image of {:?}", x.shape());
    [batch, height, width, channels]
}

/// Lanes of a workgroup: a vector of a CPU, whose lanes share addresses and weights then.
fn lanes(recorder: &Recorder) -> usize {
    if recorder.profile().cpu { 8 } else { 32 }
}

/// Workgroups that go along 16 pixels with `slice` channels.
pub(super) fn walks(rows: usize, width: usize, channels: usize, slice: usize) -> Grid {
    Grid::rows(rows * width.div_ceil(16) * channels.div_ceil(slice))
}

/// Resizes `x` bilinearly: output pixel `d` lies at `(d + ½) · in / out − ½` of the input.
///
/// - `x`: `[B, h, w, C]`
/// - returns `[B, height, width, C]`; `x` itself if that is its size
///
/// Equals `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)` but for the
/// layout. Keeps nothing for the backward pass.
///
/// # Panics
///
/// If `x` is no image, or a side is 0 or above 32 767.
#[track_caller]
pub fn resize(tape: &mut Tape, x: &Tensor, height: usize, width: usize) -> Tensor {
    resize_as(tape, x, height, width, false)
}

/// [`resize`] that leaves the centres of the corners where they are: output pixel `d` lies at
/// `d · (in − 1) / (out − 1)`. Equals `interpolate` with `align_corners=True`.
///
/// # Panics
///
/// As [`resize`].
#[track_caller]
pub fn resize_corners(tape: &mut Tape, x: &Tensor, height: usize, width: usize) -> Tensor {
    resize_as(tape, x, height, width, true)
}

#[track_caller]
fn resize_as(tape: &mut Tape, x: &Tensor, height: usize, width: usize, corners: bool) -> Tensor {
    let [_, from_height, from_width, _] = image("resize", x);
    if (from_height, from_width) == (height, width) {
        return x.clone();
    }
    let y = forward(tape.recorder(), x, None, [height, width], corners);
    let shape = x.shape().clone();
    tape.record([x], y, move |recorder, dy| [Some(backward(recorder, dy, shape.dims(), corners))])
}

/// `other + resize(x)`, in one kernel: the sum of pyramid levels. `x` is resized to the size of
/// `other`.
///
/// - `x`: `[B, h, w, C]`
/// - `other`: `[B, H, W, C]`
/// - returns `[B, H, W, C]`
///
/// Keeps nothing for the backward pass.
///
/// # Panics
///
/// If batch or channels differ, or as [`resize`].
#[track_caller]
pub fn resize_add(tape: &mut Tape, x: &Tensor, other: &Tensor) -> Tensor {
    resize_add_as(tape, x, other, false)
}

/// [`resize_add`] with [`resize_corners`].
///
/// # Panics
///
/// As [`resize_add`].
#[track_caller]
pub fn resize_corners_add(tape: &mut Tape, x: &Tensor, other: &Tensor) -> Tensor {
    resize_add_as(tape, x, other, true)
}

#[track_caller]
fn resize_add_as(tape: &mut Tape, x: &Tensor, other: &Tensor, corners: bool) -> Tensor {
    let [batch, from_height, from_width, channels] = image("resize_add", x);
    let [_, height, width, _] = image("resize_add", other);
    assert_eq!(other.dims(), [batch, height, width, channels], "resize_add: {:?}", x.shape());
    if (from_height, from_width) == (height, width) {
        return elementwise::add(tape, x, other);
    }
    let y = forward(tape.recorder(), x, Some(other), [height, width], corners);
    let (shape, wanted) = (x.shape().clone(), x.is_tracked());
    tape.record([x, other], y, move |recorder, dy| {
        [wanted.then(|| backward(recorder, dy, shape.dims(), corners)), Some(dy.clone())]
    })
}

#[track_caller]
fn forward(
    recorder: &mut Recorder,
    x: &Tensor,
    other: Option<&Tensor>,
    [height, width]: [usize; 2],
    corners: bool,
) -> Tensor {
    let [batch, from_height, from_width, channels] = image("resize", x);
    let y = recorder.empty([batch, height, width, channels]);
    image("resize", &y);
    let doubles = !corners && [height, width] == [2 * from_height, 2 * from_width];
    // Gaps between rows, with those before the first and after the last.
    let rows = if doubles { batch * (from_height + 1) } else { batch * height };
    let params = Params {
        rows: rows as u32,
        height: from_height as u32,
        width: from_width as u32,
        goal_height: height as u32,
        goal_width: width as u32,
        channels: channels as u32,
    };
    if let Some(params) = LanesParams::new(recorder, &params).filter(|_| doubles) {
        let grid = walks(rows, from_width, channels, 16);
        let dispatch = match other {
            None => recorder.run(&LANES_DOUBLE, params, &[x, &y], grid),
            Some(other) => recorder.run(&LANES_DOUBLE_ADD, params, &[x, other, &y], grid),
        };
        dispatch.flops(8 * y.shape().len());
        return y;
    }
    let lanes = lanes(recorder);
    let grid = if doubles {
        walks(rows, from_width, channels, lanes)
    } else {
        walks(rows, width, channels, 4 * lanes)
    };
    let variant = usize::from(corners);
    let dispatch = match (other, doubles) {
        (None, false) => recorder.run(&FORWARD[variant], params, &[x, &y], grid),
        (None, true) => recorder.run(&DOUBLE, params, &[x, &y], grid),
        (Some(other), false) => recorder.run(&FORWARD_ADD[variant], params, &[x, other, &y], grid),
        (Some(other), true) => recorder.run(&DOUBLE_ADD, params, &[x, other, &y], grid),
    };
    dispatch.constant("LANES", lanes as u32).flops(8 * y.shape().len());
    y
}

/// The gradient of an image of `shape`, from that of the resized image.
fn backward(recorder: &mut Recorder, dy: &Tensor, shape: &[usize], corners: bool) -> Tensor {
    let [_, goal_height, goal_width, _] = image("resize", dy);
    let dx = recorder.empty(shape);
    let [batch, height, width, channels] = image("resize", &dx);
    let doubled = !corners && [goal_height, goal_width] == [2 * height, 2 * width];
    // Of blocks of 4 × 2 pixels where it was doubled, in lanes of 4 × 8.
    let rows = batch * if doubled { height.div_ceil(4) } else { height };
    let params = Params {
        rows: rows as u32,
        height: height as u32,
        width: width as u32,
        goal_height: goal_height as u32,
        goal_width: goal_width as u32,
        channels: channels as u32,
    };
    if let Some(params) = LanesParams::new(recorder, &params).filter(|_| doubled) {
        let grid = Grid::rows(rows * width.div_ceil(8) * channels.div_ceil(16));
        let dispatch = recorder.run(&LANES_DOUBLE_BACKWARD, params, &[dy, &dx], grid);
        dispatch.flops(8 * dy.shape().len());
        return dx;
    }
    let lanes = lanes(recorder);
    let dispatch = if doubled {
        let grid = Grid::rows(rows * width.div_ceil(2) * channels.div_ceil(lanes));
        recorder.run(&DOUBLE_BACKWARD, params, &[dy, &dx], grid)
    } else {
        let grid = walks(rows, width, channels, 4 * lanes);
        recorder.run(&BACKWARD[usize::from(corners)], params, &[dy, &dx], grid)
    };
    dispatch.constant("LANES", lanes as u32).flops(8 * dy.shape().len());
    dx
}
