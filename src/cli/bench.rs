//! `semask-gpu bench`.

use std::process::ExitCode;

use crate::bench::{Bench, ROWS};
use crate::{Error, Result};
use serde_json::json;

use super::{complain, explain, open, print};

const EXAMPLES: &str = "\
EXAMPLES:
  semask-gpu bench
  semask-gpu bench --row a1 --row j --json
  semask-gpu --device nvidia bench --seconds 5

Times are medians from submission to completion, pipelines compiled before; CPU time is that of all threads
of the process, which on a software driver does the work. A multiply-add counts as 2 FLOPs.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Measure this row only; can be repeated
    #[arg(long, value_name = "NAME", long_help = row_help())]
    row: Vec<String>,

    /// How long to measure each mode of a row
    #[arg(long, value_name = "S", default_value_t = 2.0)]
    seconds: f64,

    /// Print a JSON object per line
    #[arg(long)]
    json: bool,
}

fn row_help() -> String {
    let rows: Vec<_> = ROWS.iter().map(|(name, what)| format!("\n  {name:4} {what}")).collect();
    format!("Measure this row only; can be repeated:{}", rows.concat())
}

pub(crate) fn run(args: &Args, device: Option<&str>) -> Result<ExitCode> {
    let wanted = |name: &str| args.row.is_empty() || args.row.iter().any(|row| row == name);
    if let Some(unknown) = args.row.iter().find(|row| ROWS.iter().all(|(name, _)| name != row)) {
        let names: Vec<_> = ROWS.iter().map(|(name, _)| *name).collect();
        let reason = format!("there are {}", names.join(", "));
        return Err(Error::invalid(format!("--row {unknown}"), reason));
    }
    if args.seconds.is_nan() || args.seconds < 0.0 {
        return Err(Error::invalid("--seconds", "0 or more is wanted"));
    }
    let gpu = open(device)?;
    if !args.json {
        print(format!("{}\n", gpu.name()))?;
        print(format!(
            "{:4} {:19} {:>10} {:>10} {:>10} {:>9}  work",
            "row", "mode", "ms", "CPU ms", "GFLOP/s", "GFLOP"
        ))?;
    }
    let mut code = ExitCode::SUCCESS;
    for (name, what) in ROWS.iter().filter(|(name, _)| wanted(name)) {
        let measured = match Bench::new(&gpu, name).and_then(|b| b.measure(name, args.seconds)) {
            Ok(measured) => measured,
            // Others may fit.
            Err(error @ Error::Limit { .. }) => {
                complain(format!("{name}: {}", explain(&error)));
                code = ExitCode::FAILURE;
                continue;
            }
            Err(error) => return Err(error),
        };
        for m in measured {
            if args.json {
                let mut object = serde_json::to_value(&m).expect("plain values");
                object["device"] = json!(gpu.name());
                print(object)?;
                continue;
            }
            let cpu = m.cpu_ms.map_or("-".into(), |ms| format!("{ms:.2}"));
            print(format!(
                "{name:4} {:19} {:>10.2} {cpu:>10} {:>10.2} {:>9.3}  {what}",
                m.mode, m.ms, m.gflop_per_s, m.gflop
            ))?;
        }
    }
    Ok(code)
}
