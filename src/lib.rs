//! SeMask semantic segmentation, training and inference, on hand-written WGSL kernels.
//!
//! # The idea: a step is a recording
//!
//! Ops do not run. They append dispatches to a [`Recorder`](gpu::Recorder), with tensors that are only an
//! identity and a shape; a [`Tape`] also keeps how to go backwards, which appends more dispatches. The
//! finished recording of a forward pass or of a whole training step becomes a [`Plan`](gpu::Plan): tensors
//! whose lives do not meet share memory, pipelines are compiled, buffers bound. From then on a step is a
//! replay of the plan, without planning or allocation; what changes between replays is the contents of
//! tensors that have memory of their own, such as inputs and parameters.
//!
//! ```no_run
//! use semask_gpu::gpu::{GpuOptions, Plan};
//! use semask_gpu::{Gpu, Tape, Tensor, ops};
//!
//! # fn main() -> semask_gpu::Result<()> {
//! let gpu = Gpu::open(&GpuOptions::default())?;
//! let x = Tensor::from_slice(&gpu, [2, 3], &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]);
//! let weight = Tensor::from_slice(&gpu, [1, 3], &[0.1f32, 0.2, 0.3]).tracked();
//!
//! // Record: nothing runs yet.
//! let mut tape = Tape::training(gpu.profile());
//! let y = ops::linear(&mut tape, &x, &weight, None);
//! let dy = Tensor::from_slice(&gpu, [2, 1], &[1.0f32, 1.0]);
//! let (mut recorder, gradients) = tape.backward_from(&[(&y, dy)]);
//! let y = recorder.keep(&y, "y");
//! let dweight = gradients.get(&weight).expect("the weight is tracked");
//! let dweight = recorder.keep(dweight, "dweight");
//!
//! // Plan once, replay as often as wanted.
//! let plan = Plan::new(&gpu, &recorder)?;
//! plan.run()?;
//! println!("y = {:?}, dweight = {:?}", y.read(&gpu)?, dweight.read(&gpu)?);
//! # Ok(())
//! # }
//! ```
//!
//! # Modules, in reading order
//!
//! | module | what is in it |
//! | --- | --- |
//! | [`tensor`], [`tape`] | identities and shapes; the forward pass and its way back |
//! | [`gpu`] | device, kernels, recordings, plans, memory: everything that talks to wgpu |
//! | [`ops`] | one file per op, next to its `shaders/*.wgsl`: formula, forward, backward |
//! | [`nn`] | layers, and parameters under the names that published checkpoints have |
//! | [`model`] | the SeMask-Swin encoder, the Semantic-FPN head, presets, counts |
//! | [`optim`] | AdamW, gradient norm and clipping |
//! | [`infer`] | pictures to labels; inside an application's own commands, too |
//! | [`checkpoint`], [`random`], [`error`] | safetensors files; counter-based random numbers; errors |
//! | `data`, `train`, `picture`, `bench`, `cli` | data sets, the training loop, pictures for people, benchmarks, the program |
//!
//! To see how an op is made, read [`ops::layer_norm()`] in `src/ops/layer_norm.rs`, with
//! `shaders/layer_norm.wgsl` and `kernels-tests/layer_norm.rs`. Modules use those above them in this order:
//! `cli` → `train`, [`infer`] → [`model`] → [`nn`] → [`ops`] → [`tape`] → [`gpu`] → wgpu.
//!
//! # Features
//!
//! - `cli` (default): the program, and the modules `data`, `train`, `picture`, `bench` and `cli`. Without it
//!   the crate is the engine for applications: no command line, no image decoding, no threads.
//!
//! [`wgpu`] is re-exported, so that applications use the same version.

pub mod checkpoint;
pub mod error;
pub mod gpu;
pub mod infer;
pub mod model;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod random;
pub mod tape;
pub mod tensor;
#[cfg(test)]
mod testing;

#[cfg(feature = "cli")]
pub mod bench;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "cli")]
pub mod data;
#[cfg(feature = "cli")]
pub mod picture;
#[cfg(feature = "cli")]
pub mod train;

pub use error::{Error, Result};
pub use gpu::Gpu;
pub use tape::Tape;
pub use tensor::{Shape, Tensor};
pub use wgpu;
