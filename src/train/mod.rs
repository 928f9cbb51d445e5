//! Training: recipes, schedules, checkpoints, metrics, logs.
