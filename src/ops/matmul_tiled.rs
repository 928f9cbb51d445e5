//! Matrix products for GPUs: `shaders/matmul_tiled.wgsl`.

use super::Normed;
use super::matmul::{Epilogue, Extents, Kernels, Matrices, Params};
use crate::gpu::{Grid, Kernel, Params as _, Recorder, Source, source};

/// How operands are read, and what becomes of them on the way.
macro_rules! sources {
    ($($operands:literal),+) => {
        &[
            source!("matmul_tiled"),
            source!("lib/tiles"),
            $(source!($operands),)+
            source!("lib/epilogue"),
            source!("lib/gelu"),
            source!("lib/f32", half "lib/f16"),
        ]
    };
}
const WORDS: &[Source] = sources!("lib/words");
const FOURS: &[Source] = sources!("lib/fours", "lib/as_they_are");
const NORM_OF_A: &[Source] = sources!("lib/fours", "lib/norm_of_a");
const NORM_OF_B: &[Source] = sources!("lib/fours", "lib/norm_of_b");

static OF_WORDS: Kernels = Kernels::new("matmul_tiled", WORDS, Params::FIELDS);
static OF_FOURS: Kernels = Kernels::new("matmul_tiled", FOURS, Params::FIELDS).named("fours");
static OF_NORM: Kernels =
    Kernels::normed("matmul_tiled", NORM_OF_A, Params::FIELDS).named("norm of a");
/// Of the gradient of a weight, which nothing is added to.
static BY_NORM: Kernel =
    Kernels::normed("matmul_tiled", NORM_OF_B, Params::FIELDS).named("norm of b").plain;
pub(super) const KERNELS: &[&Kernel] = &[
    &OF_WORDS.plain,
    &OF_WORDS.bias,
    &OF_WORDS.operand,
    &OF_WORDS.gelu,
    &OF_WORDS.residual,
    &OF_FOURS.plain,
    &OF_FOURS.bias,
    &OF_FOURS.operand,
    &OF_FOURS.gelu,
    &OF_FOURS.residual,
    &OF_NORM.plain,
    &OF_NORM.bias,
    &OF_NORM.gelu,
    &BY_NORM,
];

/// Rows, and columns, of a tile.
const TILE: usize = 64;
/// Steps of the sum that go together.
const DEPTH: usize = 16;

/// Whether [`product`] can take the layer norm of a side while it reads it.
pub(super) fn takes_norm(
    a: Matrices<'_>,
    b: Matrices<'_>,
    extents: Extents,
    epilogue: Epilogue<'_>,
) -> bool {
    let fits = match epilogue {
        Epilogue::Plain { .. } => true,
        Epilogue::Bias(_) | Epilogue::Gelu { .. } => b.norm.is_none(),
        // More buffers than every device can bind.
        Epilogue::Residual { .. } => false,
    };
    let rows = |side: Matrices<'_>| side.norm.is_none() || side.col_stride == 1;
    let one = a.norm.is_none() || b.norm.is_none();
    fits && in_fours(a, b, extents) && extents.batch == 1 && one && rows(a) && rows(b)
}

/// Whether operands can be read four numbers at a time: see `lib/fours.wgsl`.
fn in_fours(a: Matrices<'_>, b: Matrices<'_>, Extents { m, k, n, .. }: Extents) -> bool {
    let whole = m >= TILE && n >= TILE && k > 0 && k.is_multiple_of(DEPTH);
    // A tile that is moved back starts at a multiple of four, too.
    whole && readable(a, a.row_stride == 1, m) && readable(b, b.col_stride == 1, n)
}

/// Whether rows or columns are contiguous and start at multiples of four. `across`: whether those along the tile's side
/// of `extent` are.
fn readable(side: Matrices<'_>, across: bool, extent: usize) -> bool {
    let Matrices { offset, batch_stride, row_stride, col_stride, .. } = side;
    let (near, far) = (row_stride.min(col_stride), row_stride.max(col_stride));
    let starts = [offset, batch_stride, far, if across { extent } else { 0 }];
    near == 1 && starts.iter().all(|at| at.is_multiple_of(4))
}

/// Records the product. `splits` results lie one after the other in `c`.
///
/// # Panics
///
/// If there is a norm and it does not [take](takes_norm) it.
pub(super) fn product(
    recorder: &mut Recorder,
    a: Matrices<'_>,
    b: Matrices<'_>,
    c: Matrices<'_>,
    extents: Extents,
    splits: usize,
    epilogue: Epilogue<'_>,
) {
    let Extents { batch, m, k, n } = extents;
    let params = Params::new(a, b, c, extents, splits, epilogue);
    let grid = Grid::rows_of(m.div_ceil(TILE) * n.div_ceil(TILE), batch * splits);
    let bound = [a.tensor, b.tensor, c.tensor];
    let dispatch = if in_fours(a, b, extents) {
        let params = params.in_fours();
        let dispatch = match (a.norm, b.norm) {
            (None, None) => OF_FOURS.run(recorder, params, bound, epilogue, None, grid),
            (norm, None) => OF_NORM.run(recorder, params, bound, epilogue, norm, grid),
            (_, Some(Normed { stats, weight, bias, .. })) => {
                let [a, b, c] = bound;
                recorder.run(&BY_NORM, params, &[a, b, c, stats, weight, bias], grid)
            }
        };
        let rows = |side: Matrices<'_>| side.col_stride == 1;
        dispatch.constant("ROWS_OF_A", rows(a)).constant("ROWS_OF_B", rows(b))
    } else {
        assert!(a.norm.is_none() && b.norm.is_none(), "product: a norm for {extents:?}");
        OF_WORDS.run(recorder, params, bound, epilogue, None, grid)
    };
    dispatch.half(a.tensor.is_half()).flops(2 * batch * m * n * k);
}
