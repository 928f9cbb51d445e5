//! [`Plan`]: a recording bound to memory on one device, replayable.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::device::{Download, Pipeline, megabytes};
use super::host::{self, BoundHostStep, Phase};
use super::kernel::Access;
use super::memory::{ALIGNMENT, Lifetime, Memory, Spot, assign_slots};
use super::recorder::{Dispatch, Grid, MAX_GROUPS, Recorder};
use super::timeline::{Clock, DispatchTime, Timeline};
use super::{Gpu, Profile};
use crate::tensor::{Place, TensorId};
use crate::{Error, Result, Tensor};

/// Longest that one submission is meant to run. Windows resets a device after 2 s.
const SUBMISSION_MS: f32 = 500.0;

/// A recording with its memory, pipelines and bind groups: a training step, a forward pass.
///
/// Replaying costs no planning and no allocation. The work goes to the device in submissions of
/// bounded length, and dispatches that are long are cut along their grid, which changes no bit; the
/// estimate of their length is corrected by what replays really take. Where the recording has
/// [host steps](Recorder::host), a replay waits for what they read, runs them and goes on.
#[derive(Debug)]
pub struct Plan {
    gpu: Gpu,
    steps: Vec<Step>,
    host_steps: Vec<BoundHostStep>,
    phases: Vec<Phase>,
    description: Description,
}

/// One dispatch of the recording.
#[derive(Debug)]
struct Step {
    pipeline: Arc<Pipeline>,
    /// Where it may be cut: the first workgroup of a part. Only 0 for a kernel that cannot be cut.
    starts: Vec<u32>,
    /// One for each start, whose `Params` say so; only one where these are immediates.
    bind_groups: Vec<wgpu::BindGroup>,
    /// `Params`, if they are immediates, and where in them the first workgroup is.
    immediates: Option<(Vec<u8>, Option<usize>)>,
    grid: Grid,
    estimated_ms: f32,
    // For profiles; see `DispatchTime`.
    scope: Arc<str>,
    class: Option<Arc<str>>,
    flops: u64,
    bytes: u64,
    alive: u64,
}

/// What one call to the device does of a [`Step`].
struct Part<'a> {
    step: &'a Step,
    first: u32,
    bind_group: &'a wgpu::BindGroup,
    grid: Grid,
    estimated_ms: f32,
}

impl Step {
    /// The step in parts of at most `limit_ms`, as far as that can be estimated.
    fn parts(&self, limit_ms: f32) -> impl Iterator<Item = Part<'_>> {
        let count = self.starts.len();
        let each = (limit_ms * count as f32 / self.estimated_ms) as usize;
        let [x, y, z] = self.grid.0;
        let each = if each >= count {
            count
        } else {
            // Workgroups of a part lie in one line: the last line of a rectangle might reach into
            // the next part, and some kernels add to what is there.
            let wide = self.starts.get(1).map_or(1, |first| MAX_GROUPS / *first as usize);
            each.clamp(1, wide.max(1))
        };
        (0..count).step_by(each).map(move |i| {
            let first = self.starts[i];
            let next = self.starts.get(i + each).map_or(x * y, |next| *next);
            let whole = each == count;
            Part {
                step: self,
                first,
                bind_group: self.bind_groups.get(i).unwrap_or(&self.bind_groups[0]),
                grid: if whole { self.grid } else { Grid([next - first, 1, z]) },
                estimated_ms: self.estimated_ms * (next - first) as f32 / (x * y) as f32,
            }
        })
    }
}

/// What a plan takes, known before anything is allocated.
#[derive(Clone, Debug, Default)]
pub struct Description {
    /// Per kernel, by name: how often it runs, its arithmetic and the bytes that it binds.
    pub kernels: BTreeMap<String, KernelUse>,
    /// Memory that outlives a step, by label, in bytes.
    pub pinned: Vec<(String, u64)>,
    /// Sizes of the buffers that the tensors of a step share, in bytes.
    pub slots: Vec<u64>,
    /// What those tensors would take without sharing, in bytes.
    pub unshared: u64,
    /// Most that is alive at one time: no sharing can do with less, in bytes.
    pub lower_bound: u64,
    /// Steps that run on the host.
    pub host_steps: usize,
}

