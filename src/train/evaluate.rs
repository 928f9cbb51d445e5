//! Scores of a live model on a split, for the evaluations during training.

use std::collections::HashMap;

use super::metrics::Confusion;
use crate::data::{Augmentation, Dataset, IGNORE, Item, Sample};
use crate::gpu::Plan;
use crate::model::Model;
use crate::ops::predict::Resizing;
use crate::ops::{self, Normalize};
use crate::{Gpu, Result, Tape, Tensor};

/// Pictures of one size that are predicted together.
const BATCH: usize = 8;

/// Predicts labels with a model whose parameters may change between calls.
#[derive(Debug)]
pub struct Evaluator {
    gpu: Gpu,
    plans: HashMap<[usize; 2], Forward>,
}

/// A forward pass for pictures of one size.
#[derive(Debug)]
struct Forward {
    rgba: Tensor,
    labels: Tensor,
    plan: Plan,
}

impl Evaluator {
    /// An evaluator that has no plans yet.
    pub fn new(gpu: &Gpu) -> Self {
        Self { gpu: gpu.clone(), plans: HashMap::new() }
    }

    /// Class ids of each sample's pixels. All samples have one size; at most eight.
    ///
    /// # Errors
    ///
    /// When the device cannot hold or run the pass.
    pub fn predict(&mut self, model: &Model, samples: &[Sample]) -> Result<Vec<Vec<u8>>> {
        let (height, width) = (samples[0].image.height, samples[0].image.width);
        let forward = match self.plans.entry([height, width]) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(Forward::new(&self.gpu, model, height, width)?)
            }
        };
        let mut pixels = vec![0u32; BATCH * height * width];
        for (sample, to) in samples.iter().zip(pixels.chunks_mut(height * width)) {
            for (to, rgb) in to.iter_mut().zip(sample.image.pixels.chunks(3)) {
                *to = u32::from_le_bytes([rgb[0], rgb[1], rgb[2], 255]);
            }
        }
        forward.rgba.write(&self.gpu, &pixels)?;
        forward.plan.run()?;
        let words: Vec<u32> = forward.labels.read_as(&self.gpu)?;
        let ids: &[u8] = bytemuck::cast_slice(&words);
        Ok(ids.chunks(height * width).take(samples.len()).map(<[u8]>::to_vec).collect())
    }

    /// Counts of labels and predictions over `items`.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, or the device cannot hold or run the pass.
    pub fn evaluate(
        &mut self,
        model: &Model,
        dataset: &Dataset,
        items: &[Item],
        augment: &Augmentation,
    ) -> Result<Confusion> {
        let mut confusion = Confusion::new(model.config().num_classes);
        let mut waiting: Vec<Sample> = Vec::new();
        let size = |sample: &Sample| (sample.image.height, sample.image.width);
        for item in items {
            let sample = augment.evaluation(dataset.load(item)?);
            let full = waiting.len() == BATCH;
            if full || waiting.first().is_some_and(|first| size(first) != size(&sample)) {
                self.count(model, &mut waiting, &mut confusion)?;
            }
            waiting.push(sample);
        }
        self.count(model, &mut waiting, &mut confusion)?;
        Ok(confusion)
    }

    fn count(
        &mut self,
        model: &Model,
        samples: &mut Vec<Sample>,
        confusion: &mut Confusion,
    ) -> Result<()> {
        if samples.is_empty() {
            return Ok(());
        }
        for (sample, ids) in samples.iter().zip(self.predict(model, samples)?) {
            debug_assert!(ids.iter().all(|&id| id != IGNORE), "a NaN among the logits");
            confusion.add(&ids, &sample.labels.ids)?;
        }
        samples.clear();
        Ok(())
    }
}

impl Forward {
    fn new(gpu: &Gpu, model: &Model, height: usize, width: usize) -> Result<Self> {
        let rgba = Tensor::pinned("pictures", [BATCH, height, width]);
        let mut tape = Tape::inference(gpu.profile());
        let config = model.config();
        let normalize = Normalize { mean: config.mean, std: config.std, flip: false };
        let image = ops::normalize(tape.recorder(), &rgba, normalize);
        let logits = model.forward(&mut tape, &image);
        let labels = ops::predict::argmax(tape.recorder(), &logits, Resizing::to(height, width));
        let labels = tape.recorder().keep(&labels, "predicted labels");
        let plan = Plan::new(gpu, &tape.finish())?;
        Ok(Self { rgba, labels, plan })
    }
}
