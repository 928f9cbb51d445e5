//! `semask-gpu parity`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::checkpoint::Checkpoint;
use crate::infer::{Parity, parity};
use crate::{Gpu, Result};
use serde_json::json;

use super::load::load;
use super::print;

const EXAMPLES: &str = "\
EXAMPLES:
  semask-gpu parity --weights iter_80000.pth --reference activations.safetensors semask-t-ade20k
  semask-gpu parity --weights best.safetensors --reference activations.safetensors --json

The reference comes from the official code:
  tools/save_activations.py mmseg CONFIG.py iter_80000.pth photo.jpg activations.safetensors
which saves what each module makes of a picture. Layers are listed in the order in which they compute. \
Exit status 1: some differ.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The model's parameters: a checkpoint of a training run, or a file of published weights
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,

    /// A picture and what PyTorch's modules made of it, as tools/save_activations.py saves it
    #[arg(long, value_name = "FILE")]
    reference: PathBuf,

    /// The model's recipe, if the weights do not bring one: a file, or the name of one of `recipes`
    #[arg(value_name = "RECIPE")]
    recipe: Option<PathBuf>,

    /// The largest difference that is not counted as one, in units of the layer's largest magnitude
    #[arg(long, value_name = "X", default_value_t = 1e-4)]
    tolerance: f64,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, open: impl FnOnce() -> Result<Gpu>) -> Result<ExitCode> {
    let reference = Checkpoint::read(&args.reference)?;
    let loaded = load(&args.weights, args.recipe.as_deref(), open)?;
    let found = parity(&loaded.gpu, &loaded.model, &reference, &args.reference)?;
    let first = found.layers.iter().find(|layer| layer.differs(args.tolerance));
    match args.json {
        true => {
            let layers: Vec<_> = (found.layers.iter())
                .map(|layer| {
                    json!({
                        "name": layer.name,
                        "shape": layer.shape,
                        "max": layer.max,
                        "rms": layer.rms,
                        "scale": layer.scale,
                        "differs": layer.differs(args.tolerance),
                    })
                })
                .collect();
            print(json!({
                "layers": layers,
                "first_difference": first.map(|layer| &layer.name),
                "not_compared": found.not_compared,
                "tolerance": args.tolerance,
                "device": loaded.gpu.name(),
            }))?;
        }
        false => print(table(&found, args.tolerance))?,
    }
    Ok(if first.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn table(found: &Parity, tolerance: f64) -> String {
    let wide = found.layers.iter().map(|layer| layer.name.len()).max().unwrap_or(0);
    let mut text = format!(
        "{:wide$}  {:>20}  {:>9}  {:>9}  {:>9}\n",
        "layer", "output", "max error", "rms error", "largest"
    );
    for layer in &found.layers {
        let shape: Vec<_> = layer.shape.iter().map(usize::to_string).collect();
        let mark = if layer.differs(tolerance) { "  differs" } else { "" };
        let _ = writeln!(
            text,
            "{:wide$}  {:>20}  {:>9.2e}  {:>9.2e}  {:>9.2e}{mark}",
            layer.name,
            shape.join(" × "),
            layer.max,
            layer.rms,
            layer.scale
        );
    }
    let _ = writeln!(
        text,
        "\n{} layers compared; {} of the model's are not in the reference, {} of the reference's not here",
        found.layers.len(),
        found.not_compared.len(),
        found.unknown
    );
    let mut differing = found.layers.iter().filter(|layer| layer.differs(tolerance));
    text += &match differing.next() {
        None => format!("all are equal to within {tolerance:e} of their largest magnitude"),
        Some(first) => format!(
            "the first that differs is {}: by {:.2e} at most, {:.2e} rms, where the largest is {:.2e}; so do {} \
             after it",
            first.name,
            first.max,
            first.rms,
            first.scale,
            differing.count()
        ),
    };
    text
}
