//! Fixed codes of positions: `shaders/sine_position.wgsl`.

use crate::Tensor;
use crate::gpu::{Grid, Kernel, Params as _, Recorder, Source, params, source};

const SOURCES: &[Source] = &[source!("sine_position")];

static FORWARD: Kernel = Kernel::new("sine_position", "forward", SOURCES, Params::FIELDS, &["y"]);
pub(super) const KERNELS: &[&Kernel] = &[&FORWARD];

params! {
    struct Params {
        low_powers: [f32; 4],
        high_powers: [f32; 4],
        height: u32,
        width: u32,
        channels: u32,
    }
}

/// The sine code of positions in a map, `[height, width, channels]`, as DETR has it (Carion et al. 2020,
/// <https://arxiv.org/abs/2005.12872>, `normalize=True`): the first half of the channels codes the row, the
/// second the column, each as sines (even channels) and cosines (odd ones) of
/// 2π (i + 1) / n at frequencies from 1 down to 1/10000. Not recorded on a tape: it is a constant.
///
/// # Panics
///
/// If the map is empty, or the channels are no multiple of four up to 1024.
#[track_caller]
pub fn sine_position(
    recorder: &mut Recorder,
    height: usize,
    width: usize,
    channels: usize,
) -> Tensor {
    assert!(height * width > 0, "sine_position: a map of {height} × {width}");
    assert!(
        channels.is_multiple_of(4) && (4..=1024).contains(&channels),
        "sine_position: {channels} channels"
    );
    let power = |m: i32| 10_000f64.powf(-4.0 * f64::from(m) / channels as f64) as f32;
    let params = Params {
        low_powers: [1, 2, 4, 8].map(power),
        high_powers: [16, 32, 64, 128].map(power),
        height: height as u32,
        width: width as u32,
        channels: channels as u32,
    };
    let y = recorder.empty([height, width, channels]);
    let len = y.shape().len();
    recorder.run(&FORWARD, params, &[&y], Grid::elements(len)).flops(40 * len);
    y
}