/// See [`Description::kernels`].
#[derive(Clone, Copy, Debug, Default)]
pub struct KernelUse {
    /// Dispatches.
    pub count: u64,
    /// Multiplications and additions.
    pub flops: u64,
    /// Bytes of all bound tensors.
    pub bytes: u64,
}

impl Description {
    /// Bytes that planned tensors take together.
    pub fn planned_bytes(&self) -> u64 {
        self.slots.iter().sum()
    }

    /// Bytes that outlive a step.
    pub fn pinned_bytes(&self) -> u64 {
        self.pinned.iter().map(|(_, size)| size).sum()
    }

    /// Dispatches.
    pub fn dispatches(&self) -> u64 {
        self.kernels.values().map(|k| k.count).sum()
    }

    /// Multiplications and additions.
    pub fn flops(&self) -> u64 {
        self.kernels.values().map(|k| k.flops).sum()
    }
}

/// Where the tensors of a recording are.
struct Layout {
    spot_of: HashMap<TensorId, Spot>,
    /// Bytes of planned tensors at each dispatch.
    alive: Vec<u64>,
    description: Description,
}

impl Layout {
    fn new(recorder: &Recorder, share: bool) -> Self {
        let mut lifetimes: Vec<Lifetime> = Vec::new();
        // Of each tensor those that some dispatch binds for the other kind of access.
        let mut apart: Vec<Vec<usize>> = Vec::new();
        let mut index: HashMap<TensorId, usize> = HashMap::new();
        let mut pinned: Vec<Memory> = Vec::new();
        let mut description =
            Description { host_steps: recorder.host_steps(), ..Description::default() };
        let mut host_steps = recorder.host_steps.iter().peekable();
        for at in 0..=recorder.len() {
            while let Some(step) = host_steps.next_if(|step| step.at == at) {
                for tensor in &step.reads {
                    let known =
                        resolve(recorder, tensor).is_some() || index.contains_key(&tensor.id());
                    assert!(known, "{} reads a tensor that nothing wrote", step.label);
                }
                for tensor in step.writes.iter().filter(|t| resolve(recorder, t).is_none()) {
                    let i = *index.entry(tensor.id()).or_insert_with(|| {
                        lifetimes.push(Lifetime { first: at, last: at, size: slot_size(tensor) });
                        lifetimes.len() - 1
                    });
                    lifetimes[i].last = at;
                }
            }
            let Some(dispatch) = recorder.dispatches.get(at) else { break };
            let label = dispatch.kernel.label();
            let mut bound: Vec<(usize, Access)> = Vec::new();
            for (tensor, binding) in
                dispatch.tensors.iter().zip(&dispatch.kernel.declarations()[1..])
            {
                let half = binding.real && dispatch.dialect.half;
                assert_eq!(tensor.is_half(), half, "{label}: bits of {:?}", tensor.shape());
                if texture(tensor).is_some() {
                    continue;
                }
                if let Some((memory, _)) = resolve(recorder, tensor) {
                    if !pinned.iter().any(|m| m.is(&memory)) {
                        pinned.push(memory);
                    }
                    continue;
                }
                let size = slot_size(tensor);
                let i = *index.entry(tensor.id()).or_insert_with(|| {
                    // A step's memory starts out with what the last replay left in it.
                    assert!(
                        binding.access == Access::Write,
                        "{label} reads a tensor that nothing wrote"
                    );
                    lifetimes.push(Lifetime { first: at, last: at, size });
                    lifetimes.len() - 1
                });
                lifetimes[i].last = at;
                bound.push((i, binding.access));
            }
            apart.resize(lifetimes.len(), Vec::new());
            for (i, access) in &bound {
                let others = bound.iter().filter(|(_, other)| other != access);
                apart[*i].extend(others.map(|(j, _)| *j));
            }
            let usage = description.kernels.entry(label).or_default();
            usage.count += 1;
            usage.flops += dispatch.flops;
            usage.bytes += dispatch.bytes();
        }
        apart.resize(lifetimes.len(), Vec::new());
        let (spots, sizes) = if share {
            assign_slots(&lifetimes, &apart, recorder.profile().max_buffer)
        } else {
            let own = (0..lifetimes.len()).map(|slot| Spot { slot, offset: 0 });
            (own.collect(), lifetimes.iter().map(|l| l.size).collect())
        };
        let alive = alive(&lifetimes, recorder.len());
        description.lower_bound = alive.iter().copied().max().unwrap_or(0);
        description.unshared = lifetimes.iter().map(|l| l.size).sum();
        description.slots = sizes;
        description.pinned = pinned.iter().map(|m| (m.label().to_owned(), m.size())).collect();
        let spot_of = index.into_iter().map(|(id, i)| (id, spots[i])).collect();
        Self { spot_of, alive, description }
    }
}

