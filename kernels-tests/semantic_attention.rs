use semask_gpu::random::Rng;
use semask_gpu::{Tape, Tensor, ops};

use crate::support::{F32, GPU, Tolerance, assert_close, check_op, forward, random, run};

/// softmax(q kᵀ) v, pair by pair.
fn reference(q: &[f64], k: &[f64], v: &[f64], tokens: usize, classes: usize) -> Vec<f64> {
    let groups = q.len() / (tokens * classes);
    let channels = v.len() / (groups * tokens);
    let mut y = vec![0.0; v.len()];
    for (g, i) in (0..groups).flat_map(|g| (0..tokens).map(move |i| (g, i))) {
        let vector = |x: &[f64], t: usize, width: usize| {
            let at = (g * tokens + t) * width;
            x[at..at + width].to_vec()
        };
        let query = vector(q, i, classes);
        let scores: Vec<f64> = (0..tokens)
            .map(|j| vector(k, j, classes).iter().zip(&query).map(|(a, b)| a * b).sum())
            .collect();
        let largest = scores.iter().copied().fold(f64::MIN, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
        let sum: f64 = weights.iter().sum();
        for (j, weight) in weights.iter().enumerate() {
            for (c, value) in vector(v, j, channels).iter().enumerate() {
                y[(g * tokens + i) * channels + c] += weight / sum * value;
            }
        }
    }
    y
}

#[test]
fn groups_of_any_size_and_any_number_of_classes() {
    for (groups, tokens, classes, channels) in
        [(1, 1, 1, 1), (3, 9, 2, 5), (2, 49, 3, 8), (1, 30, 19, 33), (1, 65, 5, 4)]
    {
        // Scores are sums of products of up to 4 · classes: large ones make steep softmaxes.
        let tolerance = Tolerance { forward: 3e-5, backward: 1e-3 };
        check_op(
            &[&[groups, tokens, classes], &[groups, tokens, classes], &[groups, tokens, channels]],
            tolerance,
            |tape, x| ops::semantic_attention(tape, &x[0], &x[1], &x[2]),
            |x| reference(&x[0], &x[1], &x[2], tokens, classes),
        );
    }
}

#[test]
fn a_map_of_thousands_of_tokens_goes_through_in_parts() {
    // 2,500 tokens: 1,677 queries to a part. Every token agrees with its own class only, strongly,
    // so the result is the mean of the values of the class.
    let (tokens, classes) = (2_500, 5);
    let class = |t: usize| t % classes;
    let one_hot: Vec<f32> = (0..tokens * classes)
        .map(|at| if at % classes == class(at / classes) { 10.0 } else { 0.0 })
        .collect();
    let v = random(&mut Rng::new(1, 1), tokens);
    let q = Tensor::from_slice(&GPU, [1, tokens, classes], &one_hot).tracked();
    let value = Tensor::from_slice(&GPU, [1, tokens, 1], &v).tracked();
    let y = forward(&GPU, |tape| ops::semantic_attention(tape, &q, &q, &value));
    let mean = |c: usize| {
        let of_class = v.iter().skip(c).step_by(classes);
        of_class.map(|&v| f64::from(v)).sum::<f64>() / (tokens / classes) as f64
    };
    let expected: Vec<f64> = (0..tokens).map(|t| mean(class(t))).collect();
    assert_close("y", &y, &expected, 2e-5);

    // And each value's gradient is the mean of its class's, over both parts.
    let dy = random(&mut Rng::new(1, 2), tokens);
    let mut tape = Tape::training(GPU.profile());
    let y = ops::semantic_attention(&mut tape, &q, &q, &value);
    let seed = Tensor::from_slice(&GPU, [1, tokens, 1], &dy);
    let (mut recorder, grads) = tape.backward_from(&[(&y, seed)]);
    let dv = recorder.keep(grads.get(&value).unwrap(), "dv");
    run(&GPU, &recorder);
    let mean = |c: usize| {
        let of_class = dy.iter().skip(c).step_by(classes);
        of_class.map(|&v| f64::from(v)).sum::<f64>() / (tokens / classes) as f64
    };
    let expected: Vec<f64> = (0..tokens).map(|t| mean(class(t))).collect();
    assert_close("dv", &dv.read(&GPU).unwrap(), &expected, 2e-5);
}

#[test]
fn the_gate_scales_the_update() {
    // Around the 4,096 elements of a workgroup.
    for len in [1, 5, 4_095, 4_096, 4_097] {
        check_op(
            &[&[len], &[len], &[1]],
            F32,
            |tape, x| ops::gated_residual(tape, &x[0], &x[1], &x[2]),
            |x| x[0].iter().zip(&x[1]).map(|(a, update)| a + x[2][0] * update).collect(),
        );
    }
}
