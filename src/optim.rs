//! The optimiser: `shaders/optim.wgsl`, and `shaders/optim_lanes.wgsl` for eight lanes of a CPU.

use std::path::Path;

use crate::checkpoint::{Checkpoint, Entry};
use crate::gpu::{Grid, Kernel, Memory, Params as _, Recorder, Source, params, source};
use crate::nn::Parameters;
use crate::tape::Gradients;
use crate::{Error, Gpu, Result, Tape, Tensor, ops};

const SOURCES: &[Source] = &[source!("optim"), source!("lib/vectors")];
const LANES: &[Source] = &[source!("optim_lanes"), source!("lib/lanes")];

static SQUARE_SUMS: Kernel = kernel("square_sums", &["gradient", "squares"]);
static GLOBAL_NORM: Kernel = kernel("global_norm", &["sums", "step", "norm_out"]);
static SCALED_NORM: Kernel = kernel("scaled_norm", &["sums", "step", "norm_out", "scaling"]);
static ADAMW: Kernel = kernel("adamw", UPDATED);
static LANES_SQUARE_SUMS: Kernel = on_lanes("square_sums", &["gradient", "squares"]);
static LANES_ADAMW: Kernel = on_lanes("adamw", UPDATED);
pub(crate) const KERNELS: &[&Kernel] =
    &[&SQUARE_SUMS, &GLOBAL_NORM, &SCALED_NORM, &ADAMW, &LANES_SQUARE_SUMS, &LANES_ADAMW];

const UPDATED: &[&str] = &["gradient", "groups_of", "step", "norm", "parameter", "m", "v"];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("optim", entry, SOURCES, Params::FIELDS, bindings)
}

const fn on_lanes(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("optim_lanes", entry, LANES, Params::FIELDS, bindings).on_lanes()
}

params! {
    struct Params {
        len: u32,
        first_row: u32,
        parts: u32,
        max_norm: f32,
        beta1: f32,
        beta2: f32,
        eps: f32,
    }
}

/// Spans of `lib/vectors.wgsl` in a partial sum of squares.
const SPANS: usize = 4;

/// Elements that a workgroup in lanes has.
const LANES_SHARE: usize = 2048;

/// The name of a loss scale's state in a checkpoint.
const LOSS_SCALE: &str = "optimizer.loss_scale";

/// What an [`AdamW`] does, apart from the learning rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWSettings {
    /// Decay rates of the first and second moment.
    pub betas: [f32; 2],
    /// Added to the denominator.
    pub eps: f32,
    /// Largest global L2 norm of the gradient; larger ones are scaled down to it.
    pub max_norm: Option<f32>,
    /// Steps over which gradients are added up before an update; their mean counts.
    pub accumulate: usize,
    /// Whether gradients are those of a multiple of the loss, as mixed precision wants: see [`LossScale`].
    pub loss_scale: bool,
}

impl Default for AdamWSettings {
    fn default() -> Self {
        Self { betas: [0.9, 0.999], eps: 1e-8, max_norm: None, accumulate: 1, loss_scale: false }
    }
}

/// Adam with decoupled weight decay (Loshchilov & Hutter 2019, <https://arxiv.org/abs/1711.05101>).
/// Equals `torch.optim.AdamW`, with a learning rate and a decay of its own for every parameter.
///
/// Gradients and moments lie in buffers of the parameters' layout: a step is one dispatch per
/// buffer.
#[derive(Debug)]
pub struct AdamW {
    settings: AdamWSettings,
    buffers: Vec<Buffer>,
    /// `[4]`: learning rate, bias corrections, factor of the gradient.
    step: Tensor,
    /// `[3]`: the gradient's norm before clipping, the factor that it gets, whether it is finite.
    norm: Tensor,
    loss_scale: Option<LossScale>,
    /// Updates so far, with those that were left out.
    updates: u64,
}

