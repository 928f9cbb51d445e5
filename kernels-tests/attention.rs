use semask_gpu::ops;
use semask_gpu::random::Rng;
use semask_gpu::{Tape, Tensor};

use crate::support::{CHECKED, F32, GPU, OTHER, Tolerance, check_op, device, random, run};

/// Attention of each query to the keys that its mask shows, head by head.
struct Reference {
    batch: usize,
    queries: usize,
    keys: usize,
    channels: usize,
    heads: usize,
    /// Of each query of each image, whether it sees a key.
    mask: Option<Vec<bool>>,
}

impl Reference {
    fn run(&self, q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
        let Self { batch, queries, keys, channels, heads, ref mask } = *self;
        let head_dim = channels / heads;
        let mut y = vec![0.0; q.len()];
        for b in 0..batch {
            for i in 0..queries {
                let row = b * queries + i;
                let seen = |j: &usize| mask.as_ref().is_none_or(|mask| mask[row * keys + j]);
                for first in (0..heads).map(|h| h * head_dim) {
                    let key = |j: usize| (b * keys + j) * channels + first;
                    let weight = |j: usize| {
                        let dots = (0..head_dim)
                            .map(|d| q[row * channels + first + d] * k[key(j) + d])
                            .sum::<f64>();
                        (dots / (head_dim as f64).sqrt()).exp()
                    };
                    let weights: Vec<(usize, f64)> =
                        (0..keys).filter(seen).map(|j| (j, weight(j))).collect();
                    let sum: f64 = weights.iter().map(|(_, w)| w).sum();
                    for d in 0..head_dim {
                        let total: f64 = weights.iter().map(|&(j, w)| w * v[key(j) + d]).sum();
                        y[row * channels + first + d] = total / sum;
                    }
                }
            }
        }
        y
    }

    fn check(self) {
        let Self { batch, queries, keys, channels, heads, .. } = self;
        let (of_queries, of_keys) = ([batch, queries, channels], [batch, keys, channels]);
        let words = self.mask.as_ref().map(|mask| packed(mask, keys));
        check_op(
            &[&of_queries, &of_keys, &of_keys],
            Tolerance { backward: 4e-4, ..F32 },
            |tape, x| {
                let mask = words.as_ref().map(|words| {
                    Tensor::from_slice(device(), [batch, queries, keys.div_ceil(32)], words)
                });
                ops::attention(tape, &x[0], &x[1], &x[2], heads, mask.as_ref(), 0.0)
            },
            |x| self.run(&x[0], &x[1], &x[2]),
        );
    }
}

/// A bit for each key, rows of whole words.
fn packed(mask: &[bool], keys: usize) -> Vec<u32> {
    let word = |bits: &[bool]| bits.iter().rev().fold(0, |word, &bit| word << 1 | u32::from(bit));
    mask.chunks(keys).flat_map(|row| row.chunks(32).map(word)).collect()
}

#[test]
fn queries_and_keys_around_blocks_words_and_parts() {
    for (batch, queries, keys, channels, heads) in [
        (1, 1, 1, 4, 1),
        (2, 3, 5, 8, 2),
        (1, 8, 31, 12, 1),
        (2, 9, 32, 16, 2),
        (1, 65, 33, 20, 1),
        (1, 7, 129, 40, 1),
        (1, 3, 300, 64, 1),
    ] {
        Reference { batch, queries, keys, channels, heads, mask: None }.check();
    }
}

#[test]
fn the_models_heads_of_32_channels() {
    Reference { batch: 1, queries: 10, keys: 40, channels: 256, heads: 8, mask: None }.check();
}

#[test]
fn masked_keys_are_not_seen() {
    let mut rng = Rng::new(7, 0);
    for (batch, queries, keys, channels, heads) in
        [(1, 1, 1, 4, 1), (2, 3, 5, 8, 2), (1, 9, 33, 8, 1), (2, 5, 300, 16, 2)]
    {
        let mut mask: Vec<bool> = (0..batch * queries * keys).map(|_| rng.below(3) == 0).collect();
        for row in mask.chunks_mut(keys) {
            // Late keys alone: whole parts of the keys show nothing.
            row[..keys / 2].fill(false);
            row[keys - 1] = true;
        }
        Reference { batch, queries, keys, channels, heads, mask: Some(mask) }.check();
    }
}

