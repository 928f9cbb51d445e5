//! The training loop: batches in, checkpoints, log and pictures out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::batch_size::largest_batch;
use super::evaluate::{EvalOptions, evaluate};
use super::log::{self, Event, RunLog, Start, Step};
use super::metrics::Scores;
use super::progress::{Pace, Progress};
use super::recipe::{KeepBest, Recipe};
use crate::checkpoint::{Checkpoint, OPTIMIZER, RealDisk, replace_file};
use crate::data::{Batch, Dataset, Item, Loader, LoaderOptions, default_workers};
use crate::gpu::{Description, Plan, Tuning};
use crate::infer::Segmenter;
use crate::model::Model;
use crate::nn::Fit;
use crate::ops::{Image, Normalize};
use crate::optim::AdamW;
use crate::picture::{Series, Sheet, SheetRow, curve};
use crate::{Error, Gpu, Result, Tensor, error};

/// Names of the files in a run's folder.
pub const LATEST: &str = "latest.safetensors";
/// The checkpoint with the best score so far.
pub const BEST: &str = "best.safetensors";
/// The resolved recipe.
pub const RECIPE: &str = "recipe.toml";

/// What to train, on what, and where to.
#[derive(Debug)]
pub struct TrainOptions {
    /// Everything that decides the result.
    pub recipe: Recipe,
    /// The data set's folder.
    pub data: PathBuf,
    /// The run's folder; made if it is not there.
    pub run: PathBuf,
    /// Whether to continue a run.
    pub resume: Resume,
    /// Weights to start from, under official names; what the model has and the file lacks keeps its
    /// initial value.
    pub weights: Option<PathBuf>,
    /// Set it to stop after the current iteration, with a checkpoint.
    pub stop: Arc<AtomicBool>,
}

/// Where a run continues.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Resume {
    /// Nowhere: the folder must not hold a run.
    #[default]
    Never,
    /// At the folder's latest checkpoint; at the beginning if it has none yet.
    Auto,
    /// At this checkpoint.
    From(PathBuf),
}

