use semask_gpu::random::Rng;
use semask_gpu::{Gpu, Tape, Tensor, ops};

use crate::deform_attention::bilinear;
use crate::fixtures::{Fixture, nchw_to_nhwc, nhwc_to_nchw};
use crate::support::{F32, GPU, OTHER, Tolerance, check_op_at, random, run};

#[derive(Clone, Copy)]
struct Case {
    x: [usize; 4],
    groups: usize,
    outputs: usize,
}

impl Case {
    fn shapes(&self) -> [Vec<usize>; 4] {
        let [b, h, w, inputs] = self.x;
        [
            self.x.to_vec(),
            vec![b, h, w, 27 * self.groups],
            vec![self.outputs, inputs, 3, 3],
            vec![self.outputs],
        ]
    }

    /// Random inputs, with offsets of up to `reach` pixels.
    fn values(&self, reach: f32) -> Vec<Vec<f32>> {
        let mut rng = Rng::new(0xdcf2, 0);
        let mut draw = |shape: &Vec<usize>| random(&mut rng, shape.iter().product());
        let mut values: Vec<Vec<f32>> = self.shapes().iter().map(&mut draw).collect();
        for row in values[1].chunks_mut(27 * self.groups) {
            row[..18 * self.groups].iter_mut().for_each(|v| *v *= reach / 2.0);
        }
        values
    }

    fn reference(&self, inputs: &[Vec<f64>]) -> Vec<f64> {
        let [x, offset_mask, weight, bias] = inputs else { unreachable!() };
        let (groups, [batch, height, width, channels]) = (self.groups, self.x);
        let mut y = Vec::new();
        for place in 0..batch * height * width {
            let image = place / width / height;
            let (row, column) = ((place / width % height) as f64, (place % width) as f64);
            let own = &offset_mask[place * 27 * groups..][..27 * groups];
            let mut sums = bias.clone();
            for tap in 0..9 {
                for c in 0..channels {
                    let n = c / (channels / groups) * 9 + tap;
                    let down = row - 1.0 + (tap / 3) as f64 + own[2 * n];
                    let across = column - 1.0 + (tap % 3) as f64 + own[2 * n + 1];
                    let sample = bilinear(down, across, |i, j| {
                        let inside =
                            (0..height as i64).contains(&i) && (0..width as i64).contains(&j);
                        if !inside {
                            return 0.0;
                        }
                        let pixel = (image * height + i as usize) * width + j as usize;
                        x[pixel * channels + c]
                    });
                    let sample = sample / (1.0 + (-own[18 * groups + n]).exp());
                    for (o, sum) in sums.iter_mut().enumerate() {
                        *sum += weight[(o * channels + c) * 9 + tap] * sample;
                    }
                }
            }
            y.extend(sums);
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
            |tape, t| ops::deform_conv(tape, &t[0], &t[1], &t[2], &t[3]),
            |t| self.reference(t),
        );
    }
}

#[test]
fn maps_of_any_size() {
    for x in [[1, 1, 1, 4], [2, 1, 1, 8], [1, 1, 7, 4], [1, 6, 1, 4], [2, 5, 3, 4], [3, 4, 4, 8]] {
        Case { x, groups: 1, outputs: 3 }.check(1.5, F32);
    }
}

#[test]
fn groups_and_channels() {
    for (inputs, groups, outputs) in [(8, 2, 1), (12, 3, 5), (32, 8, 33), (256, 8, 4)] {
        Case { x: [1, 2, 3, inputs], groups, outputs }.check(1.5, F32);
    }
}

#[test]
fn samples_far_outside_are_zeros() {
    let case = Case { x: [2, 5, 6, 8], groups: 2, outputs: 3 };
    case.check(4.0, F32);
    case.check(100.0, Tolerance { forward: 2e-5, backward: 2e-4 });
}

