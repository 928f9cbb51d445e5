use semask_gpu::bench::{arithmetic, gather, simple_product};
use semask_gpu::{Tensor, ops};

use crate::support::{GPU, forward};

#[test]
fn arithmetic_is_done() {
    // s ← s / 2 + 1 / 2 goes to 1 from anywhere, and each element is the sum of four.
    let y = forward(&GPU, |tape| arithmetic(tape.recorder(), 3));
    assert!(!y.is_empty() && y.iter().all(|&v| v == 4.0), "{:?}", &y[..4]);
}

#[test]
fn every_invocation_gathers_32_vectors() {
    const VECTORS: usize = 64;
    let values: Vec<f32> = (0..4 * VECTORS).map(|i| i as f32).collect();
    let table = Tensor::from_slice(&GPU, [VECTORS, 4], &values);
    let y = forward(&GPU, |tape| gather(tape.recorder(), &table, 3));
    for (id, sum) in (0u32..).zip(y.chunks(4)) {
        let place = |k: u32| ((id * 32 + k).wrapping_mul(2_654_435_761) >> 8) as usize % VECTORS;
        for (c, &v) in sum.iter().enumerate() {
            let expected: usize = (0..32).map(|k| 4 * place(k) + c).sum();
            assert_eq!(v, expected as f32, "invocation {id}");
        }
    }
}

#[test]
fn the_simple_product_is_a_linear_layer() {
    let numbers = |n: usize| (0..n).map(|i| (i * 7 % 11) as f32 - 5.0).collect::<Vec<_>>();
    let x = Tensor::from_slice(&GPU, [5, 9], &numbers(45));
    let weight = Tensor::from_slice(&GPU, [67, 9], &numbers(603));
    let simple = forward(&GPU, |tape| simple_product(tape.recorder(), &x, &weight));
    let other = forward(&GPU, |tape| ops::linear(tape, &x, &weight, None));
    // Whole numbers, so that sums are exact in any order.
    assert_eq!(simple, other);
}
