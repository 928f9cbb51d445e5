//! `semask-gpu train`

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::checkpoint::Checkpoint;
use crate::gpu::Gpu;
use crate::train::log;
use crate::train::recipe::Recipe;
use crate::train::trainer::{Outcome, Resume, TrainOptions, train};
use crate::{Error, Result};

/// Trains a model.
///
/// The run folder gets the resolved recipe (recipe.toml), a log of every iteration (log.jsonl), the
/// latest and the best checkpoint, the learning curve (curve.png) and predictions beside the ground
/// truth (comparison.png).
///
/// Ctrl-C stops after the current iteration, with a checkpoint. A run that was stopped or killed
/// continues with --resume auto and ends with the same bits as one that was not.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
EXAMPLES:
  semask-gpu train --preset quickstart --data data/quickstart_nuclei --run runs/first
  semask-gpu train --preset quickstart --data data/quickstart_nuclei --run runs/first --resume auto
  semask-gpu train --preset semask-t --data my_data --run runs/t --set data.batch_size=4
  semask-gpu train semask-t-cityscapes --data cityscapes --run runs/city --set data.batch_size=2
  semask-gpu train semask-t --init swin_tiny_patch4_window7_224.pth --data my_data --run runs/t
  semask-gpu train my_recipe.toml --data my_data --run runs/mine --set schedule.iterations=20000")]
pub struct Args {
    /// The recipe: a file, or the name of one that comes with the program.
    #[arg(conflicts_with = "preset")]
    recipe: Option<PathBuf>,

    /// A recipe that comes with the program; `semask-gpu recipes` lists them.
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,

    /// The data set: a folder with dataset.json, images/SPLIT/ and labels/SPLIT/, or ADE20K,
    /// Cityscapes, COCO-Stuff or Pascal VOC as distributed.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,

    /// The run's folder.
    #[arg(long, value_name = "DIR")]
    run: PathBuf,

    /// Overrides a value of the recipe, such as schedule.iterations=1000. May be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,

    /// Continues a run: `auto` from the run folder's latest checkpoint, if there is one.
    #[arg(long, value_name = "auto|CHECKPOINT")]
    resume: Option<String>,

    /// Starts from these weights: safetensors, .pth or .pkl under official names, or an encoder
    /// pretrained on ImageNet (Swin). What is not in the file starts anew.
    #[arg(long, value_name = "FILE", conflicts_with = "resume")]
    init: Option<PathBuf>,
}

impl Args {
    /// Runs the subcommand; whether the run is complete.
    ///
    /// # Errors
    ///
    /// As [`train`].
    pub fn run(self, open: impl FnOnce() -> Result<Gpu>) -> Result<bool> {
        let resume = self.resume()?;
        let recipe = self.recipe(resume.checkpoint(&self.run).as_deref())?;
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        // A second Ctrl-C ends the program at once: the last checkpoint stays as it is.
        let handler = ctrlc::set_handler(move || {
            if flag.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
            eprintln!("stopping after this iteration; press Ctrl-C again to stop at once");
        });
        handler.map_err(|e| Error::invalid("Ctrl-C", e.to_string()))?;
        let run = self.run.clone();
        let options = TrainOptions {
            recipe,
            data: self.data,
            run: self.run,
            resume,
            weights: self.init,
            stop,
        };
        match train(&open()?, options)? {
            Outcome::Finished => {
                eprintln!("done; see {}", run.join("comparison.png").display());
                Ok(true)
            }
            Outcome::Stopped(iteration) => {
                eprintln!(
                    "stopped after iteration {iteration}; continue with the same command and \
                     --resume auto"
                );
                Ok(false)
            }
        }
    }

    fn resume(&self) -> Result<Resume> {
        match self.resume.as_deref() {
            Some("auto") => Ok(Resume::Auto),
            Some(path) => Ok(Resume::From(path.into())),
            None if self.run.join(log::FILE_NAME).exists() => Err(Error::invalid_file(
                &self.run,
                "a run has been here; continue it with --resume auto or choose another folder",
            )),
            None => Ok(Resume::Never),
        }
    }

    fn recipe(&self, resume: Option<&Path>) -> Result<Recipe> {
        match (&self.recipe, &self.preset, resume) {
            (Some(recipe), ..) => Recipe::find(recipe, &self.set),
            (None, Some(preset), _) => Recipe::preset_with(preset, &self.set),
            (None, None, Some(checkpoint)) => {
                let file = Checkpoint::read_where(checkpoint, |_| false)?;
                let text = file.metadata.get("recipe").ok_or_else(|| {
                    Error::invalid_file(checkpoint, "is no training checkpoint: it has no recipe")
                })?;
                let origin = format!("recipe in {}", checkpoint.display());
                Recipe::from_toml_with(text, &origin, &self.set)
            }
            (None, None, None) => Err(Error::invalid(
                "train",
                "name a recipe: a file, or one that `semask-gpu recipes` lists, such as quickstart",
            )),
        }
    }
}
