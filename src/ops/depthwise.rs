//! Depthwise 3 × 3 convolution: `shaders/depthwise.wgsl`.

use super::reduce;
use crate::gpu::{Grid, Kernel, Params as _, Recorder, Source, params, source};
use crate::{Tape, Tensor};

const SOURCES: &[Source] = &[source!("depthwise")];

static FORWARD: Kernel = kernel("forward", &["x", "weight", "bias", "y"]);
static BACKWARD_WEIGHT: Kernel = kernel("backward_weight", &["x", "dy", "dweight", "dbias"]);
pub(super) const KERNELS: &[&Kernel] = &[&FORWARD, &BACKWARD_WEIGHT];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("depthwise", entry, SOURCES, Params::FIELDS, bindings)
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

/// Channels and places of a line that a workgroup does.
const WORKGROUP: usize = 64;
const RUN: usize = 16;
/// Parts into which the sum over all places is cut.
const PARTS: usize = 64;

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
    let [batch, height, width, channels] = *x.dims() else {
        panic!("depthwise_conv3x3 of {:?}", x.shape())
    };
    assert!(!x.shape().is_empty(), "depthwise_conv3x3 of {:?}", x.shape());
    assert_eq!(weight.dims(), [channels, 1, 3, 3], "depthwise_conv3x3: weight for {:?}", x.shape());
    assert_eq!(bias.dims(), [channels], "depthwise_conv3x3: bias for {:?}", x.shape());

    let lines = batch * height;
    let params = Params {
        lines: lines as u32,
        height: height as u32,
        width: width as u32,
        channels: channels as u32,
        turned: 0,
        lines_per_part: lines.div_ceil(PARTS) as u32,
    };
    let flops = 18 * x.shape().len();
    let slices = channels.div_ceil(WORKGROUP);
    let places = Grid::rows_of(lines * width.div_ceil(RUN), slices);
    let convolve = move |recorder: &mut Recorder, params, [x, weight, bias]: [&Tensor; 3]| {
        let y = recorder.empty([batch, height, width, channels]);
        recorder.run(&FORWARD, params, &[x, weight, bias, &y], places).flops(flops);
        y
    };
    let y = convolve(tape.recorder(), params, [x, weight, bias]);
    let saved = [x, weight, bias].map(Tensor::clone);
    tape.record([x, weight, bias], y, move |recorder, dy| {
        let [x, weight, bias] = &saved;
        let dx = x.is_tracked().then(|| {
            let turned = Params { turned: 1, ..params };
            convolve(recorder, turned, [dy, weight, bias])
        });
        let parts = lines.div_ceil(params.lines_per_part as usize);
        let dweights = recorder.empty([parts, 9 * channels]);
        let dbiases = recorder.empty([parts, channels]);
        let grid = Grid::rows_of(parts, slices);
        recorder.run(&BACKWARD_WEIGHT, params, &[x, dy, &dweights, &dbiases], grid).flops(flops);
        let dweight = reduce::sum_rows(recorder, &dweights, parts, 9 * channels);
        let dbias = reduce::sum_rows(recorder, &dbiases, parts, channels);
        [dx, Some(dweight.reshape([channels, 1, 3, 3])), Some(dbias)]
    })
}
