//! `semask-gpu inspect`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::Result;
use crate::checkpoint::{Checkpoint, OPTIMIZER};
use crate::model::{Model, ModelConfig};
use crate::nn::{Fit, Mismatch};
use crate::train::recipe::Recipe;
use serde_json::json;

use super::load::num_classes;
use super::print;

const EXAMPLES: &str = "\
EXAMPLES:
  semask-gpu inspect iter_80000.pth
  semask-gpu inspect iter_80000.pth semask-t-ade20k
  semask-gpu inspect swin_tiny_patch4_window7_224.pth --preset semask-t
  semask-gpu inspect model.safetensors my_recipe.toml --json

Lists names, types, shapes and sizes; with a recipe also what the file lacks, has besides, or has in \
another shape. Names are compared as --weights and --init would take them. All of the file is read, so that \
damage shows. Exit status 1: something is missing, left over or of another shape; then --weights refuses \
the file, or leaves something out.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Safetensors, a file of torch.save, or a pickle of detectron2
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// The model to compare with: a recipe's file, or the name of one that comes with the program
    #[arg(value_name = "RECIPE", conflicts_with = "preset")]
    recipe: Option<PathBuf>,

    /// A recipe that comes with the program; `semask-gpu recipes` lists them
    #[arg(long, value_name = "NAME")]
    preset: Option<PathBuf>,

    /// Changes a value of the recipe, such as model.num_classes=19
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let checkpoint = Checkpoint::read(&args.file)?;
    let fit = match args.recipe.as_ref().or(args.preset.as_ref()) {
        Some(recipe) => Some(compare(&checkpoint, &args.file, recipe, &args.set)?),
        None => None,
    };
    match args.json {
        true => print(json(&checkpoint, fit.as_ref()))?,
        false => {
            print(table(&checkpoint))?;
            if let Some(fit) = &fit {
                print(differences(fit))?;
            }
        }
    }
    Ok(match fit.is_none_or(|fit| fits(&fit)) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn compare(checkpoint: &Checkpoint, path: &Path, recipe: &Path, set: &[String]) -> Result<Fit> {
    let mut recipe = Recipe::find(recipe, set)?;
    if recipe.model.num_classes == 0 {
        let classes = num_classes(checkpoint);
        recipe.set_num_classes(classes.unwrap_or(ModelConfig::default().num_classes))?;
    }
    Model::new(&recipe.model)?.parameters().fit(checkpoint, path)
}

fn fits(fit: &Fit) -> bool {
    fit.missing.is_empty() && fit.mismatched.is_empty() && fit.unexpected.is_empty()
}

fn table(checkpoint: &Checkpoint) -> String {
    let mut text = String::new();
    let wide = checkpoint.entries.keys().map(|name| name.len()).max().unwrap_or(0);
    let (mut elements, mut bytes) = (0, 0);
    for (name, entry) in &checkpoint.entries {
        let (dtype, shape) = (entry.dtype(), format!("{:?}", entry.shape()));
        let size = entry.bytes().len();
        let _ =
            writeln!(text, "{name:wide$}  {:<8}  {shape:<20}  {size:>12} bytes", dtype.to_string());
        bytes += size;
        if !name.starts_with(OPTIMIZER) {
            elements += entry.shape().len();
        }
    }
    for (key, word) in &checkpoint.metadata {
        const SHOWN: usize = 60;
        let plain = |c: char| if c.is_control() { ' ' } else { c };
        let shown: String = word.chars().take(SHOWN).map(plain).collect();
        let more = if word.chars().nth(SHOWN).is_some() { " …" } else { "" };
        let _ = writeln!(text, "{key}: {shown}{more}");
    }
    let count = checkpoint.entries.len();
    text + &format!("{count} arrays, {elements} elements without an optimiser's, {bytes} bytes")
}

fn differences(fit: &Fit) -> String {
    let taken = fit.equal.len() + fit.resized.len();
    let all = taken + fit.missing.len() + fit.mismatched.len();
    let mut text = format!("\n{taken} of the model's {all} arrays are there");
    if fit.encoder_alone {
        text += "; the file is an encoder's alone: for train --init";
    }
    let of = |Mismatch { name, found, wanted }: &Mismatch| {
        format!("{name}: {found:?}, the model wants {wanted:?}")
    };
    for (title, lines) in [
        ("resized", fit.resized.clone()),
        ("missing", fit.missing.clone()),
        ("of another shape", fit.mismatched.iter().map(of).collect()),
        ("unexpected", fit.unexpected.clone()),
    ] {
        if !lines.is_empty() {
            let _ = write!(text, "\n\n{title}, {}:\n  {}", lines.len(), lines.join("\n  "));
        }
    }
    text
}

fn json(checkpoint: &Checkpoint, fit: Option<&Fit>) -> serde_json::Value {
    let arrays: Vec<_> = (checkpoint.entries.iter())
        .map(|(name, entry)| {
            json!({
                "name": name,
                "dtype": entry.dtype().to_string(),
                "shape": entry.shape().dims(),
                "bytes": entry.bytes().len(),
            })
        })
        .collect();
    let fit = fit.map(|fit| {
        let of = |Mismatch { name, found, wanted }: &Mismatch| {
            json!({ "name": name, "found": found.dims(), "wanted": wanted.dims() })
        };
        json!({
            "fits": fits(fit),
            "encoder_alone": fit.encoder_alone,
            "resized": fit.resized,
            "missing": fit.missing,
            "mismatched": fit.mismatched.iter().map(of).collect::<Vec<_>>(),
            "unexpected": fit.unexpected,
        })
    });
    json!({ "arrays": arrays, "metadata": checkpoint.metadata, "model": fit })
}
