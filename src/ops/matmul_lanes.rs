//! Matrix products in eight lanes of a CPU: `shaders/matmul_lanes.wgsl` and `shaders/pack.wgsl`.

use super::matmul::{Epilogue, Extents, Kernels, Matrices, Product};
use crate::Tensor;
use crate::gpu::{Grid, Kernel, Params as _, Recorder, Source, params, source};

const SOURCES: &[Source] = &[
    source!("matmul_lanes"),
    source!("lib/lanes"),
    source!("lib/gelu"),
    source!("lib/pairs_f32", half "lib/pairs_f16"),
];
const PACK: &[Source] = &[
    source!("pack"),
    source!("lib/lanes"),
    source!("lib/f32", half "lib/f16"),
    source!("lib/pairs_f32", half "lib/pairs_f16"),
];

static PRODUCT: Kernels = Kernels::new("matmul_lanes", SOURCES, Params::FIELDS).on_lanes();
static PLAIN_WORDS: Kernel = kernel("product_words", &["a", "b", "c_words"]);
static BIAS_WORDS: Kernel = kernel("product_bias_words", &["a", "b", "bias_words", "c_words"]);
static PACK_WORDS: Kernel = pack("pack_words", &["words", "strips"]);
static PACK_PAIRS: Kernel = pack("pack_pairs", &["pairs", "strips"]);
static PACK_ROWS: Kernel = pack("pack_rows", &["pairs", "strips"]);
pub(super) const KERNELS: &[&Kernel] = &[
    &PRODUCT.plain,
    &PRODUCT.bias,
    &PRODUCT.operand,
    &PRODUCT.gelu,
    &PRODUCT.residual,
    &PLAIN_WORDS,
    &BIAS_WORDS,
    &PACK_WORDS,
    &PACK_PAIRS,
    &PACK_ROWS,
];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("matmul_lanes", entry, SOURCES, Params::FIELDS, bindings).on_lanes()
}

const fn pack(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("pack", entry, PACK, PackParams::FIELDS, bindings).on_lanes()
}

params! {
    struct Params {
        rows: u32,
        cols: u32,
        inner: u32,
        block: u32,
        splits: u32,
        a_offset: u32,
        a_batch: u32,
        a_tile: u32,
        a_row: u32,
        a_step: u32,
        b_offset: u32,
        b_batch: u32,
        b_strip: u32,
        b_step: u32,
        c_offset: u32,
        c_batch: u32,
        c_row: u32,
        accumulate: u32,
        rows_per_sample: u32,
        alpha: f32,
        first_group: u32,
    }
}

params! {
    struct PackParams {
        cols: u32,
        inner: u32,
        width: u32,
        rounded: u32,
        offset: u32,
        batch: u32,
        step: u32,
        col: u32,
        first_group: u32,
    }
}

/// Rows of a tile, and so of the strips that a left side is packed into.
pub(super) const TILE: usize = 16;
/// Columns of a tile, and so of the strips that a right side is packed into.
pub(super) const STRIP: usize = 32;
/// Elements of the left side that a CPU's second cache holds beside the rest.
const BLOCK: usize = 64 << 10;
/// Steps of the sum that go together.
pub(super) const STEPS: usize = 8;

