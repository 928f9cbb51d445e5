//! Whole models against the reference: features, priors, logits, predictions, losses, the gradient
//! of every parameter, and every parameter after three steps of AdamW.

use std::collections::HashMap;

use semask_gpu::gpu::Plan;
use semask_gpu::model::{LossSettings, Model, ModelConfig};
use semask_gpu::optim::{AdamW, AdamWSettings};
use semask_gpu::{Gpu, Tape, Tensor, ops};
use serde_json::Value;

use crate::fixtures::Fixture;
use crate::support::{GPU, OTHER, run};

/// The recipe's rule: no decay where the name contains one of these.
const NO_DECAY: [&str; 3] = ["absolute_pos_embed", "relative_position_bias_table", "norm"];

pub(crate) fn config(config: &Value) -> ModelConfig {
    let swin = &config["swin"];
    let list = |key: &str| -> Vec<usize> {
        let values = swin[key].as_array().unwrap();
        values.iter().map(|v| v.as_u64().unwrap() as usize).collect()
    };
    let number = |value: &Value| value.as_u64().unwrap() as usize;
    let default = ModelConfig::default();
    ModelConfig {
        embed_dim: number(&swin["embed_dim"]),
        depths: list("depths"),
        num_heads: list("num_heads"),
        window_size: number(&swin["window_size"]),
        sem_window_size: number(&swin["sem_window_size"]),
        num_sem_blocks: match swin["num_sem_blocks"] {
            Value::Null => vec![1; 4],
            _ => list("num_sem_blocks"),
        },
        windowed: Some(
            swin["windowed"].as_array().unwrap().iter().map(|v| v.as_bool().unwrap()).collect(),
        ),
        num_classes: number(&config["classes"]),
        ape: swin["ape"].as_bool().unwrap_or(false),
        pretrain_img_size: swin["pretrain_img_size"].as_u64().unwrap_or(224) as usize,
        channels: number(&config["channels"]),
        drop_path_rate: 0.0,
        dropout: 0.0,
        sem_dropout: 0.0,
        ..default
    }
}

/// A model with the weights of a fixture, and what became of it.
pub(crate) struct Replay {
    pub(crate) io: Fixture,
    pub(crate) gradients: Fixture,
    pub(crate) after: Fixture,
    pub(crate) model: Model,
    pub(crate) gpu: &'static Gpu,
}

impl Replay {
    fn open(name: &str, gpu: &'static Gpu) -> Option<Self> {
        let part = |kind: &str| Fixture::open(&format!("model.{name}.{kind}"));
        let (io, weights, gradients, after) = (part("io")?, part("w")?, part("g")?, part("p3")?);
        let model = Model::new(&config(&io.config)).unwrap();
        for (name, parameter) in model.parameters().iter() {
            assert_eq!(parameter.tensor.dims(), weights.shape(name), "{name}");
            parameter.tensor.write(gpu, weights.f32(name)).unwrap();
        }
        Some(Self { io, gradients, after, model, gpu })
    }

    fn image(&self) -> Tensor {
        self.io.image(self.gpu, "in.img")
    }

    fn check_forward(&self) {
        let gpu = self.gpu;
        let image = self.image();
        let (height, width) = (image.dims()[1], image.dims()[2]);
        let mut tape = Tape::inference(gpu.profile());
        let features = self.model.backbone().forward(&mut tape, &image);
        let (logits, prior) = self.model.forward_with_prior(&mut tape, &image);
        // The network's input size, then the picture's: two resizes, as the official code does.
        let full = ops::resize(&mut tape, &logits, height, width);
        let full = ops::resize(&mut tape, &full, height + 7, width - 3);
        let probability = ops::softmax(&mut tape, &full);
        let mut kept = HashMap::new();
        for (i, map) in features.maps.iter().enumerate() {
            kept.insert(format!("out.feat.{i}"), tape.recorder().keep(map, "map"));
        }
        for (i, prior) in features.priors.iter().enumerate() {
            let prior = prior.as_ref().unwrap();
            kept.insert(format!("out.prior.{i}"), tape.recorder().keep(prior, "prior"));
        }
        kept.insert("out.eval.logits".into(), tape.recorder().keep(&logits, "logits"));
        let prior = prior.unwrap();
        kept.insert("out.eval.prior".into(), tape.recorder().keep(&prior, "prior"));
        let probability = tape.recorder().keep(&probability, "probability");
        run(gpu, &tape.finish());
        for (name, tensor) in kept {
            self.io.check_image(&name, &tensor.read(gpu).unwrap());
        }

        let [batch, height, width, classes] = *probability.dims() else { unreachable!() };
        let values = probability.read(gpu).unwrap();
        let sample: Vec<f32> = (0..batch)
            .flat_map(|b| (0..classes).map(move |k| (b, k)))
            .flat_map(|(b, k)| (0..height).step_by(9).map(move |y| (b, k, y)))
            .flat_map(|(b, k, y)| (0..width).step_by(7).map(move |x| (b, k, y, x)))
            .map(|(b, k, y, x)| values[((b * height + y) * width + x) * classes + k])
            .collect();
        self.io.check("out.eval.prob_sample", &sample);
        let best = values.chunks(classes).map(|row| {
            let largest = |a: usize, b: usize| if row[b] > row[a] { b } else { a };
            (0..classes).reduce(largest).unwrap() as u8
        });
        self.io.check_integers("out.eval.argmax", &best.collect::<Vec<u8>>());
    }

