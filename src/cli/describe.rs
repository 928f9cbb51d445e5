//! `semask-gpu describe`.

use std::fmt::Write as _;
use std::process::ExitCode;

use crate::gpu::{Description, Plan, Profile, Recorder, adapters};
use crate::model::{Layer, Model};
use crate::train::step::Step;
use crate::wgpu::DeviceType;
use crate::{Error, Result};

use super::devices::choose;
use super::recipe::{StepArgs, Subject, training_title};
use super::{explain, print};

const EXAMPLES: &str = "\
EXAMPLES:
  semask-gpu describe quickstart
  semask-gpu describe --preset semask-t --size 512x512 --batch 16
  semask-gpu describe recipe.toml --size 1024x2048 --device 0      with that GPU's limits
  semask-gpu describe semask-l-cityscapes

No GPU is opened; without --device the limits are those that every WebGPU device has. A multiply-add \
counts as 2 FLOPs.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    step: StepArgs,
}

pub(crate) fn run(args: &Args, device: Option<&str>) -> Result<ExitCode> {
    let subject = args.step.subject()?;
    let (profile, kind, limits) = limits(device)?;
    let batch = subject.batch(&profile, kind)?;
    let Subject { recipe, model, size: [height, width], classes_given, .. } = subject;

    let mut text = format!("{}: {} classes", recipe.name, recipe.model.num_classes);
    if !classes_given {
        text += " (those of ADE20K; --set model.num_classes=N for others)";
    }
    text += &format!(", pictures of {height} × {width}, limits of {limits}\n\n");
    text += &layers(&model, [height, width]);
    print(text)?;

    let forward = Step::inference(&model, &profile, [height, width]).recorder;
    let inference = Plan::describe(&forward);
    let adds = model.multiply_adds(height, width);
    let [transformer, semantic, head, all] =
        [adds.transformer, adds.semantic, adds.head, adds.total()].map(|n| n as f64 / 1e9);
    print(format!(
        "parameters      {:.2} M\nmultiply-adds   {all:.2} G for one picture: transformer \
         {transformer:.2}, semantic layers {semantic:.2}, head {head:.2}\n                as matrix \
         products and convolutions are counted; below, everything is\n",
        model.parameters().count() as f64 / 1e6,
    ))?;
    print(memory("inference, one picture", &inference))?;
    print(too_large(&forward, &profile))?;

    let step = Step::training(&recipe, &model, &profile, batch, [height, width])?.recorder;
    let training = Plan::describe(&step);
    print(memory(&training_title(batch), &training))?;
    print(too_large(&step, &profile))?;
    print(kernels(&inference, &training))?;
    Ok(ExitCode::SUCCESS)
}

/// What the chosen device allows, its kind and its name.
pub(super) fn limits(device: Option<&str>) -> Result<(Profile, DeviceType, String)> {
    if device.is_none() {
        // A recipe in mixed precision is meant for a device that has it.
        let profile = Profile { half: true, ..Profile::default() };
        return Ok((profile, DeviceType::Other, "WebGPU's defaults".into()));
    }
    let reports = adapters();
    let chosen = choose(&reports, device).ok_or_else(|| {
        let names: Vec<_> = reports.iter().map(|report| report.info.name.as_str()).collect();
        Error::NoGpu(format!("{:?} is none of: {}", device.unwrap_or_default(), names.join(", ")))
    })?;
    let info = &reports[chosen].info;
    Ok((Profile::of(&reports[chosen]), info.device_type, info.name.clone()))
}

/// A table of the network's layers.
fn layers(model: &Model, [height, width]: [usize; 2]) -> String {
    let layers = model.config().layers(height, width);
    let wide = layers.iter().map(|layer| layer.name.len()).max().unwrap_or(0);
    let mut text = format!(
        "{:wide$}  {:>17}  {:>12}  {:>13}\n",
        "layer", "output", "parameters", "multiply-adds"
    );
    for Layer { name, shape: [height, width, channels], note, multiply_adds, .. } in layers {
        let within = |full: &str| {
            full.strip_prefix(&name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let of = model.parameters().trained().filter(|(name, _)| within(name));
        let parameters: usize = of.map(|(_, parameter)| parameter.tensor.shape().len()).sum();
        let output = format!("{height} × {width} × {channels}");
        let adds = multiply_adds as f64 / 1e9;
        let row = format!("{name:wide$}  {output:>17}  {parameters:>12}  {adds:>11.3} G  {note}");
        let _ = writeln!(text, "{}", row.trim_end());
    }
    text
}

fn mib(bytes: u64) -> String {
    if bytes < 1 << 20 {
        return format!("{:.1} KiB", bytes as f64 / 1024.0);
    }
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// What a plan keeps and shares.
fn memory(title: &str, description: &Description) -> String {
    let mut text = format!("{title}: {}\n", mib(total(description)));
    // Buffers of one kind are numbered; the list has them together.
    let mut kinds: Vec<(String, u64)> = Vec::new();
    for (label, size) in &description.pinned {
        let kind = label.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end();
        match kinds.iter_mut().find(|(known, _)| known == kind) {
            Some((_, sum)) => *sum += size,
            None => kinds.push((kind.into(), *size)),
        }
    }
    for (kind, size) in kinds {
        let _ = writeln!(text, "  {kind:<28} {:>12}", mib(size));
    }
    let shared = format!("activations, {} buffers", description.slots.len());
    let (apart, least) = (mib(description.unshared), mib(description.lower_bound));
    let _ = writeln!(
        text,
        "  {shared:<28} {:>12}  ({apart} without sharing, {least} at least)",
        mib(description.planned_bytes())
    );
    let _ = writeln!(
        text,
        "  {} dispatches, {:.2} GFLOPs",
        description.dispatches(),
        description.flops() as f64 / 1e9
    );
    text
}

/// Bytes of all buffers of a plan.
pub(super) fn total(description: &Description) -> u64 {
    description.planned_bytes() + description.pinned_bytes()
}

/// Warns of tensors that the device cannot bind.
fn too_large(recorder: &Recorder, profile: &Profile) -> String {
    const SHOWN: usize = 5;
    let errors = Plan::refusals(recorder, profile);
    if errors.is_empty() {
        return format!("  every tensor can be bound: at most {} each\n", mib(profile.max_binding));
    }
    let mut text = String::new();
    for error in errors.iter().take(SHOWN) {
        let _ = writeln!(text, "  warning: {}", explain(error).trim_start_matches("semask-gpu: "));
    }
    if errors.len() > SHOWN {
        let _ = writeln!(text, "  warning: and {} more", errors.len() - SHOWN);
    }
    text
}

/// How often each kernel runs.
fn kernels(inference: &Description, training: &Description) -> String {
    let names = || inference.kernels.keys().chain(training.kernels.keys());
    let mut all: Vec<&String> = names().collect();
    all.sort_unstable();
    all.dedup();
    let wide = all.iter().map(|name| name.len()).max().unwrap_or(0);
    let mut text = format!(
        "{:wide$}  {:>9}  {:>8}  {:>15}",
        "kernel", "inference", "training", "GFLOPs, training"
    );
    for name in all {
        let uses = [inference, training].map(|d| d.kernels.get(name).copied().unwrap_or_default());
        let gflops = uses[1].flops as f64 / 1e9;
        let _ = write!(
            text,
            "\n{name:wide$}  {:>9}  {:>8}  {gflops:>16.3}",
            uses[0].count, uses[1].count
        );
    }
    text
}
