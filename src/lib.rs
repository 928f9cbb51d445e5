//! SeMask semantic segmentation, training and inference, on hand-written WGSL kernels.

pub mod checkpoint;
pub mod error;
pub mod model;
pub mod random;
pub mod tensor;

#[cfg(feature = "cli")]
pub mod data;
#[cfg(feature = "cli")]
pub mod picture;
#[cfg(feature = "cli")]
pub mod train;

pub use error::{Error, Result};
pub use tensor::Shape;
pub use wgpu;
