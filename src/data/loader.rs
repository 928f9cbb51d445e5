//! Batches, made ahead of time in threads and always the same.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};
use serde::{Deserialize, Serialize};

use super::raster::guarded;
use super::{Augmentation, Dataset, IGNORE, Item, Sample};
use crate::random::Rng;
use crate::{Error, Result};

/// Streams of the run's seed, each counted upwards from here: the order of an epoch, and the
/// distortion of a draw. Whatever else draws from that seed stays below 2⁶².
const SHUFFLE_STREAM: u64 = 1 << 62;
const AUGMENT_STREAM: u64 = 1 << 63;

/// Memory for decoded samples.
const CACHE_BYTES: usize = 1 << 30;

/// Which sample comes when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// A new random order each epoch; what does not fill a batch at its end is dropped. A split
    /// smaller than one batch runs on into the next epoch's order instead.
    #[default]
    Shuffle,
    /// Draw `k` of a split of `N` is sample `(149 · (k mod N) + 37 + 11 · ⌊k / N⌋) mod N`: a fixed
    /// order that a program in any language can repeat. Visits every sample unless 149 divides `N`.
    Stride,
    /// Draw `k` is sample `k mod N`: as listed, over and over.
    Sequential,
}

/// How a [`Loader`] works.
#[derive(Clone, Debug)]
pub struct LoaderOptions {
    /// Samples per batch.
    pub batch_size: usize,
    /// Threads that read and distort; 0 does it all in [`Loader::next`]. Batches do not depend on
    /// it.
    pub workers: usize,
    /// Seed of order and distortion.
    pub seed: u64,
    /// Which sample comes when.
    pub order: Order,
    /// What happens to the samples.
    pub augmentation: Augmentation,
    /// What the sides of a batch are padded to a multiple of.
    pub divisor: usize,
    /// Index of the first batch that [`Loader::next`] gives; to resume, how many there were.
    pub first_batch: u64,
    /// Whether decoded samples stay in memory, if all of them take less than 1 GiB.
    pub cache: bool,
}

impl Default for LoaderOptions {
    fn default() -> Self {
        Self {
            batch_size: 1,
            workers: default_workers(),
            seed: 0,
            order: Order::default(),
            augmentation: Augmentation::default(),
            divisor: 1,
            first_batch: 0,
            cache: true,
        }
    }
}

/// The number of processors less one for the thread that feeds the GPU, at least 1.
pub fn default_workers() -> usize {
    thread::available_parallelism().map_or(1, |n| n.get().saturating_sub(1).max(1))
}

/// Samples of one size, one behind the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// How many batches were before it, from the start of training.
    pub index: u64,
    /// [`Item::name`] of each sample.
    pub names: Vec<String>,
    /// B, how many.
    pub batch: usize,
    /// H.
    pub height: usize,
    /// W.
    pub width: usize,
    /// `[B, H, W, 4]`: red, green, blue and 255, or where the sample is padded at the right and
    /// the bottom: four zeros, for normalisation to leave zeros there, or [`Augmentation::pad_value`].
    pub rgba: Vec<u8>,
    /// `[B, H, W]`: classes, and [`IGNORE`] where the sample says so or is padded.
    pub labels: Vec<u8>,
}

/// An endless source of [`Batch`]es.
///
/// Batch `i` holds draws `i · B` to `i · B + B − 1`. Which sample a draw takes and how that is
/// distorted depend on the seed, the order and the draw's number only: not on the number of
/// threads, nor on where a run was interrupted.
pub struct Loader {
    source: Arc<Source>,
    sampler: Sampler,
    workers: Option<Workers>,
    batch: u64,
    /// Draws handed to the workers so far: all below this.
    issued: u64,
    /// Draws that came back before their turn.
    early: HashMap<u64, Result<Packed>>,
    failed: Option<String>,
}

impl Loader {
    /// Starts the threads, which begin with the first batches at once.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when there are no items, the batch size is 0, or the augmentation is not
    /// [valid](Augmentation::validate).
    pub fn new(dataset: Arc<Dataset>, items: Vec<Item>, options: LoaderOptions) -> Result<Self> {
        let read = move |item: &Item| dataset.load(item);
        Self::with_reader(Box::new(read), items, options)
    }

