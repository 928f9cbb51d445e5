use semask_gpu::ops::{BatchNorm, Running};
use semask_gpu::random::Rng;
use semask_gpu::{Tape, Tensor, ops};

use crate::support::{
    F32, GPU, OTHER, Tolerance, assert_close, check_op, check_op_at, forward, random, run,
};

const OPTIONS: BatchNorm = BatchNorm { eps: 1e-5, momentum: 0.1, relu: false };

/// Mean and M2 (sum of squared deviations) of each channel.
fn statistics(x: &[f64], channels: usize) -> Vec<(f64, f64)> {
    let n = (x.len() / channels) as f64;
    let of_channel = |c: usize| {
        let column = || x.iter().skip(c).step_by(channels);
        let mean = column().sum::<f64>() / n;
        (mean, column().map(|v| (v - mean).powi(2)).sum())
    };
    (0..channels).map(of_channel).collect()
}

fn reference(inputs: &[Vec<f64>], relu: bool) -> Vec<f64> {
    let [x, weight, bias] = inputs else { unreachable!() };
    let channels = weight.len();
    let n = (x.len() / channels) as f64;
    let stats = statistics(x, channels);
    let normalised = x.iter().enumerate().map(|(at, v)| {
        let c = at % channels;
        let (mean, m2) = stats[c];
        (v - mean) / (m2 / n + 1e-5).sqrt() * weight[c] + bias[c]
    });
    normalised.map(|v| if relu { v.max(0.0) } else { v }).collect()
}

fn op(tape: &mut Tape, x: &[Tensor], relu: bool) -> Tensor {
    let channels = x[0].shape().last();
    let running = [0; 2].map(|_| Tensor::pinned("running", [channels]));
    let running = Running { mean: &running[0], var: &running[1] };
    ops::batch_norm(tape, &x[0], &x[1], &x[2], running, BatchNorm { relu, ..OPTIONS })
}

fn check(shape: &[usize], relu: bool) {
    let channels = *shape.last().unwrap();
    check_op(
        &[shape, &[channels], &[channels]],
        F32,
        |tape, x| op(tape, x, relu),
        |x| reference(x, relu),
    );
}

#[test]
fn rows_and_channels_around_parts_and_workgroups() {
    // Not 2 rows: there the gradient of x cancels down to what eps leaves.
    for shape in [[1, 1, 1, 1], [1, 3, 1, 5], [1, 9, 7, 64], [2, 5, 13, 65], [3, 5, 43, 33]] {
        check(&shape, false);
    }
    check(&[7, 3], false);
    check(&[17, 256], false);
    // Even channels in lanes: blocks of 16 that are not full, and slices of up to 256.
    for (rows, channels) in [(31, 2), (32, 18), (33, 66), (65, 290)] {
        check(&[rows, channels], false);
    }
}

#[test]
fn more_than_65_535_rows() {
    check(&[70_001, 2], false);
}

#[test]
fn relu_stops_gradients_of_what_it_cut() {
    // Small, so that no probe of the finite differences crosses the kink.
    check(&[1, 5, 3, 3], true);
    check(&[1, 9, 8, 2], true);
}

#[test]
fn a_mean_far_above_the_deviation_loses_nothing() {
    let mut rng = Rng::new(3, 0);
    let mut values = vec![random(&mut rng, 500 * 3), random(&mut rng, 3), random(&mut rng, 3)];
    values[0].iter_mut().for_each(|v| *v += 1000.0);
    // Half a unit in the last place of the mean, in deviations.
    let tolerance = Tolerance { forward: 5e-5, backward: 5e-4 };
    let shapes: [&[usize]; 3] = [&[500, 3], &[3], &[3]];
    check_op_at(&shapes, &values, tolerance, |tape, x| op(tape, x, false), |x| reference(x, false));
}

#[test]
fn training_moves_the_running_statistics_and_inference_uses_them() {
    for gpu in [&*GPU, &*OTHER] {
        for rows in [1, 2, 700] {
            let channels = 67;
            let values = random(&mut Rng::new(5, rows as u64), rows * channels);
            let x = Tensor::from_slice(gpu, [rows, channels], &values);
            let ones = Tensor::from_slice(gpu, [channels], &vec![1f32; channels]);
            let zeros = Tensor::from_slice(gpu, [channels], &vec![0f32; channels]);
            let mean = Tensor::from_slice(gpu, [channels], &vec![0.5f32; channels]);
            let var = Tensor::from_slice(gpu, [channels], &vec![2f32; channels]);
            let running = Running { mean: &mean, var: &var };

            let mut tape = Tape::training(gpu.profile());
            ops::batch_norm(&mut tape, &x, &ones, &zeros, running, OPTIONS);
            run(gpu, &tape.finish());
            let exact: Vec<f64> = values.iter().map(|&v| v.into()).collect();
            let stats = statistics(&exact, channels);
            let unbiased = |m2: f64| m2 / (rows.max(2) - 1) as f64;
            let new_mean: Vec<_> = stats.iter().map(|s| 0.9 * 0.5 + 0.1 * s.0).collect();
            let new_var: Vec<_> = stats.iter().map(|s| 0.9 * 2.0 + 0.1 * unbiased(s.1)).collect();
            assert_close("running mean", &mean.read(gpu).unwrap(), &new_mean, 1e-6);
            assert_close("running var", &var.read(gpu).unwrap(), &new_var, 1e-6);

            let relu = BatchNorm { relu: true, ..OPTIONS };
            let y = forward(gpu, |tape| ops::batch_norm(tape, &x, &ones, &zeros, running, relu));
            let expected = exact.iter().enumerate().map(|(at, v)| {
                let c = at % channels;
                ((v - new_mean[c]) / (new_var[c] + 1e-5).sqrt()).max(0.0)
            });
            assert_close("y", &y, &expected.collect::<Vec<_>>(), F32.forward);
            assert_close("unchanged", &mean.read(gpu).unwrap(), &new_mean, 1e-6);
        }
    }
}

#[test]
fn a_nan_is_not_hidden() {
    for gpu in [&*GPU, &*OTHER] {
        let x = Tensor::from_slice(gpu, [3, 1], &[1.0, f32::NAN, 2.0]);
        let one = Tensor::from_slice(gpu, [1], &[1f32]);
        let [mean, var] = [0; 2].map(|_| Tensor::pinned("running", [1]));
        let running = Running { mean: &mean, var: &var };
        let y = forward(gpu, |tape| {
            let relu = BatchNorm { relu: true, ..OPTIONS };
            ops::batch_norm(tape, &x, &one, &one, running, relu)
        });
        assert!(y[1].is_nan(), "{y:?}");
    }
}