impl Resume {
    /// The checkpoint to continue from.
    pub fn checkpoint(&self, run: &Path) -> Option<PathBuf> {
        match self {
            Self::Never => None,
            Self::Auto => Some(run.join(LATEST)).filter(|latest| latest.exists()),
            Self::From(path) => Some(path.clone()),
        }
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All iterations are done.
    Finished,
    /// It was stopped after this many iterations, and can be resumed.
    Stopped(usize),
}

/// Trains a model.
///
/// The run's folder gets the resolved recipe, a log of every iteration, the latest and the best
/// checkpoint, the learning curve and a sheet that compares predictions with the ground truth.
/// A run that was killed at any instant and is resumed ends with the same bits as one that was not,
/// on the same device and driver.
///
/// # Errors
///
/// When something about recipe, data, folder, checkpoint or device is wrong; and when the loss is no
/// longer a number.
pub fn train(gpu: &Gpu, options: TrainOptions) -> Result<Outcome> {
    let mut run = Run::start(gpu, options)?;
    let outcome = run.iterate();
    if let Err(error) = &outcome {
        run.progress.say(&format!("stopped after iteration {}: {error}", run.iteration));
    }
    outcome
}

/// A run that is going on.
struct Run {
    gpu: Gpu,
    options: TrainOptions,
    dataset: Arc<Dataset>,
    train_items: Vec<Item>,
    eval_items: Vec<Item>,
    model: Arc<Model>,
    adamw: AdamW,
    /// `[4]` of `u32`: seed, step.
    random: Tensor,
    update: Option<Plan>,
    segmenter: Segmenter,
    log: RunLog,
    progress: Progress,
    pace: Pace,
    batch_size: usize,
    /// Complete ones.
    iteration: usize,
    best: Option<f64>,
}

/// Names of losses that every line of the log has.
const TOTAL: &str = "loss";
const CE: &str = "loss_ce";
const CATE: &str = "loss_cate";

/// The forward and backward pass for batches of one shape.
struct Pass {
    shape: [usize; 3],
    rgba: Tensor,
    labels: Tensor,
    /// All of them together; cross entropy; that of priors, if there are any; and the others.
    losses: Vec<(String, Tensor, usize)>,
    plan: Plan,
}

impl Run {
    fn start(gpu: &Gpu, mut options: TrainOptions) -> Result<Self> {
        let dataset = Arc::new(Dataset::open_as(&options.data, options.recipe.data.format)?);
        options.recipe.set_num_classes(dataset.classes.len())?;
        options.recipe.validate()?;
        options.recipe.check_device(gpu.profile())?;
        let recipe = &options.recipe;
        let train_items = dataset.split("train")?;
        let mut eval_items = dataset.split(&recipe.eval.split)?;
        eval_items.truncate(recipe.eval.max_images.unwrap_or(usize::MAX));

        let model = Arc::new(Model::new(&recipe.model)?);
        let batch_size = match recipe.data.batch_size {
            Some(pictures) => pictures,
            None => {
                let size = picture_size(recipe, &dataset, &train_items)?;
                let budget = recipe.train.budget(gpu.kind());
                largest_batch(recipe, &model, gpu.profile(), size, budget)?
            }
        };
        options.recipe.data.batch_size = Some(batch_size);
        let recipe = &options.recipe;
        let mut adamw = AdamW::new(model.parameters(), recipe.adamw_settings());
        adamw.set_groups(gpu, model.parameters(), |name, rank| {
            let table = &recipe.optimizer;
            (table.lr_factor_of(name) as f32, table.weight_decay_of(name, rank) as f32)
        })?;
        model.parameters().initialise(gpu, recipe.seed)?;
        let mut notes = Vec::new();
        if let Some(path) = &options.weights {
            let file = Checkpoint::read_where(path, |name| !name.starts_with(OPTIMIZER))?;
            let fit = model.parameters().load_some(gpu, &file, path)?;
            notes = initialised(&fit, path);
        }

        let folder = &options.run;
        std::fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
        let log_path = folder.join(log::FILE_NAME);
        let (mut iteration, mut best) = (0, None);
        let mut gpu = gpu.clone();
        if let Some(path) = &options.resume.checkpoint(folder) {
            let checkpoint = Checkpoint::read(path)?;
            let state = State::read(&checkpoint, path)?;
            state.check(recipe, path)?;
            // On another device the bits are others whatever runs.
            if state.device == gpu.identity() {
                gpu = gpu.with_tuning(state.tuning);
            }
            model.parameters().load(&gpu, &checkpoint, path)?;
            let updates = state.iteration as u64;
            adamw.load(&gpu, model.parameters(), &checkpoint, path, updates)?;
            (iteration, best) = (state.iteration, state.best);
        }
        // A run that was killed before its first checkpoint has a log already, and begins again.
        if options.resume != Resume::Never && iteration == 0 && log_path.exists() {
            std::fs::remove_file(&log_path).map_err(Error::file("remove", &log_path))?;
        }
        let log = match iteration {
            0 => RunLog::create(&log_path)?,
            _ if log_path.exists() => RunLog::resume(&log_path, iteration)?,
            _ => RunLog::create(&log_path)?,
        };
        write_text(&folder.join(RECIPE), &recipe.to_toml())?;
        let progress = Progress::stderr(recipe.schedule.iterations, iteration);
        let mut run = Self {
            segmenter: Segmenter::new(&gpu, model.clone()),
            gpu,
            dataset,
            train_items,
            eval_items,
            model,
            adamw,
            random: Tensor::pinned("random state", [4]),
            update: None,
            log,
            progress,
            pace: Pace::default(),
            batch_size,
            iteration,
            best,
            options,
        };
        run.announce()?;
        notes.iter().for_each(|note| run.progress.say(note));
        Ok(run)
    }

    fn announce(&mut self) -> Result<()> {
        let recipe = &self.options.recipe;
        let parameters = self.model.parameters().count();
        if self.iteration > 0 {
            self.log.write(&Event::Resume { iteration: self.iteration })?;
            self.progress.say(&format!("resuming after iteration {}", self.iteration));
            return Ok(());
        }
        self.log.write(&Event::Start(Start {
            name: &recipe.name,
            version: env!("CARGO_PKG_VERSION"),
            device: self.gpu.name(),
            parameters,
            iterations: recipe.schedule.iterations,
            batch_size: self.batch_size,
            train_images: self.train_items.len(),
            eval_images: self.eval_items.len(),
        }))?;
        self.progress.say(&format!(
            "training {} ({:.1} M parameters) on {} pictures of {} (layout {}), with {}",
            recipe.name,
            parameters as f64 / 1e6,
            self.train_items.len(),
            self.dataset.name,
            self.dataset.format.name(),
            self.gpu.name(),
        ));
        Ok(())
    }

