//! Evaluation of a model on a data set: [`evaluate`].

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use super::metrics::Confusion;
use super::recipe::Recipe;
use crate::data::image_ops::Window;
use crate::data::{Augmentation, Dataset, IGNORE, Image, Item, Sample, default_workers, image_ops};
use crate::infer::{Frame, Segmenter, Slide, View};
use crate::{Error, Result};

/// The scales at which the published multi-scale results look at a picture.
pub const TTA_SCALES: [f64; 6] = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75];

/// Pixels that a batch has at most.
const BATCH_PIXELS: usize = 8 * 512 * 512;

/// How pictures are looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct EvalOptions {
    /// Sides of the box that pictures are scaled into; none: they keep their size.
    pub resize: Option<[usize; 2]>,
    /// Whether scaling smooths as Pillow's does.
    pub smooth: bool,
    /// Windows instead of the whole picture.
    pub slide: Option<Slide>,
    /// What the box, or the picture where there is none, is multiplied by; probabilities are averaged.
    pub scales: Vec<f64>,
    /// Whether each scale is also looked at mirrored.
    pub flip: bool,
    /// Most pictures of one size that are taken together where each is looked at once, as a whole.
    pub batch: usize,
}

impl Default for EvalOptions {
    /// Each picture once, as a whole, at its size.
    fn default() -> Self {
        Self { resize: None, smooth: false, slide: None, scales: vec![1.0], flip: false, batch: 8 }
    }
}

impl EvalOptions {
    /// What the recipe says.
    pub fn of(recipe: &Recipe) -> Self {
        let eval = &recipe.eval;
        let slide = eval.slide.clone();
        Self { resize: eval.resize, smooth: eval.smooth, slide, ..Self::default() }
    }

    /// The same at six scales, each straight and mirrored.
    pub fn with_tta(self) -> Self {
        Self { scales: TTA_SCALES.into(), flip: true, ..self }
    }

    /// The looks that are taken at `image`. Scaling is OpenCV's, or Pillow's, bit for bit.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when the picture has no pixels.
    pub fn views(&self, image: &Image) -> Result<Vec<View>> {
        let (width, height) = (image.width, image.height);
        let mut views = Vec::new();
        for scale in &self.scales {
            let side = |n: usize| ((n as f64 * scale) as usize).max(1);
            let goal = match self.resize {
                Some([long, short]) => {
                    image_ops::rescaled_size(width, height, side(long), side(short))
                }
                None if *scale == 1.0 => (width, height),
                None => image_ops::rescaled_size(width, height, side(width), side(height)),
            };
            let frame = if goal == (width, height) {
                Frame::from_rgb(height, width, &image.pixels)?
            } else {
                let (width, height) = goal;
                let scaled = match self.smooth {
                    true => {
                        image_ops::resize_smooth(image, width, height, Window::all(width, height))
                    }
                    false => image_ops::resize_linear(image, width, height),
                };
                Frame::from_rgb(scaled.height, scaled.width, &scaled.pixels)?
            };
            if self.flip {
                views.push(View { frame: frame.clone(), mirror: true });
            }
            views.push(View { frame, mirror: false });
        }
        Ok(views)
    }
}

/// A picture whose prediction has been counted.
#[derive(Clone, Copy, Debug)]
pub struct Evaluated<'a> {
    /// Pictures so far, this one among them.
    pub done: usize,
    /// Pictures in all.
    pub total: usize,
    /// The picture and its labels, as the recipe's `augment.downscale` leaves them.
    pub sample: &'a Sample,
    /// The class of each of its pixels.
    pub prediction: &'a [u8],
}

/// A picture that waits for its turn.
struct Waiting {
    sample: Sample,
    views: Vec<View>,
}

