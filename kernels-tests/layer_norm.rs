use semask_gpu::gpu::{Family, Profile, Recorder, Tuning, Variant};
use semask_gpu::random::Rng;
use semask_gpu::{Tape, Tensor, ops};

use crate::support::{
    F32, GPU, OTHER, Tolerance, assert_close, check_op, forward, normal_cdf, random,
};

const EPS: f64 = 1e-5;

fn reference(inputs: &[Vec<f64>]) -> Vec<f64> {
    let [x, weight, bias] = inputs else { unreachable!() };
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks(weight.len()) {
        let n = row.len() as f64;
        let mean = row.iter().sum::<f64>() / n;
        let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        let scaled = row.iter().map(|v| (v - mean) / (variance + EPS).sqrt());
        y.extend(scaled.zip(weight).zip(bias).map(|((v, w), b)| v * w + b));
    }
    y
}

fn check(shape: &[usize], tolerance: Tolerance) {
    let channels = *shape.last().unwrap();
    check_op(
        &[shape, &[channels], &[channels]],
        tolerance,
        |tape, x| ops::layer_norm(tape, &x[0], &x[1], &x[2], EPS as f32),
        reference,
    );
}

#[test]
fn widths_around_the_workgroup_size() {
    // Not 2: there the gradient of x cancels down to what eps leaves, below f32's resolution.
    for channels in [1, 3, 7, 8, 9, 63, 64, 65, 96, 255, 256, 257, 1536] {
        check(&[2, channels], F32);
    }
    // Pairs of each of eight lanes: 17, 24, which is the most, and 29, which cannot be divided.
    for channels in [272, 384, 464] {
        check(&[3, channels], F32);
    }
}

#[test]
fn rows_around_a_part_and_beyond_65_535() {
    for rows in [1, 255, 256, 257] {
        check(&[rows, 5], F32);
    }
    // Parts of 4 to 64 rows where eight lanes of a CPU share a row evenly: one block to a row, and five.
    for rows in [1, 3, 4, 5, 1025] {
        check(&[rows, 32], F32);
        check(&[rows, 800], F32);
    }
    // Sums over that many rows; and among so many rows of three some are nearly constant, where
    // 1 / std magnifies the rounding of x - mean.
    check(&[65_543, 3], Tolerance { forward: 2e-5, backward: 1e-3 });
}

/// Rows, inputs, outputs: products of whole tiles, which take the norm while they read; with tiles that are moved back,
/// and a sum in the steps of large ones only; whose gradients read single numbers; and products that take no norm.
const PRODUCTS: [(usize, usize, usize); 4] =
    [(64, 64, 64), (68, 80, 72), (70, 64, 66), (9, 16, 24)];

/// The layer norm of `inputs[0]`, times the transpose of `inputs[3]`.
fn product_of_norm(inputs: &[Vec<f64>], channels: usize) -> Vec<f64> {
    let y = reference(&inputs[..3]);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum();
    let row = |y| inputs[3].chunks(channels).map(move |weight| dot(y, weight));
    y.chunks(channels).flat_map(row).collect()
}

