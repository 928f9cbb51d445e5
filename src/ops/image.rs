//! Images in and out: `shaders/image.wgsl`.

use crate::Tensor;
use crate::gpu::{Grid, Kernel, Params as _, Recorder, Source, params, source};

const SOURCES: &[Source] = &[source!("image"), source!("lib/pixels")];

static NORMALIZE: Kernel = kernel("normalize", &["rgba", "x"]);
static NORMALIZE_TEXTURE: Kernel = kernel("normalize_texture", &["image", "x"]);
static PAINT: Kernel = kernel("paint", &["rgba", "labels", "palette", "painted"]);
static PAINT_TEXTURE: Kernel = kernel("paint_texture", &["image", "labels", "palette", "canvas"]);
pub(super) const KERNELS: &[&Kernel] = &[&NORMALIZE, &NORMALIZE_TEXTURE, &PAINT, &PAINT_TEXTURE];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("image", entry, SOURCES, Params::FIELDS, bindings)
}

params! {
    struct Params {
        mean: [f32; 4],
        deviation: [f32; 4],
        rows: u32,
        width: u32,
        flip: u32,
        linear: u32,
        opacity: u32,
        reserved_0: u32,
        reserved_1: u32,
        reserved_2: u32,
    }
}

impl Params {
    /// For images whose last two extents are height and width.
    fn new(dims: &[usize]) -> Self {
        let width = dims[dims.len() - 1];
        let rows: usize = dims[..dims.len() - 1].iter().product();
        Self { rows: rows as u32, width: width as u32, ..bytemuck::Zeroable::zeroed() }
    }

    fn grid(&self) -> Grid {
        Grid::rows(self.rows as usize * (self.width as usize).div_ceil(256))
    }
}

/// How images become what the network sees.
#[derive(Clone, Copy, Debug)]
pub struct Normalize {
    /// Of red, green and blue, in 0..255.
    pub mean: [f32; 3],
    /// Of red, green and blue, in 0..255.
    pub std: [f32; 3],
    /// Whether left and right change places, for augmentation at test time.
    pub flip: bool,
}

impl Normalize {
    /// Mean and deviation as vectors of four.
    pub(super) fn vectors(self) -> [[f32; 4]; 2] {
        let four = |[r, g, b]: [f32; 3], a| [r, g, b, a];
        [four(self.mean, 0.0), four(self.std, 1.0)]
    }

    fn params(self, dims: &[usize]) -> Params {
        let [mean, deviation] = self.vectors();
        Params { mean, deviation, flip: u32::from(self.flip), ..Params::new(dims) }
    }
}

/// Pictures of one size, as a network takes them: normalised and padded when they are cut into patches
/// ([`patchify`](super::patchify), [`unfold`](super::unfold)), with no tensor in between.
#[derive(Clone, Debug)]
pub struct Image {
    pub(super) pixels: Pixels,
    /// B, H, W, with padding.
    dims: [usize; 3],
}

#[derive(Clone, Debug)]
pub(super) enum Pixels {
    Map(Tensor),
    Bytes(Tensor, Normalize),
    Texture { image: Tensor, linear: bool, normalize: Normalize },
}

impl Image {
    /// Images of bytes, as [`normalize`] takes them.
    ///
    /// # Panics
    ///
    /// If `rgba` is not `[B, H, W]`.
    #[track_caller]
    pub fn bytes(rgba: &Tensor, normalize: Normalize) -> Self {
        let [batch, height, width] = *rgba.dims() else { panic!("bytes of {:?}", rgba.shape()) };
        Self { pixels: Pixels::Bytes(rgba.clone(), normalize), dims: [batch, height, width] }
    }

    /// A texture that an application already has on the device, as [`normalize_texture`] takes it.
    ///
    /// # Panics
    ///
    /// If `image` is no texture.
    #[track_caller]
    pub fn texture(image: &Tensor, linear: bool, normalize: Normalize) -> Self {
        assert!(image.is_texture(), "a texture of {:?}", image.shape());
        let dims = [1, image.dims()[0], image.dims()[1]];
        Self { pixels: Pixels::Texture { image: image.clone(), linear, normalize }, dims }
    }

    /// Pictures, height, width.
    pub fn dims(&self) -> [usize; 3] {
        self.dims
    }

    /// The same with zeros right and below, up to multiples of `divisor`.
    #[must_use]
    pub fn padded(self, divisor: usize) -> Self {
        let [batch, height, width] = self.dims;
        let [height, width] = [height, width].map(|side| side.next_multiple_of(divisor));
        Self { dims: [batch, height, width], ..self }
    }
}

impl From<&Tensor> for Image {
    /// What is normalised already, or any map: `[B, H, W, C]`. It gets a gradient if it is tracked.
    #[track_caller]
    fn from(x: &Tensor) -> Self {
        let [batch, height, width, _] = *x.dims() else { panic!("an image of {:?}", x.shape()) };
        Self { pixels: Pixels::Map(x.clone()), dims: [batch, height, width] }
    }
}

