//! Matrix products, and `shaders/matmul_packed.wgsl` for CPU drivers; see `matmul_lanes` for those with subgroups of
//! eight, `matmul_tiled` for GPUs, `matmul_matrix` for GPUs with matrix units.

use super::{Normed, elementwise, matmul_lanes, matmul_matrix, matmul_tiled, reduce};
use crate::gpu::{
    Dispatch, Family, Field, Grid, Kernel, Params as _, Recorder, Source, Variant, params, source,
};
use crate::{Tape, Tensor};

const PACKED_SOURCES: &[Source] = &[
    source!("matmul_packed"),
    source!("lib/epilogue"),
    source!("lib/gelu"),
    source!("lib/f32", half "lib/f16"),
];

static PACK: Kernel =
    Kernel::new("matmul_packed", "pack", PACKED_SOURCES, Params::FIELDS, &["source", "strips"]);
static PACKED: Kernels = Kernels::new("matmul_packed", PACKED_SOURCES, Params::FIELDS);
pub(super) const KERNELS: &[&Kernel] =
    &[&PACK, &PACKED.plain, &PACKED.bias, &PACKED.operand, &PACKED.gelu, &PACKED.residual];

/// A kernel for each [`Epilogue`].
pub(super) struct Kernels {
    pub(super) plain: Kernel,
    pub(super) bias: Kernel,
    /// That with a result of 16 bits, in mixed precision.
    pub(super) operand: Kernel,
    pub(super) gelu: Kernel,
    pub(super) residual: Kernel,
}

impl Kernels {
    /// Those of one file.
    pub(super) const fn new(
        file: &'static str,
        sources: &'static [Source],
        params: &'static [Field],
    ) -> Self {
        let bound: [&[&str]; 5] = [
            &["a", "b", "c"],
            &["a", "b", "bias", "c"],
            &["a", "b", "bias", "activation"],
            &["a", "b", "bias", "activation", "preactivation"],
            &["a", "b", "bias", "residual", "keep", "c"],
        ];
        Self::binding(file, sources, params, bound)
    }

    /// Those that take the layer norm of a side.
    pub(super) const fn normed(
        file: &'static str,
        sources: &'static [Source],
        params: &'static [Field],
    ) -> Self {
        let bound: [&[&str]; 5] = [
            &["a", "b", "c", "stats", "norm_weight", "norm_bias"],
            &["a", "b", "bias", "c", "stats", "norm_weight", "norm_bias"],
            &["a", "b", "bias", "activation", "stats", "norm_weight", "norm_bias"],
            &["a", "b", "bias", "activation", "preactivation", "stats", "norm_weight", "norm_bias"],
            &["a", "b", "bias", "residual", "keep", "c", "stats", "norm_weight", "norm_bias"],
        ];
        Self::binding(file, sources, params, bound)
    }

    const fn binding(
        file: &'static str,
        sources: &'static [Source],
        params: &'static [Field],
        [plain, bias, operand, gelu, residual]: [&'static [&'static str]; 5],
    ) -> Self {
        Self {
            plain: Kernel::new(file, "product", sources, params, plain),
            bias: Kernel::new(file, "product_bias", sources, params, bias),
            operand: Kernel::new(file, "product_operand", sources, params, operand),
            gelu: Kernel::new(file, "product_gelu", sources, params, gelu),
            residual: Kernel::new(file, "product_residual", sources, params, residual),
        }
    }

    /// The same with a [name](Kernel::variant).
    pub(super) const fn named(mut self, variant: &'static str) -> Self {
        self.plain.variant = variant;
        self.bias.variant = variant;
        self.operand.variant = variant;
        self.gelu.variant = variant;
        self.residual.variant = variant;
        self
    }

    /// The same for devices with lanes.
    pub(super) const fn on_lanes(mut self) -> Self {
        self.plain.lanes = true;
        self.bias.lanes = true;
        self.operand.lanes = true;
        self.gelu.lanes = true;
        self.residual.lanes = true;
        self
    }

    /// The same for devices with matrix units.
    pub(super) const fn on_matrices(mut self) -> Self {
        self.plain.matrices = true;
        self.bias.matrices = true;
        self.operand.matrices = true;
        self.gelu.matrices = true;
        self.residual.matrices = true;
        self
    }

    /// Records the one for `epilogue`; `norm` is that of a side.
    pub(super) fn run<'a>(
        &'static self,
        recorder: &'a mut Recorder,
        params: impl crate::gpu::Params,
        [a, b, c]: [&Tensor; 3],
        epilogue: Epilogue<'_>,
        norm: Option<&Normed>,
        grid: Grid,
    ) -> &'a mut Dispatch {
        let (kernel, mut bound) = match epilogue {
            Epilogue::Plain { .. } => (&self.plain, vec![a, b, c]),
            Epilogue::Bias(bias) if c.is_half() => (&self.operand, vec![a, b, bias, c]),
            Epilogue::Bias(bias) => (&self.bias, vec![a, b, bias, c]),
            Epilogue::Gelu { bias, preactivation } => {
                (&self.gelu, vec![a, b, bias, c, preactivation])
            }
            Epilogue::Residual { bias, residual, keep } => {
                (&self.residual, vec![a, b, bias, residual, keep, c])
            }
        };
        if let Some(Normed { stats, weight, bias, .. }) = norm {
            bound.extend([stats, weight, bias]);
        }
        recorder.run(kernel, params, &bound, grid)
    }
}