    fn check_training(&self) {
        let gpu = self.gpu;
        let io = &self.io;
        let number = |key: &str| io.config[key].as_f64().unwrap();
        let labels = io.labels("in.label");
        let mut words = labels.clone();
        words.resize(labels.len().next_multiple_of(4), 255);
        let packed: Vec<u32> = bytemuck::pod_collect_to_vec(&words);
        let packed = Tensor::from_slice(gpu, [packed.len()], &packed);

        let settings = LossSettings {
            cate_w: number("cate_w") as f32,
            ohem_min_kept: io.config["ohem_min_kept"].as_u64().map(|n| n as usize),
            ..LossSettings::default()
        };
        let mut tape = Tape::training(gpu.profile());
        let losses = self.model.losses(&mut tape, &self.image(), &packed, settings);
        let mut keep = |t: &Tensor| tape.recorder().keep(t, "loss");
        let watched = [
            ("out.loss_total", keep(&losses.total)),
            ("out.loss_ce", keep(&losses.ce)),
            ("out.loss_cate", keep(losses.cate.as_ref().unwrap())),
        ];
        let accuracy = keep(losses.accuracy.as_ref().unwrap());
        let decay = number("weight_decay") as f32;
        let rule = |name: &str, _| {
            (1.0, if NO_DECAY.iter().any(|part| name.contains(part)) { 0.0 } else { decay })
        };
        let first = || io.check("out.acc_seg", &accuracy.read(gpu).unwrap());
        self.check_steps(
            tape,
            &losses.total,
            AdamWSettings::default(),
            rule,
            (&watched, 1e-5),
            first,
        );
    }

