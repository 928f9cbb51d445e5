//! Layer normalisation: `shaders/layer_norm.wgsl`, and `shaders/layer_norm_lanes.wgsl` for eight lanes of a CPU.

use super::reduce;
use crate::gpu::{Dispatch, Grid, Kernel, Params as _, Profile, Recorder, Source, params, source};
use crate::{Tape, Tensor};

const SOURCES: &[Source] = &[
    source!("layer_norm"),
    source!("lib/reduce", subgroup "lib/reduce_subgroup"),
    source!("lib/f32", half "lib/f16"),
];
const LANES: &[Source] = &[
    source!("layer_norm_lanes"),
    source!("lib/lanes"),
    source!("lib/pairs_f32", half "lib/pairs_f16"),
];

static FORWARD: Kernel = kernel("forward", &["x", "weight", "bias", "y", "stats"]);
static STATISTICS: Kernel = kernel("statistics", &["x", "stats"]);
static APPLY: Kernel = kernel("apply", &["x", "weight", "bias", "saved", "y"]);
static BACKWARD_X: Kernel = kernel("backward_x", &["x", "weight", "saved", "dy", "dx"]);
static BACKWARD_WEIGHT: Kernel = kernel("backward_weight", &["x", "saved", "dy", "parts"]);
static LANES_FORWARD: Kernel = on_lanes("forward", &["x", "weight", "bias", "y", "stats"]);
static LANES_BACKWARD: Kernel =
    on_lanes("backward", &["x", "weight", "saved", "dy", "dx", "parts"]);
pub(super) const KERNELS: &[&Kernel] = &[
    &FORWARD,
    &STATISTICS,
    &APPLY,
    &BACKWARD_X,
    &BACKWARD_WEIGHT,
    &LANES_FORWARD,
    &LANES_BACKWARD,
];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("layer_norm", entry, SOURCES, Params::FIELDS, bindings)
}

const fn on_lanes(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("layer_norm_lanes", entry, LANES, Params::FIELDS, bindings).on_lanes()
}

params! {
    struct Params { rows: u32, channels: u32, rows_per_part: u32, eps: f32 }
}

/// Lanes that share a row, and whether they are one subgroup.
///
/// On a CPU driver a barrier costs more than it saves unless the workgroup is one subgroup.
pub(super) fn row_workgroup(profile: &Profile, channels: usize) -> (u32, bool) {
    match profile.subgroup_size {
        Some(size) if profile.cpu || channels <= 4 * size as usize => (size, true),
        _ if profile.cpu => (4, false),
        _ => (channels.next_power_of_two().clamp(16, 256) as u32, false),
    }
}

/// How eight lanes of a CPU share a row, where they do so evenly: blocks, and pairs of each lane in a block.
fn lanes_blocks(profile: &Profile, channels: usize) -> Option<(usize, usize)> {
    // Pairs that stay on the stack; below the least the loops cost more than they save.
    const MOST: usize = 24;
    const LEAST: usize = 2;
    let pairs = (profile.lanes && channels.is_multiple_of(16)).then_some(channels / 16)?;
    let each = (LEAST..=MOST).rev().find(|each| pairs % each == 0)?;
    Some((pairs / each, each))
}

/// How a device takes a layer norm.
#[derive(Clone, Copy, Debug)]
struct Way {
    params: Params,
    /// Rows that are added up together to gradients of the parameters, and how many such parts there are.
    parts: usize,
    workgroup: u32,
    subgroup: bool,
    /// See [`lanes_blocks`].
    blocks: Option<(usize, usize)>,
}

impl Way {
    fn new(profile: &Profile, x: &Tensor, eps: f32) -> Self {
        let (rows, channels) = (x.shape().rows(), x.shape().last());
        let (workgroup, subgroup) = row_workgroup(profile, channels);
        let blocks = lanes_blocks(profile, channels);
        let rows_per_part = match blocks {
            // Long enough for the start of a workgroup not to count, and enough of them for many cores.
            Some(_) => rows.div_ceil(64).clamp(4, 64),
            None => 256 * rows.div_ceil(256 * 65_535).max(1),
        };
        let params = Params {
            rows: rows as u32,
            channels: channels as u32,
            rows_per_part: rows_per_part as u32,
            eps,
        };
        Self { params, parts: rows.div_ceil(rows_per_part), workgroup, subgroup, blocks }
    }

    fn set<'a>(&self, dispatch: &'a mut Dispatch) -> &'a mut Dispatch {
        match self.blocks {
            Some((blocks, each)) => {
                dispatch.constant("BLOCKS", blocks as u32).constant("EACH", each as u32)
            }
            None => dispatch.constant("WORKGROUP", self.workgroup).subgroup(self.subgroup),
        }
    }
}

