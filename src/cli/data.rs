//! `semask-gpu data`.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::Result;
use crate::data::check;
use clap::Subcommand;

use super::print;

const EXAMPLES: &str = "\
EXAMPLES:
  semask-gpu data check data/streets
  semask-gpu data check data/streets --json

A data set is a folder with dataset.json, images/SPLIT and labels/SPLIT; README.md shows one.";

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

        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let Command::Check { dir, json } = &args.command;
    let report = check(dir)?;
    if *json {
        print(serde_json::to_string_pretty(&report).expect("plain values"))?;
    } else {
        print(report.to_string().trim_end())?;
    }
    Ok(if report.has_errors() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
