//! Group normalisation: `shaders/group_norm.wgsl`, and `shaders/group_norm_lanes.wgsl` for eight lanes of a CPU.

use super::batch_norm::lanes_slices;
use super::reduce;
use crate::gpu::{Dispatch, Grid, Kernel, Params as _, Source, params, source};
use crate::{Tape, Tensor};

const SOURCES: &[Source] = &[source!("group_norm")];
const LANES: &[Source] =
    &[source!("group_norm_lanes"), source!("lib/slices"), source!("lib/lanes")];

static COMBINE: Kernel = kernel("combine", &["part_stats", "new_stats"]);
static BACKWARD_MEANS: Kernel = kernel("backward_means", &["part_sums", "weight", "new_stats"]);
static STATISTICS: [Kernel; 2] = kernels("statistics", &["x", "new_part"]);
static NORMALIZE: [Kernel; 2] = kernels("normalize", &["x", "weight", "bias", "stats", "y"]);
static BACKWARD_SUMS: [Kernel; 2] =
    kernels("backward_sums", &["x", "weight", "bias", "stats", "dy", "new_part"]);
static BACKWARD_X: [Kernel; 2] =
    kernels("backward_x", &["x", "weight", "bias", "stats", "dy", "means", "dx"]);
pub(super) const KERNELS: &[&Kernel] = &[
    &COMBINE,
    &BACKWARD_MEANS,
    &STATISTICS[0],
    &STATISTICS[1],
    &NORMALIZE[0],
    &NORMALIZE[1],
    &BACKWARD_SUMS[0],
    &BACKWARD_SUMS[1],
    &BACKWARD_X[0],
    &BACKWARD_X[1],
];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("group_norm", entry, SOURCES, Params::FIELDS, bindings)
}

/// For any device, and for eight lanes of a CPU.
const fn kernels(entry: &'static str, bindings: &'static [&'static str]) -> [Kernel; 2] {
    let lanes = Kernel::new("group_norm_lanes", entry, LANES, Params::FIELDS, bindings);
    [kernel(entry, bindings), lanes.on_lanes()]
}

params! {
    struct Params {
        images: u32,
        pixels: u32,
        channels: u32,
        channels_per_group: u32,
        pixels_per_part: u32,
        parts: u32,
        relu: u32,
        eps: f32,
    }
}

/// How [`group_norm`] normalises.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNorm {
    /// Number of groups that the channels form.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
    /// Whether negative results become 0.
    pub relu: bool,
}

impl Default for GroupNorm {
    /// 32 groups, as usual, with PyTorch's `eps`, without ReLU.
    fn default() -> Self {
        Self { groups: 32, eps: 1e-5, relu: false }
    }
}

/// Normalises each group of channels over all pixels of an image: `y = (x − mean) / √(var + eps) · weight
/// + bias`, then ReLU if `options.relu`.
///
/// - `x`: `[B, .., C]`
/// - `weight`, `bias`: `[C]`
/// - returns `[B, .., C]`
///
/// Equals `torch.nn.functional.group_norm` (Wu & He 2018, <https://arxiv.org/abs/1803.08494>), but for the
/// layout. Keeps `x` and two numbers per image and group for the backward pass.
///
/// # Panics
///
/// If `x` is empty, one of the others is not `[C]`, or `C` is no multiple of the number of groups.
#[track_caller]
pub fn group_norm(
    tape: &mut Tape,
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    options: GroupNorm,
) -> Tensor {
    let (images, channels) = (x.dims()[0], x.shape().last());
    assert!(!x.shape().is_empty(), "group_norm of {:?}", x.shape());
    assert_eq!(weight.dims(), [channels], "group_norm: weight for x {:?}", x.shape());
    assert_eq!(bias.dims(), [channels], "group_norm: bias for x {:?}", x.shape());
    let GroupNorm { groups, eps, relu } = options;
    assert_eq!(channels % groups, 0, "group_norm: {groups} groups of {channels} channels");

    let pixels = x.shape().len() / images / channels;
    let in_lanes = lanes_slices(tape.recorder().profile(), channels);
    let which = usize::from(in_lanes.is_some());
    let set = move |dispatch: &mut Dispatch| {
        if let Some((_, blocks)) = in_lanes {
            dispatch.constant("BLOCKS", blocks as u32);
        }
    };
    let slices = in_lanes.map_or(channels.div_ceil(64), |(slices, _)| slices);
    let parts_of = |pixels_per_part: usize| {
        let parts = pixels.div_ceil(pixels_per_part);
        let params = Params {
            images: images as u32,
            pixels: pixels as u32,
            channels: channels as u32,
            channels_per_group: (channels / groups) as u32,
            pixels_per_part: pixels_per_part as u32,
            parts: parts as u32,
            relu: u32::from(relu),
            eps,
        };
        (params, Grid::rows(images * parts * slices), parts)
    };
    // Few enough for one invocation to combine them, enough to fill a GPU.
    let (sums, sums_grid, parts) = parts_of(pixels.div_ceil(64).max(32));
    let (each, each_grid, _) = parts_of(if in_lanes.is_some() { 32 } else { 16 });
    let by_group = Grid::elements(images * groups);
    let len = x.shape().len();

    let recorder = tape.recorder();
    let part_stats = recorder.empty([images, parts, 2, channels]);
    set(recorder.run(&STATISTICS[which], sums, &[x, &part_stats], sums_grid).flops(5 * len));
    let stats = recorder.empty([images, groups, 2]);
    recorder.run(&COMBINE, sums, &[&part_stats, &stats], by_group);
    let y = recorder.empty(x.shape().clone());
    let bound = [x, weight, bias, &stats, &y];
    set(recorder.run(&NORMALIZE[which], each, &bound, each_grid).flops(4 * len));

    let saved = (x.clone(), weight.clone(), bias.clone());
    tape.record([x, weight, bias], y, move |recorder, dy| {
        let (x, weight, bias) = &saved;
        let part_sums = recorder.empty([images, parts, 2, channels]);
        let bound = [x, weight, bias, &stats, dy, &part_sums];
        set(recorder.run(&BACKWARD_SUMS[which], sums, &bound, sums_grid).flops(8 * len));
        let (dweight, dbias) = (recorder.empty([channels]), recorder.empty([channels]));
        reduce::sum_pairs(recorder, &part_sums, images * parts, channels, &dweight, &dbias);
        let dx = x.is_tracked().then(|| {
            let means = recorder.empty([images, groups, 2]);
            recorder.run(&BACKWARD_MEANS, sums, &[&part_sums, weight, &means], by_group);
            let dx = recorder.empty(x.shape().clone());
            let bound = [x, weight, bias, &stats, dy, &means, &dx];
            set(recorder.run(&BACKWARD_X[which], each, &bound, each_grid).flops(10 * len));
            dx
        });
        [dx, Some(dweight), Some(dbias)]
    })
}
