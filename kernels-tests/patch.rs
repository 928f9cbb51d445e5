use semask_gpu::ops;

use crate::support::{F32, check_op};

/// `x[b, row, col, c]` of `[B, H, W, C]`, or 0 beyond the map.
fn at([_, h, w, c]: [usize; 4], x: &[f64], [b, row, col, ch]: [usize; 4]) -> f64 {
    if row < h && col < w { x[((b * h + row) * w + col) * c + ch] } else { 0.0 }
}

#[test]
fn patchify_orders_channel_row_column_and_pads_with_zeros() {
    for (shape, p) in [
        ([1, 1, 1, 1], 1),
        ([1, 1, 1, 3], 4),
        ([2, 8, 12, 3], 4),
        ([2, 5, 7, 3], 4),
        ([1, 3, 131, 5], 4), // more elements than lanes, more patches than a run
        ([1, 6, 6, 2], 3),
        ([1, 65_540, 1, 1], 1), // more than 65 535 workgroups
    ] {
        check_op(
            &[&shape],
            F32,
            |tape, x| ops::patchify(tape, &x[0], p),
            |x| {
                let [b, h, w, c] = shape;
                let mut y = Vec::new();
                for place in 0..b * h.div_ceil(p) * w.div_ceil(p) {
                    let (j, row) = (place % w.div_ceil(p), place / w.div_ceil(p));
                    let (i, b) = (row % h.div_ceil(p), row / h.div_ceil(p));
                    for e in 0..c * p * p {
                        let (ch, ky, kx) = (e / (p * p), e / p % p, e % p);
                        y.push(at(shape, &x[0], [b, i * p + ky, j * p + kx, ch]));
                    }
                }
                y
            },
        );
    }
}

#[test]
fn unfold_equals_a_convolutions_windows() {
    for (shape, [k, s, p]) in [
        ([1, 1, 1, 1], [1, 1, 0]),
        ([1, 1, 1, 2], [3, 2, 1]),
        ([1, 8, 9, 3], [7, 4, 3]), // SegFormer's patches
        ([2, 5, 4, 3], [3, 2, 1]),
        ([1, 7, 5, 2], [2, 2, 0]), // leaves a row and a column out
        ([1, 5, 7, 2], [2, 3, 1]), // and some between the patches
        ([1, 3, 131, 2], [3, 2, 1]),
        ([1, 4, 4, 65], [4, 4, 0]),
        ([1, 2, 65_540, 1], [3, 2, 1]), // more than 65 535 places
    ] {
        let [b, h, w, c] = shape;
        let side = |n: usize| (n + 2 * p - k) / s + 1;
        check_op(
            &[&shape],
            F32,
            |tape, x| ops::unfold(tape, &x[0], k, s, p),
            |x| {
                let mut y = Vec::new();
                for place in 0..b * side(h) * side(w) {
                    let (j, i) = (place % side(w), place / side(w) % side(h));
                    let image = place / (side(w) * side(h));
                    for e in 0..c * k * k {
                        let (ch, ky, kx) = (e / (k * k), e / k % k, e % k);
                        // Before the map these wrap around to beyond it.
                        let row = (i * s + ky).wrapping_sub(p);
                        let col = (j * s + kx).wrapping_sub(p);
                        y.push(at(shape, &x[0], [image, row, col, ch]));
                    }
                }
                y
            },
        );
    }
}

#[test]
fn patch_merge_walks_down_the_rows_first() {
    for shape in
        [[1, 1, 1, 1], [2, 4, 6, 3], [2, 3, 4, 33], [1, 5, 7, 96], [3, 2, 1, 65], [1, 363, 724, 1]]
    {
        check_op(
            &[&shape],
            F32,
            |tape, x| ops::patch_merge(tape, &x[0]),
            |x| {
                let [b, h, w, c] = shape;
                let mut y = Vec::new();
                for place in 0..b * h.div_ceil(2) * w.div_ceil(2) {
                    let (j, row) = (place % w.div_ceil(2), place / w.div_ceil(2));
                    let (i, b) = (row % h.div_ceil(2), row / h.div_ceil(2));
                    for (ky, kx) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
                        let value = |ch| at(shape, &x[0], [b, 2 * i + ky, 2 * j + kx, ch]);
                        y.extend((0..c).map(value));
                    }
                }
                y
            },
        );
    }
}
