//! The command line of semask-gpu.

use std::process::ExitCode;

mod cli;

fn main() -> ExitCode {
    cli::main()
}
