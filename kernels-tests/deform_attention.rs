use semask_gpu::gpu::Plan;
use semask_gpu::random::Rng;
use semask_gpu::{Gpu, Tape, Tensor, ops};

use crate::support::{F32, GPU, OTHER, Tolerance, check_op_at, random};

#[derive(Clone, Copy)]
struct Case {
    batch: usize,
    heads: usize,
    /// Channels of a head.
    channels: usize,
    points: usize,
    sizes: &'static [[usize; 2]],
}

impl Case {
    fn tokens(&self) -> usize {
        self.sizes.iter().map(|[h, w]| h * w).sum()
    }

    fn shapes(&self) -> [Vec<usize>; 3] {
        let Self { batch, heads, points, sizes, .. } = *self;
        let (tokens, levels) = (self.tokens(), sizes.len());
        [
            vec![batch, tokens, heads * self.channels],
            vec![batch, tokens, heads, levels, points, 2],
            vec![batch, tokens, heads, levels * points],
        ]
    }

    /// Random inputs, with offsets of up to `reach` pixels.
    fn values(&self, reach: f32) -> Vec<Vec<f32>> {
        let mut rng = Rng::new(0xdef0, 0);
        let mut draw = |shape: &Vec<usize>| random(&mut rng, shape.iter().product());
        let mut values: Vec<Vec<f32>> = self.shapes().iter().map(&mut draw).collect();
        values[1].iter_mut().for_each(|v| *v *= reach / 2.0);
        values
    }

    fn reference(&self, inputs: &[Vec<f64>]) -> Vec<f64> {
        let [value, offsets, logits] = inputs else { unreachable!() };
        let Self { batch, heads, channels, points, sizes } = *self;
        let samples = sizes.len() * points;
        let mut y = vec![0.0; value.len()];
        let mut row = 0;
        for image in 0..batch {
            for (height, width) in sizes.iter().map(|[h, w]| (*h, *w)) {
                for pixel in 0..height * width {
                    for head in 0..heads {
                        let logits = &logits[row * samples..][..samples];
                        let sum: f64 = logits.iter().map(|l| l.exp()).sum();
                        let mut start = image * self.tokens();
                        for (level, &[h, w]) in sizes.iter().enumerate() {
                            for point in 0..points {
                                let n = level * points + point;
                                let at = 2 * (row * samples + n);
                                let across = (pixel % width) as f64 + 0.5;
                                let down = (pixel / width) as f64 + 0.5;
                                let x = across * w as f64 / width as f64 - 0.5 + offsets[at];
                                let y_ = down * h as f64 / height as f64 - 0.5 + offsets[at + 1];
                                for c in 0..channels {
                                    let v = |i: i64, j: i64| {
                                        let inside = (0..h as i64).contains(&i)
                                            && (0..w as i64).contains(&j);
                                        if !inside {
                                            return 0.0;
                                        }
                                        let token = start + i as usize * w + j as usize;
                                        value[(token * heads + head) * channels + c]
                                    };
                                    y[row * channels + c] +=
                                        logits[n].exp() / sum * bilinear(y_, x, v);
                                }
                            }
                            start += h * w;
                        }
                        row += 1;
                    }
                }
            }
        }
        y
    }

    #[track_caller]
    fn check(&self, reach: f32, tolerance: Tolerance) {
        let shapes = self.shapes();
        let shapes: Vec<&[usize]> = shapes.iter().map(|s| &s[..]).collect();
        check_op_at(
            &shapes,
            &self.values(reach),
            tolerance,
            |tape, t| ops::deform_attention(tape, &t[0], &t[1], &t[2], self.sizes),
            |t| self.reference(t),
        );
    }
}

/// A map with values `v(row, column)` between its pixels.
pub(crate) fn bilinear(y: f64, x: f64, v: impl Fn(i64, i64) -> f64) -> f64 {
    let (i, j) = (y.floor(), x.floor());
    let (ly, lx) = (y - i, x - j);
    let (i, j) = (i as i64, j as i64);
    (1.0 - ly) * ((1.0 - lx) * v(i, j) + lx * v(i, j + 1))
        + ly * ((1.0 - lx) * v(i + 1, j) + lx * v(i + 1, j + 1))
}

