use semask_gpu::gpu::Recorder;
use semask_gpu::ops::{self, Normalize};
use semask_gpu::random::Rng;
use semask_gpu::{Gpu, Tensor, wgpu};

use crate::support::{GPU, OTHER, assert_close, run};

pub(crate) const MEAN: [f32; 3] = [123.675, 116.28, 103.53];
pub(crate) const STD: [f32; 3] = [58.395, 57.12, 57.375];

/// Batch, height, width: runs of 256 pixels, and more than 65 535 workgroups.
const SIZES: [[usize; 3]; 5] = [[1, 1, 1], [2, 3, 5], [1, 2, 256], [3, 2, 257], [1, 65_537, 1]];

/// Pixels of four bytes each, some of them with alpha 0.
pub(crate) fn pixels(count: usize) -> Vec<u8> {
    let mut rng = Rng::new(11, count as u64);
    let mut bytes: Vec<u8> = (0..4 * count).map(|_| rng.bits() as u8).collect();
    bytes.chunks_mut(4).step_by(3).for_each(|pixel| pixel[3] = 0);
    bytes
}

pub(crate) fn words(bytes: &[u8]) -> Vec<u32> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.chunks(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect()
}

pub(crate) fn normalized(bytes: &[u8], width: usize, flip: bool) -> Vec<f64> {
    let value = |at: usize| {
        let (pixel, c) = (at / 3, at % 3);
        let (row, col) = (pixel / width, pixel % width);
        let from = 4 * (row * width + if flip { width - 1 - col } else { col });
        let v = (f64::from(bytes[from + c]) - f64::from(MEAN[c])) / f64::from(STD[c]);
        if bytes[from + 3] == 0 { 0.0 } else { v }
    };
    (0..bytes.len() / 4 * 3).map(value).collect()
}

fn record<T: bytemuck::Pod>(gpu: &Gpu, op: impl FnOnce(&mut Recorder) -> Tensor) -> Vec<T> {
    let mut recorder = Recorder::new(gpu.profile());
    let y = op(&mut recorder);
    let y = recorder.keep(&y, "y");
    run(gpu, &recorder);
    y.read_as(gpu).unwrap()
}

#[test]
fn bytes_are_normalised_and_what_is_transparent_is_0() {
    for gpu in [&*GPU, &*OTHER] {
        for size in SIZES {
            let bytes = pixels(size.iter().product());
            let rgba = Tensor::from_slice(gpu, size, &words(&bytes));
            for flip in [false, true] {
                let options = Normalize { mean: MEAN, std: STD, flip };
                let x = record::<f32>(gpu, |recorder| ops::normalize(recorder, &rgba, options));
                let expected = normalized(&bytes, size[2], flip);
                assert_close("x", &x, &expected, 1e-6);
                let zeros = x.iter().zip(&expected).all(|(x, e)| *e != 0.0 || *x == 0.0);
                assert!(zeros, "padding is exactly 0");
            }
        }
    }
}

fn palette() -> Vec<u8> {
    (0..256 * 4).map(|i| (i * 37 + 11) as u8).collect()
}

/// Exact: `opacity` in thousandths.
fn painted(bytes: &[u8], labels: &[u8], thousandths: u32) -> Vec<u8> {
    let palette = palette();
    let value = |at: usize| {
        let label = labels[at / 4];
        if label == 255 || at % 4 == 3 {
            return bytes[at];
        }
        let colour = u32::from(palette[4 * usize::from(label) + at % 4]);
        ((u32::from(bytes[at]) * (1000 - thousandths) + colour * thousandths) / 1000) as u8
    };
    (0..bytes.len()).map(value).collect()
}

fn labels(count: usize) -> Vec<u8> {
    let mut rng = Rng::new(12, count as u64);
    (0..count).map(|i| if i % 5 == 0 { 255 } else { rng.bits() as u8 }).collect()
}

#[test]
fn paint_blends_truncates_and_leaves_ignored_pixels_alone() {
    for gpu in [&*GPU, &*OTHER] {
        let palette = Tensor::from_slice(gpu, [256], &words(&palette()));
        for size in SIZES {
            let count = size.iter().product();
            let (bytes, labels) = (pixels(count), labels(count));
            let rgba = Tensor::from_slice(gpu, size, &words(&bytes));
            let packed = words(&labels);
            let packed = Tensor::from_slice(gpu, [packed.len()], &packed);
            for thousandths in [0, 300, 500, 999, 1000] {
                let opacity = thousandths as f32 / 1000.0;
                let got = record::<u32>(gpu, |recorder| {
                    ops::paint(recorder, &packed, &palette, &rgba, opacity)
                });
                assert_eq!(got, words(&painted(&bytes, &labels, thousandths)), "{thousandths}");
            }
        }
    }
}

