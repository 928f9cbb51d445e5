//! Benchmarks of kernels and blocks, at the models' own shapes: [`ROWS`] and [`Bench`]; what the device
//! can do at most: [`Roofs`]; how times grow: [`scaling`].

mod report;
mod roofs;
pub mod scaling;

pub mod host;

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::gpu::{Plan, Recorder};
use crate::model::{MaskSettings, Model, ModelConfig, SwinBlock};
use crate::nn::Parameters;
use crate::ops::predict::{self, Resizing};
use crate::ops::{
    self, BatchNorm, CrossEntropy, GroupNorm, Image, MaskPoints, MaskTargets, Matching, Normalize,
    PointSource, Running, Windows,
};
use crate::optim::{AdamW, AdamWSettings};
use crate::random::Rng;
use crate::tape::Stream;
use crate::{Error, Gpu, Result, Shape, Tape, Tensor};

pub use report::{Report, picture};
pub(crate) use roofs::KERNELS;
pub use roofs::{Roof, Roofs, arithmetic, gather, simple_product};

/// What is measured, by name.
pub const ROWS: &[(&str, &str)] = &[
    ("a1", "matrix product 1024 × 1024 × 1024"),
    ("a2", "matrix product 16384 × 96 × 384"),
    ("a3", "matrix product 1024 × 384 × 1536"),
    ("a4", "matrix product 256 × 768 × 3072"),
    ("a5", "matrix product 256 × 384 × 768"),
    ("a5s", "the same by one invocation per element, for comparison"),
    ("a6", "matrix product 16384 × 96 × 384 with bias and GELU"),
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
    ("m1", "batch norm + ReLU, 256 channels at 128²"),
    ("m2", "group norm, 32 groups of 8 channels at 128²"),
    ("m3", "deformable attention, 256 channels, 8 heads, maps of 64², 32² and 16²"),
    ("m4", "deformable convolution 128 → 128 at 64², 8 groups"),
    ("m5", "depthwise 3 × 3 convolution, 384 channels at 64²"),
    ("m6", "patches of 4 × 4 of a picture of 512²"),
    ("m6b", "the same from bytes, normalised on the way"),
    ("m7", "patch merging, 96 channels at 128²"),
    ("m8", "argmax of 150 classes, logits of 128² resized to 512²"),
    ("n1", "sum of two tensors of 6.3 M elements"),
    ("n2", "GELU of 6.3 M elements"),
    ("n3", "sum of 16384 rows of 384, a bias's gradient"),
];

/// A row of [`ROWS`], planned on a device.
#[derive(Debug)]
pub struct Bench {
    gpu: Gpu,
    /// What was planned: `"forward"`; `"forward + backward"`; for the optimiser `"step"`.
    pub modes: Vec<(String, Plan)>,
    /// Bytes that each mode has to move: inputs, outputs and their gradients, each once in every
    /// direction.
    pub bytes: Vec<u64>,
    /// Of these, bytes that the forward pass reads from places that only the data tells.
    gathered: u64,
}

/// What [`Bench::measure`] found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measurement {
    /// Name in [`ROWS`].
    pub row: String,
    /// See [`Bench::modes`].
    pub mode: String,
    /// Median of the time from submission to completion.
    pub ms: f64,
    /// Median of the process's time on all cores; absent where it cannot be told.
    pub cpu_ms: Option<f64>,
    /// Of the first run.
    pub first_ms: f64,
    /// Runs that the medians are of.
    pub runs: usize,
    /// What rates are taken of: on a software driver `cpu_ms`, so that they are those of one core; else `ms`.
    pub busy_ms: f64,
    /// Multiplications and additions, in 10⁹.
    pub gflop: f64,
    /// Those per second.
    pub gflop_per_s: f64,
    /// See [`Bench::bytes`]; in 10⁹.
    pub gbyte: f64,
    /// Those per second.
    pub gbyte_per_s: f64,
    /// What binds it, and the share of that rate that it reaches, once the device's roofs are known.
    pub bound: Option<(Roof, f64)>,
}

/// Makes random inputs that are on the device.
struct Inputs<'a> {
    gpu: &'a Gpu,
    rng: Rng,
    bytes: u64,
    /// Bytes of those that gradients are taken of.
    tracked: u64,
}

