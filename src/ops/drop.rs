//! Dropout and stochastic depth: `shaders/drop.wgsl`.

use crate::gpu::{Grid, Kernel, Params as _, Recorder, Source, params, source};
use crate::tape::Stream;
use crate::{Tape, Tensor};

const SOURCES: &[Source] = &[source!("drop"), source!("lib/philox")];

static DRAW_KEEP: Kernel = kernel("draw_keep", &["random", "drawn"]);
static SCALE_SAMPLES: Kernel = kernel("scale_samples", &["x", "keep", "y"]);
static SCALE_CHANNELS: Kernel = kernel("scale_channels", &["x", "keep", "y"]);
static DROPOUT: Kernel = kernel("dropout", &["random", "x", "y"]);
pub(super) const KERNELS: &[&Kernel] = &[&DRAW_KEEP, &SCALE_SAMPLES, &SCALE_CHANNELS, &DROPOUT];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("drop", entry, SOURCES, Params::FIELDS, bindings)
}

params! {
    struct Params { len: u32, per_sample: u32, channels: u32, stream: u32, rate: f32 }
}

/// Pixels of a workgroup of `scale_channels`.
const ROWS: usize = 16;

/// `count` factors, each `1 / (1 − rate)` or, with probability `rate`, 0.
fn draw_keep(recorder: &mut Recorder, count: usize, rate: f32, stream: &Stream) -> Tensor {
    let keep = recorder.empty([count]);
    let params = Params { len: count as u32, per_sample: 1, channels: 1, stream: stream.id, rate };
    recorder.run(&DRAW_KEEP, params, &[&stream.state, &keep], Grid::elements(count));
    keep
}

/// `x · keep[sample]`, not recorded on a tape. `keep`: `[B]`.
pub(super) fn scale_samples(recorder: &mut Recorder, x: &Tensor, keep: &Tensor) -> Tensor {
    let y = recorder.empty(x.shape().clone());
    let len = x.shape().len();
    let samples = keep.shape().len();
    let per_sample = len / samples;
    let params = Params {
        len: len as u32,
        per_sample: per_sample as u32,
        channels: 1,
        stream: 0,
        rate: 0.0,
    };
    let grid = Grid::rows_of(per_sample.div_ceil(256), samples);
    recorder.run(&SCALE_SAMPLES, params, &[x, keep, &y], grid).flops(len);
    y
}

/// Factors of stochastic depth (Huang et al. 2016, <https://arxiv.org/abs/1603.09382>), `[batch]`:
/// a sample's residual branch is left out with probability `rate`, and else divided by `1 − rate`.
/// None when the tape is not random. For [`linear_residual`](super::linear_residual).
pub fn drop_path(tape: &mut Tape, batch: usize, rate: f32) -> Option<Tensor> {
    let stream = tape.stream().filter(|_| rate > 0.0)?;
    Some(draw_keep(tape.recorder(), batch, rate, &stream))
}

/// Zeroes each element with probability `rate` and divides the others by `1 − rate`. Equals
/// `torch.nn.functional.dropout` but for the numbers drawn. Keeps nothing.
pub fn dropout(tape: &mut Tape, x: &Tensor, rate: f32) -> Tensor {
    let Some(stream) = tape.stream().filter(|_| rate > 0.0) else { return x.clone() };
    let apply = move |recorder: &mut Recorder, x: &Tensor| {
        let y = recorder.empty(x.shape().clone());
        let len = x.shape().len();
        let params =
            Params { len: len as u32, per_sample: 1, channels: 1, stream: stream.id, rate };
        recorder.run(&DROPOUT, params, &[&stream.state, x, &y], Grid::elements(len.div_ceil(4)));
        y
    };
    let y = apply(tape.recorder(), x);
    tape.record([x], y, move |recorder, dy| [Some(apply(recorder, dy))])
}

/// Zeroes whole channels of `x`, `[B, .., C]`, each with probability `rate`, and divides the others
/// by `1 − rate`. Equals `torch.nn.functional.dropout2d` but for the numbers drawn (and the layout).
pub fn dropout2d(tape: &mut Tape, x: &Tensor, rate: f32) -> Tensor {
    let Some(stream) = tape.stream().filter(|_| rate > 0.0) else { return x.clone() };
    let (batch, channels) = (x.dims()[0], x.shape().last());
    let keep = draw_keep(tape.recorder(), batch * channels, rate, &stream);
    let apply = move |recorder: &mut Recorder, x: &Tensor| {
        let y = recorder.empty(x.shape().clone());
        let len = x.shape().len();
        let pixels = len / (batch * channels);
        let params = Params {
            len: len as u32,
            per_sample: pixels as u32,
            channels: channels as u32,
            stream: 0,
            rate,
        };
        let grid = Grid::rows_of(pixels.div_ceil(ROWS), batch);
        recorder.run(&SCALE_CHANNELS, params, &[x, &keep, &y], grid).flops(len);
        y
    };
    let y = apply(tape.recorder(), x);
    tape.record([x], y, move |recorder, dy| [Some(apply(recorder, dy))])
}
