use semask_gpu::ops;

use crate::support::{F32, Tolerance, check_op, normal_cdf};

/// `a` `[m, k]` by `b` `[k, n]`, read through index functions so that one loop serves transposes.
fn product(
    (m, k, n): (usize, usize, usize),
    a: impl Fn(usize, usize) -> f64,
    b: impl Fn(usize, usize) -> f64,
) -> Vec<f64> {
    let entry = |i: usize, j: usize| (0..k).map(|q| a(i, q) * b(q, j)).sum();
    (0..m * n).map(|at| entry(at / n, at % n)).collect()
}

fn linear(x: &[f64], weight: &[f64], inputs: usize, outputs: usize) -> Vec<f64> {
    let extents = (x.len() / inputs, inputs, outputs);
    product(extents, |r, i| x[r * inputs + i], |i, o| weight[o * inputs + i])
}

/// Rows, inputs, outputs around the tiles of all kernels: 16 × 32, of which odd outputs are stored otherwise,
/// in steps of 8, and 64 × 64 × 16.
const SHAPES: [(usize, usize, usize); 14] = [
    (1, 1, 1),
    (7, 5, 3),
    (8, 16, 32),
    (9, 17, 33),
    (15, 7, 31),
    (17, 2, 64),
    (63, 15, 65),
    (64, 64, 64),
    (65, 96, 31),
    (130, 33, 150),
    (49, 32, 49),
    (5, 24, 98),
    (18, 20, 34),
    (33, 40, 66),
];

#[test]
fn linear_is_x_times_the_transposed_weight() {
    for (rows, inputs, outputs) in SHAPES {
        check_op(
            &[&[rows, inputs], &[outputs, inputs], &[outputs]],
            F32,
            |tape, x| ops::linear(tape, &x[0], &x[1], Some(&x[2])),
            |x| {
                let y = linear(&x[0], &x[1], inputs, outputs);
                y.iter().enumerate().map(|(at, y)| y + x[2][at % outputs]).collect()
            },
        );
        check_op(
            &[&[rows, inputs], &[outputs, inputs]],
            F32,
            |tape, x| ops::linear(tape, &x[0], &x[1], None),
            |x| linear(&x[0], &x[1], inputs, outputs),
        );
    }
}

#[test]
fn rows_4_kib_apart_are_packed_first() {
    // Sums of a thousand products.
    let tolerance = Tolerance { forward: 2e-5, ..F32 };
    for (rows, inputs, outputs) in [(35, 1024, 65), (150, 1024, 66)] {
        check_op(
            &[&[rows, inputs], &[outputs, inputs]],
            tolerance,
            |tape, x| ops::linear(tape, &x[0], &x[1], None),
            |x| linear(&x[0], &x[1], inputs, outputs),
        );
    }
}

#[test]
fn many_rows_by_two_strips_at_a_time() {
    // From 128 tiles of 16 × 32 on, where the strips are an even number.
    for (rows, inputs, outputs) in [(1_030, 16, 128), (1_030, 12, 114), (1_030, 8, 127)] {
        check_op(
            &[&[rows, inputs], &[outputs, inputs]],
            F32,
            |tape, x| ops::linear(tape, &x[0], &x[1], None),
            |x| linear(&x[0], &x[1], inputs, outputs),
        );
    }
}

#[test]
fn a_weight_gradient_over_many_rows_is_split_and_added_up() {
    // Beyond 65 535 rows; 2 × 3 outputs make 128 splits.
    for (rows, inputs) in [(2_048, 3), (5_000, 3), (5_000, 4), (65_537, 3)] {
        check_op(
            &[&[rows, inputs], &[2, inputs]],
            F32,
            |tape, x| ops::linear(tape, &x[0], &x[1], None),
            |x| linear(&x[0], &x[1], inputs, 2),
        );
    }
}

#[test]
fn the_gelu_epilogue_equals_the_two_ops() {
    for (rows, inputs, outputs) in [(9, 17, 33), (65, 16, 64)] {
        check_op(
            &[&[rows, inputs], &[outputs, inputs], &[outputs]],
            F32,
            |tape, x| ops::linear_gelu(tape, &x[0], &x[1], &x[2]),
            |x| {
                let y = linear(&x[0], &x[1], inputs, outputs);
                let y = y.iter().enumerate().map(|(at, y)| y + x[2][at % outputs]);
                y.map(|v| v * normal_cdf(v)).collect()
            },
        );
    }
}

#[test]
fn the_residual_epilogue_scales_each_sample_and_adds() {
    for (batch, rows, inputs, outputs) in [(3, 5, 7, 33), (3, 7, 8, 34)] {
        check_op(
            &[&[batch, rows, inputs], &[outputs, inputs], &[outputs], &[batch, rows, outputs]],
            F32,
            |tape, x| {
                // Halves every sample: a fixed factor stands in for the drawn one.
                let keep = ops::fill(tape.recorder(), [batch], 0.5);
                ops::linear_residual(tape, &x[0], &x[1], &x[2], &x[3], Some(&keep))
            },
            |x| {
                let y = linear(&x[0], &x[1], inputs, outputs);
                let y =
                    y.iter().enumerate().map(|(at, y)| 0.5 * (y + x[2][at % outputs]) + x[3][at]);
                y.collect()
            },
        );
    }
}

#[test]
fn batched_products_take_either_factor_transposed() {
    for (batch, m, k, n) in [
        (1, 1, 1, 1),
        (3, 5, 7, 33),
        (2, 49, 19, 49),
        (2, 65, 20, 9),
        (2, 18, 24, 34),
        (3, 7, 10, 20),
    ] {
        for (ta, tb) in [(false, false), (false, true), (true, false), (true, true)] {
            let a_shape = if ta { [batch, k, m] } else { [batch, m, k] };
            let b_shape = if tb { [batch, n, k] } else { [batch, k, n] };
            check_op(
                &[&a_shape, &b_shape],
                F32,
                |tape, x| ops::matmul(tape, &x[0], &x[1], (ta, tb)),
                |x| {
                    let one = |i: usize| {
                        let (a, b) = (&x[0][i * m * k..], &x[1][i * k * n..]);
                        product(
                            (m, k, n),
                            |r, q| if ta { a[q * m + r] } else { a[r * k + q] },
                            |q, c| if tb { b[c * k + q] } else { b[q * n + c] },
                        )
                    };
                    (0..batch).flat_map(one).collect()
                },
            );
        }
    }
}
