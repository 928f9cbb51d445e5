//! [`Step`]: a whole step with inputs of its own, for what looks at steps rather than results: the
//! memory that one takes, its time per kernel, which variants of kernels suit it.

use super::recipe::Recipe;
use crate::gpu::{Profile, Recorder};
use crate::infer::Answer;
use crate::model::Model;
use crate::ops::{Image, Normalize};
use crate::optim::AdamW;
use crate::random::Rng;
use crate::{Gpu, Result, Tape, Tensor};

/// A recorded step.
#[derive(Debug)]
pub struct Step {
    /// All of it.
    pub recorder: Recorder,
    pictures: Tensor,
    training: Option<(Tensor, AdamW)>,
}

impl Step {
    /// One picture of `size` (height, width) to the class of each of its pixels.
    pub fn inference(model: &Model, profile: &Profile, [height, width]: [usize; 2]) -> Self {
        let pictures = Tensor::pinned("pictures", [1, height, width]);
        let mut tape = Tape::inference(profile);
        let answer = Answer::new(&mut tape, model, Image::bytes(&pictures, normalize(model)));
        let mut recorder = tape.finish();
        let labels = answer.labels(&mut recorder, [height, width], [height, width]);
        recorder.keep(&labels, "labels");
        recorder.drop_unread(0..recorder.len());
        Self { recorder, pictures, training: None }
    }

    /// `batch` pictures of `size` (height, width) to changed parameters.
    ///
    /// # Errors
    ///
    /// When no gradient reaches some parameter, or the recipe asks for what such a device cannot do.
    pub fn training(
        recipe: &Recipe,
        model: &Model,
        profile: &Profile,
        batch: usize,
        [height, width]: [usize; 2],
    ) -> Result<Self> {
        recipe.check_device(profile)?;
        let divisor = model.config().size_divisor();
        let [height, width] = [height, width].map(|side| side.next_multiple_of(divisor));
        let pictures = Tensor::pinned("pictures", [batch, height, width]);
        let labels = Tensor::pinned("labels", [(batch * height * width).div_ceil(4)]);
        let state = Tensor::pinned("random state", [4]);
        let mut tape = recipe.tape(profile, &state);
        let image = Image::bytes(&pictures, normalize(model));
        let losses = model.losses(&mut tape, image, &labels, recipe.loss_settings());
        let optimiser = AdamW::new(model.parameters(), recipe.adamw_settings());
        let (mut recorder, gradients) = optimiser.backward(tape, &losses.total);
        optimiser.record_gradients(&mut recorder, model.parameters(), &gradients)?;
        optimiser.record_update(&mut recorder);
        Ok(Self { recorder, pictures, training: Some((labels, optimiser)) })
    }

    /// Gives parameters their initial values and inputs random ones, of at most as many classes as a picture of
    /// ADE20K has on average: how long masks take to match and compare depends on that.
    ///
    /// # Errors
    ///
    /// [`Error::Device`](crate::Error::Device) when the device has no room.
    pub fn fill(&mut self, gpu: &Gpu, model: &Model) -> Result<()> {
        const CLASSES: usize = 10;
        let mut rng = Rng::new(1, 0);
        model.parameters().initialise(gpu, 1)?;
        let mut bytes = |len: usize, below: usize| -> Vec<u8> {
            (0..len).map(|_| rng.below(below) as u8).collect()
        };
        self.pictures.write(gpu, &bytes(4 * self.pictures.shape().len(), 256))?;
        if let Some((labels, optimiser)) = &mut self.training {
            let classes = model.config().num_classes.min(CLASSES);
            labels.write(gpu, &bytes(4 * labels.shape().len(), classes))?;
            optimiser.set_groups(gpu, model.parameters(), |_, _| (1.0, 0.0))?;
            optimiser.prepare(gpu, 1e-6)?;
        }
        Ok(())
    }
}

fn normalize(model: &Model) -> Normalize {
    Normalize { mean: model.config().mean, std: model.config().std, flip: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::Plan;

    /// Of PyTorch 2.15 on a CPU, eager, SeMask-T with 150 classes, a picture of 512 × 512, forward and
    /// backward: the resident set grew by 1688 MiB, on top of 132 MiB of parameters; and twice as much for
    /// AdamW's moments, which that figure is without.
    const PYTORCH_MIB: f64 = 1688.0 + 132.0 + 2.0 * 132.0;

    #[test]
    fn a_step_takes_at_most_60_percent_of_pytorchs_memory_and_35_with_checkpoints() {
        for (sets, most) in [(&[][..], 0.6), (&["train.checkpoint_activations=true"][..], 0.35)] {
            let mut recipe = Recipe::preset_with("semask-t", sets).unwrap();
            recipe.set_num_classes(150).unwrap();
            let model = Model::new(&recipe.model).unwrap();
            // CPU drivers pack what they multiply, which takes a little more.
            let of_cpu = Profile { cpu: true, ..Profile::default() };
            for (profile, most) in [(Profile::default(), most), (of_cpu, most + 0.005)] {
                let step = Step::training(&recipe, &model, &profile, 1, [512, 512]).unwrap();
                let plan = Plan::describe(&step.recorder);
                let moments = plan.pinned.iter().filter(|(label, _)| label.contains("moments"));
                let moments: u64 = moments.map(|(_, size)| size).sum();
                assert!(moments > 8 * model.parameters().count() as u64);
                let bytes = plan.planned_bytes() + plan.pinned_bytes();
                let share = bytes as f64 / f64::from(1 << 20) / PYTORCH_MIB;
                assert!(share <= most, "{share:.3} of PyTorch's memory with {sets:?}");
            }
        }
    }
}
