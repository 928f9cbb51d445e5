//! 3 × 3 convolution: `shaders/conv3x3.wgsl` for CPU drivers; see `conv3x3_lanes` for those with subgroups of
//! eight, `conv3x3_tiled` for GPUs.

use super::{conv3x3_lanes, conv3x3_tiled, elementwise, reduce};
use crate::gpu::{Family, Grid, Kernel, Params as _, Recorder, Source, Variant, params, source};
use crate::{Tape, Tensor};

const SOURCES: &[Source] = &[source!("conv3x3"), source!("lib/f32", half "lib/f16")];

static PACK_WEIGHT: Kernel = kernel("pack_weight", &["weight", "packed"]);
static PAD: Kernel = kernel("pad", &["x", "packed"]);
static PAD_STRIPS: Kernel = kernel("pad_strips", &["x", "packed"]);
static FORWARD: Kernel = kernel("forward", &["padded", "strips", "y"]);
static BACKWARD_WEIGHT: Kernel = kernel("backward_weight", &["dy", "x_strips", "dweight"]);
pub(super) const KERNELS: &[&Kernel] =
    &[&PACK_WEIGHT, &PAD, &PAD_STRIPS, &FORWARD, &BACKWARD_WEIGHT];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("conv3x3", entry, SOURCES, Params::FIELDS, bindings)
}

params! {
    struct Params {
        batch: u32,
        height: u32,
        width: u32,
        inputs: u32,
        outputs: u32,
        from_output: u32,
        from_input: u32,
        turned: u32,
        splits: u32,
        first_group: u32,
    }
}

/// Extents of a convolution.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extents {
    pub(super) batch: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
}

impl Extents {
    #[track_caller]
    fn new(x: &Tensor, weight: &Tensor) -> Self {
        let [batch, height, width, inputs] = *x.dims() else {
            panic!("conv3x3 of {:?}", x.shape())
        };
        let outputs = weight.dims()[0];
        assert_eq!(weight.dims(), [outputs, inputs, 3, 3], "conv3x3: weight for x {:?}", x.shape());
        assert!(batch * height * width * inputs * outputs > 0, "conv3x3 of {:?}", x.shape());
        Self { batch, height, width, inputs, outputs }
    }

    /// The variant for this work, forward and backward.
    fn decide<T>(
        self,
        recorder: &mut Recorder,
        record: impl FnOnce(&mut Recorder, Variant) -> T,
    ) -> T {
        let sizes = [("pixels", self.pixels()), ("inputs", self.inputs), ("outputs", self.outputs)];
        recorder.decide(Family::Convolution, &sizes, record)
    }

    fn params(self) -> Params {
        Params {
            batch: self.batch as u32,
            height: self.height as u32,
            width: self.width as u32,
            inputs: self.inputs as u32,
            outputs: self.outputs as u32,
            from_output: 9 * self.inputs as u32,
            from_input: 9,
            turned: 0,
            splits: 1,
            first_group: 0,
        }
    }

    /// Of the gradient of `x`, which is a convolution of the outputs.
    fn exchanged(self) -> Self {
        Self { inputs: self.outputs, outputs: self.inputs, ..self }
    }

    pub(super) fn pixels(self) -> usize {
        self.batch * self.height * self.width
    }

    pub(super) fn flops(self) -> usize {
        2 * 9 * self.pixels() * self.inputs * self.outputs
    }

    /// Rows of all maps, with the zeros above and below.
    fn lines(self) -> usize {
        self.batch * (self.height + 2)
    }
}

/// Convolution with a 3 × 3 kernel, padding 1 and stride 1, without bias.
///
/// - `x`: `[B, H, W, I]`
/// - `weight`: `[O, I, 3, 3]`
/// - returns `[B, H, W, O]`
///
/// Equals `torch.nn.functional.conv2d(x, weight, padding=1)`, but for the layout. It is a matrix
/// product whose left side, nine shifted copies of `x`, is never in memory. Keeps `x`. In
/// mixed precision `x`, `weight` and the gradient of the result are rounded to 16 bits.
///
/// # Panics
///
/// If the shapes do not fit together or something is empty.
#[track_caller]
pub fn conv3x3(tape: &mut Tape, x: &Tensor, weight: &Tensor) -> Tensor {
    let extents = Extents::new(x, weight);
    let variant = extents.decide(tape.recorder(), |_, variant| variant);
    match variant {
        Variant::Lanes if conv3x3_lanes::suit(tape.recorder(), extents) => {
            return on_padded(tape, x, weight, extents, &LANES);
        }
        Variant::Tiles | Variant::SmallTiles | Variant::Matrices => {
            return on_padded(tape, x, weight, extents, &TILES);
        }
        Variant::Lanes | Variant::Registers => {}
    }
    let read = tape.operand(x);
    let y = extents.decide(tape.recorder(), |recorder, _| {
        product(recorder, &read, weight, extents, extents.params())
    });
    let saved = (read, weight.clone());
    tape.record([x, weight], y, move |recorder, dy| {
        let (x, weight) = &saved;
        let dy = &elementwise::narrowed_like(recorder, dy, x);
        extents.decide(recorder, |recorder, _| {
            let dx = x.is_tracked().then(|| {
                let Extents { inputs, .. } = extents;
                let (from_output, from_input) = (9, 9 * inputs as u32);
                let extents = extents.exchanged();
                let params = Params { from_output, from_input, turned: 1, ..extents.params() };
                product(recorder, dy, weight, extents, params)
            });
            let dweight = weight.is_tracked().then(|| {
                sum_of_parts(recorder, extents, |recorder, splits, to| {
                    backward_weight(recorder, (x, dy), to, extents, splits);
                })
            });
            [dx, dweight]
        })
    })
}

