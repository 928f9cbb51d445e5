//! The command line: one file per subcommand, with its arguments and what it prints.

mod bench;
mod cache;
mod convert;
mod data;
mod describe;
mod devices;
mod eval;
mod inspect;
mod load;
mod parity;
mod predict;
mod profile;
mod recipe;
mod recipes;
pub mod train;
mod tune;

use std::error::Error as _;
use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use crate::gpu::GpuOptions;
use crate::{Error, Gpu, Result};
use clap::{Parser, Subcommand};

const EXAMPLES: &str = "\
EXAMPLES:
  semask-gpu devices
  semask-gpu data check data/streets
  semask-gpu recipes
  semask-gpu train --preset quickstart --data data/streets --run runs/first
  semask-gpu eval --checkpoint runs/first/best.safetensors --data data/streets
  semask-gpu predict --checkpoint runs/first/best.safetensors --out predictions photos

What drivers compile, and what `tune` finds, is kept in the user's cache folder; the variable SEMASK_GPU_CACHE \
names another folder for it, or is `off`.

`semask-gpu COMMAND --help` says more. Exit status: 0 when all went well, 1 after an error, 2 for wrong \
usage.";

/// SeMask semantic segmentation, training and inference, on the GPU
#[derive(Debug, Parser)]
#[command(name = "semask-gpu", version, about, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// GPU to use, by its number or a part of its name as `devices` lists them [default: the best]
    #[arg(long, global = true, value_name = "INDEX|NAME")]
    device: Option<String>,

    /// Run the variants of kernels that suit the kind of device, whatever `tune` has found
    #[arg(long, global = true)]
    no_tune: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a model
    Train(train::Args),
    /// Score a model on a data set
    Eval(eval::Args),
    /// Segment pictures
    Predict(predict::Args),
    /// List the recipes that come with the program, or print one
    Recipes(recipes::Args),
    /// Tell what a model is made of, computes and needs, without using the GPU
    Describe(describe::Args),
    /// Look after data sets
    Data(data::Args),
    /// List what is in a file of weights, and what would not fit a model
    Inspect(inspect::Args),
    /// Convert weights between safetensors and PyTorch's files
    Convert(convert::Args),
    /// Compare a model with the same in PyTorch, layer by layer
    Parity(parity::Args),
    /// List the GPUs
    Devices(devices::Args),
    /// Measure the kernels on this device
    Bench(bench::Args),
    /// Tell where the time of a step goes, kernel by kernel
    Profile(profile::Args),
    /// Find the fastest variants of kernels for this device
    Tune(tune::Args),
}

