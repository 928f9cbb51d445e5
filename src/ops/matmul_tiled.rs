//! Matrix products for GPUs: `shaders/matmul_tiled.wgsl`.

use super::matmul::{Epilogue, Extents, Kernels, Matrices, Params, Product};
use crate::gpu::{Grid, Kernel, Params as _, Recorder, Source, Variant, source};

/// Tiles, how operands are read, and what becomes of them on the way.
macro_rules! sources {
    ($($file:literal),+) => {
        &[
            source!("matmul_tiled"),
            $(source!($file),)+
            source!("lib/tiles"),
            source!("lib/epilogue"),
            source!("lib/gelu"),
            source!("lib/f32", half "lib/f16"),
        ]
    };
}
const WORDS: &[Source] = sources!("lib/tile64", "lib/words");
const FOURS: &[Source] = sources!("lib/tile64", "lib/fours", "lib/as_they_are");
const NORM_OF_A: &[Source] = sources!("lib/tile64", "lib/fours", "lib/norm_of_a");
const NORM_OF_B: &[Source] = sources!("lib/tile64", "lib/fours", "lib/norm_of_b");
const SMALL_FOURS: &[Source] = sources!("lib/tile32", "lib/fours", "lib/as_they_are");
const SMALL_NORM_OF_A: &[Source] = sources!("lib/tile32", "lib/fours", "lib/norm_of_a");
const SMALL_NORM_OF_B: &[Source] = sources!("lib/tile32", "lib/fours", "lib/norm_of_b");

static OF_WORDS: Kernels = kernels(WORDS, "");
static LARGE: OfFours = OfFours {
    plain: kernels(FOURS, "fours"),
    norm_of_a: normed(NORM_OF_A, "norm of a"),
    norm_of_b: normed(NORM_OF_B, "norm of b"),
};
static SMALL: OfFours = OfFours {
    plain: kernels(SMALL_FOURS, "small fours"),
    norm_of_a: normed(SMALL_NORM_OF_A, "small norm of a"),
    norm_of_b: normed(SMALL_NORM_OF_B, "small norm of b"),
};
pub(super) const KERNELS: &[&Kernel] = &[
    &OF_WORDS.plain,
    &OF_WORDS.bias,
    &OF_WORDS.operand,
    &OF_WORDS.gelu,
    &OF_WORDS.residual,
    &LARGE.plain.plain,
    &LARGE.plain.bias,
    &LARGE.plain.operand,
    &LARGE.plain.gelu,
    &LARGE.plain.residual,
    &LARGE.norm_of_a.plain,
    &LARGE.norm_of_a.bias,
    &LARGE.norm_of_a.gelu,
    &LARGE.norm_of_b.plain,
    &SMALL.plain.plain,
    &SMALL.plain.bias,
    &SMALL.plain.operand,
    &SMALL.plain.gelu,
    &SMALL.plain.residual,
    &SMALL.norm_of_a.plain,
    &SMALL.norm_of_a.bias,
    &SMALL.norm_of_a.gelu,
    &SMALL.norm_of_b.plain,
];

const fn kernels(sources: &'static [Source], variant: &'static str) -> Kernels {
    Kernels::new("matmul_tiled", sources, Params::FIELDS).named(variant)
}

const fn normed(sources: &'static [Source], variant: &'static str) -> Kernels {
    Kernels::normed("matmul_tiled", sources, Params::FIELDS).named(variant)
}

/// Kernels that read operands four numbers at a time, of one size of tiles.
struct OfFours {
    plain: Kernels,
    norm_of_a: Kernels,
    /// Of the gradient of a weight, which nothing is added to.
    norm_of_b: Kernels,
}

/// The side of tiles, and steps of the sum that go together: `lib/tile64.wgsl`, `lib/tile32.wgsl`.
#[derive(Clone, Copy)]
struct Tiles {
    side: usize,
    depth: usize,
}