impl From<&Image> for Image {
    fn from(image: &Image) -> Self {
        image.clone()
    }
}

/// `(value − mean) / std` of images of bytes; exact zeros where alpha is 0, for the padding of a batch.
///
/// - `rgba`: `[B, H, W]` of `u32`, a pixel each, red in the lowest byte (the bytes of an RGBA image)
/// - returns `[B, H, W, 3]`
///
/// # Panics
///
/// If `rgba` is not `[B, H, W]`.
#[track_caller]
pub fn normalize(recorder: &mut Recorder, rgba: &Tensor, normalize: Normalize) -> Tensor {
    let [batch, height, width] = *rgba.dims() else { panic!("normalize of {:?}", rgba.shape()) };
    let params = normalize.params(rgba.dims());
    let x = recorder.empty([batch, height, width, 3]);
    recorder.run(&NORMALIZE, params, &[rgba, &x], params.grid());
    x
}

/// [`normalize`] of a texture that an application already has on the device.
///
/// - `image`: [`Tensor::texture`] of a 2-D float texture (`Rgba8Unorm`, `Rgba8UnormSrgb`, `Bgra8Unorm`, …),
///   `[H, W]`
/// - `linear`: whether it answers linear light, as the views of `…Srgb` textures do; the network wants
///   the values of an image file, to which that is turned back
/// - returns `[1, H, W, 3]`
///
/// # Panics
///
/// If `image` is no texture.
#[track_caller]
pub fn normalize_texture(
    recorder: &mut Recorder,
    image: &Tensor,
    linear: bool,
    normalize: Normalize,
) -> Tensor {
    assert!(image.is_texture(), "normalize_texture of {:?}", image.shape());
    let (height, width) = (image.dims()[0], image.dims()[1]);
    let params = Params { linear: u32::from(linear), ..normalize.params(image.dims()) };
    let x = recorder.empty([1, height, width, 3]);
    recorder.run(&NORMALIZE_TEXTURE, params, &[image, &x], params.grid());
    x
}

/// `opacity` in units of 2⁻²⁴.
#[track_caller]
fn fixed(opacity: f32) -> u32 {
    assert!((0.0..=1.0).contains(&opacity), "paint with opacity {opacity}");
    (f64::from(opacity) * f64::from(1 << 24)).round() as u32
}

#[track_caller]
fn check(labels: &Tensor, palette: &Tensor, pixels: usize) {
    assert_eq!(labels.shape().len(), pixels.div_ceil(4), "paint: labels for {pixels} pixels");
    assert_eq!(palette.dims(), [256], "paint: palette");
}

/// Colours each pixel by its class: `image · (1 − opacity) + colour · opacity`, truncated. Pixels with
/// label 255 keep the image; all keep their alpha.
///
/// - `rgba`: `[B, H, W]` of `u32`, as [`normalize`]'s
/// - `labels`: `[⌈B H W / 4⌉]` of `u32`, class ids of four pixels each, the first in the lowest byte
/// - `palette`: `[256]` of `u32`, the colours of the classes as pixels
/// - returns `[B, H, W]` of `u32`
///
/// # Panics
///
/// If the shapes do not fit together or `opacity` is not in 0..=1.
#[track_caller]
pub fn paint(
    recorder: &mut Recorder,
    labels: &Tensor,
    palette: &Tensor,
    rgba: &Tensor,
    opacity: f32,
) -> Tensor {
    check(labels, palette, rgba.shape().len());
    let params = Params { opacity: fixed(opacity), ..Params::new(rgba.dims()) };
    let painted = recorder.empty(rgba.shape().clone());
    recorder.run(&PAINT, params, &[rgba, labels, palette, &painted], params.grid());
    painted
}

/// [`paint`] from a texture to another, of the same size.
///
/// - `image`, `linear`: as [`normalize_texture`]'s
/// - `canvas`: [`Tensor::texture`] of an `Rgba8Unorm` texture with usage `STORAGE_BINDING`; it gets the
///   values of an image file, so that whoever shows it may read it through an `Rgba8UnormSrgb` view
///
/// # Panics
///
/// As [`paint`], and if `image` and `canvas` are not textures of one size.
#[track_caller]
pub fn paint_texture(
    recorder: &mut Recorder,
    labels: &Tensor,
    palette: &Tensor,
    image: &Tensor,
    linear: bool,
    opacity: f32,
    canvas: &Tensor,
) {
    assert!(image.is_texture() && canvas.is_texture(), "paint_texture of no texture");
    assert_eq!(image.shape(), canvas.shape(), "paint_texture: image and canvas");
    check(labels, palette, image.shape().len());
    let linear = u32::from(linear);
    let params = Params { opacity: fixed(opacity), linear, ..Params::new(image.dims()) };
    recorder.run(&PAINT_TEXTURE, params, &[image, labels, palette, canvas], params.grid());
}