/// Output and gradients, of x, offsets and masks, weight and bias, from the gradient `dy`.
fn results(
    gpu: &Gpu,
    shapes: &[Vec<usize>],
    values: &[Vec<f32>],
    dy: &[f32],
    op: impl FnOnce(&mut Tape, &[Tensor]) -> Tensor,
) -> Vec<Vec<f32>> {
    let inputs: Vec<Tensor> = (shapes.iter().zip(values))
        .map(|(shape, v)| Tensor::from_slice(gpu, &shape[..], v).tracked())
        .collect();
    let mut tape = Tape::training(gpu.profile());
    let y = op(&mut tape, &inputs);
    let seed = Tensor::from_slice(gpu, y.shape().clone(), dy);
    let mut kept = vec![tape.recorder().keep(&y, "y")];
    let (mut recorder, grads) = tape.backward_from(&[(&y, seed)]);
    let gradients = inputs.iter().filter_map(|input| grads.get(input));
    kept.extend(gradients.map(|g| recorder.keep(g, "gradient")));
    run(gpu, &recorder);
    kept.iter().map(|t| t.read(gpu).unwrap()).collect()
}

fn deform_conv(gpu: &Gpu, case: Case, values: &[Vec<f32>], dy: &[f32]) -> Vec<Vec<f32>> {
    results(gpu, &case.shapes(), values, dy, |tape, t| {
        ops::deform_conv(tape, &t[0], &t[1], &t[2], &t[3])
    })
}

#[test]
fn without_offsets_and_masks_it_is_a_convolution() {
    let cases = [
        // Of 256 channels 3640 pixels' columns fit: parts of each image, and three images together.
        (&*GPU, [2, 61, 61, 256], 8),
        (&*OTHER, [1, 61, 61, 256], 8),
        (&*GPU, [4, 31, 33, 256], 8),
        // More than 65 535 pixels.
        (&*GPU, [1, 257, 256, 4], 1),
    ];
    for (gpu, x, groups) in cases {
        let case = Case { x, groups, outputs: 4 };
        let mut values = case.values(0.0);
        for row in values[1].chunks_mut(27 * groups) {
            // The sigmoid of 50 is 1.
            row[18 * groups..].fill(50.0);
        }
        values[3].fill(0.0);
        let dy = random(&mut Rng::new(1, 1), x[0] * x[1] * x[2] * 4);
        let deformed = deform_conv(gpu, case, &values, &dy);
        let shapes = [case.shapes()[0].clone(), case.shapes()[2].clone()];
        let values = [values[0].clone(), values[2].clone()];
        let plain = results(gpu, &shapes, &values, &dy, |tape, t| ops::conv3x3(tape, &t[0], &t[1]));
        // Output, and gradients of x and weight.
        for (deformed, plain) in [0, 1, 3].iter().map(|i| &deformed[*i]).zip(&plain) {
            assert_eq!(deformed.len(), plain.len());
            let largest = plain.iter().fold(0f32, |a, b| a.max(b.abs()));
            for (deformed, plain) in deformed.iter().zip(plain) {
                assert!((deformed - plain).abs() <= 4e-6 * largest, "{deformed} and {plain}");
            }
        }
    }
}

#[test]
fn places_that_are_no_numbers_are_outside() {
    let case = Case { x: [1, 4, 5, 8], groups: 2, outputs: 2 };
    let outside = |bad: [f32; 3]| {
        let mut values = case.values(1.5);
        for (i, at) in [0, 3, 1007].into_iter().enumerate() {
            values[1][at] = bad[i];
        }
        values
    };
    let dy = random(&mut Rng::new(1, 1), 40);
    for gpu in [&*GPU, &*OTHER] {
        let expected = deform_conv(gpu, case, &outside([-100.0; 3]), &dy);
        for bad in [
            [f32::NAN, -f32::NAN, f32::NAN],
            [f32::INFINITY, f32::NEG_INFINITY, f32::MAX],
            [3e9, -3e9, -2147483649.0],
        ] {
            assert_eq!(deform_conv(gpu, case, &outside(bad), &dy), expected, "{bad:?}");
        }
    }
}

