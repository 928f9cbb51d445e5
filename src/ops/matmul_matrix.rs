//! Matrix products by the matrix units of a GPU: `shaders/matmul_matrix.wgsl`.

use super::matmul::{Extents, Kernels, Matrices, Params, Product};
use crate::gpu::{Grid, Kernel, Params as _, Recorder, Source, source};

const SOURCES: [&[Source]; 2] = [
    &[
        source!("matmul_matrix"),
        source!("lib/matrix8"),
        source!("lib/epilogue"),
        source!("lib/gelu"),
        source!("lib/f16", half "lib/f16"),
    ],
    &[
        source!("matmul_matrix"),
        source!("lib/matrix16"),
        source!("lib/epilogue"),
        source!("lib/gelu"),
        source!("lib/f16", half "lib/f16"),
    ],
];

static OF_8: Kernels = Kernels::new("matmul_matrix", SOURCES[0], Params::FIELDS).on_matrices();
static OF_16: Kernels = Kernels::new("matmul_matrix", SOURCES[1], Params::FIELDS).on_matrices();
pub(super) const KERNELS: &[&Kernel] = &[
    &OF_8.plain,
    &OF_8.bias,
    &OF_8.operand,
    &OF_8.gelu,
    &OF_8.residual,
    &OF_16.plain,
    &OF_16.bias,
    &OF_16.operand,
    &OF_16.gelu,
    &OF_16.residual,
];

/// Records the product if the device and the operands suit these kernels, and says whether they do.
pub(super) fn product(recorder: &mut Recorder, product: &Product<'_>) -> bool {
    let Product { a, b, c, extents, splits, epilogue } = *product;
    let (Some(side), Some(lanes)) = (recorder.profile().matrix, recorder.profile().subgroup_size)
    else {
        return false;
    };
    let side = side as usize;
    let Extents { batch, m, k, n } = extents;
    let whole = k > 0 && [m, k, n].iter().all(|extent| extent.is_multiple_of(side));
    if !(whole && a.tensor.is_half() && readable(a) && readable(b)) {
        return false;
    }
    let kernels = if side == 8 { &OF_8 } else { &OF_16 };
    let params = Params::new(product);
    let tiles = m.div_ceil(4 * side) * n.div_ceil(2 * side);
    let bound = [a.tensor, b.tensor, c.tensor];
    kernels
        .run(recorder, params, bound, epilogue, None, Grid::rows_of(tiles, batch * splits))
        .half(true)
        .constant("WORKGROUP", lanes)
        .constant("ROWS_OF_A", a.col_stride == 1)
        .constant("ROWS_OF_B", b.col_stride == 1)
        .flops(product.flops());
    true
}

/// Whether matrix units can read it where it lies: rows or columns are contiguous, and start at 16 bytes.
fn readable(matrices: Matrices<'_>) -> bool {
    const ALIGNMENT: usize = 8;
    let Matrices { offset, batch_stride, row_stride, col_stride, .. } = matrices;
    let (near, far) = (row_stride.min(col_stride), row_stride.max(col_stride));
    near == 1 && [offset, batch_stride, far].iter().all(|at| at.is_multiple_of(ALIGNMENT))
}