const PYRAMID: &[[usize; 2]] = &[[2, 3], [4, 6], [8, 12]];

#[test]
fn maps_of_any_size_are_sampled() {
    let odd: [&[[usize; 2]]; 6] = [
        &[[1, 1]],
        &[[1, 1], [1, 1], [1, 1]],
        &[[1, 7], [5, 1]],
        &[[3, 2], [5, 5], [9, 7], [2, 1]],
        &[[1, 1], [2, 3], [3, 5]],
        PYRAMID,
    ];
    for sizes in odd {
        Case { batch: 2, heads: 2, channels: 4, points: 2, sizes }.check(1.5, F32);
    }
}

#[test]
fn heads_of_the_models_widths() {
    for (heads, channels, points) in [(1, 4, 1), (3, 12, 3), (8, 32, 4)] {
        let sizes = &[[1, 2], [2, 3], [3, 4]];
        Case { batch: 1, heads, channels, points, sizes }.check(1.5, F32);
    }
}

#[test]
fn samples_far_outside_are_zeros() {
    // Of places around a hundred pixels away f32 keeps less of the fraction.
    let tolerance = Tolerance { forward: 2e-5, backward: 2e-4 };
    Case { batch: 1, heads: 2, channels: 4, points: 4, sizes: PYRAMID }.check(100.0, tolerance);
    Case { batch: 2, heads: 1, channels: 4, points: 4, sizes: PYRAMID }.check(6.0, F32);
}

#[test]
fn more_than_65_535_rows() {
    // In so long a map f32 has 2⁻⁸ of a pixel, and so have weights and slopes.
    let tolerance = Tolerance { forward: 2e-2, backward: 2e-2 };
    Case { batch: 1, heads: 1, channels: 4, points: 1, sizes: &[[1, 65_543]] }
        .check(1.0, tolerance);
    Case { batch: 4, heads: 2, channels: 4, points: 1, sizes: &[[91, 91]] }
        .check(1.0, Tolerance { forward: 1e-4, backward: 1e-3 });
}

/// Output and gradients of value, offsets and logits, from the gradient `dy`.
fn results(gpu: &Gpu, case: Case, values: &[Vec<f32>], dy: &[f32]) -> [Vec<f32>; 4] {
    let shapes = case.shapes();
    let inputs: Vec<Tensor> = (shapes.iter().zip(values))
        .map(|(shape, v)| Tensor::from_slice(gpu, &shape[..], v).tracked())
        .collect();
    let mut tape = Tape::training(gpu.profile());
    let y = ops::deform_attention(&mut tape, &inputs[0], &inputs[1], &inputs[2], case.sizes);
    let seed = Tensor::from_slice(gpu, y.shape().clone(), dy);
    let y_kept = tape.recorder().keep(&y, "y");
    let (mut recorder, grads) = tape.backward_from(&[(&y, seed)]);
    let kept = [0, 1, 2].map(|i| recorder.keep(grads.get(&inputs[i]).unwrap(), "gradient"));
    let plan = Plan::new(gpu, &recorder).unwrap();
    // The second replay finds what the first has left behind.
    plan.run().unwrap();
    plan.run().unwrap();
    let [value, offsets, logits] = kept.map(|t| t.read(gpu).unwrap());
    [y_kept.read(gpu).unwrap(), value, offsets, logits]
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn places_that_are_no_numbers_are_outside() {
    let case = Case { batch: 1, heads: 2, channels: 4, points: 2, sizes: PYRAMID };
    let outside = |bad: [f32; 4]| {
        let mut values = case.values(1.5);
        for (i, at) in [0, 3, 10, 501].into_iter().enumerate() {
            values[1][at] = bad[i];
        }
        values
    };
    let dy = random(&mut Rng::new(1, 1), case.values(1.0)[0].len());
    for gpu in [&*GPU, &*OTHER] {
        let expected = results(gpu, case, &outside([-100.0; 4]), &dy);
        for bad in [
            [f32::NAN, -f32::NAN, f32::NAN, f32::NAN],
            [f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN],
            [3e9, -3e9, 2147483648.0, -2147483649.0],
        ] {
            let got = results(gpu, case, &outside(bad), &dy);
            for (got, expected) in got.iter().zip(&expected) {
                assert!(got.iter().all(|v| v.is_finite()), "{bad:?}");
                assert_eq!(bits(got), bits(expected), "{bad:?}");
            }
        }
    }
}

#[test]
fn a_gradient_that_is_no_number_is_seen() {
    let case = Case { batch: 1, heads: 1, channels: 4, points: 1, sizes: &[[2, 2]] };
    for gpu in [&*GPU, &*OTHER] {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut dy = vec![1.0; 16];
            dy[5] = bad;
            let dvalue = &results(gpu, case, &case.values(0.5), &dy)[1];
            assert!(dvalue.iter().all(|v| v.to_bits() & 0x7fff_ffff > 0x7f80_0000), "{dvalue:?}");
        }
    }
}

