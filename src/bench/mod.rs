//! Benchmarks of kernels and blocks, at the model's own shapes: [`ROWS`] and [`Bench`].

use std::time::Instant;

use serde::Serialize;

use crate::gpu::{Plan, Recorder};
use crate::model::{MaskSettings, Model, ModelConfig, SwinBlock};
use crate::nn::Parameters;
use crate::ops::{self, CrossEntropy, MaskPoints, MaskTargets, Matching, PointSource, Windows};
use crate::optim::{AdamW, AdamWSettings};
use crate::random::Rng;
use crate::tape::Stream;
use crate::{Error, Gpu, Result, Shape, Tape, Tensor};

/// What is measured, by name.
pub const ROWS: &[(&str, &str)] = &[
    ("a1", "matrix product 1024 × 1024 × 1024"),
    ("a2", "matrix product 16384 × 96 × 384"),
    ("a3", "matrix product 1024 × 384 × 1536"),
    ("a4", "matrix product 256 × 768 × 3072"),
    ("b1", "layer norm 16384 × 96"),
    ("b2", "layer norm 1024 × 384"),
    ("c", "softmax 49152 × 49"),
    ("d", "window attention, 324 windows × 3 heads × 49 tokens × 32"),
    ("e", "global semantic attention, 1024 tokens, 150 classes, 384 channels"),
    ("f1", "3 × 3 convolution 96 → 256 at 128²"),
    ("f2", "3 × 3 convolution 256 → 256 at 32²"),
    ("g1", "bilinear × 2, 256 channels, 64² → 128²"),
    ("g2", "cross entropy, 150 classes, 512² labels, logits of 128² resized within"),
    ("g2q", "cross entropy, 150 classes, 256² labels and logits"),
    ("h", "AdamW, 35 M parameters in 300 tensors"),
    ("i", "Swin block, 96 channels, 3 heads, 128² tokens, window 7, shift 3"),
    ("j", "Swin-T backbone, 256²"),
    ("q1", "attention of 100 queries to the places of their masks, 80² of 256 channels, 8 heads"),
    ("q2", "attention of 100 queries to each other, 256 channels, 8 heads"),
    ("q3", "mask logits, 100 queries × 256 channels × 160² pixels"),
    ("q4", "class scores of 64 rows of 640 pixels, 100 masks, 150 classes"),
    ("r1", "costs of 100 queries and 10 targets at 12544 points, masks of 160², labels of 640²"),
    ("r2", "loss of 10 masks at 12544 of 40768 points, masks of 160², labels of 640²"),
    ("r3", "loss of 10 masks of 160² on labels of 640²"),
];

/// A row of [`ROWS`], planned on a device.
#[derive(Debug)]
pub struct Bench {
    gpu: Gpu,
    /// What was planned: `"forward"`; `"forward + backward"`; for the optimiser `"step"`.
    pub modes: Vec<(&'static str, Plan)>,
}

/// What [`Bench::measure`] found.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// Name in [`ROWS`].
    pub row: String,
    /// See [`Bench::modes`].
    pub mode: &'static str,
    /// Median of the time from submission to completion.
    pub ms: f64,
    /// Median of the process's time on all cores; absent where it cannot be told.
    pub cpu_ms: Option<f64>,
    /// Of the first run.
    pub first_ms: f64,
    /// Runs that the medians are of.
    pub runs: usize,
    /// Multiplications and additions, in 10⁹.
    pub gflop: f64,
    /// Those per second.
    pub gflop_per_s: f64,
}

/// Makes random inputs that are on the device.
struct Inputs<'a> {
    gpu: &'a Gpu,
    rng: Rng,
}

impl Inputs<'_> {
    fn new_tensor(&mut self, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        let values: Vec<f32> = (0..shape.len()).map(|_| self.rng.between(-0.5, 0.5)).collect();
        let tensor = Tensor::pinned("input", shape);
        tensor.write(self.gpu, &values)?;
        Ok(tensor.tracked())
    }

    fn labels(&mut self, pixels: usize, classes: usize) -> Result<Tensor> {
        let bytes: Vec<u8> = (0..pixels).map(|_| self.rng.below(classes) as u8).collect();
        let labels = Tensor::pinned("labels", [pixels / 4]);
        labels.write(self.gpu, &bytes)?;
        Ok(labels)
    }
}

