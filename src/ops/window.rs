//! Windows of a map: `shaders/window.wgsl`.

use crate::gpu::{Grid, Kernel, Params as _, Recorder, Source, params, source};
use crate::{Tape, Tensor};

const SOURCES: &[Source] = &[source!("window")];

static SPLIT: Kernel = Kernel::new("window", "split", SOURCES, Params::FIELDS, &["x", "y"]);
static JOIN: Kernel = Kernel::new("window", "join", SOURCES, Params::FIELDS, &["x", "y"]);
pub(super) const KERNELS: &[&Kernel] = &[&SPLIT, &JOIN];

params! {
    struct Params {
        batch: u32,
        height: u32,
        width: u32,
        channels: u32,
        side: u32,
        rows_down: u32,
        windows_across: u32,
    }
}

/// A map, and the side of the windows that it is cut into.
#[derive(Clone, Copy)]
struct Windows {
    batch: usize,
    height: usize,
    width: usize,
    channels: usize,
    side: usize,
}

impl Windows {
    fn down(self) -> usize {
        self.height.div_ceil(self.side)
    }

    fn across(self) -> usize {
        self.width.div_ceil(self.side)
    }

    fn map(self) -> [usize; 4] {
        [self.batch, self.height, self.width, self.channels]
    }

    fn windows(self) -> [usize; 3] {
        [self.batch * self.down() * self.across(), self.side * self.side, self.channels]
    }

    fn run(self, recorder: &mut Recorder, kernel: &'static Kernel, x: &Tensor, y: &Tensor) {
        let params = Params {
            batch: self.batch as u32,
            height: self.height as u32,
            width: self.width as u32,
            channels: self.channels as u32,
            side: self.side as u32,
            rows_down: (self.down() * self.side) as u32,
            windows_across: self.across() as u32,
        };
        let grid = Grid::rows(self.batch * self.down() * self.side * self.across());
        recorder.run(kernel, params, &[x, y], grid);
    }

    fn split(self, recorder: &mut Recorder, x: &Tensor) -> Tensor {
        let y = recorder.empty(self.windows());
        self.run(recorder, &SPLIT, x, &y);
        y
    }

    fn join(self, recorder: &mut Recorder, x: &Tensor) -> Tensor {
        let y = recorder.empty(self.map());
        self.run(recorder, &JOIN, x, &y);
        y
    }
}

/// Cuts a map into square windows, with zeros right and below where it is no multiple of them.
///
/// - `x`: `[B, H, W, C]`
/// - `window`: side w of a window
/// - returns `[B · nW, w², C]`, with nW = ⌈H / w⌉ ⌈W / w⌉; windows of a map and tokens of a window in
///   row-major order
///
/// Equals padding and `window_partition` of Swin (Liu et al. 2021, <https://arxiv.org/abs/2103.14030>).
/// Keeps nothing.
///
/// # Panics
///
/// If `x` is no map or `window` is 0.
#[track_caller]
pub fn window_partition(tape: &mut Tape, x: &Tensor, window: usize) -> Tensor {
    let [batch, height, width, channels] = *x.dims() else {
        panic!("window_partition of {:?}", x.shape())
    };
    assert!(window > 0, "window_partition: windows of nothing");
    let windows = Windows { batch, height, width, channels, side: window };
    let y = windows.split(tape.recorder(), x);
    // What flows to the padding ends there.
    tape.record([x], y, move |recorder, dy| [Some(windows.join(recorder, dy))])
}

/// Puts windows together to the map that [`window_partition`] made them of, without its padding.
///
/// - `x`: `[B · nW, w², C]`
/// - returns `[batch, height, width, C]`
///
/// Equals `window_reverse` of Swin, and cropping. Keeps nothing.
///
/// # Panics
///
/// If `x` is not what [`window_partition`] makes of such a map.
#[track_caller]
pub fn window_reverse(
    tape: &mut Tape,
    x: &Tensor,
    batch: usize,
    height: usize,
    width: usize,
    window: usize,
) -> Tensor {
    let windows = Windows { batch, height, width, channels: x.shape().last(), side: window };
    assert_eq!(x.dims(), windows.windows(), "window_reverse to {:?}", windows.map());
    let y = windows.join(tape.recorder(), x);
    // The padding had no part in the result: its gradient is zero.
    tape.record([x], y, move |recorder, dy| [Some(windows.split(recorder, dy))])
}
