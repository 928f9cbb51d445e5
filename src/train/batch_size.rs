//! How many pictures fit: `data.batch_size = "auto"`.

use super::recipe::Recipe;
use super::step::Step;
use crate::gpu::{Plan, Profile};
use crate::model::Model;
use crate::wgpu::DeviceType;
use crate::{Error, Result};

/// Most pictures in a batch.
pub(crate) const MOST: usize = 4096;

/// Memory that a step may take on a device of a kind, in bytes: wgpu does not tell how much a device
/// has. Half of the machine's on devices that share it, and 4 GiB on cards of their own, which few
/// lack; `train.memory_budget_mib` says otherwise.
pub fn default_budget(kind: DeviceType) -> u64 {
    match kind {
        DeviceType::Cpu | DeviceType::IntegratedGpu => {
            let mut system = sysinfo::System::new();
            system.refresh_memory();
            system.total_memory() / 2
        }
        _ => 4 << 30,
    }
}

/// The largest batch of pictures of `size` (height, width) whose training step takes at most `budget`
/// bytes and fits the device.
///
/// # Errors
///
/// [`Error::Limit`] when one picture is too much already.
pub fn largest_batch(
    recipe: &Recipe,
    model: &Model,
    profile: &Profile,
    size: [usize; 2],
    budget: u64,
) -> Result<usize> {
    let takes = |batch: usize| -> Result<(u64, bool)> {
        let step = Step::training(recipe, model, profile, batch, size)?.recorder;
        let description = Plan::describe(&step);
        let bytes = description.planned_bytes() + description.pinned_bytes();
        Ok((bytes, Plan::refusals(&step, profile).is_empty()))
    };
    let fits = |batch: usize| takes(batch).map(|(bytes, bound)| bytes <= budget && bound);
    if !fits(1)? {
        let (bytes, bound) = takes(1)?;
        if !bound {
            let step = Step::training(recipe, model, profile, 1, size)?.recorder;
            return Err(Plan::refusals(&step, profile).swap_remove(0));
        }
        return Err(Error::Limit {
            what: format!("a training step of one picture of {} × {}", size[0], size[1]),
            needed: crate::gpu::megabytes(bytes),
            allowed: format!("{} (train.memory_budget_mib)", crate::gpu::megabytes(budget)),
        });
    }
    // Memory grows with the batch: doubled until it is too much, then halved in between.
    let (mut good, mut bad) = (1, 2);
    while bad <= MOST && fits(bad)? {
        (good, bad) = (bad, 2 * bad);
    }
    while bad - good > 1 && good < MOST {
        let middle = (good + bad) / 2;
        if fits(middle)? { good = middle } else { bad = middle }
    }
    Ok(good.min(MOST))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quickstart(sets: &[&str]) -> (Recipe, Model) {
        let mut recipe = Recipe::preset_with("quickstart", sets).unwrap();
        recipe.set_num_classes(2).unwrap();
        let model = Model::new(&recipe.model).unwrap();
        (recipe, model)
    }

    #[test]
    fn one_more_picture_would_be_too_much() {
        let (recipe, model) = quickstart(&[]);
        let profile = Profile::default();
        let bytes = |batch| {
            let step = Step::training(&recipe, &model, &profile, batch, [32, 40]).unwrap();
            let description = Plan::describe(&step.recorder);
            description.planned_bytes() + description.pinned_bytes()
        };
        for batch in [1, 2, 3, 7, 8] {
            let find = |budget| largest_batch(&recipe, &model, &profile, [32, 40], budget);
            assert_eq!(find(bytes(batch)).unwrap(), batch);
            assert_eq!(find(bytes(batch + 1) - 1).unwrap(), batch);
        }
    }

    #[test]
    fn activations_that_are_computed_again_leave_room_for_more_pictures() {
        let budget = 64 << 20;
        let find = |sets: &[&str]| {
            let (recipe, model) = quickstart(sets);
            largest_batch(&recipe, &model, &Profile::default(), [64, 64], budget).unwrap()
        };
        let [kept, again] = [find(&[]), find(&["train.checkpoint_activations=true"])];
        assert!(again > kept, "{again} with checkpoints, {kept} without");
    }

    #[test]
    fn no_picture_at_all_is_an_error() {
        let (recipe, model) = quickstart(&[]);
        let error = largest_batch(&recipe, &model, &Profile::default(), [64, 64], 1 << 20);
        let text = error.unwrap_err().to_string();
        assert!(text.contains("64 × 64") && text.contains("train.memory_budget_mib"), "{text}");
    }

    #[test]
    fn devices_that_share_the_machines_memory_get_half_of_it() {
        let [cpu, card] = [DeviceType::Cpu, DeviceType::DiscreteGpu].map(default_budget);
        assert!(cpu >= 256 << 20 && card == 4 << 30, "{cpu}, {card}");
    }
}
