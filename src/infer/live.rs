//! [`Live`]: segmentation within an application's own commands.

use super::segmenter::{check, normalisation, too_large};
use super::{Answer, Segmenter};
use crate::gpu::Plan;
use crate::ops::{self, Image};
use crate::{Result, Tape, Tensor, wgpu};

/// Where [`Live`] pictures come from.
#[derive(Clone, Debug)]
pub enum LiveInput<'a> {
    /// A buffer of RGBA bytes, [`Live::input`], that the application fills.
    Buffer {
        /// Rows.
        height: usize,
        /// Pixels per row.
        width: usize,
    },
    /// A texture that the application has already; read at each replay.
    Texture {
        /// A 2-D view with usage `TEXTURE_BINDING`.
        view: &'a wgpu::TextureView,
        /// Whether reading it answers linear light, as with `…Srgb` formats.
        linear: bool,
    },
}

/// Class colours over the picture, drawn into a texture.
#[derive(Clone, Debug)]
pub struct LivePaint<'a> {
    /// The colour of each class.
    pub palette: &'a [[u8; 3]],
    /// 0 leaves the picture, 1 replaces it.
    pub opacity: f32,
    /// A view of an `Rgba8Unorm` texture of the picture's size with usage `STORAGE_BINDING`.
    pub canvas: &'a wgpu::TextureView,
}

/// Labels pictures of one size within an application's own commands: nothing is copied to the host or
/// waited for.
///
/// ```no_run
/// # fn frame(gpu: &semask_gpu::Gpu, segmenter: &semask_gpu::infer::Segmenter) -> semask_gpu::Result<()> {
/// use semask_gpu::infer::LiveInput;
///
/// let live = segmenter.live(LiveInput::Buffer { height: 480, width: 640 }, None)?;
/// let (pixels, offset) = live.input().expect("a buffer").buffer(gpu)?;
/// // Per frame: fill `pixels` on the queue or in the encoder, then
/// let mut encoder = gpu.device().create_command_encoder(&Default::default());
/// live.encode(&mut encoder);
/// gpu.queue().submit([encoder.finish()]);
/// let (labels, offset) = live.labels().buffer(gpu)?; // a byte per pixel, for the next shader
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Live {
    plan: Plan,
    input: Option<Tensor>,
    labels: Tensor,
}

impl Segmenter {
    /// Prepares segmentation within an application's own commands. The plan belongs to the caller.
    ///
    /// # Errors
    ///
    /// [`Error::Limit`](crate::Error::Limit) when the picture is too large for the device.
    ///
    /// # Panics
    ///
    /// If the canvas has another size than the picture, or a picture in a buffer shall be painted
    /// to a texture.
    pub fn live(&self, input: LiveInput<'_>, paint: Option<LivePaint<'_>>) -> Result<Live> {
        let (gpu, model) = (self.gpu(), self.model());
        let mut tape = Tape::inference(gpu.profile());
        let normalise = normalisation(model);
        let (source, linear) = match input {
            LiveInput::Buffer { height, width } => {
                check(gpu, model, 1, [height, width])?;
                (Tensor::pinned("pictures", [1, height, width]), None)
            }
            LiveInput::Texture { view, linear } => {
                let source = Tensor::texture(view);
                check(gpu, model, 1, [source.dims()[0], source.dims()[1]])?;
                (source, Some(linear))
            }
        };
        let image = match linear {
            None => Image::bytes(&source, normalise),
            Some(linear) => Image::texture(&source, linear, normalise),
        };
        let [_, height, width] = image.dims();
        let size = [height, width];
        let answer = Answer::new(&mut tape, model, image);
        let mut recorder = tape.finish();
        let words = answer.labels(&mut recorder, size, size);
        let labels = recorder.keep(&words, "labels");
        recorder.drop_unread(0..recorder.len());
        if let Some(LivePaint { palette, opacity, canvas }) = paint {
            let linear = linear.expect("only textures are painted to textures");
            let mut pixels = [u32::from_le_bytes([0, 0, 0, 255]); 256];
            for (pixel, [r, g, b]) in pixels.iter_mut().zip(palette) {
                *pixel = u32::from_le_bytes([*r, *g, *b, 255]);
            }
            let palette = Tensor::from_slice(gpu, [256], &pixels);
            let canvas = Tensor::texture(canvas);
            let r = &mut recorder;
            ops::paint_texture(r, &labels, &palette, &source, linear, opacity, &canvas);
        }
        let plan = Plan::new(gpu, &recorder).map_err(|e| too_large(e, size))?;
        let input = linear.is_none().then_some(source);
        Ok(Live { plan, input, labels })
    }
}

impl Live {
    /// Appends the work to an application's own commands; the application submits. Dispatches are not
    /// spread over several submissions.
    pub fn encode(&self, encoder: &mut wgpu::CommandEncoder) {
        self.plan.encode(encoder).expect("inference has no host steps");
    }

    /// `[1, height, width]` of RGBA pixels that the application fills; none where it gave a texture.
    pub fn input(&self) -> Option<&Tensor> {
        self.input.as_ref()
    }

    /// The class of each pixel, a byte each, four to an element, row after row without gaps.
    pub fn labels(&self) -> &Tensor {
        &self.labels
    }
}