#[test]
fn all_taps_on_one_place_give_the_same_bits_each_time() {
    let case = Case { x: [1, 24, 20, 8], groups: 2, outputs: 4 };
    let mut values = case.values(0.0);
    let mut rng = Rng::new(7, 7);
    for (place, row) in values[1].chunks_mut(54).enumerate() {
        for (n, offset) in row[..36].chunks_mut(2).enumerate() {
            let tap = n % 9;
            let home = [(place / 20 + tap / 3) as f32 - 1.0, (place % 20 + tap % 3) as f32 - 1.0];
            offset[0] = 7.0 + rng.between(0.1, 0.9) - home[0];
            offset[1] = 9.0 + rng.between(0.1, 0.9) - home[1];
        }
    }
    let dy = random(&mut Rng::new(1, 1), 24 * 20 * 4);
    for gpu in [&*GPU, &*OTHER] {
        let expected = deform_conv(gpu, case, &values, &dy);
        for _ in 0..4 {
            assert_eq!(deform_conv(gpu, case, &values, &dy), expected);
        }
    }
}

fn equals_the_reference(name: &str) {
    let Some(fx) = Fixture::open(name) else { return };
    let image = |name: &str| {
        let shape: [usize; 4] = fx.shape(name).try_into().unwrap();
        nchw_to_nhwc(fx.f32(name), shape)
    };
    let [b, inputs, h, w] = fx.shape("in.x").try_into().unwrap();
    let groups = fx.config["groups"].as_u64().unwrap() as usize;
    let outputs = fx.shape("in.bias")[0];
    // The kernel wants vectors of four channels: zeros beside those of a narrower group.
    let (narrow, wide) = (inputs / groups, (inputs / groups).next_multiple_of(4));
    let widen = |rows: &[f32], taps: usize| -> Vec<f32> {
        let group = |group: &[f32]| {
            let mut group = group.to_vec();
            group.resize(wide * taps, 0.0);
            group
        };
        rows.chunks(narrow * taps).flat_map(group).collect()
    };
    let narrowed = |rows: &[f32], taps: usize| -> Vec<f32> {
        rows.chunks(wide * taps).flat_map(|group| &group[..narrow * taps]).copied().collect()
    };
    let (offset, mask) = (image("in.offset"), image("in.mask"));
    let logit = |m: &f32| (f64::from(*m) / (1.0 - f64::from(*m))).ln() as f32;
    let offset_mask = (offset.chunks(18 * groups).zip(mask.chunks(9 * groups)))
        .flat_map(|(o, m)| o.iter().copied().chain(m.iter().map(logit)).collect::<Vec<_>>());
    let values = [
        widen(&image("in.x"), 1),
        offset_mask.collect(),
        widen(fx.f32("in.weight"), 9),
        fx.f32("in.bias").to_vec(),
    ];
    let case = Case { x: [b, h, w, wide * groups], groups, outputs };
    for gpu in [&*GPU, &*OTHER] {
        let got = deform_conv(gpu, case, &values, &image("gout.y"));
        fx.check_image("out.y", &got[0]);
        fx.check_image("gin.x", &narrowed(&got[1], 1));
        let rows = || got[2].chunks(27 * groups);
        let doffset: Vec<f32> = rows().flat_map(|row| &row[..18 * groups]).copied().collect();
        fx.check_image("gin.offset", &doffset);
        // Of the masks' logits: m (1 - m) times that of the masks.
        let dlogit: Vec<f32> = rows().flat_map(|row| &row[18 * groups..]).copied().collect();
        let [_, channels, ..] = *fx.shape("in.mask") else { unreachable!() };
        let dlogit = nhwc_to_nchw(&dlogit, [b, channels, h, w]);
        for ((got, dmask), m) in dlogit
            .iter()
            .zip(fx.f32("gin.mask"))
            .zip(fx.f32("in.mask").iter().map(|&m| f64::from(m)))
        {
            let expected = m * (1.0 - m) * f64::from(*dmask);
            assert!((f64::from(*got) - expected).abs() <= fx.tolerance("gin.mask"), "{got}");
        }
        fx.check("gin.weight", &narrowed(&got[3], 9));
        fx.check("gin.bias", &got[4]);
    }
}

#[test]
fn random_offsets_equal_the_reference() {
    equals_the_reference("block.deform_conv");
}

/// Zero offsets lie on pixels, where slopes jump, and outside of the map on row −1, where they are 0.
#[test]
fn zero_offsets_equal_the_reference() {
    equals_the_reference("block.deform_conv_zero_offset");
}