/// Bytes that planned tensors take while each dispatch runs.
fn alive(lifetimes: &[Lifetime], dispatches: usize) -> Vec<u64> {
    // One for host steps at the end, and one after that.
    let mut changes = vec![(0, 0); dispatches + 2];
    for life in lifetimes {
        changes[life.first].0 += life.size;
        changes[life.last + 1].1 += life.size;
    }
    let mut now = 0;
    let mut at = |(born, died): (u64, u64)| {
        now = now + born - died;
        now
    };
    changes[..dispatches].iter().map(|&change| at(change)).collect()
}

/// The memory and offset of a tensor that has a place of its own.
fn resolve(recorder: &Recorder, tensor: &Tensor) -> Option<(Memory, u64)> {
    let at = recorder.aliases.get(&tensor.id()).unwrap_or(tensor);
    match at.place() {
        Place::Pinned { memory, offset } => Some((memory.clone(), *offset)),
        Place::Planned | Place::Texture(_) => None,
    }
}

/// The texture that a tensor is, if it is one.
fn texture(tensor: &Tensor) -> Option<&wgpu::TextureView> {
    match tensor.place() {
        Place::Texture(view) => Some(view),
        _ => None,
    }
}

/// Bytes that a tensor takes; vectors of four may be bound, so a multiple of 16.
fn slot_size(tensor: &Tensor) -> u64 {
    tensor.bytes().max(16).next_multiple_of(16)
}

/// A guess of how long a dispatch runs, for cutting submissions.
fn estimate_ms(profile: &Profile, dispatch: &Dispatch) -> f32 {
    // Low for the kind: twenty cores of a laptop GPU, two of a CPU.
    let (flops_per_ms, bytes_per_ms) = if profile.cpu { (2e7, 4e6) } else { (5e8, 2e7) };
    (dispatch.flops as f32 / flops_per_ms).max(dispatch.bytes() as f32 / bytes_per_ms)
}

impl Plan {
    /// What a plan of `recorder` takes; allocates nothing.
    ///
    /// # Panics
    ///
    /// If some kernel reads a tensor that nothing wrote.
    pub fn describe(recorder: &Recorder) -> Description {
        Layout::new(recorder, true).description
    }

    /// The tensors of `recorder` that a device like `profile` cannot bind, each once and at its first
    /// use: [`Plan::new`] would fail with the first of these [`Error::Limit`]s.
    pub fn refusals(recorder: &Recorder, profile: &Profile) -> Vec<Error> {
        let mut seen = std::collections::HashSet::new();
        let mut errors = Vec::new();
        for dispatch in &recorder.dispatches {
            for (i, tensor) in dispatch.tensors.iter().enumerate() {
                if let Some(error) =
                    refusal(dispatch, i, profile).filter(|_| seen.insert(tensor.id()))
                {
                    errors.push(error);
                }
            }
        }
        errors
    }

    /// Allocates memory, compiles kernels and binds them.
    ///
    /// # Errors
    ///
    /// [`Error::Limit`] when some tensor is larger than the device can bind, [`Error::Device`] when
    /// its memory does not suffice.
    ///
    /// # Panics
    ///
    /// As [`describe`](Self::describe); and if one dispatch reads and writes one buffer.
    pub fn new(gpu: &Gpu, recorder: &Recorder) -> Result<Self> {
        Self::build(gpu, recorder, true)
    }