    fn with_reader(read: Reader, items: Vec<Item>, options: LoaderOptions) -> Result<Self> {
        options.augmentation.validate()?;
        if items.is_empty() {
            return Err(Error::invalid("loader", "there are no samples to load"));
        }
        if options.batch_size == 0 {
            return Err(Error::invalid("batch_size", "must be at least 1"));
        }
        let draws = options.first_batch.checked_mul(options.batch_size as u64);
        if draws.is_none_or(|draws| draws >= SHUFFLE_STREAM) {
            let reason = format!("{} is beyond any training", options.first_batch);
            return Err(Error::invalid("first_batch", reason));
        }

        let sampler = Sampler {
            order: options.order,
            seed: options.seed,
            len: items.len(),
            batch_size: options.batch_size,
            epoch: None,
        };
        let cache = options.cache && fits_cache(&items, options.augmentation.downscale);
        let source = Arc::new(Source {
            read,
            cache: cache.then(|| items.iter().map(|_| OnceLock::new()).collect()),
            cached_bytes: AtomicUsize::new(0),
            items,
            augmentation: options.augmentation,
            divisor: options.divisor,
            seed: options.seed,
        });
        let ahead = 2 * options.batch_size + options.workers;
        let workers = match options.workers {
            0 => None,
            count => Some(Workers::start(&source, count, ahead)?),
        };
        let mut loader = Self {
            source,
            sampler,
            workers,
            batch: options.first_batch,
            issued: draws.unwrap_or(0),
            early: HashMap::new(),
            failed: None,
        };
        loader.issue(loader.issued);
        Ok(loader)
    }

    /// The next batch; waits for it.
    ///
    /// # Errors
    ///
    /// What went wrong with one of its samples, naming the file; [`Error::Invalid`] when samples
    /// differ in size and there is no `augment.crop_size` to pad them to. The loader is of no use
    /// after that: every further call is an error, too.
    #[expect(clippy::should_implement_trait, reason = "it never ends, and it can fail")]
    pub fn next(&mut self) -> Result<Batch> {
        if let Some(reason) = &self.failed {
            return Err(Error::invalid("loader", format!("stopped after {reason}")));
        }
        let batch = self.assemble();
        match &batch {
            Ok(_) => self.batch += 1,
            Err(error) => self.failed = Some(error.to_string()),
        }
        batch
    }

    /// Index of the batch that [`Loader::next`] gives next.
    pub fn position(&self) -> u64 {
        self.batch
    }

    /// Batches until every sample was drawn once, at least 1; what is dropped is not counted.
    pub fn batches_per_epoch(&self) -> u64 {
        (self.sampler.len / self.sampler.batch_size).max(1) as u64
    }

    fn assemble(&mut self) -> Result<Batch> {
        let count = self.sampler.batch_size;
        let first = self.take(self.batch * count as u64)?;
        let (height, width) = (first.height, first.width);
        let mut batch = Batch {
            index: self.batch,
            names: Vec::with_capacity(count),
            batch: count,
            height,
            width,
            rgba: Vec::with_capacity(count * height * width * 4),
            labels: Vec::with_capacity(count * height * width),
        };
        let first_path = first.path.clone();
        let mut next = Some(first);
        for slot in 0..count {
            let packed = match next.take() {
                Some(first) => first,
                None => self.take(self.batch * count as u64 + slot as u64)?,
            };
            if (packed.height, packed.width) != (height, width) {
                let reason = format!(
                    "{}x{} pixels, but {} in the same batch has {width}x{height}; set \
                     `augment.crop_size` to bring all to one size",
                    packed.width,
                    packed.height,
                    first_path.display()
                );
                return Err(Error::invalid_file(&packed.path, reason));
            }
            batch.names.push(packed.name);
            batch.rgba.extend_from_slice(&packed.rgba);
            batch.labels.extend_from_slice(&packed.labels);
        }
        Ok(batch)
    }

    /// Draw `k`, which nobody took before.
    fn take(&mut self, k: u64) -> Result<Packed> {
        self.issue(k);
        let Some(workers) = &self.workers else {
            return self.source.draw(k, self.sampler.index(k));
        };
        loop {
            if let Some(packed) = self.early.remove(&k) {
                return packed;
            }
            match workers.done.recv() {
                Ok((draw, packed)) => drop(self.early.insert(draw, packed)),
                Err(_) => return Err(Error::invalid("loader", "all threads ended unexpectedly")),
            }
        }
    }

