use semask_gpu::gpu::Recorder;
use semask_gpu::ops::{self, predict, predict::Resizing};
use semask_gpu::random::Rng;
use semask_gpu::{Gpu, Tensor};

use crate::cross_entropy::{on_device, pack};
use crate::fixtures::Fixture;
use crate::resize::reference as resized;
use crate::support::{F32, GPU, OTHER, assert_close, random, run};

fn exact(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| v.into()).collect()
}

/// Resizes once or twice.
fn resized_via(x: &[f64], from: [usize; 4], resizing: Resizing) -> Vec<f64> {
    let [batch, _, _, classes] = from;
    let [height, width] = resizing.to;
    match resizing.via {
        None => resized(x, from, height, width),
        Some([h, w]) => resized(&resized(x, from, h, w), [batch, h, w, classes], height, width),
    }
}

fn softmax(v: &[f64]) -> Vec<f64> {
    let largest = v.iter().copied().fold(f64::MIN, f64::max);
    let sum: f64 = v.iter().map(|v| (v - largest).exp()).sum();
    v.iter().map(|v| (v - largest).exp() / sum).collect()
}

fn first_largest(v: &[f64]) -> u8 {
    (0..v.len()).rev().max_by(|&a, &b| v[a].total_cmp(&v[b])).unwrap() as u8
}

/// Sizes of logits, and what they are resized to: once, twice, up, down, not at all.
const CASES: &[([usize; 4], Resizing)] = &[
    ([1, 1, 1, 2], Resizing { via: None, to: [1, 1] }),
    ([2, 3, 5, 19], Resizing { via: None, to: [3, 5] }),
    ([2, 3, 5, 33], Resizing { via: None, to: [12, 20] }),
    ([1, 9, 7, 3], Resizing { via: None, to: [4, 17] }),
    ([1, 8, 6, 150], Resizing { via: Some([32, 24]), to: [41, 19] }),
    ([2, 8, 6, 2], Resizing { via: Some([31, 21]), to: [9, 50] }),
    ([2, 1, 2, 5], Resizing { via: Some([1, 2]), to: [3, 7] }),
    ([1, 3, 3, 5], Resizing { via: Some([3, 7]), to: [2, 2] }),
    // Made smaller first.
    ([1, 9, 9, 4], Resizing { via: Some([5, 12]), to: [20, 20] }),
    // More than 65 535 pixels.
    ([1, 130, 130, 2], Resizing { via: Some([256, 256]), to: [259, 257] }),
];

#[test]
fn argmax_is_that_of_resized_logits() {
    for gpu in [&*GPU, &*OTHER] {
        for &(from, resizing) in CASES {
            let values = random(&mut Rng::new(11, 0), from.iter().product());
            let x = Tensor::from_slice(gpu, from, &values);
            let mut recorder = Recorder::new(gpu.profile());
            let words = predict::argmax(&mut recorder, &x, resizing);
            let kept = recorder.keep(&words, "words");
            run(gpu, &recorder);
            let got: Vec<u32> = kept.read_as(gpu).unwrap();
            let expected = resized_via(&exact(&values), from, resizing);
            let pixels = expected.chunks(from[3]);
            let got: Vec<u8> = bytemuck::pod_collect_to_vec(&got);
            for (at, (v, &got)) in pixels.clone().zip(&got).enumerate() {
                // Two that differ by less than rounding may go either way.
                let largest = v[usize::from(first_largest(v))];
                assert!(
                    largest - v[usize::from(got)] < 1e-6,
                    "{from:?} {resizing:?} [{at}]: {got}"
                );
            }
            assert!(got[pixels.len()..].iter().all(|&b| b == 0), "zeros at the end");
        }
    }
}

fn argmax(gpu: &Gpu, shape: [usize; 4], values: &[f32], resizing: Resizing) -> Vec<u32> {
    let x = Tensor::from_slice(gpu, shape, values);
    let mut recorder = Recorder::new(gpu.profile());
    let words = predict::argmax(&mut recorder, &x, resizing);
    let kept = recorder.keep(&words, "words");
    run(gpu, &recorder);
    kept.read_as(gpu).unwrap()
}

