//! Mixed precision: what is rounded to 16 bits and what is not, the loss scale, and training with both.

use half::f16;
use semask_gpu::gpu::{Profile, Recorder};
use semask_gpu::nn::{Init, Parameters};
use semask_gpu::ops::Windows;
use semask_gpu::optim::{AdamW, AdamWSettings};
use semask_gpu::random::Rng;
use semask_gpu::tape::Gradients;
use semask_gpu::train::log;
use semask_gpu::train::recipe::Recipe;
use semask_gpu::train::trainer::{LATEST, train};
use semask_gpu::{Gpu, Shape, Tape, Tensor, ops};

use crate::support::{F32, GPU, MATRICES, assert_close, devices, normal_cdf, random, run};
use crate::training;

/// A value that was rounded to 16 bits before or after another rounding is off by one of the last of 11.
const ROUNDED: f64 = 1.0 / 1024.0;

/// The devices that have numbers of 16 bits.
fn half_devices() -> Vec<(&'static str, &'static Gpu)> {
    let mut devices: Vec<_> = devices();
    if GPU.profile().matrix.is_some() {
        devices.push((" (matrices)", &*MATRICES));
    }
    devices.retain(|(_, gpu)| gpu.profile().half);
    if devices.is_empty() {
        eprintln!("skipped: {} has no numbers of 16 bits", GPU.name());
    }
    devices
}

fn rounded(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f16::from_f32(v).to_f64()).collect()
}

fn narrow(values: &[f64]) -> Vec<f64> {
    values.iter().map(|&v| f16::from_f64(v).to_f64()).collect()
}

/// `a` `[m, k]` times `b` `[k, n]`, both given by what is at (row, column).
fn product(
    [m, k, n]: [usize; 3],
    a: impl Fn(usize, usize) -> f64,
    b: impl Fn(usize, usize) -> f64,
) -> Vec<f64> {
    let element = |i: usize| (0..k).map(|j| a(i / n, j) * b(j, i % n)).sum();
    (0..m * n).map(element).collect()
}

/// Output and gradients of `op` for random inputs of these shapes and a random gradient of the output; and
/// all values that went in, that gradient last.
fn run_mixed(
    gpu: &Gpu,
    shapes: &[&[usize]],
    op: impl Fn(&mut Tape, &[Tensor]) -> Tensor,
) -> (Vec<f32>, Vec<Vec<f32>>, Vec<Vec<f32>>) {
    let mut rng = Rng::new(0x5eed, 0);
    let mut values: Vec<Vec<f32>> =
        shapes.iter().map(|s| random(&mut rng, Shape::from(*s).len())).collect();
    let inputs: Vec<Tensor> = (shapes.iter().zip(&values))
        .map(|(shape, v)| Tensor::from_slice(gpu, *shape, v).tracked())
        .collect();
    let mut tape = Tape::training(gpu.profile()).mixed(true);
    let y = op(&mut tape, &inputs);
    values.push(random(&mut rng, y.shape().len()));
    let dy = Tensor::from_slice(gpu, y.shape().clone(), &values[shapes.len()]);
    let kept = tape.recorder().keep(&y, "y");
    let (mut recorder, gradients): (Recorder, Gradients) = tape.backward_from(&[(&y, dy)]);
    let kept_gradients: Vec<_> =
        inputs.iter().map(|x| recorder.keep(gradients.get(x).unwrap(), "gradient")).collect();
    run(gpu, &recorder);
    let gradients = kept_gradients.iter().map(|g| g.read(gpu).unwrap()).collect();
    (kept.read(gpu).unwrap(), gradients, values)
}

