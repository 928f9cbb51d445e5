//! Semantic inference from masks: `shaders/mask_scores.wgsl` and a [product](super::matmul()).

use std::ops::Range;

use super::matmul::{Extents, Matrices, PLAIN, product};
use super::resize;
use crate::Tensor;
use crate::gpu::{Grid, Kernel, Params as _, Recorder, Source, params, source};

const SOURCES: &[Source] =
    &[source!("mask_scores"), source!("lib/bilinear"), source!("lib/bilinear_centres")];

static MEMBERSHIP: Kernel =
    Kernel::new("mask_scores", "membership", SOURCES, Params::FIELDS, &["masks", "s"]);
pub(super) const KERNELS: &[&Kernel] = &[&MEMBERSHIP];

params! {
    struct Params {
        maps: u32,
        height: u32,
        width: u32,
        first_row: u32,
        rows: u32,
        columns: u32,
    }
}

/// Pixels of a picture to one of its masks, down and across.
const STRIDE: usize = 4;

/// Class scores of pixels: how probable each query's class is times how much the pixel is in its mask,
/// `Σ_q probability[q, k] · sigmoid(masks[q])`, the masks resized bilinearly to the picture. They are no
/// probabilities: a pixel's sum is not 1. Has no gradient.
///
/// - `probability`: `[B, Q, K + 1]`, after softmax; the last class, "no object", is left out
/// - `masks`: `[B, Q, h, w]`, logits
/// - `rows`, `width`: which rows of the picture, which is 4 h × 4 w, and how many of its columns; a map of
///   all of them may be larger than a device can bind
/// - returns `[B, R, width, K]`
///
/// Equals the official `semantic_inference`, for masks that are resized by 4 before.
///
/// # Panics
///
/// If the shapes do not fit together, or the picture has no such rows or columns.
#[track_caller]
pub fn mask_scores(
    recorder: &mut Recorder,
    probability: &Tensor,
    masks: &Tensor,
    rows: Range<usize>,
    width: usize,
) -> Tensor {
    let [batch, queries, height, mask_width] = *masks.dims() else {
        panic!("mask_scores: {:?} is not [B, Q, h, w]", masks.shape())
    };
    let with_none = probability.shape().last();
    assert_eq!(probability.dims(), [batch, queries, with_none], "mask_scores: probability");
    assert!(with_none > 1, "mask_scores: no class");
    let size = [STRIDE * height, STRIDE * mask_width];
    assert!(
        !rows.is_empty() && rows.end <= size[0] && (1..=size[1]).contains(&width),
        "mask_scores: rows {rows:?} and {width} columns of {size:?}"
    );
    assert!(size.iter().all(|&side| side <= resize::MAX_SIDE), "mask_scores: {size:?}");
    let params = Params {
        maps: (batch * queries) as u32,
        height: height as u32,
        width: mask_width as u32,
        first_row: rows.start as u32,
        rows: rows.len() as u32,
        columns: width as u32,
    };
    let pixels = rows.len() * width;
    let s = recorder.empty([batch, queries, rows.len(), width]);
    let grid = Grid::elements(s.shape().len());
    recorder.run(&MEMBERSHIP, params, &[masks, &s], grid).flops(12 * s.shape().len());
    let classes = with_none - 1;
    let scores = recorder.empty([batch, rows.len(), width, classes]);
    let extents = Extents { batch, m: pixels, k: queries, n: classes };
    product(
        recorder,
        Matrices::new(&s, queries, pixels).transposed(),
        Matrices::new(probability, queries, with_none),
        Matrices::new(&scores, pixels, classes),
        extents,
        PLAIN,
    );
    scores
}