    /// Steps of AdamW that lower `loss`, at the fixture's rates: the gradient of every parameter in the first
    /// step, every parameter after the last. Numbers of `watched`, and the gradient's norm if it is clipped,
    /// are the fixture's in each step, in the first within the relative error that is given with them.
    ///
    /// `rule`: as for [`AdamW::set_groups`]; `first` checks more after the first step.
    pub(crate) fn check_steps(
        &self,
        tape: Tape,
        loss: &Tensor,
        settings: AdamWSettings,
        rule: impl Fn(&str, usize) -> (f32, f32),
        (watched, exact): (&[(&str, Tensor)], f32),
        first: impl Fn(),
    ) {
        let (gpu, io, parameters) = (self.gpu, &self.io, self.model.parameters());
        let (mut recorder, gradients) = tape.backward(loss);
        let clips = settings.max_norm.is_some();
        let mut adamw = AdamW::new(parameters, settings);
        adamw.set_groups(gpu, parameters, rule).unwrap();
        adamw.record_gradients(&mut recorder, parameters, &gradients).unwrap();
        adamw.record_update(&mut recorder);
        let gradients: HashMap<&str, Tensor> = (parameters.trained())
            .map(|(name, p)| (name, recorder.keep(gradients.get(&p.tensor).unwrap(), name)))
            .collect();
        let start: HashMap<&str, Vec<f32>> =
            parameters.iter().map(|(name, p)| (name, p.tensor.read(gpu).unwrap())).collect();

        let plan = Plan::new(gpu, &recorder).unwrap();
        let rates: Vec<f64> =
            io.config["lr"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        for (step, &lr) in rates.iter().enumerate() {
            adamw.prepare(gpu, lr).unwrap();
            plan.run().unwrap();
            let norm = clips.then(|| ("out.grad_norm", adamw.norm()));
            for (name, tensor) in watched.iter().map(|(name, t)| (*name, t)).chain(norm) {
                let (got, expected) = (tensor.read(gpu).unwrap()[0], io.f32(name)[step]);
                let error = ((got - expected) / expected).abs();
                // Later steps follow from parameters that rounding may have moved.
                let most = if step == 0 { exact } else { 10.0 * exact };
                assert!(error <= most, "{name}, step {step}: {got} but expected {expected}");
            }
            if step == 0 {
                first();
                self.check_gradients(&gradients);
            }
        }
        self.check_update(&start, rates.iter().sum());
    }

    /// All gradients together within 2e-5 (relative L2), and each within its own tolerance.
    fn check_gradients(&self, gradients: &HashMap<&str, Tensor>) {
        let noise: Vec<&str> = self.noise();
        let largest = self.io.config["largest_gradient"].as_f64().unwrap();
        let (mut squared_error, mut squares) = (0.0, 0.0);
        for (&name, tensor) in gradients {
            let got = tensor.read(self.gpu).unwrap();
            let expected = self.gradients.f32(name);
            assert_eq!(got.len(), expected.len());
            if noise.contains(&name) {
                // Zero but for rounding.
                assert!(
                    got.iter().all(|g| f64::from(g.abs()) <= 1e-5 * largest),
                    "{name}: {got:?}"
                );
                continue;
            }
            for (g, e) in got.iter().zip(expected) {
                squared_error += f64::from(g - e).powi(2);
                squares += f64::from(*e).powi(2);
            }
            let scale = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
            for (at, (g, e)) in got.iter().zip(expected).enumerate() {
                let error = f64::from((g - e).abs());
                let bound = 1e-4 * f64::from(scale) + 1e-6 * largest;
                assert!(error <= bound, "gradient of {name}[{at}]: {g} but expected {e}");
            }
        }
        let relative = (squared_error / squares).sqrt();
        assert!(relative <= 2e-5, "all gradients: relative L2 error {relative:.1e}");
    }

    /// Updates whose gradient is far from zero within 5e-4 (relative L2): AdamW divides by the
    /// gradient's own size, so that near zero rounding decides. Those are only bounded.
    ///
    /// A rectifier whose input lies within rounding of 0 takes the other side in a later step now
    /// and then, which shows in the weights of its filter: one update in 1,000 may be off.
    fn check_update(&self, start: &HashMap<&str, Vec<f32>>, total_rate: f64) {
        let significant = 1e-4 * self.io.config["largest_gradient"].as_f64().unwrap();
        let noise = self.noise();
        let (mut squared_errors, mut squares) = (Vec::new(), 0.0);
        for (name, parameter) in self.model.parameters().iter() {
            let got = parameter.tensor.read(self.gpu).unwrap();
            if !parameter.is_trained() && !self.after.has(name) {
                // A constant that checkpoints carry.
                assert_eq!(got, start[name], "{name}");
                continue;
            }
            let expected = self.after.f32(name);
            if !parameter.is_trained() {
                // Running statistics follow from parameters that rounding may have moved.
                let scale = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
                let close = |(g, e): (&f32, &f32)| (g - e).abs() <= 1e-3 * scale;
                assert!(got.iter().zip(expected).all(close), "{name}: {got:?}, not {expected:?}");
                continue;
            }
            let gradient = self.gradients.f32(name);
            for (at, (g, e)) in got.iter().zip(expected).enumerate() {
                let (update, wanted) = (g - start[name][at], e - start[name][at]);
                if f64::from(gradient[at].abs()) > significant && !noise.contains(&name) {
                    squared_errors.push(f64::from(update - wanted).powi(2));
                    squares += f64::from(wanted).powi(2);
                }
                let most = total_rate * (1.1 + f64::from(start[name][at].abs()) * 0.05);
                assert!(f64::from(update.abs()) <= most, "{name}[{at}] moved by {update}");
            }
        }
        squared_errors.sort_by(f64::total_cmp);
        squared_errors.truncate(squared_errors.len() - squared_errors.len() / 1_000);
        let relative = (squared_errors.iter().sum::<f64>() / squares).sqrt();
        // SwiftShader's exp and log are about as exact as WGSL demands, which is ten times less than
        // other drivers' are; the gradients still pass, and AdamW magnifies what is left.
        let most = if self.gpu.name().contains("SwiftShader") { 5e-2 } else { 5e-4 };
        assert!(relative <= most, "updates: relative L2 error {relative:.1e}");
    }

    fn noise(&self) -> Vec<&str> {
        let names = self.io.config["noise_gradients"].as_array().unwrap();
        names.iter().map(|v| v.as_str().unwrap()).collect()
    }
}

fn check(name: &str) {
    for gpu in [&*GPU, &*OTHER] {
        let Some(replay) = Replay::open(name, gpu) else { return };
        replay.check_forward();
        replay.check_training();
    }
}

#[test]
fn windowed_with_padding_at_an_odd_size() {
    check("fpn_k19_pad");
}

#[test]
fn global_attention_of_150_classes_and_two_blocks() {
    check("fpn_k150_global");
}

#[test]
fn windows_of_12_and_hard_example_mining() {
    check("fpn_w12_ohem");
}

#[test]
fn three_blocks_another_semantic_window_and_a_position_embedding() {
    check("fpn_k19_sem3_ape");
}
