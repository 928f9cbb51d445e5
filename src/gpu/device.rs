//! [`Gpu`]: a wgpu device and queue, plus the pipelines compiled for them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, OnceLock};

use super::kernel::{Binding, Dialect, Kernel};
use super::recorder::{Dispatch, Recorder};
use super::tune::Tuning;
use crate::{Error, Result};

/// A handle to one GPU. Cheap to clone; clones share the device and the compiled kernels.
#[derive(Clone, Debug)]
pub struct Gpu {
    inner: Arc<Inner>,
    profile: Arc<Profile>,
}

#[derive(Debug)]
struct Inner {
    device: wgpu::Device,
    queue: wgpu::Queue,
    info: wgpu::AdapterInfo,
    checked: bool,
    dispatch_ms: f32,
    pipelines: Mutex<HashMap<PipelineKey, PipelineCell>>,
    modules: Mutex<HashMap<ModuleKey, ModuleCell>>,
    /// What the driver made of pipelines, to begin with in another process.
    cache: OnceLock<wgpu::PipelineCache>,
    lost: Arc<OnceLock<String>>,
    failed: Arc<Mutex<Option<String>>>,
    /// Measured milliseconds per estimated millisecond, as bits of an `f32`.
    slowness: AtomicU32,
}

/// A pipeline that is compiled once, by whoever needs it first.
type PipelineCell = Arc<OnceLock<Arc<Pipeline>>>;

/// Kernel (by address: its sources may differ where its names do not), dialect, constants.
type PipelineKey = (usize, Dialect, Vec<(&'static str, u64)>);

/// WGSL that is read and validated once for all of its entry points.
type ModuleCell = Arc<OnceLock<wgpu::ShaderModule>>;

/// Sources (by address and number), dialect.
type ModuleKey = (usize, usize, Dialect);

/// Bytes of immediates that there are wherever there are any; wgpu accounts for no more than 256.
pub(crate) const IMMEDIATES: u32 = 128;

/// What kernels and plans need to know of a device; [`Gpu::profile`] tells a real one's.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// Whether "GPU" is a driver that runs on the CPU (lavapipe, SwiftShader, WARP): it wants
    /// register tiles without barriers where a GPU wants workgroup tiles.
    pub cpu: bool,
    /// Lanes of a subgroup, where subgroup operations exist and the number is always the same.
    pub subgroup_size: Option<u32>,
    /// Whether kernels made for eight lanes of a CPU's vectors run well: a driver on a CPU whose subgroups
    /// are eight invocations, with integers of 64 bits.
    pub lanes: bool,
    /// Whether shaders have floating-point numbers of 16 bits.
    pub half: bool,
    /// Side of the square matrices of 16-bit numbers that a subgroup multiplies as one (cooperative matrices: matrix
    /// units, tensor cores), with sums of 32 bits.
    pub matrix: Option<u32>,
    /// Largest binding in bytes.
    pub max_binding: u64,
    /// Largest buffer in bytes.
    pub max_buffer: u64,
    /// Most bytes of `Params` that come with a dispatch, as immediates; larger ones are in a uniform buffer.
    pub max_immediates: u32,
    /// Alignment of `Params` in a uniform buffer.
    pub uniform_alignment: u32,
    /// Variants of kernels that were chosen for this device.
    pub tuning: Arc<Tuning>,
}

impl Default for Profile {
    /// A device with WebGPU's default limits.
    fn default() -> Self {
        let limits = wgpu::Limits::default();
        Self {
            cpu: false,
            subgroup_size: None,
            lanes: false,
            half: false,
            matrix: None,
            max_binding: limits.max_storage_buffer_binding_size,
            max_buffer: limits.max_buffer_size,
            max_immediates: 0,
            uniform_alignment: limits.min_uniform_buffer_offset_alignment,
            tuning: Arc::default(),
        }
    }
}

impl Profile {
    /// What an adapter would be like once it is opened.
    pub fn of(report: &AdapterReport) -> Self {
        let AdapterReport { info, limits, features, matrix, .. } = report;
        Self { matrix: *matrix, ..Self::new(info, limits, *features, &GpuOptions::default()) }
    }

    fn new(
        info: &wgpu::AdapterInfo,
        limits: &wgpu::Limits,
        features: wgpu::Features,
        options: &GpuOptions,
    ) -> Self {
        let fixed = info.subgroup_min_size == info.subgroup_max_size;
        let subgroups = features.contains(wgpu::Features::SUBGROUP) && fixed;
        let subgroup_size = (subgroups && !options.no_subgroups).then_some(info.subgroup_min_size);
        let cpu = options.cpu_kernels.unwrap_or(info.device_type == wgpu::DeviceType::Cpu);
        let immediates = features.contains(wgpu::Features::IMMEDIATES) && !options.no_immediates;
        let long = features.contains(wgpu::Features::SHADER_INT64);
        Self {
            cpu,
            subgroup_size,
            lanes: cpu && long && subgroup_size == Some(8),
            half: features.contains(wgpu::Features::SHADER_F16),
            matrix: None,
            max_binding: limits.max_storage_buffer_binding_size,
            max_buffer: limits.max_buffer_size,
            max_immediates: if immediates { limits.max_immediate_size.min(IMMEDIATES) } else { 0 },
            uniform_alignment: limits.min_uniform_buffer_offset_alignment.max(16),
            tuning: Arc::default(),
        }
    }
}

/// How to open a device.
#[derive(Clone, Debug, Default)]
pub struct GpuOptions {
    /// Which adapter: its index in [`adapters`], or a part of its name. Absent: the best.
    pub adapter: Option<String>,
    /// Whether shaders check every index. Slower; the kernel tests run with and without it.
    pub checked: bool,
    /// Never uses subgroup operations.
    pub no_subgroups: bool,
    /// Never hands over `Params` as immediates.
    pub no_immediates: bool,
    /// Longest that one dispatch is meant to run, by estimate, in milliseconds: those that are longer
    /// are cut. Absent: 100, a twentieth of what makes Windows reset a device.
    pub dispatch_ms: Option<f32>,
    /// Uses the kernels for CPU drivers (`true`) or for GPUs (`false`) whatever the device is.
    pub cpu_kernels: Option<bool>,
}

/// What [`adapters`] tells of one adapter.
#[derive(Clone, Debug)]
pub struct AdapterReport {
    /// Name, driver, backend, kind.
    pub info: wgpu::AdapterInfo,
    /// Its limits.
    pub limits: wgpu::Limits,
    /// Its features.
    pub features: wgpu::Features,
    /// [`Profile::matrix`], if subgroups are in use.
    pub matrix: Option<u32>,
    /// Whether [`Gpu::open`] takes it by default.
    pub chosen: bool,
}

fn instance() -> wgpu::Instance {
    wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env())
}

