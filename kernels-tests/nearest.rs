use semask_gpu::ops;

use crate::support::{F32, check_op};

fn check([batch, h, w, channels]: [usize; 4], goal: [usize; 2]) {
    let [height, width] = goal;
    check_op(
        &[&[batch, h, w, channels], &[batch, height, width, channels]],
        F32,
        |tape, t| ops::nearest_add(tape, &t[0], &t[1]),
        |t| {
            let mut y = t[1].clone();
            for (at, y) in y.iter_mut().enumerate() {
                let (c, pixel) = (at % channels, at / channels);
                let (row, column) = (pixel / width % height, pixel % width);
                let i = (row as f64 * h as f64 / height as f64 + 1e-9).floor() as usize;
                let j = (column as f64 * w as f64 / width as f64 + 1e-9).floor() as usize;
                *y += t[0][((pixel / width / height * h + i) * w + j) * channels + c];
            }
            y
        },
    );
}

#[test]
fn maps_of_any_size() {
    for (x, goal) in [
        ([1, 1, 1, 4], [1, 1]),
        ([2, 1, 1, 8], [3, 5]),
        ([1, 2, 3, 4], [4, 6]),
        ([2, 3, 4, 4], [5, 7]),
        ([1, 3, 5, 68], [7, 11]),
        // Smaller: some pixels are not read.
        ([1, 5, 7, 4], [3, 2]),
        ([2, 4, 4, 4], [4, 4]),
    ] {
        check(x, goal);
    }
}

#[test]
fn more_than_65_535_pixels() {
    check([1, 129, 255, 4], [258, 509]);
}
