//! Every kernel against a plain reference: `cargo test --test kernels`.
//!
//! A reference is a loop over `f64` that anyone can check against the paper. It covers the forward
//! pass only: gradients are compared with finite differences of that same loop.

mod support;

mod batch_norm;
mod conv3x3;
mod drop;
mod elementwise;
mod image;
mod layer_norm;
mod matmul;
mod patch;
mod position;
mod reduce;
mod semantic_attention;
mod shaders;
mod softmax;
mod window;
mod window_attention;