/// The work of a row: outputs from a tape.
type Work = Box<dyn Fn(&mut Tape) -> Vec<Tensor>>;

impl Bench {
    /// Plans the row called `name`.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when there is no such row, [`Error::Limit`] or [`Error::Device`] when the
    /// device has no room for it.
    pub fn new(gpu: &Gpu, name: &str) -> Result<Self> {
        if name == "h" {
            return Self::optimiser(gpu);
        }
        let mut inputs = Inputs { gpu, rng: Rng::new(1, 1) };
        let work = work(&mut inputs, name)?;

        let mut tape = Tape::inference(gpu.profile());
        for (i, output) in work(&mut tape).iter().enumerate() {
            tape.recorder().keep(output, &format!("output {i}"));
        }
        let forward = Plan::new(gpu, &tape.finish())?;

        let mut tape = Tape::training(gpu.profile());
        let outputs = work(&mut tape);
        let mut seeds = Vec::new();
        for output in &outputs {
            seeds.push(inputs.new_tensor(output.shape().clone())?.detached());
        }
        let pairs: Vec<(&Tensor, Tensor)> = outputs.iter().zip(seeds).collect();
        let (recorder, _) = tape.backward_from(&pairs);
        let both = Plan::new(gpu, &recorder)?;
        let modes = vec![("forward", forward), ("forward + backward", both)];
        Ok(Self { gpu: gpu.clone(), modes })
    }

    fn optimiser(gpu: &Gpu) -> Result<Self> {
        let mut parameters = Parameters::new();
        let shapes: [&[usize]; 3] = [&[500, 500], &[260, 384], &[200]];
        let mut root = parameters.root();
        for (i, shape) in shapes.iter().flat_map(|s| std::iter::repeat_n(s, 100)).enumerate() {
            root.create(&format!("p{i}"), *shape, crate::nn::Init::Normal { std: 0.1 });
        }
        drop(root);
        parameters.initialise(gpu, 1)?;
        let mut optimiser = AdamW::new(&parameters, AdamWSettings::default());
        optimiser.set_groups(gpu, &parameters, |_, _| (1.0, 1e-4))?;
        optimiser.prepare(gpu, 1e-3)?;
        let mut recorder = Recorder::new(gpu.profile());
        optimiser.record_update(&mut recorder);
        let plan = Plan::new(gpu, &recorder)?;
        Ok(Self { gpu: gpu.clone(), modes: vec![("step", plan)] })
    }

    /// Runs each mode of the row `name` until `budget_s` seconds are over or 30 runs are made, at least
    /// three times, after one or two that do not count.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] when the device was lost.
    pub fn measure(&self, name: &str, budget_s: f64) -> Result<Vec<Measurement>> {
        const FEWEST: usize = 3;
        const MOST: usize = 30;
        self.gpu.wait("preparing a benchmark")?;
        let mut all = Vec::new();
        for (mode, plan) in &self.modes {
            let timed = || -> Result<(f64, Option<f64>)> {
                let (cpu, start) = (cpu_ms(), Instant::now());
                plan.run()?;
                let ms = start.elapsed().as_secs_f64() * 1e3;
                Ok((ms, cpu.zip(cpu_ms()).map(|(before, after)| after - before)))
            };
            let (first_ms, _) = timed()?;
            let start = Instant::now();
            if first_ms < 1e3 * budget_s / 8.0 {
                timed()?;
            }
            let (mut walls, mut cpus) = (Vec::new(), Vec::new());
            while walls.len() < FEWEST
                || (walls.len() < MOST && start.elapsed().as_secs_f64() < budget_s)
            {
                let (ms, cpu) = timed()?;
                walls.push(ms);
                cpus.extend(cpu);
            }
            let ms = median(&mut walls).expect("three runs at least");
            let gflop = plan.description().flops() as f64 / 1e9;
            all.push(Measurement {
                row: name.into(),
                mode,
                ms,
                cpu_ms: median(&mut cpus),
                first_ms,
                runs: walls.len(),
                gflop,
                gflop_per_s: 1e3 * gflop / ms,
            });
        }
        Ok(all)
    }
}

