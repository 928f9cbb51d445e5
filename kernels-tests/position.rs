use semask_gpu::ops;

use crate::support::{F32, check_op};

/// `[C, S_y, S_x]` → `[h, w, C]`, as sums over the whole table of a kernel that is 0 almost everywhere.
fn bicubic(table: &[f64], [c, sy, sx]: [usize; 3], h: usize, w: usize) -> Vec<f64> {
    // Keys' kernel, written as its two polynomials.
    let kernel = |t: f64| match t.abs() {
        t if t <= 1.0 => 1.25 * t.powi(3) - 2.25 * t.powi(2) + 1.0,
        t if t < 2.0 => -0.75 * t.powi(3) + 3.75 * t.powi(2) - 6.0 * t + 3.0,
        _ => 0.0,
    };
    let mut y = Vec::new();
    for at in 0..h * w * c {
        let (i, j, ch) = (at / c / w, at / c % w, at % c);
        let s = |i: usize, n: usize, size: usize| (i as f64 + 0.5) * size as f64 / n as f64 - 0.5;
        let mut sum = 0.0;
        for m in -3..sy as isize + 3 {
            for n in -3..sx as isize + 3 {
                let row = m.clamp(0, sy as isize - 1) as usize;
                let col = n.clamp(0, sx as isize - 1) as usize;
                sum += kernel(s(i, h, sy) - m as f64)
                    * kernel(s(j, w, sx) - n as f64)
                    * table[(ch * sy + row) * sx + col];
            }
        }
        y.push(sum);
    }
    y
}

#[test]
fn bicubic_tables_grow_shrink_and_stay() {
    for (table, h, w) in [
        ([1, 1, 1], 1, 1),
        ([2, 1, 1], 4, 3),
        ([3, 14, 14], 9, 17),
        ([2, 3, 5], 12, 11),
        ([65, 2, 3], 3, 2),
        ([1, 13, 9], 2, 1),
        ([3, 5, 4], 5, 4),
    ] {
        check_op(
            &[&[1, table[0], table[1], table[2]]],
            F32,
            |tape, x| ops::resize_bicubic(tape, &x[0], h, w),
            |x| bicubic(&x[0], table, h, w),
        );
    }
}

#[test]
fn bias_tables_are_resized_on_the_host_like_positions() {
    for (from, to, heads) in [(13, 23, 4), (23, 13, 3), (1, 3, 1), (5, 5, 2)] {
        let table: Vec<f32> =
            (0..from * from * heads).map(|i| (i * i % 97) as f32 - 48.0).collect();
        let resized = ops::resize_bicubic_table(&table, heads, from, to);
        for head in 0..heads {
            let one = table.iter().skip(head).step_by(heads).map(|&v| v.into());
            let expected = bicubic(&one.collect::<Vec<_>>(), [1, from, from], to, to);
            let got: Vec<f32> = resized.iter().skip(head).step_by(heads).copied().collect();
            crate::support::assert_close("table", &got, &expected, 1e-6);
        }
    }
}

#[test]
fn every_image_gets_the_same_positions() {
    for [b, h, w, c] in [[1, 1, 1, 1], [3, 5, 7, 11], [2, 16, 16, 33], [300, 1, 1, 3]] {
        check_op(
            &[&[b, h, w, c], &[h, w, c]],
            F32,
            |tape, x| ops::add_position(tape, &x[0], &x[1]),
            |x| x[0].iter().enumerate().map(|(at, v)| v + x[1][at % (h * w * c)]).collect(),
        );
    }
}
