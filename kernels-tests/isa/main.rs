//! What real GPU compilers make of the kernels, without the GPUs: `tools/isa-report`.
//!
//! Mesa's drivers for AMD, Apple and Qualcomm compile for a GPU that is not there
//! (`tools/vulkan --driver radv|honeykrisp|turnip`) and say what became of a pipeline. This program starts
//! itself with each of them, on all pipelines of a training step and of an inference of SeMask-T, and
//! compares what they say with `benches/isa-baseline.json`: more registers or spills than there fail, and so
//! do less than half of the occupancy that shared memory allows and, where multiply-adds are most of a main
//! loop, a smaller share of them. Drivers that are missing, or of another version than the baseline's, are
//! skipped, by name.
//!
//! `--print` prints the table, `--bless` writes the baseline.

mod assembly;
mod compile;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, ExitCode};

use serde::{Deserialize, Serialize};

/// A driver, and what it calls things.
struct Driver {
    name: &'static str,
    registers: &'static str,
    /// What does not fit into them, in any unit: there should be none.
    spills: &'static [&'static str],
    /// Subgroups or invocations that are in flight together, at most.
    occupancy: &'static str,
    /// The compiler's estimate of what a subgroup costs, or the nearest that there is.
    cost: &'static str,
}

const DRIVERS: [Driver; 3] = [
    Driver {
        name: "radv",
        registers: "VGPRs",
        spills: &["Spilled SGPRs", "Spilled VGPRs", "Scratch size"],
        occupancy: "Subgroups per SIMD",
        cost: "Inverse Throughput",
    },
    Driver {
        name: "honeykrisp",
        registers: "GPRs",
        spills: &["Spills", "Fills", "Scratch"],
        occupancy: "Threads",
        cost: "ALU",
    },
    Driver {
        name: "turnip",
        registers: "Registers used",
        spills: &["STP Count", "LDP Count"],
        occupancy: "Max Waves Per Core",
        cost: "Instruction Count",
    },
];

/// Set for the process that a driver is loaded into.
const VARIABLE: &str = "SEMASK_GPU_ISA";
const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/isa-baseline.json");
const RUNNER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/vulkan");

/// Share of multiply-adds from which on a kernel's main loop is there for them.
const ARITHMETIC: f64 = 0.5;

/// What a compiler says of one kernel.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Report {
    /// The driver's numbers, by its own names.
    statistics: BTreeMap<String, f64>,
    /// The occupancy that shared memory allows, where that is known.
    allowed: Option<f64>,
    /// Instructions of the main loop, and how many of them are multiply-adds.
    inner_loop: Option<[usize; 2]>,
}

/// Reports by kernel.
type Reports = BTreeMap<String, Report>;

/// What a driver said when the baseline was made.
#[derive(Serialize, Deserialize)]
struct Baseline {
    /// The driver and its version: another one may need other registers for the same kernel.
    compiler: String,
    kernels: Reports,
}

impl Report {
    fn number(&self, name: &str) -> f64 {
        let found = self.statistics.get(name);
        *found.unwrap_or_else(|| panic!("the driver has no {name:?} in {:?}", self.statistics))
    }

    /// Of the main loop, what multiply-adds are; 0 where there is no such loop.
    fn fma_share(&self) -> f64 {
        self.inner_loop.map_or(0.0, |[all, fmas]| fmas as f64 / all.max(1) as f64)
    }

    fn spills(&self, driver: &Driver) -> f64 {
        driver.spills.iter().map(|name| self.number(name)).sum()
    }

    /// Whether registers keep it from half of the occupancy that shared memory allows.
    fn starves(&self, driver: &Driver) -> bool {
        self.allowed.is_some_and(|allowed| 2.0 * self.number(driver.occupancy) < allowed)
    }