    /// Hands out draws so that those from `k` on are under way, as many as may be.
    fn issue(&mut self, k: u64) {
        let Some(workers) = &self.workers else { return };
        let Some(jobs) = &workers.jobs else { return };
        while self.issued < k + workers.ahead as u64 {
            let job = (self.issued, self.sampler.index(self.issued));
            // Never full: it holds `ahead` jobs. Closed only when all threads are gone, which
            // `take` reports.
            if jobs.send(job).is_err() {
                return;
            }
            self.issued += 1;
        }
    }
}

impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader")
            .field("samples", &self.sampler.len)
            .field("batch_size", &self.sampler.batch_size)
            .field("batch", &self.batch)
            .finish_non_exhaustive()
    }
}

/// Whether all samples together take less than [`CACHE_BYTES`], judged by the first.
fn fits_cache(items: &[Item], downscale: usize) -> bool {
    let size = ::image::ImageReader::open(&items[0].image)
        .and_then(::image::ImageReader::with_guessed_format)
        .map(::image::ImageReader::into_dimensions);
    let Ok(Ok((width, height))) = size else { return false };
    let pixels = u64::from(width) * u64::from(height) / (downscale * downscale) as u64;
    pixels.saturating_mul(4 * items.len() as u64) < CACHE_BYTES as u64
}

/// Which sample each draw takes.
#[derive(Debug)]
struct Sampler {
    order: Order,
    seed: u64,
    len: usize,
    batch_size: usize,
    /// The last epoch asked for, and its order.
    epoch: Option<(u64, Vec<usize>)>,
}

impl Sampler {
    fn index(&mut self, k: u64) -> usize {
        let len = self.len as u64;
        match self.order {
            Order::Sequential => (k % len) as usize,
            Order::Stride => {
                let (epoch, at) = (u128::from(k / len), u128::from(k % len));
                ((149 * at + 37 + 11 * epoch) % u128::from(len)) as usize
            }
            Order::Shuffle => {
                let batch_size = self.batch_size as u64;
                // Draws per epoch.
                let drawn = if len < batch_size { len } else { len - len % batch_size };
                let (epoch, at) = (k / drawn, (k % drawn) as usize);
                if self.epoch.as_ref().is_none_or(|(known, _)| *known != epoch) {
                    let mut rng = Rng::new(self.seed, SHUFFLE_STREAM + epoch);
                    self.epoch = Some((epoch, rng.permutation(self.len)));
                }
                self.epoch.as_ref().expect("set above").1[at]
            }
        }
    }
}

type Reader = Box<dyn Fn(&Item) -> Result<Sample> + Send + Sync>;

/// What every thread needs.
struct Source {
    read: Reader,
    items: Vec<Item>,
    augmentation: Augmentation,
    divisor: usize,
    seed: u64,
    cache: Option<Vec<OnceLock<Arc<Sample>>>>,
    cached_bytes: AtomicUsize,
}

impl Source {
    /// Draw `k`, which takes sample `index`.
    fn draw(&self, k: u64, index: usize) -> Result<Packed> {
        let item = &self.items[index];
        guarded(&item.image, || {
            let sample = self.decoded(index)?;
            let mut rng = Rng::new(self.seed, AUGMENT_STREAM + k);
            let sample = self.augmentation.distort(&sample, &mut rng);
            let path = item.image.clone();
            Ok(Packed::new(sample, path, &self.augmentation, self.divisor))
        })
    }

    /// A sample with all that is the same each time it is drawn.
    fn decoded(&self, index: usize) -> Result<Arc<Sample>> {
        let slot = self.cache.as_ref().map(|cache| &cache[index]);
        if let Some(sample) = slot.and_then(OnceLock::get) {
            return Ok(sample.clone());
        }
        let sample = (self.read)(&self.items[index])?;
        let sample = Arc::new(self.augmentation.evaluation(sample));
        if let Some(slot) = slot {
            let bytes = sample.image.pixels.len() + sample.labels.ids.len();
            // The first sample may have been a small one.
            if self.cached_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= CACHE_BYTES {
                // Another thread may have been faster; its sample is the same.
                let _ = slot.set(sample.clone());
            }
        }
        Ok(sample)
    }
}