/// Records the product if the device and the result suit these kernels, and says whether they do.
pub(super) fn product(recorder: &mut Recorder, product: &Product<'_>) -> bool {
    let Product { a, b, c, extents, splits, epilogue } = *product;
    let Extents { batch, m, k, n } = extents;
    let in_pairs = n.is_multiple_of(2) && in_pairs(c, c.row_stride);
    // The activations that these end in have even channels in every model.
    let in_words =
        !c.tensor.is_half() && matches!(epilogue, Epilogue::Plain { .. } | Epilogue::Bias(_));
    if !recorder.profile().lanes || !(in_pairs || in_words) {
        return false;
    }
    let unit = if in_pairs { 2 } else { 1 };
    let left = Left::new(recorder, a, extents);
    let right = Right::new(recorder, b, extents);
    let (accumulate, alpha) = match epilogue {
        Epilogue::Plain { alpha, accumulate } => (accumulate, alpha),
        _ => (false, 1.0),
    };
    let rows_per_sample = match epilogue {
        Epilogue::Residual { keep, .. } => m / keep.shape().len(),
        _ => m,
    };
    let params = Params {
        rows: m as u32,
        cols: n as u32,
        inner: rounded(k) as u32,
        block: (BLOCK / (TILE * rounded(k))).max(1) as u32,
        splits: splits as u32,
        a_offset: (left.offset / 2) as u32,
        a_batch: (left.batch / 2) as u32,
        a_tile: (left.tile / 2) as u32,
        a_row: (left.row / 2) as u32,
        a_step: left.step as u32,
        b_offset: (right.offset / 2) as u32,
        b_batch: (right.batch / 2) as u32,
        b_strip: (right.strip / 2) as u32,
        b_step: (right.step / 2) as u32,
        c_offset: (c.offset / unit) as u32,
        c_batch: (c.batch_stride / unit) as u32,
        c_row: (c.row_stride / unit) as u32,
        accumulate: u32::from(accumulate),
        rows_per_sample: rows_per_sample as u32,
        alpha,
        first_group: 0,
    };
    let (tiles, strips) = (m.div_ceil(TILE), n.div_ceil(STRIP));
    // Two strips share what is read of a, where there are workgroups enough for many cores.
    let wide = strips.is_multiple_of(2) && tiles * strips * batch * splits >= 128;
    let together = if wide { 2 } else { 1 };
    let grid = Grid::rows_of(tiles * strips / together, batch * splits);
    let (at, bt, ct) = (&left.tensor, &right.tensor, c.tensor);
    let dispatch = match epilogue {
        Epilogue::Plain { .. } if !in_pairs => {
            recorder.run(&PLAIN_WORDS, params, &[at, bt, ct], grid)
        }
        Epilogue::Bias(bias) if !in_pairs => {
            recorder.run(&BIAS_WORDS, params, &[at, bt, bias, ct], grid)
        }
        _ => PRODUCT.run(recorder, params, [at, bt, ct], epilogue, None, grid).half(ct.is_half()),
    };
    dispatch
        .constant("ALONG_K", left.along_k)
        .constant("HALVES", 2.0 * together as f64)
        .flops(product.flops());
    true
}

/// What a sum over `k` is filled up to with zeros.
fn rounded(k: usize) -> usize {
    k.max(1).next_multiple_of(STEPS)
}

/// Whether all matrices start at whole pairs, and what lies `stride` apart too.
fn in_pairs(matrices: Matrices<'_>, stride: usize) -> bool {
    [matrices.offset, matrices.batch_stride, stride].iter().all(|n| n.is_multiple_of(2))
}

/// A left side as the kernels read it; strides in elements.
struct Left {
    tensor: Tensor,
    along_k: bool,
    offset: usize,
    batch: usize,
    /// From 16 rows to the next.
    tile: usize,
    /// From one row to the next, if it is read along k.
    row: usize,
    /// From a pair to the next that is read.
    step: usize,
}

impl Left {
    /// `a` where it lies, or packed.
    fn new(recorder: &mut Recorder, a: Matrices<'_>, extents: Extents) -> Self {
        let Extents { batch, m, k, n } = extents;
        let whole = k == rounded(k) && !a.tensor.is_half();
        if whole && a.col_stride == 1 && in_pairs(a, a.row_stride) {
            return Self {
                tensor: a.tensor.clone(),
                along_k: true,
                offset: a.offset,
                batch: a.batch_stride,
                tile: TILE * a.row_stride,
                row: a.row_stride,
                step: 1,
            };
        }
        let m_pairs = m.is_multiple_of(2);
        if whole
            && m_pairs
            && a.row_stride == 1
            && in_pairs(a, a.col_stride)
            && !scattered(a.col_stride, n.div_ceil(STRIP))
        {
            return Self {
                tensor: a.tensor.clone(),
                along_k: false,
                offset: a.offset,
                batch: a.batch_stride,
                tile: TILE,
                row: 0,
                step: a.col_stride / 2,
            };
        }
        let strips = TILE * rounded(k);
        Self {
            // Its transpose's columns are its rows.
            tensor: packed(recorder, a.transposed(), batch, k, m, TILE),
            along_k: false,
            offset: 0,
            batch: m.div_ceil(TILE) * strips,
            tile: strips,
            row: 0,
            step: TILE / 2,
        }
    }
}