params! {
    pub(super) struct Params {
        rows: u32,
        cols: u32,
        inner: u32,
        splits: u32,
        a_offset: u32,
        a_batch: u32,
        a_row: u32,
        a_inner: u32,
        b_offset: u32,
        b_batch: u32,
        b_inner: u32,
        b_col: u32,
        c_offset: u32,
        c_batch: u32,
        c_row: u32,
        strip: u32,
        a_strip: u32,
        accumulate: u32,
        rows_per_sample: u32,
        alpha: f32,
        first_group: u32,
    }
}

/// A batch of matrices inside a tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrices<'a> {
    pub(crate) tensor: &'a Tensor,
    /// Element where the first one starts.
    pub(crate) offset: usize,
    /// Elements from one matrix to the next.
    pub(crate) batch_stride: usize,
    /// Elements from one row to the next.
    pub(crate) row_stride: usize,
    /// Elements from one column to the next.
    pub(crate) col_stride: usize,
    /// What is multiplied instead of the tensor: its layer norm.
    pub(crate) norm: Option<&'a Normed>,
}

impl<'a> Matrices<'a> {
    /// `tensor` as a batch of contiguous `[rows, cols]`.
    pub(crate) fn new(tensor: &'a Tensor, rows: usize, cols: usize) -> Self {
        let batch_stride = rows * cols;
        Self { tensor, offset: 0, batch_stride, row_stride: cols, col_stride: 1, norm: None }
    }

    /// Rows and columns exchanged; moves nothing.
    pub(crate) fn transposed(self) -> Self {
        Self { row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// From row `row` on.
    pub(crate) fn at_row(self, row: usize) -> Self {
        Self { offset: self.offset + row * self.row_stride, ..self }
    }
}

/// Extents of a batch of products, `[batch, m, k] · [batch, k, n] → [batch, m, n]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extents {
    pub(crate) batch: usize,
    pub(crate) m: usize,
    pub(crate) k: usize,
    pub(crate) n: usize,
}

/// What happens to a product before it is stored.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Epilogue<'a> {
    /// `alpha a b`, or added to what is there.
    Plain { alpha: f32, accumulate: bool },
    /// `a b + bias`
    Bias(&'a Tensor),
    /// `gelu(a b + bias)`, and what the function was taken of.
    Gelu { bias: &'a Tensor, preactivation: &'a Tensor },
    /// `residual + keep[sample] (a b + bias)`
    Residual { bias: &'a Tensor, residual: &'a Tensor, keep: &'a Tensor },
}

/// A product that a variant is to record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product<'a> {
    pub(super) a: Matrices<'a>,
    pub(super) b: Matrices<'a>,
    /// Where results go; those of splits lie one after the other.
    pub(super) c: Matrices<'a>,
    pub(super) extents: Extents,
    /// Parts of the sum, whose results are not added up.
    pub(super) splits: usize,
    pub(super) epilogue: Epilogue<'a>,
}

impl Product<'_> {
    pub(super) fn flops(&self) -> usize {
        let Extents { batch, m, k, n } = self.extents;
        2 * batch * m * k * n
    }
}

