//! `semask-gpu describe`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::gpu::{Description, Plan, Profile, Recorder, adapters};
use crate::model::{LossSettings, Model, ModelConfig, PRESETS};
use crate::ops::{self, Normalize, predict};
use crate::optim::{AdamW, AdamWSettings};
use crate::train::recipe::Recipe;
use crate::{Error, Result, Tape, Tensor};
use clap::builder::TypedValueParser as _;

use super::devices::choose;
use super::{explain, print};

const EXAMPLES: &str = "\
EXAMPLES:
  semask-gpu describe --preset quickstart
  semask-gpu describe --preset semask-t --size 512x512 --batch 16
  semask-gpu describe recipe.toml --size 1024x2048 --device 0      with that GPU's limits
  semask-gpu describe --preset semask-l --set model.num_classes=19

No GPU is opened; without --device the limits are those that every WebGPU device has. A multiply-add
counts as 2 FLOPs.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The recipe
    #[arg(
        value_name = "RECIPE.toml",
        conflicts_with = "preset",
        required_unless_present = "preset"
    )]
    recipe: Option<PathBuf>,

    /// A recipe that comes with the program
    #[arg(long, value_name = "NAME", long_help = preset_help())]
    preset: Option<String>,

    /// Height and width of the pictures
    #[arg(long, value_name = "HxW", default_value = "512x512", value_parser = parse_size)]
    size: [usize; 2],

    /// Pictures per training step [default: the recipe's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096).map(usize::from))]
    batch: Option<usize>,

    /// Changes a value of the recipe, such as model.num_classes=19
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

fn preset_help() -> String {
    let mut text = String::from("A recipe that comes with the program:");
    for (name, about) in PRESETS {
        let _ = write!(text, "\n  {name:12} {about}");
    }
    text
}

/// Height and width of `HxW`.
fn parse_size(text: &str) -> Result<[usize; 2], String> {
    let wrong = || format!("{text:?} is not HxW, such as 512x683, with sides of 1 to 32767");
    let (height, width) = text.split_once(['x', 'X', '×']).ok_or_else(wrong)?;
    let side = |text: &str| text.parse().ok().filter(|side| (1..=32_767).contains(side));
    Ok([side(height).ok_or_else(wrong)?, side(width).ok_or_else(wrong)?])
}

pub(crate) fn run(args: &Args, device: Option<&str>) -> Result<ExitCode> {
    let mut recipe = match (&args.recipe, &args.preset) {
        (Some(path), _) => Recipe::load_with(path, &args.set)?,
        (None, preset) => {
            Recipe::preset_with(preset.as_deref().expect("clap wants one"), &args.set)?
        }
    };
    let classes_given = recipe.model.num_classes != 0;
    if !classes_given {
        recipe.set_num_classes(ModelConfig::default().num_classes)?;
    }
    let (profile, limits) = limits(device)?;
    let batch = args.batch.unwrap_or(recipe.data.batch_size);
    let model = Model::new(&recipe.model)?;
    let [height, width] = args.size;

    let mut text = format!("{}: {} classes", recipe.name, recipe.model.num_classes);
    if !classes_given {
        text += " (those of ADE20K; --set model.num_classes=N for others)";
    }
    text += &format!(", pictures of {height} × {width}, limits of {limits}\n\n");
    text += &stages(&recipe.model, &model, args.size);
    print(text)?;

    let forward = forward(&model, &profile, args.size);
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

    let step = training_step(&recipe, &model, &profile, batch, args.size)?;
    let training = Plan::describe(&step);
    let title = match batch {
        1 => "training step, 1 picture".into(),
        n => format!("training step, {n} pictures"),
    };
    print(memory(&title, &training))?;
    print(too_large(&step, &profile))?;
    print(kernels(&inference, &training))?;
    Ok(ExitCode::SUCCESS)
}

/// What the chosen device allows, and its name.
fn limits(device: Option<&str>) -> Result<(Profile, String)> {
    if device.is_none() {
        return Ok((Profile::default(), "WebGPU's defaults".into()));
    }
    let reports = adapters();
    let chosen = choose(&reports, device).ok_or_else(|| {
        let names: Vec<_> = reports.iter().map(|report| report.info.name.as_str()).collect();
        Error::NoGpu(format!("{:?} is none of: {}", device.unwrap_or_default(), names.join(", ")))
    })?;
    Ok((Profile::of(&reports[chosen]), reports[chosen].info.name.clone()))
}