/// What the program does.
pub fn main() -> ExitCode {
    let Cli { command, device, no_tune } = Cli::parse();
    let device = device.as_deref();
    let open = || open(device, no_tune);
    let result = match command {
        Command::Train(args) => args.run(open).map(|finished| {
            // As a shell says of what Ctrl-C has ended.
            if finished { ExitCode::SUCCESS } else { ExitCode::from(130) }
        }),
        Command::Eval(args) => eval::run(&args, open),
        Command::Predict(args) => predict::run(&args, open),
        Command::Recipes(args) => recipes::run(&args, device),
        Command::Describe(args) => describe::run(&args, device),
        Command::Data(args) => data::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Convert(args) => convert::run(&args),
        Command::Parity(args) => parity::run(&args, open),
        Command::Devices(args) => devices::run(&args, device),
        Command::Bench(args) => bench::run(&args, open),
        Command::Profile(args) => profile::run(&args, open),
        Command::Tune(args) => tune::run(&args, open),
    };
    cache::save();
    match result {
        Ok(code) => code,
        Err(error) if nobody_reads(&error) => ExitCode::SUCCESS,
        Err(error) => {
            complain(explain(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error and what caused it, one line each.
fn explain(error: &Error) -> String {
    let mut text = format!("semask-gpu: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        // Many messages end with that of their source.
        if !text.contains(&words) {
            text += &format!("\n  because: {words}");
        }
        source = cause.source();
    }
    text
}

/// Whether whoever reads our output has left, as `head` does.
fn nobody_reads(error: &Error) -> bool {
    matches!(error, Error::File { source, path, .. }
        if source.kind() == ErrorKind::BrokenPipe && path == Path::new(STDOUT))
}

const STDOUT: &str = "standard output";

/// Prints a line, or several.
fn print(text: impl Display) -> Result<()> {
    let mut out = io::stdout().lock();
    let written = writeln!(out, "{text}").and_then(|()| out.flush());
    written.map_err(Error::file("write to", Path::new(STDOUT)))
}

/// Prints a line to standard error; there is nobody to tell if that fails.
fn complain(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Opens the GPU that `--device` names, with what is remembered of it.
fn open(device: Option<&str>, no_tune: bool) -> Result<Gpu> {
    let adapter = device.map(str::to_owned);
    let gpu = Gpu::open(&GpuOptions { adapter, ..GpuOptions::default() })?;
    cache::restore(&gpu);
    Ok(match no_tune {
        true => gpu,
        false => gpu.with_tuning(cache::tuning(&gpu)),
    })
}

/// A bar on a terminal, nothing elsewhere.
fn bar(len: usize) -> indicatif::ProgressBar {
    if !io::stderr().is_terminal() {
        return indicatif::ProgressBar::hidden();
    }
    let style = indicatif::ProgressStyle::with_template("{bar:24} {pos}/{len}  {wide_msg}");
    indicatif::ProgressBar::new(len as u64).with_style(style.expect("the template is a constant"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind::{
        ArgumentConflict, DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, InvalidSubcommand,
        InvalidValue, MissingRequiredArgument, ValueValidation,
    };

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("semask-gpu").chain(line.split_whitespace()))
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn documented_command_lines_are_understood() {
        for line in [
            "train --preset quickstart --data d --run r",
            "train r.toml --data d --run r --set a.b=1 --set c=2 --resume auto",
            "eval --checkpoint c --data d",
            "eval --recipe r.toml --weights w --data d --split test --slide --tta --json",
            "predict --checkpoint c a.png b.png",
            "predict --recipe r.toml --weights w --out o --logits l.safetensors a.png",
            "describe r.toml --size 512x683 --batch 2",
            "describe --preset semask-t",
            "describe semask-t-cityscapes",
            "recipes",
            "recipes semask-t",
            "recipes --plan --only semask-t --json",
            "data check d --format ade20k",
            "data check d",
            "parity --weights w.pth --reference a.safetensors semask-t --tolerance 1e-3 --json",
            "inspect w.pth",
            "inspect w.pth semask-t --set model.num_classes=3 --json",
            "inspect w.pth --preset semask-t",
            "convert a.pth b.safetensors --dtype bf16",
            "devices",
            "bench --row a1 --row j --json",
            "bench --baseline b.json --save s.json --picture p.png",
            "bench --scaling --picture p.png --seconds 1",
            "devices --device 0",
            "profile r.toml --size 64x64 --batch 2 --trace t.json --runs 5",
            "profile --preset semask-t --inference",
            "tune --preset quickstart --size 128x128 --batch 2 --runs 5",
            "tune semask-t",
            "train r.toml --data d --run r --no-tune",
            "--device llvmpipe eval --checkpoint c --data d",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn wrong_usage_is_told_apart() {
        for (line, kind) in [
            ("", DisplayHelpOnMissingArgumentOrSubcommand),
            ("eva", InvalidSubcommand),
            ("eval --data d", MissingRequiredArgument),
            ("eval --checkpoint c", MissingRequiredArgument),
            ("eval --recipe r --data d", MissingRequiredArgument),
            ("eval --weights w --data d", MissingRequiredArgument),
            ("eval --checkpoint c --recipe r --weights w --data d", ArgumentConflict),
            ("predict --checkpoint c", MissingRequiredArgument),
            ("describe", MissingRequiredArgument),
            ("describe r.toml --preset semask-t", ArgumentConflict),
            ("profile --preset semask-t --inference --batch 2", ArgumentConflict),
            ("describe --preset semask-t --size 12", ValueValidation),
            ("describe --preset semask-t --size 0x5", ValueValidation),
            ("describe --preset semask-t --batch 0", ValueValidation),
            ("recipes semask-t --only t", ArgumentConflict),
            ("bench --scaling --row a1", ArgumentConflict),
            ("bench --scaling --save s.json", ArgumentConflict),
            ("data check d --format ade", ValueValidation),
            ("convert a.pth b.safetensors --dtype i8", InvalidValue),
            ("parity --weights w.pth", MissingRequiredArgument),
            ("convert a.pth", MissingRequiredArgument),
            ("inspect a.pth r.toml --preset semask-t", ArgumentConflict),
            ("predict --help", DisplayHelp),
        ] {
            let error = parse(line).expect_err(line);
            assert_eq!(error.kind(), kind, "{line}: {error}");
        }
    }

    #[test]
    fn every_command_has_examples() {
        let mut cli = Cli::command();
        cli.build();
        for command in cli.get_subcommands_mut().filter(|c| c.get_name() != "help") {
            let help = command.render_long_help().to_string();
            let found = help.to_lowercase().contains("examples:\n  semask-gpu ");
            assert!(found, "{}: {help}", command.get_name());
        }
    }

    #[test]
    fn causes_are_told_once() {
        let cause = io::Error::new(ErrorKind::NotFound, "no such thing");
        let error = Error::file("read", Path::new("a"))(cause);
        assert_eq!(explain(&error), "semask-gpu: cannot read a: no such thing");
    }
}
