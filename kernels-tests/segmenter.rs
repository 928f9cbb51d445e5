//! `infer::Segmenter` against its definition, from the logits on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use semask_gpu::infer::{Frame, LiveInput, LivePaint, Segmenter, Slide, View};
use semask_gpu::model::{Model, ModelConfig};
use semask_gpu::random::Rng;
use semask_gpu::{Error, Gpu, wgpu};

use crate::resize::reference as resized;
use crate::support::GPU;

/// A small model of `classes` classes with random parameters.
pub(crate) fn small_config(classes: usize) -> ModelConfig {
    ModelConfig {
        embed_dim: 16,
        depths: vec![1; 4],
        num_heads: vec![1, 1, 2, 2],
        window_size: 4,
        sem_window_size: 4,
        channels: 16,
        num_classes: classes,
        ..ModelConfig::default()
    }
}

pub(crate) fn small_model(gpu: &Gpu, classes: usize) -> Model {
    let model = Model::new(&small_config(classes)).unwrap();
    model.parameters().initialise(gpu, 3).unwrap();
    // The classifier starts out so small that all classes would tie.
    let weight = &model.parameters().get("decode_head.conv_seg.weight").unwrap().tensor;
    let larger: Vec<f32> = weight.read(gpu).unwrap().iter().map(|v| 50.0 * v).collect();
    weight.write(gpu, &larger).unwrap();
    model
}

fn picture(height: usize, width: usize, seed: u64) -> Frame {
    let mut rng = Rng::new(seed, 9);
    // Blocks of colour, so that neighbours differ in class.
    let colours: Vec<[u8; 3]> = (0..64).map(|_| [0; 3].map(|_: u8| rng.bits() as u8)).collect();
    let colour = |i: usize| colours[(i / width / 9 * 5 + i % width / 7) % 64];
    let rgb: Vec<u8> = (0..height * width).flat_map(colour).collect();
    Frame::from_rgb(height, width, &rgb).unwrap()
}

/// Logits of a view at the goal's size.
fn at_goal(segmenter: &mut Segmenter, frame: &Frame, goal: [usize; 2]) -> Vec<f64> {
    let logits = segmenter.logits(frame).unwrap();
    assert_eq!([logits.height, logits.width], [frame.height, frame.width].map(|n| n.div_ceil(4)));
    let values: Vec<f64> = logits.values.iter().map(|&v| v.into()).collect();
    let k = logits.classes;
    let full = resized(&values, [1, logits.height, logits.width, k], frame.height, frame.width);
    resized(&full, [1, frame.height, frame.width, k], goal[0], goal[1])
}

fn softmax(v: &[f64]) -> Vec<f64> {
    let largest = v.iter().copied().fold(f64::MIN, f64::max);
    let sum: f64 = v.iter().map(|v| (v - largest).exp()).sum();
    v.iter().map(|v| (v - largest).exp() / sum).collect()
}

/// Labels are of the largest value, but for those that rounding may decide.
#[track_caller]
fn assert_labels(labels: &[u8], values: &[f64], classes: usize, slack: f64) {
    assert_eq!(labels.len() * classes, values.len());
    for (at, (v, &label)) in values.chunks(classes).zip(labels).enumerate() {
        let largest = v.iter().copied().fold(f64::MIN, f64::max);
        let got = v[usize::from(label)];
        assert!(largest - got <= slack, "pixel {at}: class {label} of {v:?}");
    }
    let first = labels[0];
    assert!(labels.len() < 50 || labels.iter().any(|&l| l != first), "one class everywhere");
}

#[test]
fn labels_are_the_largest_of_logits_resized_twice() {
    let mut segmenter = Segmenter::new(&GPU, small_model(&GPU, 5));
    for (size, goal) in
        [([37, 50], [37, 50]), ([64, 32], [45, 71]), ([5, 9], [13, 4]), ([1, 1], [1, 1])]
    {
        let frame = picture(size[0], size[1], 1);
        let view = [View { frame: frame.clone(), mirror: false }];
        let labels = segmenter.labels(&view, goal[0], goal[1], None).unwrap();
        let expected = at_goal(&mut segmenter, &frame, goal);
        assert_labels(&labels, &expected, 5, 1e-4);
    }
}

