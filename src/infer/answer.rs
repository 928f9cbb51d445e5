//! [`Answer`]: what the network says of a picture, by whichever head, and what becomes of it.

use std::ops::Range;

use crate::gpu::Recorder;
use crate::model::{Model, Prediction};
use crate::ops::predict::{self, Part, Resizing};
use crate::ops::{self, Image};
use crate::{Gpu, Result, Tape, Tensor};

/// Most bytes of a band of a map at full resolution.
const BAND_BYTES: u64 = 64 << 20;

/// What the network says of a picture.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// Logits of each class, `[1, h, w, K]` at a quarter of the picture's sides.
    Pixels(Tensor),
    /// Of each query its classes' probabilities, `[1, Q, K + 1]`, and its mask's logits, `[1, Q, h, w]` at a
    /// quarter of the padded picture's sides.
    Masks {
        /// The last class is "no object".
        probability: Tensor,
        /// Before the sigmoid.
        masks: Tensor,
    },
}

impl Answer {
    /// The answer to `image`.
    pub(crate) fn new(tape: &mut Tape, model: &Model, image: Image) -> Self {
        if !model.config().head.finds_masks() {
            return Self::Pixels(model.forward(tape, image));
        }
        let mut layers = model.forward_masks(tape, image).layers;
        let Prediction { class_logits, mask_logits } = layers.pop().expect("at least one layer");
        let probability = ops::softmax(tape, &class_logits);
        Self::Masks { probability, masks: mask_logits }
    }

    /// Calls `f` with each of its tensors.
    pub(super) fn map<E>(
        &self,
        mut f: impl FnMut(&Tensor) -> Result<Tensor, E>,
    ) -> Result<Self, E> {
        Ok(match self {
            Self::Pixels(logits) => Self::Pixels(f(logits)?),
            Self::Masks { probability, masks } => {
                Self::Masks { probability: f(probability)?, masks: f(masks)? }
            }
        })
    }

    /// [`Recorder::keep`] of its tensors.
    pub(super) fn keep(&self, recorder: &mut Recorder) -> Self {
        let Ok(kept) = self.map(|t| Ok::<_, std::convert::Infallible>(recorder.keep(t, "answer")));
        kept
    }

    /// A place for another answer like it.
    pub(super) fn twin(&self) -> Self {
        let place = |t: &Tensor| Tensor::pinned("answer", t.shape().clone());
        let Ok(twin) = self.map(|t| Ok::<_, std::convert::Infallible>(place(t)));
        twin
    }

    /// Copies the elements of what is [kept](Self::keep) to a [twin](Self::twin).
    pub(super) fn copy_to(&self, gpu: &Gpu, to: &Self) -> Result<()> {
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        for (from, to) in self.tensors().into_iter().zip(to.tensors()) {
            let ((from, from_offset), (to, to_offset)) = (from.buffer(gpu)?, to.buffer(gpu)?);
            encoder.copy_buffer_to_buffer(&from, from_offset, &to, to_offset, None);
        }
        gpu.queue().submit([encoder.finish()]);
        Ok(())
    }

    fn tensors(&self) -> Vec<&Tensor> {
        match self {
            Self::Pixels(logits) => vec![logits],
            Self::Masks { probability, masks } => vec![probability, masks],
        }
    }

    /// Number of classes, K.
    pub(super) fn classes(&self) -> usize {
        match self {
            Self::Pixels(logits) => logits.shape().last(),
            Self::Masks { probability, .. } => probability.shape().last() - 1,
        }
    }

    /// What rows `rows` of `goal` are made of, for a picture of `size`, and how that is resized.
    pub(super) fn rows(
        &self,
        recorder: &mut Recorder,
        rows: Range<usize>,
        size: [usize; 2],
        goal: [usize; 2],
    ) -> (Part, Resizing) {
        match self {
            Self::Pixels(logits) => (Part::from(logits), Resizing::via(size, goal[0], goal[1])),
            Self::Masks { .. } => {
                let rows = if goal == size { rows } else { Part::rows_for(rows, size[0], goal[0]) };
                let first = rows.start;
                let tensor = self.map_rows(recorder, rows, size[1]);
                let part = Part { tensor, first, height: size[0] };
                (part, Resizing::to(goal[0], goal[1]))
            }
        }
    }

    /// Rows of the map of masks' scores, `[1, R, width, K]`.
    pub(super) fn map_rows(
        &self,
        recorder: &mut Recorder,
        rows: Range<usize>,
        width: usize,
    ) -> Tensor {
        let Self::Masks { probability, masks } = self else { panic!("scores of logits") };
        ops::mask_scores(recorder, probability, masks, rows, width)
    }

    /// The class of each pixel of `goal`, a byte each, four to an element, row after row, for a picture of
    /// `size`.
    pub(crate) fn labels(
        &self,
        recorder: &mut Recorder,
        size: [usize; 2],
        goal: [usize; 2],
    ) -> Tensor {
        if let Self::Pixels(logits) = self {
            return predict::argmax(recorder, logits, Resizing::via(size, goal[0], goal[1]));
        }
        let words = recorder.empty([(goal[0] * goal[1]).div_ceil(4)]);
        for rows in self.bands(size, goal) {
            let (part, resizing) = self.rows(recorder, rows.clone(), size, goal);
            predict::argmax_rows_into(recorder, part, resizing, rows, &words);
        }
        words
    }

    /// [`bands`] of this answer to a picture of `size`.
    pub(super) fn bands(&self, size: [usize; 2], goal: [usize; 2]) -> Vec<Range<usize>> {
        let queries = match self {
            Self::Pixels(_) => None,
            Self::Masks { masks, .. } => Some(masks.dims()[1]),
        };
        bands(size, goal, self.classes(), queries)
    }
}

/// Bands of rows of `goal`: each is as large as is good to bind, and with `queries`, whose masks become scores
/// at `size` first, so is what it is made of. All but the last are multiples of four rows, so that their
/// labels are whole words.
pub(super) fn bands(
    size: [usize; 2],
    goal: [usize; 2],
    classes: usize,
    queries: Option<usize>,
) -> Vec<Range<usize>> {
    let fit = |width: usize, maps: usize| (BAND_BYTES / (4 * width * maps) as u64) as usize;
    let mut rows = fit(goal[1], classes);
    if let Some(queries) = queries {
        // A few more rows are read than lie beside those of the goal.
        let read = fit(size[1], classes.max(queries)).saturating_sub(4);
        rows = rows.min(read * goal[0] / size[0]);
    }
    let rows = (rows / 4 * 4).max(4);
    (0..goal[0]).step_by(rows).map(|first| first..(first + rows).min(goal[0])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_cover_every_row_in_whole_words() {
        for (height, width, classes) in [(1, 1, 2), (3000, 4000, 3), (1000, 32_767, 255), (9, 7, 5)]
        {
            for (size, queries) in
                [([32, 32], None), ([32, 32], Some(100)), ([640, 999], Some(100))]
            {
                let bands = bands(size, [height, width], classes, queries);
                assert_eq!(bands.first().unwrap().start, 0);
                assert_eq!(bands.last().unwrap().end, height);
                for pair in bands.windows(2) {
                    assert_eq!(pair[0].end, pair[1].start);
                    assert_eq!(pair[0].len() % 4, 0);
                }
            }
        }
    }
}
