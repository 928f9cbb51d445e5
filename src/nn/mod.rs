//! Layers: parameters plus the ops that use them.

mod attention;
mod layers;
mod parameters;

pub use attention::MultiheadAttention;
pub use layers::{BatchNorm, Conv1x1, Conv3x3, GroupNorm, LayerNorm, Linear};
pub use parameters::{Fit, Init, Mismatch, Parameter, ParameterScope, Parameters};