    /// A plan in which every tensor has a buffer of its own: for finding out whether sharing them is
    /// to blame for a result.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn without_sharing(gpu: &Gpu, recorder: &Recorder) -> Result<Self> {
        Self::build(gpu, recorder, false)
    }

    fn build(gpu: &Gpu, recorder: &Recorder, share: bool) -> Result<Self> {
        let Layout { spot_of, alive, description } = Layout::new(recorder, share);
        check_bindings(gpu, recorder)?;
        gpu.compile(recorder);
        let slots = description.slots.iter().enumerate();
        let slots = slots
            .map(|(i, size)| gpu.allocate(&format!("slot {i}"), size.next_multiple_of(ALIGNMENT)))
            .collect::<Result<Vec<_>>>()?;
        let planned = |tensor: &Tensor| {
            let Spot { slot, offset } = spot_of[&tensor.id()];
            (&slots[slot], offset)
        };

        let cuts: Vec<_> = recorder.dispatches.iter().map(|d| starts(gpu, d)).collect();
        let (uniforms, offsets) = upload_params(gpu, recorder, &cuts);
        let mut offsets = offsets.into_iter();
        let mut steps = Vec::with_capacity(recorder.len());
        for (dispatch, starts) in recorder.dispatches.iter().zip(cuts) {
            let pipeline = gpu.pipeline(dispatch);
            let places: Vec<_> = dispatch.tensors.iter().map(|t| resolve(recorder, t)).collect();
            let mut entries = Vec::with_capacity(places.len());
            for ((tensor, place), binding) in
                dispatch.tensors.iter().zip(&places).zip(&pipeline.bindings[1..])
            {
                let resource = if let Some(view) = texture(tensor) {
                    wgpu::BindingResource::TextureView(view)
                } else {
                    let (buffer, offset) = match place {
                        Some((memory, offset)) => (memory.buffer(gpu)?, *offset),
                        None => planned(tensor),
                    };
                    let size = wgpu::BufferSize::new(slot_size(tensor));
                    wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size })
                };
                entries.push(wgpu::BindGroupEntry { binding: binding.number, resource });
            }
            let bind = |params: Option<u64>| {
                let params = params.map(|offset| wgpu::BindGroupEntry {
                    binding: pipeline.bindings[0].number,
                    resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                        buffer: uniforms.as_ref().expect("it has this dispatch's"),
                        offset,
                        size: wgpu::BufferSize::new(uniform_size(dispatch)),
                    }),
                });
                let entries: Vec<_> = params.into_iter().chain(entries.iter().cloned()).collect();
                gpu.device().create_bind_group(&wgpu::BindGroupDescriptor {
                    label: Some(&pipeline.label),
                    layout: &pipeline.layout,
                    entries: &entries,
                })
            };
            let immediates = dispatch.dialect.immediates;
            let bind_groups = if immediates {
                vec![bind(None)]
            } else {
                offsets.by_ref().take(starts.len()).map(|at| bind(Some(at))).collect()
            };
            let immediates = immediates.then(|| (dispatch.params.clone(), dispatch.first_group()));
            let estimated_ms = estimate_ms(gpu.profile(), dispatch);
            steps.push(Step {
                pipeline,
                starts,
                bind_groups,
                immediates,
                grid: dispatch.grid,
                estimated_ms,
                scope: dispatch.scope.clone(),
                class: dispatch.class.clone(),
                flops: dispatch.flops,
                bytes: dispatch.bytes(),
                alive: alive[steps.len()],
            });
        }
        let place = |tensor: &Tensor| match resolve(recorder, tensor) {
            Some((memory, offset)) => Ok((memory.buffer(gpu)?.clone(), offset)),
            None => {
                let (buffer, offset) = planned(tensor);
                Ok((buffer.clone(), offset))
            }
        };
        let bind = |step: &host::HostStep| {
            let places = |list: &[Tensor]| list.iter().map(place).collect::<Result<Vec<_>>>();
            let (reads, writes) = (places(&step.reads)?, places(&step.writes)?);
            Ok(BoundHostStep { step: step.clone(), reads, writes })
        };
        let host_steps = recorder.host_steps.iter().map(bind).collect::<Result<_>>()?;
        gpu.wait("planning")?;
        let phases = host::phases(recorder);
        Ok(Self { gpu: gpu.clone(), steps, host_steps, phases, description })
    }

    /// What the plan takes.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// How often a replay calls the device: once per dispatch, and once more for every cut.
    pub fn calls(&self) -> usize {
        self.parts().count()
    }

    /// Sends the work to the device and returns: at once, or, where there are host steps, when the last
    /// of them has run.
    ///
    /// # Errors
    ///
    /// Those of host steps, and [`Error::Device`] when the device was lost while one waited for it.
    /// The rest of the work was not sent then.
    pub fn replay(&self) -> Result<()> {
        self.replay_timed().map(|_| ())
    }

    /// [`replay`](Self::replay); answers how long host steps computed.
    fn replay_timed(&self) -> Result<Duration> {
        self.walk(|steps| {
            self.submit(steps);
            Ok(())
        })
    }

    /// Goes through the plan: `send` sends dispatches to the device, host steps run between them. Answers how
    /// long these computed.
    fn walk(&self, mut send: impl FnMut(&[Step]) -> Result<()>) -> Result<Duration> {
        let mut computing = Duration::ZERO;
        let mut downloads: HashMap<usize, Download> = HashMap::new();
        for phase in &self.phases {
            match *phase {
                Phase::Dispatches(start, end) => send(&self.steps[start..end])?,
                Phase::Download(i) => {
                    downloads.insert(i, self.host_steps[i].download(&self.gpu));
                }
                Phase::Host(i) => {
                    let download = downloads.remove(&i).expect("downloads come first");
                    computing += self.host_steps[i].run(&self.gpu, download)?;
                }
            }
        }
        Ok(computing)
    }

    /// Sends `steps` to the device, in submissions of bounded length.
    fn submit(&self, steps: &[Step]) {
        let mut encoder = self.gpu.device().create_command_encoder(&Default::default());
        let mut pass = encoder.begin_compute_pass(&Default::default());
        let slowness = self.gpu.slowness();
        let mut total = 0.0;
        for part in steps.iter().flat_map(|step| self.parts_of(step)) {
            let ms = part.estimated_ms * slowness;
            if total > 0.0 && total + ms > SUBMISSION_MS {
                drop(pass);
                self.gpu.queue().submit([encoder.finish()]);
                encoder = self.gpu.device().create_command_encoder(&Default::default());
                pass = encoder.begin_compute_pass(&Default::default());
                total = 0.0;
            }
            part.encode(&mut pass);
            total += ms;
        }
        drop(pass);
        self.gpu.queue().submit([encoder.finish()]);
    }

    /// Sends the work to the device and waits for it.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] when the device was lost; those of host steps.
    pub fn run(&self) -> Result<()> {
        let start = Instant::now();
        let computing = self.replay_timed()?;
        self.gpu.wait("running a plan")?;
        let estimated = self.steps.iter().map(|s| s.estimated_ms).sum();
        let elapsed = start.elapsed().saturating_sub(computing);
        self.gpu.measured(estimated, elapsed.as_secs_f32() * 1e3);
        Ok(())
    }

    /// Appends the work to an application's own commands; the application submits.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when there are host steps: commands that wait for the host cannot be part of
    /// one submission.
    pub fn encode(&self, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        if let Some(host) = self.host_steps.first() {
            return Err(Error::invalid(
                format!("host step `{}`", host.step.label),
                "cannot be part of an application's commands; replay or run the plan",
            ));
        }
        let mut pass = encoder.begin_compute_pass(&Default::default());
        self.parts().for_each(|part| part.encode(&mut pass));
        Ok(())
    }

    /// All that the device is told to do, in order.
    fn parts(&self) -> impl Iterator<Item = Part<'_>> {
        self.steps.iter().flat_map(|step| self.parts_of(step))
    }

    fn parts_of<'a>(&self, step: &'a Step) -> impl Iterator<Item = Part<'a>> + use<'a> {
        step.parts(self.gpu.dispatch_ms() / self.gpu.slowness())
    }

    /// Replays once and measures every dispatch, by the device's clock where it has one that means
    /// something, otherwise by the host's. Of a plan that has [`run`](Self::run): the first time,
    /// memory is fresh and drivers still compile. Host steps run, unmeasured.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub fn profile(&self) -> Result<Timeline> {
        let timestamps = self.gpu.device().features().contains(wgpu::Features::TIMESTAMP_QUERY);
        let by_device = if timestamps { self.measure_by_device()? } else { None };
        let (clock, spans) = match by_device {
            Some(spans) => (Clock::Device, spans),
            None => (Clock::Host, self.measure_by_host()?),
        };
        let steps = self.steps.iter().zip(spans);
        let dispatches = steps.map(|(step, (start_ms, ms))| DispatchTime {
            kernel: step.pipeline.label.clone(),
            scope: step.scope.clone(),
            class: step.class.clone(),
            start_ms,
            ms,
            flops: step.flops,
            bytes: step.bytes,
            alive: step.alive,
        });
        Ok(Timeline { clock, dispatches: dispatches.collect() })
    }

    /// Start and length of every step in milliseconds, from timestamps around passes of their own.
    /// None if they make no sense: some drivers take them when the commands are submitted.
    fn measure_by_device(&self) -> Result<Option<Vec<(f64, f64)>>> {
        const MOST: usize = wgpu::QUERY_SET_MAX_QUERIES as usize / 2;
        let device = self.gpu.device();
        let period_ms = f64::from(self.gpu.queue().get_timestamp_period()) / 1e6;
        let mut spans = Vec::with_capacity(self.steps.len());
        // By the host's clock, and by the device's from the first timestamp to the last.
        let (mut host_ms, mut first, mut last) = (0.0, None, 0.0);
        let mut sensible = true;
        self.walk(|mut rest| {
            while !rest.is_empty() {
                let mut total = 0.0;
                let fits = |step: &&Step| {
                    total += step.estimated_ms * self.gpu.slowness();
                    total <= SUBMISSION_MS
                };
                let count = rest.iter().take(MOST).take_while(fits).count().max(1);
                let (now, later) = rest.split_at(count);
                rest = later;

                let query_set = device.create_query_set(&wgpu::QuerySetDescriptor {
                    label: Some("profile"),
                    ty: wgpu::QueryType::Timestamp,
                    count: 2 * count as u32,
                });
                let size = 16 * count as u64;
                let resolved = device.create_buffer(&wgpu::BufferDescriptor {
                    label: Some("timestamps"),
                    size,
                    usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
                    mapped_at_creation: false,
                });
                let mut encoder = device.create_command_encoder(&Default::default());
                for (i, step) in now.iter().enumerate() {
                    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                        label: Some(&step.pipeline.label),
                        timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                            query_set: &query_set,
                            beginning_of_pass_write_index: Some(2 * i as u32),
                            end_of_pass_write_index: Some(2 * i as u32 + 1),
                        }),
                    });
                    self.parts_of(step).for_each(|part| part.encode(&mut pass));
                }
                encoder.resolve_query_set(&query_set, 0..2 * count as u32, &resolved, 0);
                let commands = encoder.finish();
                let start = Instant::now();
                self.gpu.queue().submit([commands]);
                self.gpu.wait("profiling")?;
                host_ms += start.elapsed().as_secs_f64() * 1e3;
                let bytes = self.gpu.download(&resolved, 0, size)?;
                let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&bytes);
                for pair in ticks.chunks_exact(2) {
                    let [from, to] = [pair[0], pair[1]].map(|ticks| ticks as f64 * period_ms);
                    let origin = *first.get_or_insert(from);
                    sensible &= last <= from && from <= to;
                    last = to;
                    spans.push((from - origin, to - from));
                }
            }
            Ok(())
        })?;
        let sum: f64 = spans.iter().map(|(_, ms)| ms).sum();
        // Submitting takes time that the device does not see.
        let plausible = sum <= 1.1 * host_ms + 0.1 && sum + 2.0 >= 0.5 * host_ms;
        Ok((sensible && plausible).then_some(spans))
    }

    /// Start and length of every step in milliseconds, each submitted by itself and waited for.
    fn measure_by_host(&self) -> Result<Vec<(f64, f64)>> {
        let mut spans = Vec::with_capacity(self.steps.len());
        let mut start_ms = 0.0;
        self.walk(|steps| {
            for step in steps {
                let mut encoder = self.gpu.device().create_command_encoder(&Default::default());
                let mut pass = encoder.begin_compute_pass(&Default::default());
                self.parts_of(step).for_each(|part| part.encode(&mut pass));
                drop(pass);
                let commands = encoder.finish();
                let start = Instant::now();
                self.gpu.queue().submit([commands]);
                self.gpu.wait("profiling")?;
                let ms = start.elapsed().as_secs_f64() * 1e3;
                spans.push((start_ms, ms));
                start_ms += ms;
            }
            Ok(())
        })?;
        Ok(spans)
    }
}