/// One sample as it lies in a batch.
struct Packed {
    name: String,
    path: PathBuf,
    height: usize,
    width: usize,
    rgba: Vec<u8>,
    labels: Vec<u8>,
}

impl Packed {
    fn new(sample: Sample, path: PathBuf, augmentation: &Augmentation, divisor: usize) -> Self {
        let Sample { name, image, labels } = sample;
        let size = augmentation.crop_size.unwrap_or([image.height, image.width]);
        let [height, width] = size.map(|side| side.next_multiple_of(divisor));
        let padding = augmentation.pad_value.map_or([0; 4], |grey| [grey, grey, grey, 255]);
        let mut rgba = padding.repeat(height * width);
        let mut ids = vec![IGNORE; height * width];
        let rows = image.pixels.chunks_exact(image.width * 3);
        for (row, to) in rows.zip(rgba.chunks_exact_mut(width * 4)) {
            let pixels = row.as_chunks::<3>().0;
            for (&[r, g, b], to) in pixels.iter().zip(to.as_chunks_mut::<4>().0) {
                *to = [r, g, b, 255];
            }
        }
        for (row, to) in labels.ids.chunks_exact(labels.width).zip(ids.chunks_exact_mut(width)) {
            to[..row.len()].copy_from_slice(row);
        }
        Self { name, path, height, width, rgba, labels: ids }
    }
}

