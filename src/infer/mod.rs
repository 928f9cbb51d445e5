//! Inference: pictures to logits and labels, on the device; see [`Segmenter`].
//!
//! - one pass over the whole picture
//! - overlapping windows ([`Slide`]), for pictures of any size
//! - several scales and mirrored, each a [`View`] whose probabilities are averaged
//! - inside an application's own commands ([`Live`]), from and to its buffers and textures

mod live;
mod segmenter;
mod slide;

pub use live::{Live, LiveInput, LivePaint};
pub use segmenter::{Frame, Logits, Segmenter, View};
pub use slide::Slide;
