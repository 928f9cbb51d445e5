//! Data sets, augmentation and loading.
//!
//! A data set is one of the published ones in the layout it is distributed in ([`Format`]), or a
//! folder of your own:
//!
//! ```text
//! dataset.json            classes, palette, ignore_index, reduce_zero_label
//! images/train/a.jpg      any of png, jpg, jpeg, bmp, tif, tiff, webp
//! labels/train/a.png      grey or indexed PNG whose values are class ids
//! images/val/…  labels/val/…
//! train.txt               optional: the names of a split, one a line, in order
//! ```
//!
//! Reading order: [`Dataset`] pairs and reads files, [`Augmentation`] distorts a [`Sample`] with
//! the integer arithmetic of [`image_ops`], [`Loader`] makes batches of them in threads, and
//! [`check`](check()) says what is wrong with a folder before a run is spent on it.

pub mod augment;
pub mod check;
pub mod dataset;
pub mod image_ops;
pub mod layout;
pub mod loader;
mod mat;
mod raster;

pub use augment::{Augmentation, Ratios, Resize, ShortestEdge};
pub use check::{Problem, Report, Severity, check, check_as};
pub use dataset::{Dataset, Item, Sample};
pub use layout::Format;
pub use loader::{Batch, Loader, LoaderOptions, Order, default_workers};
pub use raster::{Image, LabelMap};

/// The label of pixels that count neither in the loss nor in the metrics, whatever number stands
/// for them in the files ([`Dataset::ignore_index`]).
pub const IGNORE: u8 = 255;

#[cfg(test)]
mod testing;
