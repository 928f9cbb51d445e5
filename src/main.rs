//! The program `semask-gpu`.

use std::process::ExitCode;

fn main() -> ExitCode {
    semask_gpu::cli::main()
}