    /// What is worse than in the baseline, or than it must be where that has nothing.
    fn regressions(&self, driver: &Driver, before: Option<&Self>) -> Vec<String> {
        let mut worse = Vec::new();
        let (now, then) = (self.spills(driver), before.map_or(0.0, |b| b.spills(driver)));
        if now > then {
            worse.push(format!("spills {then} -> {now}"));
        }
        if self.starves(driver) && !before.is_some_and(|b| b.starves(driver)) {
            let (occupancy, allowed) = (self.number(driver.occupancy), self.allowed);
            worse.push(format!("occupancy {occupancy} of {}", allowed.unwrap_or_default()));
        }
        let Some(before) = before else { return worse };
        let (now, then) = (self.number(driver.registers), before.number(driver.registers));
        if now > then {
            worse.push(format!("registers {then} -> {now}"));
        }
        let (now, then) = (self.fma_share(), before.fma_share());
        if then >= ARITHMETIC && now < then - 0.01 {
            worse.push(format!("multiply-adds {:.0} % -> {:.0} %", 100.0 * then, 100.0 * now));
        }
        worse
    }
}

/// Starts this program with a driver, and answers its version too. None: the driver is not to be had.
fn compile_with(driver: &str) -> Option<(String, Reports)> {
    let program = std::env::args_os().next().expect("a program has a name");
    let check = Command::new(RUNNER).args(["--driver", driver, "--check"]).output();
    let check = check.ok().filter(|check| check.status.success())?;
    let compiler = String::from_utf8_lossy(&check.stdout).trim().to_owned();
    let mut command = Command::new(RUNNER);
    command.args(["--driver", driver]).arg(program).env(VARIABLE, driver);
    let output = command.output().expect("it was there a moment ago");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{driver}: {complaint}");
    let reports = serde_json::from_slice(&output.stdout).expect("it prints reports");
    Some((compiler, reports))
}

fn print(driver: &Driver, reports: &Reports, all: bool) {
    println!("\n{}", driver.name);
    let wide = reports.keys().map(String::len).max().unwrap_or(0);
    let Driver { registers, occupancy, cost, .. } = driver;
    println!("{:wide$} {registers:>14} spills {occupancy:>18} {cost:>18}  main loop", "kernel");
    for (kernel, report) in reports {
        let share = report.inner_loop.map_or(String::new(), |[all, _]| {
            format!("{:.0} % of {all} are FMAs", 100.0 * report.fma_share())
        });
        let allowed = report.allowed.map_or(String::new(), |allowed| format!(" of {allowed}"));
        println!(
            "{kernel:wide$} {:>14} {:>6} {:>18} {:>18}  {share}",
            report.number(registers),
            report.spills(driver),
            format!("{}{allowed}", report.number(occupancy)),
            report.number(cost),
        );
        for (name, value) in report.statistics.iter().filter(|_| all) {
            println!("{:wide$}   {name} {value}", "");
        }
    }
}

fn main() -> ExitCode {
    if let Ok(driver) = std::env::var(VARIABLE) {
        let reports = compile::all(&driver);
        println!("{}", serde_json::to_string(&reports).expect("plain values"));
        return ExitCode::SUCCESS;
    }
    let has = |flag: &str| std::env::args().any(|a| a == flag);
    let mut baseline: BTreeMap<String, Baseline> = match std::fs::read_to_string(BASELINE) {
        Ok(text) => serde_json::from_str(&text).expect("the baseline is what --bless writes"),
        Err(_) => BTreeMap::new(),
    };
    let (mut passed, mut failed) = (0, 0);
    for driver in &DRIVERS {
        let name = driver.name;
        let Some((compiler, reports)) = compile_with(name) else {
            println!("skipped: {name}, which tools/vulkan cannot get");
            continue;
        };
        if has("--print") || has("--all") {
            print(driver, &reports, has("--all"));
        }
        if has("--bless") {
            baseline.insert(name.into(), Baseline { compiler, kernels: reports });
            continue;
        }
        let Some(before) = baseline.get(name).filter(|before| before.compiler == compiler) else {
            println!("skipped: {compiler}, which is not the one of benches/isa-baseline.json");
            continue;
        };
        for (kernel, report) in &reports {
            let worse = report.regressions(driver, before.kernels.get(kernel));
            if worse.is_empty() {
                passed += 1;
            } else {
                failed += 1;
                println!("{name}: {kernel}: {}", worse.join(", "));
            }
        }
    }
    if has("--bless") {
        let text = serde_json::to_string_pretty(&baseline).expect("plain values");
        std::fs::write(Path::new(BASELINE), text + "\n").expect("benches/ can be written");
    }
    let result = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {result}. {passed} passed; {failed} failed; 0 ignored");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
