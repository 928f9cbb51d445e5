//! [`Segmenter`]: a model on a device, and the plans for the sizes of pictures it has met.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::answer::bands;
use super::slide::Window;
use super::{Answer, Slide};
use crate::gpu::{Plan, Recorder};
use crate::model::{Encoder, Model};
use crate::ops::predict::{self, Part, Resizing};
use crate::ops::{self, Image, Normalize};
use crate::{Error, Gpu, Result, Tape, Tensor};

/// Plans that are kept, and what their shared memory may come to in bytes. One is always kept.
const MAX_PLANS: usize = 8;
const MAX_PLANNED: u64 = 2 << 30;

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

/// What the network says of the classes of a picture's pixels: logits, before softmax, at a quarter of its
/// sides, rounded up; or, by a head that finds masks, [scores](ops::mask_scores) at its own size.
#[derive(Clone, Debug, PartialEq)]
pub struct Logits {
    /// Rows.
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
    output: Output,
}

#[derive(Clone, Debug)]
enum Output {
    Labels(Tensor),
    Answer(Answer),
}

/// What a [`Cached`] plan takes and makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    batch: usize,
    /// Height and width that the network sees.
    size: [usize; 2],
    /// Height and width of the labels; none: the plan ends with the network's answer.
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
        let answer = self.pass(frame.height, frame.width, &frame.rgba)?;
        let classes = answer.classes();
        if let Answer::Pixels(logits) = &answer {
            let [_, height, width, _] = *logits.dims() else { unreachable!("an image") };
            return Ok(Logits { height, width, classes, values: logits.read(&self.gpu)? });
        }
        let Frame { height, width, .. } = *frame;
        let size = [height, width];
        let mut values = Vec::with_capacity(height * width * classes);
        for rows in answer.bands(size, size) {
            let mut recorder = Recorder::new(self.gpu.profile());
            let scores = answer.map_rows(&mut recorder, rows, width);
            let scores = recorder.keep(&scores, "scores");
            self.run(&recorder, size)?;
            values.extend(scores.read(&self.gpu)?);
        }
        Ok(Logits { height, width, classes, values })
    }

    /// The class of each pixel of a picture of `height` × `width`: `[height, width]`, 255 where the
    /// model's answer is not a number.
    ///
    /// Each view's logits are resized to the view's size and from there to the picture's, both
    /// bilinearly; softmax; mirrored back; the mean over the views; the class of the largest, the
    /// first of equal ones. With a single view, softmax changes nothing and is left out. What a head that
    /// finds masks says is summed up to [scores](ops::mask_scores) at the view's size, which take the place
    /// of logits; there is no softmax.
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
        let config = self.model.config();
        let (classes, finds_masks) = (config.num_classes, config.head.finds_masks());
        // Bands that suit the largest view.
        let rows = |view: &View| [view.frame.height, view.frame.width];
        let largest = views.iter().map(rows).max_by_key(|size| size[0] * size[1]);
        let queries = finds_masks.then_some(config.num_queries);
        let bands = bands(largest.expect("there is a view"), goal, classes, queries);
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
                let mut recorder = Recorder::new(self.gpu.profile());
                let r = &mut recorder;
                let (part, resizing) = source.rows(self, r, rows.clone(), size, goal)?;
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
                if finds_masks {
                    predict::scores_accumulate(r, part, resizing, rows.start, mirror, sum, first);
                } else {
                    predict::softmax_accumulate(r, part, resizing, rows.start, mirror, sum, first);
                }
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
        if frames.len() > 1 && self.model.config().head.finds_masks() {
            // Their labels are made row by row, which words of several pictures do not allow.
            return self.halves(frames, height, width);
        }
        let key = Key { batch: frames.len(), size, labels: Some([height, width]) };
        let gpu = self.gpu.clone();
        let cached = match self.plan(key) {
            Ok(cached) => cached,
            Err(Error::Limit { .. } | Error::Device { doing: "allocating memory", .. })
                if frames.len() > 1 =>
            {
                return self.halves(frames, height, width);
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
        let Output::Labels(words) = &cached.output else { unreachable!("asked for labels") };
        let words: Vec<u32> = words.read_as(&gpu)?;
        let bytes: &[u8] = bytemuck::cast_slice(&words);
        Ok(bytes.chunks(height * width).take(frames.len()).map(<[u8]>::to_vec).collect())
    }

    /// [`batch`](Self::batch), half of the pictures at a time.
    fn halves(&mut self, frames: &[&Frame], height: usize, width: usize) -> Result<Vec<Vec<u8>>> {
        let (left, right) = frames.split_at(frames.len() / 2);
        let mut all = self.batch(left, height, width)?;
        all.extend(self.batch(right, height, width)?);
        Ok(all)
    }

    /// What the network says of a picture, in tensors that the next pass of this size overwrites.
    fn pass(&mut self, height: usize, width: usize, rgba: &[u8]) -> Result<Answer> {
        let gpu = self.gpu.clone();
        let cached = self.plan(Key { batch: 1, size: [height, width], labels: None })?;
        cached.input.write(&gpu, rgba)?;
        cached.plan.run()?;
        let Output::Answer(answer) = &cached.output else { unreachable!("asked for an answer") };
        Ok(answer.clone())
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
        let image = Image::bytes(&input, normalisation(&self.model));
        let answer = Answer::new(&mut tape, &self.model, image);
        let mut recorder = tape.finish();
        let output = match labels {
            None => Output::Answer(answer.keep(&mut recorder)),
            Some(goal) => {
                let words = answer.labels(&mut recorder, key.size, goal);
                Output::Labels(recorder.keep(&words, "labels"))
            }
        };
        recorder.drop_unread(0..recorder.len());
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
    // The hidden layer of the first stage's MLPs is the largest tensor of the encoder, or what the Mix
    // Transformer's first convolution sees.
    let patch = if config.encoder == Encoder::Mit { 3 * 7 * 7 } else { 0 };
    let tokens = batch as u64 * (height.div_ceil(4) * width.div_ceil(4)) as u64;
    let hidden = config.stage_channels(0) * config.mlp_ratio;
    let widest = hidden.max(patch).max(config.num_classes) as u64;
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

/// What a view's labels are taken from.
enum Source<'a> {
    Whole(Answer),
    Windows {
        frame: &'a Frame,
        windows: Vec<Window>,
        /// Answers to windows by their number.
        done: HashMap<usize, Answer>,
        /// Those to windows that are no longer needed.
        free: Vec<Answer>,
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

    /// What rows `rows` of `goal` are made of, for a picture of `size`, and how that is resized. Bands of rows
    /// come in order.
    fn rows(
        &mut self,
        segmenter: &mut Segmenter,
        recorder: &mut Recorder,
        rows: Range<usize>,
        size: [usize; 2],
        goal: [usize; 2],
    ) -> Result<(Part, Resizing)> {
        let (frame, windows, done, free) = match self {
            Self::Whole(answer) => return Ok(answer.rows(recorder, rows, size, goal)),
            Self::Windows { frame, windows, done, free } => (*frame, windows, done, free),
        };
        let gpu = segmenter.gpu.clone();
        let classes = segmenter.model.config().num_classes;
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
            let answer = segmenter.pass(height, width, &frame.cut(*window))?;
            let kept = free.pop().unwrap_or_else(|| answer.twin());
            answer.copy_to(&gpu, &kept)?;
            done.insert(i, kept);
        }

        let sum = ops::fill(recorder, [1, band.len(), frame.width, classes], 0.0);
        let hits = ops::fill(recorder, [band.len(), frame.width], 0.0);
        for (i, window) in windows.iter().enumerate().filter(|(_, w)| meets(w)) {
            let Window { at, size } = *window;
            let (map, at, size) = match &done[&i] {
                Answer::Pixels(logits) => (logits.clone(), at, size),
                answer => {
                    // Of the window only what is in the band.
                    let start = band.start.max(at[0]);
                    let rows = start - at[0]..band.end.min(at[0] + size[0]) - at[0];
                    let size = [rows.len(), size[1]];
                    (answer.map_rows(recorder, rows, size[1]), [start, at[1]], size)
                }
            };
            predict::window_accumulate_rows(recorder, &map, size, at, band.start, &sum, &hits);
        }
        predict::divide_by_count(recorder, &sum, &hits);
        let part = Part { tensor: sum, first: band.start, height: frame.height };
        Ok((part, Resizing::to(goal[0], goal[1])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
