//! `semask-gpu tune`.

use std::fmt::Write as _;
use std::process::ExitCode;

use crate::gpu::{Tuned, tune};
use crate::train::step::Step;
use crate::{Gpu, Result};

use super::recipe::{StepArgs, Subject, training_title};
use super::{cache, print};

const EXAMPLES: &str = "\
EXAMPLES:
  semask-gpu tune --preset semask-t --size 512x512 --batch 2
  semask-gpu tune recipe.toml --runs 10
  semask-gpu --device nvidia tune semask-l-cityscapes --batch 1

Runs a training step with each variant of the kernels that have several, and remembers the fastest for each \
class of shapes, for this GPU and driver. Commands use what is remembered, unless they are given --no-tune; \
what was never tuned runs the variant that suits the kind of device. Variants differ in rounding: a \
training run keeps those that it began with, also when it is resumed.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    step: StepArgs,

    /// How often to time each variant
    #[arg(long, value_name = "N", default_value_t = 3)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
}

pub(crate) fn run(args: &Args, open: impl FnOnce() -> Result<Gpu>) -> Result<ExitCode> {
    let subject = args.step.subject()?;
    let gpu = open()?;
    let batch = subject.batch(gpu.profile(), gpu.kind())?;
    let Subject { recipe, model, size, .. } = subject;
    let [height, width] = size;
    let what = training_title(batch);
    print(format!("{}: {what} of {height} × {width}, on {}\n", recipe.name, gpu.name()))?;
    let (tuning, found) = tune(&gpu, args.runs as usize, |gpu| {
        let mut step = Step::training(&recipe, &model, gpu.profile(), batch, size)?;
        step.fill(gpu, &model)?;
        Ok(step.recorder)
    })?;
    print(table(&found))?;
    let mut all = gpu.profile().tuning.as_ref().clone();
    all.extend(tuning);
    let path = cache::keep_tuning(&gpu, &all)?;
    print(format!("\n{} choices for this device in {}", all.len(), path.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Times of each class, in milliseconds, and what was chosen.
fn table(found: &[Tuned]) -> String {
    let wide = found.iter().map(|tuned| tuned.class.chars().count()).max().unwrap_or(0);
    let mut text = format!("{:wide$}  {:10} ms of a step", "at most", "chosen");
    for Tuned { class, times, chosen } in found {
        let times: Vec<_> =
            times.iter().map(|(variant, ms)| format!("{variant} {ms:.3}")).collect();
        let _ = write!(text, "\n{class:wide$}  {:10} {}", chosen.to_string(), times.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::Variant::{Registers, Tiles};

    #[test]
    fn a_table_has_every_time() {
        let times = vec![(Tiles, 2.5), (Registers, 1.25)];
        let found = [Tuned { class: "product: m 64".into(), times, chosen: Registers }];
        let text = table(&found);
        let line = text.lines().last().unwrap();
        assert_eq!(line, "product: m 64  registers  tiles 2.500, registers 1.250");
    }
}
