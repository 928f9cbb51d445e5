//! Training: recipes, schedules, metrics, the log and the display.
//!
//! - [`recipe`]: everything that decides a run, from a TOML file
//! - [`schedule`]: the learning rate of each iteration
//! - [`metrics`]: scores from counts of pixels
//! - [`log`]: the run's record on disk
//! - [`progress`]: what the terminal shows meanwhile

pub mod evaluate;
pub mod log;
pub mod metrics;
pub mod progress;
pub mod recipe;
pub mod schedule;
pub(crate) mod strict;
pub mod trainer;
