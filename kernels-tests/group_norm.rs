use semask_gpu::ops::{self, GroupNorm};
use semask_gpu::random::Rng;

use crate::support::{F32, Tolerance, check_op, check_op_at, random};

fn reference(inputs: &[Vec<f64>], images: usize, groups: usize, relu: bool) -> Vec<f64> {
    let [x, weight, bias] = inputs else { unreachable!() };
    let channels = weight.len();
    let group = |at: usize| at % channels / (channels / groups);
    let mut y = Vec::new();
    for image in x.chunks(x.len() / images) {
        let n = (image.len() / groups) as f64;
        let over = |f: &dyn Fn(usize, f64) -> f64| {
            let mut sums = vec![0.0; groups];
            image.iter().enumerate().for_each(|(at, v)| sums[group(at)] += f(at, *v) / n);
            sums
        };
        let mean = over(&|_, v| v);
        let variance = over(&|at, v| (v - mean[group(at)]).powi(2));
        y.extend(image.iter().enumerate().map(|(at, v)| {
            let (g, c) = (group(at), at % channels);
            let v = (v - mean[g]) / (variance[g] + 1e-5).sqrt() * weight[c] + bias[c];
            if relu { v.max(0.0) } else { v }
        }));
    }
    y
}

fn check(shape: &[usize], groups: usize, relu: bool) {
    let channels = *shape.last().unwrap();
    check_op(
        &[shape, &[channels], &[channels]],
        F32,
        |tape, t| {
            let options = GroupNorm { groups, relu, ..GroupNorm::default() };
            ops::group_norm(tape, &t[0], &t[1], &t[2], options)
        },
        |t| reference(t, shape[0], groups, relu),
    );
}

#[test]
fn images_and_groups_of_any_size() {
    for (shape, groups) in [
        ([1, 1, 1, 6], 2),
        ([2, 1, 3, 1], 1),
        ([2, 3, 5, 8], 8),
        ([3, 2, 2, 63], 7),
        ([2, 3, 1, 64], 32),
        ([1, 2, 3, 65], 5),
        ([2, 3, 3, 256], 32),
        // Pairs whose channels are of two groups; blocks of 16 that are not full; two slices.
        ([2, 5, 7, 6], 2),
        ([2, 3, 11, 34], 34),
        ([2, 1, 3, 290], 29),
    ] {
        check(&shape, groups, false);
    }
}

#[test]
fn pixels_around_parts() {
    // Parts of sums have 32 pixels up to 2048, then more; those of the rest 16.
    for pixels in [15, 16, 17, 31, 32, 33, 64, 65, 2049] {
        check(&[2, pixels, 4], 2, false);
    }
    check(&[1, 65_543, 2], 1, false);
}

#[test]
fn with_relu() {
    check(&[2, 5, 7, 64], 32, true);
}

#[test]
fn a_mean_far_above_the_deviation_does_not_cancel() {
    let shape = [2, 40, 40, 4];
    let mut rng = Rng::new(3, 0);
    let mut values: Vec<Vec<f32>> = [2 * 40 * 40 * 4, 4, 4].map(|n| random(&mut rng, n)).into();
    values[0].iter_mut().for_each(|v| *v += 1000.0);
    check_op_at(
        &[&shape, &[4], &[4]],
        &values,
        // x itself has 2⁻¹⁴ of its deviation.
        Tolerance { forward: 1e-4, backward: 1e-3 },
        |tape, t| {
            let options = GroupNorm { groups: 2, ..GroupNorm::default() };
            ops::group_norm(tape, &t[0], &t[1], &t[2], options)
        },
        |t| reference(t, 2, 2, false),
    );
}
