use semask_gpu::ops;

use crate::support::{F32, Tolerance, check_op};

const EPS: f64 = 1e-5;

fn reference(inputs: &[Vec<f64>]) -> Vec<f64> {
    let [x, weight, bias] = inputs else { unreachable!() };
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks(weight.len()) {
        let n = row.len() as f64;
        let mean = row.iter().sum::<f64>() / n;
        let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        let scaled = row.iter().map(|v| (v - mean) / (variance + EPS).sqrt());
        y.extend(scaled.zip(weight).zip(bias).map(|((v, w), b)| v * w + b));
    }
    y
}

fn check(shape: &[usize], tolerance: Tolerance) {
    let channels = *shape.last().unwrap();
    check_op(
        &[shape, &[channels], &[channels]],
        tolerance,
        |tape, x| ops::layer_norm(tape, &x[0], &x[1], &x[2], EPS as f32),
        reference,
    );
}

#[test]
fn widths_around_the_workgroup_size() {
    // Not 2: there the gradient of x cancels down to what eps leaves, below f32's resolution.
    for channels in [1, 3, 7, 8, 9, 63, 64, 65, 96, 255, 256, 257, 1536] {
        check(&[2, channels], F32);
    }
}

#[test]
fn rows_around_a_part_and_beyond_65_535() {
    for rows in [1, 255, 256, 257] {
        check(&[rows, 5], F32);
    }
    // Parts of 4 to 64 rows on CPU drivers, where lanes share a row evenly: one block to a row, and two.
    for rows in [1, 3, 4, 5, 1025] {
        check(&[rows, 32], F32);
        check(&[rows, 192], F32);
    }
    // Sums over that many rows; and among so many rows of three some are nearly constant, where
    // 1 / std magnifies the rounding of x - mean.
    check(&[65_543, 3], Tolerance { forward: 2e-5, backward: 1e-3 });
}
