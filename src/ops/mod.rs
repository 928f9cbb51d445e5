//! Differentiable operations: one file per family, each next to its `shaders/*.wgsl`.

mod batch_norm;
mod drop;
mod elementwise;
mod matmul;
mod patch;
mod reduce;
mod window;

pub use batch_norm::{BatchNorm, Running, batch_norm};
pub use drop::{drop_path, dropout, dropout2d};
pub use elementwise::{accumulate, add, fill, gelu, relu, scale, sum_of};
pub use matmul::{linear, linear_gelu, linear_residual, matmul};
pub use patch::{patch_merge, patchify};
pub use window::{window_partition, window_reverse};

use crate::gpu::Kernel;

/// Every kernel of the crate; the tests validate each of them.
pub fn kernels() -> impl Iterator<Item = &'static Kernel> {
    let families = [
        batch_norm::KERNELS,
        drop::KERNELS,
        elementwise::KERNELS,
        matmul::KERNELS,
        patch::KERNELS,
        reduce::KERNELS,
        window::KERNELS,
    ];
    families.into_iter().flatten().copied()
}
