use semask_gpu::gpu::Recorder;
use semask_gpu::ops::{self, Image, Normalize};
use semask_gpu::{Gpu, Tape, Tensor, wgpu};

use crate::image::{MEAN, STD, normalized, pixels, texture, words};
use crate::support::{F32, GPU, OTHER, assert_close, check_op, forward};

/// `x[b, row, col, c]` of `[B, H, W, C]`, or 0 beyond the map.
fn at([_, h, w, c]: [usize; 4], x: &[f64], [b, row, col, ch]: [usize; 4]) -> f64 {
    if row < h && col < w { x[((b * h + row) * w + col) * c + ch] } else { 0.0 }
}

#[test]
fn patchify_orders_channel_row_column_and_pads_with_zeros() {
    for (shape, p) in [
        ([1, 1, 1, 1], 1),
        ([1, 1, 1, 3], 4),
        ([2, 8, 12, 3], 4),
        ([2, 5, 7, 3], 4),
        ([1, 3, 131, 5], 4), // more elements than lanes, more patches than a run
        ([1, 6, 6, 2], 3),
        ([1, 65_540, 1, 1], 1), // more than 65 535 workgroups
    ] {
        check_op(
            &[&shape],
            F32,
            |tape, x| ops::patchify(tape, &x[0], p),
            |x| {
                let [b, h, w, c] = shape;
                let mut y = Vec::new();
                for place in 0..b * h.div_ceil(p) * w.div_ceil(p) {
                    let (j, row) = (place % w.div_ceil(p), place / w.div_ceil(p));
                    let (i, b) = (row % h.div_ceil(p), row / h.div_ceil(p));
                    for e in 0..c * p * p {
                        let (ch, ky, kx) = (e / (p * p), e / p % p, e % p);
                        y.push(at(shape, &x[0], [b, i * p + ky, j * p + kx, ch]));
                    }
                }
                y
            },
        );
    }
}

#[test]
fn unfold_equals_a_convolutions_windows() {
    for (shape, [k, s, p]) in [
        ([1, 1, 1, 1], [1, 1, 0]),
        ([1, 1, 1, 2], [3, 2, 1]),
        ([1, 8, 9, 3], [7, 4, 3]), // SegFormer's patches
        ([2, 5, 4, 3], [3, 2, 1]),
        ([1, 7, 5, 2], [2, 2, 0]), // leaves a row and a column out
        ([1, 5, 7, 2], [2, 3, 1]), // and some between the patches
        ([1, 3, 131, 2], [3, 2, 1]),
        ([1, 4, 4, 65], [4, 4, 0]),
        ([1, 2, 65_540, 1], [3, 2, 1]), // more than 65 535 places
    ] {
        let [b, h, w, c] = shape;
        let side = |n: usize| (n + 2 * p - k) / s + 1;
        check_op(
            &[&shape],
            F32,
            |tape, x| ops::unfold(tape, &x[0], k, s, p),
            |x| {
                let mut y = Vec::new();
                for place in 0..b * side(h) * side(w) {
                    let (j, i) = (place % side(w), place / side(w) % side(h));
                    let image = place / (side(w) * side(h));
                    for e in 0..c * k * k {
                        let (ch, ky, kx) = (e / (k * k), e / k % k, e % k);
                        // Before the map these wrap around to beyond it.
                        let row = (i * s + ky).wrapping_sub(p);
                        let col = (j * s + kx).wrapping_sub(p);
                        y.push(at(shape, &x[0], [image, row, col, ch]));
                    }
                }
                y
            },
        );
    }
}

#[test]
fn what_pads_an_image_is_cut_too() {
    // Whole patches of padding, below and right.
    let (shape, [rows, cols]) = ([2, 5, 9, 3], [8, 16]);
    let reference = |x: &[Vec<f64>]| {
        let mut y = Vec::new();
        for place in 0..2 * (rows / 4) * (cols / 4) {
            let (j, row) = (place % (cols / 4), place / (cols / 4));
            let (i, b) = (row % (rows / 4), row / (rows / 4));
            for e in 0..3 * 16 {
                let (ch, ky, kx) = (e / 16, e / 4 % 4, e % 4);
                y.push(at(shape, &x[0], [b, i * 4 + ky, j * 4 + kx, ch]));
            }
        }
        y
    };
    let op = |tape: &mut Tape, x: &[Tensor]| {
        let image = Image::from(&x[0]).padded(8);
        assert_eq!(image.dims(), [2, rows, cols]);
        ops::patchify(tape, image, 4)
    };
    check_op(&[&shape], F32, op, reference);
}

/// How pictures are cut: side by side, or with a kernel, a stride and a padding.
#[derive(Clone, Copy, Debug)]
enum Way {
    Apart(usize),
    Windows(usize, usize, usize),
}

impl Way {
    fn cut(self, tape: &mut Tape, image: impl Into<Image>) -> Tensor {
        match self {
            Self::Apart(side) => ops::patchify(tape, image, side),
            Self::Windows(kernel, stride, padding) => {
                ops::unfold(tape, image, kernel, stride, padding)
            }
        }
    }
}

/// Pictures, height, width; what they are padded to multiples of.
const PICTURES: [([usize; 3], usize, Way); 9] = [
    ([1, 1, 1], 1, Way::Apart(1)),
    ([1, 1, 1], 32, Way::Apart(4)), // patches of padding only
    ([2, 5, 7], 1, Way::Apart(4)),
    ([3, 9, 133], 1, Way::Apart(4)), // more patches than a run
    ([2, 11, 18], 8, Way::Windows(7, 4, 3)), // SegFormer's patches
    ([1, 8, 270], 1, Way::Windows(7, 4, 3)), // and more of them than a run
    ([1, 20, 19], 1, Way::Apart(9)), // more pixels than lanes
    ([1, 7, 5], 1, Way::Windows(2, 3, 0)), // leaves pixels out
    ([1, 65_540, 1], 1, Way::Windows(3, 1, 1)), // more than 65 535 workgroups
];