/// Best first: discrete, integrated, virtual, other, CPU.
fn rank(info: &wgpu::AdapterInfo) -> u32 {
    match info.device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    }
}

async fn sorted_adapters() -> Vec<wgpu::Adapter> {
    let mut adapters = instance().enumerate_adapters(wgpu::Backends::PRIMARY).await;
    adapters.sort_by_key(|a| rank(&a.get_info()));
    adapters
}

/// The machine's adapters, best first.
pub fn adapters() -> Vec<AdapterReport> {
    let adapters = pollster::block_on(sorted_adapters());
    let report = |(i, adapter): (usize, wgpu::Adapter)| AdapterReport {
        info: adapter.get_info(),
        limits: adapter.limits(),
        features: adapter.features(),
        matrix: matrix_side(&adapter),
        chosen: i == 0,
    };
    adapters.into_iter().enumerate().map(report).collect()
}

/// [`Profile::matrix`] of an adapter, which needs subgroups of one size.
fn matrix_side(adapter: &wgpu::Adapter) -> Option<u32> {
    use wgpu::CooperativeScalarType::{F16, F32};
    use wgpu::Features;
    let info = adapter.get_info();
    let wanted =
        Features::EXPERIMENTAL_COOPERATIVE_MATRIX | Features::SHADER_F16 | Features::SUBGROUP;
    let fixed = info.subgroup_min_size == info.subgroup_max_size;
    if !fixed || !adapter.features().contains(wanted) {
        return None;
    }
    let all = adapter.cooperative_matrix_properties();
    let offered = |side: &u32| {
        all.iter().any(|it| {
            [it.m_size, it.n_size, it.k_size] == [*side; 3]
                && (it.ab_type, it.cr_type) == (F16, F32)
        })
    };
    [16, 8].into_iter().find(offered)
}

