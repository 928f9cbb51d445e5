//! `semask-gpu bench`.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::bench::{Bench, Measurement, ROWS, Report, Roofs, host, picture, scaling};
use crate::model::ModelConfig;
use crate::train::recipe::Recipe;
use crate::{Error, Gpu, Result};
use serde_json::json;

use super::{complain, explain, print};

const EXAMPLES: &str = "\
EXAMPLES:
  semask-gpu bench
  semask-gpu bench --row a1 --row j --json
  semask-gpu bench --baseline benches/baseline.json --picture shares.png
  semask-gpu bench --scaling --picture scaling.png
  semask-gpu --device nvidia bench --seconds 5
  semask-gpu bench --host                          recording, planning and replaying beside the device

Times are medians from submission to completion, pipelines compiled before; CPU time is that of all threads
of the process, which on a software driver does the work: there, rates are per second of it, those of one
core. A multiply-add counts as 2 FLOPs; GB are what the work has to move, not what a kernel moves. The share
is that of the roof that binds the work: arithmetic in registers (FMA), copying, or reading from
everywhere (gather), each measured first. Seconds are per mode of a row.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Measure this row only; can be repeated
    #[arg(long, value_name = "NAME", long_help = row_help(), conflicts_with = "scaling")]
    row: Vec<String>,

    /// How long to measure each mode of a row
    #[arg(long, value_name = "S", default_value_t = 2.0)]
    seconds: f64,

    /// Measure what the host does for a step of SeMask-T, instead of kernels
    #[arg(long, conflicts_with_all = ["row", "seconds", "baseline", "save", "picture", "scaling"])]
    host: bool,

    /// Print a JSON object per line
    #[arg(long)]
    json: bool,

    /// Compare with a file that --save wrote: milliseconds now for each millisecond then
    #[arg(long, value_name = "FILE", conflicts_with = "scaling")]
    baseline: Option<PathBuf>,

    /// Write what was measured, to compare with later
    #[arg(long, value_name = "FILE", conflicts_with = "scaling")]
    save: Option<PathBuf>,

    /// Draw the shares (with --scaling the growth) as a PNG
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,

    /// Measure how times grow with pixels, batch and channels, and the exponents
    #[arg(long)]
    scaling: bool,
}

fn row_help() -> String {
    let rows: Vec<_> = ROWS.iter().map(|(name, what)| format!("\n  {name:4} {what}")).collect();
    format!("Measure this row only; can be repeated:{}", rows.concat())
}

pub(crate) fn run(args: &Args, open: impl FnOnce() -> Result<Gpu>) -> Result<ExitCode> {
    if let Some(unknown) = args.row.iter().find(|row| ROWS.iter().all(|(name, _)| name != row)) {
        let names: Vec<_> = ROWS.iter().map(|(name, _)| *name).collect();
        let reason = format!("there are {}", names.join(", "));
        return Err(Error::invalid(format!("--row {unknown}"), reason));
    }
    if args.seconds.is_nan() || args.seconds < 0.0 {
        return Err(Error::invalid("--seconds", "0 or more is wanted"));
    }
    let baseline = args.baseline.as_deref().map(Report::read).transpose()?;
    let gpu = open()?;
    if args.host {
        return run_host(&gpu, args.json);
    }
    if args.scaling {
        return grow(args, &gpu);
    }
    if let Some(then) = baseline.as_ref().filter(|then| then.device != gpu.name()) {
        complain(format!("semask-gpu: the baseline is of another device, {}", then.device));
    }

    let roofs = Roofs::measure(&gpu, args.seconds)?;
    let mut report = Report { device: gpu.name().into(), roofs, rows: Vec::new() };
    if args.json {
        print(json!({ "device": report.device, "roofs": roofs }))?;
    } else {
        print(format!(
            "{}: FMA {:.1} GFLOP/s, copy {:.2} GB/s, gather {:.2} GB/s\n",
            report.device, roofs.arithmetic, roofs.copy, roofs.gather
        ))?;
        print(format!(
            "{:4} {:19} {:>10} {:>10} {:>9} {:>7} {:>15} {:>6}  work",
            "row", "mode", "ms", "CPU ms", "GFLOP/s", "GB/s", "share of roof", "ratio"
        ))?;
    }
    let mut code = ExitCode::SUCCESS;
    let wanted = |name: &str| args.row.is_empty() || args.row.iter().any(|row| row == name);
    for (name, what) in ROWS.iter().filter(|(name, _)| wanted(name)) {
        let bench = Bench::new(&gpu, name);
        let measured = match bench.and_then(|b| b.compare(name, args.seconds, &roofs)) {
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
            let ratio = baseline.as_ref().and_then(|then| then.ratio(&m));
            print(if args.json {
                to_json(&m, &report.device, ratio)
            } else {
                to_line(&m, what, ratio)
            })?;
            report.rows.push(m);
        }
    }
    if let Some(path) = &args.save {
        report.write(path)?;
    }
    if let Some(path) = &args.picture {
        picture(&report).write_png(path)?;
    }
    Ok(code)
}

