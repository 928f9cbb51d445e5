//! Resizing and colour conversion in the integer arithmetic of the libraries that the published
//! models were trained with, so that the same picture gives the same bytes here and there.
//!
//! [`resize_linear`], [`resize_nearest`] and the HSV conversions equal OpenCV's on 8 bits;
//! [`resize_smooth`] equals Pillow's `BILINEAR` filter, [`downscale`] its `BOX` filter, and
//! [`resize_floor`] PyTorch's `nearest`.

use std::sync::LazyLock;

use super::{Image, LabelMap};

/// A rectangle of pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First column.
    pub x: usize,
    /// First row.
    pub y: usize,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl Window {
    /// All of a picture of this size.
    pub fn all(width: usize, height: usize) -> Self {
        Self { x: 0, y: 0, width, height }
    }

    #[track_caller]
    fn assert_within(self, width: usize, height: usize) {
        let fits = self.x + self.width <= width && self.y + self.height <= height;
        assert!(fits, "{self:?} in a picture of {width}x{height}");
    }
}

/// The largest size within a box of `long` by `short` pixels, whichever way it lies, that keeps the
/// aspect ratio of `width` by `height`: `(width, height)`, each at least 1.
///
/// Equals `mmcv.imrescale` with a tuple of two: `f = min(long / max(w, h), short / min(w, h))`,
/// sides `⌊w f + ½⌋` and `⌊h f + ½⌋`.
///
/// # Panics
///
/// If `width` or `height` is 0.
pub fn rescaled_size(width: usize, height: usize, long: usize, short: usize) -> (usize, usize) {
    assert!(width > 0 && height > 0, "rescaled_size: {width}x{height}");
    let (long, short) = (long.max(short) as f64, long.min(short) as f64);
    let factor = (long / width.max(height) as f64).min(short / width.min(height) as f64);
    let side = |n: usize| ((n as f64 * factor + 0.5) as usize).max(1);
    (side(width), side(height))
}

/// The size, `(width, height)`, whose shorter side is `edge`, or less where the longer one would be above
/// `longest`.
///
/// Equals detectron2's `ResizeShortestEdge`.
///
/// # Panics
///
/// If `width` or `height` is 0.
pub fn shortest_edge_size(
    width: usize,
    height: usize,
    edge: usize,
    longest: usize,
) -> (usize, usize) {
    assert!(width > 0 && height > 0, "shortest_edge_size: {width}x{height}");
    let (edge, longest) = (edge as f64, longest as f64);
    let scale = edge / width.min(height) as f64;
    let (mut w, mut h) = match height < width {
        true => (scale * width as f64, edge),
        false => (edge, scale * height as f64),
    };
    if w.max(h) > longest {
        let scale = longest / w.max(h);
        (w, h) = (w * scale, h * scale);
    }
    let side = |n: f64| ((n + 0.5) as usize).max(1);
    (side(w), side(h))
}

/// Where one output pixel lies between two input pixels, and their weights in 1/2048.
#[derive(Clone, Copy)]
struct Tap {
    first: usize,
    second: usize,
    first_weight: i32,
    second_weight: i32,
}

/// `clamp_fraction`: OpenCV drops the fraction of columns beyond the edges, of rows it does not.
fn taps(n_out: usize, n_in: usize, clamp_fraction: bool) -> Vec<Tap> {
    let scale = n_in as f64 / n_out as f64;
    let last = n_in as i64 - 1;
    (0..n_out)
        .map(|d| {
            let at = ((d as f64 + 0.5) * scale - 0.5) as f32;
            let mut i = at.floor() as i64;
            let mut fraction = at - i as f32;
            if clamp_fraction && (i < 0 || i >= last) {
                (i, fraction) = (i.clamp(0, last), 0.0);
            }
            Tap {
                first: i.clamp(0, last) as usize,
                second: (i + 1).clamp(0, last) as usize,
                first_weight: ((1.0 - fraction) * 2048.0).round_ties_even() as i32,
                second_weight: (fraction * 2048.0).round_ties_even() as i32,
            }
        })
        .collect()
}

/// Resizes bilinearly to `width` by `height`, without smoothing where it shrinks.
///
/// Equals `cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)` on 8 bits. (OpenCV
/// halves both sides by other code, the rounded mean of each 2x2 block; the general formula gives
/// the same bytes there.)
///
/// # Panics
///
/// If a size is 0.
pub fn resize_linear(image: &Image, width: usize, height: usize) -> Image {
    resize_linear_window(image, width, height, Window::all(width, height))
}