impl Gpu {
    /// Opens an adapter.
    ///
    /// # Errors
    ///
    /// [`Error::NoGpu`] when there is no such adapter or it refuses the device.
    pub fn open(options: &GpuOptions) -> Result<Self> {
        pollster::block_on(Self::open_async(options))
    }

    /// [`open`](Self::open) for applications that must not block.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub async fn open_async(options: &GpuOptions) -> Result<Self> {
        let adapters = sorted_adapters().await;
        let names: Vec<_> = adapters.iter().map(|a| a.get_info().name).collect();
        let fits = |i: usize, wanted: &str| {
            wanted.parse() == Ok(i) || names[i].to_lowercase().contains(&wanted.to_lowercase())
        };
        let wanted = options.adapter.as_deref();
        let found = (0..names.len()).find(|&i| wanted.is_none_or(|wanted| fits(i, wanted)));
        let adapter = found.map(|i| &adapters[i]).ok_or_else(|| {
            Error::NoGpu(match wanted {
                Some(wanted) if !names.is_empty() => {
                    format!("no adapter is called {wanted:?}; there are {}", names.join(", "))
                }
                _ => "no driver for Vulkan, Metal or DX12 was found; on Linux without a GPU \
                      install a software driver (Debian, Ubuntu: mesa-vulkan-drivers)"
                    .into(),
            })
        })?;
        // What we can make use of, no more: asking for all that an adapter has turns on features
        // that cost time.
        let useful = wgpu::Features::SUBGROUP
            | wgpu::Features::TIMESTAMP_QUERY
            | wgpu::Features::SHADER_INT64
            | wgpu::Features::SHADER_F16
            | wgpu::Features::IMMEDIATES
            | wgpu::Features::PIPELINE_CACHE;
        let matrix = matrix_side(adapter);
        let (experimental, experiments) = match matrix {
            // SAFETY: the token asks to know that experimental features may have faults. Only the kernels of
            // shaders/matmul_matrix.wgsl use this one, and only where the user had them timed and chosen.
            #[allow(unsafe_code, reason = "wgpu wants consent to experimental features")]
            Some(_) => (wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX, unsafe {
                wgpu::ExperimentalFeatures::enabled()
            }),
            None => (wgpu::Features::empty(), wgpu::ExperimentalFeatures::disabled()),
        };
        let (device, queue) = adapter
            .request_device(&wgpu::DeviceDescriptor {
                label: Some("semask-gpu"),
                required_features: adapter.features() & useful | experimental,
                required_limits: adapter.limits(),
                experimental_features: experiments,
                ..Default::default()
            })
            .await
            .map_err(|e| Error::NoGpu(format!("{}: {e}", adapter.get_info().name)))?;
        let mut gpu = Self::wrap(device, queue, &adapter.get_info(), options);
        if gpu.profile.subgroup_size.is_some() {
            gpu.profile = Profile { matrix, ..(*gpu.profile).clone() }.into();
        }
        gpu.listen();
        Ok(gpu)
    }

    /// Wraps a device that an application already owns, so that both can share buffers and
    /// textures. `info` is what the application's adapter says of itself. WebGPU's default limits and
    /// no features suffice.
    ///
    /// The device's callbacks for its loss and for uncaptured errors stay the application's: it hears
    /// of both, also where the engine's own work is the cause, and the engine only of what wgpu's
    /// functions return.
    pub fn from_wgpu(device: wgpu::Device, queue: wgpu::Queue, info: &wgpu::AdapterInfo) -> Self {
        Self::wrap(device, queue, info, &GpuOptions::default())
    }

    fn wrap(
        device: wgpu::Device,
        queue: wgpu::Queue,
        info: &wgpu::AdapterInfo,
        options: &GpuOptions,
    ) -> Self {
        let profile = Profile::new(info, &device.limits(), device.features(), options);
        let inner = Inner {
            device,
            queue,
            info: info.clone(),
            checked: options.checked,
            dispatch_ms: options.dispatch_ms.unwrap_or(100.0),
            pipelines: Mutex::default(),
            modules: Mutex::default(),
            cache: OnceLock::new(),
            lost: Arc::default(),
            failed: Arc::default(),
            slowness: AtomicU32::new(1f32.to_bits()),
        };
        Self { inner: Arc::new(inner), profile: profile.into() }
    }

    /// Takes note of the device's loss and of errors that nobody asked for; see [`wait`](Self::wait).
    fn listen(&self) {
        let Inner { device, lost, failed, .. } = &*self.inner;
        let lost = lost.clone();
        device.set_device_lost_callback(move |reason, message| {
            let _ = lost.set(format!("{reason:?}: {message}"));
        });
        let failed = failed.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            failed.lock().expect("no panic while held").get_or_insert(error.to_string());
        }));
    }

    /// The wgpu device.
    pub fn device(&self) -> &wgpu::Device {
        &self.inner.device
    }

    /// The wgpu queue.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.inner.queue
    }

    /// The adapter's name.
    pub fn name(&self) -> &str {
        &self.inner.info.name
    }

    /// Whether it is a card of its own, shares the machine's memory, or is software.
    pub fn kind(&self) -> wgpu::DeviceType {
        self.inner.info.device_type
    }

    /// What kernels and plans need to know of the device.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// The same device with variants of kernels chosen for it.
    #[must_use]
    pub fn with_tuning(&self, tuning: Tuning) -> Self {
        let profile = Profile { tuning: tuning.into(), ..(*self.profile).clone() };
        Self { inner: self.inner.clone(), profile: profile.into() }
    }

    /// Waits for all work submitted so far.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] when the device was lost or some earlier work was refused.
    pub fn wait(&self, doing: &'static str) -> Result<()> {
        self.wait_for(None, doing)
    }

    /// Waits for `submission` and all before it; for all so far if it is none.
    fn wait_for(
        &self,
        submission_index: Option<wgpu::SubmissionIndex>,
        doing: &'static str,
    ) -> Result<()> {
        let polled = self.device().poll(wgpu::PollType::Wait { submission_index, timeout: None });
        let failed = |reason: String| Err(Error::Device { doing, reason });
        // After a loss calls succeed silently, so our own flags decide.
        if let Some(reason) = self.inner.lost.get() {
            return failed(format!("the device was lost ({reason})"));
        }
        if let Some(reason) = self.inner.failed.lock().expect("no panic while held").take() {
            return failed(reason);
        }
        polled.map(|_| ()).or_else(|e| failed(e.to_string()))
    }

    /// A buffer of `size` bytes for storage bindings and copies.
    pub(crate) fn allocate(&self, label: &str, size: u64) -> Result<wgpu::Buffer> {
        if size > self.profile().max_buffer {
            return Err(Error::Limit {
                what: format!("buffer `{label}`"),
                needed: megabytes(size),
                allowed: megabytes(self.profile().max_buffer),
            });
        }
        let scope = self.device().push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = self.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size,
            usage: wgpu::BufferUsages::STORAGE
                | wgpu::BufferUsages::COPY_SRC
                | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        match pollster::block_on(scope.pop()) {
            None => Ok(buffer),
            Some(_) => Err(Error::Device {
                doing: "allocating memory",
                reason: format!("no room for `{label}`, {}", megabytes(size)),
            }),
        }
    }

    /// Bytes `offset..offset + size` of `buffer`, after all work submitted so far.
    pub(crate) fn download(
        &self,
        buffer: &wgpu::Buffer,
        offset: u64,
        size: u64,
    ) -> Result<Vec<u8>> {
        self.start_download(&[(buffer, offset, size)]).finish()
    }

    /// Submits a copy of each `(buffer, offset, size)`, one after another in what comes back.
    pub(super) fn start_download(&self, parts: &[(&wgpu::Buffer, u64, u64)]) -> Download {
        let staging = self.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("readback"),
            size: parts.iter().map(|(.., size)| size).sum(),
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = self.device().create_command_encoder(&Default::default());
        let mut at = 0;
        for (buffer, offset, size) in parts {
            encoder.copy_buffer_to_buffer(buffer, *offset, &staging, at, *size);
            at += size;
        }
        let submission = self.queue().submit([encoder.finish()]);
        let (sender, mapped) = std::sync::mpsc::channel();
        staging.map_async(wgpu::MapMode::Read, .., move |result| {
            // The receiver is gone only when the wait failed.
            let _ = sender.send(result);
        });
        Download { gpu: self.clone(), staging, submission, mapped }
    }

    /// Longest that one dispatch is meant to run.
    pub(super) fn dispatch_ms(&self) -> f32 {
        self.inner.dispatch_ms
    }

    /// How much slower the device is than estimates say; see [`super::Plan`].
    pub(super) fn slowness(&self) -> f32 {
        f32::from_bits(self.inner.slowness.load(Ordering::Relaxed))
    }

    /// Takes note that work estimated to take `estimated_ms` took `measured_ms`.
    pub(super) fn measured(&self, estimated_ms: f32, measured_ms: f32) {
        // Only for long work: submitting costs time too.
        if estimated_ms > 0.0 && measured_ms > 20.0 {
            let mixed = 0.5 * self.slowness() + 0.5 * measured_ms / estimated_ms;
            self.inner.slowness.store(mixed.clamp(0.01, 1e4).to_bits(), Ordering::Relaxed);
        }
    }

    /// Compiles the kernels of a recording that are not yet, on several threads, and answers how many
    /// they were. Plans do it by themselves.
    pub fn compile(&self, recorder: &Recorder) -> usize {
        let mut missing: Vec<(&Dispatch, PipelineCell)> = Vec::new();
        for dispatch in &recorder.dispatches {
            let place = self.place(dispatch);
            if place.get().is_none() && !missing.iter().any(|(_, known)| Arc::ptr_eq(known, &place))
            {
                missing.push((dispatch, place));
            }
        }
        let compile = |(dispatch, place): &(&Dispatch, PipelineCell)| {
            place.get_or_init(|| Arc::new(self.compile_one(dispatch)));
        };
        // A browser has no threads, and compiles in the background anyway.
        if cfg!(target_family = "wasm") {
            missing.iter().for_each(compile);
        } else {
            let next = AtomicUsize::new(0);
            let work = || {
                while let Some(kernel) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                    compile(kernel);
                }
            };
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            std::thread::scope(|scope| {
                for _ in 1..threads.min(missing.len()) {
                    scope.spawn(work);
                }
                work();
            });
        }
        missing.len()
    }

    /// The compiled pipeline of a dispatch; compiled on first use.
    pub(super) fn pipeline(&self, dispatch: &Dispatch) -> Arc<Pipeline> {
        self.place(dispatch).get_or_init(|| Arc::new(self.compile_one(dispatch))).clone()
    }

    /// Where the pipeline of a dispatch is, or will be.
    fn place(&self, dispatch: &Dispatch) -> PipelineCell {
        let Dispatch { kernel, constants, dialect, .. } = dispatch;
        let bits = constants.iter().map(|(name, value)| (*name, value.to_bits())).collect();
        let key = (std::ptr::from_ref(*kernel).addr(), *dialect, bits);
        let mut pipelines = self.inner.pipelines.lock().expect("no panic while held");
        pipelines.entry(key).or_default().clone()
    }

    /// The adapter and driver, in words that change whenever what was compiled for them, or measured
    /// on them, must not be used again.
    pub fn identity(&self) -> String {
        let wgpu::AdapterInfo { name, vendor, device, driver, driver_info, backend, .. } =
            &self.inner.info;
        format!("{name}, {vendor:x}:{device:x}, {driver} {driver_info}, {backend}")
    }

    /// Starts with pipelines that an earlier process had compiled, from
    /// [`compiled`](Self::compiled) of a device of the same [`identity`](Self::identity). Does
    /// nothing where the driver cannot keep any, or once pipelines were compiled.
    #[cfg(feature = "cli")]
    pub(crate) fn restore(&self, compiled: Option<&[u8]>) {
        if !self.device().features().contains(wgpu::Features::PIPELINE_CACHE) {
            return;
        }
        let descriptor = wgpu::PipelineCacheDescriptor {
            label: Some("semask-gpu"),
            data: compiled,
            fallback: true,
        };
        // SAFETY: callers pass what `compiled` gave, whole, as a checksum tells them; that it is of this
        // driver wgpu and the driver check again.
        #[allow(unsafe_code, reason = "drivers trust what they once wrote")]
        let cache = unsafe { self.device().create_pipeline_cache(&descriptor) };
        let _ = self.inner.cache.set(cache);
    }

    /// What [`restore`](Self::restore) wants; none if that was never called or would be in vain.
    #[cfg(feature = "cli")]
    pub(crate) fn compiled(&self) -> Option<Vec<u8>> {
        self.inner.cache.get()?.get_data()
    }

    /// The WGSL of a dispatch, ready to make pipelines of.
    fn module(&self, dispatch: &Dispatch) -> wgpu::ShaderModule {
        let Dispatch { kernel, dialect, .. } = dispatch;
        let key = (kernel.sources.as_ptr().addr(), kernel.sources.len(), *dialect);
        let cell = {
            let mut modules = self.inner.modules.lock().expect("no panic while held");
            modules.entry(key).or_default().clone()
        };
        cell.get_or_init(|| self.new_module(kernel, *dialect)).clone()
    }

    fn new_module(&self, kernel: &Kernel, dialect: Dialect) -> wgpu::ShaderModule {
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(kernel.file),
            source: wgpu::ShaderSource::Wgsl(kernel.wgsl(dialect).into()),
        };
        if self.inner.checked {
            return self.device().create_shader_module(descriptor);
        }
        let checks = wgpu::ShaderRuntimeChecks::unchecked();
        // SAFETY: kernels guard every index by their `Params`, which ops derive from the
        // shapes of the bound tensors, and every loop ends at such a bound. The kernel tests run
        // on two devices, with checks and without, and compare both with the same reference.
        #[allow(unsafe_code, reason = "bounds checks cost up to half of a kernel's time")]
        unsafe {
            self.device().create_shader_module_trusted(descriptor, checks)
        }
    }

    fn compile_one(&self, dispatch: &Dispatch) -> Pipeline {
        let kernel = dispatch.kernel;
        let label = kernel.label();
        let module = self.module(dispatch);
        let pipeline = self.device().create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&label),
            // The layout is read off the shader, so bindings are declared once, in WGSL.
            layout: None,
            module: &module,
            entry_point: Some(kernel.entry),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &dispatch.constants,
                // Every kernel writes its workgroup memory before it reads it.
                zero_initialize_workgroup_memory: false,
            },
            cache: self.inner.cache.get(),
        });
        let layout = pipeline.get_bind_group_layout(0);
        Pipeline { label, pipeline, layout, bindings: kernel.declarations() }
    }
}

