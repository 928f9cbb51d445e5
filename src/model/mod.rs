//! Networks: configuration and presets.

mod config;

pub use config::{Head, ModelConfig, PRESETS};