/// Labels `items` and counts what is right, pixel by pixel, at the pictures' own size. `progress` hears of
/// each picture, in order.
///
/// # Errors
///
/// As [`Dataset::load`] and [`Segmenter::labels`]; [`Error::Invalid`] when the model has other classes
/// than the data set, or answers with what is not a number.
pub fn evaluate(
    segmenter: &mut Segmenter,
    dataset: &Dataset,
    items: &[Item],
    augmentation: &Augmentation,
    options: &EvalOptions,
    mut progress: impl FnMut(Evaluated<'_>),
) -> Result<Confusion> {
    let classes = segmenter.model().config().num_classes;
    if classes != dataset.classes.len() {
        let reason = format!("has {} classes but the model {classes}", dataset.classes.len());
        return Err(Error::invalid(format!("data set {}", dataset.name), reason));
    }
    let load = |item: &Item| -> Result<Waiting> {
        let sample = augmentation.evaluation(dataset.load(item)?);
        let views = options.views(&sample.image)?;
        Ok(Waiting { sample, views })
    };
    let mut confusion = Confusion::new(classes);
    let mut done = 0;
    let mut count = |waiting: &Waiting, prediction: &[u8]| -> Result<()> {
        let Sample { name, labels, .. } = &waiting.sample;
        let beyond = |&(&p, &label): &(&u8, &u8)| usize::from(p) >= classes && label != IGNORE;
        if prediction.iter().zip(&labels.ids).any(|pair| beyond(&pair)) {
            return Err(Error::invalid(
                name,
                "the model's answer is not a number; it has diverged",
            ));
        }
        confusion.add(prediction, &labels.ids)?;
        done += 1;
        let sample = &waiting.sample;
        progress(Evaluated { done, total: items.len(), sample, prediction });
        Ok(())
    };
    let workers = default_workers().clamp(1, items.len().max(1));
    thread::scope(|scope| {
        // Worker w loads items w, w + n, …; taking from each in turn keeps the order.
        let channels: Vec<Receiver<Result<Waiting>>> = (0..workers)
            .map(|worker| {
                let (sender, receiver) = sync_channel(2);
                scope.spawn(move || {
                    for item in items.iter().skip(worker).step_by(workers) {
                        // Nobody listens after an error.
                        if sender.send(load(item)).is_err() {
                            return;
                        }
                    }
                });
                receiver
            })
            .collect();
        let mut group: Vec<Waiting> = Vec::new();
        for i in 0..items.len() {
            let loaded = channels[i % workers].recv();
            let waiting = loaded.map_err(|_| Error::invalid("evaluation", "a loader died"))??;
            if group.first().is_some_and(|first| !options.together(first, &waiting, group.len())) {
                flush(segmenter, options, &mut group, &mut count)?;
            }
            group.push(waiting);
        }
        flush(segmenter, options, &mut group, &mut count)
    })?;
    Ok(confusion)
}

impl EvalOptions {
    /// Whether a picture can be labelled with those that wait.
    fn together(&self, first: &Waiting, next: &Waiting, count: usize) -> bool {
        let sizes = |waiting: &Waiting| {
            let View { frame, .. } = &waiting.views[0];
            let image = &waiting.sample.image;
            [frame.height, frame.width, image.height, image.width]
        };
        let [height, width, ..] = sizes(first);
        self.slide.is_none()
            && first.views.len() == 1
            && sizes(first) == sizes(next)
            && count < self.batch
            && (count + 1) * height * width <= BATCH_PIXELS
    }
}

/// Labels the pictures that wait, and counts them.
fn flush(
    segmenter: &mut Segmenter,
    options: &EvalOptions,
    group: &mut Vec<Waiting>,
    count: &mut impl FnMut(&Waiting, &[u8]) -> Result<()>,
) -> Result<()> {
    let Some(first) = group.first() else { return Ok(()) };
    let (height, width) = (first.sample.image.height, first.sample.image.width);
    if let ([only], slide) = (&group[..], options.slide.as_ref()) {
        let labels = segmenter.labels(&only.views, height, width, slide)?;
        count(only, &labels)?;
    } else {
        let frames: Vec<_> = group.iter().map(|waiting| &waiting.views[0].frame).collect();
        for (waiting, labels) in group.iter().zip(segmenter.batch(&frames, height, width)?) {
            count(waiting, &labels)?;
        }
    }
    group.clear();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_have_the_official_sizes() {
        let image = Image::new(683, 512, vec![0; 683 * 512 * 3]);
        let official = EvalOptions { resize: Some([2048, 512]), ..EvalOptions::default() };
        let sizes = |options: &EvalOptions| {
            let views = options.views(&image).unwrap();
            views.iter().map(|v| (v.frame.width, v.frame.height)).collect::<Vec<_>>()
        };
        assert_eq!(sizes(&official), [(683, 512)]);
        let all = sizes(&official.with_tta());
        assert_eq!(all.len(), 12);
        // int(512 · 1.75) = 896 decides the short side.
        assert_eq!(all[10..], [(1195, 896); 2]);
        assert_eq!(all[..2], [(342, 256); 2]);
    }

    #[test]
    fn a_pixel_has_views_too() {
        let image = Image::new(1, 1, vec![7; 3]);
        let views = EvalOptions::default().with_tta().views(&image).unwrap();
        assert!(views.iter().all(|v| v.frame.width == v.frame.height));
    }
}