#[test]
fn a_linear_layer_rounds_what_it_reads_and_nothing_else() {
    for (device, gpu) in half_devices() {
        // Alone, and many rows, so that the weight's gradient is split.
        for [rows, inputs, outputs] in [[1, 1, 1], [37, 19, 11], [64, 32, 48], [2512, 16, 80]] {
            let shapes: [&[usize]; 3] = [&[rows, inputs], &[outputs, inputs], &[outputs]];
            let (y, gradients, values) =
                run_mixed(gpu, &shapes, |tape, t| ops::linear(tape, &t[0], &t[1], Some(&t[2])));
            let [x, w, bias, dy] = &values[..] else { unreachable!() };
            let (x, w, dy16) = (rounded(x), rounded(w), rounded(dy));
            let mut expected = product(
                [rows, inputs, outputs],
                |r, i| x[r * inputs + i],
                |i, o| w[o * inputs + i],
            );
            for (at, y) in expected.iter_mut().enumerate() {
                *y += f64::from(bias[at % outputs]);
            }
            let name = format!("{rows} × {inputs} × {outputs}{device}");
            assert_close(&name, &y, &expected, F32.forward);
            let dx = product(
                [rows, outputs, inputs],
                |r, o| dy16[r * outputs + o],
                |o, i| w[o * inputs + i],
            );
            let dw = product(
                [outputs, rows, inputs],
                |o, r| dy16[r * outputs + o],
                |r, i| x[r * inputs + i],
            );
            let dbias =
                product([1, rows, outputs], |_, _| 1.0, |r, o| f64::from(dy[r * outputs + o]));
            for (what, got, expected) in [("dx", 0, dx), ("dw", 1, dw), ("dbias", 2, dbias)] {
                assert_close(&format!("{what}, {name}"), &gradients[got], &expected, F32.forward);
            }
        }
    }
}

#[test]
fn a_convolution_rounds_what_it_reads_and_nothing_else() {
    for (device, gpu) in half_devices() {
        for [height, width, inputs, outputs] in [[3, 5, 3, 2], [9, 7, 20, 36]] {
            let shapes: [&[usize]; 2] = [&[1, height, width, inputs], &[outputs, inputs, 3, 3]];
            let (y, gradients, values) =
                run_mixed(gpu, &shapes, |tape, t| ops::conv3x3(tape, &t[0], &t[1]));
            let [x, w, dy] = &values[..] else { unreachable!() };
            let (x, w, dy) = (rounded(x), rounded(w), rounded(dy));
            let mut expected = [vec![0.0; y.len()], vec![0.0; x.len()], vec![0.0; w.len()]];
            let taps = (0..3).flat_map(|ky| (0..3).map(move |kx| (ky, kx)));
            for (at, (ky, kx)) in
                (0..height * width).flat_map(|at| taps.clone().map(move |t| (at, t)))
            {
                let (down, across) = (at / width + ky, at % width + kx);
                if !(1..=height).contains(&down) || !(1..=width).contains(&across) {
                    continue;
                }
                let from = (down - 1) * width + across - 1;
                for (o, i) in (0..outputs).flat_map(|o| (0..inputs).map(move |i| (o, i))) {
                    let [to, read] = [at * outputs + o, from * inputs + i];
                    let weight = ((o * inputs + i) * 3 + ky) * 3 + kx;
                    expected[0][to] += x[read] * w[weight];
                    expected[1][read] += dy[to] * w[weight];
                    expected[2][weight] += dy[to] * x[read];
                }
            }
            let got = [&y, &gradients[0], &gradients[1]];
            for ((what, got), expected) in ["y", "dx", "dw"].iter().zip(got).zip(&expected) {
                let what = format!("{what}, {height} × {width} × {inputs} → {outputs}{device}");
                assert_close(&what, got, expected, F32.forward);
            }
        }
    }
}