impl Part<'_> {
    fn encode(&self, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&self.step.pipeline.pipeline);
        pass.set_bind_group(0, self.bind_group, &[]);
        if let Some((params, first_group)) = &self.step.immediates {
            pass.set_immediates(0, params);
            if let Some(at) = first_group.filter(|_| self.first > 0) {
                pass.set_immediates(at as u32, bytemuck::bytes_of(&self.first));
            }
        }
        let Grid([x, y, z]) = self.grid;
        pass.dispatch_workgroups(x, y, z);
    }
}

/// Where a dispatch may be cut: the first workgroup of every part, so many that parts stay short on
/// a device that is a good deal slower than estimated.
fn starts(gpu: &Gpu, dispatch: &Dispatch) -> Vec<u32> {
    const SLOWER: f32 = 16.0;
    const MOST: f32 = 256.0;
    let parts = (SLOWER * estimate_ms(gpu.profile(), dispatch) / gpu.dispatch_ms()).min(MOST);
    if parts <= 1.0 || dispatch.first_group().is_none() {
        return vec![0];
    }
    let [x, y, _] = dispatch.grid.0;
    let each = ((x * y) as f32 / parts).ceil().clamp(1.0, MAX_GROUPS as f32);
    (0..x * y).step_by(each as usize).collect()
}