/// A plain product, overwriting `c`.
pub(crate) const PLAIN: Epilogue<'static> = Epilogue::Plain { alpha: 1.0, accumulate: false };

impl Params {
    /// For operands where they lie.
    pub(super) fn new(product: &Product<'_>) -> Self {
        let Product { a, b, c, extents: Extents { m, k, n, .. }, splits, epilogue } = *product;
        let (alpha, accumulate) = match epilogue {
            Epilogue::Plain { alpha, accumulate } => (alpha, accumulate),
            _ => (1.0, false),
        };
        let rows_per_sample = match epilogue {
            Epilogue::Residual { keep, .. } => m / keep.shape().len(),
            _ => m,
        };
        Self {
            rows: m as u32,
            cols: n as u32,
            inner: k as u32,
            splits: splits as u32,
            a_offset: a.offset as u32,
            a_batch: a.batch_stride as u32,
            a_row: a.row_stride as u32,
            a_inner: a.col_stride as u32,
            b_offset: b.offset as u32,
            b_batch: b.batch_stride as u32,
            b_inner: b.row_stride as u32,
            b_col: b.col_stride as u32,
            c_offset: c.offset as u32,
            c_batch: c.batch_stride as u32,
            c_row: c.row_stride as u32,
            strip: 0,
            a_strip: 0,
            accumulate: u32::from(accumulate),
            rows_per_sample: rows_per_sample as u32,
            alpha,
            first_group: 0,
        }
    }

    /// The same where offsets and strides of operands count fours. Strides of 1 become 0: nothing uses them.
    pub(super) fn in_fours(mut self) -> Self {
        for at in [
            &mut self.a_offset,
            &mut self.a_batch,
            &mut self.a_row,
            &mut self.a_inner,
            &mut self.b_offset,
            &mut self.b_batch,
            &mut self.b_inner,
            &mut self.b_col,
        ] {
            *at /= 4;
        }
        self
    }
}

/// `c = epilogue(a · b)` for every matrix of a batch. `c`'s columns are contiguous.
///
/// Both sides may have 16 bits; what GELU is taken of and what it makes then have, too, and a result with a bias may.
pub(crate) fn product(
    recorder: &mut Recorder,
    a: Matrices<'_>,
    b: Matrices<'_>,
    c: Matrices<'_>,
    extents: Extents,
    epilogue: Epilogue<'_>,
) {
    let Extents { batch, m, k, n } = extents;
    let sizes = [("batch", batch), ("m", m), ("k", k), ("n", n)];
    let family = if a.tensor.is_half() { Family::HalfProduct } else { Family::Product };
    let product = Product { a, b, c, extents, splits: 1, epilogue };
    recorder.decide(family, &sizes, |recorder, variant| product_as(recorder, variant, product));
}

