//! `semask-gpu devices`.

use std::process::ExitCode;

use crate::gpu::{AdapterReport, adapters};
use crate::wgpu::{DeviceType, Features};
use crate::{Error, Result};
use serde_json::json;

use super::{complain, print};

const EXAMPLES: &str = "\
EXAMPLES:
  semask-gpu devices
  semask-gpu devices --device nvidia      which one would that be?
  semask-gpu devices --json";

const NONE: &str = "\
semask-gpu: no GPU driver was found (Vulkan, Metal or DX12)
  Linux, AMD or Intel:      install mesa-vulkan-drivers (Debian, Ubuntu), vulkan-radeon or vulkan-intel (Arch)
  Linux, NVIDIA:            install NVIDIA's driver with its Vulkan part (nvidia-vulkan-icd, libnvidia-gl)
  Linux without a GPU:      install mesa-vulkan-drivers; its lavapipe runs on the CPU
  Windows, macOS:           update the system or the graphics driver
  in a container:           let the GPU in (docker run --gpus all, with NVIDIA_DRIVER_CAPABILITIES=all)";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, device: Option<&str>) -> Result<ExitCode> {
    let reports = adapters();
    let used = choose(&reports, device);
    if args.json {
        let list: Vec<_> = reports
            .iter()
            .enumerate()
            .map(|(i, report)| {
                let AdapterReport { info, limits, .. } = report;
                json!({
                    "index": i,
                    "name": info.name,
                    "kind": kind(info.device_type),
                    "backend": info.backend.to_str(),
                    "driver": info.driver,
                    "driver_info": info.driver_info,
                    "max_binding_bytes": limits.max_storage_buffer_binding_size,
                    "max_buffer_bytes": limits.max_buffer_size,
                    "subgroup_size": [info.subgroup_min_size, info.subgroup_max_size],
                    "features": features(report),
                    "used": used == Some(i),
                })
            })
            .collect();
        print(serde_json::to_string_pretty(&list).expect("plain values"))?;
    } else {
        for (i, report) in reports.iter().enumerate() {
            print(describe(i, report, used == Some(i)))?;
        }
    }
    match (used, device) {
        (Some(_), _) => Ok(ExitCode::SUCCESS),
        (None, Some(wanted)) if !reports.is_empty() => {
            let names: Vec<_> = reports.iter().map(|r| r.info.name.as_str()).collect();
            let names = names.join(", ");
            Err(Error::NoGpu(format!("no adapter is called {wanted:?}; there are {names}")))
        }
        _ => {
            complain(NONE);
            Ok(ExitCode::FAILURE)
        }
    }
}

/// The adapter that `--device` means, by the rule of `Gpu::open`.
pub(super) fn choose(reports: &[AdapterReport], device: Option<&str>) -> Option<usize> {
    let fits = |i: usize, wanted: &str| {
        let name = reports[i].info.name.to_lowercase();
        wanted.parse() == Ok(i) || name.contains(&wanted.to_lowercase())
    };
    (0..reports.len()).find(|&i| device.is_none_or(|wanted| fits(i, wanted)))
}

fn kind(kind: DeviceType) -> &'static str {
    match kind {
        DeviceType::DiscreteGpu => "discrete GPU",
        DeviceType::IntegratedGpu => "integrated GPU",
        DeviceType::VirtualGpu => "virtual GPU",
        DeviceType::Cpu => "software on the CPU",
        DeviceType::Other => "other",
    }
}

/// What we make use of.
fn features(report: &AdapterReport) -> Vec<String> {
    let AdapterReport { info, features, .. } = report;
    let fixed = info.subgroup_min_size == info.subgroup_max_size;
    let used = [
        (features.contains(Features::SUBGROUP) && fixed, "subgroups"),
        (features.contains(Features::TIMESTAMP_QUERY), "timestamps"),
        (features.contains(Features::SHADER_F16), "16-bit numbers"),
    ];
    let used = used.iter().filter(|(has, _)| *has).map(|(_, name)| (*name).to_owned());
    let matrix = report.matrix.map(|side| format!("matrix units of {side} × {side} (if tuned)"));
    used.chain(matrix).collect()
}

fn describe(i: usize, report: &AdapterReport, used: bool) -> String {
    let AdapterReport { info, limits, .. } = report;
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let driver = [info.driver.as_str(), info.driver_info.as_str()]
        .into_iter()
        .filter(|text| !text.is_empty())
        .collect::<Vec<_>>()
        .join(", ");
    let driver = if driver.is_empty() { "unknown".into() } else { driver };
    let lanes = match (info.subgroup_min_size, info.subgroup_max_size) {
        (0, _) => "none".into(),
        (a, b) if a == b => a.to_string(),
        (a, b) => format!("{a} to {b}"),
    };
    let features = features(report);
    let features = if features.is_empty() { "none".into() } else { features.join(", ") };
    format!(
        "{i}  {}{}\n   kind           {}\n   backend        {}\n   driver         {driver}\n   \
         largest binding {}, largest buffer {}\n   subgroup size  {lanes}\n   in use         {features}",
        info.name,
        if used { "  (used)" } else { "" },
        kind(info.device_type),
        info.backend.to_str(),
        mib(limits.max_storage_buffer_binding_size),
        mib(limits.max_buffer_size),
    )
}