/// What [`resize_linear`] to `width` by `height` has within `window`; only that is computed.
///
/// # Panics
///
/// If a size is 0 or `window` reaches beyond the resized picture.
pub fn resize_linear_window(image: &Image, width: usize, height: usize, window: Window) -> Image {
    assert!(image.width > 0 && image.height > 0 && width > 0 && height > 0, "resize_linear: size");
    window.assert_within(width, height);
    if (image.width, image.height) == (width, height) {
        return crop_image(image, window);
    }
    let columns = &taps(width, image.width, true)[window.x..window.x + window.width];
    let rows = &taps(height, image.height, false)[window.y..window.y + window.height];
    let stretch = |y: usize, values: &mut Vec<i32>| {
        let row = &image.pixels[y * image.width * 3..(y + 1) * image.width * 3];
        values.clear();
        for tap in columns {
            for c in 0..3 {
                let (first, second) = (row[tap.first * 3 + c], row[tap.second * 3 + c]);
                let value =
                    i32::from(first) * tap.first_weight + i32::from(second) * tap.second_weight;
                values.push(value >> 4);
            }
        }
    };
    let mut pixels = Vec::with_capacity(window.width * window.height * 3);
    // Neighbouring output rows mostly share their two input rows.
    let (mut upper, mut lower) = ((usize::MAX, Vec::new()), (usize::MAX, Vec::new()));
    for tap in rows {
        if upper.0 != tap.first && lower.0 == tap.first {
            std::mem::swap(&mut upper, &mut lower);
        }
        for (kept, y) in [(&mut upper, tap.first), (&mut lower, tap.second)] {
            if kept.0 != y {
                stretch(y, &mut kept.1);
                kept.0 = y;
            }
        }
        pixels.extend(upper.1.iter().zip(&lower.1).map(|(&upper, &lower)| {
            let sum = ((tap.first_weight * upper) >> 16) + ((tap.second_weight * lower) >> 16);
            ((sum + 2) >> 2).clamp(0, 255) as u8
        }));
    }
    Image::new(window.width, window.height, pixels)
}

/// The input pixels that an output pixel is made of, and their weights in 2⁻²².
struct Blend {
    first: usize,
    weights: Vec<u32>,
}

impl Blend {
    /// A triangle, as wide as a pixel of the smaller side.
    fn of(output: usize, n_out: usize, n_in: usize) -> Self {
        let scale = n_in as f64 / n_out as f64;
        let width = scale.max(1.0);
        let centre = (output as f64 + 0.5) * scale;
        let first = (centre - width + 0.5).max(0.0) as usize;
        let end = ((centre + width + 0.5) as usize).min(n_in);
        let weight = |i: usize| (1.0 - ((i as f64 - centre + 0.5) / width).abs()).max(0.0);
        let total: f64 = (first..end).map(weight).sum();
        let fixed = |i: usize| (0.5 + weight(i) / total * f64::from(1 << 22)) as u32;
        Self { first, weights: (first..end).map(fixed).collect() }
    }

    /// The sum over `value(i)` of input pixels.
    fn sum(&self, value: impl Fn(usize) -> u8) -> u8 {
        let terms = self.weights.iter().enumerate();
        let sum: u32 = terms.map(|(i, weight)| weight * u32::from(value(self.first + i))).sum();
        ((sum + (1 << 21)) >> 22).min(255) as u8
    }
}

