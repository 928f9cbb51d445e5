use semask_gpu::ops;

use crate::support::{F32, assert_close, check_op, forward};

fn reference(x: &[f64], channels: usize) -> Vec<f64> {
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks(channels) {
        let sum: f64 = row.iter().map(|v| v.exp()).sum();
        y.extend(row.iter().map(|v| v.exp() / sum));
    }
    y
}

#[test]
fn widths_around_the_workgroup_size() {
    // A CPU driver's subgroup takes eight rows at a time, or in lanes eight times two, and holds up to 128 channels.
    for (rows, channels) in [
        (2, 1),
        (3, 7),
        (7, 8),
        (8, 9),
        (9, 49),
        (18, 49),
        (34, 16),
        (3, 64),
        (2, 127),
        (2, 128),
        (2, 129),
        (2, 257),
        (65_600, 2),
    ] {
        check_op(
            &[&[rows, channels]],
            F32,
            |tape, x| ops::softmax(tape, &x[0]),
            |x| reference(&x[0], channels),
        );
    }
}

#[test]
fn large_scores_do_not_overflow() {
    use semask_gpu::Tensor;

    use crate::support::{GPU, OTHER};
    for gpu in [&*GPU, &*OTHER] {
        let x = Tensor::from_slice(gpu, [2, 3], &[1e4f32, 1e4, -1e4, -3e38, -3e38, -3e38]);
        let y = forward(gpu, |tape| ops::softmax(tape, &x));
        let third = 1.0 / 3.0;
        assert_close("softmax", &y, &[0.5, 0.5, 0.0, third, third, third], 1e-6);
    }
}
