//! [`Segmenter`]: a model on a device, and the plans for the sizes of pictures it has met.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::Slide;
use super::slide::Window;
use crate::gpu::{Plan, Recorder};
use crate::model::Model;
use crate::ops::predict::{self, Part, Resizing};
use crate::ops::{self, Normalize};
use crate::{Error, Gpu, Result, Tape, Tensor};

/// Plans that are kept, and what their shared memory may come to in bytes. One is always kept.
const MAX_PLANS: usize = 8;
const MAX_PLANNED: u64 = 2 << 30;

/// Most bytes of a band of a map of all classes at full resolution.
const BAND_BYTES: u64 = 64 << 20;

/// Longest side of a picture; see [`ops::resize`].
const MAX_SIDE: usize = 32_767;

/// A picture as the engine takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Rows.
    pub height: usize,
    /// Pixels per row.
    pub width: usize,
    /// `[height, width, 4]`: red, green, blue, alpha. A pixel of alpha 0 is padding: whatever its
    /// colour, the network sees the mean.
    pub rgba: Vec<u8>,
}

impl Frame {
    /// A picture of `rgba`, `[height, width, 4]`.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when there are not `4 · height · width` bytes, or none.
    pub fn new(height: usize, width: usize, rgba: Vec<u8>) -> Result<Self> {
        if rgba.is_empty() || Some(rgba.len()) != height.checked_mul(width).map(|n| 4 * n) {
            let reason = format!("{} bytes are no {height} × {width} RGBA pixels", rgba.len());
            return Err(Error::invalid("picture", reason));
        }
        Ok(Self { height, width, rgba })
    }

    /// A picture of `rgb`, `[height, width, 3]`.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when there are not `3 · height · width` bytes, or none.
    pub fn from_rgb(height: usize, width: usize, rgb: &[u8]) -> Result<Self> {
        if Some(rgb.len()) != height.checked_mul(width).map(|n| 3 * n) {
            let reason = format!("{} bytes are no {height} × {width} RGB pixels", rgb.len());
            return Err(Error::invalid("picture", reason));
        }
        let (pixels, _) = rgb.as_chunks::<3>();
        let rgba = pixels.iter().flat_map(|&[r, g, b]| [r, g, b, 255]).collect();
        Self::new(height, width, rgba)
    }

    /// Left and right exchanged.
    pub fn mirrored(&self) -> Self {
        let mut rgba = Vec::with_capacity(self.rgba.len());
        for row in self.rgba.chunks_exact(4 * self.width) {
            row.as_chunks::<4>().0.iter().rev().for_each(|pixel| rgba.extend_from_slice(pixel));
        }
        Self { rgba, ..*self }
    }

    /// What lies within a window.
    fn cut(&self, window: Window) -> Vec<u8> {
        let Window { at: [top, left], size: [rows, columns] } = window;
        let row = |y: usize| &self.rgba[4 * (y * self.width + left)..][..4 * columns];
        (top..top + rows).flat_map(row).copied().collect()
    }
}

/// One look at a picture: at a scale, mirrored or not.
#[derive(Clone, Debug)]
pub struct View {
    /// The picture at the size at which the network shall see it, not mirrored.
    pub frame: Frame,
    /// Whether the network sees it mirrored; its answer is mirrored back.
    pub mirror: bool,
}

/// What the network says of a picture, before softmax.
#[derive(Clone, Debug, PartialEq)]
pub struct Logits {
    /// Rows: a quarter of the picture's, rounded up.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// K
    pub classes: usize,
    /// `[height, width, K]`
    pub values: Vec<f32>,
}

/// A model on a device that labels pictures of any size.
///
/// Memory and bind groups of a size are planned when it is first met and kept while there is room.
/// Plans read the model's parameters where they are: a training run that changes them in place may
/// keep its segmenter.
#[derive(Debug)]
pub struct Segmenter {
    gpu: Gpu,
    model: Arc<Model>,
    /// The last used at the end.
    plans: Vec<Cached>,
}

/// A plan for pictures of one size.
#[derive(Debug)]
struct Cached {
    key: Key,
    plan: Plan,
    /// `[B, H, W]` of `u32`
    input: Tensor,
    output: Tensor,
}

