//! `semask-gpu recipes`.

use std::process::ExitCode;

use crate::gpu::{Plan, Profile};
use crate::model::{Model, ModelConfig};
use crate::train::batch_size::largest_batch;
use crate::train::recipe::Recipe;
use crate::train::recipes::{About, Named, RECIPES};
use crate::train::step::Step;
use crate::wgpu::DeviceType;
use crate::{Error, Result};
use serde_json::{Value, json};

use super::describe::{limits, total};
use super::{explain, print};

const EXAMPLES: &str = "\
EXAMPLES:
  semask-gpu recipes
  semask-gpu recipes semask-t-cityscapes > mine.toml
  semask-gpu recipes --plan semask-t-cityscapes  with the memory that it needs
  semask-gpu recipes --plan --only mask2former   of those that are called so
  semask-gpu recipes --json

mIoU is what was published, in percent: at a single scale, and over several scales, mirrored too. Multiply-adds \
are those of one picture of the size that the recipe crops to; one counts as 2 FLOPs. Where a recipe follows \
the data set's classes, 150 are assumed. With --device the plan is for that GPU, else for what every WebGPU \
device has.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Print this recipe as TOML, with every value; with --plan or --json what the list says of it
    #[arg(conflicts_with = "only")]
    name: Option<String>,

    /// Plan the memory of a prediction, of a training step with one picture, and of one with the
    /// recipe's batch; takes a second or more for each recipe
    #[arg(long)]
    plan: bool,

    /// List those whose names contain this
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    only: String,

    /// Print a JSON object per line
    #[arg(long)]
    json: bool,
}

/// What the list says of a recipe.
struct Row {
    named: &'static Named,
    about: About,
    recipe: Recipe,
    parameters: usize,
    multiply_adds: u64,
    size: [usize; 2],
    /// Or why it cannot be planned.
    plan: Option<Result<Memory, String>>,
}

/// What a recipe's plans take.
struct Memory {
    /// Pictures of a training step.
    batch: usize,
    /// Of a prediction, of a step with one picture, and of one with `batch`.
    bytes: [u64; 3],
}

pub(crate) fn run(args: &Args, device: Option<&str>) -> Result<ExitCode> {
    let wanted: Vec<&Named> = match &args.name {
        Some(name) => vec![Named::get(name)?],
        None => RECIPES.iter().filter(|named| named.name.contains(&args.only)).collect(),
    };
    if let ([named], Some(_), false) = (&wanted[..], &args.name, args.plan || args.json) {
        print(named.to_toml()?.trim_end())?;
        return Ok(ExitCode::SUCCESS);
    }
    if wanted.is_empty() {
        return Err(Error::invalid(
            format!("--only {}", args.only),
            "no recipe is called like that",
        ));
    }
    let profile = match args.plan {
        true => Some(limits(device)?),
        false => None,
    };
    if !args.json {
        if let Some((.., name)) = &profile {
            print(format!("memory with the limits of {name}\n"))?;
        }
        print(heading(args.plan))?;
    }
    for named in wanted {
        let limits = profile.as_ref().map(|(profile, kind, _)| (profile, *kind));
        let row = Row::new(named, limits)?;
        match args.json {
            true => print(row.to_json())?,
            false => print(row.to_line())?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn heading(plan: bool) -> String {
    let line = format!(
        "{:31} {:14} {:>6} {:>6} {:>12} {:>9} {:>13}",
        "recipe", "data set", "mIoU", "multi", "parameters", "crop", "multiply-adds"
    );
    match plan {
        true => format!("{line} {:>11} {:>11} {:>16}", "prediction", "1 picture", "batch"),
        false => line,
    }
}

impl Row {
    fn new(named: &'static Named, limits: Option<(&Profile, DeviceType)>) -> Result<Self> {
        let mut recipe = named.recipe()?;
        if recipe.model.num_classes == 0 {
            recipe.set_num_classes(ModelConfig::default().num_classes)?;
        }
        let size = recipe.augment.crop_size.unwrap_or([512; 2]);
        let model = Model::new(&recipe.model)?;
        let plan = limits.map(|(profile, kind)| {
            let step = |batch| Step::training(&recipe, &model, profile, batch, size);
            let plan = || -> Result<Memory> {
                let budget = recipe.train.budget(kind);
                let fitting = || largest_batch(&recipe, &model, profile, size, budget);
                let batch = recipe.data.batch_size.map_or_else(fitting, Ok)?;
                let steps = [Step::inference(&model, profile, size), step(1)?, step(batch)?];
                let bytes = steps.map(|step| total(&Plan::describe(&step.recorder)));
                Ok(Memory { batch, bytes })
            };
            plan().map_err(|error| explain(&error))
        });
        Ok(Self {
            named,
            about: named.about(),
            parameters: model.parameters().count(),
            multiply_adds: model.multiply_adds(size[0], size[1]).total(),
            size,
            plan,
            recipe,
        })
    }

    fn to_line(&self) -> String {
        let percent = |miou: Option<f64>| miou.map_or("-".into(), |miou| format!("{miou:.2}"));
        let [height, width] = self.size;
        let line = format!(
            "{:31} {:14} {:>6} {:>6} {:>10.2} M {:>9} {:>11.2} G",
            self.named.name,
            self.data_set(),
            percent(self.about.miou),
            percent(self.about.miou_multi_scale),
            self.parameters as f64 / 1e6,
            format!("{height}×{width}"),
            self.multiply_adds as f64 / 1e9,
        );
        let gib = |bytes: u64| format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30));
        match &self.plan {
            None => line,
            Some(Ok(Memory { batch, bytes })) => {
                let [prediction, one, all] = bytes.map(gib);
                let batch = format!("{batch}: {all}");
                format!("{line} {prediction:>11} {one:>11} {batch:>16}")
            }
            Some(Err(reason)) => format!("{line} {reason}"),
        }
    }

    fn to_json(&self) -> Value {
        let mut object = json!({
            "name": self.named.name,
            "data_set": self.data_set(),
            "about": self.about,
            "parameters": self.parameters,
            "size": self.size,
            "multiply_adds": self.multiply_adds,
            "flops": 2 * self.multiply_adds,
            "batch_size": self.recipe.data.batch_size,
        });
        match &self.plan {
            None => {}
            Some(Ok(Memory { bytes: [prediction, one, batch], .. })) => {
                object["bytes"] =
                    json!({ "prediction": prediction, "step_of_1": one, "step_of_batch": batch });
            }
            Some(Err(reason)) => object["bytes"] = json!(reason),
        }
        object
    }

    fn data_set(&self) -> &'static str {
        match self.recipe.data.format {
            crate::data::Format::Auto => "any",
            format => format.name(),
        }
    }
}
