//! Models from files, for the subcommands that use one.

use std::path::{Path, PathBuf};

use crate::checkpoint::{Checkpoint, OPTIMIZER, encoder_alone};
use crate::data::dataset;
use crate::model::Model;
use crate::train::recipe::Recipe;
use crate::{Error, Gpu, Result};
use serde::de::DeserializeOwned;

use super::complain;

/// Where a model comes from.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct ModelArgs {
    /// Checkpoint of a training run; it has the recipe, the classes and their colours
    #[arg(long, value_name = "FILE", required_unless_present_any = ["recipe", "weights"])]
    #[arg(conflicts_with_all = ["recipe", "weights"])]
    checkpoint: Option<PathBuf>,

    /// Recipe of the model whose --weights are given: a file, or the name of one of `recipes`
    #[arg(long, value_name = "RECIPE", requires = "weights")]
    recipe: Option<PathBuf>,

    /// The model's parameters under their official names: safetensors, mmsegmentation's or detectron2's
    /// .pth, or .pkl
    #[arg(long, value_name = "FILE", requires = "recipe")]
    weights: Option<PathBuf>,
}

/// A model with its parameters on a device, and what goes with it.
pub(super) struct Loaded {
    pub(super) gpu: Gpu,
    pub(super) recipe: Recipe,
    pub(super) model: Model,
    /// Names of the classes; none where no file tells.
    pub(super) classes: Option<Vec<String>>,
    /// Their colours.
    pub(super) palette: Option<Vec<[u8; 3]>>,
}

impl Loaded {
    /// Names and colours of the classes, made up where no file tells.
    pub(super) fn names_and_colours(&self) -> (Vec<String>, Vec<[u8; 3]>) {
        let count = self.model.config().num_classes;
        let numbered = || (0..count).map(|class| format!("class {class}")).collect();
        let names = self.classes.clone().unwrap_or_else(numbered);
        let colours = self.palette.clone().unwrap_or_else(|| dataset::voc_palette(count));
        (names, colours)
    }
}

/// Reads a model and puts it on a device.
pub(super) fn load_model(args: &ModelArgs, open: impl FnOnce() -> Result<Gpu>) -> Result<Loaded> {
    let path = args.checkpoint.as_ref().or(args.weights.as_ref()).expect("clap wants one of them");
    load(path, args.recipe.as_deref(), open)
}

/// Reads the model at `path`, of `recipe` if the file has none of its own, and puts it on a device.
pub(super) fn load(
    path: &Path,
    recipe: Option<&Path>,
    open: impl FnOnce() -> Result<Gpu>,
) -> Result<Loaded> {
    let checkpoint = Checkpoint::read_where(path, |name| !name.starts_with(OPTIMIZER))?;
    let mut recipe = match recipe {
        Some(recipe) => Recipe::find(recipe, &[] as &[&str])?,
        None => {
            let text = checkpoint.metadata.get("recipe").ok_or_else(|| {
                let reason = "has no recipe, so it is not from a training run of semask-gpu; name one, \
                              such as --recipe RECIPE.toml --weights FILE";
                Error::invalid_file(path, reason)
            })?;
            Recipe::from_toml(text, &format!("recipe in {}", path.display()))?
        }
    };
    if recipe.model.num_classes == 0 {
        let known = recipe.data.format.classes().map(|(names, _)| names.len());
        let count = num_classes(&checkpoint).or(known).ok_or_else(|| {
            match checkpoint.official().encoder_alone {
                true => encoder_alone(path),
                false => Error::invalid_file(path, "has no classifier that we know"),
            }
        })?;
        recipe.set_num_classes(count)?;
    }
    let count = recipe.model.num_classes;
    let (known, colours) = recipe.data.format.classes().unzip();
    let classes = metadata(&checkpoint, "classes", path)?.or(known);
    let palette = metadata(&checkpoint, "palette", path)?.or(colours);
    for (key, found) in [
        ("classes", classes.as_ref().map(|names: &Vec<String>| names.len())),
        ("palette", palette.as_ref().map(|colours: &Vec<[u8; 3]>| colours.len())),
    ] {
        if let Some(found) = found.filter(|&found| found != count) {
            let reason = format!("{key}: has {found} entries for a model of {count} classes");
            return Err(Error::invalid_file(path, reason));
        }
    }

    let model = Model::new(&recipe.model)?;
    let gpu = open()?;
    let unknown = model.parameters().load(&gpu, &checkpoint, path)?;
    if let Some(first) = unknown.first() {
        let more = match unknown.len() - 1 {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        complain(format!(
            "semask-gpu: {}: the model has no {first}{more}; left out",
            path.display()
        ));
    }
    Ok(Loaded { gpu, recipe, model, classes, palette })
}

/// How many classes the classifier of a checkpoint tells apart, if it has one.
pub(super) fn num_classes(checkpoint: &Checkpoint) -> Option<usize> {
    let entries = checkpoint.official().entries;
    let rows = |name: &str| entries.get(name)?.shape().dims().first().copied();
    rows("decode_head.conv_seg.weight").or_else(|| {
        // Beside the classes there is "no object".
        rows("sem_seg_head.predictor.class_embed.weight")?.checked_sub(1)
    })
}

/// What the metadata of a checkpoint say about `key`, as JSON.
fn metadata<T: DeserializeOwned>(
    checkpoint: &Checkpoint,
    key: &str,
    path: &Path,
) -> Result<Option<T>> {
    let Some(text) = checkpoint.metadata.get(key) else { return Ok(None) };
    let parsed = serde_json::from_str(text);
    parsed.map(Some).map_err(|error| Error::invalid_file(path, format!("{key}: {error}")))
}