/// What a [`Cached`] plan takes and makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    batch: usize,
    /// Height and width that the network sees.
    size: [usize; 2],
    /// Height and width of the labels; none: the plan ends with logits.
    labels: Option<[usize; 2]>,
}

impl Segmenter {
    /// A segmenter with `model`, whose parameters are on `gpu` or will be by the first picture.
    pub fn new(gpu: &Gpu, model: impl Into<Arc<Model>>) -> Self {
        Self { gpu: gpu.clone(), model: model.into(), plans: Vec::new() }
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Frees the plans.
    pub fn forget(&mut self) {
        self.plans.clear();
    }

    /// What the network says of `frame`, at the size at which its head says it.
    ///
    /// # Errors
    ///
    /// [`Error::Limit`] when the picture is too large for the device, [`Error::Device`] when that
    /// fails.
    pub fn logits(&mut self, frame: &Frame) -> Result<Logits> {
        let output = self.pass(frame.height, frame.width, &frame.rgba)?;
        let [_, height, width, classes] = *output.dims() else { unreachable!("an image") };
        Ok(Logits { height, width, classes, values: output.read(&self.gpu)? })
    }

    /// The class of each pixel of a picture of `height` × `width`: `[height, width]`, 255 where the
    /// model's answer is not a number.
    ///
    /// Each view's logits are resized to the view's size and from there to the picture's, both
    /// bilinearly; softmax; mirrored back; the mean over the views; the class of the largest, the
    /// first of equal ones. With a single view, softmax changes nothing and is left out.
    ///
    /// With `slide` the logits of a view are means over its windows' instead. Then pictures of any
    /// size fit; memory grows with a few rows of windows only.
    ///
    /// # Errors
    ///
    /// [`Error::Limit`] when the picture is too large for the device, [`Error::Device`] when that
    /// fails.
    ///
    /// # Panics
    ///
    /// If there is no view.
    pub fn labels(
        &mut self,
        views: &[View],
        height: usize,
        width: usize,
        slide: Option<&Slide>,
    ) -> Result<Vec<u8>> {
        assert!(!views.is_empty(), "labels: no view");
        check_sides(height, width)?;
        if let ([View { frame, mirror: false }], None) = (views, slide) {
            let [labels] = self.batch(&[frame], height, width)?.try_into().expect("of one frame");
            return Ok(labels);
        }
        let goal = [height, width];
        let classes = self.model.config().num_classes;
        let bands = bands(height, width, classes);
        let mut sums: Option<Vec<Tensor>> = None;
        let mut labels = Vec::with_capacity(height * width);
        for view in views {
            let mirrored;
            let frame = if view.mirror {
                mirrored = view.frame.mirrored();
                &mirrored
            } else {
                &view.frame
            };
            let mut source = match slide {
                Some(slide) => Source::windows(frame, slide)?,
                None => Source::Whole(self.pass(frame.height, frame.width, &frame.rgba)?),
            };
            let size = [frame.height, frame.width];
            let first = sums.is_none();
            for (i, rows) in bands.iter().enumerate() {
                let part = source.rows(self, rows.clone(), goal)?;
                let via = matches!(source, Source::Whole(_)).then_some(size);
                let resizing = Resizing { via, to: goal };
                let mut recorder = Recorder::new(self.gpu.profile());
                let r = &mut recorder;
                if views.len() == 1 && !view.mirror {
                    let words = predict::argmax_rows(r, part, resizing, rows.clone());
                    let words = recorder.keep(&words, "labels");
                    self.run(&recorder, size)?;
                    self.take_labels(&words, rows.len() * width, &mut labels)?;
                    continue;
                }
                let shape = |rows: &Range<usize>| [1, rows.len(), width, classes];
                let sums = sums.get_or_insert_with(|| {
                    let sum = |rows| Tensor::pinned("probabilities", shape(rows));
                    bands.iter().map(sum).collect()
                });
                let (mirror, sum) = (view.mirror, &sums[i]);
                predict::softmax_accumulate(r, part, resizing, rows.start, mirror, sum, first);
                self.run(&recorder, size)?;
            }
        }
        for (sum, rows) in sums.iter().flatten().zip(&bands) {
            let mut recorder = Recorder::new(self.gpu.profile());
            let resizing = Resizing::to(rows.len(), width);
            let words = predict::argmax(&mut recorder, sum, resizing);
            let words = recorder.keep(&words, "labels");
            self.run(&recorder, goal)?;
            self.take_labels(&words, rows.len() * width, &mut labels)?;
        }
        Ok(labels)
    }

    /// The labels of several pictures of one size at once, each looked at as a whole, as
    /// [`labels`](Self::labels) of size `height` × `width`.
    ///
    /// Where the device cannot hold all of them together, fewer are taken at a time.
    ///
    /// # Errors
    ///
    /// As [`labels`](Self::labels).
    ///
    /// # Panics
    ///
    /// If the pictures differ in size.
    pub fn batch(
        &mut self,
        frames: &[&Frame],
        height: usize,
        width: usize,
    ) -> Result<Vec<Vec<u8>>> {
        let Some(first) = frames.first() else { return Ok(Vec::new()) };
        let size = [first.height, first.width];
        assert!(frames.iter().all(|f| [f.height, f.width] == size), "batch: pictures of one size");
        check_sides(height, width)?;
        let key = Key { batch: frames.len(), size, labels: Some([height, width]) };
        let gpu = self.gpu.clone();
        let cached = match self.plan(key) {
            Ok(cached) => cached,
            Err(Error::Limit { .. } | Error::Device { doing: "allocating memory", .. })
                if frames.len() > 1 =>
            {
                let (left, right) = frames.split_at(frames.len() / 2);
                let mut all = self.batch(left, height, width)?;
                all.extend(self.batch(right, height, width)?);
                return Ok(all);
            }
            Err(error) => return Err(error),
        };
        match frames {
            [frame] => cached.input.write(&gpu, &frame.rgba)?,
            _ => {
                let all: Vec<&[u8]> = frames.iter().map(|f| &f.rgba[..]).collect();
                cached.input.write(&gpu, &all.concat())?;
            }
        }
        cached.plan.run()?;
        let words: Vec<u32> = cached.output.read_as(&gpu)?;
        let bytes: &[u8] = bytemuck::cast_slice(&words);
        Ok(bytes.chunks(height * width).take(frames.len()).map(<[u8]>::to_vec).collect())
    }

    /// Logits `[1, h, w, K]` of a picture, in a tensor that the next pass of this size overwrites.
    fn pass(&mut self, height: usize, width: usize, rgba: &[u8]) -> Result<Tensor> {
        let gpu = self.gpu.clone();
        let cached = self.plan(Key { batch: 1, size: [height, width], labels: None })?;
        cached.input.write(&gpu, rgba)?;
        cached.plan.run()?;
        Ok(cached.output.clone())
    }

    /// The plan for `key`, made now if need be.
    fn plan(&mut self, key: Key) -> Result<&Cached> {
        let cached = match self.plans.iter().position(|cached| cached.key == key) {
            Some(at) => self.plans.remove(at),
            None => {
                let planned = |cached: &Cached| cached.plan.description().planned_bytes();
                let mut total: u64 = self.plans.iter().map(planned).sum();
                let mut wanted = self.plans.len() + 1;
                while wanted > MAX_PLANS || (total > MAX_PLANNED && !self.plans.is_empty()) {
                    total -= planned(&self.plans.remove(0));
                    wanted -= 1;
                }
                match self.new_plan(key) {
                    // What other sizes take may be what is missing.
                    Err(Error::Device { .. }) if !self.plans.is_empty() => {
                        self.plans.clear();
                        self.new_plan(key)?
                    }
                    result => result?,
                }
            }
        };
        self.plans.push(cached);
        Ok(self.plans.last().expect("pushed above"))
    }

    fn new_plan(&self, key: Key) -> Result<Cached> {
        let Key { batch, size: [height, width], labels } = key;
        check(&self.gpu, &self.model, batch, key.size)?;
        let input = Tensor::pinned("pictures", [batch, height, width]);
        let mut tape = Tape::inference(self.gpu.profile());
        let normalise = normalisation(&self.model);
        let image = ops::normalize(tape.recorder(), &input, normalise);
        let logits = self.model.forward(&mut tape, &image);
        let mut recorder = tape.finish();
        let output = match labels {
            None => recorder.keep(&logits, "logits"),
            Some([goal_height, goal_width]) => {
                let resizing = Resizing::via(key.size, goal_height, goal_width);
                let words = predict::argmax(&mut recorder, &logits, resizing);
                recorder.keep(&words, "labels")
            }
        };
        let plan = Plan::new(&self.gpu, &recorder).map_err(|e| too_large(e, key.size))?;
        Ok(Cached { key, plan, input, output })
    }

    /// Plans and runs work that depends on a picture's size, but takes no time to plan.
    fn run(&self, recorder: &Recorder, size: [usize; 2]) -> Result<()> {
        Plan::new(&self.gpu, recorder).map_err(|e| too_large(e, size))?.run()
    }

    fn take_labels(&self, words: &Tensor, pixels: usize, labels: &mut Vec<u8>) -> Result<()> {
        let words: Vec<u32> = words.read_as(&self.gpu)?;
        labels.extend_from_slice(&bytemuck::cast_slice(&words)[..pixels]);
        Ok(())
    }
}

/// How a model's pictures are normalised.
pub(super) fn normalisation(model: &Model) -> Normalize {
    let config = model.config();
    Normalize { mean: config.mean, std: config.std, flip: false }
}

fn check_sides(height: usize, width: usize) -> Result<()> {
    let sides = 1..=MAX_SIDE;
    if sides.contains(&height) && sides.contains(&width) {
        return Ok(());
    }
    Err(Error::Limit {
        what: format!("a picture of {width} × {height} pixels"),
        needed: format!("a side of {} pixels", height.max(width)),
        allowed: format!("1 to {MAX_SIDE}"),
    })
}

/// Refuses what cannot be planned, before that is tried.
pub(super) fn check(gpu: &Gpu, model: &Model, batch: usize, size: [usize; 2]) -> Result<()> {
    let [height, width] = size;
    check_sides(height, width)?;
    let config = model.config();
    // The hidden layer of the first stage's MLPs is the largest tensor of the encoder.
    let tokens = batch as u64 * (height.div_ceil(4) * width.div_ceil(4)) as u64;
    let widest = (config.embed_dim * config.mlp_ratio).max(config.num_classes) as u64;
    let (needed, allowed) = (4 * tokens * widest, gpu.profile().max_binding.min(1 << 32));
    if needed <= allowed {
        return Ok(());
    }
    Err(too_large(
        Error::Limit {
            what: "its largest tensor".into(),
            needed: crate::gpu::megabytes(needed),
            allowed: crate::gpu::megabytes(allowed),
        },
        size,
    ))
}

/// Says of a failure to plan what can be done.
pub(super) fn too_large(error: Error, [height, width]: [usize; 2]) -> Error {
    const ADVICE: &str = "; a sliding window needs less";
    let whole = format!("a picture of {width} × {height} pixels as a whole");
    match error {
        Error::Limit { what, needed, allowed } => Error::Limit {
            what: format!("{whole} is too large: {what}"),
            needed,
            allowed: allowed + ADVICE,
        },
        Error::Device { doing: doing @ "allocating memory", reason } => {
            Error::Device { doing, reason: format!("{reason}, for {whole}{ADVICE}") }
        }
        other => other,
    }
}

/// Bands of rows of a map of all classes: each is as large as is good to bind.
fn bands(height: usize, width: usize, classes: usize) -> Vec<Range<usize>> {
    let row = 4 * (width * classes) as u64;
    // A multiple of four rows, so that the labels of a band are whole words.
    let rows = ((BAND_BYTES / row) as usize / 4 * 4).max(4);
    (0..height).step_by(rows).map(|first| first..(first + rows).min(height)).collect()
}

/// What a view's logits are taken from.
enum Source<'a> {
    /// `[1, h, w, K]`
    Whole(Tensor),
    Windows {
        frame: &'a Frame,
        windows: Vec<Window>,
        /// Logits of windows by their number.
        done: HashMap<usize, Tensor>,
        /// Tensors of windows that are no longer needed.
        free: Vec<Tensor>,
    },
}

