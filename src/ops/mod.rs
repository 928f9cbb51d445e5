//! Differentiable operations: one file per family, each next to its `shaders/*.wgsl`.

mod batch_norm;
mod conv3x3;
mod cross_entropy;
mod deform_attention;
mod deform_scatter;
mod drop;
mod elementwise;
mod image;
mod layer_norm;
mod matmul;
mod patch;
mod position;
pub mod predict;
mod reduce;
mod resize;
mod semantic_attention;
mod softmax;
mod window;
mod window_attention;

pub use batch_norm::{BatchNorm, Running, batch_norm};
pub use conv3x3::conv3x3;
pub use cross_entropy::{CrossEntropy, CrossEntropyOutput, cross_entropy};
pub use deform_attention::deform_attention;
pub use drop::{drop_path, dropout, dropout2d};
pub(crate) use elementwise::{Vectors, clear, copy};
pub use elementwise::{accumulate, add, fill, gelu, relu, scale, sum_of};
pub use image::{Normalize, normalize, normalize_texture, paint, paint_texture};
pub use layer_norm::layer_norm;
pub use matmul::{linear, linear_gelu, linear_residual, matmul};
pub use patch::{patch_merge, patchify};
pub use position::{add_position, resize_bicubic, resize_bicubic_table};
pub(crate) use reduce::sum_rows;
pub use resize::{resize, resize_add};
pub use semantic_attention::{gated_residual, semantic_attention};
pub use softmax::softmax;
pub use window::{window_partition, window_reverse};
pub use window_attention::{Windows, relative_position_bias, window_attention};

use crate::gpu::Kernel;
use crate::optim;

/// Every kernel of the crate; the tests validate each of them.
pub fn kernels() -> impl Iterator<Item = &'static Kernel> {
    [
        batch_norm::KERNELS,
        conv3x3::KERNELS,
        cross_entropy::KERNELS,
        deform_attention::KERNELS,
        deform_scatter::KERNELS,
        drop::KERNELS,
        elementwise::KERNELS,
        image::KERNELS,
        layer_norm::KERNELS,
        matmul::KERNELS,
        optim::KERNELS,
        patch::KERNELS,
        position::KERNELS,
        predict::KERNELS,
        reduce::KERNELS,
        resize::KERNELS,
        semantic_attention::KERNELS,
        softmax::KERNELS,
        window::KERNELS,
        window_attention::KERNELS,
    ]
    .into_iter()
    .flatten()
    .copied()
}