/// Normalises each row of `x` to zero mean and unit variance, then scales and shifts it:
/// `y = (x − mean) / √(var + eps) · weight + bias`.
///
/// - `x`: `[.., C]`; a row is the last axis
/// - `weight`, `bias`: `[C]`
/// - returns `[.., C]`
///
/// Equals `torch.nn.functional.layer_norm` over the last axis (Ba et al. 2016,
/// <https://arxiv.org/abs/1607.06450>). Keeps `x` and two numbers per row for the backward pass.
///
/// # Panics
///
/// If `weight` or `bias` is not `[C]`.
#[track_caller]
pub fn layer_norm(tape: &mut Tape, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Tensor {
    let y = tape.recorder().empty(x.shape().clone());
    layer_norm_into(tape, y, x, weight, bias, eps)
}

/// [`layer_norm`] for linear layers only to read: in mixed precision the result has 16 bits, and GPUs otherwise take
/// the norm while they read `x` for the products. Nothing then keeps or even makes the result.
#[track_caller]
pub fn layer_norm_operand(
    tape: &mut Tape,
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f32,
) -> Tensor {
    let y = tape.empty_operand(x.shape().clone());
    if tape.is_mixed() || tape.recorder().profile().cpu {
        return layer_norm_into(tape, y, x, weight, bias, eps);
    }
    check(x, weight, bias);
    let recorder = tape.recorder();
    let way = Way::new(recorder.profile(), x, eps);
    let (rows, channels) = (x.shape().rows(), x.shape().last());
    let stats = recorder.empty([rows, 2]);
    let dispatch = recorder.run(&STATISTICS, way.params, &[x, &stats], Grid::rows(rows));
    way.set(dispatch.flops(4 * rows * channels));
    let norm = Normed { x: x.clone(), weight: weight.clone(), bias: bias.clone(), stats };
    norm.apply(recorder, &y).spare();
    tape.set_norm(&y, norm.clone());
    let Normed { x: x_, weight: weight_, stats, .. } = norm;
    tape.record([x, weight, bias], y, move |recorder, dy| {
        backward(recorder, way, &x_, &weight_, &stats, dy)
    })
}

/// A layer norm that was not taken yet.
#[derive(Clone, Debug)]
pub(crate) struct Normed {
    /// `[.., C]`
    pub(crate) x: Tensor,
    /// `[C]`
    pub(crate) weight: Tensor,
    /// `[C]`
    pub(crate) bias: Tensor,
    /// Mean and 1 / deviation of each row.
    pub(crate) stats: Tensor,
}

impl Normed {
    /// What it makes.
    pub(super) fn made(&self, recorder: &mut Recorder) -> Tensor {
        let y = recorder.empty(self.x.shape().clone());
        self.apply(recorder, &y);
        y
    }

    /// Takes it: `y`, `[.., C]`.
    fn apply<'a>(&self, recorder: &'a mut Recorder, y: &Tensor) -> &'a mut Dispatch {
        let Self { x, weight, bias, stats } = self;
        let way = Way::new(recorder.profile(), x, 0.0);
        let bound = [x, weight, bias, stats, y];
        let grid = Grid::rows(x.shape().rows());
        way.set(recorder.run(&APPLY, way.params, &bound, grid)).flops(4 * x.shape().len())
    }
}

#[track_caller]
fn check(x: &Tensor, weight: &Tensor, bias: &Tensor) {
    let channels = x.shape().last();
    assert_eq!(weight.dims(), [channels], "layer_norm: weight for x {:?}", x.shape());
    assert_eq!(bias.dims(), [channels], "layer_norm: bias for x {:?}", x.shape());
}

#[track_caller]
fn layer_norm_into(
    tape: &mut Tape,
    y: Tensor,
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f32,
) -> Tensor {
    check(x, weight, bias);
    let recorder = tape.recorder();
    let way = Way::new(recorder.profile(), x, eps);
    let rows = x.shape().rows();
    let stats = recorder.empty([rows, 2]);
    let (kernel, grid) = match way.blocks {
        Some(_) => (&LANES_FORWARD, Grid::rows(way.parts)),
        None => (&FORWARD, Grid::rows(rows)),
    };
    let dispatch = recorder.run(kernel, way.params, &[x, weight, bias, &y, &stats], grid);
    way.set(dispatch.half(y.is_half()).flops(8 * x.shape().len()));

    let saved = (x.clone(), weight.clone());
    tape.record([x, weight, bias], y, move |recorder, dy| {
        backward(recorder, way, &saved.0, &saved.1, &stats, dy)
    })
}

/// Gradients of `x`, of the weight and of the bias.
fn backward(
    recorder: &mut Recorder,
    way: Way,
    x: &Tensor,
    weight: &Tensor,
    stats: &Tensor,
    dy: &Tensor,
) -> [Option<Tensor>; 3] {
    let (rows, channels) = (x.shape().rows(), x.shape().last());
    let Way { params, parts, blocks, .. } = way;
    let dx = x.is_tracked().then(|| recorder.empty(x.shape().clone()));
    let sums = recorder.empty([parts, 2, channels]);
    if let Some(dx) = dx.as_ref().filter(|_| blocks.is_some()) {
        let bound = [x, weight, stats, dy, dx, &sums];
        let dispatch = recorder.run(&LANES_BACKWARD, params, &bound, Grid::rows(parts));
        way.set(dispatch.flops(19 * rows * channels));
    } else {
        if let Some(dx) = &dx {
            let bound = [x, weight, stats, dy, dx];
            let dispatch = recorder.run(&BACKWARD_X, params, &bound, Grid::rows(rows));
            way.set(dispatch.flops(14 * rows * channels));
        }
        let grid = Grid([channels.div_ceil(64) as u32, parts as u32, 1]);
        recorder
            .run(&BACKWARD_WEIGHT, params, &[x, stats, dy, &sums], grid)
            .flops(5 * rows * channels);
    }
    let (dweight, dbias) = (recorder.empty([channels]), recorder.empty([channels]));
    reduce::sum_pairs(recorder, &sums, parts, channels, &dweight, &dbias);
    [dx, Some(dweight), Some(dbias)]
}
