//! Depthwise 3 × 3 convolution: `shaders/depthwise.wgsl`, and `shaders/depthwise_lanes.wgsl` for eight lanes
//! of a CPU.

use super::reduce;
use crate::gpu::{Grid, Kernel, Params as _, Recorder, Source, params, source};
use crate::{Tape, Tensor};

const SOURCES: &[Source] = &[source!("depthwise")];
const LANES: &[Source] = &[source!("depthwise_lanes"), source!("lib/lanes")];

static FORWARD: Kernel = kernel("forward", &["x", "weight", "bias", "y"]);
static BACKWARD_WEIGHT: Kernel = kernel("backward_weight", &["x", "dy", "dweight", "dbias"]);
static LANES_FORWARD: Kernel = on_lanes("forward", &["x", "weight", "bias", "y"]);
static LANES_BACKWARD_WEIGHT: Kernel =
    on_lanes("backward_weight", &["x", "dy", "dweight", "dbias"]);
pub(super) const KERNELS: &[&Kernel] =
    &[&FORWARD, &BACKWARD_WEIGHT, &LANES_FORWARD, &LANES_BACKWARD_WEIGHT];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("depthwise", entry, SOURCES, Params::FIELDS, bindings)
}

const fn on_lanes(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("depthwise_lanes", entry, LANES, LanesParams::FIELDS, bindings).on_lanes()
}

params! {
    struct Params {
        lines: u32,
        height: u32,
        width: u32,
        channels: u32,
        turned: u32,
        lines_per_part: u32,
    }
}

params! {
    struct LanesParams {
        images: u32,
        height: u32,
        width: u32,
        pairs: u32,
        turned: u32,
        blocks_per_part: u32,
        first_group: u32,
    }
}

/// Channels and places of a line that a workgroup does.
const WORKGROUP: usize = 64;
const RUN: usize = 16;
/// Parts into which the sum over all places is cut.
const PARTS: usize = 64;
/// Rows of a map and places of a row that go together in lanes.
const ROWS: usize = 4;
const LANES_RUN: usize = 32;

/// Convolution of each channel with a 3 × 3 kernel of its own, padding 1 and stride 1.
///
/// - `x`: `[B, H, W, C]`
/// - `weight`: `[C, 1, 3, 3]`
/// - `bias`: `[C]`
/// - returns `[B, H, W, C]`
///
/// Equals `torch.nn.functional.conv2d(x, weight, bias, padding=1, groups=C)`, but for the layout.
/// Keeps `x`.
///
/// # Panics
///
/// If the shapes do not fit together or something is empty.
#[track_caller]
pub fn depthwise_conv3x3(tape: &mut Tape, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Tensor {
    let [_, _, _, channels] = *x.dims() else { panic!("depthwise_conv3x3 of {:?}", x.shape()) };
    assert!(!x.shape().is_empty(), "depthwise_conv3x3 of {:?}", x.shape());
    assert_eq!(weight.dims(), [channels, 1, 3, 3], "depthwise_conv3x3: weight for {:?}", x.shape());
    assert_eq!(bias.dims(), [channels], "depthwise_conv3x3: bias for {:?}", x.shape());

    let y = convolve(tape.recorder(), [x, weight, bias], false);
    let saved = [x, weight, bias].map(Tensor::clone);
    tape.record([x, weight, bias], y, move |recorder, dy| {
        let [x, weight, bias] = &saved;
        let dx = x.is_tracked().then(|| convolve(recorder, [dy, weight, bias], true));
        let (parts, dweights, dbiases) = backward_weight(recorder, x, dy);
        let dweight = reduce::sum_rows(recorder, &dweights, parts, 9 * channels);
        let dbias = reduce::sum_rows(recorder, &dbiases, parts, channels);
        [dx, Some(dweight.reshape([channels, 1, 3, 3])), Some(dbias)]
    })
}

/// Extents of a map, `[B, H, W, C]`.
fn extents(x: &Tensor) -> [usize; 4] {
    x.dims().try_into().expect("checked by the op")
}

/// Whether the kernels for eight lanes are for the device and the channels.
fn in_lanes(recorder: &Recorder, channels: usize) -> bool {
    recorder.profile().lanes && channels.is_multiple_of(2)
}

fn lanes_params([batch, height, width, channels]: [usize; 4], turned: bool) -> LanesParams {
    LanesParams {
        images: batch as u32,
        height: height as u32,
        width: width as u32,
        pairs: (channels / 2) as u32,
        turned: u32::from(turned),
        blocks_per_part: (batch * height.div_ceil(ROWS)).div_ceil(PARTS) as u32,
        first_group: 0,
    }
}

fn params([batch, height, width, channels]: [usize; 4], turned: bool) -> Params {
    Params {
        lines: (batch * height) as u32,
        height: height as u32,
        width: width as u32,
        channels: channels as u32,
        turned: u32::from(turned),
        lines_per_part: (batch * height).div_ceil(PARTS) as u32,
    }
}

/// The convolution; `turned`, which is the gradient of `x`: with taps in reverse and without the bias.
fn convolve(recorder: &mut Recorder, [x, weight, bias]: [&Tensor; 3], turned: bool) -> Tensor {
    let size = extents(x);
    let [batch, height, width, channels] = size;
    let y = recorder.empty(size);
    let bound = [x, weight, bias, &y];
    let dispatch = if in_lanes(recorder, channels) {
        let runs = batch * height.div_ceil(ROWS) * width.div_ceil(LANES_RUN);
        let grid = Grid::rows_of(runs, (channels / 2).div_ceil(8));
        recorder.run(&LANES_FORWARD, lanes_params(size, turned), &bound, grid)
    } else {
        let runs = batch * height * width.div_ceil(RUN);
        let grid = Grid::rows_of(runs, channels.div_ceil(WORKGROUP));
        recorder.run(&FORWARD, params(size, turned), &bound, grid)
    };
    dispatch.flops(18 * y.shape().len());
    y
}

/// The gradients of weight and bias in parts: how many, `[parts, 9 C]`, `[parts, C]`.
fn backward_weight(recorder: &mut Recorder, x: &Tensor, dy: &Tensor) -> (usize, Tensor, Tensor) {
    let size = extents(x);
    let [batch, height, _, channels] = size;
    let in_lanes = in_lanes(recorder, channels);
    let lines = if in_lanes { batch * height.div_ceil(ROWS) } else { batch * height };
    let parts = lines.div_ceil(lines.div_ceil(PARTS));
    let dweights = recorder.empty([parts, 9 * channels]);
    let dbiases = recorder.empty([parts, channels]);
    let bound = [x, dy, &dweights, &dbiases];
    let dispatch = if in_lanes {
        let grid = Grid::rows_of(parts, (channels / 2).div_ceil(8));
        recorder.run(&LANES_BACKWARD_WEIGHT, lanes_params(size, false), &bound, grid)
    } else {
        let grid = Grid::rows_of(parts, channels.div_ceil(WORKGROUP));
        recorder.run(&BACKWARD_WEIGHT, params(size, false), &bound, grid)
    };
    dispatch.flops(18 * x.shape().len());
    (parts, dweights, dbiases)
}
