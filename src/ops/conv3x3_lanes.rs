//! 3 × 3 convolution in eight lanes of a CPU: `shaders/conv3x3_lanes.wgsl`.

use super::conv3x3::Extents;
use super::matmul::Matrices;
use super::matmul_lanes::{STEPS, STRIP, TILE, packed};
use crate::Tensor;
use crate::gpu::{Grid, Kernel, Params as _, Recorder, Source, params, source};

const SOURCES: &[Source] = &[
    source!("conv3x3_lanes"),
    source!("lib/lanes"),
    source!("lib/f32", half "lib/f16"),
    source!("lib/pairs_f32", half "lib/pairs_f16"),
];

static PAD: Kernel = kernel("pad", &["x", "padded_out"]);
static PACK_WEIGHT: Kernel = kernel("pack_weight", &["weight", "strips_out"]);
static FORWARD: Kernel = kernel("forward", &["padded", "strips", "y"]);
static BACKWARD_WEIGHT: Kernel = kernel("backward_weight", &["dy_strips", "x_strips", "dweight"]);
pub(super) const KERNELS: &[&Kernel] = &[&PAD, &PACK_WEIGHT, &FORWARD, &BACKWARD_WEIGHT];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("conv3x3_lanes", entry, SOURCES, Params::FIELDS, bindings).on_lanes()
}

params! {
    struct Params {
        batch: u32,
        height: u32,
        width: u32,
        inputs: u32,
        outputs: u32,
        channels: u32,
        pixels: u32,
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
            channels: rounded(inputs) as u32,
            pixels: padded_pixels(extents) as u32,
            from_output: 9 * inputs as u32,
            from_input: 9,
            turned: 0,
            splits: 1,
            first_group: 0,
        }
    }
}

/// Channels with the zeros that fill them up to whole steps of a sum.
fn rounded(channels: usize) -> usize {
    channels.next_multiple_of(STEPS)
}

/// Pixels of all maps with the zeros around them, and those that fill them up to whole steps of a sum that
/// starts anywhere.
fn padded_pixels(Extents { batch, height, width, .. }: Extents) -> usize {
    (batch * (height + 2) * (width + 2) + STEPS).next_multiple_of(STEPS)
}

/// Whether these kernels are for the device and the channels.
pub(super) fn suit(recorder: &Recorder, extents: Extents) -> bool {
    let even = |n: usize| n.is_multiple_of(2);
    recorder.profile().lanes && even(extents.inputs) && even(extents.outputs)
}

/// `x`, `[B, H, W, inputs]`, with zeros around each map.
pub(super) fn pad(recorder: &mut Recorder, x: &Tensor, extents: Extents) -> Tensor {
    let padded = recorder.empty([padded_pixels(extents), rounded(extents.inputs)]);
    let grid = Grid::rows(extents.batch * (extents.height + 2) + 1);
    recorder.run(&PAD, Params::new(extents), &[x, &padded], grid).half(x.is_half());
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
    let columns = outputs.div_ceil(STRIP);
    let strips = recorder.empty([columns, 9 * rounded(inputs), STRIP]);
    let grid = Grid::rows(2 * columns * rounded(inputs) / 8);
    recorder.run(&PACK_WEIGHT, params, &[weight, &strips], grid).half(weight.is_half());
    let y = recorder.empty([batch, height, width, outputs]);
    let grid = Grid::rows(extents.pixels().div_ceil(TILE) * columns);
    recorder.run(&FORWARD, params, &[padded, &strips, &y], grid).flops(extents.flops());
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
    let pixels = padded_pixels(extents);
    let view = |t, channels| Matrices::new(t, pixels, rounded(channels));
    let x_strips = packed(recorder, view(padded, inputs), 1, pixels, inputs, STRIP);
    let dy_strips = packed(recorder, view(padded_dy, outputs), 1, pixels, outputs, TILE);
    let params = Params { splits: splits as u32, ..Params::new(extents) };
    let tiles = outputs.div_ceil(TILE) * inputs.div_ceil(STRIP);
    recorder
        .run(
            &BACKWARD_WEIGHT,
            params,
            &[&dy_strips, &x_strips, to],
            Grid::rows_of(9 * tiles, splits),
        )
        .flops(extents.flops());
}
