//! Patches of an image and patch merging: `shaders/patch.wgsl`; `shaders/patch_image.wgsl` where pixels are
//! normalised on the way, and `shaders/patch_lanes.wgsl` for eight lanes of a CPU.

use super::image::{Image, Normalize, Pixels};
use crate::gpu::{Grid, Kernel, Params as _, Source, params, source};
use crate::{Tape, Tensor};

const SOURCES: &[Source] = &[source!("patch")];
const IMAGE: &[Source] = &[source!("patch_image"), source!("lib/pixels")];
const LANES: &[Source] = &[source!("patch_lanes")];

static CUT: Kernel = kernel("cut", &["x", "y"]);
static CUT_BACKWARD: Kernel = kernel("cut_backward", &["dy", "dx"]);
static CUT_APART_BACKWARD: Kernel = kernel("cut_apart_backward", &["dy", "dx"]);
static CUT_IMAGE: Kernel = of_image("cut", &["rgba", "y"]);
static CUT_TEXTURE: Kernel = of_image("cut_texture", &["image", "y"]);
static MERGE: Kernel = kernel("merge", &["x", "y"]);
static MERGE_BACKWARD: Kernel = kernel("merge_backward", &["dy", "dx"]);
static LANES_MERGE: Kernel = on_lanes("merge", &["x", "y"]);
static LANES_MERGE_BACKWARD: Kernel = on_lanes("merge_backward", &["dy", "dx"]);
pub(super) const KERNELS: &[&Kernel] = &[
    &CUT,
    &CUT_BACKWARD,
    &CUT_APART_BACKWARD,
    &CUT_IMAGE,
    &CUT_TEXTURE,
    &MERGE,
    &MERGE_BACKWARD,
    &LANES_MERGE,
    &LANES_MERGE_BACKWARD,
];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("patch", entry, SOURCES, Params::FIELDS, bindings)
}