#[test]
fn an_mlp_keeps_its_inner_values_in_16_bits() {
    for (rows, inputs, hidden) in [(45, 24, 56), (48, 32, 80)] {
        let shapes: [&[usize]; 7] = [
            &[rows, inputs],
            &[inputs],
            &[inputs],
            &[hidden, inputs],
            &[hidden],
            &[inputs, hidden],
            &[inputs],
        ];
        for (device, gpu) in half_devices() {
            let (y, gradients, values) = run_mixed(gpu, &shapes, |tape, t| {
                let x = ops::layer_norm_operand(tape, &t[0], &t[1], &t[2], 1e-5);
                let h = ops::linear_gelu(tape, &x, &t[3], &t[4]);
                ops::linear_residual(tape, &h, &t[5], &t[6], &t[0], None)
            });
            let exact = |i: usize| -> Vec<f64> { values[i].iter().map(|&v| v.into()).collect() };
            let (x, scale, shift, b1, b2, dy) =
                (exact(0), exact(1), exact(2), exact(4), exact(6), exact(7));
            let (w1, w2) = (rounded(&values[3]), rounded(&values[5]));
            let normal: Vec<f64> = (0..rows)
                .flat_map(|r| {
                    let row = &x[r * inputs..][..inputs];
                    let mean = row.iter().sum::<f64>() / inputs as f64;
                    let var = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / inputs as f64;
                    let scaled = move |(i, v): (usize, &f64)| (i, (v - mean) / (var + 1e-5).sqrt());
                    row.iter().enumerate().map(scaled).collect::<Vec<_>>()
                })
                .map(|(i, v)| v * scale[i] + shift[i])
                .collect();
            let normal = narrow(&normal);
            let before = product(
                [rows, inputs, hidden],
                |r, i| normal[r * inputs + i],
                |i, h| w1[h * inputs + i],
            );
            let before: Vec<f64> =
                before.iter().enumerate().map(|(at, v)| v + b1[at % hidden]).collect();
            let activation: Vec<f64> = before.iter().map(|v| v * normal_cdf(*v)).collect();
            let (before, activation) = (narrow(&before), narrow(&activation));
            let out = product(
                [rows, hidden, inputs],
                |r, h| activation[r * hidden + h],
                |h, i| w2[i * hidden + h],
            );
            let expected: Vec<f64> =
                out.iter().enumerate().map(|(at, v)| x[at] + v + b2[at % inputs]).collect();
            assert_close(&format!("output{device}"), &y, &expected, ROUNDED);

            let dy16 = narrow(&dy);
            let dh = product(
                [rows, inputs, hidden],
                |r, i| dy16[r * inputs + i],
                |i, h| w2[i * hidden + h],
            );
            let density = |v: f64| (-0.5 * v * v).exp() / (2.0 * std::f64::consts::PI).sqrt();
            let slope = |v: f64| normal_cdf(v) + v * density(v);
            let dbefore: Vec<f64> = dh.iter().zip(&before).map(|(d, v)| d * slope(*v)).collect();
            let dbefore = narrow(&dbefore);
            let dw1 = product(
                [hidden, rows, inputs],
                |h, r| dbefore[r * hidden + h],
                |r, i| normal[r * inputs + i],
            );
            let db1 = product([1, rows, hidden], |_, _| 1.0, |r, h| dbefore[r * hidden + h]);
            let dw2 = product(
                [inputs, rows, hidden],
                |i, r| dy16[r * inputs + i],
                |r, h| activation[r * hidden + h],
            );
            for (what, got, expected) in [("dw1", 3, dw1), ("db1", 4, db1), ("dw2", 5, dw2)] {
                assert_close(&format!("{what}{device}"), &gradients[got], &expected, ROUNDED);
            }
            let named = ["dx", "dscale", "dshift"].iter().zip(&gradients);
            for (what, gradient) in named {
                let finite =
                    gradient.iter().all(|v| v.is_finite()) && gradient.iter().any(|v| *v != 0.0);
                assert!(finite, "{what}{device}");
            }
        }
    }
}

/// An update of one parameter whose gradient is `scale` times `slope`.
fn update(gpu: &Gpu, adamw: &mut AdamW, parameters: &Parameters, slope: f32) {
    let w = parameters.iter().next().unwrap().1.tensor.clone();
    let mut tape = Tape::training(gpu.profile());
    let factor = Tensor::from_slice(gpu, w.shape().clone(), &vec![slope; w.shape().len()]);
    let product =
        ops::matmul(&mut tape, &w.reshape([1, 64]), &factor.reshape([64, 1]), (false, false));
    let (mut recorder, gradients) = adamw.backward(tape, &product.reshape([1]));
    adamw.record_gradients(&mut recorder, parameters, &gradients).unwrap();
    adamw.record_update(&mut recorder);
    adamw.prepare(gpu, 0.1).unwrap();
    run(gpu, &recorder);
}

