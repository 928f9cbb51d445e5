//! Every kernel against a plain reference: `cargo test --test kernels`.
//!
//! A reference is a loop over `f64` that anyone can check against the paper. It covers the forward
//! pass only: gradients are compared with finite differences of that same loop.

mod fixtures;
mod support;

mod attention;
mod batch_norm;
mod blocks;
mod class_loss;
mod cli;
mod concat;
mod conv3x3;
mod cross_entropy;
mod deform_attention;
mod deform_conv;
mod depthwise;
mod drop;
mod elementwise;
mod extremes;
mod group_norm;
mod host;
mod image;
mod initialisation;
mod layer_norm;
mod mask_loss;
mod mask_models;
mod mask_scores;
mod mask_targets;
mod mask_training;
mod matmul;
mod mit;
mod mixed;
mod models;
mod nearest;
mod parity;
mod patch;
mod pixel_decoders;
mod plan;
mod point_sample;
mod position;
mod predict;
mod published;
mod reduce;
mod resize;
mod roofs;
mod segmenter;
mod semantic_attention;
mod shaders;
mod sine_position;
mod softmax;
mod torch_files;
mod training;
mod tune;
mod window;
mod window_attention;