    fn iterate(&mut self) -> Result<Outcome> {
        let recipe = self.options.recipe.clone();
        let iterations = recipe.schedule.iterations;
        let accumulate = recipe.optimizer.accumulate.max(1);
        let schedule = recipe.schedule();
        let mut loader = Loader::new(
            self.dataset.clone(),
            self.train_items.clone(),
            LoaderOptions {
                batch_size: self.batch_size,
                workers: recipe.data.workers.unwrap_or_else(default_workers),
                seed: recipe.data_seed(),
                order: recipe.data.order,
                augmentation: recipe.augment.clone(),
                divisor: recipe.model.size_divisor(),
                first_batch: (self.iteration * accumulate) as u64,
                cache: true,
            },
        )?;
        let mut pass: Option<Pass> = None;
        while self.iteration < iterations {
            let start = Instant::now();
            let lr = schedule.lr(self.iteration);
            let mut losses: BTreeMap<String, f32> = BTreeMap::new();
            for part in 0..accumulate {
                let batch = loader.next()?;
                let shape = [batch.batch, batch.height, batch.width];
                if pass.as_ref().is_none_or(|pass| pass.shape != shape) {
                    // The old one's memory goes first.
                    drop(pass.take());
                    pass = Some(self.record(shape)?);
                }
                let pass = pass.as_ref().expect("recorded above");
                let number = (self.iteration * accumulate + part) as u64;
                for (name, loss) in self.run_pass(pass, &batch, number)? {
                    *losses.entry(name).or_default() += loss / accumulate as f32;
                }
            }
            self.prepare_update(lr)?;
            self.update()?.run()?;
            self.iteration += 1;

            let mut take = |name: &str| losses.remove(name);
            let [loss, loss_ce] = [TOTAL, CE].map(|name| take(name).expect("every model has it"));
            let loss_cate = take(CATE);
            if !loss.is_finite() {
                let or = match self.adamw.loss_scale() {
                    Some(_) => ", or set train.precision = \"full\"",
                    None => "",
                };
                return Err(Error::invalid(
                    format!("iteration {}", self.iteration),
                    format!(
                        "the loss is {loss}; lower optimizer.lr or set optimizer.clip_norm{or}"
                    ),
                ));
            }
            self.pace.step(self.batch_size * accumulate, start.elapsed());
            let step = Step {
                iteration: self.iteration,
                loss,
                loss_ce,
                loss_cate,
                loss_terms: losses,
                lr,
                images_per_s: self.pace.images_per_s(),
                seconds_left: self.pace.seconds_left(iterations - self.iteration),
            };
            self.log.write(&Event::Step(step.clone()))?;
            self.progress.step(&step);

            let last = self.iteration == iterations;
            let done = self.iteration;
            let due = |every: usize| every > 0 && done.is_multiple_of(every);
            let stopping = self.options.stop.load(Ordering::Relaxed);
            if last || due(recipe.eval.every) {
                self.evaluate()?;
            }
            if last || stopping || due(recipe.checkpoint.every) {
                self.save(LATEST)?;
            }
            if last {
                self.draw()?;
                return Ok(Outcome::Finished);
            }
            if stopping {
                self.log
                    .write(&Event::Stop { iteration: self.iteration, reason: "stopped by hand" })?;
                return Ok(Outcome::Stopped(self.iteration));
            }
        }
        self.draw()?;
        Ok(Outcome::Finished)
    }

