//! `semask-gpu train`.

use std::path::PathBuf;
use std::process::ExitCode;

use semask_gpu::{Error, Result};

const EXAMPLES: &str = "\
EXAMPLES:
  semask-gpu train --preset quickstart --data data/streets --run runs/first
  semask-gpu train recipe.toml --data data/streets --run runs/first --resume auto
  semask-gpu train --preset semask-t --data data/ade20k --run runs/t --set data.batch_size=8";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The recipe
    #[arg(value_name = "RECIPE.toml", conflicts_with = "preset")]
    recipe: Option<PathBuf>,
    /// A recipe that comes with the program
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
    /// The data set's folder
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// The run's folder
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// Changes a value of the recipe, such as data.batch_size=4
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Continues a run: from its last checkpoint, or from the one that is named
    #[arg(long, value_name = "auto|CHECKPOINT")]
    resume: Option<String>,
}

pub(crate) fn run(_args: &Args, _device: Option<&str>) -> Result<ExitCode> {
    Err(Error::invalid("train", "is not there yet"))
}