/// A factor of the loss, and so of every gradient, that keeps small gradients within the range of 16 bits
/// (Micikevicius et al. 2018, <https://arxiv.org/abs/1710.03740>). Equals `torch.amp.GradScaler` with its
/// default settings but for an upper bound, 2²⁴.
///
/// An update whose gradient is not finite is left out, and the factor halved; after 2000 good updates in a
/// row it doubles. The device does all that by itself.
#[derive(Debug)]
pub struct LossScale {
    memory: Memory,
    /// `[3]`: factor, good updates in a row, updates left out.
    state: Tensor,
    /// As the last [`AdamW::prepare`] has seen it.
    seen: Scaled,
}

/// Where a [`LossScale`] stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaled {
    /// The factor of the loss.
    pub factor: f32,
    /// Updates that were left out so far, for their gradient was not finite.
    pub left_out: u64,
}

impl LossScale {
    /// `GradScaler`'s `init_scale`.
    const FIRST: f32 = 65536.0;

    fn new() -> Self {
        let memory = Memory::new("loss scale");
        let state = Tensor::within(&memory, [3].into());
        Self { memory, state, seen: Scaled { factor: Self::FIRST, left_out: 0 } }
    }
}

/// One buffer of parameters and what belongs to it.
#[derive(Debug)]
struct Buffer {
    len: usize,
    values: Memory,
    gradient: Memory,
    total: Option<Memory>,
    m: Memory,
    v: Memory,
    groups: Tensor,
}

impl AdamW {
    /// An optimiser for `parameters`. Allocates nothing yet.
    pub fn new(parameters: &Parameters, settings: AdamWSettings) -> Self {
        let buffers = parameters.buffers().iter().map(|values| {
            let len = (values.size() / 4) as usize;
            Buffer {
                len,
                values: values.clone(),
                gradient: values.twin("gradients"),
                total: (settings.accumulate > 1).then(|| values.twin("accumulated gradients")),
                m: values.twin("first moments"),
                v: values.twin("second moments"),
                groups: Tensor::pinned("parameter groups", [len / 64, 2]),
            }
        });
        Self {
            settings,
            buffers: buffers.collect(),
            step: Tensor::pinned("optimiser step", [4]),
            norm: Tensor::pinned("gradient norm", [3]),
            loss_scale: settings.loss_scale.then(LossScale::new),
            updates: 0,
        }
    }

    /// Sets, for each parameter by name and number of axes, the factor of its learning rate and its
    /// weight decay; and the loss scale to its first value. Without it nothing is learnt.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] when the device has no room.
    pub fn set_groups(
        &self,
        gpu: &Gpu,
        parameters: &Parameters,
        rule: impl Fn(&str, usize) -> (f32, f32),
    ) -> Result<()> {
        for (i, buffer) in self.buffers.iter().enumerate() {
            let mut table = vec![[0f32; 2]; buffer.len / 64];
            for (name, parameter) in parameters.trained().filter(|(_, p)| p.buffer == Some(i)) {
                let (rate, decay) = rule(name, parameter.tensor.dims().len());
                let crate::tensor::Place::Pinned { offset, .. } = parameter.tensor.place() else {
                    unreachable!("parameters are pinned")
                };
                let first = *offset as usize / 256;
                let count = parameter.tensor.shape().len().div_ceil(64);
                table[first..first + count].fill([rate, decay]);
            }
            buffer.groups.write(gpu, &table)?;
        }
        if let Some(LossScale { state, .. }) = &self.loss_scale {
            state.write(gpu, &[LossScale::FIRST, 0.0, 0.0])?;
        }
        Ok(())
    }

    /// Runs `tape` backwards from a loss of shape `[1]`, times the [`LossScale`] if there is one.
    pub fn backward(&self, tape: Tape, loss: &Tensor) -> (Recorder, Gradients) {
        match &self.loss_scale {
            Some(scale) => tape.backward_from(&[(loss, Tensor::all_of(&scale.memory, 1))]),
            None => tape.backward(loss),
        }
    }

    /// The factor of the loss, if it has one, as the last [`prepare`](Self::prepare) has seen it.
    pub fn loss_scale(&self) -> Option<Scaled> {
        self.loss_scale.as_ref().map(|scale| scale.seen)
    }