fn product_as(recorder: &mut Recorder, variant: Variant, product: Product<'_>) {
    let Product { a, b, c, extents, epilogue, .. } = product;
    let Extents { batch, m, n, .. } = extents;
    assert!(batch > 0 && m > 0 && n > 0, "product: nothing to do for {extents:?}");
    assert_eq!(c.col_stride, 1, "product: columns of the result are contiguous");
    assert_eq!(a.tensor.is_half(), b.tensor.is_half(), "product: bits of both sides");
    let normed = a.norm.is_some() || b.norm.is_some();
    if normed && !matmul_tiled::takes_norm(variant, &product) {
        let made = [a, b].map(|side| side.norm.map(|norm| norm.made(recorder)));
        let [a, b] = [(a, &made[0]), (b, &made[1])].map(|(side, made)| match made {
            Some(tensor) => Matrices { tensor, norm: None, ..side },
            None => side,
        });
        return product_as(recorder, variant, Product { a, b, ..product });
    }
    // Parts are added up into a whole tensor.
    let whole = c.tensor.shape().len() == m * n;
    let splits = match epilogue {
        Epilogue::Plain { .. } if whole => splits(variant, extents),
        _ => 1,
    };
    // Each part of a split product goes to a matrix of its own, to be added up afterwards.
    let parts = (splits > 1).then(|| recorder.empty([splits, m, n]));
    let now = match &parts {
        // Parts know nothing of what comes after them.
        Some(parts) => {
            Product { c: Matrices::new(parts, m, n), splits, epilogue: PLAIN, ..product }
        }
        None => product,
    };
    match variant {
        Variant::Lanes if matmul_lanes::product(recorder, &now) => {}
        Variant::Matrices if matmul_matrix::product(recorder, &now) => {}
        Variant::Registers | Variant::Lanes => packed_product(recorder, &now),
        Variant::Tiles | Variant::SmallTiles | Variant::Matrices => {
            matmul_tiled::product(recorder, variant, &now);
        }
    }
    if let (Some(parts), Epilogue::Plain { alpha, accumulate }) = (&parts, epilogue) {
        let y = c.tensor;
        reduce::sum_rows_into(recorder, parts, splits, m * n, y, alpha, accumulate);
    }
}

/// Records a product for drivers on CPUs.
fn packed_product(recorder: &mut Recorder, product: &Product<'_>) {
    let Product { a, b, c, extents: Extents { batch, m, k, n }, splits, epilogue } = *product;
    let params = Params::new(product);
    let half = a.tensor.is_half();
    let strips = n.div_ceil(STRIP);
    let packed;
    let (packed, params) = if !half && reads_in_place(b, k) {
        (b.tensor, Params { strip: STRIP as u32, ..params })
    } else {
        packed = recorder.empty([batch, strips, k.max(1), STRIP]);
        let grid = Grid::rows_of(strips * k.div_ceil(64).max(1), batch);
        recorder.run(&PACK, params, &[b.tensor, &packed], grid).half(half);
        let strip = k * STRIP;
        let params = Params {
            b_offset: 0,
            b_batch: (strips * strip) as u32,
            b_inner: STRIP as u32,
            strip: strip as u32,
            ..params
        };
        (&packed, params)
    };
    let packed_a;
    let (at, params) = if half || collides(a, n) {
        let strips = m.div_ceil(STRIP);
        packed_a = recorder.empty([batch, strips, k, STRIP]);
        // Its transpose's columns are its rows.
        let rows = Params {
            cols: m as u32,
            b_offset: a.offset as u32,
            b_batch: a.batch_stride as u32,
            b_inner: a.col_stride as u32,
            b_col: a.row_stride as u32,
            ..params
        };
        let grid = Grid::rows_of(strips * k.div_ceil(64), batch);
        recorder.run(&PACK, rows, &[a.tensor, &packed_a], grid).half(half);
        let params = Params {
            a_offset: 0,
            a_batch: (strips * k * STRIP) as u32,
            a_inner: STRIP as u32,
            a_strip: (k * STRIP) as u32,
            ..params
        };
        (&packed_a, params)
    } else {
        (a.tensor, params)
    };
    let grid = Grid::rows_of(m.div_ceil(16) * strips, batch * splits);
    let dispatch = PACKED.run(recorder, params, [at, packed, c.tensor], epilogue, None, grid);
    dispatch.half(c.tensor.is_half()).flops(product.flops());
}

/// Columns of a strip of `b`, in `matmul_packed.wgsl`.
const STRIP: usize = 32;

/// Whether `b` need not be packed: its columns are contiguous, and its rows do not lie so that they
/// throw each other out of the cache. A single row would look like a packed strip.
fn reads_in_place(b: Matrices<'_>, k: usize) -> bool {
    const PAGE: usize = 1024;
    b.col_stride == 1 && k > 1 && b.row_stride <= 2 * PAGE && !b.row_stride.is_multiple_of(PAGE / 4)
}

/// Whether rows of `a` lie so that sixteen of them throw each other out of the nearest cache, and
/// are read often enough that packing them pays.
fn collides(a: Matrices<'_>, n: usize) -> bool {
    a.col_stride == 1 && a.row_stride.is_multiple_of(1024) && a.row_stride > 0 && n > 2 * STRIP
}

