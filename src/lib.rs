//! SeMask semantic segmentation, training and inference, on hand-written WGSL kernels.

pub mod checkpoint;
pub mod error;
pub mod gpu;
pub mod infer;
pub mod model;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod random;
pub mod tape;
pub mod tensor;
#[cfg(test)]
mod testing;

#[cfg(feature = "cli")]
pub mod bench;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "cli")]
pub mod data;
#[cfg(feature = "cli")]
pub mod picture;
#[cfg(feature = "cli")]
pub mod train;

pub use error::{Error, Result};
pub use gpu::Gpu;
pub use tape::Tape;
pub use tensor::{Shape, Tensor};
pub use wgpu;