/// Scores beyond the range of the exponential function, and far apart.
#[test]
fn large_scores_neither_overflow_nor_vanish() {
    for gpu in [&*GPU, &*OTHER] {
        let q = Tensor::from_slice(gpu, [1, 1, 4], &[200f32; 4]);
        let keys: Vec<f32> = (0..150).flat_map(|j| [j as f32 - 200.0; 4]).collect();
        let k = Tensor::from_slice(gpu, [1, 150, 4], &keys);
        let v: Vec<f32> = (0..600).map(|i| i as f32).collect();
        let v = Tensor::from_slice(gpu, [1, 150, 4], &v);
        let y = crate::support::forward(gpu, |tape| ops::attention(tape, &q, &k, &v, 1, None, 0.0));
        assert_eq!(y, [596.0, 597.0, 598.0, 599.0]);
    }
}

/// Dropout's weights, found by values that are the keys' unit vectors; and the gradients, which must be
/// those of attention with just these weights.
#[test]
fn dropout_zeroes_some_weights_and_its_gradients_know_which() {
    const KEYS: usize = 64;
    const QUERIES: usize = 40;
    const RATE: f32 = 0.25;
    for gpu in [&*GPU, &*OTHER] {
        let state = Tensor::from_slice(gpu, [4], &[3u32, 0, 5, 0]);
        let mut rng = Rng::new(2, 2);
        let values = [QUERIES, KEYS].map(|n| random(&mut rng, n * KEYS));
        let [q, k] = [(QUERIES, &values[0]), (KEYS, &values[1])]
            .map(|(n, values)| Tensor::from_slice(gpu, [1, n, KEYS], values).tracked());
        let identity: Vec<f32> =
            (0..KEYS * KEYS).map(|i| f32::from(u8::from(i / KEYS == i % KEYS))).collect();
        let v = Tensor::from_slice(gpu, [1, KEYS, KEYS], &identity).tracked();
        let seed = random(&mut rng, QUERIES * KEYS);
        let mut tape = Tape::training(gpu.profile()).randomised(&state);
        let y = ops::attention(&mut tape, &q, &k, &v, 1, None, RATE);
        let kept_y = tape.recorder().keep(&y, "y");
        let seeds = Tensor::from_slice(gpu, y.shape().clone(), &seed);
        let (mut recorder, grads) = tape.backward_from(&[(&y, seeds)]);
        let grads = [&q, &k, &v].map(|t| recorder.keep(grads.get(t).unwrap(), "gradient"));
        run(gpu, &recorder);
        let got = kept_y.read(gpu).unwrap();

        // Probabilities and their factors.
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        let row = |values: &[f32], i: usize| values[i * KEYS..][..KEYS].to_vec();
        let mut zeroed = 0;
        let (mut dq, mut dk) = (vec![0.0; QUERIES * KEYS], vec![0.0; KEYS * KEYS]);
        let mut dv = vec![0.0; KEYS * KEYS];
        for i in 0..QUERIES {
            let scores: Vec<f64> = (0..KEYS)
                .map(|j| dot(&row(&values[0], i), &row(&values[1], j)) / (KEYS as f64).sqrt())
                .collect();
            let sum: f64 = scores.iter().map(|s| s.exp()).sum();
            let p: Vec<f64> = scores.iter().map(|s| s.exp() / sum).collect();
            let y = row(&got, i);
            let keep: Vec<f64> = (y.iter())
                .map(|y| if *y == 0.0 { 0.0 } else { 1.0 / (1.0 - f64::from(RATE)) })
                .collect();
            for j in 0..KEYS {
                zeroed += usize::from(keep[j] == 0.0);
                assert!((f64::from(y[j]) - keep[j] * p[j]).abs() <= 1e-5, "{i} {j}");
            }
            let dy = row(&seed, i);
            let dp: Vec<f64> = (0..KEYS).map(|j| keep[j] * f64::from(dy[j])).collect();
            let mean: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
            for j in 0..KEYS {
                let ds = p[j] * (dp[j] - mean) / (KEYS as f64).sqrt();
                for d in 0..KEYS {
                    dq[i * KEYS + d] += ds * f64::from(values[1][j * KEYS + d]);
                    dk[j * KEYS + d] += ds * f64::from(values[0][i * KEYS + d]);
                    dv[j * KEYS + d] += keep[j] * p[j] * f64::from(dy[d]);
                }
            }
        }
        let share = zeroed as f64 / (QUERIES * KEYS) as f64;
        // 2560 draws: within four deviations.
        assert!((share - f64::from(RATE)).abs() <= 0.035, "{share}");
        for (what, got, expected) in [("dq", 0, dq), ("dk", 1, dk), ("dv", 2, dv)] {
            let got = grads[got].read(gpu).unwrap();
            crate::support::assert_close(what, &got, &expected, 2e-5);
        }
    }
}