/// In how many parts a product goes along `k`: a weight gradient is small but sums over every
/// token, and would leave most of a GPU without work (and a CPU's cache without use).
fn splits(variant: Variant, Extents { batch, m, k, n }: Extents) -> usize {
    const PART: usize = 512;
    const MOST_ELEMENTS: usize = 1 << 21;
    if batch > 1
        || k < 4 * PART
        || (!matches!(variant, Variant::Lanes | Variant::Registers) && m * n >= 1 << 20)
    {
        return 1;
    }
    (k / PART).min(MOST_ELEMENTS / (m * n)).clamp(1, 256)
}

/// Who adds what to a linear layer's product.
#[derive(Clone, Copy, Debug)]
enum Then<'a> {
    Nothing,
    Operand,
    Gelu,
    Add { residual: &'a Tensor, keep: Option<&'a Tensor> },
}

/// `y = x · weightᵀ + bias`, the fully connected layer of `torch.nn.functional.linear`.
///
/// - `x`: `[.., I]`
/// - `weight`: `[O, I]`
/// - `bias`: `[O]`, if there is one
/// - returns `[.., O]`
///
/// Keeps `x` for the backward pass, or what it is the [`layer_norm_operand`](super::layer_norm_operand) of.
///
/// # Panics
///
/// If the shapes do not fit together.
#[track_caller]
pub fn linear(tape: &mut Tape, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    match bias {
        Some(bias) => linear_then(tape, x, weight, bias, Then::Nothing),
        None => linear_without_bias(tape, x, weight),
    }
}