/// A right side as the kernels read it; strides in elements.
struct Right {
    tensor: Tensor,
    offset: usize,
    batch: usize,
    /// From 32 columns to the next.
    strip: usize,
    /// From one k to the next.
    step: usize,
}

impl Right {
    /// `b` where it lies, or packed.
    fn new(recorder: &mut Recorder, b: Matrices<'_>, extents: Extents) -> Self {
        let Extents { batch, m, k, n } = extents;
        let as_it_is = k == rounded(k) && !b.tensor.is_half();
        let in_pairs = b.col_stride == 1 && n.is_multiple_of(2) && in_pairs(b, b.row_stride);
        if as_it_is && in_pairs && !scattered(b.row_stride, m.div_ceil(TILE)) {
            return Self {
                tensor: b.tensor.clone(),
                offset: b.offset,
                batch: b.batch_stride,
                strip: STRIP,
                step: b.row_stride,
            };
        }
        let strip = STRIP * rounded(k);
        Self {
            tensor: packed(recorder, b, batch, k, n, STRIP),
            offset: 0,
            batch: n.div_ceil(STRIP) * strip,
            strip,
            step: STRIP,
        }
    }
}

/// Whether pieces that are read one after the other, `stride` apart, had better be packed: those that lie
/// so far apart that they are not fetched ahead, or throw each other out of the cache, and all that are
/// read again for many `others`, tiles or strips of the other side; not what is read but once or twice.
fn scattered(stride: usize, others: usize) -> bool {
    const PAGE: usize = 1024;
    let far = stride > 2 * PAGE || stride.is_multiple_of(PAGE / 4);
    others > if far { 2 } else { 12 }
}

/// `b`, `[batch, k, n]`, in strips of `width` columns: `[batch, N / width, K, width]`, K and N rounded up.
pub(super) fn packed(
    recorder: &mut Recorder,
    b: Matrices<'_>,
    batch: usize,
    k: usize,
    n: usize,
    width: usize,
) -> Tensor {
    const DEPTH: usize = 64;
    let rounded = rounded(k);
    let strips = recorder.empty([batch, n.div_ceil(width), rounded, width]);
    let along_k = b.row_stride == 1 && k.is_multiple_of(2) && in_pairs(b, b.col_stride);
    let along_columns = b.col_stride == 1 && n.is_multiple_of(2) && in_pairs(b, b.row_stride);
    let pair = if along_k || along_columns { 2 } else { 1 };
    let params = PackParams {
        cols: n as u32,
        inner: k as u32,
        width: width as u32,
        rounded: rounded as u32,
        offset: (b.offset / pair) as u32,
        batch: (b.batch_stride / pair) as u32,
        step: if along_k { 1 } else { (b.row_stride / pair) as u32 },
        col: if along_k || pair == 1 { (b.col_stride / pair) as u32 } else { 1 },
        first_group: 0,
    };
    let parts = n.div_ceil(width) * (width / 16);
    let (kernel, groups) = match (along_k, along_columns) {
        (true, _) => (&PACK_PAIRS, parts * rounded.div_ceil(DEPTH)),
        (_, true) => (&PACK_ROWS, parts.div_ceil(4) * (rounded / STEPS)),
        _ => (&PACK_WORDS, parts * rounded.div_ceil(DEPTH)),
    };
    let dispatch = recorder.run(kernel, params, &[b.tensor, &strips], Grid::rows_of(groups, batch));
    dispatch.half(b.tensor.is_half());
    strips
}
