//! Inference: pictures to logits and labels, on the device; see [`Segmenter`].
//!
//! - one pass over the whole picture
//! - overlapping windows ([`Slide`]), for pictures of any size
//! - several scales and mirrored, each a [`View`] whose probabilities are averaged
//! - inside an application's own commands ([`Live`]), from and to its buffers and textures
//!
//! # In an application
//!
//! An application that renders with wgpu hands over its device. Pictures and labels stay on it: from a
//! texture, into a texture, without a copy to the host. This needs no default features.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use semask_gpu::checkpoint::{Checkpoint, OPTIMIZER};
//! use semask_gpu::infer::{Live, LiveInput, LivePaint, Segmenter};
//! use semask_gpu::model::{Model, ModelConfig};
//! use semask_gpu::{Gpu, Result, wgpu};
//!
//! /// Once: a trained model on the application's device.
//! fn load(
//!     device: wgpu::Device,
//!     queue: wgpu::Queue,
//!     adapter: &wgpu::AdapterInfo,
//!     path: &Path,
//! ) -> Result<Segmenter> {
//!     let gpu = Gpu::from_wgpu(device, queue, adapter);
//!     let config = ModelConfig { num_classes: 3, ..ModelConfig::preset("quickstart")? };
//!     let model = Model::new(&config)?;
//!     // Skips the optimiser's part of a training checkpoint.
//!     let checkpoint = Checkpoint::read_where(path, |name| !name.starts_with(OPTIMIZER))?;
//!     model.parameters().load(&gpu, &checkpoint, path)?;
//!     Ok(Segmenter::new(&gpu, model))
//! }
//!
//! /// Once for each texture: memory, pipelines, bind groups.
//! fn prepare(
//!     segmenter: &Segmenter,
//!     camera: &wgpu::TextureView,
//!     canvas: &wgpu::TextureView,
//! ) -> Result<Live> {
//!     let palette = [[0, 0, 0], [0, 200, 80], [255, 160, 0]];
//!     let input = LiveInput::Texture { view: camera, linear: false };
//!     segmenter.live(input, Some(LivePaint { palette: &palette, opacity: 0.5, canvas }))
//! }
//!
//! /// For each frame: the application encodes and submits as it always does.
//! fn frame(device: &wgpu::Device, queue: &wgpu::Queue, live: &Live) {
//!     let mut encoder = device.create_command_encoder(&Default::default());
//!     live.encode(&mut encoder);
//!     queue.submit([encoder.finish()]);
//! }
//! ```

mod answer;
mod live;
mod parity;
mod segmenter;
mod slide;

pub(crate) use answer::Answer;
pub use live::{Live, LiveInput, LivePaint};
pub use parity::{INPUT, LayerError, Parity, activations, parity};
pub use segmenter::{Frame, Logits, Segmenter, View};
pub use slide::Slide;