/// [`linear`] for an op that reads 16 bits in mixed precision: the result then has as many.
#[track_caller]
pub fn linear_operand(tape: &mut Tape, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Tensor {
    linear_then(tape, x, weight, bias, Then::Operand)
}

/// `gelu(x · weightᵀ + bias)`: [`linear`] and [`gelu`](super::gelu) in one kernel. Keeps `x` and
/// what the activation was taken of.
#[track_caller]
pub fn linear_gelu(tape: &mut Tape, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Tensor {
    linear_then(tape, x, weight, bias, Then::Gelu)
}

/// `residual + keep[sample] · (x · weightᵀ + bias)`: the end of a residual branch in one kernel.
///
/// - `residual`: the shape of the result
/// - `keep`: `[B]`, the factor of each sample, from [`drop_path`](super::drop_path); none for 1
#[track_caller]
pub fn linear_residual(
    tape: &mut Tape,
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    residual: &Tensor,
    keep: Option<&Tensor>,
) -> Tensor {
    linear_then(tape, x, weight, bias, Then::Add { residual, keep })
}

#[track_caller]
fn check(x: &Tensor, weight: &Tensor) -> (usize, usize, usize) {
    let (rows, inputs) = (x.shape().rows(), x.shape().last());
    let [outputs, weight_inputs] = *weight.dims() else {
        panic!("linear: weight {:?} is not a matrix", weight.shape())
    };
    assert_eq!(weight_inputs, inputs, "linear: weight {:?} for x {:?}", weight.shape(), x.shape());
    (rows, inputs, outputs)
}

#[track_caller]
fn linear_without_bias(tape: &mut Tape, x: &Tensor, weight: &Tensor) -> Tensor {
    let (rows, inputs, outputs) = check(x, weight);
    let (left, right) = (Left::new(tape, x), tape.operand(weight));
    let recorder = tape.recorder();
    let y = recorder.empty(x.shape().with_last(outputs));
    let (a, b) = (left.matrices(rows, inputs), Matrices::new(&right, outputs, inputs));
    let extents = Extents { batch: 1, m: rows, k: inputs, n: outputs };
    product(recorder, a, b.transposed(), Matrices::new(&y, rows, outputs), extents, PLAIN);
    let weight_ = weight.clone();
    tape.record([x, weight], y, move |recorder, dy| {
        let (dx, dweight) = linear_backward(recorder, &left, &weight_, dy);
        [dx, dweight]
    })
}

#[track_caller]
fn linear_then(
    tape: &mut Tape,
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    then: Then<'_>,
) -> Tensor {
    let (rows, inputs, outputs) = check(x, weight);
    assert_eq!(bias.dims(), [outputs], "linear: bias for weight {:?}", weight.shape());
    let (left, right) = (Left::new(tape, x), tape.operand(weight));
    let shape = x.shape().with_last(outputs);
    let (y, before) = match then {
        Then::Gelu => (tape.empty_operand(shape.clone()), Some(tape.empty_operand(shape))),
        Then::Operand => (tape.empty_operand(shape), None),
        _ => (tape.recorder().empty(shape), None),
    };
    let recorder = tape.recorder();
    let (a, b) = (left.matrices(rows, inputs), Matrices::new(&right, outputs, inputs));
    let extents = Extents { batch: 1, m: rows, k: inputs, n: outputs };
    let to = Matrices::new(&y, rows, outputs);
    let all =
        matches!(then, Then::Add { keep: None, .. }).then(|| elementwise::fill(recorder, [1], 1.0));
    let epilogue = match (then, &before) {
        (Then::Gelu, Some(preactivation)) => Epilogue::Gelu { bias, preactivation },
        (Then::Add { residual, keep }, _) => {
            assert_eq!(residual.shape().len(), y.shape().len(), "linear: residual");
            let keep = keep.or(all.as_ref()).expect("one of them is there");
            assert_eq!(rows % keep.shape().len(), 0, "linear: keep");
            Epilogue::Residual { bias, residual, keep }
        }
        _ => Epilogue::Bias(bias),
    };
    product(recorder, a, b.transposed(), to, extents, epilogue);

    let weight_ = weight.clone();
    let with_bias = bias.is_tracked();
    let gradients = move |recorder: &mut Recorder, dy: &Tensor| {
        let (dx, dweight) = linear_backward(recorder, &left, &weight_, dy);
        let dbias = with_bias.then(|| reduce::sum_rows(recorder, dy, rows, outputs));
        [dx, dweight, dbias]
    };
    match then {
        Then::Nothing | Then::Operand => tape.record([x, weight, bias], y, gradients),
        Then::Gelu => {
            let before = before.expect("made above");
            tape.record([x, weight, bias], y, move |recorder, dy| {
                let dy = elementwise::gelu_backward(recorder, &before, dy);
                gradients(recorder, &dy)
            })
        }
        Then::Add { residual, keep } => {
            let keep = keep.cloned();
            tape.record([x, weight, bias, residual], y, move |recorder, dy| {
                let branch = match &keep {
                    Some(keep) => super::drop::scale_samples(recorder, dy, keep),
                    None => dy.clone(),
                };
                let [dx, dweight, dbias] = gradients(recorder, &branch);
                [dx, dweight, dbias, Some(dy.clone())]
            })
        }
    }
}

/// What a linear layer reads: the left side of its product, and what is kept for the way back.
struct Left {
    /// Of 16 bits in mixed precision.
    x: Tensor,
    /// How `x` comes about, if it need not be read.
    norm: Option<Normed>,
}

impl Left {
    fn new(tape: &mut Tape, x: &Tensor) -> Self {
        let norm = tape.norm_of(x);
        Self { x: tape.operand(x), norm }
    }

    fn matrices(&self, rows: usize, cols: usize) -> Matrices<'_> {
        match &self.norm {
            Some(norm) => Matrices { norm: Some(norm), ..Matrices::new(&norm.x, rows, cols) },
            None => Matrices::new(&self.x, rows, cols),
        }
    }
}

/// `dx = dy · weight` and `dweight = dyᵀ · x`, each only where it is wanted.
fn linear_backward(
    recorder: &mut Recorder,
    left: &Left,
    weight: &Tensor,
    dy: &Tensor,
) -> (Option<Tensor>, Option<Tensor>) {
    let x = &left.x;
    let (rows, inputs, outputs) = check(x, weight);
    let dy = elementwise::narrowed_like(recorder, dy, x);
    let dy = Matrices::new(&dy, rows, outputs);
    let dx = x.is_tracked().then(|| {
        let dx = recorder.empty(x.shape().clone());
        let extents = Extents { batch: 1, m: rows, k: outputs, n: inputs };
        let weight = elementwise::narrowed_like(recorder, weight, x);
        let weight = Matrices::new(&weight, outputs, inputs);
        product(recorder, dy, weight, Matrices::new(&dx, rows, inputs), extents, PLAIN);
        dx
    });
    let dweight = weight.is_tracked().then(|| {
        let dweight = recorder.empty(weight.shape().clone());
        let extents = Extents { batch: 1, m: outputs, k: rows, n: inputs };
        let to = Matrices::new(&dweight, outputs, inputs);
        let x = left.matrices(rows, inputs);
        product(recorder, dy.transposed(), x, to, extents, PLAIN);
        dweight
    });
    (dx, dweight)
}

/// `a · b` for every matrix of a batch; either may be transposed on the way.
///
/// - `a`: `[.., M, K]`, or `[.., K, M]` with `transpose.0`
/// - `b`: `[.., K, N]`, or `[.., N, K]` with `transpose.1`
/// - returns `[.., M, N]`
///
/// Equals `torch.matmul` without broadcasting. Keeps `a` and `b`.
///
/// # Panics
///
/// If the shapes do not fit together.
#[track_caller]
pub fn matmul(tape: &mut Tape, a: &Tensor, b: &Tensor, transpose: (bool, bool)) -> Tensor {
    let split = |t: &Tensor| {
        let [batch @ .., rows, cols] = t.dims() else { panic!("matmul of {:?}", t.shape()) };
        (batch.to_vec(), *rows, *cols)
    };
    let ((batch, a_rows, a_cols), (b_batch, b_rows, b_cols)) = (split(a), split(b));
    let (m, k) = if transpose.0 { (a_cols, a_rows) } else { (a_rows, a_cols) };
    let (b_k, n) = if transpose.1 { (b_cols, b_rows) } else { (b_rows, b_cols) };
    assert!(batch == b_batch && k == b_k, "matmul of {:?} and {:?}", a.shape(), b.shape());
    let extents = Extents { batch: batch.iter().product(), m, k, n };

    let recorder = tape.recorder();
    let y = recorder.empty(&[&batch[..], &[m, n]].concat()[..]);
    let (left, right) =
        (view(a, a_rows, a_cols, transpose.0), view(b, b_rows, b_cols, transpose.1));
    product(recorder, left, right, Matrices::new(&y, m, n), extents, PLAIN);

    let saved = (a.clone(), b.clone());
    tape.record([a, b], y, move |recorder, dy| {
        let (a, b) = &saved;
        let (left, right) =
            (view(a, a_rows, a_cols, transpose.0), view(b, b_rows, b_cols, transpose.1));
        let dy = Matrices::new(dy, m, n);
        let Extents { batch, .. } = extents;
        let da = a.is_tracked().then(|| {
            let da = recorder.empty(a.shape().clone());
            let to = Matrices::new(&da, a_rows, a_cols);
            // da = dy bᵀ; of a transposed a the transpose, b dyᵀ.
            if transpose.0 {
                let extents = Extents { batch, m: k, k: n, n: m };
                product(recorder, right, dy.transposed(), to, extents, PLAIN);
            } else {
                let extents = Extents { batch, m, k: n, n: k };
                product(recorder, dy, right.transposed(), to, extents, PLAIN);
            }
            da
        });
        let db = b.is_tracked().then(|| {
            let db = recorder.empty(b.shape().clone());
            let to = Matrices::new(&db, b_rows, b_cols);
            if transpose.1 {
                let extents = Extents { batch, m: n, k: m, n: k };
                product(recorder, dy.transposed(), left, to, extents, PLAIN);
            } else {
                let extents = Extents { batch, m: k, k: m, n };
                product(recorder, left.transposed(), dy, to, extents, PLAIN);
            }
            db
        });
        [da, db]
    })
}

/// `tensor` as a batch of `[rows, cols]`, or of its transposes.
fn view(tensor: &Tensor, rows: usize, cols: usize, transposed: bool) -> Matrices<'_> {
    let matrices = Matrices::new(tensor, rows, cols);
    if transposed { matrices.transposed() } else { matrices }
}