#[test]
fn the_first_of_equal_classes_wins_and_a_nan_leaves_none() {
    let values = [1.0, 1.0, 1.0, 0.0, 2.0, 2.0, -1.0, f32::NAN, 7.0, f32::NAN, -1.0, 5.0];
    assert_eq!(argmax(&GPU, [1, 2, 2, 3], &values, Resizing::to(2, 2)), pack(&[0, 1, 255, 255]));
    // Of those that are in different lanes of a vector, and far apart.
    let mut values = [0f32; 4 * 150];
    for (pixel, equal) in
        values.chunks_mut(150).zip([[3, 11, 149], [17, 18, 40], [9, 16, 8], [0; 3]])
    {
        for k in equal {
            pixel[k] = 2.0;
        }
    }
    values[450 + 140] = f32::NAN;
    values[450 + 3] = f32::INFINITY;
    assert_eq!(argmax(&GPU, [1, 2, 2, 150], &values, Resizing::to(2, 2)), pack(&[3, 17, 8, 255]));
    let zeros = [0f32; 12];
    assert_eq!(argmax(&GPU, [1, 2, 2, 3], &zeros, Resizing::to(4, 4)), [0; 4]);
}

#[test]
fn softmax_maps_add_up_mirrored_or_not() {
    for gpu in [&*GPU, &*OTHER] {
        for &(from, resizing) in CASES {
            let [batch, _, _, classes] = from;
            let [height, width] = resizing.to;
            let mut rng = Rng::new(12, 0);
            let values = [(); 2].map(|()| random(&mut rng, from.iter().product()));
            let sum = Tensor::pinned("sum", [batch, height, width, classes]);
            // What is in it before the first map must not count.
            sum.write(gpu, &vec![9f32; sum.shape().len()]).unwrap();
            let mut recorder = Recorder::new(gpu.profile());
            for (i, values) in values.iter().enumerate() {
                let x = Tensor::from_slice(gpu, from, values);
                let (mirror, first) = (i == 1, i == 0);
                predict::softmax_accumulate(&mut recorder, &x, resizing, 0, mirror, &sum, first);
            }
            run(gpu, &recorder);
            let maps = values.map(|v| resized_via(&exact(&v), from, resizing));
            let [straight, mirrored] =
                maps.map(|m| m.chunks(classes).map(softmax).collect::<Vec<_>>());
            let expected: Vec<f64> = (0..straight.len())
                .flat_map(|at| {
                    let other = at / width * width + width - 1 - at % width;
                    let both = straight[at].iter().zip(&mirrored[other]);
                    both.map(|(a, b)| a + b).collect::<Vec<_>>()
                })
                .collect();
            assert_close("sum", &sum.read(gpu).unwrap(), &expected, F32.forward);
        }
    }
}

#[test]
fn bands_of_a_map_are_its_rows() {
    let (from, resizing) = ([2, 6, 5, 21], Resizing::via([24, 20], 30, 27));
    let values = random(&mut Rng::new(13, 0), from.iter().product());
    let map = |first_row: usize, rows: usize| {
        let x = Tensor::from_slice(&GPU, from, &values);
        let sum = Tensor::pinned("sum", [2, rows, 27, 21]);
        let mut recorder = Recorder::new(GPU.profile());
        let r = &mut recorder;
        predict::softmax_accumulate(r, &x, resizing, first_row, true, &sum, true);
        run(&GPU, &recorder);
        sum.read(&GPU).unwrap()
    };
    let (whole, row) = (map(0, 30), 27 * 21);
    for (first_row, rows) in [(0, 8), (8, 1), (9, 21)] {
        let band = map(first_row, rows);
        for image in 0..2 {
            let expected = &whole[(image * 30 + first_row) * row..][..rows * row];
            assert_eq!(&band[image * rows * row..][..rows * row], expected);
        }
    }
}