#[test]
fn updates_with_gradients_beyond_range_are_left_out_and_the_scale_adapts() {
    for (device, gpu) in devices() {
        let made = |loss_scale| {
            let mut parameters = Parameters::new();
            parameters.root().create("w", [64], Init::Constant(1.0));
            parameters.initialise(gpu, 1).unwrap();
            let settings =
                AdamWSettings { max_norm: Some(0.5), loss_scale, ..AdamWSettings::default() };
            let adamw = AdamW::new(&parameters, settings);
            adamw.set_groups(gpu, &parameters, |_, _| (1.0, 0.01)).unwrap();
            (parameters, adamw)
        };
        let read =
            |parameters: &Parameters| parameters.iter().next().unwrap().1.tensor.read(gpu).unwrap();
        let (plain, mut plain_adamw) = made(false);
        let (scaled, mut scaled_adamw) = made(true);
        let slopes = [0.25, f32::MAX, f32::NAN, f32::INFINITY, -0.125, 0.5];
        for (i, slope) in slopes.into_iter().enumerate() {
            let before = read(&scaled);
            update(gpu, &mut scaled_adamw, &scaled, slope);
            if (1..4).contains(&i) {
                assert_eq!(read(&scaled), before, "{slope}{device}");
            } else {
                // As if the others had not been; the factor is a power of two, which changes no bit.
                update(gpu, &mut plain_adamw, &plain, slope);
                assert_eq!(read(&scaled), read(&plain), "{slope}{device}");
                assert_ne!(read(&scaled), before, "{slope}{device}");
            }
        }
        scaled_adamw.prepare(gpu, 0.1).unwrap();
        let seen = scaled_adamw.loss_scale().unwrap();
        assert_eq!((seen.factor, seen.left_out), (65536.0 / 8.0, 3), "{device}");
    }
}

#[test]
fn the_scale_doubles_after_two_thousand_good_updates() {
    let mut parameters = Parameters::new();
    parameters.root().create("w", [64], Init::Constant(1.0));
    parameters.initialise(&GPU, 1).unwrap();
    let settings = AdamWSettings { loss_scale: true, ..AdamWSettings::default() };
    let mut adamw = AdamW::new(&parameters, settings);
    adamw.set_groups(&GPU, &parameters, |_, _| (1.0, 0.0)).unwrap();
    let mut tape = Tape::training(GPU.profile());
    let w = parameters.iter().next().unwrap().1.tensor.clone();
    let ones = ops::fill(tape.recorder(), [64, 1], 1.0);
    let loss = ops::matmul(&mut tape, &w.reshape([1, 64]), &ones, (false, false)).reshape([1]);
    let (mut recorder, gradients) = adamw.backward(tape, &loss);
    adamw.record_gradients(&mut recorder, &parameters, &gradients).unwrap();
    adamw.record_update(&mut recorder);
    let plan = semask_gpu::gpu::Plan::new(&GPU, &recorder).unwrap();
    for (updates, factor) in [(1999, 65536.0), (1, 131072.0), (1999, 131072.0), (1, 262144.0)] {
        for _ in 0..updates {
            plan.replay().unwrap();
        }
        adamw.prepare(&GPU, 1e-6).unwrap();
        assert_eq!(adamw.loss_scale().unwrap().factor, factor, "after {updates} more");
    }
}

#[test]
fn training_follows_full_precision_and_resumes_with_the_same_bits() {
    if half_devices().is_empty() {
        return;
    }
    let folder = training::workshop();
    let mixed = "train.precision=\"mixed\"";
    let losses = |run: &str| -> Vec<f64> {
        let events = log::read(&folder.path().join(run).join(log::FILE_NAME)).unwrap();
        events
            .iter()
            .filter(|e| e["event"] == "step")
            .map(|e| e["loss"].as_f64().unwrap())
            .collect()
    };
    train(&GPU, training::options(folder.path(), "full", &[])).unwrap();
    train(&GPU, training::options(folder.path(), "mixed", &[mixed])).unwrap();
    let (full, mixed_losses) = (losses("full"), losses("mixed"));
    assert_eq!(full.len(), mixed_losses.len());
    for (i, (full, mixed)) in full.iter().zip(&mixed_losses).enumerate() {
        assert!((full - mixed).abs() <= 0.01 * full, "iteration {i}: {mixed} instead of {full}");
    }
    assert_ne!(full, mixed_losses, "there is a difference");

    training::stop_and_resume(folder.path(), "halted", &[mixed]);
    let last = |run: &str| training::bytes(&folder.path().join(run), LATEST);
    assert!(last("halted") == last("mixed"), "the resumed run ends with other bits");
}