    /// Records what follows the backward pass of each step: gradients to their places, and, when
    /// they are added up over several steps, the addition.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] that names a parameter which no gradient reached.
    pub fn record_gradients(
        &self,
        recorder: &mut Recorder,
        parameters: &Parameters,
        gradients: &Gradients,
    ) -> Result<()> {
        let memories: Vec<Memory> = self.buffers.iter().map(|b| b.gradient.clone()).collect();
        parameters.place_gradients(recorder, gradients, &memories)?;
        for buffer in &self.buffers {
            if let Some(total) = &buffer.total {
                let [from, to] = [&buffer.gradient, total].map(|m| buffer.whole(m));
                ops::accumulate(recorder, &to, &from, 1.0);
            }
        }
        Ok(())
    }

    /// Records one update. It reads the learning rate that [`prepare`](Self::prepare) wrote.
    pub fn record_update(&self, recorder: &mut Recorder) {
        let outer = recorder.enter("update");
        let AdamWSettings { betas: [beta1, beta2], eps, max_norm, .. } = self.settings;
        let params = |len: usize| Params {
            len: len as u32,
            first_row: 0,
            parts: 0,
            max_norm: max_norm.unwrap_or(0.0),
            beta1,
            beta2,
            eps,
        };
        let vectors = ops::Vectors::new(recorder.profile(), 16);
        let in_lanes = recorder.profile().lanes;
        let rows_of = |buffer: &Buffer| {
            if in_lanes {
                buffer.len.div_ceil(LANES_SHARE)
            } else {
                vectors.spans(buffer.len).div_ceil(SPANS)
            }
        };
        let (rows, lanes) = (self.buffers.iter().map(rows_of).sum(), vectors.lanes());
        let squares = recorder.empty([rows, lanes]);
        let mut row = 0;
        for buffer in &self.buffers {
            let params = Params { first_row: row as u32, ..params(buffer.len) };
            let gradient = buffer.whole(buffer.total.as_ref().unwrap_or(&buffer.gradient));
            let groups = rows_of(buffer);
            let bound = [&gradient, &squares];
            let grid = Grid::rows(groups);
            let dispatch = if in_lanes {
                recorder.run(&LANES_SQUARE_SUMS, params, &bound, grid)
            } else {
                vectors.set(recorder.run(&SQUARE_SUMS, params, &bound, grid))
            };
            dispatch.flops(2 * buffer.len);
            row += groups;
        }
        let sums = ops::sum_rows(recorder, &squares, rows, lanes);
        let total = Params { parts: 1, ..params(0) };
        let dispatch = match &self.loss_scale {
            Some(LossScale { state, .. }) => {
                let bound = [&sums, &self.step, &self.norm, state];
                recorder.run(&SCALED_NORM, total, &bound, Grid::rows(1))
            }
            None => {
                let bound = [&sums, &self.step, &self.norm];
                recorder.run(&GLOBAL_NORM, total, &bound, Grid::rows(1))
            }
        };
        vectors.set(dispatch);
        for buffer in &self.buffers {
            let total = buffer.total.as_ref();
            let [gradient, values, m, v] =
                [total.unwrap_or(&buffer.gradient), &buffer.values, &buffer.m, &buffer.v]
                    .map(|m| buffer.whole(m));
            let bound = [&gradient, &buffer.groups, &self.step, &self.norm, &values, &m, &v];
            let params = params(buffer.len);
            let dispatch = if in_lanes {
                let grid = Grid::rows(buffer.len.div_ceil(LANES_SHARE));
                recorder.run(&LANES_ADAMW, params, &bound, grid)
            } else {
                vectors.set(recorder.run(&ADAMW, params, &bound, vectors.grid(buffer.len)))
            };
            dispatch.constant("SCALED", self.loss_scale.is_some()).flops(16 * buffer.len);
            if let Some(total) = total {
                ops::clear(recorder, &buffer.whole(total));
            }
        }
        recorder.enter(outer);
    }