#[test]
fn a_batch_has_the_labels_of_its_pictures() {
    let mut segmenter = Segmenter::new(&GPU, small_model(&GPU, 5));
    let frames: Vec<_> = (0..3).map(|seed| picture(33, 41, seed)).collect();
    let all = segmenter.batch(&frames.iter().collect::<Vec<_>>(), 33, 41).unwrap();
    assert_eq!(all.len(), 3);
    for (frame, labels) in frames.iter().zip(all) {
        let expected = at_goal(&mut segmenter, frame, [33, 41]);
        assert_labels(&labels, &expected, 5, 1e-4);
    }
    assert!(segmenter.batch(&[], 1, 1).unwrap().is_empty());
}

#[test]
fn views_are_averaged_after_softmax_and_mirrored_back() {
    let mut segmenter = Segmenter::new(&GPU, small_model(&GPU, 4));
    let goal = [30, 43];
    let mut views = Vec::new();
    for (i, size) in [[30, 43], [45, 64], [15, 22]].into_iter().enumerate() {
        let frame = picture(size[0], size[1], i as u64);
        views.push(View { frame: frame.clone(), mirror: true });
        views.push(View { frame, mirror: false });
    }
    for count in [1, 6] {
        let views = &views[..count];
        let labels = segmenter.labels(views, goal[0], goal[1], None).unwrap();
        let mut sum = vec![0.0; goal[0] * goal[1] * 4];
        for View { frame, mirror } in views {
            let seen = if *mirror { frame.mirrored() } else { frame.clone() };
            let values = at_goal(&mut segmenter, &seen, goal);
            for (at, v) in values.chunks(4).enumerate() {
                let (row, column) = (at / goal[1], at % goal[1]);
                let column = if *mirror { goal[1] - 1 - column } else { column };
                let to = (row * goal[1] + column) * 4;
                sum[to..to + 4].iter_mut().zip(softmax(v)).for_each(|(s, p)| *s += p);
            }
        }
        assert_labels(&labels, &sum, 4, 1e-4);
    }
}

#[test]
fn windows_are_averaged_before_the_last_resize() {
    let mut segmenter = Segmenter::new(&GPU, small_model(&GPU, 4));
    let frame = picture(47, 39, 2);
    let slide = Slide { crop: [24, 20], stride: [16, 13] };
    // Rows: 0, 16, then 47 − 24. Columns: 0, 13, then 39 − 20.
    let (tops, lefts) = ([0, 16, 23], [0, 13, 19]);
    let (mut sum, mut hits) = (vec![0.0; 47 * 39 * 4], vec![0.0; 47 * 39]);
    for top in tops {
        for left in lefts {
            let row = |y: usize| &frame.rgba[4 * (y * 39 + left)..][..4 * 20];
            let rgba: Vec<u8> = (top..top + 24).flat_map(row).copied().collect();
            let cut = Frame::new(24, 20, rgba).unwrap();
            let values = at_goal(&mut segmenter, &cut, [24, 20]);
            for (at, v) in values.chunks(4).enumerate() {
                let to = (top + at / 20) * 39 + left + at % 20;
                hits[to] += 1.0;
                sum[4 * to..][..4].iter_mut().zip(v).for_each(|(s, v)| *s += v);
            }
        }
    }
    let mean: Vec<f64> = sum.iter().enumerate().map(|(i, s)| s / hits[i / 4]).collect();
    for (goal, mirror) in [([47, 39], false), ([60, 25], false), ([60, 25], true)] {
        let frame = if mirror { frame.mirrored() } else { frame.clone() };
        let view = [View { frame, mirror }];
        let labels = segmenter.labels(&view, goal[0], goal[1], Some(&slide)).unwrap();
        let expected = resized(&mean, [1, 47, 39, 4], goal[0], goal[1]);
        let expected: Vec<f64> = if mirror {
            let rows = expected.chunks(goal[1] * 4);
            rows.flat_map(|row| row.chunks(4).rev().flatten().copied().collect::<Vec<_>>())
                .collect()
        } else {
            expected
        };
        assert_labels(&labels, &expected, 4, 1e-4);
    }
    // Windows larger than the picture are the picture.
    let view = [View { frame: frame.clone(), mirror: false }];
    let whole = segmenter.labels(&view, 47, 39, None).unwrap();
    let slide = Slide::square(64);
    assert_eq!(segmenter.labels(&view, 47, 39, Some(&slide)).unwrap(), whole);
}