fn to_json(m: &Measurement, device: &str, ratio: Option<f64>) -> String {
    let mut object = json!(m);
    object["device"] = json!(device);
    if let Some(ratio) = ratio {
        object["ratio"] = json!(ratio);
    }
    object.to_string()
}

fn to_line(m: &Measurement, what: &str, ratio: Option<f64>) -> String {
    let cpu = m.cpu_ms.map_or("-".into(), |ms| format!("{ms:.2}"));
    let share =
        m.bound.map_or("-".into(), |(roof, share)| format!("{:.1} % {roof:6}", 100.0 * share));
    let ratio = ratio.map_or("-".into(), |ratio| format!("{ratio:.2}"));
    format!(
        "{:4} {:19} {:>10.2} {cpu:>10} {:>9.2} {:>7.2} {share:>15} {ratio:>6}  {what}",
        m.row, m.mode, m.ms, m.gflop_per_s, m.gbyte_per_s
    )
}

/// Measures and prints how times grow.
fn grow(args: &Args, gpu: &Gpu) -> Result<ExitCode> {
    if !args.json {
        print(format!(
            "{}: milliseconds, forward and backward\n\n{:20} {:9} {:>44} {:>9} {:>9}",
            gpu.name(),
            "family",
            "axis",
            "size: ms",
            "exponent",
            "expected"
        ))?;
    }
    let mut growths = Vec::new();
    for axis in scaling::Axis::ALL {
        for family in scaling::FAMILIES {
            let growth = scaling::measure(gpu, family, axis, args.seconds / 4.0)?;
            let points = growth.points.iter().map(|(size, ms)| format!("{size}: {ms:.1}"));
            print(if args.json {
                json!(growth).to_string()
            } else {
                format!(
                    "{:20} {:9} {:>44} {:>9.2} {:>9.1}",
                    growth.family,
                    axis.name(),
                    points.collect::<Vec<_>>().join("  "),
                    growth.exponent,
                    growth.expected
                )
            })?;
            growths.push(growth);
        }
    }
    if let Some(path) = &args.picture {
        scaling::picture(&growths, gpu.name()).write_png(path)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What the host does for a step beside the device.
fn run_host(gpu: &Gpu, json: bool) -> Result<ExitCode> {
    // A step has as many dispatches at any size, and small ones leave the host's part in sight.
    const SIZE: [usize; 2] = [128, 128];
    let mut recipe = Recipe::preset("semask-t")?;
    recipe.set_num_classes(ModelConfig::default().num_classes)?;
    let costs = host::measure(gpu, &recipe, SIZE)?;
    if json {
        for cost in costs {
            let mut object = serde_json::to_value(&cost).expect("plain values");
            object["device"] = json!(gpu.name());
            print(object)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = format!(
        "{}\n\n{:9} {:>10} {:>12} {:>11} {:>9} {:>9} {:>12} {:>20}",
        gpu.name(),
        "step",
        "dispatches",
        "recording ms",
        "planning ms",
        "pipelines",
        "clock ms",
        "replay µs",
        "without a driver µs"
    );
    for cost in costs {
        text += &format!(
            "\n{:9} {:>10} {:>12.1} {:>11.1} {:>9} {:>9.1} {:>12.2} {:>20.2}",
            cost.step,
            cost.dispatches,
            cost.recording_ms,
            cost.planning_ms,
            cost.pipelines,
            cost.compiling_ms,
            cost.replay_us,
            cost.own_replay_us
        );
    }
    print(text)?;
    Ok(ExitCode::SUCCESS)
}
