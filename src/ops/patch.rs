//! Patches of an image and patch merging: `shaders/patch.wgsl`.

use crate::gpu::{Grid, Kernel, Params as _, Source, params, source};
use crate::{Tape, Tensor};

const SOURCES: &[Source] = &[source!("patch")];

static CUT: Kernel = kernel("cut", &["x", "y"]);
static CUT_BACKWARD: Kernel = kernel("cut_backward", &["dy", "dx"]);
static MERGE: Kernel = kernel("merge", &["x", "y"]);
static MERGE_BACKWARD: Kernel = kernel("merge_backward", &["dy", "dx"]);
pub(super) const KERNELS: &[&Kernel] = &[&CUT, &CUT_BACKWARD, &MERGE, &MERGE_BACKWARD];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("patch", entry, SOURCES, Params::FIELDS, bindings)
}

params! {
    struct Params {
        batch: u32,
        height: u32,
        width: u32,
        channels: u32,
        side: u32,
        down: u32,
        across: u32,
    }
}

/// Patches side by side that one workgroup does.
const ACROSS: usize = 32;

/// `[B, ⌈H / side⌉, ⌈W / side⌉, side² · C]`, with its `Params`.
#[track_caller]
fn extents(op: &str, x: &Tensor, side: usize) -> ([usize; 4], Params) {
    let [batch, height, width, channels] = *x.dims() else { panic!("{op} of {:?}", x.shape()) };
    assert!(side > 0, "{op}: patches of nothing");
    let (down, across) = (height.div_ceil(side), width.div_ceil(side));
    let params = Params {
        batch: batch as u32,
        height: height as u32,
        width: width as u32,
        channels: channels as u32,
        side: side as u32,
        down: down as u32,
        across: across as u32,
    };
    ([batch, down, across, side * side * channels], params)
}

/// Cuts an image into square patches, each a row for a matrix product, with zeros right and below
/// where the image is no multiple of them.
///
/// - `x`: `[B, H, W, C]`
/// - `patch`: side p of a patch
/// - returns `[B, ⌈H / p⌉, ⌈W / p⌉, C p²]`, elements of a patch in the order (channel, ky, kx): that of
///   a convolution's weight `[E, C, p, p]`, so that [`linear`](super::linear) with that weight as
///   `[E, C p²]` is the convolution with kernel and stride p
///
/// Equals padding and `torch.nn.functional.unfold`, but for the layout. Keeps nothing.
///
/// # Panics
///
/// If `x` is no map or `patch` is 0.
#[track_caller]
pub fn patchify(tape: &mut Tape, x: &Tensor, patch: usize) -> Tensor {
    let (shape, params) = extents("patchify", x, patch);
    let grid = Grid::rows(shape[0] * shape[1] * shape[2].div_ceil(ACROSS));
    let recorder = tape.recorder();
    let y = recorder.empty(shape);
    recorder.run(&CUT, params, &[x, &y], grid);
    let image = x.shape().clone();
    tape.record([x], y, move |recorder, dy| {
        let dx = recorder.empty(image);
        recorder.run(&CUT_BACKWARD, params, &[dy, &dx], grid);
        [Some(dx)]
    })
}

/// Puts the four phases of a map side by side as channels, with zeros right and below where a side is
/// odd: the first half of Swin's patch merging (Liu et al. 2021, <https://arxiv.org/abs/2103.14030>).
///
/// - `x`: `[B, H, W, C]`
/// - returns `[B, ⌈H / 2⌉, ⌈W / 2⌉, 4C]`, phases in the order (row 0, column 0), (row 1, column 0),
///   (row 0, column 1), (row 1, column 1)
///
/// Keeps nothing.
///
/// # Panics
///
/// If `x` is no map.
#[track_caller]
pub fn patch_merge(tape: &mut Tape, x: &Tensor) -> Tensor {
    let (shape, params) = extents("patch_merge", x, 2);
    let grid = Grid::rows(shape[0] * shape[1] * shape[2]);
    let recorder = tape.recorder();
    let y = recorder.empty(shape);
    recorder.run(&MERGE, params, &[x, &y], grid);
    let map = x.shape().clone();
    tape.record([x], y, move |recorder, dy| {
        let dx = recorder.empty(map);
        recorder.run(&MERGE_BACKWARD, params, &[dy, &dx], grid);
        [Some(dx)]
    })
}
