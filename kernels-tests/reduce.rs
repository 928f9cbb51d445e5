use semask_gpu::{Gpu, Tape, Tensor, ops};

use crate::support::{F32, GPU, OTHER, check_op, run};

#[test]
fn a_bias_gradient_is_the_sum_of_all_rows() {
    // One, two and three levels of parts of 256 rows.
    for rows in [1, 255, 256, 257, 70_000] {
        check(rows, 65);
    }
    // Around one and four vectors of eight pairs, and beyond.
    for columns in [2, 14, 16, 18, 64, 66, 130] {
        check(261, columns);
    }
}

fn check(rows: usize, columns: usize) {
    check_op(
        &[&[rows, 1], &[columns, 1], &[columns]],
        F32,
        |tape, x| ops::linear(tape, &x[0], &x[1], Some(&x[2])),
        |x| {
            let entry = |at: usize| x[0][at / columns] * x[1][at % columns] + x[2][at % columns];
            (0..rows * columns).map(entry).collect()
        },
    );
}

#[test]
fn all_kernels_add_up_in_the_same_order() {
    // Around the sixteen rows that go four sums side by side, and more than one part.
    for (rows, columns) in [(15, 14), (16, 16), (17, 18), (37, 66), (300, 64)] {
        let values: Vec<f32> = (0..rows * columns).map(|i| 1.0 / (1.0 + i as f32)).collect();
        let sums = |gpu| bias_gradient(gpu, &values, columns);
        assert_eq!(sums(&GPU), sums(&OTHER), "{rows} × {columns}");
    }
}

/// From the gradient of what a bias was added to.
fn bias_gradient(gpu: &Gpu, dy: &[f32], columns: usize) -> Vec<f32> {
    let dy = Tensor::from_slice(gpu, [dy.len() / columns, columns], dy);
    let bias = Tensor::from_slice(gpu, [columns], &vec![0f32; columns]).tracked();
    let mut tape = Tape::training(gpu.profile());
    let y = ops::add_bias(&mut tape, &dy, &bias);
    let (mut recorder, gradients) = tape.backward_from(&[(&y, dy)]);
    let kept = recorder.keep(gradients.get(&bias).unwrap(), "dbias");
    run(gpu, &recorder);
    kept.read(gpu).unwrap()
}
