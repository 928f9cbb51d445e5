//! Patches of an image and patch merging: `shaders/patch.wgsl`, and `shaders/patch_lanes.wgsl` for eight lanes of a
//! CPU.

use crate::gpu::{Grid, Kernel, Params as _, Source, params, source};
use crate::{Tape, Tensor};

const SOURCES: &[Source] = &[source!("patch")];
const LANES: &[Source] = &[source!("patch_lanes")];

static CUT: Kernel = kernel("cut", &["x", "y"]);
static CUT_BACKWARD: Kernel = kernel("cut_backward", &["dy", "dx"]);
static CUT_APART_BACKWARD: Kernel = kernel("cut_apart_backward", &["dy", "dx"]);
static MERGE: Kernel = kernel("merge", &["x", "y"]);
static MERGE_BACKWARD: Kernel = kernel("merge_backward", &["dy", "dx"]);
static LANES_MERGE: Kernel = on_lanes("merge", &["x", "y"]);
static LANES_MERGE_BACKWARD: Kernel = on_lanes("merge_backward", &["dy", "dx"]);
pub(super) const KERNELS: &[&Kernel] = &[
    &CUT,
    &CUT_BACKWARD,
    &CUT_APART_BACKWARD,
    &MERGE,
    &MERGE_BACKWARD,
    &LANES_MERGE,
    &LANES_MERGE_BACKWARD,
];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("patch", entry, SOURCES, Params::FIELDS, bindings)
}

const fn on_lanes(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("patch_lanes", entry, LANES, LanesParams::FIELDS, bindings).on_lanes()
}

params! {
    struct Params {
        batch: u32,
        height: u32,
        width: u32,
        channels: u32,
        side: u32,
        step: u32,
        before: u32,
        down: u32,
        across: u32,
    }
}

params! {
    struct LanesParams {
        batch: u32,
        height: u32,
        width: u32,
        pairs: u32,
        down: u32,
        across: u32,
        first_group: u32,
    }
}

impl LanesParams {
    fn new(params: &Params) -> Self {
        Self {
            batch: params.batch,
            height: params.height,
            width: params.width,
            pairs: params.channels / 2,
            down: params.down,
            across: params.across,
            first_group: 0,
        }
    }
}

/// Patches side by side that one workgroup does.
const ACROSS: usize = 32;

/// How a map is cut into patches.
#[derive(Clone, Copy, Debug)]
struct Cut {
    side: usize,
    step: usize,
    /// Rows and columns of zeros before the map.
    before: usize,
    /// Patches along each side.
    down: usize,
    across: usize,
}

impl Cut {
    /// Side by side until the map is covered.
    #[track_caller]
    fn cover(op: &str, x: &Tensor, side: usize) -> Self {
        let [_, height, width, _] = *x.dims() else { panic!("{op} of {:?}", x.shape()) };
        assert!(side > 0, "{op}: patches of nothing");
        let (down, across) = (height.div_ceil(side), width.div_ceil(side));
        Self { side, step: side, before: 0, down, across }
    }

    /// Whether every place of the map is in exactly one patch.
    fn is_apart(self, x: &Tensor) -> bool {
        let Self { side, step, before, down, across } = self;
        let covers = down * side >= x.dims()[1] && across * side >= x.dims()[2];
        step == side && before == 0 && covers
    }

    /// `[B, down, across, side² · C]`, with its `Params`.
    fn of(self, x: &Tensor) -> ([usize; 4], Params) {
        let [batch, height, width, channels] = *x.dims() else { unreachable!("checked by the op") };
        let Self { side, step, before, down, across } = self;
        let params = Params {
            batch: batch as u32,
            height: height as u32,
            width: width as u32,
            channels: channels as u32,
            side: side as u32,
            step: step as u32,
            before: before as u32,
            down: down as u32,
            across: across as u32,
        };
        ([batch, down, across, side * side * channels], params)
    }
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
    cut(tape, x, Cut::cover("patchify", x, patch))
}

/// Cuts a map into square patches that may overlap, with zeros around the map: with
/// [`linear`](super::linear) a convolution of any kernel and stride.
///
/// - `x`: `[B, H, W, C]`
/// - `kernel`: side k of a patch; `stride` s from one to the next; `padding` p, zeros on every side
/// - returns `[B, ⌊(H + 2p − k) / s⌋ + 1, ⌊(W + 2p − k) / s⌋ + 1, C k²]`, elements of a patch in the
///   order (channel, ky, kx), as in [`patchify`]
///
/// Equals `torch.nn.functional.unfold(x, k, padding=p, stride=s)`, but for the layout. Keeps nothing.
///
/// # Panics
///
/// If `x` is no map, the padded map is smaller than the kernel, or kernel or stride is 0.
#[track_caller]
pub fn unfold(tape: &mut Tape, x: &Tensor, kernel: usize, stride: usize, padding: usize) -> Tensor {
    let [_, height, width, _] = *x.dims() else { panic!("unfold of {:?}", x.shape()) };
    let fits = kernel > 0 && stride > 0 && height.min(width) + 2 * padding >= kernel;
    assert!(fits, "unfold: kernel {kernel}, stride {stride}, padding {padding} of {:?}", x.shape());
    let patches = |side: usize| (side + 2 * padding - kernel) / stride + 1;
    let (down, across) = (patches(height), patches(width));
    cut(tape, x, Cut { side: kernel, step: stride, before: padding, down, across })
}

fn cut(tape: &mut Tape, x: &Tensor, cut: Cut) -> Tensor {
    let (shape, params) = cut.of(x);
    let apart = cut.is_apart(x);
    let grid = Grid::rows(shape[0] * shape[1] * shape[2].div_ceil(ACROSS));
    let recorder = tape.recorder();
    let y = recorder.empty(shape);
    recorder.run(&CUT, params, &[x, &y], grid);
    let image = x.shape().clone();
    tape.record([x], y, move |recorder, dy| {
        let places = Grid::rows(image.rows());
        let dx = recorder.empty(image);
        if apart {
            recorder.run(&CUT_APART_BACKWARD, params, &[dy, &dx], grid);
        } else {
            recorder.run(&CUT_BACKWARD, params, &[dy, &dx], places);
        }
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
    let (shape, params) = Cut::cover("patch_merge", x, 2).of(x);
    let grid = Grid::rows(shape[0] * shape[1] * shape[2]);
    let recorder = tape.recorder();
    let in_lanes = recorder.profile().lanes && params.channels.is_multiple_of(2);
    let y = recorder.empty(shape);
    if in_lanes {
        recorder.run(&LANES_MERGE, LanesParams::new(&params), &[x, &y], grid);
    } else {
        recorder.run(&MERGE, params, &[x, &y], grid);
    }
    let map = x.shape().clone();
    tape.record([x], y, move |recorder, dy| {
        let dx = recorder.empty(map);
        if in_lanes {
            recorder.run(&LANES_MERGE_BACKWARD, LanesParams::new(&params), &[dy, &dx], grid);
        } else {
            recorder.run(&MERGE_BACKWARD, params, &[dy, &dx], grid);
        }
        [Some(dx)]
    })
}
