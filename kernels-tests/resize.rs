use semask_gpu::{Tape, Tensor, ops};

use crate::fixtures::{Fixture, nchw_to_nhwc};
use crate::support::{F32, GPU, OTHER, Tolerance, check_op, run};

/// Two taps of every output pixel and the weight of the second.
pub(crate) fn taps(size: usize, goal: usize) -> Vec<(usize, usize, f64)> {
    let tap = |d: usize| {
        let s = ((d as f64 + 0.5) * size as f64 / goal as f64 - 0.5).max(0.0);
        let near = (s.floor() as usize).min(size - 1);
        (near, (near + 1).min(size - 1), s - near as f64)
    };
    (0..goal).map(tap).collect()
}

/// Bilinear resizing of `[B, h, w, C]`.
pub(crate) fn reference(x: &[f64], from: [usize; 4], height: usize, width: usize) -> Vec<f64> {
    reference_at(x, from, &taps(from[1], height), &taps(from[2], width))
}

pub(crate) fn reference_at(
    x: &[f64],
    [batch, h, w, channels]: [usize; 4],
    rows: &[(usize, usize, f64)],
    columns: &[(usize, usize, f64)],
) -> Vec<f64> {
    let mut y = Vec::with_capacity(batch * rows.len() * columns.len() * channels);
    for image in x.chunks(h * w * channels).take(batch) {
        for &(y0, y1, fy) in rows {
            for &(x0, x1, fx) in columns {
                for c in 0..channels {
                    let at = |y: usize, x: usize| image[(y * w + x) * channels + c];
                    let top = at(y0, x0) * (1.0 - fx) + at(y0, x1) * fx;
                    let bottom = at(y1, x0) * (1.0 - fx) + at(y1, x1) * fx;
                    y.push(top * (1.0 - fy) + bottom * fy);
                }
            }
        }
    }
    y
}

fn check(from: [usize; 4], height: usize, width: usize) {
    check_op(
        &[&from],
        F32,
        |tape, x| ops::resize(tape, &x[0], height, width),
        |x| reference(&x[0], from, height, width),
    );
}

#[test]
fn every_pixel_lies_between_its_four_neighbours() {
    check([1, 1, 1, 1], 1, 1);
    check([2, 1, 1, 3], 5, 4);
    check([1, 5, 7, 1], 1, 1);
    // 31 to 33 channels and 15 to 17 columns around a workgroup.
    check([2, 4, 8, 31], 7, 16);
    check([1, 3, 17, 32], 6, 34);
    check([1, 3, 15, 33], 7, 15);
    // Odd on the way up and down, and both at once.
    check([1, 10, 20, 2], 19, 39);
    check([1, 19, 37, 5], 10, 18);
    check([1, 40, 3, 4], 7, 50);
}

/// As in every head.
#[test]
fn twice_the_size() {
    check([2, 1, 1, 1], 2, 2);
    // Blocks of 16 columns on the way up, of 4 × 2 or 4 × 8 on the way back; in lanes, slices of 16 channels.
    check([2, 3, 15, 8], 6, 30);
    check([1, 4, 16, 7], 8, 32);
    check([1, 5, 17, 9], 10, 34);
    check([1, 8, 2, 33], 16, 4);
    check([2, 1, 1, 2], 2, 2);
    check([1, 5, 9, 16], 10, 18);
    check([2, 4, 17, 18], 8, 34);
    // Other weights as soon as one side differs.
    check([1, 3, 4, 5], 6, 7);
    check([1, 3, 4, 5], 7, 8);
}

#[test]
fn more_than_65_535_rows_are_resized() {
    check([3, 11_000, 2, 1], 22_000, 4);
    check([1, 3, 1, 1], 32_767, 1);
    check([3, 2, 1, 2], 22_000, 2);
    // Workgroups beyond 65 535 both ways.
    check([3, 22_000, 2, 1], 11_001, 3);
}

#[test]
fn the_same_size_is_the_same_tensor() {
    let x = Tensor::from_slice(&GPU, [1, 2, 3, 4], &[0f32; 24]);
    let mut tape = Tape::inference(GPU.profile());
    assert_eq!(ops::resize(&mut tape, &x, 2, 3).id(), x.id());
}

#[test]
fn resize_add_is_resize_and_add() {
    for (from, goal) in [
        ([2, 5, 4, 19], [10, 7]),
        ([1, 3, 3, 2], [3, 3]),
        ([1, 4, 9, 33], [3, 4]),
        ([2, 3, 17, 9], [6, 34]),
        ([2, 3, 17, 18], [6, 34]),
    ] {
        let [batch, _, _, channels] = from;
        check_op(
            &[&from, &[batch, goal[0], goal[1], channels]],
            F32,
            |tape, x| ops::resize_add(tape, &x[0], &x[1]),
            |x| {
                let y = reference(&x[0], from, goal[0], goal[1]);
                y.iter().zip(&x[1]).map(|(y, other)| y + other).collect()
            },
        );
    }
}