pub(crate) fn texture(
    gpu: &Gpu,
    [h, w]: [usize; 2],
    format: wgpu::TextureFormat,
    bytes: &[u8],
) -> wgpu::Texture {
    let size = wgpu::Extent3d { width: w as u32, height: h as u32, depth_or_array_layers: 1 };
    let texture = gpu.device().create_texture(&wgpu::TextureDescriptor {
        label: None,
        size,
        mip_level_count: 1,
        sample_count: 1,
        dimension: wgpu::TextureDimension::D2,
        format,
        usage: wgpu::TextureUsages::TEXTURE_BINDING
            | wgpu::TextureUsages::COPY_DST
            | wgpu::TextureUsages::COPY_SRC
            | if format == wgpu::TextureFormat::Rgba8Unorm {
                wgpu::TextureUsages::STORAGE_BINDING
            } else {
                wgpu::TextureUsages::empty()
            },
        view_formats: &[],
    });
    let layout = wgpu::TexelCopyBufferLayout {
        offset: 0,
        bytes_per_row: Some(4 * w as u32),
        rows_per_image: None,
    };
    gpu.queue().write_texture(texture.as_image_copy(), bytes, layout, size);
    texture
}

#[test]
fn textures_are_normalised_like_bytes_even_if_they_answer_linear_light() {
    for gpu in [&*GPU, &*OTHER] {
        for (format, linear) in
            [(wgpu::TextureFormat::Rgba8Unorm, false), (wgpu::TextureFormat::Rgba8UnormSrgb, true)]
        {
            for size in [[1, 1], [5, 3], [3, 300]] {
                let bytes = pixels(size[0] * size[1]);
                let image = texture(gpu, size, format, &bytes);
                let image = Tensor::texture(&image.create_view(&Default::default()));
                for flip in [false, true] {
                    let options = Normalize { mean: MEAN, std: STD, flip };
                    let x = record::<f32>(gpu, |recorder| {
                        ops::normalize_texture(recorder, &image, linear, options)
                    });
                    // Decoding sRGB may be off by half a level in a device's table.
                    let tolerance = if linear { 5e-3 } else { 1e-6 };
                    assert_close("x", &x, &normalized(&bytes, size[1], flip), tolerance);
                }
            }
        }
    }
}

#[test]
fn textures_are_painted_like_bytes() {
    for gpu in [&*GPU, &*OTHER] {
        let palette = Tensor::from_slice(gpu, [256], &words(&palette()));
        // 64 pixels: rows of the copy below are multiples of 256 bytes.
        let (size, count) = ([5, 64], 5 * 64);
        let (bytes, labels) = (pixels(count), labels(count));
        let packed = Tensor::from_slice(gpu, [count / 4], &words(&labels));
        let format = wgpu::TextureFormat::Rgba8Unorm;
        let image = texture(gpu, size, format, &bytes);
        let canvas = texture(gpu, size, format, &vec![0; 4 * count]);
        let view =
            |texture: &wgpu::Texture| Tensor::texture(&texture.create_view(&Default::default()));
        let mut recorder = Recorder::new(gpu.profile());
        let (from, to) = (view(&image), view(&canvas));
        ops::paint_texture(&mut recorder, &packed, &palette, &from, false, 0.3, &to);
        run(gpu, &recorder);

        let result = Tensor::from_slice(gpu, [count], &vec![0u32; count]);
        let (buffer, offset) = result.buffer(gpu).unwrap();
        let layout =
            wgpu::TexelCopyBufferLayout { offset, bytes_per_row: Some(256), rows_per_image: None };
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        encoder.copy_texture_to_buffer(
            canvas.as_image_copy(),
            wgpu::TexelCopyBufferInfo { buffer: &buffer, layout },
            canvas.size(),
        );
        gpu.queue().submit([encoder.finish()]);
        let got: Vec<u32> = result.read_as(gpu).unwrap();
        assert_eq!(got, words(&painted(&bytes, &labels, 300)));
    }
}