/// The mask that masks make: bilinear by the formula, the threshold, and nothing that becomes everything.
#[test]
fn masks_show_where_the_resized_logits_are_not_negative() {
    let mut rng = Rng::new(9, 1);
    for ([height, width], [goal_height, goal_width]) in [
        ([1, 1], [1, 1]),
        ([8, 12], [2, 3]),
        ([9, 7], [5, 13]),
        ([16, 16], [16, 16]),
        ([5, 6], [7, 9]),
    ] {
        let (batch, queries) = (2, 3);
        let mut logits = random(&mut rng, batch * queries * height * width);
        // Of one query everything is hidden, of another everything lies at the threshold.
        logits[height * width..][..height * width].fill(-1.0);
        logits[2 * height * width..][..height * width].fill(-3e-8);
        let axis = |d: usize, size: usize, goal: usize| {
            let s = ((d as f64 + 0.5) * size as f64 / goal as f64 - 0.5).max(0.0);
            let near = s.floor() as usize;
            (near, (near + 1).min(size - 1), s - s.floor())
        };
        let mut expected = Vec::new();
        for (row, mask) in logits.chunks(height * width).enumerate() {
            let mut bits = Vec::new();
            for (y, x) in (0..goal_height).flat_map(|y| (0..goal_width).map(move |x| (y, x))) {
                let (top, bottom, t) = axis(y, height, goal_height);
                let (left, right, u) = axis(x, width, goal_width);
                let at = |y: usize, x: usize| f64::from(mask[y * width + x]);
                let v = (1.0 - t) * ((1.0 - u) * at(top, left) + u * at(top, right))
                    + t * ((1.0 - u) * at(bottom, left) + u * at(bottom, right));
                assert!(row == 2 || v.abs() > 1e-6, "rounding decides this case");
                bits.push(v > -5.9e-8);
            }
            if !bits.contains(&true) {
                bits.fill(true);
            }
            expected.extend(bits);
        }
        let places = goal_height * goal_width;
        for gpu in [&*GPU, &*CHECKED, &*OTHER] {
            let logits = Tensor::from_slice(gpu, [batch, queries, height, width], &logits);
            let mut tape = Tape::inference(gpu.profile());
            let words = ops::attention_mask(tape.recorder(), &logits, goal_height, goal_width);
            let words = tape.recorder().keep(&words, "words");
            run(gpu, &tape.finish());
            let words: Vec<u32> = words.read_as(gpu).unwrap();
            let got: Vec<bool> = (words.chunks(places.div_ceil(32)))
                .flat_map(|row| (0..places).map(|i| row[i / 32] >> (i % 32) & 1 == 1))
                .collect();
            assert_eq!(got, expected, "{height} × {width} to {goal_height} × {goal_width}");
        }
    }
}