    /// Writes what the next update needs; call before each replay that contains one. With a loss scale it
    /// waits for the last update.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] when the device has no room or was lost.
    pub fn prepare(&mut self, gpu: &Gpu, lr: f64) -> Result<()> {
        // Moments know nothing of updates that were left out.
        let mut left_out = 0;
        if let Some(LossScale { state, seen, .. }) = &mut self.loss_scale {
            let state = state.read(gpu)?;
            left_out = state[2] as u64;
            *seen = Scaled { factor: state[0], left_out };
        }
        self.updates += 1;
        let [beta1, beta2] = self.settings.betas.map(f64::from);
        let n = (self.updates - left_out).min(i32::MAX as u64) as i32;
        let corrections = [1.0 - beta1.powi(n), (1.0 - beta2.powi(n)).sqrt()];
        let factor = 1.0 / self.settings.accumulate as f64;
        self.step.write(gpu, &[lr, corrections[0], corrections[1], factor].map(|v| v as f32))
    }

    /// Updates so far, with those that were left out for their gradient was not finite.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// `[3]`: the global L2 norm of the last update's gradient before clipping; the factor that this update
    /// gave what the backward passes had added up; and whether that was finite, 1 or 0.
    pub fn norm(&self) -> &Tensor {
        &self.norm
    }

    /// Adds the moments to a checkpoint: `optimizer.m.NAME`, `optimizer.v.NAME`.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] when the device was lost.
    pub fn save(
        &self,
        gpu: &Gpu,
        parameters: &Parameters,
        checkpoint: &mut Checkpoint,
    ) -> Result<()> {
        for (name, [m, v]) in self.moments(parameters) {
            let shape = m.shape().clone();
            let entry = |values: Vec<f32>| Entry::from_f32(shape.clone(), &values);
            checkpoint.insert(format!("optimizer.m.{name}"), entry(m.read(gpu)?));
            checkpoint.insert(format!("optimizer.v.{name}"), entry(v.read(gpu)?));
        }
        if let Some(LossScale { state, .. }) = &self.loss_scale {
            let entry = Entry::from_f32(state.shape().clone(), &state.read(gpu)?);
            checkpoint.insert(LOSS_SCALE.to_owned(), entry);
        }
        Ok(())
    }

    /// Takes the moments back from a checkpoint, after `updates` updates.
    ///
    /// # Errors
    ///
    /// [`Error::MissingParameters`], [`Error::ParameterShape`]; `path` is for the message.
    pub fn load(
        &mut self,
        gpu: &Gpu,
        parameters: &Parameters,
        checkpoint: &Checkpoint,
        path: &Path,
        updates: u64,
    ) -> Result<()> {
        let take = |name: String, tensor: &Tensor| -> Result<()> {
            let Some(entry) = checkpoint.get(&name) else {
                let names = vec![name];
                return Err(Error::MissingParameters { path: path.to_owned(), names });
            };
            if entry.shape() != tensor.shape() {
                return Err(Error::ParameterShape {
                    path: path.to_owned(),
                    name,
                    found: entry.shape().clone(),
                    wanted: tensor.shape().clone(),
                });
            }
            let broken = |e| Error::invalid_file(path, format!("{name}: {e}"));
            tensor.write(gpu, &entry.to_f32().map_err(broken)?)
        };
        for (name, [m, v]) in self.moments(parameters) {
            take(format!("optimizer.m.{name}"), &m)?;
            take(format!("optimizer.v.{name}"), &v)?;
        }
        // A run may go on in mixed precision that began without.
        if let Some(scale) =
            self.loss_scale.as_ref().filter(|_| checkpoint.get(LOSS_SCALE).is_some())
        {
            take(LOSS_SCALE.to_owned(), &scale.state)?;
        }
        self.updates = updates;
        Ok(())
    }

    fn moments<'a>(
        &'a self,
        parameters: &'a Parameters,
    ) -> impl Iterator<Item = (&'a str, [Tensor; 2])> {
        parameters.trained().map(|(name, parameter)| {
            let buffer = &self.buffers[parameter.buffer.expect("is trained")];
            (name, [parameter.tensor.twin(&buffer.m), parameter.tensor.twin(&buffer.v)])
        })
    }
}

impl Buffer {
    /// All of one of the buffer's memories as one tensor.
    fn whole(&self, memory: &Memory) -> Tensor {
        Tensor::all_of(memory, self.len)
    }
}
