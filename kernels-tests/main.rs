//! Every kernel against a plain reference: `cargo test --test kernels`.
//!
//! A reference is a loop over `f64` that anyone can check against the paper. It covers the forward
//! pass only: gradients are compared with finite differences of that same loop.

mod fixtures;
mod support;

mod batch_norm;
mod blocks;
mod cli;
mod conv3x3;
mod cross_entropy;
mod deform_attention;
mod drop;
mod elementwise;
mod host;
mod image;
mod initialisation;
mod layer_norm;
mod matmul;
mod models;
mod patch;
mod plan;
mod position;
mod predict;
mod reduce;
mod resize;
mod segmenter;
mod semantic_attention;
mod shaders;
mod softmax;
mod torch_files;
mod training;
mod window;
mod window_attention;
