//! The command line.
use clap::Parser;
#[derive(clap::Parser)]
enum Cli {
    Train(semask_gpu::cli::train::Args),
}
fn main() {
    let Cli::Train(args) = Cli::parse();
    match args.run(|| semask_gpu::Gpu::open(&Default::default())) {
        Ok(true) => {}
        Ok(false) => std::process::exit(130),
        Err(e) => {
            eprintln!("semask-gpu: {e}");
            std::process::exit(1)
        }
    }
}
