//! What the host does for a step, beside the device: [`HostCost`].

use std::time::Instant;

use serde::Serialize;

use super::median;
use crate::gpu::{IMMEDIATES, Plan, Profile, Recorder};
use crate::model::Model;
use crate::train::recipe::Recipe;
use crate::train::step::Step;
use crate::{Error, Gpu, Result};

/// Time on the core of the thread that prepares and replays a step: other programs and the driver's own
/// threads are not in it.
#[derive(Clone, Debug, Serialize)]
pub struct HostCost {
    /// `"inference"` or `"training"`.
    pub step: &'static str,
    /// Dispatches of the step.
    pub dispatches: usize,
    /// Milliseconds from the model to a recording.
    pub recording_ms: f64,
    /// Milliseconds from the recording to a plan, pipelines compiled.
    pub planning_ms: f64,
    /// Pipelines that were compiled for the step, and for no step before it.
    pub pipelines: usize,
    /// Milliseconds by the clock to compile them.
    pub compiling_ms: f64,
    /// Microseconds per dispatch to record and submit the step's commands.
    pub replay_us: f64,
    /// The same on a device whose driver takes no time, [`no_driver`]: what we and wgpu need.
    pub own_replay_us: f64,
}

/// Measures the steps of `recipe` on `gpu`, with one picture of `size` (height, width).
///
/// # Errors
///
/// When the device has no room for a step.
pub fn measure(gpu: &Gpu, recipe: &Recipe, size: [usize; 2]) -> Result<Vec<HostCost>> {
    let none = no_driver(gpu.kind())?;
    // Each device has its own memory for parameters.
    let [model, other] = [Model::new(&recipe.model)?, Model::new(&recipe.model)?];
    let steps: [(&str, &Record); 2] = [
        ("inference", &|model, profile| Ok(Step::inference(model, profile, size).recorder)),
        ("training", &|model, profile| {
            Ok(Step::training(recipe, model, profile, 1, size)?.recorder)
        }),
    ];
    let cost = |(step, record): (&'static str, &Record)| {
        let recorder = record(&model, gpu.profile())?;
        let start = Instant::now();
        let pipelines = gpu.compile(&recorder);
        let compiling_ms = start.elapsed().as_secs_f64() * 1e3;
        let [recording_ms, planning_ms, replay_us] =
            times(gpu, 3, &|| record(&model, gpu.profile()))?;
        // As in a loop: the first ones after planning take twice as long, for memory.
        let [.., own_replay_us] = times(&none, 30, &|| record(&other, none.profile()))?;
        Ok(HostCost {
            step,
            dispatches: recorder.len(),
            recording_ms,
            planning_ms,
            pipelines,
            compiling_ms,
            replay_us,
            own_replay_us,
        })
    };
    steps.into_iter().map(cost).collect()
}

type Record<'a> = dyn Fn(&Model, &Profile) -> Result<Recorder> + 'a;

/// Medians of milliseconds to record and to plan, and of microseconds to replay a dispatch, `replays` times for each
/// of three plans.
fn times(gpu: &Gpu, replays: usize, record: &dyn Fn() -> Result<Recorder>) -> Result<[f64; 3]> {
    const PLANS: usize = 3;
    let mut all = [(); 3].map(|()| Vec::new());
    for _ in 0..PLANS {
        let start = thread_ms();
        let recorder = record()?;
        all[0].push(thread_ms() - start);
        let start = thread_ms();
        let plan = Plan::new(gpu, &recorder)?;
        all[1].push(thread_ms() - start);
        for _ in 0..replays {
            let start = thread_ms();
            plan.replay()?;
            all[2].push(1e3 * (thread_ms() - start) / recorder.len() as f64);
            gpu.wait("measuring the host's cost")?;
        }
    }
    Ok(all.map(|mut times| median(&mut times).expect("three at least")))
}

/// A device of a kind, with WebGPU's default limits and immediates, whose driver does nothing and takes no
/// time for it.
///
/// # Errors
///
/// [`Error::NoGpu`] if wgpu has none, which would be a bug.
pub fn no_driver(kind: wgpu::DeviceType) -> Result<Gpu> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::NOOP;
    descriptor.backend_options.noop.enable = true;
    let instance = wgpu::Instance::new(descriptor);
    let none = |error: String| Error::NoGpu(format!("wgpu's device without a driver: {error}"));
    let adapter = pollster::block_on(instance.request_adapter(&Default::default()))
        .map_err(|e| none(e.to_string()))?;
    let wanted = wgpu::DeviceDescriptor {
        required_features: wgpu::Features::IMMEDIATES,
        required_limits: wgpu::Limits { max_immediate_size: IMMEDIATES, ..wgpu::Limits::default() },
        ..Default::default()
    };
    let (device, queue) =
        pollster::block_on(adapter.request_device(&wanted)).map_err(|e| none(e.to_string()))?;
    let info = wgpu::AdapterInfo { device_type: kind, ..adapter.get_info() };
    Ok(Gpu::from_wgpu(device, queue, &info))
}

/// Milliseconds that this thread has spent on a core; elsewhere than on Linux those of the clock.
fn thread_ms() -> f64 {
    thread_local!(static START: Instant = Instant::now());
    // The kernel's account is of the time until the thread was last scheduled, so let it be.
    std::thread::yield_now();
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let ns = text.and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok());
    ns.map_or_else(|| START.with(|start| start.elapsed().as_secs_f64() * 1e3), |ns| ns / 1e6)
}