impl Inputs<'_> {
    fn new_tensor(&mut self, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        let values: Vec<f32> = (0..shape.len()).map(|_| self.rng.between(-0.5, 0.5)).collect();
        let tensor = Tensor::pinned("input", shape);
        tensor.write(self.gpu, &values)?;
        self.bytes += 4 * values.len() as u64;
        self.tracked += 4 * values.len() as u64;
        Ok(tensor.tracked())
    }

    fn labels(&mut self, pixels: usize, classes: usize) -> Result<Tensor> {
        let bytes: Vec<u8> = (0..pixels).map(|_| self.rng.below(classes) as u8).collect();
        let labels = Tensor::pinned("labels", [pixels / 4]);
        labels.write(self.gpu, &bytes)?;
        self.bytes += pixels as u64;
        Ok(labels)
    }

    fn parameters(&mut self, parameters: &Parameters) -> Result<()> {
        parameters.initialise(self.gpu, 1)?;
        self.bytes += 4 * parameters.count() as u64;
        self.tracked += 4 * parameters.count() as u64;
        Ok(())
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
        let mut inputs = Inputs::new(gpu);
        let work = work(&mut inputs, name)?;
        // Four corners of every sample.
        let gathered = match name {
            "m3" => 4 * 4 * (64 * 64 + 32 * 32 + 16 * 16) * 256 * 12,
            "m4" => 4 * 4 * 64 * 64 * 9 * 128,
            _ => 0,
        };
        // Some have no way back, and that of a sum is free.
        let with_backward = !matches!(name, "a5s" | "m6b" | "m8" | "n1" | "n3" | "q4" | "r1");
        Self::plan(inputs, &work, with_backward, gathered)
    }

    fn plan(
        mut inputs: Inputs<'_>,
        work: &Work,
        with_backward: bool,
        gathered: u64,
    ) -> Result<Self> {
        let gpu = inputs.gpu;
        let mut tape = Tape::inference(gpu.profile());
        let outputs = work(&mut tape);
        for (i, output) in outputs.iter().enumerate() {
            tape.recorder().keep(output, &format!("output {i}"));
        }
        let written: u64 = outputs.iter().map(|y| 4 * y.shape().len() as u64).sum();
        let once = inputs.bytes + written;
        let mut modes = vec![("forward".into(), Plan::new(gpu, &tape.finish())?)];
        let mut bytes = vec![once];
        if with_backward {
            // The way back reads what the forward pass read, and the outputs' gradients.
            bytes.push(2 * once + inputs.tracked);
            let mut tape = Tape::training(gpu.profile());
            let outputs = work(&mut tape);
            let mut seeds = Vec::new();
            for output in &outputs {
                seeds.push(inputs.new_tensor(output.shape().clone())?.detached());
            }
            let pairs: Vec<(&Tensor, Tensor)> = outputs.iter().zip(seeds).collect();
            let (recorder, _) = tape.backward_from(&pairs);
            modes.push(("forward + backward".into(), Plan::new(gpu, &recorder)?));
        }
        Ok(Self { gpu: gpu.clone(), modes, bytes, gathered })
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
        let modes = vec![("step".into(), Plan::new(gpu, &recorder)?)];
        // Parameters and both moments are read and written, gradients read.
        let bytes = vec![7 * 4 * parameters.count() as u64];
        Ok(Self { gpu: gpu.clone(), modes, bytes, gathered: 0 })
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
        for ((mode, plan), bytes) in self.modes.iter().zip(&self.bytes) {
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
            let cpu_ms = median(&mut cpus);
            let busy_ms = cpu_ms.filter(|_| self.gpu.profile().cpu).unwrap_or(ms);
            let gflop = plan.description().flops() as f64 / 1e9;
            let gbyte = *bytes as f64 / 1e9;
            all.push(Measurement {
                row: name.into(),
                mode: mode.clone(),
                ms,
                cpu_ms,
                first_ms,
                runs: walls.len(),
                busy_ms,
                gflop,
                gflop_per_s: 1e3 * gflop / busy_ms,
                gbyte,
                gbyte_per_s: 1e3 * gbyte / busy_ms,
                bound: None,
            });
        }
        Ok(all)
    }

    /// [`measure`](Self::measure), compared with what the device can do.
    ///
    /// # Errors
    ///
    /// As [`measure`](Self::measure).
    pub fn compare(&self, name: &str, budget_s: f64, roofs: &Roofs) -> Result<Vec<Measurement>> {
        let mut all = self.measure(name, budget_s)?;
        for ((m, (_, plan)), bytes) in all.iter_mut().zip(&self.modes).zip(&self.bytes) {
            let (roof, least_ms) = roofs.bound(plan.description().flops(), *bytes, self.gathered);
            m.bound = Some((roof, least_ms / m.busy_ms));
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
        "a5" => matmul(inputs, 256, 384, 768)?,
        "a5s" => {
            let x = inputs.new_tensor([256, 384])?;
            roofs::simple_work(x, inputs.new_tensor([768, 384])?)
        }
        "a6" => {
            let (x, weight) = (inputs.new_tensor([16_384, 96])?, inputs.new_tensor([384, 96])?);
            let bias = inputs.new_tensor([384])?;
            Box::new(move |tape| vec![ops::linear_gelu(tape, &x, &weight, &bias)])
        }
        "b1" => layer_norm(inputs, 16_384, 96)?,
        "b2" => layer_norm(inputs, 1024, 384)?,
        "c" => {
            let x = inputs.new_tensor([49_152, 49])?;
            Box::new(move |tape| vec![ops::softmax(tape, &x)])
        }
        "d" => attention(inputs, [1, 126, 126], 96)?,
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
            inputs.parameters(&parameters)?;
            let x = inputs.new_tensor([1, 128, 128, 96])?;
            Box::new(move |tape| vec![block.forward(tape, &x)])
        }
        "j" => {
            let model = Model::new(&ModelConfig::preset("swin-t")?)?;
            inputs.parameters(model.parameters())?;
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
        "m1" => {
            let x = inputs.new_tensor([1, 128, 128, 256])?;
            let (weight, bias) = (inputs.new_tensor([256])?, inputs.new_tensor([256])?);
            let running = [(); 2].map(|()| Tensor::pinned("running statistics", [256]));
            Box::new(move |tape| {
                let running = Running { mean: &running[0], var: &running[1] };
                let options = BatchNorm { relu: true, ..BatchNorm::default() };
                vec![ops::batch_norm(tape, &x, &weight, &bias, running, options)]
            })
        }
        "m2" => {
            let x = inputs.new_tensor([1, 128, 128, 256])?;
            let (weight, bias) = (inputs.new_tensor([256])?, inputs.new_tensor([256])?);
            let options = GroupNorm { groups: 32, ..GroupNorm::default() };
            Box::new(move |tape| vec![ops::group_norm(tape, &x, &weight, &bias, options)])
        }
        "m3" => {
            let sizes = [[64, 64], [32, 32], [16, 16]];
            let tokens = 64 * 64 + 32 * 32 + 16 * 16;
            let value = inputs.new_tensor([1, tokens, 256])?;
            let offsets = inputs.new_tensor([1, tokens, 8, 3, 4, 2])?;
            let logits = inputs.new_tensor([1, tokens, 8, 12])?;
            Box::new(move |tape| {
                vec![ops::deform_attention(tape, &value, &offsets, &logits, &sizes)]
            })
        }
        "m4" => {
            let x = inputs.new_tensor([1, 64, 64, 128])?;
            let offset_mask = inputs.new_tensor([1, 64, 64, 27 * 8])?;
            let (weight, bias) = (inputs.new_tensor([128, 128, 3, 3])?, inputs.new_tensor([128])?);
            Box::new(move |tape| vec![ops::deform_conv(tape, &x, &offset_mask, &weight, &bias)])
        }
        "m5" => {
            let x = inputs.new_tensor([1, 64, 64, 384])?;
            let (weight, bias) = (inputs.new_tensor([384, 1, 3, 3])?, inputs.new_tensor([384])?);
            Box::new(move |tape| vec![ops::depthwise_conv3x3(tape, &x, &weight, &bias)])
        }
        "m6" => {
            let x = inputs.new_tensor([1, 512, 512, 3])?;
            Box::new(move |tape| vec![ops::patchify(tape, &x, 4)])
        }
        "m6b" => {
            let rgba = inputs.new_tensor([1, 512, 512])?;
            let normalize =
                Normalize { mean: [123.675, 116.28, 103.53], std: [58.4; 3], flip: false };
            Box::new(move |tape| vec![ops::patchify(tape, Image::bytes(&rgba, normalize), 4)])
        }
        "m7" => {
            let x = inputs.new_tensor([1, 128, 128, 96])?;
            Box::new(move |tape| vec![ops::patch_merge(tape, &x)])
        }
        "m8" => {
            let x = inputs.new_tensor([1, 128, 128, 150])?;
            Box::new(move |tape| vec![predict::argmax(tape.recorder(), &x, Resizing::to(512, 512))])
        }
        "n1" => {
            let (x, other) = (inputs.new_tensor([16_384, 384])?, inputs.new_tensor([16_384, 384])?);
            Box::new(move |tape| vec![ops::add(tape, &x, &other)])
        }
        "n2" => {
            let x = inputs.new_tensor([16_384, 384])?;
            Box::new(move |tape| vec![ops::gelu(tape, &x)])
        }
        "n3" => {
            let x = inputs.new_tensor([16_384, 384])?;
            Box::new(move |tape| vec![ops::sum_rows(tape.recorder(), &x, 16_384, 384)])
        }
        other => {
            let names: Vec<_> = ROWS.iter().map(|(name, _)| *name).collect();
            let reason = format!("there are {}", names.join(", "));
            return Err(Error::invalid(format!("row {other:?}"), reason));
        }
    })
}

/// Attention within windows of 7 × 7, heads of 32 channels, of maps `[batch, height, width]`.
fn attention(
    inputs: &mut Inputs<'_>,
    [batch, height, width]: [usize; 3],
    channels: usize,
) -> Result<Work> {
    let qkv = inputs.new_tensor([batch, height, width, 3 * channels])?;
    let qkv_bias = inputs.new_tensor([3 * channels])?;
    let bias = inputs.new_tensor([channels / 32, 49, 49])?;
    let windows = Windows { size: 7, shift: 0 };
    Ok(Box::new(move |tape: &mut Tape| {
        vec![ops::window_attention(tape, &qkv, &qkv_bias, &bias, windows)]
    }))
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