/// What a bilinear resize to `width` by `height` that smooths where it shrinks has within `window`; only
/// that is computed.
///
/// Equals Pillow's `Image.resize((width, height), Image.BILINEAR)` on 8 bits, across first and then down.
///
/// # Panics
///
/// If a size is 0 or `window` reaches beyond the resized picture.
pub fn resize_smooth(image: &Image, width: usize, height: usize, window: Window) -> Image {
    assert!(image.width > 0 && image.height > 0 && width > 0 && height > 0, "resize_smooth: size");
    window.assert_within(width, height);
    let blends = |start: usize, len: usize, n_out: usize, n_in: usize| -> Vec<Blend> {
        (start..start + len).map(|d| Blend::of(d, n_out, n_in)).collect()
    };
    let columns = blends(window.x, window.width, width, image.width);
    let rows = blends(window.y, window.height, height, image.height);
    let (Some(top), Some(last)) = (rows.first(), rows.last()) else {
        return Image::new(window.width, 0, Vec::new());
    };
    let (top, end) = (top.first, last.first + last.weights.len());
    let mut across = Vec::with_capacity((end - top) * window.width * 3);
    for row in image.pixels[top * image.width * 3..end * image.width * 3].chunks(image.width * 3) {
        for blend in &columns {
            across.extend((0..3).map(|c| blend.sum(|x| row[3 * x + c])));
        }
    }
    let line = window.width * 3;
    let mut pixels = Vec::with_capacity(window.height * line);
    for blend in &rows {
        pixels.extend((0..line).map(|i| blend.sum(|y| across[(y - top) * line + i])));
    }
    Image::new(window.width, window.height, pixels)
}

/// Resizes by taking for each pixel the one at `⌊i · (in / out)⌋` in single precision.
///
/// Equals `torch.nn.functional.interpolate(mode="nearest")`.
///
/// # Panics
///
/// If a size is 0.
pub fn resize_floor(labels: &LabelMap, width: usize, height: usize) -> LabelMap {
    assert!(labels.width > 0 && labels.height > 0 && width > 0 && height > 0, "resize_floor");
    let pick = |n_out: usize, n_in: usize| -> Vec<usize> {
        let scale = n_in as f32 / n_out as f32;
        (0..n_out).map(|i| ((i as f32 * scale) as usize).min(n_in - 1)).collect()
    };
    pick_pixels(labels, &pick(width, labels.width), &pick(height, labels.height))
}

/// Resizes by taking for each pixel the one at `⌊i · (in / out)⌋`.
///
/// Equals `cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)`.
///
/// # Panics
///
/// If a size is 0.
pub fn resize_nearest(labels: &LabelMap, width: usize, height: usize) -> LabelMap {
    assert!(labels.width > 0 && labels.height > 0 && width > 0 && height > 0, "resize_nearest");
    let pick = |n_out: usize, n_in: usize| -> Vec<usize> {
        // The reciprocal of the reciprocal, as OpenCV has it: one rounding decides the index.
        let scale = 1.0 / (n_out as f64 / n_in as f64);
        (0..n_out).map(|i| ((i as f64 * scale).floor() as usize).min(n_in - 1)).collect()
    };
    pick_pixels(labels, &pick(width, labels.width), &pick(height, labels.height))
}

fn pick_pixels(labels: &LabelMap, columns: &[usize], rows: &[usize]) -> LabelMap {
    let mut ids = Vec::with_capacity(columns.len() * rows.len());
    for y in rows {
        let row = &labels.ids[y * labels.width..(y + 1) * labels.width];
        ids.extend(columns.iter().map(|&x| row[x]));
    }
    LabelMap::new(columns.len(), rows.len(), ids)
}

/// The pixels of `image` within `window`.
///
/// # Panics
///
/// If `window` reaches beyond the picture.
pub fn crop_image(image: &Image, window: Window) -> Image {
    let pixels = crop(&image.pixels, 3, image.width, image.height, window);
    Image::new(window.width, window.height, pixels)
}

/// The ids of `labels` within `window`.
///
/// # Panics
///
/// If `window` reaches beyond the map.
pub fn crop_labels(labels: &LabelMap, window: Window) -> LabelMap {
    let ids = crop(&labels.ids, 1, labels.width, labels.height, window);
    LabelMap::new(window.width, window.height, ids)
}

fn crop(data: &[u8], channels: usize, width: usize, height: usize, window: Window) -> Vec<u8> {
    window.assert_within(width, height);
    let mut cut = Vec::with_capacity(window.width * window.height * channels);
    for y in window.y..window.y + window.height {
        let start = (y * width + window.x) * channels;
        cut.extend_from_slice(&data[start..start + window.width * channels]);
    }
    cut
}