const fn of_image(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("patch_image", entry, IMAGE, ImageParams::FIELDS, bindings)
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
    struct ImageParams {
        mean: [f32; 4],
        deviation: [f32; 4],
        batch: u32,
        height: u32,
        width: u32,
        side: u32,
        step: u32,
        before: u32,
        down: u32,
        across: u32,
        flip: u32,
        linear: u32,
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
    /// Side by side until all is covered.
    fn cover(height: usize, width: usize, side: usize) -> Self {
        let (down, across) = (height.div_ceil(side), width.div_ceil(side));
        Self { side, step: side, before: 0, down, across }
    }

    /// Whether every place of the map is in exactly one patch.
    fn is_apart(self, x: &Tensor) -> bool {
        let Self { side, step, before, down, across } = self;
        let covers = down * side >= x.dims()[1] && across * side >= x.dims()[2];
        step == side && before == 0 && covers
    }

    /// `[B, down, across, side² · C]`.
    fn shape(self, batch: usize, channels: usize) -> [usize; 4] {
        [batch, self.down, self.across, self.side * self.side * channels]
    }

    fn grid(self, batch: usize) -> Grid {
        Grid::rows(batch * self.down * self.across.div_ceil(ACROSS))
    }

    fn params(self, x: &Tensor) -> Params {
        let [batch, height, width, channels] = *x.dims() else { unreachable!("checked by the op") };
        let Self { side, step, before, down, across } = self;
        Params {
            batch: batch as u32,
            height: height as u32,
            width: width as u32,
            channels: channels as u32,
            side: side as u32,
            step: step as u32,
            before: before as u32,
            down: down as u32,
            across: across as u32,
        }
    }

    /// `dims`: pictures, height, width.
    fn of_image(self, dims: [usize; 3], normalize: Normalize, linear: bool) -> ImageParams {
        let [batch, height, width] = dims;
        let [mean, deviation] = normalize.vectors();
        let Self { side, step, before, down, across } = self;
        ImageParams {
            mean,
            deviation,
            batch: batch as u32,
            height: height as u32,
            width: width as u32,
            side: side as u32,
            step: step as u32,
            before: before as u32,
            down: down as u32,
            across: across as u32,
            flip: normalize.flip.into(),
            linear: linear.into(),
        }
    }
}

/// Cuts an image into square patches, each a row for a matrix product, with zeros right and below
/// where the image is no multiple of them.
///
/// - `image`: an [`Image`], whose C is 3, or a tensor, `[B, H, W, C]`
/// - `patch`: side p of a patch
/// - returns `[B, ⌈H / p⌉, ⌈W / p⌉, C p²]`, elements of a patch in the order (channel, ky, kx): that of
///   a convolution's weight `[E, C, p, p]`, so that [`linear`](super::linear) with that weight as
///   `[E, C p²]` is the convolution with kernel and stride p
///
/// Equals padding and `torch.nn.functional.unfold`, but for the layout. Keeps nothing.
///
/// # Panics
///
/// If `image` is a tensor that is no map, or `patch` is 0.
#[track_caller]
pub fn patchify(tape: &mut Tape, image: impl Into<Image>, patch: usize) -> Tensor {
    let image = image.into();
    let [_, height, width] = image.dims();
    assert!(patch > 0, "patchify: patches of nothing");
    cut(tape, &image, Cut::cover(height, width, patch))
}

/// Cuts a map into square patches that may overlap, with zeros around the map: with
/// [`linear`](super::linear) a convolution of any kernel and stride.
///
/// - `image`: an [`Image`], whose C is 3, or a tensor, `[B, H, W, C]`
/// - `kernel`: side k of a patch; `stride` s from one to the next; `padding` p, zeros on every side
/// - returns `[B, ⌊(H + 2p − k) / s⌋ + 1, ⌊(W + 2p − k) / s⌋ + 1, C k²]`, elements of a patch in the
///   order (channel, ky, kx), as in [`patchify`]
///
/// Equals `torch.nn.functional.unfold(x, k, padding=p, stride=s)`, but for the layout. Keeps nothing.
///
/// # Panics
///
/// If `image` is a tensor that is no map, the padded map is smaller than the kernel, or kernel or stride is 0.
#[track_caller]
pub fn unfold(
    tape: &mut Tape,
    image: impl Into<Image>,
    kernel: usize,
    stride: usize,
    padding: usize,
) -> Tensor {
    let image = image.into();
    let [_, height, width] = image.dims();
    let fits = kernel > 0 && stride > 0 && height.min(width) + 2 * padding >= kernel;
    assert!(
        fits,
        "unfold: kernel {kernel}, stride {stride}, padding {padding} of {height}, {width}"
    );
    let patches = |side: usize| (side + 2 * padding - kernel) / stride + 1;
    let (down, across) = (patches(height), patches(width));
    cut(tape, &image, Cut { side: kernel, step: stride, before: padding, down, across })
}

fn cut(tape: &mut Tape, image: &Image, cut: Cut) -> Tensor {
    match &image.pixels {
        Pixels::Map(x) => cut_map(tape, x, cut),
        Pixels::Bytes(rgba, normalize) => {
            let [batch, height, width] = *rgba.dims() else { unreachable!("checked before") };
            let params = cut.of_image([batch, height, width], *normalize, false);
            cut_image(tape, &CUT_IMAGE, rgba, params, cut)
        }
        Pixels::Texture { image, linear, normalize } => {
            let params = cut.of_image([1, image.dims()[0], image.dims()[1]], *normalize, *linear);
            cut_image(tape, &CUT_TEXTURE, image, params, cut)
        }
    }
}

fn cut_image(
    tape: &mut Tape,
    kernel: &'static Kernel,
    source: &Tensor,
    params: ImageParams,
    cut: Cut,
) -> Tensor {
    let batch = params.batch as usize;
    let recorder = tape.recorder();
    let y = recorder.empty(cut.shape(batch, 3));
    recorder.run(kernel, params, &[source, &y], cut.grid(batch));
    // Bytes have no gradient.
    tape.record([], y, |_, _| [])
}

fn cut_map(tape: &mut Tape, x: &Tensor, cut: Cut) -> Tensor {
    let params = cut.params(x);
    let (batch, channels) = (x.dims()[0], x.dims()[3]);
    let apart = cut.is_apart(x);
    let grid = cut.grid(batch);
    let recorder = tape.recorder();
    let y = recorder.empty(cut.shape(batch, channels));
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
    let [batch, height, width, channels] = *x.dims() else {
        panic!("patch_merge of {:?}", x.shape())
    };
    let cut = Cut::cover(height, width, 2);
    let (shape, params) = (cut.shape(batch, channels), cut.params(x));
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
