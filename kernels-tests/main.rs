//! Every kernel against a plain reference: `cargo test --test kernels`.
//!
//! A reference is a loop over `f64` that anyone can check against the paper. It covers the forward
//! pass only: gradients are compared with finite differences of that same loop.

mod fixtures;
mod support;

mod cross_entropy;
mod drop;
mod elementwise;
mod matmul;
mod predict;
mod reduce;
mod resize;
mod shaders;
