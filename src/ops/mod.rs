//! Differentiable operations: one file per family, each next to its `shaders/*.wgsl`.

mod elementwise;

pub use elementwise::{accumulate, add, fill, gelu, relu, scale, sum_of};

use crate::gpu::Kernel;

/// Every kernel of the crate; the tests validate each of them.
pub fn kernels() -> impl Iterator<Item = &'static Kernel> {
    [elementwise::KERNELS].into_iter().flatten().copied()
}
