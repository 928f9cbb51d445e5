//! Device, kernels, recordings and plans: everything that talks to wgpu.
//!
//! Reading order: [`Kernel`] (one WGSL entry point), [`Recorder`] (dispatches over virtual
//! tensors), [`Plan`] (a recording bound to memory on one device), [`Gpu`] (that device).

mod device;
mod host;
mod kernel;
mod memory;
mod plan;
mod recorder;
mod timeline;
mod tune;

pub use device::{AdapterReport, Gpu, GpuOptions, Profile, adapters};
pub use host::HostFn;
pub use kernel::{Access, Binding, Dialect, Field, Kernel, Params, Source};
pub use memory::{Lifetime, Memory, Spot, assign_slots};
pub use plan::{Description, Plan};
pub use recorder::{Dispatch, Grid, Program, Recorder};
pub use timeline::{Clock, DispatchTime, KernelTime, Timeline};
pub use tune::{Family, Tuned, Tuning, Variant, tune};

pub(crate) use device::{IMMEDIATES, megabytes};
pub(crate) use kernel::{params, source};
