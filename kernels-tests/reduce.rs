use semask_gpu::ops;

use crate::support::{F32, check_op};

#[test]
fn a_bias_gradient_is_the_sum_of_all_rows() {
    // One, two and three levels of parts of 256 rows.
    for rows in [1, 255, 256, 257, 70_000] {
        check_op(
            &[&[rows, 1], &[65, 1], &[65]],
            F32,
            |tape, x| ops::linear(tape, &x[0], &x[1], Some(&x[2])),
            |x| {
                let entry = |at: usize| x[0][at / 65] * x[1][at % 65] + x[2][at % 65];
                (0..rows * 65).map(entry).collect()
            },
        );
    }
}