/// Patches of what [`normalized`] says.
fn expected(
    bytes: &[u8],
    [batch, h, w]: [usize; 3],
    flip: bool,
    divisor: usize,
    way: Way,
) -> Vec<f64> {
    let v: Vec<f64> = normalized(bytes, w, flip);
    let [rows, cols] = [h, w].map(|side| side.next_multiple_of(divisor));
    let (side, step, before) = match way {
        Way::Apart(side) => (side, side, 0),
        Way::Windows(kernel, stride, padding) => (kernel, stride, padding),
    };
    let patches = |n: usize| match way {
        Way::Apart(side) => n.div_ceil(side),
        Way::Windows(kernel, stride, padding) => (n + 2 * padding - kernel) / stride + 1,
    };
    let (down, across) = (patches(rows), patches(cols));
    let mut y = Vec::new();
    for place in 0..batch * down * across {
        let (j, i, b) = (place % across, place / across % down, place / (across * down));
        for e in 0..3 * side * side {
            let (c, ky, kx) = (e / (side * side), e / side % side, e % side);
            let row = (i * step + ky).wrapping_sub(before);
            let col = (j * step + kx).wrapping_sub(before);
            y.push(at([batch, h, w, 3], &v, [b, row, col, c]));
        }
    }
    y
}

/// The patches of an image.
fn cut(
    gpu: &Gpu,
    image: impl FnOnce(&mut Recorder) -> Image,
    divisor: usize,
    way: Way,
) -> Vec<f32> {
    forward(gpu, |tape| {
        let image = image(tape.recorder()).padded(divisor);
        way.cut(tape, image)
    })
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn patches_of_bytes_are_those_of_the_normalised_picture_to_the_bit() {
    for gpu in [&*GPU, &*OTHER] {
        for (size, divisor, way) in PICTURES {
            let bytes = pixels(size.iter().product());
            let rgba = Tensor::from_slice(gpu, size, &words(&bytes));
            for flip in [false, true] {
                let case = format!("{size:?}, {way:?}, {flip}");
                let normalize = Normalize { mean: MEAN, std: STD, flip };
                let once = cut(gpu, |_| Image::bytes(&rgba, normalize), divisor, way);
                let wanted = expected(&bytes, size, flip, divisor, way);
                assert_close(&case, &once, &wanted, 1e-6);
                let zeros = once.iter().zip(&wanted).all(|(y, e)| *e != 0.0 || y.to_bits() == 0);
                assert!(zeros, "{case}: padding is exactly 0");
                let map = |recorder: &mut _| (&ops::normalize(recorder, &rgba, normalize)).into();
                assert!(bits(&once) == bits(&cut(gpu, map, divisor, way)), "{case}");
            }
        }
    }
}

#[test]
fn patches_of_textures_are_those_of_the_normalised_texture_to_the_bit() {
    let formats =
        [(wgpu::TextureFormat::Rgba8Unorm, false), (wgpu::TextureFormat::Rgba8UnormSrgb, true)];
    for gpu in [&*GPU, &*OTHER] {
        for (size @ [batch, height, width], divisor, way) in PICTURES {
            // One picture; and a side of 65 540 is more than textures have.
            if batch > 1 || height > 2048 {
                continue;
            }
            let bytes = pixels(height * width);
            for (format, linear) in formats {
                let image = texture(gpu, [height, width], format, &bytes);
                let image = Tensor::texture(&image.create_view(&Default::default()));
                for flip in [false, true] {
                    let case = format!("{size:?}, {way:?}, {flip}, {format:?}");
                    let normalize = Normalize { mean: MEAN, std: STD, flip };
                    let image_of = |_: &mut _| Image::texture(&image, linear, normalize);
                    let once = cut(gpu, image_of, divisor, way);
                    let wanted = expected(&bytes, size, flip, divisor, way);
                    // Decoding sRGB may be off by half a level in a device's table.
                    assert_close(&case, &once, &wanted, if linear { 5e-3 } else { 1e-6 });
                    let map = |recorder: &mut _| {
                        (&ops::normalize_texture(recorder, &image, linear, normalize)).into()
                    };
                    assert!(bits(&once) == bits(&cut(gpu, map, divisor, way)), "{case}");
                }
            }
        }
    }
}

#[test]
fn patch_merge_walks_down_the_rows_first() {
    for shape in
        [[1, 1, 1, 1], [2, 4, 6, 3], [2, 3, 4, 33], [1, 5, 7, 96], [3, 2, 1, 65], [1, 363, 724, 1]]
    {
        check_op(
            &[&shape],
            F32,
            |tape, x| ops::patch_merge(tape, &x[0]),
            |x| {
                let [b, h, w, c] = shape;
                let mut y = Vec::new();
                for place in 0..b * h.div_ceil(2) * w.div_ceil(2) {
                    let (j, row) = (place % w.div_ceil(2), place / w.div_ceil(2));
                    let (i, b) = (row % h.div_ceil(2), row / h.div_ceil(2));
                    for (ky, kx) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
                        let value = |ch| at(shape, &x[0], [b, 2 * i + ky, 2 * j + kx, ch]);
                        y.extend((0..c).map(value));
                    }
                }
                y
            },
        );
    }
}
