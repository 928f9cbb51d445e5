use semask_gpu::{Tape, Tensor, ops};

use crate::support::{F32, GPU, OTHER, Tolerance, check_op, normal_cdf, run};

/// Sizes around the 256 elements of a workgroup, even and odd, and beyond 65 535 workgroups.
const SIZES: [usize; 9] = [1, 2, 255, 256, 257, 258, 510, 1000, 65_535 * 256 + 77];

fn check(op: fn(&mut Tape, &Tensor) -> Tensor, reference: fn(f64) -> f64, tolerance: Tolerance) {
    for size in &SIZES[..8] {
        check_op(
            &[&[*size]],
            tolerance,
            |tape, x| op(tape, &x[0]),
            |x| x[0].iter().copied().map(reference).collect(),
        );
    }
}

#[test]
fn gelu_is_the_exact_form() {
    // 1.5e-7 is the error of the polynomial, and of 1 - that near 1.
    check(ops::gelu, |v| v * normal_cdf(v), Tolerance { forward: 1e-6, ..F32 });
}

#[test]
fn all_kernels_give_the_same_bits_of_gelu() {
    let values: Vec<f32> = (0..600).map(|i| (i as f32 - 300.0) / 40.0).collect();
    let both = |gpu| {
        let x = Tensor::from_slice(gpu, [600], &values).tracked();
        let mut tape = Tape::training(gpu.profile());
        let y = ops::gelu(&mut tape, &x);
        let y_kept = tape.recorder().keep(&y, "y");
        let dy = Tensor::from_slice(gpu, [600], &[0.7f32; 600]);
        let (mut recorder, gradients) = tape.backward_from(&[(&y, dy)]);
        let dx_kept = recorder.keep(gradients.get(&x).unwrap(), "dx");
        run(gpu, &recorder);
        [y_kept, dx_kept].map(|kept| kept.read(gpu).unwrap())
    };
    assert_eq!(both(&GPU), both(&OTHER));
}

#[test]
fn relu_passes_what_is_above_0() {
    check(ops::relu, |v| v.max(0.0), F32);
}

#[test]
fn scale_multiplies() {
    check(|tape, x| ops::scale(tape, x, -1.5), |v| -1.5 * v, F32);
}

#[test]
fn a_tensor_used_twice_gets_both_gradients() {
    check(|tape, x| ops::add(tape, x, x), |v| 2.0 * v, F32);
    check(
        |tape, x| {
            let double = ops::scale(tape, x, 2.0);
            let sum = ops::add(tape, &double, x);
            ops::add(tape, &sum, &double)
        },
        |v| 5.0 * v,
        F32,
    );
}

#[test]
fn more_than_65_535_workgroups_reach_the_last_element() {
    use crate::support::forward;
    let y = forward(&GPU, |tape| ops::fill(tape.recorder(), [SIZES[8]], 3.0));
    assert!(y.iter().all(|&v| v == 3.0));
}

#[test]
fn a_bias_is_added_to_every_row() {
    for (rows, channels) in [(1, 1), (3, 5), (70_001, 3), (2, 256), (5, 257)] {
        check_op(
            &[&[rows, channels], &[channels]],
            F32,
            |tape, t| ops::add_bias(tape, &t[0], &t[1]),
            |t| t[0].iter().enumerate().map(|(i, v)| v + t[1][i % channels]).collect(),
        );
    }
}
