//! Batch normalisation: `shaders/batch_norm.wgsl`, and `shaders/batch_norm_lanes.wgsl` for eight lanes of a CPU.

use super::reduce;
use crate::gpu::{Dispatch, Grid, Kernel, Params as _, Profile, Source, params, source};
use crate::{Tape, Tensor};

const SOURCES: &[Source] = &[source!("batch_norm")];
const LANES: &[Source] =
    &[source!("batch_norm_lanes"), source!("lib/slices"), source!("lib/lanes")];

static COMBINE: Kernel =
    kernel("combine", &["part_stats", "new_stats", "running_mean", "running_var"]);
static STATISTICS: [Kernel; 2] = kernels("statistics", &["x", "new_part"]);
static NORMALIZE: [Kernel; 2] = kernels("normalize", &["x", "weight", "bias", "stats", "y"]);
static EVALUATE: [Kernel; 2] =
    kernels("evaluate", &["x", "weight", "bias", "mean", "variance", "y"]);
static BACKWARD_SUMS: [Kernel; 2] =
    kernels("backward_sums", &["x", "weight", "bias", "stats", "dy", "part_dweight", "part_dbias"]);
static BACKWARD_X: [Kernel; 2] =
    kernels("backward_x", &["x", "weight", "bias", "stats", "dy", "dweight", "dbias", "dx"]);
pub(super) const KERNELS: &[&Kernel] = &[
    &COMBINE,
    &STATISTICS[0],
    &STATISTICS[1],
    &NORMALIZE[0],
    &NORMALIZE[1],
    &EVALUATE[0],
    &EVALUATE[1],
    &BACKWARD_SUMS[0],
    &BACKWARD_SUMS[1],
    &BACKWARD_X[0],
    &BACKWARD_X[1],
];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("batch_norm", entry, SOURCES, Params::FIELDS, bindings)
}

/// For any device, and for eight lanes of a CPU.
const fn kernels(entry: &'static str, bindings: &'static [&'static str]) -> [Kernel; 2] {
    let lanes = Kernel::new("batch_norm_lanes", entry, LANES, Params::FIELDS, bindings);
    [kernel(entry, bindings), lanes.on_lanes()]
}

params! {
    struct Params {
        rows: u32,
        channels: u32,
        rows_per_part: u32,
        parts: u32,
        relu: u32,
        eps: f32,
        momentum: f32,
    }
}

/// The statistics that inference uses and training keeps up to date.
#[derive(Clone, Copy, Debug)]
pub struct Running<'a> {
    /// `[C]`, pinned
    pub mean: &'a Tensor,
    /// `[C]`, pinned
    pub var: &'a Tensor,
}

/// How [`batch_norm`] normalises.
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm {
    /// Added to the variance.
    pub eps: f32,
    /// Share of the newest batch in the running statistics.
    pub momentum: f32,
    /// Whether negative results become 0.
    pub relu: bool,
}

impl Default for BatchNorm {
    /// PyTorch's defaults, without ReLU.
    fn default() -> Self {
        Self { eps: 1e-5, momentum: 0.1, relu: false }
    }
}

/// How the channels of a row are divided for eight lanes of a CPU that read pairs: workgroups side by side, and what
/// each has of blocks of eight pairs. `None` where that does not suit device or channels.
pub(super) fn lanes_slices(profile: &Profile, channels: usize) -> Option<(usize, usize)> {
    // Blocks that are unrolled, each with numbers of its own on the stack.
    const MOST: usize = 16;
    let blocks = (profile.lanes && channels.is_multiple_of(2)).then_some(channels.div_ceil(16))?;
    let slices = blocks.div_ceil(MOST);
    Some((slices, blocks.div_ceil(slices)))
}