#[test]
fn gradients_of_any_magnitude_are_as_exact() {
    let case = Case { batch: 1, heads: 2, channels: 4, points: 4, sizes: PYRAMID };
    let values = case.values(1.5);
    let dy = random(&mut Rng::new(1, 1), values[0].len());
    for gpu in [&*GPU, &*OTHER] {
        let expected = &results(gpu, case, &values, &dy)[1];
        for power in [-80, -30, 30, 110] {
            let scale = 2f32.powi(power);
            let dy: Vec<f32> = dy.iter().map(|g| g * scale).collect();
            let scaled: Vec<f32> = expected.iter().map(|g| g * scale).collect();
            assert_eq!(bits(&results(gpu, case, &values, &dy)[1]), bits(&scaled), "2^{power}");
        }
        assert!(results(gpu, case, &values, &vec![0.0; dy.len()])[1].iter().all(|&g| g == 0.0));
    }
}

#[test]
fn many_samples_of_one_place_add_up_to_the_same_bits_each_time() {
    let case = Case { batch: 2, heads: 2, channels: 4, points: 4, sizes: &[[16, 24], [24, 32]] };
    let mut values = case.values(1.5);
    // Everything looks between the same four pixels of each map, a little off each other.
    let mut rng = Rng::new(7, 7);
    for (row, offsets) in values[1].chunks_mut(16).enumerate() {
        let token = row / 2 % case.tokens();
        let (token, h, w) = if token < 384 { (token, 16, 24) } else { (token - 384, 24, 32) };
        let (r, c) = ((token / w) as f32 + 0.5, (token % w) as f32 + 0.5);
        for (n, offset) in offsets.chunks_mut(2).enumerate() {
            let (height, width) = [(16.0, 24.0), (24.0, 32.0)][n / 4];
            offset[0] = 7.0 - (c * width / w as f32 - 0.5) + rng.between(0.1, 0.9);
            offset[1] = 5.0 - (r * height / h as f32 - 0.5) + rng.between(0.1, 0.9);
        }
    }
    let dy = random(&mut Rng::new(1, 1), values[0].len());
    for gpu in [&*GPU, &*OTHER] {
        let expected = results(gpu, case, &values, &dy);
        for _ in 0..6 {
            let again = results(gpu, case, &values, &dy);
            for (again, expected) in again.iter().zip(&expected) {
                assert_eq!(bits(again), bits(expected));
            }
        }
    }
}

#[test]
fn images_whose_lists_do_not_fit_together_give_what_each_gives_alone() {
    // Twelve megabytes of lists per image: two images together, then one.
    let case = Case { batch: 3, heads: 4, channels: 4, points: 16, sizes: &[[60, 50], [12, 12]] };
    let alone = Case { batch: 1, ..case };
    let values = case.values(3.0);
    let dy = random(&mut Rng::new(1, 1), values[0].len());
    let together = results(&GPU, case, &values, &dy);
    for image in 0..3 {
        let part = |v: &[f32]| v[image * v.len() / 3..(image + 1) * v.len() / 3].to_vec();
        let values: Vec<Vec<f32>> = values.iter().map(|v| part(v)).collect();
        let expected = results(&GPU, alone, &values, &part(&dy));
        for (got, expected) in together.iter().zip(&expected) {
            assert_eq!(part(got).len(), expected.len());
            let largest = expected.iter().fold(0f32, |a, b| a.max(b.abs()));
            for (got, expected) in part(got).iter().zip(expected) {
                // Units of a gradient differ with the largest of all.
                assert!((got - expected).abs() <= 1e-6 * largest);
            }
        }
    }
}
