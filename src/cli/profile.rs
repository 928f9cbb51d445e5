//! `semask-gpu profile`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use crate::checkpoint::{RealDisk, replace_file};
use crate::gpu::{Clock, KernelTime, Plan, Timeline};
use crate::train::step::Step;
use crate::{Gpu, Result};

use super::recipe::{StepArgs, Subject, training_title};
use super::{complain, print};

const EXAMPLES: &str = "\
EXAMPLES:
  semask-gpu profile --preset quickstart --size 128x128
  semask-gpu profile --preset semask-t --size 512x512 --batch 1 --trace step.json
  semask-gpu profile recipe.toml --inference --size 1024x2048
  semask-gpu --device nvidia profile --preset semask-t --runs 20

Times are medians over the runs, of random pictures. A multiply-add counts as 2 FLOPs; bytes are those of all \
tensors that a kernel reads or writes, each once. Open a trace at https://ui.perfetto.dev: it shows the \
parts of the model, the kernels within them, and the memory of activations.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    step: StepArgs,

    /// Profile the segmentation of one picture instead of a training step
    #[arg(long, conflicts_with = "batch")]
    inference: bool,

    /// Write a trace for Perfetto or chrome://tracing
    #[arg(long, value_name = "FILE.json")]
    trace: Option<PathBuf>,

    /// How often to run the step
    #[arg(long, value_name = "N", default_value_t = 3)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
}

pub(crate) fn run(args: &Args, open: impl FnOnce() -> Result<Gpu>) -> Result<ExitCode> {
    let subject = args.step.subject()?;
    let gpu = open()?;
    let batch = match args.inference {
        true => 1,
        false => subject.batch(gpu.profile(), gpu.kind())?,
    };
    let Subject { recipe, model, size, .. } = subject;
    let start = Instant::now();
    let mut step = match args.inference {
        true => Step::inference(&model, gpu.profile(), size),
        false => Step::training(&recipe, &model, gpu.profile(), batch, size)?,
    };
    let recording_ms = ms_since(start);
    step.fill(&gpu, &model)?;
    let compiling = Instant::now();
    let kernels = gpu.compile(&step.recorder);
    let compiling_ms = ms_since(compiling);
    let planning = Instant::now();
    let plan = Plan::new(&gpu, &step.recorder)?;
    let planning_ms = ms_since(planning);

    let [height, width] = size;
    let what = match args.inference {
        true => "inference, one picture".into(),
        false => training_title(batch),
    };
    let title = format!("{}: {what} of {height} × {width}", recipe.name);
    print(format!("{title}, on {}\n", gpu.name()))?;
    plan.run()?;
    let replays = (0..args.runs).map(|_| plan.profile()).collect::<Result<Vec<_>>>()?;
    let timeline = Timeline::median(replays);
    if timeline.clock == Clock::Host {
        complain(
            "semask-gpu: this device has no timestamps that mean something: every dispatch was \
             submitted by itself and timed by the host, which adds some 0.1 ms to each",
        );
    }
    print(table(&timeline))?;

    let (whole_ms, submitting_ms) = replay(&gpu, &plan, args.runs)?;
    let dispatches = timeline.dispatches.len();
    print(format!(
        "\nreplay        {whole_ms:.2} ms for {dispatches} dispatches in {} calls, {submitting_ms:.2} ms of it \
         to record and submit them\nmade in       {recording_ms:.1} ms of recording, {planning_ms:.1} ms of \
         planning, {compiling_ms:.1} ms for {kernels} pipelines",
        plan.calls(),
    ))?;
    if let Some(path) = &args.trace {
        write(path, &timeline.trace(&title).to_string())?;
        print(format!("trace         {}; open it at https://ui.perfetto.dev", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn ms_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

/// Medians of a whole replay, and of what the host does for it, in milliseconds.
fn replay(gpu: &Gpu, plan: &Plan, runs: u32) -> Result<(f64, f64)> {
    let (mut whole, mut submitting) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let start = Instant::now();
        plan.replay()?;
        submitting.push(ms_since(start));
        gpu.wait("profiling")?;
        whole.push(ms_since(start));
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    Ok((median(&mut whole), median(&mut submitting)))
}

/// Time per kernel, the longest first.
fn table(timeline: &Timeline) -> String {
    let all_ms = timeline.ms();
    let kernels = timeline.kernels();
    let wide = kernels.iter().map(|k| k.kernel.len()).max().unwrap_or(0).max("kernel".len());
    let mut text = format!(
        "{:wide$} {:>7} {:>6} {:>10} {:>9} {:>8}",
        "kernel", "share", "calls", "ms", "GFLOP/s", "GB/s"
    );
    let mut line = |KernelTime { kernel, calls, ms, flops, bytes }: &KernelTime| {
        let share = 100.0 * ms / all_ms.max(f64::MIN_POSITIVE);
        // Per 10⁶ of a millisecond's: 10⁹ per second.
        let rate = |count: u64| count as f64 / 1e6 / ms.max(1e-6);
        let gflops = if *flops == 0 { "-".into() } else { format!("{:.1}", rate(*flops)) };
        let _ = write!(
            text,
            "\n{kernel:wide$} {share:>5.1} % {calls:>6} {ms:>10.3} {gflops:>9} {:>8.2}",
            rate(*bytes)
        );
    };
    kernels.iter().for_each(&mut line);
    line(&KernelTime {
        kernel: "all".into(),
        calls: kernels.iter().map(|k| k.calls).sum(),
        ms: all_ms,
        flops: kernels.iter().map(|k| k.flops).sum(),
        bytes: kernels.iter().map(|k| k.bytes).sum(),
    });
    text
}

fn write(path: &Path, text: &str) -> Result<()> {
    replace_file(&RealDisk, path, text.len() as u64, |out| out.write_all(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::DispatchTime;

    #[test]
    fn a_table_has_rates_and_shares() {
        let dispatch = |kernel: &str, ms, flops| DispatchTime {
            kernel: kernel.into(),
            scope: "".into(),
            class: None,
            start_ms: 0.0,
            ms,
            flops,
            bytes: 3_000_000,
            alive: 0,
        };
        let dispatches = vec![dispatch("a.b", 1.0, 0), dispatch("c.d", 3.0, 6_000_000)];
        let text = table(&Timeline { clock: Clock::Device, dispatches });
        let lines: Vec<Vec<&str>> =
            text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["c.d", "75.0", "%", "1", "3.000", "2.0", "1.00"]);
        assert_eq!(lines[2], ["a.b", "25.0", "%", "1", "1.000", "-", "3.00"]);
        assert_eq!(lines[3], ["all", "100.0", "%", "2", "4.000", "1.5", "1.50"]);
    }
}