/// Bytes of `Params` in a uniform buffer: the size of a struct in WGSL is a multiple of its alignment, which
/// is 16 with vectors of four in it.
fn uniform_size(dispatch: &Dispatch) -> u64 {
    dispatch.params.len().next_multiple_of(16) as u64
}

/// All `Params` that are no immediates in one buffer, with the first workgroup of each part; and their
/// offsets.
fn upload_params(
    gpu: &Gpu,
    recorder: &Recorder,
    cuts: &[Vec<u32>],
) -> (Option<wgpu::Buffer>, Vec<u64>) {
    let alignment = gpu.profile().uniform_alignment as usize;
    let mut bytes: Vec<u8> = Vec::new();
    let mut offsets = Vec::new();
    let dispatches = recorder.dispatches.iter().zip(cuts);
    for (dispatch, starts) in dispatches.filter(|(dispatch, _)| !dispatch.dialect.immediates) {
        for first in starts {
            bytes.resize(bytes.len().next_multiple_of(alignment), 0);
            offsets.push(bytes.len() as u64);
            bytes.extend_from_slice(&dispatch.params);
            if let Some(at) = dispatch.first_group() {
                let at = bytes.len() - dispatch.params.len() + at;
                bytes[at..at + 4].copy_from_slice(bytemuck::bytes_of(first));
            }
        }
    }
    if bytes.is_empty() {
        return (None, offsets);
    }
    bytes.resize(bytes.len().next_multiple_of(16), 0);
    let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some("params"),
        size: bytes.len() as u64,
        usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    gpu.queue().write_buffer(&buffer, 0, &bytes);
    (Some(buffer), offsets)
}

