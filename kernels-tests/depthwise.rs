use semask_gpu::ops;

use crate::support::{F32, check_op};

fn reference(inputs: &[Vec<f64>], [b, h, w, c]: [usize; 4]) -> Vec<f64> {
    let [x, weight, bias] = inputs else { unreachable!() };
    let mut y = Vec::with_capacity(x.len());
    for place in 0..b * h * w {
        let (image, i, j) = (place / (h * w), place / w % h, place % w);
        for ch in 0..c {
            let mut sum = bias[ch];
            for tap in 0..9 {
                // One more than the row and the column.
                let (row, col) = (i + tap / 3, j + tap % 3);
                if (1..=h).contains(&row) && (1..=w).contains(&col) {
                    let from = ((image * h + row - 1) * w + col - 1) * c + ch;
                    sum += weight[ch * 9 + tap] * x[from];
                }
            }
            y.push(sum);
        }
    }
    y
}

fn check(shape: [usize; 4]) {
    let c = shape[3];
    check_op(
        &[&shape, &[c, 1, 3, 3], &[c]],
        F32,
        |tape, t| ops::depthwise_conv3x3(tape, &t[0], &t[1], &t[2]),
        |t| reference(t, shape),
    );
}

#[test]
fn maps_of_any_size_have_zeros_around_them() {
    for shape in [[1, 1, 1, 1], [1, 1, 5, 2], [1, 5, 1, 2], [2, 3, 4, 3], [3, 2, 2, 1]] {
        check(shape);
    }
}

#[test]
fn lines_around_the_run_and_channels_around_the_workgroup() {
    for (width, channels) in
        [(15, 1), (16, 2), (17, 1), (33, 3), (2, 63), (3, 64), (2, 65), (1, 130)]
    {
        check([1, 2, width, channels]);
    }
    // Even channels go by runs of 32 and blocks of four lines.
    for shape in [[1, 4, 31, 2], [2, 5, 33, 2], [1, 3, 66, 18]] {
        check(shape);
    }
}

#[test]
fn a_weight_gradient_over_many_lines_is_split_and_added_up() {
    // 63, 64 and 65 lines around the number of parts; more than 65 535 lines.
    for shape in [[1, 63, 2, 2], [2, 32, 2, 2], [1, 65, 3, 1], [1, 65_537, 1, 1]] {
        check(shape);
    }
}
