//! 3 × 3 convolution by tiles in workgroup memory, for GPUs: `shaders/conv3x3_tiled.wgsl`.

use super::conv3x3::Extents;
use crate::Tensor;
use crate::gpu::{Grid, Kernel, Params as _, Recorder, Source, params, source};

const SOURCES: &[Source] = &[
    source!("conv3x3_tiled"),
    source!("lib/tile64"),
    source!("lib/tiles"),
    source!("lib/f32", half "lib/f16"),
];

static PAD: Kernel = kernel("pad", &["x", "padded_out"]);
static PACK_WEIGHT: Kernel = kernel("pack_weight", &["weight", "strips_out"]);
static FORWARD: Kernel = kernel("forward", &["padded_x", "strips", "y"]);
static BACKWARD_WEIGHT: Kernel = kernel("backward_weight", &["padded_dy", "padded_x", "dweight"]);
pub(super) const KERNELS: &[&Kernel] = &[&PAD, &PACK_WEIGHT, &FORWARD, &BACKWARD_WEIGHT];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("conv3x3_tiled", entry, SOURCES, Params::FIELDS, bindings)
}

params! {
    struct Params {
        batch: u32,
        height: u32,
        width: u32,
        inputs: u32,
        outputs: u32,
        lines: u32,
        from_output: u32,
        from_input: u32,
        turned: u32,
        splits: u32,
        first_group: u32,
    }
}

impl Params {
    fn new(extents: Extents) -> Self {
        let Extents { batch, height, width, inputs, outputs } = extents;
        Self {
            batch: batch as u32,
            height: height as u32,
            width: width as u32,
            inputs: inputs as u32,
            outputs: outputs as u32,
            lines: lines(extents) as u32,
            from_output: 9 * inputs as u32,
            from_input: 9,
            turned: 0,
            splits: 1,
            first_group: 0,
        }
    }
}

/// Rows and columns of a tile.
const TILE: usize = 64;
/// Steps of a sum that go together.
const DEPTH: usize = 16;

/// Channels with the zeros that fill them up to whole steps of a sum.
fn rounded(channels: usize) -> usize {
    channels.next_multiple_of(DEPTH)
}

/// Lines of all maps with the zeros around them, and as many as a last step of a sum may reach beyond.
fn lines(Extents { batch, height, width, .. }: Extents) -> usize {
    batch * (height + 2) + DEPTH.div_ceil(width + 2)
}

/// `x`, `[B, H, W, inputs]`, with zeros around each map.
pub(super) fn pad(recorder: &mut Recorder, x: &Tensor, extents: Extents) -> Tensor {
    let lines = lines(extents);
    let shape = [lines, extents.width + 2, rounded(extents.inputs)];
    let padded = recorder.empty_as(shape, x.is_half());
    let dispatch = recorder.run(&PAD, Params::new(extents), &[x, &padded], Grid::rows(lines));
    dispatch.half(x.is_half());
    padded
}

/// The convolution of a padded map. `turned`: with the weight turned by 180° and its channels exchanged.
pub(super) fn product(
    recorder: &mut Recorder,
    padded: &Tensor,
    weight: &Tensor,
    extents: Extents,
    turned: bool,
) -> Tensor {
    let Extents { batch, height, width, inputs, outputs } = extents;
    let mut params = Params::new(extents);
    if turned {
        let (from_output, from_input) = (9, 9 * outputs as u32);
        params = Params { from_output, from_input, turned: 1, ..params };
    }
    let columns = outputs.div_ceil(TILE);
    let strips = recorder.empty([columns, 9 * rounded(inputs), TILE]);
    let grid = Grid::rows(columns * rounded(inputs) / DEPTH);
    let dispatch = recorder.run(&PACK_WEIGHT, params, &[weight, &strips], grid);
    dispatch.half(weight.is_half());
    let y = recorder.empty([batch, height, width, outputs]);
    let grid = Grid::rows(extents.pixels().div_ceil(TILE) * columns);
    let dispatch = recorder.run(&FORWARD, params, &[padded, &strips, &y], grid);
    dispatch.half(padded.is_half()).flops(extents.flops());
    y
}

/// The gradient of the weight, in `splits` parts, from the padded maps of `x` and `dy`.
pub(super) fn backward_weight(
    recorder: &mut Recorder,
    (padded, padded_dy): (&Tensor, &Tensor),
    to: &Tensor,
    extents: Extents,
    splits: usize,
) {
    let Extents { inputs, outputs, .. } = extents;
    let params = Params { splits: splits as u32, ..Params::new(extents) };
    let tiles = outputs.div_ceil(TILE) * inputs.div_ceil(TILE);
    let bound = [padded_dy, padded, to];
    let dispatch = recorder.run(&BACKWARD_WEIGHT, params, &bound, Grid::rows_of(9 * tiles, splits));
    dispatch.half(padded.is_half()).flops(extents.flops());
}
