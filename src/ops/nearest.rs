//! Nearest-neighbour resizing: `shaders/nearest.wgsl`.

use super::resize::image;
use crate::gpu::{Grid, Kernel, Params as _, Source, params, source};
use crate::{Tape, Tensor};

const SOURCES: &[Source] = &[source!("nearest")];

static FORWARD_ADD: Kernel = kernel("forward_add", &["x", "other", "y"]);
static BACKWARD: Kernel = kernel("backward", &["dy", "dx"]);
pub(super) const KERNELS: &[&Kernel] = &[&FORWARD_ADD, &BACKWARD];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("nearest", entry, SOURCES, Params::FIELDS, bindings)
}

params! {
    struct Params {
        batch: u32,
        height: u32,
        width: u32,
        goal_height: u32,
        goal_width: u32,
        vectors: u32,
    }
}

/// `other + resize(x)` with nearest neighbours: the sum of pyramid levels. `x` is resized to the size of
/// `other`: pixel `d` is pixel `⌊d · in / out⌋` of `x`.
///
/// - `x`: `[B, h, w, C]`
/// - `other`: `[B, H, W, C]`
/// - returns `[B, H, W, C]`
///
/// Equals `other + torch.nn.functional.interpolate(x, mode="nearest")` but for the layout. Keeps nothing
/// for the backward pass.
///
/// # Panics
///
/// If batch or channels differ, the channels are no multiple of four, or a side is 0 or above 32 767.
#[track_caller]
pub fn nearest_add(tape: &mut Tape, x: &Tensor, other: &Tensor) -> Tensor {
    let [batch, height, width, channels] = image("nearest_add", x);
    let [_, goal_height, goal_width, _] = image("nearest_add", other);
    assert_eq!(
        other.dims(),
        [batch, goal_height, goal_width, channels],
        "nearest_add: {:?}",
        x.shape()
    );
    assert_eq!(channels % 4, 0, "nearest_add: {channels} channels");
    let params = Params {
        batch: batch as u32,
        height: height as u32,
        width: width as u32,
        goal_height: goal_height as u32,
        goal_width: goal_width as u32,
        vectors: (channels / 4) as u32,
    };
    let recorder = tape.recorder();
    let y = recorder.empty(other.shape().clone());
    let len = y.shape().len();
    recorder.run(&FORWARD_ADD, params, &[x, other, &y], Grid::elements(len / 4)).flops(len);
    let (shape, wanted) = (x.shape().clone(), x.is_tracked());
    tape.record([x, other], y, move |recorder, dy| {
        let dx = wanted.then(|| {
            let dx = recorder.empty(shape);
            let grid = Grid::elements(dx.shape().len() / 4);
            recorder.run(&BACKWARD, params, &[dy, &dx], grid).flops(len);
            dx
        });
        [dx, Some(dy.clone())]
    })
}
