//! `semask-gpu data`.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::Result;
use crate::data::{Format, check_as};
use clap::Subcommand;

use super::print;

const EXAMPLES: &str = "\
EXAMPLES:
  semask-gpu data check data/streets
  semask-gpu data check data/streets --json
  semask-gpu data check data/ADEChallengeData2016
  semask-gpu data check data/cityscapes --format cityscapes

A data set is a folder with dataset.json, images/SPLIT and labels/SPLIT (README.md shows one), or one of \
ADE20K (SceneParse150), Cityscapes, COCO-Stuff-10k, COCO-Stuff-164k and Pascal VOC 2012 as distributed.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Read every file of a data set and report what is there and what is wrong
    #[command(after_help = EXAMPLES)]
    Check {
        /// The data set's folder
        #[arg(value_name = "DIR")]
        dir: PathBuf,

        /// The layout that is expected [default: what is there decides]
        #[arg(long, value_name = "NAME", value_parser = parse_format, default_value = "auto", hide_default_value = true)]
        format: Format,

        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

fn parse_format(text: &str) -> Result<Format, String> {
    let found = Format::ALL.iter().find(|format| format.name() == text);
    found.copied().ok_or_else(|| {
        let names: Vec<_> = Format::ALL.iter().map(|format| format.name()).collect();
        format!("there are {}", names.join(", "))
    })
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let Command::Check { dir, format, json } = &args.command;
    let report = check_as(dir, *format)?;
    if *json {
        print(serde_json::to_string_pretty(&report).expect("plain values"))?;
    } else {
        print(report.to_string().trim_end())?;
    }
    Ok(if report.has_errors() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