/// Shrinks by the whole number `factor`: each pixel is the mean of `factor` columns, rounded, then
/// of `factor` rows, rounded again. What is left at the right and the bottom when the size is no
/// multiple is dropped; a side shorter than `factor` becomes one pixel of all of it.
///
/// Equals Pillow's `resize((w // f, h // f), Image.BOX, box=(0, 0, w // f * f, h // f * f))`,
/// columns first as Pillow up to 9.5 does; newer ones begin with the rows of tall pictures, which
/// moves some values by one. For a factor of 2 each step is `(a + b + 1) >> 1`.
///
/// # Panics
///
/// If `factor` is 0.
pub fn downscale(image: &Image, factor: usize) -> Image {
    assert!(factor > 0, "downscale: factor 0");
    if factor == 1 {
        return image.clone();
    }
    let (width, across) = shrunk(image.width, factor);
    let (height, down) = shrunk(image.height, factor);

    let weight = box_weight(across);
    let mut narrow = Vec::with_capacity(width * height * down * 3);
    for row in image.pixels.chunks_exact(image.width * 3).take(height * down) {
        for cell in row.chunks_exact(across * 3).take(width) {
            for c in 0..3 {
                let sum: u64 = cell.iter().skip(c).step_by(3).map(|&v| u64::from(v)).sum();
                narrow.push(box_mean(sum, weight));
            }
        }
    }

    let weight = box_weight(down);
    let mut pixels = Vec::with_capacity(width * height * 3);
    for rows in narrow.chunks_exact(width * 3 * down) {
        for i in 0..width * 3 {
            let sum: u64 = rows.iter().skip(i).step_by(width * 3).map(|&v| u64::from(v)).sum();
            pixels.push(box_mean(sum, weight));
        }
    }
    Image::new(width, height, pixels)
}

/// Shrinks by the whole number `factor` by taking the pixel at `⌊(d + ½) · factor⌋`; sizes are
/// those of [`downscale`].
///
/// # Panics
///
/// If `factor` is 0.
pub fn downscale_labels(labels: &LabelMap, factor: usize) -> LabelMap {
    assert!(factor > 0, "downscale_labels: factor 0");
    let pick = |n: usize| -> Vec<usize> {
        let (n_out, cell) = shrunk(n, factor);
        (0..n_out).map(|d| d * cell + cell / 2).collect()
    };
    pick_pixels(labels, &pick(labels.width), &pick(labels.height))
}

/// Cells along a side of `n`, and pixels per cell.
fn shrunk(n: usize, factor: usize) -> (usize, usize) {
    ((n / factor).max(1), factor.min(n))
}

/// Pillow's weights have 22 bits after the point.
fn box_weight(count: usize) -> u64 {
    (0.5 + (1.0 / count as f64) * f64::from(1 << 22)) as u64
}

fn box_mean(sum: u64, weight: u64) -> u8 {
    ((sum * weight + (1 << 21)) >> 22).min(255) as u8
}

/// `top / (denominator · i)` in 1/4096, by which OpenCV replaces divisions.
fn reciprocals(top: i32, denominator: f64) -> [i32; 256] {
    let top = f64::from(top << 12);
    std::array::from_fn(|i| match i {
        0 => 0,
        i => (top / (denominator * i as f64)).round_ties_even() as i32,
    })
}

static SATURATION: LazyLock<[i32; 256]> = LazyLock::new(|| reciprocals(255, 1.0));
static HUE: LazyLock<[i32; 256]> = LazyLock::new(|| reciprocals(180, 6.0));

/// Hue in `0..180`, saturation and value in `0..=255`. Equals `cv2.COLOR_RGB2HSV` on 8 bits.
pub fn rgb_to_hsv([r, g, b]: [u8; 3]) -> [u8; 3] {
    let (r, g, b) = (i32::from(r), i32::from(g), i32::from(b));
    let value = r.max(g).max(b);
    let range = value - r.min(g).min(b);
    let saturation = (range * SATURATION[value as usize] + (1 << 11)) >> 12;
    let hue = if value == r {
        g - b
    } else if value == g {
        b - r + 2 * range
    } else {
        r - g + 4 * range
    };
    let hue = (hue * HUE[range as usize] + (1 << 11)) >> 12;
    [(if hue < 0 { hue + 180 } else { hue }) as u8, saturation as u8, value as u8]
}