#[test]
fn a_picture_too_large_at_once_is_refused_with_advice() {
    let mut segmenter = Segmenter::new(&GPU, small_model(&GPU, 4));
    let side = ((GPU.profile().max_binding / 16) as f64).sqrt() as usize + 64;
    if side > 4000 {
        return println!("skipped: a picture of {side}² is too large for a test");
    }
    let view = [View { frame: picture(side, side, 5), mirror: false }];
    let error = segmenter.labels(&view, side, side, None).unwrap_err();
    let Error::Limit { what, allowed, .. } = &error else { panic!("{error}") };
    assert!(what.contains(&format!("{side} × {side}")), "{error}");
    assert!(allowed.contains("sliding window"), "{error}");
}

#[test]
fn bands_of_windows_are_those_of_the_whole() {
    // Wide and of many classes, so that even a few rows are more than a band.
    let (height, width, classes) = (70, 4000, 250);
    let mut segmenter = Segmenter::new(&GPU, small_model(&GPU, classes));
    let frame = picture(height, width, 7);
    let view = [View { frame: frame.clone(), mirror: false }];
    let slide = Slide { crop: [64, 512], stride: [6, 500] };
    let labels = segmenter.labels(&view, height, width, Some(&slide)).unwrap();
    // The first 64 columns have no neighbours to the right that matter.
    let cut = |columns: usize| {
        let row = |y: usize| &frame.rgba[4 * y * width..][..4 * columns];
        Frame::new(height, columns, (0..height).flat_map(row).copied().collect()).unwrap()
    };
    let narrow = [View { frame: cut(512), mirror: false }];
    let expected = segmenter.labels(&narrow, height, 512, Some(&slide)).unwrap();
    for y in 0..height {
        assert_eq!(labels[y * width..][..500], expected[y * 512..][..500], "row {y}");
    }
}

#[test]
fn sides_out_of_bounds_are_limits() {
    let mut segmenter = Segmenter::new(&GPU, small_model(&GPU, 4));
    let view = [View { frame: picture(1, 40_000, 5), mirror: false }];
    for slide in [None, Some(Slide::square(64))] {
        let error = segmenter.labels(&view, 1, 40_000, slide.as_ref()).unwrap_err();
        assert!(matches!(error, Error::Limit { .. }), "{error}");
    }
    let view = [View { frame: picture(9, 9, 5), mirror: false }];
    let gaps = Slide { crop: [4, 4], stride: [5, 4] };
    assert!(segmenter.labels(&view, 9, 9, Some(&gaps)).is_err());
}

#[test]
fn plans_follow_parameters_that_change() {
    let model = Arc::new(small_model(&GPU, 4));
    let mut segmenter = Segmenter::new(&GPU, model.clone());
    let frame = picture(20, 20, 3);
    let before = segmenter.logits(&frame).unwrap();
    model.parameters().initialise(&GPU, 8).unwrap();
    let after = segmenter.logits(&frame).unwrap();
    assert_ne!(before, after);
    assert_eq!(Segmenter::new(&GPU, model).logits(&frame).unwrap(), after);
}

#[test]
fn more_sizes_than_plans_are_kept() {
    let mut segmenter = Segmenter::new(&GPU, small_model(&GPU, 4));
    let sizes: Vec<usize> = (4..16).collect();
    let first: Vec<_> =
        sizes.iter().map(|&n| segmenter.logits(&picture(n, 9, 1)).unwrap()).collect();
    for (&n, expected) in sizes.iter().zip(&first) {
        assert_eq!(&segmenter.logits(&picture(n, 9, 1)).unwrap(), expected);
    }
}

