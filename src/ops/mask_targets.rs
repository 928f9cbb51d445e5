//! The targets of mask classification: `shaders/mask_targets.wgsl`.

use super::elementwise;
use crate::Tensor;
use crate::gpu::{Grid, Kernel, Params as _, Recorder, Source, params, source};

const SOURCES: &[Source] = &[source!("mask_targets")];

static FIND: Kernel = kernel("find", &["labels", "seen_out"]);
static LIST: Kernel = kernel("list", &["seen", "targets"]);
pub(super) const KERNELS: &[&Kernel] = &[&FIND, &LIST];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("mask_targets", entry, SOURCES, Params::FIELDS, bindings)
}

params! {
    struct Params { pixels: u32, classes: u32 }
}

/// The label maps of a batch as sets of binary masks, one for each class that a picture has.
#[derive(Clone, Debug)]
pub struct MaskTargets {
    /// Class ids of `[B, H, W]`, four to an element, row after row without gaps.
    pub labels: Tensor,
    /// B, H, W.
    pub size: [usize; 3],
    /// `[B, 1 + K]` of `u32`: how many classes a picture has, and which, in ascending order.
    pub list: Tensor,
}

impl MaskTargets {
    /// Lists the classes of each picture. Labels from `classes` on, such as 255, are of none.
    ///
    /// # Panics
    ///
    /// If `labels` is not of `size`.
    #[track_caller]
    pub fn new(recorder: &mut Recorder, labels: &Tensor, size: [usize; 3], classes: usize) -> Self {
        let [batch, height, width] = size;
        let pixels = height * width;
        let words = (batch * pixels).div_ceil(4);
        assert_eq!(labels.shape().len(), words, "mask targets: labels for {size:?}");
        // Zero bits are 0, of both types.
        let seen = elementwise::fill(recorder, [batch, 8], 0.0);
        let list = recorder.empty([batch, 1 + classes]);
        let params = Params { pixels: pixels as u32, classes: classes as u32 };
        let grid = Grid::rows_of(pixels.div_ceil(4096), batch);
        recorder.run(&FIND, params, &[labels, &seen], grid);
        recorder.run(&LIST, params, &[&seen, &list], Grid([batch as u32, 1, 1]));
        Self { labels: labels.clone(), size, list }
    }

    /// K
    pub fn classes(&self) -> usize {
        self.list.shape().last() - 1
    }
}
