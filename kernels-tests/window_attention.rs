use semask_gpu::ops::{self, Windows};
use semask_gpu::random::Rng;
use semask_gpu::{Gpu, Tape, Tensor};

use crate::support::{F32, GPU, REGISTERS, Tolerance, assert_close, check_op, random, run};

/// Padding, roll, partition, attention with mask, reverse, roll back, crop: step by step, as the
/// official code does it.
struct Reference {
    batch: usize,
    height: usize,
    width: usize,
    channels: usize,
    heads: usize,
    windows: Windows,
}

impl Reference {
    fn shapes(&self) -> [Vec<usize>; 3] {
        let tokens = self.windows.size.pow(2);
        [
            vec![self.batch, self.height, self.width, 3 * self.channels],
            vec![3 * self.channels],
            vec![self.heads, tokens, tokens],
        ]
    }

    fn run(&self, qkv: &[f64], qkv_bias: &[f64], bias: &[f64]) -> Vec<f64> {
        let Self { batch, height, width, channels, heads, windows: Windows { size, shift } } =
            *self;
        let (hp, wp) = (height.next_multiple_of(size), width.next_multiple_of(size));
        let head_dim = channels / heads;
        let tokens = size * size;
        let band = |p: usize, n: usize| {
            if shift == 0 || p < n - size {
                0
            } else if p < n - shift {
                1
            } else {
                2
            }
        };
        let mut y = vec![0.0; batch * height * width * channels];
        for b in 0..batch {
            for (wy, wx) in (0..hp / size).flat_map(|wy| (0..wp / size).map(move |wx| (wy, wx))) {
                // Of each token: its place in the picture, its region, its row of qkv.
                let token = |t: usize| {
                    let (py, px) = (wy * size + t / size, wx * size + t % size);
                    let (sy, sx) = ((py + shift) % hp, (px + shift) % wp);
                    let inside = sy < height && sx < width;
                    let at = (b * height + sy) * width + sx;
                    let row = if inside { &qkv[at * 3 * channels..] } else { qkv_bias };
                    (inside.then_some(at), (band(py, hp), band(px, wp)), row)
                };
                for head in 0..heads {
                    for i in 0..tokens {
                        let (Some(at), region, query) = token(i) else { continue };
                        let score = |j: usize| {
                            let (_, other, key) = token(j);
                            let dot: f64 = (0..head_dim)
                                .map(|d| {
                                    query[head * head_dim + d] * key[channels + head * head_dim + d]
                                })
                                .sum();
                            let mask = if region == other { 0.0 } else { -100.0 };
                            dot / (head_dim as f64).sqrt()
                                + bias[(head * tokens + j) * tokens + i]
                                + mask
                        };
                        let weights: Vec<f64> = (0..tokens).map(|j| score(j).exp()).collect();
                        let sum: f64 = weights.iter().sum();
                        for d in 0..head_dim {
                            let value = |j: usize| token(j).2[2 * channels + head * head_dim + d];
                            let total: f64 = (0..tokens).map(|j| weights[j] * value(j)).sum();
                            y[at * channels + head * head_dim + d] = total / sum;
                        }
                    }
                }
            }
        }
        y
    }
}

fn check(reference: Reference) {
    let shapes = reference.shapes();
    let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
    let windows = reference.windows;
    check_op(
        &shapes,
        Tolerance { backward: 4e-4, ..F32 },
        |tape, x| ops::window_attention(tape, &x[0], &x[1], &x[2], windows),
        |x| reference.run(&x[0], &x[1], &x[2]),
    );
}

