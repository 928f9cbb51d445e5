use semask_gpu::ops;

use crate::support::{F32, check_op};

fn reference(x: &[f64], weight: &[f64], [b, h, w, i]: [usize; 4], o: usize) -> Vec<f64> {
    let mut y = vec![0.0; b * h * w * o];
    for (pixel, y) in y.chunks_mut(o).enumerate() {
        let (row, col) = (pixel / w % h, pixel % w);
        for tap in 0..9 {
            let (down, across) = (row + tap / 3, col + tap % 3);
            if down == 0 || down > h || across == 0 || across > w {
                continue;
            }
            let from = ((pixel / w / h * h + down - 1) * w + across - 1) * i;
            for (out, y) in y.iter_mut().enumerate() {
                for c in 0..i {
                    *y += x[from + c] * weight[(out * i + c) * 9 + tap];
                }
            }
        }
    }
    y
}

fn check(x: [usize; 4], outputs: usize) {
    check_op(
        &[&x, &[outputs, x[3], 3, 3]],
        F32,
        |tape, t| ops::conv3x3(tape, &t[0], &t[1]),
        |t| reference(&t[0], &t[1], x, outputs),
    );
}

#[test]
fn maps_of_any_size_have_zeros_around_them() {
    for map in [[1, 1, 1, 1], [2, 1, 1, 3], [1, 1, 9, 2], [1, 9, 1, 2], [2, 5, 7, 3], [3, 8, 8, 4]]
    {
        check(map, 3);
        check(map, 4);
    }
}

#[test]
fn channels_around_the_tiles_of_both_kernels() {
    // 16 × 32, where both are even also another one, and 64 × 64 × 16.
    for (inputs, outputs) in
        [(1, 33), (33, 1), (31, 32), (32, 65), (17, 8), (64, 17), (2, 34), (66, 16), (34, 30)]
    {
        check([1, 5, 13, inputs], outputs);
    }
}

#[test]
fn the_width_of_the_head() {
    // Nine taps of 256 channels.
    check([1, 3, 3, 256], 256);
}

#[test]
fn a_weight_gradient_over_many_pixels_is_split_and_added_up() {
    // 2, 2, 4 and 137 parts; the last with more than 65 535 pixels.
    check([1, 33, 32, 3], 2);
    check([1, 33, 32, 4], 2);
    check([5, 3, 139, 1], 3);
    check([2, 137, 257, 1], 1);
}