#[test]
fn linear_layers_take_the_norm_of_what_they_read() {
    // Gradients of the norm's weight are sums over rows of sums over outputs.
    let tolerance = Tolerance { forward: 1e-5, backward: 4e-5 };
    for (rows, channels, outputs) in PRODUCTS {
        let shapes = [
            vec![rows, channels],
            vec![channels],
            vec![channels],
            vec![outputs, channels],
            vec![outputs],
        ];
        let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
        let norm = |tape: &mut Tape, x: &[Tensor]| {
            ops::layer_norm_operand(tape, &x[0], &x[1], &x[2], EPS as f32)
        };
        let biased = |x: &[Vec<f64>]| -> Vec<f64> {
            let y = product_of_norm(x, channels);
            y.iter().enumerate().map(|(at, y)| y + x[4][at % outputs]).collect()
        };
        check_op(
            &shapes[..4],
            tolerance,
            |tape, x| {
                let y = norm(tape, x);
                ops::linear(tape, &y, &x[3], None)
            },
            |x| product_of_norm(x, channels),
        );
        check_op(
            &shapes,
            tolerance,
            |tape, x| {
                let y = norm(tape, x);
                ops::linear_operand(tape, &y, &x[3], &x[4])
            },
            biased,
        );
        check_op(
            &shapes,
            tolerance,
            |tape, x| {
                let y = norm(tape, x);
                ops::linear_gelu(tape, &y, &x[3], &x[4])
            },
            |x| biased(x).into_iter().map(|v| v * normal_cdf(v)).collect(),
        );
        check_op(
            &[&shapes[..], &[&[rows, outputs]]].concat(),
            tolerance,
            |tape, x| {
                let y = norm(tape, x);
                ops::linear_residual(tape, &y, &x[3], &x[4], &x[5], None)
            },
            |x| biased(x).iter().zip(&x[5]).map(|(y, residual)| y + residual).collect(),
        );
    }
}

#[test]
fn what_products_take_is_not_made() {
    let kernels = |recorder: &Recorder| -> Vec<String> {
        recorder.programs().iter().map(|program| program.kernel.label()).collect()
    };
    let record = |rows: usize, read_too: bool| {
        let leaf = |shape: &[usize]| Tensor::pinned("leaf", shape).tracked();
        let (x, weight, bias) = (leaf(&[rows, 64]), leaf(&[64]), leaf(&[64]));
        let mut tape = Tape::training(&Profile::default());
        let y = ops::layer_norm_operand(&mut tape, &x, &weight, &bias, 1e-5);
        if read_too {
            ops::relu(&mut tape, &y);
        }
        let z = ops::linear(&mut tape, &y, &leaf(&[64, 64]), None);
        let seed = ops::fill(tape.recorder(), [rows, 64], 1.0);
        kernels(&tape.backward_from(&[(&z, seed)]).0)
    };
    let has = |found: &[String], kernel: &str| found.iter().any(|label| label == kernel);
    // The default profile is that of a GPU.
    let fused = record(64, false);
    assert!(has(&fused, "matmul_tiled.product norm of a"), "{fused:?}");
    assert!(has(&fused, "matmul_tiled.product norm of b"), "{fused:?}");
    assert!(!has(&fused, "layer_norm.apply"), "{fused:?}");
    // Another reader needs it, and so does a product that does not take it.
    assert!(has(&record(64, true), "layer_norm.apply"));
    assert!(has(&record(63, false), "layer_norm.apply"));
}

#[test]
fn a_product_that_takes_no_norm_has_it_made_first() {
    let (rows, channels, outputs) = (70, 64, 72);
    let of_gpus = if GPU.profile().cpu { &*OTHER } else { &*GPU };
    let gpu = of_gpus.with_tuning(Tuning::default().with(Family::Product, Variant::Registers));
    let mut rng = Rng::new(0x5eed, 0);
    let shapes = [vec![rows, channels], vec![channels], vec![channels], vec![outputs, channels]];
    let values: Vec<Vec<f32>> =
        shapes.iter().map(|shape| random(&mut rng, shape.iter().product())).collect();
    let inputs: Vec<Tensor> = (shapes.iter().zip(&values))
        .map(|(shape, v)| Tensor::from_slice(&gpu, &shape[..], v))
        .collect();
    let y = forward(&gpu, |tape| {
        let [x, weight, bias, matrix] = &inputs[..] else { unreachable!() };
        let y = ops::layer_norm_operand(tape, x, weight, bias, EPS as f32);
        ops::linear(tape, &y, matrix, None)
    });
    let exact: Vec<Vec<f64>> =
        values.iter().map(|v| v.iter().map(|&v| v.into()).collect()).collect();
    assert_close("output", &y, &product_of_norm(&exact, channels), 1e-5);
}
