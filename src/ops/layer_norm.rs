//! Layer normalisation: `shaders/layer_norm.wgsl`.

use super::reduce;
use crate::gpu::{Grid, Kernel, Params as _, Profile, Source, params, source};
use crate::{Tape, Tensor};

const SOURCES: &[Source] =
    &[source!("layer_norm"), source!("lib/reduce", subgroup "lib/reduce_subgroup")];

static FORWARD: Kernel = kernel("forward", &["x", "weight", "bias", "y", "stats"]);
static BACKWARD_X: Kernel = kernel("backward_x", &["x", "weight", "saved", "dy", "dx"]);
static BACKWARD_WEIGHT: Kernel = kernel("backward_weight", &["x", "saved", "dy", "parts"]);
pub(super) const KERNELS: &[&Kernel] = &[&FORWARD, &BACKWARD_X, &BACKWARD_WEIGHT];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("layer_norm", entry, SOURCES, Params::FIELDS, bindings)
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
    let (rows, channels) = (x.shape().rows(), x.shape().last());
    assert_eq!(weight.dims(), [channels], "layer_norm: weight for x {:?}", x.shape());
    assert_eq!(bias.dims(), [channels], "layer_norm: bias for x {:?}", x.shape());

    const ROWS_PER_PART: usize = 256;
    let rows_per_part = ROWS_PER_PART * rows.div_ceil(ROWS_PER_PART * 65_535).max(1);
    let params = Params {
        rows: rows as u32,
        channels: channels as u32,
        rows_per_part: rows_per_part as u32,
        eps,
    };
    let recorder = tape.recorder();
    let (workgroup, subgroup) = row_workgroup(recorder.profile(), channels);
    let y = recorder.empty(x.shape().clone());
    let stats = recorder.empty([rows, 2]);
    recorder
        .run(&FORWARD, params, &[x, weight, bias, &y, &stats], Grid::rows(rows))
        .constant("WORKGROUP", workgroup)
        .subgroup(subgroup)
        .flops(8 * rows * channels);

    let saved = (x.clone(), weight.clone());
    tape.record([x, weight, bias], y, move |recorder, dy| {
        let (x, weight) = &saved;
        let dx = x.is_tracked().then(|| {
            let dx = recorder.empty(x.shape().clone());
            recorder
                .run(&BACKWARD_X, params, &[x, weight, &stats, dy, &dx], Grid::rows(rows))
                .constant("WORKGROUP", workgroup)
                .subgroup(subgroup)
                .flops(14 * rows * channels);
            dx
        });
        let count = rows.div_ceil(rows_per_part);
        let parts = recorder.empty([count, 2, channels]);
        let grid = Grid([channels.div_ceil(64) as u32, count as u32, 1]);
        recorder
            .run(&BACKWARD_WEIGHT, params, &[x, &stats, dy, &parts], grid)
            .flops(5 * rows * channels);
        let (dweight, dbias) = (recorder.empty([channels]), recorder.empty([channels]));
        reduce::sum_pairs(recorder, &parts, count, channels, &dweight, &dbias);
        [dx, Some(dweight), Some(dbias)]
    })
}