/// Kernels that read maps with zeros around them.
struct Padded {
    pad: fn(&mut Recorder, &Tensor, Extents) -> Tensor,
    product: fn(&mut Recorder, &Tensor, &Tensor, Extents, bool) -> Tensor,
    backward_weight: fn(&mut Recorder, (&Tensor, &Tensor), &Tensor, Extents, usize),
}

static LANES: Padded = Padded {
    pad: conv3x3_lanes::pad,
    product: conv3x3_lanes::product,
    backward_weight: conv3x3_lanes::backward_weight,
};

static TILES: Padded = Padded {
    pad: conv3x3_tiled::pad,
    product: conv3x3_tiled::product,
    backward_weight: conv3x3_tiled::backward_weight,
};

/// [`conv3x3`] with these kernels; keeps `x` too.
fn on_padded(
    tape: &mut Tape,
    x: &Tensor,
    weight: &Tensor,
    extents: Extents,
    kernels: &'static Padded,
) -> Tensor {
    let (read, narrow) = (tape.operand(x), tape.operand(weight));
    let y = extents.decide(tape.recorder(), |recorder, _| {
        let padded = (kernels.pad)(recorder, &read, extents);
        (kernels.product)(recorder, &padded, &narrow, extents, false)
    });
    let saved = (read, weight.clone());
    tape.record([x, weight], y, move |recorder, dy| {
        let (x, weight) = &saved;
        let dy = &elementwise::narrowed_like(recorder, dy, x);
        extents.decide(recorder, |recorder, _| {
            let padded_dy = (kernels.pad)(recorder, dy, extents.exchanged());
            let dx = x.is_tracked().then(|| {
                let weight = elementwise::narrowed_like(recorder, weight, x);
                (kernels.product)(recorder, &padded_dy, &weight, extents.exchanged(), true)
            });
            let dweight = weight.is_tracked().then(|| {
                let padded = (kernels.pad)(recorder, x, extents);
                sum_of_parts(recorder, extents, |recorder, splits, to| {
                    (kernels.backward_weight)(recorder, (&padded, &padded_dy), to, extents, splits);
                })
            });
            [dx, dweight]
        })
    })
}

/// The convolution of `x` with `weight`, read with the strides of `params`.
fn product(
    recorder: &mut Recorder,
    x: &Tensor,
    weight: &Tensor,
    extents: Extents,
    params: Params,
) -> Tensor {
    let Extents { batch, height, width, inputs, outputs } = extents;
    let weight = &elementwise::narrowed_like(recorder, weight, x);
    let columns = outputs.div_ceil(32);
    let strips = recorder.empty([columns, 9 * inputs, 32]);
    let grid = Grid::rows(columns * inputs.div_ceil(16));
    recorder.run(&PACK_WEIGHT, params, &[weight, &strips], grid).half(x.is_half());
    let padded = recorder.empty([batch, height + 2, width + 2, inputs]);
    let dispatch = recorder.run(&PAD, params, &[x, &padded], Grid::rows(extents.lines()));
    dispatch.half(x.is_half());
    let y = recorder.empty([batch, height, width, outputs]);
    let grid = Grid::rows(extents.pixels().div_ceil(16) * columns);
    recorder.run(&FORWARD, params, &[&padded, &strips, &y], grid).flops(extents.flops());
    y
}

/// The gradient of the weight, whose `splits` parts `record` writes to a tensor.
fn sum_of_parts(
    recorder: &mut Recorder,
    extents: Extents,
    record: impl FnOnce(&mut Recorder, usize, &Tensor),
) -> Tensor {
    let Extents { inputs, outputs, .. } = extents;
    let dweight = recorder.empty([outputs, inputs, 3, 3]);
    let len = 9 * inputs * outputs;
    let splits = splits(extents);
    let parts = (splits > 1).then(|| recorder.empty([splits, len]));
    record(recorder, splits, parts.as_ref().unwrap_or(&dweight));
    if let Some(parts) = &parts {
        reduce::sum_rows_into(recorder, parts, splits, len, &dweight, 1.0, false);
    }
    dweight
}

fn backward_weight(
    recorder: &mut Recorder,
    (x, dy): (&Tensor, &Tensor),
    to: &Tensor,
    extents: Extents,
    splits: usize,
) {
    let Extents { batch, height, width, inputs, outputs } = extents;
    let params = Params { splits: splits as u32, ..extents.params() };
    let columns = inputs.div_ceil(32);
    let x_strips = recorder.empty([columns, batch, height + 2, width + 2, 32]);
    let grid = Grid::rows(columns * extents.lines());
    recorder.run(&PAD_STRIPS, params, &[x, &x_strips], grid).half(x.is_half());
    let grid = Grid::rows_of(9 * outputs.div_ceil(16) * columns, splits);
    let dispatch = recorder.run(&BACKWARD_WEIGHT, params, &[dy, &x_strips, to], grid);
    dispatch.half(x.is_half()).flops(extents.flops());
}

/// In how many parts the sum over all pixels goes: see `matmul`. Each has whole rows of a map.
fn splits(extents: Extents) -> usize {
    const PART: usize = 512;
    const MOST_ELEMENTS: usize = 1 << 22;
    let len = 9 * extents.inputs * extents.outputs;
    let most = (extents.pixels() / PART).min(MOST_ELEMENTS / len);
    most.min(extents.batch * extents.height).clamp(1, 256)
}