fn confusion(gpu: &Gpu, classes: usize, predicted: &[u8], labels: &[u8], times: usize) -> Vec<u32> {
    let counts = Tensor::from_slice(gpu, [classes, classes], &vec![0u32; classes * classes]);
    let mut recorder = Recorder::new(gpu.profile());
    let (predicted_, labels_) = (on_device(gpu, predicted), on_device(gpu, labels));
    for _ in 0..times {
        predict::confusion(&mut recorder, &predicted_, &labels_, labels.len(), &counts);
    }
    run(gpu, &recorder);
    counts.read_as(gpu).unwrap()
}

#[test]
fn confusion_counts_pairs_of_classes() {
    for gpu in [&*GPU, &*OTHER] {
        // Not a multiple of four; more than 65 535 workgroups of 256 pixels.
        for (classes, len) in [(1, 1), (2, 7), (19, 1_001), (150, 70_003), (3, 65_536 * 256 + 5)] {
            let mut rng = Rng::new(14, 0);
            let mut draw = |len: usize| -> Vec<u8> {
                // Long runs as in real maps, some of no class.
                let mut labels = Vec::with_capacity(len);
                while labels.len() < len {
                    let label = rng.below(classes + 1);
                    let label = if label == classes { 255 } else { label as u8 };
                    labels.resize(len.min(labels.len() + 1 + rng.below(9)), label);
                }
                labels
            };
            let (predicted, labels) = (draw(len), draw(len));
            let mut expected = vec![0u32; classes * classes];
            for (&p, &l) in predicted.iter().zip(&labels) {
                if p != 255 && l != 255 {
                    expected[usize::from(l) * classes + usize::from(p)] += 2;
                }
            }
            assert_eq!(confusion(gpu, classes, &predicted, &labels, 2), expected, "{classes}");
        }
    }
}

#[test]
fn confusion_equals_the_reference() {
    let Some(fx) = Fixture::open("eval.miou") else { return };
    let classes = fx.config["classes"].as_u64().unwrap() as usize;
    let counts = confusion(&GPU, classes, &fx.labels("in.pred"), &fx.labels("in.label"), 1);
    let of = |i: usize, j: usize| counts[i * classes + j];
    let all = 0..classes;
    let intersect: Vec<u32> = all.clone().map(|c| of(c, c)).collect();
    let predicted: Vec<u32> = all.clone().map(|c| all.clone().map(|l| of(l, c)).sum()).collect();
    let labelled: Vec<u32> = all.clone().map(|c| all.clone().map(|p| of(c, p)).sum()).collect();
    fx.check_integers("out.area_intersect", &intersect);
    fx.check_integers("out.area_pred", &predicted);
    fx.check_integers("out.area_label", &labelled);
}

#[test]
fn windows_are_averaged_where_they_overlap() {
    let (batch, height, width, classes) = (2, 11, 23, 34);
    let windows: &[([usize; 2], [usize; 2])] =
        &[([0, 0], [8, 16]), ([0, 7], [8, 16]), ([3, 0], [8, 16]), ([3, 7], [8, 16])];
    for gpu in [&*GPU, &*OTHER] {
        let mut rng = Rng::new(15, 0);
        let mut recorder = Recorder::new(gpu.profile());
        let sum = ops::fill(&mut recorder, [batch, height, width, classes], 0.0);
        let hits = ops::fill(&mut recorder, [height, width], 0.0);
        let mut expected = vec![0f64; batch * height * width * classes];
        let mut counts = vec![0f64; height * width];
        for &([top, left], [h, w]) in windows {
            let from = [batch, h / 4, w / 4, classes];
            let values = random(&mut rng, from.iter().product());
            let x = Tensor::from_slice(gpu, from, &values);
            let r = &mut recorder;
            predict::window_accumulate(r, &x, [h, w], [top, left], &sum, &hits);
            let window = resized(&exact(&values), from, h, w);
            for (at, v) in window.iter().enumerate() {
                let (k, x, y) = (at % classes, at / classes % w, at / classes / w % h);
                let image = at / classes / w / h;
                let pixel = (top + y) * width + left + x;
                expected[(image * height * width + pixel) * classes + k] += v;
                if image == 0 && k == 0 {
                    counts[pixel] += 1.0;
                }
            }
        }
        for (at, v) in expected.iter_mut().enumerate() {
            *v /= counts[at / classes % (height * width)];
        }
        predict::divide_by_count(&mut recorder, &sum, &hits);
        let (sum, hits) = (recorder.keep(&sum, "sum"), recorder.keep(&hits, "hits"));
        run(gpu, &recorder);
        assert_close("hits", &hits.read(gpu).unwrap(), &counts, 0.0);
        assert_close("mean", &sum.read(gpu).unwrap(), &expected, F32.forward);
    }
}