    /// Records the forward and backward pass for one shape of batches.
    fn record(&mut self, shape: [usize; 3]) -> Result<Pass> {
        let rgba = Tensor::pinned("pictures", shape);
        let labels = Tensor::pinned("labels", [shape.iter().product::<usize>().div_ceil(4)]);
        let recipe = &self.options.recipe;
        let mut tape = recipe.tape(self.gpu.profile(), &self.random);
        let config = self.model.config();
        let normalize = Normalize { mean: config.mean, std: config.std, flip: false };
        let image = Image::bytes(&rgba, normalize);
        let losses = self.model.losses(&mut tape, image, &labels, recipe.loss_settings());
        let recorder = tape.recorder();
        let own =
            [(TOTAL, Some(&losses.total)), (CE, Some(&losses.ce)), (CATE, losses.cate.as_ref())];
        let own = own.into_iter().filter_map(|(name, term)| Some((name.to_owned(), term?, 0)));
        let kept = own
            .chain(losses.more_terms())
            .map(|(name, term, at)| (name, recorder.keep(term, "losses"), at))
            .collect();
        let (mut recorder, gradients) = self.adamw.backward(tape, &losses.total);
        self.adamw.record_gradients(&mut recorder, self.model.parameters(), &gradients)?;
        self.progress.say(&memory_line(&Plan::describe(&recorder)));
        let plan = Plan::new(&self.gpu, &recorder)?;
        Ok(Pass { shape, rgba, labels, losses: kept, plan })
    }

    /// One batch's gradients; its losses by name.
    fn run_pass(&self, pass: &Pass, batch: &Batch, number: u64) -> Result<Vec<(String, f32)>> {
        let seed = self.options.recipe.seed;
        let words = [seed as u32, (seed >> 32) as u32, number as u32, (number >> 32) as u32];
        self.random.write(&self.gpu, &words)?;
        pass.rgba.write(&self.gpu, &batch.rgba)?;
        let mut labels = batch.labels.clone();
        labels.resize(labels.len().next_multiple_of(4), crate::data::IGNORE);
        pass.labels.write(&self.gpu, &labels)?;
        pass.plan.run()?;
        let read = |(name, term, at): &(String, Tensor, usize)| {
            Ok((name.clone(), term.read(&self.gpu)?[*at]))
        };
        pass.losses.iter().map(read).collect()
    }

    /// Tells the optimiser what the next update is to be, and the user if the last one was left out.
    fn prepare_update(&mut self, lr: f64) -> Result<()> {
        let before = self.adamw.loss_scale();
        self.adamw.prepare(&self.gpu, lr)?;
        let (Some(before), Some(now)) = (before, self.adamw.loss_scale()) else { return Ok(()) };
        if now.left_out == before.left_out {
            return Ok(());
        }
        let iteration = self.iteration;
        if before.factor <= 1.0 {
            return Err(Error::invalid(
                format!("iteration {iteration}"),
                "the gradient is not finite even without a loss scale; lower optimizer.lr or set \
                 train.precision = \"full\"",
            ));
        }
        self.progress.say(&format!(
            "iteration {iteration}: the gradient is beyond the range of 16 bits; update left out, loss scale {} \
             from now on",
            now.factor
        ));
        Ok(())
    }

    /// The update of all parameters; planned on first use.
    fn update(&mut self) -> Result<&Plan> {
        if self.update.is_none() {
            let mut recorder = crate::gpu::Recorder::new(self.gpu.profile());
            self.adamw.record_update(&mut recorder);
            self.update = Some(Plan::new(&self.gpu, &recorder)?);
        }
        Ok(self.update.as_ref().expect("planned above"))
    }

    /// Scores the model and keeps it if it is the best so far.
    fn evaluate(&mut self) -> Result<()> {
        let start = Instant::now();
        let recipe = &self.options.recipe;
        let (items, options) = (&self.eval_items, EvalOptions::of(recipe));
        let segmenter = &mut self.segmenter;
        let confusion =
            evaluate(segmenter, &self.dataset, items, &recipe.augment, &options, |_| {})?;
        let scores = confusion.scores();
        self.log.write(&Event::Eval {
            iteration: self.iteration,
            split: &self.options.recipe.eval.split,
            scores: &scores,
            seconds: start.elapsed().as_secs_f64(),
        })?;
        self.progress.eval(self.iteration, &scores);
        let score = score(self.options.recipe.checkpoint.keep_best, &scores);
        if let Some(score) = score.filter(|s| self.best.is_none_or(|best| *s > best)) {
            self.best = Some(score);
            self.save(BEST)?;
        }
        Ok(())
    }

