use semask_gpu::{Tape, Tensor, ops};

use crate::support::{F32, Tolerance, check_op, normal_cdf};

/// Sizes around the 256 elements of a workgroup, and beyond 65 535 workgroups.
const SIZES: [usize; 7] = [1, 3, 255, 256, 257, 1000, 65_535 * 256 + 77];

fn check(op: fn(&mut Tape, &Tensor) -> Tensor, reference: fn(f64) -> f64, tolerance: Tolerance) {
    for size in &SIZES[..6] {
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
    use crate::support::{GPU, forward};
    let y = forward(&GPU, |tape| ops::fill(tape.recorder(), [SIZES[6]], 3.0));
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