/// A map of 150 classes that would not fit one binding needs none.
#[test]
fn predictions_of_full_resolution_need_no_map_of_all_classes() {
    let from = [1, 32, 32, 150];
    let values = random(&mut Rng::new(16, 0), from.iter().product());
    let once = argmax(&GPU, from, &values, Resizing::via([128, 128], 680, 520));
    assert_eq!(once.len(), 680 * 520 / 4);
    assert!(once.iter().any(|&word| word != once[0]));
}

#[test]
fn rows_of_a_map_suffice_for_rows_of_the_result() {
    for (height, goal) in [(24, 30), (24, 24), (30, 11), (7, 41), (1, 3)] {
        let values = random(&mut Rng::new(15, 0), height * 5 * 6);
        let part = |rows: std::ops::Range<usize>| predict::Part {
            tensor: Tensor::from_slice(
                &GPU,
                [1, rows.len(), 5, 6],
                &values[rows.start * 30..rows.end * 30],
            ),
            first: rows.start,
            height,
        };
        let resizing = Resizing::to(goal, 8);
        let classes = |part: predict::Part, rows: std::ops::Range<usize>| {
            let mut recorder = Recorder::new(GPU.profile());
            let words = predict::argmax_rows(&mut recorder, part, resizing, rows);
            let kept = recorder.keep(&words, "words");
            run(&GPU, &recorder);
            let bytes: Vec<u8> = bytemuck::pod_collect_to_vec(&kept.read_as::<u32>(&GPU).unwrap());
            bytes
        };
        let whole = classes(part(0..height), 0..goal);
        for rows in [0..1, 0..goal, goal / 2..goal, goal - 1..goal] {
            let from = predict::Part::rows_for(rows.clone(), height, goal);
            let got = classes(part(from), rows.clone());
            let expected = &whole[rows.start * 8..rows.end * 8];
            assert_eq!(&got[..expected.len()], expected, "{height} to {goal}, {rows:?}");
        }
    }
}

#[test]
fn windows_add_up_in_bands() {
    let (size, map) = ([6, 5], [14, 9]);
    let values = random(&mut Rng::new(16, 0), 2 * 2 * 3);
    let band = |first: usize, rows: usize| {
        let sum = Tensor::from_slice(&GPU, [1, rows, map[1], 3], &vec![0f32; rows * map[1] * 3]);
        let hits = Tensor::from_slice(&GPU, [rows, map[1]], &vec![0f32; rows * map[1]]);
        let x = Tensor::from_slice(&GPU, [1, 2, 2, 3], &values);
        let mut recorder = Recorder::new(GPU.profile());
        for top in [0, 4, 8] {
            if top < first + rows && first < top + size[0] {
                let r = &mut recorder;
                predict::window_accumulate_rows(r, &x, size, [top, 4], first, &sum, &hits);
            }
        }
        run(&GPU, &recorder);
        (sum.read(&GPU).unwrap(), hits.read(&GPU).unwrap())
    };
    let (sum, hits) = band(0, 14);
    for (first, rows) in [(0, 3), (3, 4), (5, 1), (7, 7)] {
        let (some, some_hits) = band(first, rows);
        assert_eq!(some, &sum[first * 27..][..rows * 27]);
        assert_eq!(some_hits, &hits[first * 9..][..rows * 9]);
    }
}