impl<'a> Source<'a> {
    fn windows(frame: &'a Frame, slide: &Slide) -> Result<Self> {
        check_sides(frame.height, frame.width)?;
        if slide.crop.contains(&0) || slide.stride.contains(&0) {
            return Err(Error::invalid("sliding window", "sides and strides are at least 1"));
        }
        if slide.stride[0] > slide.crop[0] || slide.stride[1] > slide.crop[1] {
            let reason = "a stride above the window's side leaves gaps";
            return Err(Error::invalid("sliding window", reason));
        }
        let windows = slide.windows(frame.height, frame.width);
        Ok(Self::Windows { frame, windows, done: HashMap::new(), free: Vec::new() })
    }

    /// What rows `rows` of `goal` are made of. Bands of rows come in order.
    fn rows(
        &mut self,
        segmenter: &mut Segmenter,
        rows: Range<usize>,
        goal: [usize; 2],
    ) -> Result<Part> {
        let (frame, windows, done, free) = match self {
            Self::Whole(logits) => return Ok(Part::from(&*logits)),
            Self::Windows { frame, windows, done, free } => (*frame, windows, done, free),
        };
        let gpu = segmenter.gpu.clone();
        let classes = segmenter.model.config().num_classes;
        let size = [frame.height, frame.width];
        let band = if goal == size { rows } else { Part::rows_for(rows, frame.height, goal[0]) };
        let meets = |w: &Window| w.at[0] < band.end && band.start < w.at[0] + w.size[0];

        let past = |i: &usize| windows[*i].at[0] + windows[*i].size[0] <= band.start;
        let gone: Vec<usize> = done.keys().copied().filter(past).collect();
        free.extend(gone.iter().filter_map(|i| done.remove(i)));
        for (i, window) in windows.iter().enumerate().filter(|(_, w)| meets(w)) {
            if done.contains_key(&i) {
                continue;
            }
            let [height, width] = window.size;
            let logits = segmenter.pass(height, width, &frame.cut(*window))?;
            let kept =
                free.pop().unwrap_or_else(|| Tensor::pinned("window", logits.shape().clone()));
            copy(&gpu, &logits, &kept)?;
            done.insert(i, kept);
        }

        let mut recorder = Recorder::new(gpu.profile());
        let sum = ops::fill(&mut recorder, [1, band.len(), frame.width, classes], 0.0);
        let hits = ops::fill(&mut recorder, [band.len(), frame.width], 0.0);
        let sum_kept = recorder.keep(&sum, "logits");
        for (i, window) in windows.iter().enumerate().filter(|(_, w)| meets(w)) {
            let Window { at, size } = *window;
            let r = &mut recorder;
            predict::window_accumulate_rows(r, &done[&i], size, at, band.start, &sum, &hits);
        }
        predict::divide_by_count(&mut recorder, &sum, &hits);
        segmenter.run(&recorder, size)?;
        Ok(Part { tensor: sum_kept, first: band.start, height: frame.height })
    }
}