    fn save(&mut self, file: &str) -> Result<()> {
        let mut checkpoint = Checkpoint::default();
        self.model.parameters().save(&self.gpu, &mut checkpoint)?;
        self.adamw.save(&self.gpu, self.model.parameters(), &mut checkpoint)?;
        let state = State {
            iteration: self.iteration,
            best: self.best,
            device: self.gpu.identity(),
            tuning: self.gpu.profile().tuning.as_ref().clone(),
        };
        state.write(&mut checkpoint, &self.options.recipe, &self.dataset);
        // The log first: what a checkpoint stands for is on record when it appears.
        self.log.write(&Event::Checkpoint { iteration: self.iteration, file })?;
        checkpoint.write_atomic(&self.options.run.join(file))
    }

    /// The learning curve, and some predictions beside the ground truth.
    fn draw(&mut self) -> Result<()> {
        let folder = self.options.run.clone();
        let events = log::read(&folder.join(log::FILE_NAME))?;
        learning_curve(&events, &self.options.recipe.name).write_png(&folder.join("curve.png"))?;

        let best = folder.join(BEST);
        if best.exists() {
            let checkpoint = Checkpoint::read(&best)?;
            self.model.parameters().load(&self.gpu, &checkpoint, &best)?;
        }
        const ROWS: usize = 6;
        let every = (self.eval_items.len() / ROWS).max(1);
        let mut rows = Vec::new();
        let look = EvalOptions::of(&self.options.recipe);
        for item in self.eval_items.iter().step_by(every).take(ROWS) {
            let sample = self.options.recipe.augment.evaluation(self.dataset.load(item)?);
            let views = look.views(&sample.image)?;
            let (width, height) = (sample.image.width, sample.image.height);
            let ids = self.segmenter.labels(&views, height, width, look.slide.as_ref())?;
            let mut confusion = super::metrics::Confusion::new(self.dataset.classes.len());
            confusion.add(&ids, &sample.labels.ids)?;
            rows.push((sample, ids, confusion.scores()));
        }
        let sheet = Sheet {
            title: &format!("{}: {}", self.options.recipe.name, self.dataset.name),
            classes: &self.dataset.classes,
            palette: &self.dataset.palette,
            rows: (rows.iter())
                .map(|(sample, ids, scores)| SheetRow {
                    caption: format!(
                        "{}: mIoU {:.1}, pixels right {:.1} %",
                        sample.name,
                        100.0 * scores.miou,
                        100.0 * scores.aacc
                    ),
                    width: sample.image.width,
                    height: sample.image.height,
                    rgb: &sample.image.pixels,
                    labels: &sample.labels.ids,
                    prediction: ids,
                })
                .collect(),
        };
        sheet.draw().write_png(&folder.join("comparison.png"))
    }
}

/// What a run started with, in lines.
fn initialised(fit: &Fit, path: &Path) -> Vec<String> {
    let taken = fit.equal.len() + fit.resized.len();
    let all = taken + fit.missing.len() + fit.mismatched.len();
    let mut lines = vec![format!("starting from {}: {taken} of {all} arrays", path.display())];
    let others: Vec<_> = fit.mismatched.iter().map(|other| other.name.clone()).collect();
    for (what, names) in [
        ("resized", &fit.resized),
        ("of another shape there, starting anew", &others),
        ("not there, starting anew", &fit.missing),
        ("left out", &fit.unexpected),
    ] {
        if !names.is_empty() {
            lines.push(format!("  {what}: {}", error::list(names)));
        }
    }
    lines
}

/// Height and width of the pictures of a batch.
fn picture_size(recipe: &Recipe, dataset: &Dataset, items: &[Item]) -> Result<[usize; 2]> {
    match (recipe.augment.crop_size, &recipe.augment.resize, items) {
        (Some(size), ..) => Ok(size),
        (None, None, [first, ..]) => {
            let image = dataset.load(first)?.image;
            Ok([image.height, image.width])
        }
        _ => Err(Error::invalid(
            "data.batch_size",
            "\"auto\" needs augment.crop_size, or pictures that keep their size",
        )),
    }
}

fn score(keep: KeepBest, scores: &Scores) -> Option<f64> {
    let score = match keep {
        KeepBest::Miou => scores.miou,
        KeepBest::Macc => scores.macc,
        KeepBest::Aacc => scores.aacc,
        KeepBest::None => return None,
    };
    score.is_finite().then_some(score)
}

/// One line on what a pass takes.
fn memory_line(description: &Description) -> String {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    format!(
        "memory: {:.0} MiB for activations in {} buffers ({:.0} MiB without sharing), {:.0} MiB for \
         parameters, gradients and inputs; {} kernels, {:.1} GFLOP a pass",
        mib(description.planned_bytes()),
        description.slots.len(),
        mib(description.unshared),
        mib(description.pinned_bytes()),
        description.dispatches(),
        description.flops() as f64 / 1e9,
    )
}

/// Loss, and mIoU on a scale of its own, over the iterations of a log.
fn learning_curve(events: &[serde_json::Value], name: &str) -> crate::picture::Picture {
    let points = |event: &str, key: &str, factor: f64| -> Vec<(f64, f64)> {
        let of_kind = events.iter().filter(|e| e["event"] == event);
        of_kind
            .filter_map(|e| Some((e["iteration"].as_f64()?, factor * e[key].as_f64()?)))
            .collect()
    };
    let losses = points("step", "loss", 1.0);
    // A mean over 2 % of the run: single batches scatter.
    let width = (losses.len() / 50).max(1);
    let smooth = losses.windows(width).map(|w| {
        let mean = w.iter().map(|(_, loss)| loss).sum::<f64>() / w.len() as f64;
        (w[w.len() - 1].0, mean)
    });
    let series =
        |name: &str, colour, points, right| Series { name: name.into(), colour, points, right };
    let series = [
        series("loss", [31, 119, 180], smooth.collect(), false),
        series("mIoU %", [214, 39, 40], points("eval", "miou", 100.0), true),
        series("pixels right %", [44, 160, 44], points("eval", "aacc", 100.0), true),
    ];
    curve(&series, name, "iteration", "loss")
}

/// Where a run stands, in a checkpoint's metadata.
struct State {
    iteration: usize,
    best: Option<f64>,
    /// [`Gpu::identity`] of the device that it ran on.
    device: String,
    /// Variants of kernels that it runs.
    tuning: Tuning,
}

impl State {
    fn write(&self, checkpoint: &mut Checkpoint, recipe: &Recipe, dataset: &Dataset) {
        let json = |value: serde_json::Value| value.to_string();
        let entries = [
            ("format", "semask-gpu 1".to_owned()),
            ("recipe", recipe.to_toml()),
            ("iteration", self.iteration.to_string()),
            // Bits, so that a resumed run compares with the very same number.
            ("best", self.best.map_or(String::new(), |best| best.to_bits().to_string())),
            ("classes", json(dataset.classes.clone().into())),
            ("palette", json(serde_json::json!(dataset.palette))),
            ("device", self.device.clone()),
            ("tuning", json(serde_json::json!(self.tuning))),
        ];
        checkpoint.metadata.extend(entries.map(|(key, value)| (key.to_owned(), value)));
    }