impl Tiles {
    const LARGE: Self = Self { side: 64, depth: 16 };
    const SMALL: Self = Self { side: 32, depth: 32 };

    /// Those for a variant and operands, if these can be read four numbers at a time.
    fn of(variant: Variant, product: &Product<'_>) -> Option<(Self, &'static OfFours)> {
        let small = (Self::SMALL, &SMALL);
        let large = (Self::LARGE, &LARGE);
        let wanted = if variant == Variant::SmallTiles { [small, large] } else { [large, large] };
        wanted.into_iter().find(|(tiles, _)| tiles.suit(product))
    }

    /// Whether operands can be read four numbers at a time: see `lib/fours.wgsl`.
    fn suit(self, &Product { a, b, extents, .. }: &Product<'_>) -> bool {
        let Extents { m, k, n, .. } = extents;
        let whole = m >= self.side && n >= self.side && k > 0 && k.is_multiple_of(self.depth);
        // A tile that is moved back starts at a multiple of four, too.
        whole && readable(a, a.row_stride == 1, m) && readable(b, b.col_stride == 1, n)
    }
}

/// Whether [`product`] can take the layer norm of a side while it reads it.
pub(super) fn takes_norm(variant: Variant, product: &Product<'_>) -> bool {
    let Product { a, b, extents, epilogue, .. } = *product;
    let fits = match epilogue {
        Epilogue::Plain { .. } => true,
        Epilogue::Bias(_) | Epilogue::Gelu { .. } => b.norm.is_none(),
        // More buffers than every device can bind.
        Epilogue::Residual { .. } => false,
    };
    let tiled = matches!(variant, Variant::Tiles | Variant::SmallTiles);
    let rows = |side: Matrices<'_>| side.norm.is_none() || side.col_stride == 1;
    let one = a.norm.is_none() || b.norm.is_none();
    let fours = Tiles::of(variant, product).is_some();
    fits && tiled && fours && extents.batch == 1 && one && rows(a) && rows(b)
}

/// Whether rows or columns are contiguous and start at multiples of four. `across`: whether those along the tile's side
/// of `extent` are.
fn readable(side: Matrices<'_>, across: bool, extent: usize) -> bool {
    let Matrices { offset, batch_stride, row_stride, col_stride, .. } = side;
    let (near, far) = (row_stride.min(col_stride), row_stride.max(col_stride));
    let starts = [offset, batch_stride, far, if across { extent } else { 0 }];
    near == 1 && starts.iter().all(|at| at.is_multiple_of(4))
}

/// Records a product.
///
/// # Panics
///
/// If there is a norm and it does not [take](takes_norm) it.
pub(super) fn product(recorder: &mut Recorder, variant: Variant, product: &Product<'_>) {
    let Product { a, b, c, extents, splits, epilogue } = *product;
    let Extents { batch, m, n, .. } = extents;
    let params = Params::new(product);
    let grid = |side| Grid::rows_of(m.div_ceil(side) * n.div_ceil(side), batch * splits);
    let bound = [a.tensor, b.tensor, c.tensor];
    let dispatch = match Tiles::of(variant, product) {
        Some((tiles, of_fours)) => {
            let (kernels, norm) = match (a.norm, b.norm) {
                (None, None) => (&of_fours.plain, None),
                (norm, None) => (&of_fours.norm_of_a, norm),
                (_, norm) => (&of_fours.norm_of_b, norm),
            };
            let rows = |side: Matrices<'_>| side.col_stride == 1;
            kernels
                .run(recorder, params.in_fours(), bound, epilogue, norm, grid(tiles.side))
                .constant("ROWS_OF_A", rows(a))
                .constant("ROWS_OF_B", rows(b))
        }
        None => {
            assert!(a.norm.is_none() && b.norm.is_none(), "product: a norm for {extents:?}");
            OF_WORDS.run(recorder, params, bound, epilogue, None, grid(Tiles::LARGE.side))
        }
    };
    dispatch.half(a.tensor.is_half()).flops(product.flops());
}