#[test]
fn heads_that_find_masks_train_in_mixed_precision() {
    if half_devices().is_empty() {
        return;
    }
    let folder = training::workshop();
    for head in ["mask2former", "msfapn"] {
        let own = [format!("model.head={head}"), "loss.num_points=64".into()];
        let mixed = ["train.precision=\"mixed\"", "schedule.iterations=2"];
        let sets: Vec<&str> =
            own.iter().map(String::as_str).chain(training::MASKS).chain(mixed).collect();
        // A loss that is not finite would be an error.
        train(&GPU, training::options(folder.path(), head, &sets)).unwrap();
    }
}

#[test]
fn a_device_without_16_bit_numbers_refuses_mixed_precision_by_the_recipes_key() {
    let recipe = Recipe::preset_with("quickstart", &["train.precision=\"mixed\""]).unwrap();
    let refused = recipe.check_device(&Profile { half: false, ..GPU.profile().clone() });
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("train.precision") && text.contains("\"full\""), "{text}");
    recipe.check_device(&Profile { half: true, ..GPU.profile().clone() }).unwrap();
}

/// Rounded a few times on the way, values differ by a few of the last of 11 bits of the largest.
const ROUNDED_OFTEN: f64 = 8.0 * ROUNDED;

#[test]
fn attention_within_windows_reads_and_makes_16_bits() {
    let (heads, head, windows) = (2, 8, Windows { size: 3, shift: 1 });
    let channels = heads * head;
    // Padding on both sides.
    let shapes: [&[usize]; 6] = [
        &[1, 5, 7, channels],
        &[3 * channels, channels],
        &[3 * channels],
        &[25, heads],
        &[channels, channels],
        &[channels],
    ];
    let block = |tape: &mut Tape, t: &[Tensor]| {
        let qkv = ops::linear_operand(tape, &t[0], &t[1], &t[2]);
        let bias = ops::relative_position_bias(tape, &t[3], windows.size);
        let y = ops::window_attention(tape, &qkv, &t[2], &bias, windows);
        ops::linear_residual(tape, &y, &t[4], &t[5], &t[0], None)
    };
    for (device, gpu) in half_devices() {
        let small: Vec<Vec<f32>> = {
            let mut rng = Rng::new(0x5eed, 3);
            let values = shapes.iter().map(|s| random(&mut rng, Shape::from(*s).len()));
            values.map(|v| v.iter().map(|v| 0.25 * v).collect()).collect()
        };
        let [full, mixed] = [false, true].map(|mixed| {
            let inputs: Vec<Tensor> = (shapes.iter().zip(&small))
                .map(|(shape, v)| Tensor::from_slice(gpu, *shape, v).tracked())
                .collect();
            let mut tape = Tape::training(gpu.profile()).mixed(mixed);
            let y = block(&mut tape, &inputs);
            let dy: Vec<f32> = random(&mut Rng::new(0x5eed, 4), y.shape().len());
            let seed = Tensor::from_slice(gpu, y.shape().clone(), &dy);
            let kept = tape.recorder().keep(&y, "y");
            let (mut recorder, gradients) = tape.backward_from(&[(&y, seed)]);
            let mut results = vec![kept];
            for x in &inputs {
                results.push(recorder.keep(gradients.get(x).unwrap(), "gradient"));
            }
            run(gpu, &recorder);
            results.iter().map(|t| t.read(gpu).unwrap()).collect::<Vec<_>>()
        });
        for (i, (full, mixed)) in full.iter().zip(&mixed).enumerate() {
            let expected: Vec<f64> = full.iter().map(|&v| v.into()).collect();
            assert_close(&format!("result {i}{device}"), mixed, &expected, ROUNDED_OFTEN);
        }
        assert_ne!(full[0], mixed[0], "something was rounded{device}");
    }
}