/// Normalises each channel of `x` over all its rows: `y = (x − mean) / √(var + eps) · weight + bias`,
/// then ReLU if `options.relu`.
///
/// - `x`: `[.., C]`
/// - `weight`, `bias`: `[C]`
/// - `running`: `[C]` each; in memory of their own, apart from the parameters
/// - returns `[.., C]`
///
/// A training tape takes mean and (biased) variance of the batch and moves the running ones towards
/// them, `running = (1 − momentum) · running + momentum · batch` with the unbiased variance, at every
/// replay; an inference tape uses the running ones. Equals `torch.nn.functional.batch_norm` (Ioffe &
/// Szegedy 2015, <https://arxiv.org/abs/1502.03167>), but for a batch of a single row: PyTorch
/// refuses it, here the variance is 0, also the running one's share. Keeps `x` and two numbers per
/// channel for the backward pass.
///
/// # Panics
///
/// If `x` has no rows or one of the others is not `[C]`.
#[track_caller]
pub fn batch_norm(
    tape: &mut Tape,
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    running: Running<'_>,
    options: BatchNorm,
) -> Tensor {
    let (rows, channels) = (x.shape().rows(), x.shape().last());
    assert!(rows > 0 && channels > 0, "batch_norm: nothing in x {:?}", x.shape());
    for (name, tensor) in
        [("weight", weight), ("bias", bias), ("mean", running.mean), ("var", running.var)]
    {
        assert_eq!(tensor.dims(), [channels], "batch_norm: {name} for x {:?}", x.shape());
    }
    let in_lanes = lanes_slices(tape.recorder().profile(), channels);
    let which = usize::from(in_lanes.is_some());
    let set = move |dispatch: &mut Dispatch| {
        if let Some((_, blocks)) = in_lanes {
            dispatch.constant("BLOCKS", blocks as u32);
        }
    };
    let slices = channels.div_ceil(64);
    let parts_of = |rows_per_part: usize| {
        let parts = rows.div_ceil(rows_per_part);
        let params = Params {
            rows: rows as u32,
            channels: channels as u32,
            rows_per_part: rows_per_part as u32,
            parts: parts as u32,
            relu: u32::from(options.relu),
            eps: options.eps,
            momentum: options.momentum,
        };
        (params, Grid::rows(parts * in_lanes.map_or(slices, |(slices, _)| slices)), parts)
    };
    // Few enough for one invocation to combine them, enough to fill a GPU.
    let (sums, sums_grid, parts) = parts_of(rows.div_ceil(256).max(64));
    let (each, each_grid, _) = parts_of(if in_lanes.is_some() { 32 } else { 16 });
    let len = rows * channels;

    let y = tape.recorder().empty(x.shape().clone());
    if !tape.is_training() {
        let bound = [x, weight, bias, running.mean, running.var, &y];
        set(tape.recorder().run(&EVALUATE[which], each, &bound, each_grid).flops(4 * len));
        return tape.record([x], y, |_, _| unreachable!("an inference tape"));
    }
    let recorder = tape.recorder();
    let part_stats = recorder.empty([parts, 2, channels]);
    let stats = recorder.empty([2, channels]);
    set(recorder.run(&STATISTICS[which], sums, &[x, &part_stats], sums_grid).flops(5 * len));
    let bound = [&part_stats, &stats, running.mean, running.var];
    recorder.run(&COMBINE, sums, &bound, Grid::rows(slices)).flops(7 * parts * channels);
    let bound = [x, weight, bias, &stats, &y];
    set(recorder.run(&NORMALIZE[which], each, &bound, each_grid).flops(4 * len));

    let saved = (x.clone(), weight.clone(), bias.clone());
    tape.record([x, weight, bias], y, move |recorder, dy| {
        let (x, weight, bias) = &saved;
        let part_dweight = recorder.empty([parts, channels]);
        let part_dbias = recorder.empty([parts, channels]);
        let bound = [x, weight, bias, &stats, dy, &part_dweight, &part_dbias];
        set(recorder.run(&BACKWARD_SUMS[which], sums, &bound, sums_grid).flops(8 * len));
        let dweight = reduce::sum_rows(recorder, &part_dweight, parts, channels);
        let dbias = reduce::sum_rows(recorder, &part_dbias, parts, channels);
        let dx = x.is_tracked().then(|| {
            let dx = recorder.empty(x.shape().clone());
            let bound = [x, weight, bias, &stats, dy, &dweight, &dbias, &dx];
            set(recorder.run(&BACKWARD_X[which], each, &bound, each_grid).flops(10 * len));
            dx
        });
        [dx, Some(dweight), Some(dbias)]
    })
}