/// A table of the stages, and the parameters of what is around them.
fn stages(config: &ModelConfig, model: &Model, [height, width]: [usize; 2]) -> String {
    let count = |prefix: &str| -> usize {
        let within = model.parameters().trained().filter(|(name, _)| name.starts_with(prefix));
        within.map(|(_, parameter)| parameter.tensor.shape().len()).sum()
    };
    let million = |count: usize| format!("{:.3} M", count as f64 / 1e6);
    let mut text = format!(
        "{:<14} {:>6} {:>11} {:>8} {:>6} {:>5}  {:<20} {:>10}\n",
        "part", "stride", "map", "channels", "blocks", "heads", "semantic attention", "parameters"
    );
    let mut line = |name: &str, cells: [String; 6], parameters: usize| {
        let [stride, map, channels, blocks, heads, semantic] = cells;
        let _ = writeln!(
            text,
            "{name:<14} {stride:>6} {map:>11} {channels:>8} {blocks:>6} {heads:>5}  \
             {semantic:<20} {:>10}",
            million(parameters)
        );
    };
    let empty = || <[String; 6]>::default();
    line("patch_embed", empty(), count("backbone.patch_embed.") + count("backbone.absolute"));
    let windowed = config.semantic_windows();
    let (mut h, mut w) = (height.div_ceil(4), width.div_ceil(4));
    for (i, windowed) in windowed.into_iter().enumerate() {
        let semantic = match (config.num_sem_blocks[i], windowed) {
            (0, _) => "none".into(),
            (n, true) => format!("{n}, windows of {}", config.sem_window_size),
            (n, false) => format!("{n}, whole map"),
        };
        let cells = [
            (4 << i).to_string(),
            format!("{h} × {w}"),
            config.stage_channels(i).to_string(),
            config.depths[i].to_string(),
            config.num_heads[i].to_string(),
            semantic,
        ];
        let parameters =
            count(&format!("backbone.layers.{i}.")) + count(&format!("backbone.norm{i}."));
        line(&format!("stage {}", i + 1), cells, parameters);
        (h, w) = (h.div_ceil(2), w.div_ceil(2));
    }
    let mut head = empty();
    head[2] = config.channels.to_string();
    line("decode_head", head, count("decode_head."));
    text
}

/// A picture to labels.
fn forward(model: &Model, profile: &Profile, [height, width]: [usize; 2]) -> Recorder {
    let pictures = Tensor::pinned("pictures", [1, height, width]);
    let mut tape = Tape::inference(profile);
    let image = ops::normalize(tape.recorder(), &pictures, normalise(model));
    let logits = model.forward(&mut tape, &image);
    let mut recorder = tape.finish();
    let resizing = predict::Resizing::to(height, width);
    let labels = predict::argmax(&mut recorder, &logits, resizing);
    recorder.keep(&labels, "labels");
    recorder
}

/// A batch to changed parameters.
fn training_step(
    recipe: &Recipe,
    model: &Model,
    profile: &Profile,
    batch: usize,
    [height, width]: [usize; 2],
) -> Result<Recorder> {
    let pictures = Tensor::pinned("pictures", [batch, height, width]);
    let labels = Tensor::pinned("labels", [(batch * height * width).div_ceil(4)]);
    let state = Tensor::pinned("random state", [4]);
    let mut tape = Tape::training(profile).randomised(&state);
    let image = ops::normalize(tape.recorder(), &pictures, normalise(model));
    let settings = LossSettings {
        cate_w: recipe.loss.cate_w as f32,
        ohem_min_kept: recipe.loss.ohem_min_kept,
    };
    let losses = model.losses(&mut tape, &image, &labels, settings);
    let (mut recorder, gradients) = tape.backward(&losses.total);
    let settings =
        AdamWSettings { accumulate: recipe.optimizer.accumulate, ..AdamWSettings::default() };
    let optimiser = AdamW::new(model.parameters(), settings);
    optimiser.record_gradients(&mut recorder, model.parameters(), &gradients)?;
    optimiser.record_update(&mut recorder);
    Ok(recorder)
}

fn normalise(model: &Model) -> Normalize {
    Normalize { mean: model.config().mean, std: model.config().std, flip: false }
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

fn total(description: &Description) -> u64 {
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