/// Why a device cannot bind the `i`-th tensor of a dispatch, if so.
fn refusal(dispatch: &Dispatch, i: usize, profile: &Profile) -> Option<Error> {
    let tensor = &dispatch.tensors[i];
    let size = slot_size(tensor);
    (texture(tensor).is_none() && size > profile.max_binding).then(|| Error::Limit {
        what: format!(
            "`{}` of {}, {:?},",
            dispatch.kernel.bindings[i],
            dispatch.kernel.label(),
            tensor.shape()
        ),
        needed: megabytes(size),
        allowed: megabytes(profile.max_binding),
    })
}

/// Refuses what wgpu would refuse, in words that name the kernel.
fn check_bindings(gpu: &Gpu, recorder: &Recorder) -> Result<()> {
    for dispatch in &recorder.dispatches {
        let bindings = &dispatch.kernel.declarations()[1..];
        let bound: Vec<_> = dispatch.tensors.iter().zip(bindings).collect();
        for (i, (tensor, binding)) in bound.iter().enumerate() {
            if let Some(error) = refusal(dispatch, i, gpu.profile()) {
                return Err(error);
            }
            for (other, other_binding) in &bound[..i] {
                let same = match (resolve(recorder, tensor), resolve(recorder, other)) {
                    (Some((a, _)), Some((b, _))) => a.is(&b),
                    (None, None) => tensor.id() == other.id(),
                    _ => false,
                };
                assert!(
                    !same || binding.access == other_binding.access,
                    "{} reads and writes one buffer as {}",
                    dispatch.kernel.label(),
                    dispatch.kernel.bindings[i]
                );
            }
        }
    }
    Ok(())
}
