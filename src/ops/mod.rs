//! Differentiable operations: one file per family, each next to its `shaders/*.wgsl`.

mod cross_entropy;
mod drop;
mod elementwise;
mod layer_norm;
mod matmul;
mod reduce;
mod semantic_attention;
mod softmax;
mod window_attention;
mod resize;

pub use cross_entropy::{CrossEntropy, CrossEntropyOutput, cross_entropy};
pub use drop::{drop_path, dropout, dropout2d};
pub use elementwise::{accumulate, add, fill, gelu, relu, scale, sum_of};
pub(crate) use elementwise::{clear, copy};
pub use layer_norm::layer_norm;
pub use matmul::{linear, linear_gelu, linear_residual, matmul};
pub(crate) use reduce::sum_rows;
pub use semantic_attention::{gated_residual, semantic_attention};
pub use softmax::softmax;
pub use window_attention::{Windows, relative_position_bias, window_attention};
pub use resize::{resize, resize_add};

use crate::gpu::Kernel;
use crate::optim;

/// Every kernel of the crate; the tests validate each of them.
pub fn kernels() -> impl Iterator<Item = &'static Kernel> {
    [
        drop::KERNELS,
        elementwise::KERNELS,
        layer_norm::KERNELS,
        matmul::KERNELS,
        optim::KERNELS,
        reduce::KERNELS,
        semantic_attention::KERNELS,
        softmax::KERNELS,
        window_attention::KERNELS,
        resize::KERNELS,
        cross_entropy::KERNELS,
    ]
    .into_iter()
    .flatten()
    .copied()
}
