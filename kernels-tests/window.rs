use semask_gpu::{Tensor, ops};

use crate::support::{F32, GPU, OTHER, check_op, forward};

/// Map `[B, H, W, C]` and side of the windows: exact, padded, one window larger than the map, many
/// channels, more than 65 535 rows of windows.
const CASES: [([usize; 4], usize); 7] = [
    ([1, 1, 1, 1], 1),
    ([2, 4, 6, 3], 2),
    ([2, 5, 8, 3], 3),
    ([1, 3, 2, 65], 7),
    ([1, 14, 7, 33], 7),
    ([3, 7, 13, 5], 12),
    ([1, 300, 437, 1], 2),
];

/// The element of the map at each place of the windows, or `None` in the padding.
fn sources([b, h, w, c]: [usize; 4], side: usize) -> Vec<Option<usize>> {
    let (down, across) = (h.div_ceil(side), w.div_ceil(side));
    let mut sources = Vec::new();
    for window in 0..b * down * across {
        for token in 0..side * side {
            let y = window / across % down * side + token / side;
            let x = window % across * side + token % side;
            let pixel = (window / across / down * h + y) * w + x;
            let inside = y < h && x < w;
            sources.extend((0..c).map(|c_| inside.then_some(pixel * c + c_)));
        }
    }
    sources
}

#[test]
fn partition_is_row_major_with_zeros_beyond_the_map() {
    for (map, side) in CASES {
        let sources = sources(map, side);
        check_op(
            &[&map],
            F32,
            |tape, x| ops::window_partition(tape, &x[0], side),
            |x| sources.iter().map(|s| s.map_or(0.0, |s| x[0][s])).collect(),
        );
    }
}

#[test]
fn reverse_drops_the_padding_and_gives_it_no_gradient() {
    for (map, side) in CASES {
        let [b, h, w, c] = map;
        let sources = sources(map, side);
        let windows = [sources.len() / (side * side * c), side * side, c];
        check_op(
            &[&windows],
            F32,
            |tape, x| ops::window_reverse(tape, &x[0], b, h, w, side),
            |x| {
                let mut y = vec![f64::NAN; b * h * w * c];
                for (at, source) in sources.iter().enumerate() {
                    if let Some(source) = source {
                        y[*source] = x[0][at];
                    }
                }
                y
            },
        );
    }
}

#[test]
fn reverse_undoes_partition() {
    for gpu in [&*GPU, &*OTHER] {
        for (map @ [b, h, w, c], side) in CASES {
            let values: Vec<f32> = (0..b * h * w * c).map(|v| v as f32).collect();
            let x = Tensor::from_slice(gpu, map, &values);
            let y = forward(gpu, |tape| {
                let windows = ops::window_partition(tape, &x, side);
                ops::window_reverse(tape, &windows, b, h, w, side)
            });
            assert_eq!(y, values);
        }
    }
}
