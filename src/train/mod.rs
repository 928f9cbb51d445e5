//! Training: recipes, schedules, metrics, the log and the display.
//!
//! - [`trainer`]: the loop itself
//! - [`batch_size`]: how many pictures fit
//! - [`step`]: one step by itself, to look at
//! - [`recipe`]: everything that decides a run, from a TOML file
//! - [`recipes`]: those that come with the program
//! - [`schedule`]: the learning rate of each iteration
//! - [`mod@evaluate`]: a model's predictions for a data set, counted
//! - [`metrics`]: scores from counts of pixels
//! - [`log`]: the run's record on disk
//! - [`progress`]: what the terminal shows meanwhile

pub mod batch_size;
pub mod evaluate;
pub mod log;
pub mod metrics;
pub mod progress;
pub mod recipe;
pub mod recipes;
pub mod schedule;
pub mod step;
pub(crate) mod strict;
pub mod trainer;