/// The inverse of [`rgb_to_hsv`], up to rounding.
///
/// Within one level of `cv2.COLOR_HSV2RGB`, whose vector code truncates where its scalar code
/// rounds; this rounds.
pub fn hsv_to_rgb([h, s, v]: [u8; 3]) -> [u8; 3] {
    let h = f32::from(h) * (6.0 / 180.0) as f32;
    let s = f32::from(s) * (1.0 / 255.0) as f32;
    let v = f32::from(v) * (1.0 / 255.0) as f32;
    let sector = h.floor();
    let f = h - sector;
    let (none, falling, rising) = (v * (1.0 - s), v * (1.0 - s * f), v * (1.0 - s * (1.0 - f)));
    let rgb = match sector as u32 % 6 {
        0 => [v, rising, none],
        1 => [falling, v, none],
        2 => [none, v, rising],
        3 => [none, falling, v],
        4 => [rising, none, v],
        _ => [v, none, falling],
    };
    rgb.map(|c| (c * 255.0).round_ties_even().clamp(0.0, 255.0) as u8)
}

/// `value · scale + shift` in `f32`, clipped to `0..=255`, fraction dropped.
pub fn scale_shift(value: u8, scale: f32, shift: f32) -> u8 {
    (f32::from(value) * scale + shift).clamp(0.0, 255.0) as u8
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::super::testing;
    use super::*;

    /// Swaps red and blue: the fixture's pictures are in OpenCV's order.
    fn swapped(bytes: &[u8]) -> Vec<u8> {
        bytes.chunks_exact(3).flat_map(|p| [p[2], p[1], p[0]]).collect()
    }

    #[test]
    fn equal_the_recorded_answers() {
        let Some(path) = crate::testing::fixture("data.image_ops.safetensors") else { return };
        let bytes = std::fs::read(path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let data = |name: &str| file.tensor(name).unwrap().data();
        let image = Image::new(60, 46, swapped(data("in.bgr")));
        let labels = LabelMap::new(60, 46, data("in.label").to_vec());

        for (w, h) in [(77, 59), (33, 25), (30, 23), (120, 92), (60, 46), (41, 80)] {
            let linear = swapped(data(&format!("out.cv_linear.{w}x{h}")));
            assert_eq!(resize_linear(&image, w, h), Image::new(w, h, linear), "linear {w}x{h}");
            let nearest = data(&format!("out.cv_nearest.{w}x{h}")).to_vec();
            let nearest = LabelMap::new(w, h, nearest);
            assert_eq!(resize_nearest(&labels, w, h), nearest, "nearest {w}x{h}");
            let smooth = swapped(data(&format!("out.pil_bilinear.{w}x{h}")));
            let got = resize_smooth(&image, w, h, Window::all(w, h));
            assert_eq!(got, Image::new(w, h, smooth), "smooth {w}x{h}");
            let floor = data(&format!("out.torch_nearest.{w}x{h}")).to_vec();
            assert_eq!(resize_floor(&labels, w, h), LabelMap::new(w, h, floor), "floor {w}x{h}");
        }

        let pixels = || image.pixels.as_chunks::<3>().0.iter().copied();
        let hsv: Vec<u8> = pixels().flat_map(rgb_to_hsv).collect();
        assert!(hsv == data("out.hsv"), "hsv");
        let back: Vec<u8> = hsv.as_chunks::<3>().0.iter().flat_map(|&p| hsv_to_rgb(p)).collect();
        assert!(swapped(&back) == data("out.bgr_from_hsv"), "hsv and back");

        let shifted = |scale, shift| -> Vec<u8> {
            swapped(&image.pixels).iter().map(|&v| scale_shift(v, scale, shift)).collect()
        };
        assert!(shifted(1.0, -21.5) == data("out.brightness_m21.5"), "brightness");
        assert!(shifted(1.37, 0.0) == data("out.contrast_1.37"), "contrast");

        let sizes = |name: &str| -> Vec<[usize; 6]> {
            let numbers = data(name).as_chunks::<8>().0.iter();
            let numbers: Vec<usize> = numbers.map(|v| i64::from_le_bytes(*v) as usize).collect();
            assert_eq!(numbers.len(), 25 * 6);
            numbers.as_chunks::<6>().0.to_vec()
        };
        for row @ [w, h, long, short, new_w, new_h] in sizes("out.mmcv_sizes") {
            assert_eq!(rescaled_size(w, h, long, short), (new_w, new_h), "{row:?}");
        }
        for row @ [h, w, edge, longest, new_h, new_w] in sizes("out.d2_sizes") {
            assert_eq!(shortest_edge_size(w, h, edge, longest), (new_w, new_h), "{row:?}");
        }
    }

    #[test]
    fn a_window_of_a_resize_is_the_crop_of_all_of_it() {
        let image = testing::image(31, 22, 1);
        for (w, h) in [(31, 22), (62, 44), (17, 40), (50, 9), (1, 1)] {
            let all = resize_linear(&image, w, h);
            let window = Window { x: w / 3, y: h / 2, width: w - w / 3, height: h.div_ceil(3) };
            assert_eq!(resize_linear_window(&image, w, h, window), crop_image(&all, window));
            let all = resize_smooth(&image, w, h, Window::all(w, h));
            assert_eq!(resize_smooth(&image, w, h, window), crop_image(&all, window));
        }
        let image = testing::image(20, 12, 2);
        let window = Window { x: 3, y: 1, width: 5, height: 4 };
        let all = resize_linear(&image, 10, 6);
        assert_eq!(resize_linear_window(&image, 10, 6, window), crop_image(&all, window));
    }

    #[test]
    fn halving_takes_the_mean_of_each_block() {
        let image = testing::image(32, 20, 4);
        let small = resize_linear(&image, 16, 10);
        for (x, y) in (0..160).map(|i| (i % 16, i / 16)) {
            let block = [(0, 0), (1, 0), (0, 1), (1, 1)];
            let corners = block.map(|(dx, dy)| image.pixel(2 * x + dx, 2 * y + dy));
            let mean = |c: usize| (corners.iter().map(|p| u32::from(p[c])).sum::<u32>() + 2) / 4;
            assert_eq!(small.pixel(x, y).map(u32::from), [mean(0), mean(1), mean(2)]);
        }
    }

    #[test]
    fn one_pixel_fills_any_size() {
        let image = Image::new(1, 1, vec![9, 80, 255]);
        let large = resize_linear(&image, 3, 2);
        assert!(large.pixels.chunks_exact(3).all(|p| p == [9, 80, 255]), "{large:?}");
    }

    /// Pillow's answers for the 11x7 pixels `(37 x + 101 y) % 256`.
    #[test]
    fn downscale_takes_means_as_pillow_does() {
        let row = |values: &[u8]| {
            Image::new(values.len(), 1, values.iter().flat_map(|v| [*v; 3]).collect())
        };
        let halved = downscale(&row(&[0, 1, 2, 3, 254, 255, 9]), 2);
        assert_eq!(halved, row(&[1, 3, 255]));

        let pattern = |x: usize, y: usize| (37 * x + 101 * y) % 256;
        let pixels = (0..11 * 7).flat_map(|i| [pattern(i % 11, i / 11) as u8; 3]).collect();
        let image = Image::new(11, 7, pixels);
        for (factor, width, known) in DOWNSCALED {
            let small = downscale(&image, *factor);
            assert_eq!((small.width, small.height), (*width, known.len() / width));
            let red: Vec<u8> = small.pixels.iter().copied().step_by(3).collect();
            assert_eq!(red, *known, "factor {factor}");
        }
    }

    /// Factor, width, values.
    const DOWNSCALED: &[(usize, usize, &[u8])] = &[
        (2, 5, &[70, 144, 154, 100, 110, 144, 90, 164, 110, 120, 154, 100, 110, 184, 130]),
        (3, 3, &[110, 135, 132, 128, 125, 123]),
        (5, 2, &[122, 123]),
    ];

    #[test]
    fn downscaled_labels_are_those_at_the_middle_of_each_cell() {
        let labels = LabelMap::new(7, 4, (0..28).collect());
        assert_eq!(downscale_labels(&labels, 2), LabelMap::new(3, 2, vec![8, 10, 12, 22, 24, 26]));
        assert_eq!(downscale_labels(&labels, 3), LabelMap::new(2, 1, vec![8, 11]));
        let small = downscale_labels(&labels, 9);
        let image = downscale(&testing::image(7, 4, 1), 9);
        assert_eq!((small.width, small.height), (image.width, image.height));
    }

    #[test]
    fn grey_survives_hsv_and_back() {
        for v in 0..=255 {
            assert_eq!(hsv_to_rgb(rgb_to_hsv([v; 3])), [v; 3]);
        }
    }
}
