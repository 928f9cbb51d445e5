//! `semask-gpu convert`.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::checkpoint::{Checkpoint, Dtype, OPTIMIZER};
use crate::{Error, Result};

use super::print;

const EXAMPLES: &str = "\
EXAMPLES:
  semask-gpu convert iter_80000.pth semask-t.safetensors
  semask-gpu convert runs/first/best.safetensors best.pth        for mmsegmentation and torch.load
  semask-gpu convert runs/first/best.safetensors model.pkl       for detectron2
  semask-gpu convert swin_large_patch4_window12_384_22k.pth small.safetensors --dtype bf16

What IN is shows in its contents: safetensors, torch.save's files, old and new, or a pickle of detectron2. \
What OUT becomes shows in its name. Names stay as they are, but for the `module.` of several GPUs; an \
optimiser's state is left out, and .pth and .pkl get the buffers that PyTorch's modules want beside \
parameters. Nothing in a file is run.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The file to read
    #[arg(value_name = "IN")]
    from: PathBuf,

    /// The file to write: .safetensors, .pth (also .pt, .bin) or .pkl
    #[arg(value_name = "OUT")]
    to: PathBuf,

    /// Rounds numbers to this type [default: as they are]
    #[arg(long, value_name = "TYPE")]
    dtype: Option<Float>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Float {
    F64,
    F32,
    F16,
    Bf16,
}

impl Float {
    fn dtype(self) -> Dtype {
        match self {
            Self::F64 => Dtype::F64,
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::BF16,
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let ending = args.to.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    let write = match &*ending {
        "safetensors" => Checkpoint::write_atomic,
        "pth" | "pt" | "bin" => Checkpoint::write_torch,
        "pkl" => Checkpoint::write_numpy,
        _ => {
            let reason = "its name says not what to write: .safetensors, .pth or .pkl";
            return Err(Error::invalid_file(&args.to, reason));
        }
    };
    let mut checkpoint = Checkpoint::read_where(&args.from, |name| !name.starts_with(OPTIMIZER))?;
    if checkpoint.entries.is_empty() {
        return Err(Error::invalid_file(&args.from, "has no arrays"));
    }
    if let Some(float) = args.dtype {
        let floats = [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16];
        for entry in checkpoint.entries.values_mut().filter(|e| floats.contains(&e.dtype())) {
            *entry = entry.to_dtype(float.dtype())?;
        }
    }
    if ending != "safetensors" {
        checkpoint.add_buffers();
    }
    write(&checkpoint, &args.to)?;
    let bytes: usize = checkpoint.entries.values().map(|entry| entry.bytes().len()).sum();
    let mib = bytes as f64 / f64::from(1 << 20);
    print(format!("{}: {} arrays, {mib:.1} MiB", args.to.display(), checkpoint.entries.len()))?;
    Ok(ExitCode::SUCCESS)
}
