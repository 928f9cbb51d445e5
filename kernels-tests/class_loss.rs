use semask_gpu::random::Rng;
use semask_gpu::{Tape, Tensor, ops};

use crate::support::{F32, GPU, check_op, device, run};

fn check(rows: usize, classes: usize, goals: &[u32]) {
    check_op(
        &[&[rows, classes]],
        F32,
        |tape, x| {
            let goals = Tensor::from_slice(device(), [rows], goals);
            ops::class_loss(tape, &x[0], &goals, 0.1, 2.0)
        },
        |x| {
            let (mut sum, mut weights) = (0.0, 0.0);
            for (row, &goal) in x[0].chunks(classes).zip(goals) {
                let weight = if goal as usize + 1 == classes { 0.1 } else { 1.0 };
                let all: f64 = row.iter().map(|v| v.exp()).sum();
                sum += weight * (all.ln() - row[goal as usize]);
                weights += weight;
            }
            vec![2.0 * sum / weights]
        },
    );
}

#[test]
fn the_weighted_mean_of_cross_entropies() {
    let mut rng = Rng::new(9, 0);
    for (rows, classes) in [(1, 2), (7, 3), (9, 20), (200, 64), (63, 65), (130, 151)] {
        // Most queries have no target.
        let goal = |_| match rng.below(4) {
            0 => rng.below(classes),
            _ => classes - 1,
        };
        let goals: Vec<u32> = (0..rows).map(goal).map(|k| k as u32).collect();
        check(rows, classes, &goals);
    }
    check(5, 4, &[3; 5]);
    check(3, 2, &[0, 0, 0]);
}

#[test]
fn large_logits_do_not_overflow_and_a_nan_shows() {
    let loss = |x: [f32; 3]| {
        let x = Tensor::from_slice(&GPU, [1, 3], &x);
        let goals = Tensor::from_slice(&GPU, [1], &[1u32]);
        let mut tape = Tape::inference(GPU.profile());
        let y = ops::class_loss(&mut tape, &x, &goals, 0.1, 1.0);
        let y = tape.recorder().keep(&y, "loss");
        run(&GPU, &tape.finish());
        y.read(&GPU).unwrap()[0]
    };
    assert_eq!(loss([1e4, -1e4, 0.0]), 2e4);
    assert!(!loss([f32::NAN, 0.0, 0.0]).is_finite());
}