/// The threads and the channels to and from them.
struct Workers {
    /// How many draws may be under way or waiting; both channels have room for them, so nobody
    /// ever waits to send.
    ahead: usize,
    /// (draw, sample); dropped to end the threads.
    jobs: Option<Sender<(u64, usize)>>,
    done: Receiver<(u64, Result<Packed>)>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    fn start(source: &Arc<Source>, count: usize, ahead: usize) -> Result<Self> {
        let (jobs, job_queue) = bounded::<(u64, usize)>(ahead);
        let (done_queue, done) = bounded(ahead);
        let stop = Arc::new(AtomicBool::new(false));
        let mut workers =
            Self { ahead, jobs: Some(jobs), done, stop: stop.clone(), threads: Vec::new() };
        for i in 0..count {
            let (source, stop) = (source.clone(), stop.clone());
            let (jobs, done) = (job_queue.clone(), done_queue.clone());
            let work = move || {
                for (k, index) in jobs {
                    if stop.load(Ordering::Relaxed)
                        || done.send((k, source.draw(k, index))).is_err()
                    {
                        return;
                    }
                }
            };
            let thread = thread::Builder::new().name(format!("loader {i}")).spawn(work).map_err(
                |error| Error::invalid("workers", format!("cannot start thread {i}: {error}")),
            )?;
            workers.threads.push(thread);
        }
        Ok(workers)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A panic was already reported as the draw's error.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::{Duration, Instant};

    use super::super::testing::{self, Folder};
    use super::super::{LabelMap, Ratios, Resize};
    use super::*;

    fn loader(folder: &Folder, options: LoaderOptions) -> Result<Loader> {
        let dataset = Dataset::open(folder.root())?;
        let items = dataset.split("train")?;
        Loader::new(Arc::new(dataset), items, options)
    }

    fn everything() -> Augmentation {
        Augmentation {
            downscale: 2,
            resize: Some(Resize {
                long: 32,
                short: 16,
                ratios: Ratios::Range { min: 0.5, max: 2.0 },
            }),
            crop_size: Some([14, 12]),
            cat_max_ratio: 0.75,
            flip: 0.5,
            photometric: true,
            ..Augmentation::default()
        }
    }

    fn batches(loader: &mut Loader, n: usize) -> Vec<Batch> {
        (0..n).map(|_| loader.next().unwrap()).collect()
    }

    #[test]
    fn batches_do_not_depend_on_workers_or_the_cache() {
        let folder = Folder::of_pairs(7, 36, 28);
        for order in [Order::Shuffle, Order::Stride] {
            let run = |workers, cache| {
                let augmentation = everything();
                let options = LoaderOptions {
                    batch_size: 3,
                    workers,
                    seed: 5,
                    order,
                    augmentation,
                    cache,
                    ..LoaderOptions::default()
                };
                batches(&mut loader(&folder, options).unwrap(), 8)
            };
            let expected = run(0, false);
            assert!(expected.iter().zip(0..).all(|(batch, i)| batch.index == i));
            assert_ne!(expected[0].rgba, expected[1].rgba);
            for (workers, cache) in [(0, true), (1, false), (2, true), (5, false), (16, true)] {
                assert!(run(workers, cache) == expected, "{workers} workers, cache {cache}");
            }
        }
    }

    #[test]
    fn a_run_that_starts_later_continues_the_same_batches() {
        let folder = Folder::of_pairs(7, 20, 16);
        let run = |first_batch, n| {
            let options = LoaderOptions {
                batch_size: 2,
                workers: 2,
                seed: 9,
                augmentation: everything(),
                first_batch,
                ..LoaderOptions::default()
            };
            let mut loader = loader(&folder, options).unwrap();
            let batches = batches(&mut loader, n);
            assert_eq!(loader.position(), first_batch + n as u64);
            batches
        };
        assert!(run(0, 9)[5..] == run(5, 4));
    }

    #[test]
    fn a_sample_is_distorted_anew_each_time() {
        let folder = Folder::of_pairs(1, 20, 16);
        let options = LoaderOptions {
            augmentation: Augmentation { crop_size: Some([6, 6]), ..Augmentation::default() },
            workers: 1,
            ..LoaderOptions::default()
        };
        let mut loader = loader(&folder, options).unwrap();
        let labels: BTreeSet<_> = batches(&mut loader, 12).into_iter().map(|b| b.labels).collect();
        assert!(labels.len() > 8, "{}", labels.len());
    }

    #[test]
    fn seeds_differ() {
        let folder = Folder::of_pairs(9, 8, 8);
        let names = |seed| {
            let options =
                LoaderOptions { batch_size: 9, seed, workers: 0, ..LoaderOptions::default() };
            loader(&folder, options).unwrap().next().unwrap().names
        };
        assert_ne!(names(1), names(2));
        assert_eq!(names(1), names(1));
    }

    fn sampler(order: Order, len: usize, batch_size: usize) -> Sampler {
        Sampler { order, seed: 1, len, batch_size, epoch: None }
    }

    #[test]
    fn an_epoch_has_no_sample_twice_and_drops_the_rest() {
        let mut sampler = sampler(Order::Shuffle, 10, 4);
        let mut orders = BTreeSet::new();
        for epoch in 0..20 {
            let drawn: Vec<usize> = (epoch * 8..epoch * 8 + 8).map(|k| sampler.index(k)).collect();
            assert_eq!(drawn.iter().collect::<BTreeSet<_>>().len(), 8, "{drawn:?}");
            orders.insert(drawn);
        }
        assert_eq!(orders.len(), 20);
        let seen: BTreeSet<usize> = orders.into_iter().flatten().collect();
        assert_eq!(seen.len(), 10);
    }

    #[test]
    fn a_split_smaller_than_a_batch_wraps_around() {
        let mut sampler = sampler(Order::Shuffle, 3, 8);
        for epoch in 0..5 {
            let drawn: BTreeSet<usize> =
                (epoch * 3..epoch * 3 + 3).map(|k| sampler.index(k)).collect();
            assert_eq!(drawn.len(), 3);
        }
        let folder = Folder::of_pairs(3, 4, 4);
        let options = LoaderOptions { batch_size: 8, workers: 1, ..LoaderOptions::default() };
        let mut loader = loader(&folder, options).unwrap();
        assert_eq!(loader.batches_per_epoch(), 1);
        assert_eq!(loader.next().unwrap().names.len(), 8);
    }

    #[test]
    fn the_stride_order_is_the_published_one() {
        // (149 (k mod 5) + 37 + 11 ⌊k / 5⌋) mod 5, by hand.
        let mut sampler = sampler(Order::Stride, 5, 2);
        let drawn: Vec<usize> = (0..12).map(|k| sampler.index(k)).collect();
        assert_eq!(drawn, [2, 1, 0, 4, 3, 3, 2, 1, 0, 4, 4, 3]);
        assert!(sampler.index(u64::MAX) < 5);
    }

    #[test]
    fn the_sequential_order_is_the_listed_one() {
        let mut sampler = sampler(Order::Sequential, 3, 2);
        assert_eq!((0..5).map(|k| sampler.index(k)).collect::<Vec<_>>(), [0, 1, 2, 0, 1]);
    }

    #[test]
    fn smaller_samples_are_padded_at_the_right_and_the_bottom() {
        let folder = Folder::of_pairs(1, 5, 3);
        let augmentation = Augmentation { crop_size: Some([4, 7]), ..Augmentation::default() };
        let options = LoaderOptions { augmentation, workers: 1, ..LoaderOptions::default() };
        let batch = loader(&folder, options).unwrap().next().unwrap();
        assert_eq!((batch.batch, batch.height, batch.width), (1, 4, 7));
        assert_eq!((batch.rgba.len(), batch.labels.len()), (4 * 7 * 4, 4 * 7));
        let (image, labels) = (testing::image(5, 3, 0), testing::labels(5, 3, 3, 0));
        for y in 0..4 {
            for x in 0..7 {
                let i = y * 7 + x;
                let (rgba, label) = (&batch.rgba[i * 4..i * 4 + 4], batch.labels[i]);
                if x < 5 && y < 3 {
                    let [r, g, b] = image.pixel(x, y);
                    assert_eq!((rgba, label), (&[r, g, b, 255][..], labels.id(x, y)));
                } else {
                    assert_eq!((rgba, label), (&[0; 4][..], IGNORE));
                }
            }
        }
    }

    #[test]
    fn batches_are_padded_to_the_divisor_with_the_grey_that_is_wanted() {
        let folder = Folder::of_pairs(1, 5, 3);
        let augmentation = Augmentation { pad_value: Some(128), ..Augmentation::default() };
        let options =
            LoaderOptions { augmentation, divisor: 4, workers: 1, ..LoaderOptions::default() };
        let batch = loader(&folder, options).unwrap().next().unwrap();
        assert_eq!((batch.height, batch.width), (4, 8));
        let padded = |i: &usize| i % 8 >= 5 || i / 8 >= 3;
        for i in (0..32).filter(padded) {
            assert_eq!(batch.rgba[4 * i..][..4], [128, 128, 128, 255]);
            assert_eq!(batch.labels[i], IGNORE);
        }
        assert_eq!(batch.labels.iter().filter(|&&l| l != IGNORE).count(), {
            let labels = testing::labels(5, 3, 3, 0);
            labels.ids.iter().filter(|&&l| l != IGNORE).count()
        });
    }

    #[test]
    fn samples_of_different_sizes_name_two_files_and_the_key() {
        let folder = Folder::of_pairs(1, 5, 3);
        folder.pair("train", "large", 6, 3, 1);
        for workers in [0, 2] {
            let options = LoaderOptions { batch_size: 2, workers, ..LoaderOptions::default() };
            let message = loader(&folder, options).unwrap().next().unwrap_err().to_string();
            assert!(message.contains("p00.png") && message.contains("large.png"), "{message}");
            assert!(message.contains("`augment.crop_size`"), "{message}");
        }
    }

    #[test]
    fn an_unreadable_file_is_named_by_next() {
        let folder = Folder::of_pairs(4, 5, 3);
        folder.write("images/train/p02.png", b"\x89PNG\r\n\x1a\nno more");
        for workers in [0, 3] {
            let options = LoaderOptions { batch_size: 2, workers, ..LoaderOptions::default() };
            let mut loader = loader(&folder, options).unwrap();
            let error = (0..2).find_map(|_| loader.next().err()).expect("one of two batches");
            assert!(error.to_string().contains("p02.png"), "{error}");
            let again = loader.next().unwrap_err().to_string();
            assert!(again.contains("stopped after") && again.contains("p02.png"), "{again}");
        }
    }

    fn made_up(n: usize) -> Vec<Item> {
        let item = |i| {
            let name = format!("s{i}");
            let ids = super::super::layout::Ids::Described;
            let (image, label) = (format!("{name}.jpg"), format!("{name}.png"));
            Item { image: image.into(), label: label.into(), name, ids }
        };
        (0..n).map(item).collect()
    }

    fn sample(item: &Item) -> Sample {
        let labels = LabelMap::new(2, 2, vec![0; 4]);
        Sample { name: item.name.clone(), image: testing::image(2, 2, 0), labels }
    }

    #[test]
    fn a_panicking_worker_is_an_error_not_a_hang() {
        for workers in [0, 1, 3] {
            let read = |item: &Item| {
                assert!(item.name != "s5", "broken on purpose");
                Ok(sample(item))
            };
            let options = LoaderOptions {
                batch_size: 2,
                workers,
                order: Order::Stride,
                cache: false,
                ..LoaderOptions::default()
            };
            let mut loader = Loader::with_reader(Box::new(read), made_up(8), options).unwrap();
            let error = (0..4).find_map(|_| loader.next().err()).expect("s5 is among the first 8");
            assert!(error.to_string().contains("s5.jpg: reading it panicked: broken"), "{error}");
        }
    }

    #[test]
    fn dropping_stops_the_threads_promptly() {
        let read = |item: &Item| {
            thread::sleep(Duration::from_millis(50));
            Ok(sample(item))
        };
        let options =
            LoaderOptions { batch_size: 64, workers: 2, cache: false, ..LoaderOptions::default() };
        let mut loader = Loader::with_reader(Box::new(read), made_up(8), options).unwrap();
        let source = Arc::downgrade(&loader.source);
        loader.batch = 0;
        let started = Instant::now();
        drop(loader);
        // 130 draws are queued, 3 s of work; each thread may finish one.
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        assert!(source.upgrade().is_none(), "a thread still runs");
    }

    #[test]
    fn threads_work_ahead_but_not_without_bound() {
        let reads = Arc::new(AtomicUsize::new(0));
        let counter = reads.clone();
        let read = move |item: &Item| {
            counter.fetch_add(1, Ordering::SeqCst);
            Ok(sample(item))
        };
        let options =
            LoaderOptions { batch_size: 4, workers: 2, cache: false, ..LoaderOptions::default() };
        let mut loader = Loader::with_reader(Box::new(read), made_up(8), options).unwrap();
        let settled = |n: usize| {
            for _ in 0..200 {
                if reads.load(Ordering::SeqCst) >= n {
                    break;
                }
                thread::sleep(Duration::from_millis(10));
            }
            thread::sleep(Duration::from_millis(30));
            assert_eq!(reads.load(Ordering::SeqCst), n);
        };
        settled(10);
        loader.next().unwrap();
        settled(3 + 10);
    }

    #[test]
    fn cached_samples_are_read_once() {
        let folder = Folder::of_pairs(4, 6, 4);
        let dataset = Dataset::open(folder.root()).unwrap();
        let items = dataset.split("train").unwrap();
        for (cache, expected) in [(true, 4), (false, 12)] {
            let reads = Arc::new(AtomicUsize::new(0));
            let (counter, dataset) = (reads.clone(), dataset.clone());
            let read = move |item: &Item| {
                counter.fetch_add(1, Ordering::SeqCst);
                dataset.load(item)
            };
            let options =
                LoaderOptions { batch_size: 4, workers: 0, cache, ..LoaderOptions::default() };
            let mut loader = Loader::with_reader(Box::new(read), items.clone(), options).unwrap();
            batches(&mut loader, 3);
            assert_eq!(reads.load(Ordering::SeqCst), expected, "cache {cache}");
        }
    }

    #[test]
    fn impossible_options_are_errors() {
        let folder = Folder::of_pairs(1, 4, 4);
        let fails = |options: LoaderOptions, expected: &str| {
            let message = loader(&folder, options).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        };
        fails(LoaderOptions { batch_size: 0, ..LoaderOptions::default() }, "batch_size");
        fails(LoaderOptions { first_batch: u64::MAX, ..LoaderOptions::default() }, "first_batch");
        let augmentation = Augmentation { flip: 2.0, ..Augmentation::default() };
        fails(LoaderOptions { augmentation, ..LoaderOptions::default() }, "augment.flip");
        let dataset = Arc::new(Dataset::open(folder.root()).unwrap());
        assert!(Loader::new(dataset, Vec::new(), LoaderOptions::default()).is_err());
    }
}