    fn read(checkpoint: &Checkpoint, path: &Path) -> Result<Self> {
        let get = |key: &str| {
            checkpoint.metadata.get(key).ok_or_else(|| {
                Error::invalid_file(path, format!("is no training checkpoint: it has no {key:?}"))
            })
        };
        let broken = |key: &str| Error::invalid_file(path, format!("{key:?} is broken"));
        let best = match get("best")?.as_str() {
            "" => None,
            bits => Some(f64::from_bits(bits.parse().map_err(|_| broken("best"))?)),
        };
        // Checkpoints of before there was a choice have none.
        let device = checkpoint.metadata.get("device").cloned().unwrap_or_default();
        let tuning = match checkpoint.metadata.get("tuning") {
            Some(text) => serde_json::from_str(text).map_err(|_| broken("tuning"))?,
            None => Tuning::default(),
        };
        let iteration = get("iteration")?.parse().map_err(|_| broken("iteration"))?;
        Ok(Self { iteration, best, device, tuning })
    }

    fn check(&self, recipe: &Recipe, path: &Path) -> Result<()> {
        if self.iteration > recipe.schedule.iterations {
            return Err(Error::invalid_file(
                path,
                format!(
                    "has {} iterations behind it but schedule.iterations is {}",
                    self.iteration, recipe.schedule.iterations
                ),
            ));
        }
        Ok(())
    }
}

fn write_text(path: &Path, text: &str) -> Result<()> {
    replace_file(&RealDisk, path, text.len() as u64, |out| out.write_all(text.as_bytes()))
}
