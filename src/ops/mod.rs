//! Differentiable operations: one file per family, each next to its `shaders/*.wgsl`.

mod attention;
mod batch_norm;
mod class_loss;
mod concat;
mod conv3x3;
mod conv3x3_lanes;
mod conv3x3_tiled;
mod cross_entropy;
mod deform_attention;
mod deform_conv;
mod deform_scatter;
mod depthwise;
mod drop;
mod elementwise;
mod group_norm;
mod image;
mod layer_norm;
mod mask_cost;
mod mask_loss;
mod mask_scores;
mod mask_targets;
mod matching;
mod matmul;
mod matmul_lanes;
mod matmul_matrix;
mod matmul_tiled;
mod nearest;
mod patch;
mod point_sample;
mod position;
pub mod predict;
mod reduce;
mod resize;
mod semantic_attention;
mod sine_position;
mod softmax;
mod window;
mod window_attention;
mod window_attention_lanes;

pub use attention::{attention, attention_mask};
pub use batch_norm::{BatchNorm, Running, batch_norm};
pub use class_loss::class_loss;
pub use concat::{concat, slice};
pub use conv3x3::conv3x3;
pub use cross_entropy::{CrossEntropy, CrossEntropyOutput, cross_entropy, labelled_cross_entropy};
pub use deform_attention::deform_attention;
pub use deform_conv::deform_conv;
pub use depthwise::depthwise_conv3x3;
pub use drop::{drop_path, dropout, dropout2d};
pub(crate) use elementwise::{Vectors, clear, copy, narrowed};
pub use elementwise::{accumulate, add, add_bias, fill, gelu, relu, scale, sum_of};
pub use group_norm::{GroupNorm, group_norm};
pub use image::{Image, Normalize, normalize, normalize_texture, paint, paint_texture};
pub(crate) use layer_norm::Normed;
pub use layer_norm::{layer_norm, layer_norm_operand};
pub use mask_cost::{MaskWeights, mask_costs};
pub use mask_loss::{MaskLoss, MaskPoints, PointSource, mask_loss};
pub use mask_scores::mask_scores;
pub use mask_targets::MaskTargets;
pub use matching::{Matching, match_masks};
pub use matmul::{linear, linear_gelu, linear_operand, linear_residual, matmul};
pub use nearest::nearest_add;
pub use patch::{patch_merge, patchify, unfold};
pub use point_sample::point_sample;
pub(crate) use point_sample::uniform_points;
pub use position::{add_position, resize_bicubic, resize_bicubic_table};
pub(crate) use reduce::sum_rows;
pub use resize::{resize, resize_add, resize_corners, resize_corners_add};
pub use semantic_attention::{gated_residual, semantic_attention};
pub use sine_position::sine_position;
pub use softmax::softmax;
pub use window::{window_partition, window_reverse};
pub use window_attention::{Windows, relative_position_bias, window_attention};

use crate::gpu::Kernel;
use crate::optim;

/// Every kernel of the crate; the tests validate each of them.
pub fn kernels() -> impl Iterator<Item = &'static Kernel> {
    [
        attention::KERNELS,
        batch_norm::KERNELS,
        class_loss::KERNELS,
        concat::KERNELS,
        conv3x3::KERNELS,
        conv3x3_lanes::KERNELS,
        conv3x3_tiled::KERNELS,
        cross_entropy::KERNELS,
        deform_attention::KERNELS,
        deform_conv::KERNELS,
        deform_scatter::KERNELS,
        depthwise::KERNELS,
        drop::KERNELS,
        elementwise::KERNELS,
        group_norm::KERNELS,
        image::KERNELS,
        layer_norm::KERNELS,
        mask_cost::KERNELS,
        mask_loss::KERNELS,
        mask_scores::KERNELS,
        mask_targets::KERNELS,
        matmul::KERNELS,
        matmul_lanes::KERNELS,
        matmul_matrix::KERNELS,
        matmul_tiled::KERNELS,
        optim::KERNELS,
        #[cfg(feature = "cli")]
        crate::bench::KERNELS,
        nearest::KERNELS,
        patch::KERNELS,
        point_sample::KERNELS,
        position::KERNELS,
        predict::KERNELS,
        reduce::KERNELS,
        resize::KERNELS,
        semantic_attention::KERNELS,
        sine_position::KERNELS,
        softmax::KERNELS,
        window::KERNELS,
        window_attention::KERNELS,
        window_attention_lanes::KERNELS,
    ]
    .into_iter()
    .flatten()
    .copied()
}
