//! Every kernel against a plain reference: `cargo test --test kernels`.
//!
//! A reference is a loop over `f64` that anyone can check against the paper. It covers the forward
//! pass only: gradients are compared with finite differences of that same loop.

mod support;

mod batch_norm;
mod drop;
mod elementwise;
mod matmul;
mod patch;
mod reduce;
mod shaders;
mod window;