#[test]
fn windows_with_and_without_shift_and_padding() {
    for (batch, height, width, size, shift) in [
        (1, 3, 3, 3, 0),
        (2, 4, 6, 2, 0),
        (1, 6, 6, 3, 1),
        (1, 5, 7, 3, 0),
        (1, 5, 4, 3, 1),
        // One window, larger than the map, still shifted.
        (1, 2, 3, 4, 2),
        (1, 1, 1, 3, 1),
    ] {
        let windows = Windows { size, shift };
        // Heads of 4 channels, and of 8, which kernels for eight lanes have.
        for channels in [8, 16] {
            check(Reference { batch, height, width, channels, heads: 2, windows });
        }
    }
}

#[test]
fn the_models_windows_of_7_and_12() {
    check(Reference {
        batch: 1,
        height: 8,
        width: 7,
        channels: 8,
        heads: 1,
        windows: Windows { size: 7, shift: 3 },
    });
    check(Reference {
        batch: 1,
        height: 11,
        width: 12,
        channels: 8,
        heads: 1,
        windows: Windows { size: 12, shift: 6 },
    });
}

#[test]
fn heads_of_any_width() {
    for (channels, heads) in [(4, 1), (12, 1), (32, 2), (32, 1), (40, 1), (64, 1), (72, 3)] {
        let windows = Windows { size: 2, shift: 1 };
        check(Reference { batch: 1, height: 3, width: 2, channels, heads, windows });
    }
}

#[test]
fn the_backward_pass_goes_chunk_by_chunk() {
    // 2 heads × 49² pairs: 873 windows to a chunk of 16 MiB; nine pictures have 900.
    const PICTURE: usize = 70 * 70;
    let qkv = random(&mut Rng::new(5, 5), 9 * PICTURE * 48);
    let gradient = |gpu: &Gpu, pictures: std::ops::Range<usize>| {
        let count = pictures.len();
        let part = &qkv[pictures.start * PICTURE * 48..pictures.end * PICTURE * 48];
        let x = Tensor::from_slice(gpu, [count, 70, 70, 48], part);
        let bias = Tensor::from_slice(gpu, [48], &[0.5f32; 48]);
        let table = Tensor::from_slice(gpu, [2, 49, 49], &[0.1f32; 2 * 49 * 49]).tracked();
        let mut tape = Tape::training(gpu.profile());
        let y = ops::window_attention(&mut tape, &x, &bias, &table, Windows { size: 7, shift: 3 });
        // Of each picture its own numbers again, as some gradient or other.
        let dy: Vec<f32> = part.chunks(48).flat_map(|token| &token[..16]).copied().collect();
        let dy = Tensor::from_slice(gpu, [count, 70, 70, 16], &dy);
        let (mut recorder, grads) = tape.backward_from(&[(&y, dy)]);
        let dtable = recorder.keep(grads.get(&table).unwrap(), "dtable");
        run(gpu, &recorder);
        dtable.read(gpu).unwrap()
    };
    // The sum over all pictures equals the sum of the sums over each.
    for gpu in [&*GPU, &*REGISTERS] {
        let mut expected = vec![0f64; 2 * 49 * 49];
        for i in 0..9 {
            for (sum, v) in expected.iter_mut().zip(gradient(gpu, i..i + 1)) {
                *sum += f64::from(v);
            }
        }
        assert_close("dtable", &gradient(gpu, 0..9), &expected, 1e-4);
    }
}

#[test]
fn position_bias_is_looked_up_by_relative_position() {
    for (size, heads) in [(1, 1), (2, 3), (7, 2), (12, 1)] {
        check_op(
            &[&[(2 * size - 1usize).pow(2), heads]],
            F32,
            |tape, x| ops::relative_position_bias(tape, &x[0], size),
            |x| {
                let tokens = size * size;
                let mut y = Vec::new();
                for head in 0..heads {
                    for (b, a) in (0..tokens).flat_map(|b| (0..tokens).map(move |a| (b, a))) {
                        let dy = a / size + size - 1 - b / size;
                        let dx = a % size + size - 1 - b % size;
                        y.push(x[0][(dy * (2 * size - 1) + dx) * heads + head]);
                    }
                }
                y
            },
        );
    }
}