/// The work of the row `name`, and its inputs.
fn work(inputs: &mut Inputs<'_>, name: &str) -> Result<Work> {
    let matmul = |inputs: &mut Inputs<'_>, m: usize, k: usize, n: usize| -> Result<Work> {
        // A layer's weight is [outputs, inputs].
        let (x, weight) = (inputs.new_tensor([m, k])?, inputs.new_tensor([n, k])?);
        Ok(Box::new(move |tape: &mut Tape| vec![ops::linear(tape, &x, &weight, None)]))
    };
    let layer_norm = |inputs: &mut Inputs<'_>, rows: usize, channels: usize| -> Result<Work> {
        let x = inputs.new_tensor([rows, channels])?;
        let (weight, bias) = (inputs.new_tensor([channels])?, inputs.new_tensor([channels])?);
        Ok(Box::new(move |tape: &mut Tape| vec![ops::layer_norm(tape, &x, &weight, &bias, 1e-5)]))
    };
    let conv = |inputs: &mut Inputs<'_>, from: usize, to: usize, side: usize| -> Result<Work> {
        let x = inputs.new_tensor([1, side, side, from])?;
        let weight = inputs.new_tensor([to, from, 3, 3])?;
        Ok(Box::new(move |tape: &mut Tape| vec![ops::conv3x3(tape, &x, &weight)]))
    };
    let entropy = |inputs: &mut Inputs<'_>, logits: usize, side: usize| -> Result<Work> {
        let x = inputs.new_tensor([1, logits, logits, 150])?;
        let labels = inputs.labels(side * side, 150)?;
        let settings = CrossEntropy { height: side, width: side, weight: 1.0, ohem_min_kept: None };
        Ok(Box::new(move |tape: &mut Tape| {
            vec![ops::cross_entropy(tape, &x, &labels, settings).loss]
        }))
    };
    Ok(match name {
        "a1" => matmul(inputs, 1024, 1024, 1024)?,
        "a2" => matmul(inputs, 16_384, 96, 384)?,
        "a3" => matmul(inputs, 1024, 384, 1536)?,
        "a4" => matmul(inputs, 256, 768, 3072)?,
        "b1" => layer_norm(inputs, 16_384, 96)?,
        "b2" => layer_norm(inputs, 1024, 384)?,
        "c" => {
            let x = inputs.new_tensor([49_152, 49])?;
            Box::new(move |tape| vec![ops::softmax(tape, &x)])
        }
        "d" => {
            let qkv = inputs.new_tensor([1, 126, 126, 288])?;
            let (qkv_bias, bias) = (inputs.new_tensor([288])?, inputs.new_tensor([3, 49, 49])?);
            let windows = Windows { size: 7, shift: 0 };
            Box::new(move |tape| vec![ops::window_attention(tape, &qkv, &qkv_bias, &bias, windows)])
        }
        "e" => {
            let (q, k) = (inputs.new_tensor([1, 1024, 150])?, inputs.new_tensor([1, 1024, 150])?);
            let v = inputs.new_tensor([1, 1024, 384])?;
            Box::new(move |tape| vec![ops::semantic_attention(tape, &q, &k, &v)])
        }
        "f1" => conv(inputs, 96, 256, 128)?,
        "f2" => conv(inputs, 256, 256, 32)?,
        "g1" => {
            let x = inputs.new_tensor([1, 64, 64, 256])?;
            Box::new(move |tape| vec![ops::resize(tape, &x, 128, 128)])
        }
        "g2" => entropy(inputs, 128, 512)?,
        "g2q" => entropy(inputs, 256, 256)?,
        "i" => {
            let mut parameters = Parameters::new();
            let windows = Windows { size: 7, shift: 3 };
            let block = SwinBlock::new(parameters.root(), 96, 3, windows, 4, 0.0);
            parameters.initialise(inputs.gpu, 1)?;
            let x = inputs.new_tensor([1, 128, 128, 96])?;
            Box::new(move |tape| vec![block.forward(tape, &x)])
        }
        "j" => {
            let model = Model::new(&ModelConfig::preset("swin-t")?)?;
            model.parameters().initialise(inputs.gpu, 1)?;
            let x = inputs.new_tensor([1, 256, 256, 3])?;
            Box::new(move |tape| model.backbone().forward(tape, &x).maps)
        }
        "q1" => {
            let q = inputs.new_tensor([1, 100, 256])?;
            let (k, v) = (inputs.new_tensor([1, 6400, 256])?, inputs.new_tensor([1, 6400, 256])?);
            let logits = inputs.new_tensor([1, 100, 160, 160])?;
            Box::new(move |tape| {
                let mask = ops::attention_mask(tape.recorder(), &logits, 80, 80);
                vec![ops::attention(tape, &q, &k, &v, 8, Some(&mask), 0.0)]
            })
        }
        "q2" => {
            let (q, k) = (inputs.new_tensor([1, 100, 256])?, inputs.new_tensor([1, 100, 256])?);
            let v = inputs.new_tensor([1, 100, 256])?;
            Box::new(move |tape| vec![ops::attention(tape, &q, &k, &v, 8, None, 0.0)])
        }
        "q3" => {
            let (mask, pixels) =
                (inputs.new_tensor([1, 100, 256])?, inputs.new_tensor([1, 25_600, 256])?);
            Box::new(move |tape| vec![ops::matmul(tape, &mask, &pixels, (false, true))])
        }
        "q4" => {
            let probability = inputs.new_tensor([1, 100, 151])?;
            let masks = inputs.new_tensor([1, 100, 160, 160])?;
            Box::new(move |tape| {
                vec![ops::mask_scores(tape.recorder(), &probability, &masks, 0..64, 640)]
            })
        }
        "r1" => {
            let logits = inputs.new_tensor([1, 100, 151])?;
            let masks = inputs.new_tensor([1, 100, 160, 160])?;
            let points = inputs.new_tensor([1, 12_544, 2])?;
            let labels = inputs.labels(640 * 640, 10)?;
            let weights = MaskSettings::default().weights;
            Box::new(move |tape| {
                let recorder = tape.recorder();
                let targets = MaskTargets::new(recorder, &labels, [1, 640, 640], 150);
                let points = Some(&points);
                vec![ops::mask_costs(recorder, &logits, &masks, &targets, points, weights)]
            })
        }
        "r2" | "r3" => {
            let masks = inputs.new_tensor([1, 100, 160, 160])?;
            let labels = inputs.labels(640 * 640, 10)?;
            let pairs = Tensor::pinned("pairs", [202]);
            // Ten pairs: query i has class i.
            let mut words = vec![10, 0.1f32.to_bits()];
            words.extend((0..100u32).chain(0..100));
            pairs.write(inputs.gpu, &words)?;
            let matching = Matching { pairs, goals: Tensor::pinned("goals", [1, 100]) };
            let state = inputs.new_tensor([4])?.detached();
            let settings =
                if name == "r2" { MaskSettings::default() } else { MaskSettings::dense() };
            Box::new(move |tape| {
                let targets = MaskTargets::new(tape.recorder(), &labels, [1, 640, 640], 150);
                let points = settings.points.map(|points| {
                    let [candidates, hard, extra] = points.split();
                    let source = PointSource::Random(Stream { state: state.clone(), id: 1 });
                    MaskPoints { candidates, hard, extra, source }
                });
                let weights = settings.weights;
                vec![ops::mask_loss(tape, &masks, &targets, &matching, points, weights).loss]
            })
        }
        other => {
            let names: Vec<_> = ROWS.iter().map(|(name, _)| *name).collect();
            let reason = format!("there are {}", names.join(", "));
            return Err(Error::invalid(format!("row {other:?}"), reason));
        }
    })
}

fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Time that the process's threads have spent on cores, in milliseconds.
#[cfg(target_os = "linux")]
fn cpu_ms() -> Option<f64> {
    // To the nanosecond, unlike /proc/self/stat. Threads that have ended are missing, but drivers keep
    // theirs.
    let mut total = 0.0;
    for task in std::fs::read_dir("/proc/self/task").ok()? {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        total += text.split_whitespace().next()?.parse::<f64>().ok()?;
    }
    Some(total / 1e6)
}

#[cfg(not(target_os = "linux"))]
fn cpu_ms() -> Option<f64> {
    None
}
