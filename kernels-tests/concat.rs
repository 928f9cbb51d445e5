use semask_gpu::ops;

use crate::support::{F32, check_op};

/// The places `start..end` of an axis that has `n` places with `inner` elements each.
fn part(x: &[f64], n: usize, inner: usize, start: usize, end: usize) -> Vec<f64> {
    x.chunks(n * inner).flat_map(|row| &row[start * inner..end * inner]).copied().collect()
}

#[test]
fn parts_are_joined_along_any_axis() {
    let (a, b, c) = ([2, 3, 5], [2, 1, 5], [2, 4, 5]);
    check_op(
        &[&a, &b, &c],
        F32,
        |tape, t| ops::concat(tape, [&t[0], &t[1], &t[2]], 1),
        |t| {
            let rows = t[0].chunks(15).zip(t[1].chunks(5)).zip(t[2].chunks(20));
            rows.flat_map(|((a, b), c)| [a, b, c].concat()).collect()
        },
    );
    check_op(
        &[&[7, 3], &[7, 70]],
        F32,
        |tape, t| ops::concat(tape, [&t[0], &t[1]], 1),
        |t| t[0].chunks(3).zip(t[1].chunks(70)).flat_map(|(a, b)| [a, b].concat()).collect(),
    );
    check_op(
        &[&[1, 1], &[65, 1]],
        F32,
        |tape, t| ops::concat(tape, [&t[0], &t[1]], 0),
        |t| t.concat(),
    );
}

#[test]
fn one_tensor_may_be_joined_with_itself() {
    check_op(
        &[&[2, 3]],
        F32,
        |tape, t| ops::concat(tape, [&t[0], &t[0]], 1),
        |t| t[0].chunks(3).flat_map(|row| row.repeat(2)).collect(),
    );
}

#[test]
fn slices_of_any_axis() {
    for (shape, axis, start, end) in
        [([1, 1, 1], 2, 0, 1), ([2, 5, 3], 0, 1, 2), ([2, 5, 3], 1, 2, 5), ([3, 2, 67], 2, 1, 66)]
    {
        let inner = shape[axis + 1..].iter().product();
        check_op(
            &[&shape],
            F32,
            |tape, t| ops::slice(tape, &t[0], axis, start..end),
            |t| part(&t[0], shape[axis], inner, start, end),
        );
    }
}

#[test]
fn more_than_65_535_rows() {
    check_op(
        &[&[65_543, 3]],
        F32,
        |tape, t| {
            let last = ops::slice(tape, &t[0], 1, 2..3);
            ops::concat(tape, [&last, &t[0]], 1)
        },
        |t| t[0].chunks(3).flat_map(|row| [row[2], row[0], row[1], row[2]]).collect(),
    );
}