/// Copies the elements of one pinned tensor to another.
fn copy(gpu: &Gpu, from: &Tensor, to: &Tensor) -> Result<()> {
    let ((from, from_offset), (to, to_offset)) = (from.buffer(gpu)?, to.buffer(gpu)?);
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    encoder.copy_buffer_to_buffer(&from, from_offset, &to, to_offset, None);
    gpu.queue().submit([encoder.finish()]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_cover_every_row_in_whole_words() {
        for (height, width, classes) in [(1, 1, 2), (3000, 4000, 3), (1000, 32_767, 255), (9, 7, 5)]
        {
            let bands = bands(height, width, classes);
            assert_eq!(bands.first().unwrap().start, 0);
            assert_eq!(bands.last().unwrap().end, height);
            for pair in bands.windows(2) {
                assert_eq!(pair[0].end, pair[1].start);
                assert_eq!(pair[0].len() % 4, 0);
            }
        }
    }

    #[test]
    fn a_frame_is_mirrored_and_cut() {
        let frame = Frame::from_rgb(1, 2, &[1, 2, 3, 4, 5, 6]).unwrap();
        assert_eq!(frame.mirrored().rgba, [4, 5, 6, 255, 1, 2, 3, 255]);
        assert_eq!(frame.mirrored().mirrored(), frame);
        let window = Window { at: [0, 1], size: [1, 1] };
        assert_eq!(frame.cut(window), [4, 5, 6, 255]);
        assert!(Frame::from_rgb(2, 2, &[0; 11]).is_err());
        assert!(Frame::new(0, 0, Vec::new()).is_err());
    }
}