/// Bytes on their way to the host.
pub(super) struct Download {
    gpu: Gpu,
    staging: wgpu::Buffer,
    submission: wgpu::SubmissionIndex,
    mapped: Receiver<Result<(), wgpu::BufferAsyncError>>,
}

impl Download {
    /// Waits for the bytes, and for no work submitted after them.
    pub(super) fn finish(self) -> Result<Vec<u8>> {
        const DOING: &str = "reading a tensor back";
        let failed = |reason: String| Error::Device { doing: DOING, reason };
        self.gpu.wait_for(Some(self.submission), DOING)?;
        // Another thread's wait may be the one that calls back, a moment later than ours returns.
        let mapped = self.mapped.recv().map_err(|e| failed(e.to_string()))?;
        mapped.map_err(|e| failed(e.to_string()))?;
        let bytes = self.staging.get_mapped_range(..).map_err(|e| failed(e.to_string()))?;
        Ok(bytes[..].to_vec())
    }
}

/// A compiled kernel and how to bind it.
#[derive(Debug)]
pub(super) struct Pipeline {
    pub(super) label: String,
    pub(super) pipeline: wgpu::ComputePipeline,
    pub(super) layout: wgpu::BindGroupLayout,
    /// Of `params`, then of the tensors in the order of `Kernel::bindings`.
    pub(super) bindings: &'static [Binding],
}

/// `size` in MiB, for messages.
pub(crate) fn megabytes(size: u64) -> String {
    format!("{:.1} MiB", size as f64 / f64::from(1 << 20))
}