#[test]
fn an_application_gets_the_same_labels_in_its_own_commands() {
    let mut segmenter = Segmenter::new(&GPU, small_model(&GPU, 4));
    let (height, width) = (26, 64);
    let frame = picture(height, width, 4);
    let view = [View { frame: frame.clone(), mirror: false }];
    let expected = segmenter.labels(&view, height, width, None).unwrap();
    let submit = |encode: &dyn Fn(&mut wgpu::CommandEncoder)| {
        let mut encoder = GPU.device().create_command_encoder(&Default::default());
        encode(&mut encoder);
        GPU.queue().submit([encoder.finish()]);
    };
    let bytes = |words: Vec<u32>| bytemuck::pod_collect_to_vec::<u32, u8>(&words);

    let live = segmenter.live(LiveInput::Buffer { height, width }, None).unwrap();
    live.input().unwrap().write(&GPU, &frame.rgba).unwrap();
    submit(&|encoder| live.encode(encoder));
    assert_eq!(bytes(live.labels().read_as(&GPU).unwrap()), expected);

    let texture = |usage| {
        GPU.device().create_texture(&wgpu::TextureDescriptor {
            label: None,
            size: wgpu::Extent3d {
                width: width as u32,
                height: height as u32,
                depth_or_array_layers: 1,
            },
            mip_level_count: 1,
            sample_count: 1,
            dimension: wgpu::TextureDimension::D2,
            format: wgpu::TextureFormat::Rgba8Unorm,
            usage,
            view_formats: &[],
        })
    };
    let image = texture(wgpu::TextureUsages::TEXTURE_BINDING | wgpu::TextureUsages::COPY_DST);
    let canvas = texture(wgpu::TextureUsages::STORAGE_BINDING);
    let layout = wgpu::TexelCopyBufferLayout {
        offset: 0,
        bytes_per_row: Some(4 * width as u32),
        rows_per_image: None,
    };
    GPU.queue().write_texture(image.as_image_copy(), &frame.rgba, layout, image.size());
    let [image_view, canvas_view] = [&image, &canvas].map(|t| t.create_view(&Default::default()));
    let input = LiveInput::Texture { view: &image_view, linear: false };
    let palette = [[0; 3], [255, 0, 0], [0, 255, 0], [0, 0, 255]];
    let paint = LivePaint { palette: &palette, opacity: 0.5, canvas: &canvas_view };
    let live = segmenter.live(input, Some(paint)).unwrap();
    assert!(live.input().is_none());
    submit(&|encoder| live.encode(encoder));
    assert_eq!(bytes(live.labels().read_as(&GPU).unwrap()), expected);
}

/// A device as an application may own it: WebGPU's default limits, no features.
fn application_device() -> (wgpu::Device, wgpu::Queue, wgpu::AdapterInfo) {
    let instance =
        wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
    let adapter = adapters.into_iter().find(|a| a.get_info().name == GPU.name()).unwrap();
    let request = adapter.request_device(&wgpu::DeviceDescriptor::default());
    let (device, queue) = pollster::block_on(request).unwrap();
    (device, queue, adapter.get_info())
}

#[test]
fn an_applications_device_suffices_and_keeps_its_callbacks() {
    let (device, queue, info) = application_device();
    let errors = Arc::new(AtomicUsize::new(0));
    let heard = errors.clone();
    device.on_uncaptured_error(Arc::new(move |_| {
        heard.fetch_add(1, Ordering::Relaxed);
    }));

    let gpu = Gpu::from_wgpu(device.clone(), queue, &info);
    assert_eq!(gpu.profile().max_binding, wgpu::Limits::default().max_storage_buffer_binding_size);
    let view = [View { frame: picture(26, 64, 4), mirror: false }];
    let expected = Segmenter::new(&GPU, small_model(&GPU, 4)).labels(&view, 26, 64, None).unwrap();
    let labels = Segmenter::new(&gpu, small_model(&gpu, 4)).labels(&view, 26, 64, None).unwrap();
    let differing = labels.iter().zip(&expected).filter(|(a, b)| a != b).count();
    // Reductions without subgroups round differently, which decides ties.
    assert!(differing <= expected.len() / 100, "{differing} of {}", expected.len());
    assert_eq!(errors.load(Ordering::Relaxed), 0);

    // Larger than the device allows.
    let size = device.limits().max_buffer_size + 4;
    let usage = wgpu::BufferUsages::STORAGE;
    let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
    drop(device.create_buffer(&descriptor));
    assert_eq!(errors.load(Ordering::Relaxed), 1, "the application hears of errors");
    gpu.wait("testing").unwrap();
}