/// Two taps of every output pixel, and the weight of the second, when corners stay where they are.
pub(crate) fn corner_taps(size: usize, goal: usize) -> Vec<(usize, usize, f64)> {
    let tap = |d: usize| {
        // In whole numbers, or rounding decides where a pixel meets one of the other map.
        let (n, unit) = (d * (size - 1), (goal - 1).max(1));
        (n / unit, (n / unit + 1).min(size - 1), (n % unit) as f64 / unit as f64)
    };
    (0..goal).map(tap).collect()
}

fn check_corners(from: [usize; 4], height: usize, width: usize) {
    let reference = |x: &[f64]| {
        let (rows, columns) = (corner_taps(from[1], height), corner_taps(from[2], width));
        reference_at(x, from, &rows, &columns)
    };
    check_op(
        &[&from],
        F32,
        |tape, x| ops::resize_corners(tape, &x[0], height, width),
        |x| reference(&x[0]),
    );
    let goal = [from[0], height, width, from[3]];
    check_op(
        &[&from, &goal],
        F32,
        |tape, x| ops::resize_corners_add(tape, &x[0], &x[1]),
        |x| reference(&x[0]).iter().zip(&x[1]).map(|(y, other)| y + other).collect(),
    );
}

#[test]
fn corners_stay_where_they_are() {
    check_corners([1, 1, 1, 1], 2, 3);
    check_corners([2, 3, 5, 3], 1, 1);
    check_corners([1, 1, 4, 2], 3, 1);
    // Twice and four times as large, as in the semantic branch.
    check_corners([2, 4, 8, 31], 8, 16);
    check_corners([1, 5, 3, 33], 20, 12);
    check_corners([1, 3, 17, 32], 6, 34);
    // Odd on the way up and down, and both at once.
    check_corners([1, 10, 20, 2], 19, 39);
    check_corners([1, 19, 37, 5], 10, 18);
    check_corners([1, 40, 3, 4], 7, 50);
}

#[test]
fn a_nan_stays_visible() {
    let mut values = [1f32; 12];
    values[7] = f32::NAN;
    let x = Tensor::from_slice(&GPU, [1, 4, 3, 1], &values);
    let y = crate::support::forward(&GPU, |tape| ops::resize(tape, &x, 8, 6));
    assert!(y.iter().any(|v| v.is_nan()));
}

#[test]
fn resize_equals_torch() {
    let Some(fx) = Fixture::open("block.resize") else { return };
    for gpu in [&*GPU, &*OTHER] {
        for case in ["up2", "odd", "down", "same"] {
            let out = format!("out.{case}");
            let [b, c, h, w]: [usize; 4] = fx.shape(&out).try_into().unwrap();
            let x = fx.image(gpu, "in.x").tracked();
            let mut tape = Tape::training(gpu.profile());
            let y = ops::resize(&mut tape, &x, h, w);
            // Of the same size it is the input, which needs no tape.
            let y = ops::scale(&mut tape, &y, 1.0);
            let dy: Vec<f32> =
                (0..b * c * h * w).map(|n| ((7 * n % 32) as f32 - 15.5) / 16.0).collect();
            let dy = Tensor::from_slice(gpu, [b, h, w, c], &nchw_to_nhwc(&dy, [b, c, h, w]));
            let kept = tape.recorder().keep(&y, "y");
            let (mut recorder, grads) = tape.backward_from(&[(&y, dy)]);
            let dx = recorder.keep(grads.get(&x).unwrap(), "dx");
            run(gpu, &recorder);
            fx.check_image(&out, &kept.read(gpu).unwrap());
            fx.check_image(&format!("gin.{case}"), &dx.read(gpu).unwrap());
        }
    }
}

/// A resized constant is that constant, and a gradient of ones adds up to the number of pixels.
#[test]
fn weights_of_a_pixel_add_up_to_1() {
    let loose = Tolerance { forward: 1e-6, ..F32 };
    for (size, goal) in [(7, 19), (133, 512), (97, 31)] {
        let x = Tensor::from_slice(&GPU, [1, size, size, 1], &vec![1f32; size * size]).tracked();
        let mut tape = Tape::training(GPU.profile());
        let y = ops::resize(&mut tape, &x, goal, goal);
        let ones = Tensor::from_slice(&GPU, [1, goal, goal, 1], &vec![1f32; goal * goal]);
        let kept = tape.recorder().keep(&y, "y");
        let (mut recorder, grads) = tape.backward_from(&[(&y, ones)]);
        let dx = recorder.keep(grads.get(&x).unwrap(), "dx");
        run(&GPU, &recorder);
        let off = |v: &f32| f64::from((v - 1.0).abs()) <= loose.forward;
        assert!(kept.read(&GPU).unwrap().iter().all(off));
        let sum: f64 = dx.read(&GPU).unwrap().iter().map(|&v| f64::from(v)).sum();
        assert!((sum / (goal * goal) as f64 - 1.0).abs() < 1e-6, "{size} → {goal}: {sum}");
    }
}
