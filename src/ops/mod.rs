//! Differentiable operations: one file per family, each next to its `shaders/*.wgsl`.

mod cross_entropy;
mod drop;
mod elementwise;
mod matmul;
pub mod predict;
mod reduce;
mod resize;

pub use cross_entropy::{CrossEntropy, CrossEntropyOutput, cross_entropy};
pub use drop::{drop_path, dropout, dropout2d};
pub use elementwise::{accumulate, add, fill, gelu, relu, scale, sum_of};
pub use matmul::{linear, linear_gelu, linear_residual, matmul};
pub use resize::{resize, resize_add};

use crate::gpu::Kernel;

/// Every kernel of the crate; the tests validate each of them.
pub fn kernels() -> impl Iterator<Item = &'static Kernel> {
    [
        drop::KERNELS,
        elementwise::KERNELS,
        matmul::KERNELS,
        reduce::KERNELS,
        resize::KERNELS,
        cross_entropy::KERNELS,
        predict::KERNELS,
    ]
    .into_iter()
    .flatten()
    .copied()
}
