//! A recipe's model and the size of a step, for the subcommands that look at a step.

use std::path::PathBuf;

use clap::builder::TypedValueParser as _;

use crate::Result;
use crate::gpu::Profile;
use crate::model::{Model, ModelConfig};
use crate::train::batch_size::largest_batch;
use crate::train::recipe::Recipe;
use crate::wgpu::DeviceType;

/// Which step to look at.
#[derive(Debug, clap::Args)]
pub(super) struct StepArgs {
    /// The recipe: a file, or the name of one that comes with the program
    #[arg(value_name = "RECIPE", conflicts_with = "preset", required_unless_present = "preset")]
    recipe: Option<PathBuf>,

    /// A recipe that comes with the program; `semask-gpu recipes` lists them
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,

    /// Height and width of the pictures [default: those of the recipe's crops, or 512x512]
    #[arg(long, value_name = "HxW", value_parser = parse_size)]
    size: Option<[usize; 2]>,

    /// Pictures per training step [default: the recipe's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096).map(usize::from))]
    pub(super) batch: Option<usize>,

    /// Changes a value of the recipe, such as model.num_classes=19
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// The step that [`StepArgs`] name.
pub(super) struct Subject {
    pub(super) recipe: Recipe,
    pub(super) model: Model,
    pub(super) size: [usize; 2],
    /// None: as many as fit.
    batch: Option<usize>,
    /// Whether the recipe says how many classes there are, not we.
    pub(super) classes_given: bool,
}

impl StepArgs {
    pub(super) fn subject(&self) -> Result<Subject> {
        let mut recipe = match (&self.recipe, &self.preset) {
            (Some(recipe), _) => Recipe::find(recipe, &self.set)?,
            (None, preset) => {
                Recipe::preset_with(preset.as_deref().expect("clap wants one"), &self.set)?
            }
        };
        let classes_given = recipe.model.num_classes != 0;
        if !classes_given {
            recipe.set_num_classes(ModelConfig::default().num_classes)?;
        }
        let batch = self.batch.or(recipe.data.batch_size);
        let model = Model::new(&recipe.model)?;
        let size = self.size.or(recipe.augment.crop_size).unwrap_or([512; 2]);
        Ok(Subject { recipe, model, size, batch, classes_given })
    }
}

impl Subject {
    /// Pictures per training step on a device of a kind.
    pub(super) fn batch(&self, profile: &Profile, kind: DeviceType) -> Result<usize> {
        let Self { recipe, model, size, batch, .. } = self;
        let fitting = || largest_batch(recipe, model, profile, *size, recipe.train.budget(kind));
        batch.map_or_else(fitting, Ok)
    }
}

/// Height and width of `HxW`.
fn parse_size(text: &str) -> Result<[usize; 2], String> {
    let wrong = || format!("{text:?} is not HxW, such as 512x683, with sides of 1 to 32767");
    let (height, width) = text.split_once(['x', 'X', '×']).ok_or_else(wrong)?;
    let side = |text: &str| text.parse().ok().filter(|side| (1..=32_767).contains(side));
    Ok([side(height).ok_or_else(wrong)?, side(width).ok_or_else(wrong)?])
}

/// What a training step of `batch` pictures is called.
pub(super) fn training_title(batch: usize) -> String {
    match batch {
        1 => "training step, 1 picture".into(),
        n => format!("training step, {n} pictures"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_height_by_width() {
        assert_eq!(parse_size("512x683").unwrap(), [512, 683]);
        assert_eq!(parse_size("1×32767").unwrap(), [1, 32_767]);
        for wrong in ["", "512", "0x1", "1x32768", "-1x3", "3x", "axb"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
