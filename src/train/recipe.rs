//! [`Recipe`]: everything that decides a training run, as a TOML file.
//!
//! ```toml
//! preset = "semask-t"     # what is not said here is as in this preset
//! name = "streets"
//!
//! [data]
//! batch_size = 8
//!
//! [schedule]
//! iterations = 20000
//! ```
//!
//! A value comes from the first of these that has it: `--set KEY=VALUE`, the file, what suits the head
//! ([`Recipe::suit`]) where that is another than the preset's, the preset that the file or the command
//! line names, [`Recipe::default`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::batch_size;
use super::recipes::Named;
use super::schedule::{Schedule, WarmupKind};
use super::strict::{self, KeyError};
use crate::data::{Augmentation, Format, Order};
use crate::gpu::Profile;
pub use crate::infer::Slide;
use crate::model::{Head, LossSettings, MaskSettings, ModelConfig, PointSettings};
use crate::ops::MaskWeights;
use crate::optim::AdamWSettings;
use crate::wgpu::DeviceType;
use crate::{Error, Result, Tape, Tensor};

/// The longest recipe that is read.
const MAX_BYTES: u64 = 1 << 20;

/// Everything that decides a training run, data set and machine aside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// What the run is called.
    pub name: String,
    /// Seed of all random numbers.
    pub seed: u64,
    /// The model. `num_classes` is 0 until [`Recipe::set_num_classes`]: as many as the data set has.
    pub model: ModelConfig,
    /// Batches.
    pub data: DataTable,
    /// How samples are distorted.
    pub augment: Augmentation,
    /// AdamW.
    pub optimizer: OptimizerTable,
    /// Length of the run and learning rate.
    pub schedule: ScheduleTable,
    /// The loss.
    pub loss: LossTable,
    /// Evaluation during the run.
    pub eval: EvalTable,
    /// Checkpoints.
    pub checkpoint: CheckpointTable,
    /// How a step uses memory.
    pub train: TrainTable,
}

/// `[data]`: what data set it is and how batches are made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataTable {
    /// How the data set lies on disk.
    pub format: Format,
    /// Pictures per batch; `"auto"`: as many as `train.memory_budget_mib` allows.
    #[serde(with = "strict::auto")]
    pub batch_size: Option<usize>,
    /// Threads that read and distort samples; `"none"`: as many as the machine likes.
    #[serde(with = "strict::none")]
    pub workers: Option<usize>,
    /// The order of samples.
    pub order: Order,
    /// Seed of order and distortion; `"none"`: the recipe's.
    #[serde(with = "strict::none")]
    pub seed: Option<u64>,
}

/// `[optimizer]`: AdamW (Loshchilov & Hutter 2019, <https://arxiv.org/abs/1711.05101>).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerTable {
    /// Base learning rate, before the schedule.
    pub lr: f64,
    /// What the encoder's learning rate is multiplied by.
    pub backbone_lr: f64,
    /// Decay of the first and second moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Fraction of a parameter that goes per step, in units of the learning rate.
    pub weight_decay: f64,
    /// Parameters whose names contain one of these do not decay.
    pub no_decay: Vec<String>,
    /// Whether no parameter with a single axis decays: biases, norms.
    pub no_decay_1d: bool,
    /// The largest L2 norm of all gradients together; above it they shrink. `"none"`: no limit.
    #[serde(with = "strict::none")]
    pub clip_norm: Option<f64>,
    /// Batches whose gradients are averaged for one step.
    pub accumulate: usize,
}

/// `[schedule]`: the length of the run, and the learning rate; see [`Schedule`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleTable {
    /// Steps of the optimiser.
    pub iterations: usize,
    /// Steps during which the learning rate rises.
    pub warmup: usize,
    /// Where it rises from, in units of what it would be without warm-up.
    pub warmup_ratio: f64,
    /// How it rises.
    pub warmup_kind: WarmupKind,
    /// Power of the polynomial by which it falls.
    pub power: f64,
    /// What it falls to.
    pub min_lr: f64,
}

/// `[loss]`. Heads that find masks have `cate_w` and all but `ohem_min_kept`; the others have those two.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LossTable {
    /// Weight of the loss on the semantic maps.
    pub cate_w: f64,
    /// Online hard example mining: only so many pixels per picture of the batch, those of largest
    /// loss, count. `"none"`: all do.
    #[serde(with = "strict::none")]
    pub ohem_min_kept: Option<usize>,
    /// Weight of the queries' classes, in the loss and in what a match costs.
    pub class_w: f64,
    /// Weight of the masks, pixel by pixel.
    pub mask_w: f64,
    /// Weight of the masks' overlap.
    pub dice_w: f64,
    /// What a query without a target counts, next to one with.
    pub no_object_w: f64,
    /// Points at which a mask is compared with its target, by binary cross entropy, as Mask2Former does;
    /// `"none"`: the whole picture, by focal loss, as MaskFormer does.
    #[serde(with = "strict::none")]
    pub num_points: Option<usize>,
    /// Candidates for these points, in units of their number.
    pub oversample: f64,
    /// Part of the points that are the candidates where the mask is least certain.
    pub importance: f64,
}

/// `[eval]`: evaluation during the run, and always at its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvalTable {
    /// Iterations from one evaluation to the next.
    pub every: usize,
    /// The part of the data set.
    pub split: String,
    /// At most so many pictures, the first ones; `"none"`: all.
    #[serde(with = "strict::none")]
    pub max_images: Option<usize>,
    /// Sides of the box, long and short in pixels, that pictures are scaled into. `"none"`: they
    /// keep their size.
    #[serde(with = "strict::none")]
    pub resize: Option<[usize; 2]>,
    /// Whether pictures are smoothed where they shrink into the box, as Pillow does, rather than resized as
    /// OpenCV does.
    pub smooth: bool,
    /// `[eval.slide]`: overlapping windows instead of the whole picture at once; `"none"`: the whole picture.
    #[serde(with = "strict::none")]
    pub slide: Option<Slide>,
}

/// `[checkpoint]`: what is kept on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointTable {
    /// Iterations from one checkpoint to the next; there is always one at the end.
    pub every: usize,
    /// The score whose best checkpoint is kept beside the last one.
    pub keep_best: KeepBest,
}

/// `[train]`: how a step uses memory. It changes no result.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainTable {
    /// Whether blocks of the encoder keep only their inputs for the backward pass, which then
    /// computes them once more: less memory, about a third more time.
    pub checkpoint_activations: bool,
    /// Bits of what linear layers and convolutions read.
    pub precision: Precision,
    /// Memory in MiB that a step may take; `"none"`: half of the machine's on devices that share it, 4096
    /// on others.
    #[serde(with = "strict::none")]
    pub memory_budget_mib: Option<u64>,
}

impl TrainTable {
    /// Memory in bytes that a step may take on a device of a kind.
    pub fn budget(&self, kind: DeviceType) -> u64 {
        self.memory_budget_mib.map_or_else(|| batch_size::default_budget(kind), |mib| mib << 20)
    }
}

/// Bits of what linear layers and convolutions read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Precision {
    /// 32.
    #[default]
    Full,
    /// 16, on devices that have such numbers; sums, parameters and all else have 32, and the loss is scaled
    /// (Micikevicius et al. 2018, <https://arxiv.org/abs/1710.03740>). Less memory; faster where the device
    /// is fast at it.
    Mixed,
}

/// A score by which checkpoints are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum KeepBest {
    /// Mean intersection over union.
    Miou,
    /// Mean accuracy of classes.
    Macc,
    /// Accuracy of pixels.
    Aacc,
    /// None: only the last checkpoint is kept.
    None,
}

impl Default for Recipe {
    /// SeMask-Swin-T, its official optimiser and schedule; samples are neither distorted nor scaled.
    fn default() -> Self {
        Self {
            name: "run".into(),
            seed: 0,
            model: ModelConfig { num_classes: 0, ..ModelConfig::default() },
            data: DataTable::default(),
            augment: Augmentation::default(),
            optimizer: OptimizerTable::default(),
            schedule: ScheduleTable::default(),
            loss: LossTable::default(),
            eval: EvalTable::default(),
            checkpoint: CheckpointTable::default(),
            train: TrainTable::default(),
        }
    }
}

impl Default for DataTable {
    fn default() -> Self {
        Self {
            format: Format::Auto,
            batch_size: Some(16),
            workers: None,
            order: Order::Shuffle,
            seed: None,
        }
    }
}

impl Default for OptimizerTable {
    fn default() -> Self {
        let no_decay = ["absolute_pos_embed", "relative_position_bias_table", "norm"];
        Self {
            lr: 1e-4,
            backbone_lr: 1.0,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 1e-4,
            no_decay: no_decay.map(String::from).into(),
            no_decay_1d: false,
            clip_norm: None,
            accumulate: 1,
        }
    }
}

impl Default for ScheduleTable {
    fn default() -> Self {
        Self {
            iterations: 80_000,
            warmup: 1500,
            warmup_ratio: 1e-6,
            warmup_kind: WarmupKind::Linear,
            power: 1.0,
            min_lr: 0.0,
        }
    }
}

impl Default for LossTable {
    fn default() -> Self {
        Self {
            cate_w: 0.4,
            ohem_min_kept: None,
            class_w: 2.0,
            mask_w: 5.0,
            dice_w: 5.0,
            no_object_w: 0.1,
            num_points: Some(12_544),
            oversample: 3.0,
            importance: 0.75,
        }
    }
}

impl Default for EvalTable {
    fn default() -> Self {
        Self {
            every: 8000,
            split: "val".into(),
            max_images: None,
            resize: None,
            smooth: false,
            slide: None,
        }
    }
}

impl Default for CheckpointTable {
    fn default() -> Self {
        Self { every: 8000, keep_best: KeepBest::Miou }
    }
}

impl Recipe {
    /// The recipe of this name that comes with the program; [`recipes`](super::recipes) has them.
    ///
    /// # Errors
    ///
    /// When there is no such recipe; the message says which one may be meant.
    pub fn preset(name: &str) -> Result<Self> {
        Named::get(name)?.recipe()
    }

    /// The recipe that a command line names, with `overrides`, each `KEY=VALUE`: a file, or where
    /// there is none of this name one that comes with the program.
    ///
    /// # Errors
    ///
    /// As [`Recipe::load`] and [`Recipe::preset_with`].
    pub fn find(name: &Path, overrides: &[impl AsRef<str>]) -> Result<Self> {
        match name.to_str() {
            Some(text) if name.extension().is_none() && !name.exists() => {
                Self::preset_with(text, overrides)
            }
            _ => Self::load_with(name, overrides),
        }
    }

    /// A tape for a training step whose random numbers come from `state`.
    ///
    /// # Panics
    ///
    /// If [`check_device`](Self::check_device) refuses `profile`.
    pub fn tape(&self, profile: &Profile, state: &Tensor) -> Tape {
        let tape = Tape::training(profile).randomised(state);
        let mixed = self.train.precision == Precision::Mixed;
        tape.checkpointing(self.train.checkpoint_activations).mixed(mixed)
    }

    /// Whether devices like `profile` can train it.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] that names the key which asks for too much.
    pub fn check_device(&self, profile: &Profile) -> Result<()> {
        if self.train.precision == Precision::Mixed && !profile.half {
            let why = "\"mixed\" needs numbers of 16 bits, which this device lacks; use \"full\"";
            return Err(Error::invalid("train.precision", why));
        }
        Ok(())
    }

    /// How AdamW works.
    pub fn adamw_settings(&self) -> AdamWSettings {
        let table = &self.optimizer;
        AdamWSettings {
            betas: table.betas.map(|b| b as f32),
            eps: table.eps as f32,
            max_norm: table.clip_norm.map(|n| n as f32),
            accumulate: table.accumulate.max(1),
            loss_scale: self.train.precision == Precision::Mixed,
        }
    }

    /// How the losses are weighed.
    pub fn loss_settings(&self) -> LossSettings {
        let LossTable { cate_w, ohem_min_kept, no_object_w, num_points, .. } = self.loss;
        let [class, mask, dice, oversample, importance] = [
            self.loss.class_w,
            self.loss.mask_w,
            self.loss.dice_w,
            self.loss.oversample,
            self.loss.importance,
        ]
        .map(|v| v as f32);
        let points = num_points.map(|count| PointSettings { count, oversample, importance });
        let weights = MaskWeights { class, mask, dice };
        let masks = MaskSettings { weights, no_object: no_object_w as f32, points };
        LossSettings { cate_w: cate_w as f32, ohem_min_kept, masks }
    }

    /// Reads the file `path`.
    ///
    /// # Errors
    ///
    /// [`Error::File`] when it cannot be read, [`Error::Invalid`] with line and key when it is no
    /// recipe or [`Recipe::validate`] refuses it.
    pub fn load(path: &Path) -> Result<Self> {
        Self::load_with(path, &[] as &[&str])
    }

    /// Reads the file `path` and applies `overrides`, each `KEY=VALUE`.
    ///
    /// # Errors
    ///
    /// As [`Recipe::load`]; also about the overrides.
    pub fn load_with(path: &Path, overrides: &[impl AsRef<str>]) -> Result<Self> {
        let mut text = String::new();
        let file = File::open(path).map_err(Error::file("read", path))?;
        file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(Error::file("read", path))?;
        if text.len() as u64 > MAX_BYTES {
            let reason = format!("is no recipe: it has more than {MAX_BYTES} bytes");
            return Err(Error::invalid_file(path, reason));
        }
        Self::from_toml_with(&text, &path.display().to_string(), overrides)
    }

    /// The recipe that `text` is; errors call it `origin`.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] with line and key.
    pub fn from_toml(text: &str, origin: &str) -> Result<Self> {
        Self::from_toml_with(text, origin, &[] as &[&str])
    }

    /// The recipe that `text` is with `overrides`, each `KEY=VALUE`; errors call it `origin`.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] with the line or the override, and the key.
    pub fn from_toml_with(text: &str, origin: &str, overrides: &[impl AsRef<str>]) -> Result<Self> {
        let line = |at: usize| 1 + text[..at.min(text.len())].matches('\n').count();
        let parsed = DeTable::parse(text).map_err(|error| {
            let place = error.span().map_or(0, |span| line(span.start));
            Error::invalid(format!("{origin}:{place}"), error.message().trim_end())
        })?;
        let mut places = Places::default();
        places.add_file(parsed.get_ref(), "", &|at| format!("{origin}:{}: ", line(at)));
        let file = text
            .parse()
            .map_err(|error: toml::de::Error| Error::invalid(origin, error.message().trim_end()))?;
        Self::default().resolve(file, overrides, places)
    }

    /// The recipe of a preset with `overrides`, each `KEY=VALUE`.
    ///
    /// # Errors
    ///
    /// When there is no such preset, or about the overrides.
    pub fn preset_with(name: &str, overrides: &[impl AsRef<str>]) -> Result<Self> {
        let file = Table::from_iter([("preset".into(), Value::from(name))]);
        Self::preset(name)?;
        Self::default().resolve(file, overrides, Places::default())
    }

    /// This recipe with `overrides`, each `KEY=VALUE`, such as a resumed run's.
    ///
    /// # Errors
    ///
    /// About the overrides.
    pub fn with(&self, overrides: &[impl AsRef<str>]) -> Result<Self> {
        self.clone().resolve(Table::new(), overrides, Places::default())
    }

    /// This recipe, or the preset that `file` or `overrides` name, changed by them.
    fn resolve(
        self,
        mut file: Table,
        overrides: &[impl AsRef<str>],
        mut places: Places,
    ) -> Result<Self> {
        for text in overrides {
            let text = text.as_ref();
            let (key, value) = parse_override(text)?;
            places.add_override(&key);
            set(&mut file, &key, value)
                .map_err(|reason| Error::invalid(format!("--set {text}"), reason))?;
        }
        // What is known of the recipe, such as published results; no run reads it.
        if file.get("about").is_some_and(Value::is_table) {
            file.remove("about");
        }
        let mut base = match file.remove("preset") {
            None => self,
            Some(Value::String(name)) => {
                Self::preset(&name).map_err(|error| places.explain(error, "preset"))?
            }
            Some(_) => return Err(places.error("preset", "the name of a preset is wanted")),
        };
        let head = file.get("model").and_then(|model| model.get("head"));
        // One that does not exist is found below.
        if let Some(head) = head.and_then(|head| head.clone().try_into().ok()) {
            base.suit(head);
        }
        let mut table = base.to_table();
        merge(&mut table, file);
        let recipe: Self = strict::from_table(table).map_err(|error| places.error_about(&error))?;
        recipe.validate().map_err(|error| match &error {
            Error::Invalid { subject, .. } => {
                let key = subject.clone();
                places.explain(error, &key)
            }
            _ => error,
        })?;
        Ok(recipe)
    }

    /// The recipe as TOML, with every value; it reads back equal.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a recipe has nothing that TOML lacks")
    }

    fn to_table(&self) -> Table {
        Table::try_from(self).expect("a recipe has nothing that TOML lacks")
    }

    /// The learning rates.
    pub fn schedule(&self) -> Schedule {
        Schedule::new(self.optimizer.lr, &self.schedule)
    }

    /// Seed of the order of samples and their distortion.
    pub fn data_seed(&self) -> u64 {
        self.data.seed.unwrap_or(self.seed)
    }

    /// Gives the model the classes of the data set, unless the recipe says how many it has.
    ///
    /// # Errors
    ///
    /// When the recipe says another number.
    pub fn set_num_classes(&mut self, classes: usize) -> Result<()> {
        match self.model.num_classes {
            given if given == 0 || given == classes => self.model.num_classes = classes,
            given => {
                return Err(Error::invalid(
                    "model.num_classes",
                    format!(
                        "the recipe says {given} but the data set has {classes} classes; leave it \
                         out to follow the data set"
                    ),
                ));
            }
        }
        self.model.validate()
    }

    /// Gives the model another head, and with it what belongs to that head in the official configurations:
    /// the weights of its losses, the parameters of its own that do not decay, and the clipping of gradients.
    /// Does nothing if it has the head already.
    pub fn suit(&mut self, head: Head) {
        if head == self.model.head {
            return;
        }
        self.model.head = head;
        let LossTable { cate_w, .. } = self.loss;
        self.loss = LossTable { cate_w, ..LossTable::of(head) };
        let OptimizerTable { no_decay, clip_norm, .. } = OptimizerTable::of(head);
        (self.optimizer.no_decay, self.optimizer.clip_norm) = (no_decay, clip_norm);
    }

    /// Refuses what cannot be run; `model.num_classes` may still be 0.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] that names the key.
    pub fn validate(&self) -> Result<()> {
        let at_least_1 = |key: &'static str, value: usize, most: usize| {
            check((1..=most).contains(&value), key, || format!("{value} is not in 1..={most}"))
        };
        let number = |key: &'static str, value: f64, good: bool, wanted: &str| {
            check(value.is_finite() && good, key, || format!("{value} is not {wanted}"))
        };
        let Self {
            name,
            seed,
            model,
            data,
            augment,
            optimizer,
            schedule,
            loss,
            eval,
            checkpoint,
            train,
        } = self;
        augment.validate()?;

        let plain = !name.is_empty()
            && !name.starts_with('.')
            && !name.contains(|c: char| c.is_control() || "/\\:".contains(c));
        check(plain, "name", || format!("{name:?} cannot be the name of a folder"))?;
        for (key, seed) in [("seed", Some(*seed)), ("data.seed", data.seed)] {
            // TOML's whole numbers end here.
            check(seed.is_none_or(|seed| i64::try_from(seed).is_ok()), key, || {
                format!("must be at most {}", i64::MAX)
            })?;
        }
        let classes = if model.num_classes == 0 { 2 } else { model.num_classes };
        ModelConfig { num_classes: classes, ..model.clone() }.validate()?;

        if let Some(pictures) = data.batch_size {
            at_least_1("data.batch_size", pictures, batch_size::MOST)?;
        }
        if let Some(workers) = data.workers {
            at_least_1("data.workers", workers, 1024)?;
        }

        let OptimizerTable {
            lr, betas, eps, weight_decay, no_decay, clip_norm, accumulate, ..
        } = optimizer;
        number("optimizer.lr", *lr, *lr > 0.0, "a number above 0")?;
        let factor = optimizer.backbone_lr;
        number("optimizer.backbone_lr", factor, factor >= 0.0, "0 or more")?;
        for beta in betas {
            number("optimizer.betas", *beta, (0.0..1.0).contains(beta), "in 0..1")?;
        }
        number("optimizer.eps", *eps, *eps > 0.0, "a number above 0")?;
        number("optimizer.weight_decay", *weight_decay, *weight_decay >= 0.0, "0 or more")?;
        check(!no_decay.iter().any(String::is_empty), "optimizer.no_decay", || {
            "\"\" is part of every name; leave it out, or set weight_decay to 0".into()
        })?;
        if let Some(norm) = *clip_norm {
            number("optimizer.clip_norm", norm, norm > 0.0, "a number above 0")?;
        }
        at_least_1("optimizer.accumulate", *accumulate, 4096)?;

        let ScheduleTable { iterations, warmup_ratio, power, min_lr, .. } = *schedule;
        at_least_1("schedule.iterations", iterations, 1 << 30)?;
        let ratio_fits = (0.0..=1.0).contains(&warmup_ratio);
        number("schedule.warmup_ratio", warmup_ratio, ratio_fits, "in 0..=1")?;
        number("schedule.power", power, power >= 0.0, "0 or more")?;
        let below_base = (0.0..=*lr).contains(&min_lr);
        number("schedule.min_lr", min_lr, below_base, "between 0 and optimizer.lr")?;

        for (key, weight) in [
            ("loss.cate_w", loss.cate_w),
            ("loss.class_w", loss.class_w),
            ("loss.mask_w", loss.mask_w),
            ("loss.dice_w", loss.dice_w),
        ] {
            number(key, weight, weight >= 0.0, "0 or more")?;
        }
        let LossTable { no_object_w, oversample, importance, .. } = *loss;
        // With 0, a batch without any target would have no loss at all.
        number("loss.no_object_w", no_object_w, no_object_w > 0.0, "a number above 0")?;
        if let Some(points) = loss.num_points {
            at_least_1("loss.num_points", points, 1 << 20)?;
        }
        number("loss.oversample", oversample, (1.0..=64.0).contains(&oversample), "in 1..=64")?;
        number("loss.importance", importance, (0.0..=1.0).contains(&importance), "in 0..=1")?;
        if let Some(kept) = loss.ohem_min_kept {
            at_least_1("loss.ohem_min_kept", kept, 1 << 30)?;
        }

        at_least_1("eval.every", eval.every, 1 << 30)?;
        check(!eval.split.is_empty(), "eval.split", || "is empty".into())?;
        if let Some(images) = eval.max_images {
            at_least_1("eval.max_images", images, 1 << 30)?;
        }
        for side in eval.resize.iter().flatten() {
            at_least_1("eval.resize", *side, 32_768)?;
        }
        if let Some(Slide { crop, stride }) = &eval.slide {
            for (crop, stride) in crop.iter().zip(stride) {
                at_least_1("eval.slide.crop", *crop, 32_768)?;
                // A longer stride would leave gaps between windows.
                at_least_1("eval.slide.stride", *stride, *crop)?;
            }
        }
        at_least_1("checkpoint.every", checkpoint.every, 1 << 30)?;
        if let Some(mib) = train.memory_budget_mib {
            at_least_1("train.memory_budget_mib", mib as usize, 1 << 30)?;
        }
        Ok(())
    }
}

impl LossTable {
    /// The weights and points of a head's official configuration.
    pub fn of(head: Head) -> Self {
        match head {
            Head::Maskformer => Self {
                class_w: 1.0,
                mask_w: 20.0,
                dice_w: 1.0,
                num_points: None,
                ..Self::default()
            },
            Head::Fpn | Head::Mask2former | Head::Fapn | Head::Msfapn => Self::default(),
        }
    }
}

impl OptimizerTable {
    /// The default with what is a head's own: which parameters do not decay, and the clipping of gradients.
    pub fn of(head: Head) -> Self {
        let mut table = Self::default();
        if head.finds_masks() {
            // Norms that are not called so, and embeddings.
            let own = [
                "input_proj.0.1.",
                "input_proj.1.1.",
                "input_proj.2.1.",
                "query_embed",
                "query_feat",
                "predictor.level_embed",
            ];
            table.no_decay.extend(own.map(String::from));
            table.clip_norm = Some(0.01);
        }
        table
    }

    /// What the learning rate of the parameter `name` is multiplied by.
    pub fn lr_factor_of(&self, name: &str) -> f64 {
        if name.starts_with("backbone.") { self.backbone_lr } else { 1.0 }
    }

    /// The weight decay of the parameter `name` with `rank` axes.
    pub fn weight_decay_of(&self, name: &str, rank: usize) -> f64 {
        let exempt = self.no_decay.iter().any(|part| name.contains(part));
        if exempt || self.no_decay_1d && rank <= 1 { 0.0 } else { self.weight_decay }
    }
}

fn check(good: bool, key: &str, reason: impl FnOnce() -> String) -> Result<()> {
    if good { Ok(()) } else { Err(Error::invalid(key, reason())) }
}

/// Key and value of `KEY=VALUE`. A value that is no TOML is a string.
fn parse_override(text: &str) -> Result<(String, Value)> {
    let Some((key, value)) = text.split_once('=') else {
        return Err(Error::invalid(format!("--set {text}"), "KEY=VALUE is wanted"));
    };
    let (key, value) = (key.trim(), value.trim());
    if key.split('.').any(|part| part.trim() != part || part.is_empty()) {
        let reason = "a key such as schedule.iterations is wanted before the =";
        return Err(Error::invalid(format!("--set {text}"), reason));
    }
    let value = match value.parse() {
        // No key of a recipe is a date, but a name may look like one.
        Ok(Value::Datetime(_)) | Err(_) => Value::from(value),
        Ok(value) => value,
    };
    Ok((key.into(), value))
}

/// Gives `table` the `value` at the dotted `key`.
fn set(table: &mut Table, key: &str, value: Value) -> Result<(), String> {
    let Some((first, rest)) = key.split_once('.') else {
        merge(table, Table::from_iter([(key.to_owned(), value)]));
        return Ok(());
    };
    match table.entry(first).or_insert_with(|| Table::new().into()) {
        Value::Table(inner) => set(inner, rest, value),
        // "none" stands where a table could be, such as eval.slide.
        none if none.as_str() == Some("none") => {
            *none = Table::new().into();
            set(none.as_table_mut().expect("set above"), rest, value)
        }
        _ => Err(format!("{first} is no table")),
    }
}

/// Puts all of `over` into `table`; tables within are merged.
fn merge(table: &mut Table, over: Table) {
    for (key, value) in over {
        match (table.get_mut(&key), value) {
            (Some(Value::Table(inner)), Value::Table(over)) => merge(inner, over),
            (_, value) => drop(table.insert(key, value)),
        }
    }
}

/// Where each key was given: what an error about it starts with.
#[derive(Default)]
struct Places(BTreeMap<String, String>);

impl Places {
    fn add_file(&mut self, table: &DeTable<'_>, parent: &str, place: &dyn Fn(usize) -> String) {
        for (key, value) in table {
            let name = match parent {
                "" => key.get_ref().to_string(),
                _ => format!("{parent}.{}", key.get_ref()),
            };
            if let DeValue::Table(inner) = value.get_ref() {
                self.add_file(inner, &name, place);
            }
            self.add(&name, place(key.span().start));
        }
    }

    fn add(&mut self, key: &str, place: String) {
        self.0.insert(key.into(), place);
    }

    fn add_override(&mut self, key: &str) {
        let place = format!("--set {key}: ");
        // An error may be about a table that only this override mentions.
        for (end, _) in key.match_indices('.') {
            self.0.entry(key[..end].into()).or_insert_with(|| place.clone());
        }
        self.add(key, place);
    }

    /// The place of `key`, of the key that it is an element of, or of its table.
    fn find(&self, key: &str) -> &str {
        let found = self.0.get(key).map(String::as_str);
        let parent = key.rfind(['.', '[']).map(|end| &key[..end]);
        found.or_else(|| parent.map(|parent| self.find(parent))).unwrap_or_default()
    }

    fn error(&self, key: &str, reason: impl Into<String>) -> Error {
        match self.find(key) {
            // The place says the key already.
            place if place == format!("--set {key}: ") => {
                Error::invalid(format!("--set {key}"), reason)
            }
            place => Error::invalid(format!("{place}{key}"), reason),
        }
    }

    /// `error`, with the place of `key`.
    fn explain(&self, error: Error, key: &str) -> Error {
        match error {
            Error::Invalid { subject, reason } if subject == key => self.error(key, reason),
            Error::Invalid { subject, reason } => self.error(key, format!("{subject}: {reason}")),
            other => other,
        }
    }

    fn error_about(&self, error: &KeyError) -> Error {
        let KeyError { key, reason, siblings } = error;
        let Some(siblings) = siblings else {
            return self.error(key, reason);
        };
        let (parent, name) = key.rsplit_once('.').unwrap_or(("", key));
        let mut siblings = siblings.to_vec();
        if parent.is_empty() {
            siblings.push("preset");
        }
        let near = strict::nearest(name, siblings.iter().copied()).map(|near| match parent {
            "" => near.to_owned(),
            _ => format!("{parent}.{near}"),
        });
        let hint = match near.or_else(|| elsewhere(name)) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("there are {}", siblings.join(", ")),
        };
        self.error(key, format!("{reason}; {hint}"))
    }
}

/// The key of another table that is called `name`.
fn elsewhere(name: &str) -> Option<String> {
    let tables = Recipe::default().to_table();
    let table = tables.iter().find(|(_, table)| table.get(name).is_some())?;
    Some(format!("{}.{name}", table.0))
}

#[cfg(test)]
mod tests {
    use super::super::recipes::RECIPES;
    use super::*;

    fn error(text: &str, overrides: &[&str]) -> String {
        Recipe::from_toml_with(text, "r.toml", overrides).unwrap_err().to_string()
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(Recipe::from_toml("", "r.toml").unwrap(), Recipe::default());
        let recipe = Recipe::from_toml("[model]\nape = true", "r.toml").unwrap();
        assert_eq!(recipe.model, ModelConfig { ape: true, ..Recipe::default().model });
    }

    #[test]
    fn every_preset_is_valid_and_reads_back_equal() {
        for Named { name, .. } in RECIPES {
            let recipe = Recipe::preset(name).unwrap();
            recipe.validate().unwrap();
            let text = recipe.to_toml();
            assert_eq!(Recipe::from_toml(&text, name).unwrap(), recipe, "{text}");
            let inherited = Recipe::from_toml(&format!("preset = {name:?}"), name).unwrap();
            assert_eq!(inherited, recipe);
            assert_eq!(recipe.with(&[] as &[&str]).unwrap(), recipe);
        }
    }

    #[test]
    fn unusual_values_read_back_equal() {
        let text = "preset = \"quickstart\"\nname = \"a 'b' \\\"c\\\" \u{e9}\"\nseed = 9223372036854775807\n\
                    model = { num_classes = 19, windowed = [true, false, true, false], dropout = 0.3 }\n\
                    optimizer = { lr = 1.2345678901234567e-5, clip_norm = 1, no_decay = [] }\n\
                    [eval.slide]\ncrop = [768, 512]\nstride = [512, 341]\n[data]\nseed = 5\nworkers = 3";
        let recipe = Recipe::from_toml(text, "r.toml").unwrap();
        assert_eq!(recipe.optimizer.clip_norm, Some(1.0));
        assert_eq!(recipe.data_seed(), 5);
        assert_eq!(Recipe::from_toml(&recipe.to_toml(), "r.toml").unwrap(), recipe);
    }

    /// spec: configs/semask_swin/ade20k.
    #[test]
    fn the_official_sizes_differ_where_they_should() {
        let get = |name| Recipe::preset(name).unwrap();
        let [t, s, b, l] = ["semask-t", "semask-s", "semask-b", "semask-l"].map(get);
        let augment = |recipe: &Recipe| Table::try_from(&recipe.augment).unwrap();
        let ratio = |recipe: &Recipe| augment(recipe)["cat_max_ratio"].as_float().unwrap();
        assert_eq!([&t, &s, &b, &l].map(ratio), [0.75, 1.0, 1.0, 1.0]);
        let side = |recipe: &Recipe| augment(recipe)["crop_size"][1].as_integer().unwrap();
        assert_eq!([&t, &s, &b, &l].map(side), [512, 512, 512, 640]);
        assert_eq!([&t, &s, &b, &l].map(|r| r.eval.resize.unwrap()[0]), [2048, 2048, 2048, 2560]);
        assert_eq!(augment(&l)["resize"]["long"].as_integer(), Some(2560));
        assert_eq!(
            [&t, &s, &b, &l].map(|r| r.loss.ohem_min_kept),
            [None, None, None, Some(100_000)]
        );
        for recipe in [&t, &s, &b, &l, &get("swin-b")] {
            assert_eq!(recipe.optimizer, OptimizerTable::default());
            assert_eq!(recipe.schedule, ScheduleTable::default());
            assert_eq!((recipe.data.batch_size, recipe.data.order), (Some(16), Order::Shuffle));
        }
    }

    #[test]
    fn a_file_changes_its_preset_and_overrides_change_both() {
        let text =
            "preset = \"semask-l\"\n[schedule]\niterations = 5\nwarmup = 2\n[augment]\nflip = 0.0";
        let sets = [
            "schedule.warmup=3",
            "name=my run",
            "checkpoint.keep_best = macc",
            "optimizer.no_decay=['x']",
            "loss.ohem_min_kept=none",
            "augment.resize.short=9",
        ];
        let recipe = Recipe::from_toml_with(text, "r.toml", &sets).unwrap();
        let base = Recipe::preset("semask-l").unwrap();
        assert_eq!((recipe.schedule.iterations, recipe.schedule.warmup), (5, 3));
        assert_eq!(recipe.name, "my run");
        assert_eq!(recipe.checkpoint.keep_best, KeepBest::Macc);
        assert_eq!(recipe.optimizer.no_decay, ["x"]);
        assert_eq!(recipe.loss.ohem_min_kept, None);
        assert_eq!(recipe.model, base.model);
        let mut augment = Table::try_from(base.augment).unwrap();
        augment["flip"] = 0.0.into();
        augment["resize"]["short"] = 9.into();
        assert_eq!(Table::try_from(recipe.augment).unwrap(), augment);
    }

    #[test]
    fn a_head_brings_its_losses_and_groups_unless_they_are_given() {
        let of_head = |recipe: &Recipe| {
            let OptimizerTable { no_decay, clip_norm, .. } = recipe.optimizer.clone();
            (recipe.model.head, recipe.loss.clone(), no_decay, clip_norm)
        };
        let base = Recipe::preset("semask-t").unwrap();
        for head in ["maskformer", "mask2former", "fapn", "msfapn"] {
            let published = Recipe::preset(&format!("semask-l-{head}-ade20k")).unwrap();
            let set = format!("model.head={head}");
            let recipe = Recipe::preset_with("semask-t", &[&set]).unwrap();
            assert_eq!(of_head(&recipe), of_head(&published), "{head}");
            assert_eq!((&recipe.schedule, &recipe.augment), (&base.schedule, &base.augment));
            let file = format!("preset = 'semask-t'\n[model]\nhead = '{head}'");
            assert_eq!(Recipe::from_toml(&file, "r.toml").unwrap(), recipe);
            assert_eq!(base.with(&[&set]).unwrap(), recipe);
            assert_eq!(recipe.with(&[&set]).unwrap(), recipe);
            assert_eq!(Recipe::from_toml(&recipe.to_toml(), "r.toml").unwrap(), recipe);

            let given = format!("{file}\n[loss]\nmask_w = 3\n[optimizer]\nclip_norm = 'none'");
            let sets = ["loss.num_points=7", "optimizer.no_decay=['x']"];
            let given = Recipe::from_toml_with(&given, "r.toml", &sets).unwrap();
            let LossTable { mask_w, num_points, class_w, .. } = given.loss;
            assert_eq!((mask_w, num_points, class_w), (3.0, Some(7), recipe.loss.class_w));
            assert_eq!(given.optimizer.no_decay, ["x"]);
            assert_eq!(given.optimizer.clip_norm, None);

            // Another head's do not stay behind.
            let back = published.with(&["model.head=fpn"]).unwrap();
            assert_eq!(of_head(&back), of_head(&base));
            let name = format!("semask-l-{head}-ade20k");
            assert_eq!(Recipe::preset_with(&name, &["model.head=fpn"]).unwrap(), back);
            assert_eq!(Recipe::preset_with(&name, &[&set]).unwrap(), published);
        }
        let wrong = Recipe::preset_with("semask-t", &["model.head=fnp"]).unwrap_err().to_string();
        assert!(wrong.starts_with("--set model.head: ") && wrong.contains("\"fpn\"?"), "{wrong}");
    }

    #[test]
    fn an_override_can_name_the_preset() {
        let wanted = Recipe::preset("quickstart").unwrap();
        assert_eq!(Recipe::from_toml_with("", "r", &["preset=quickstart"]).unwrap(), wanted);
        assert_eq!(Recipe::preset_with("quickstart", &[] as &[&str]).unwrap(), wanted);
        let shorter = Recipe::preset_with("quickstart", &["schedule.iterations=7"]).unwrap();
        assert_eq!(shorter.schedule.iterations, 7);
        assert_eq!(wanted.with(&["schedule.iterations=7"]).unwrap(), shorter);
    }

    #[test]
    fn override_values_are_toml_or_bare_strings() {
        let value = |text: &str| parse_override(text).unwrap().1;
        assert_eq!(value("k=1e-3"), Value::from(1e-3));
        assert_eq!(value("k= [1, 2] "), Value::from(vec![1, 2]));
        assert_eq!(value("k=true"), Value::from(true));
        assert_eq!(value("k='1'"), Value::from("1"));
        for bare in ["", "val", "a=b", "1\nj = 2", "[1, 2", "2026-01-02", "x # y", "\u{e9}"] {
            assert_eq!(value(&format!("k={bare}")), Value::from(bare));
        }
        for wrong in ["", "k", "=1", ".k=1", "a..b=1", "a. b=1"] {
            let error = parse_override(wrong).unwrap_err().to_string();
            assert!(error.starts_with(&format!("--set {wrong}: ")), "{error}");
        }
    }

    #[test]
    fn unknown_keys_are_errors_with_line_and_suggestion() {
        for (text, wanted) in [
            (
                "seed = 1\n[schedule]\n\niteration = 3",
                "r.toml:4: schedule.iteration: unknown key; did \
                                                       you mean schedule.iterations?",
            ),
            ("sead = 1", "r.toml:1: sead: unknown key; did you mean seed?"),
            ("prest = \"x\"", "r.toml:1: prest: unknown key; did you mean preset?"),
            ("[scheduel]", "r.toml:1: scheduel: unknown key; did you mean schedule?"),
            ("schedule.lr = 1", "r.toml:1: schedule.lr: unknown key; did you mean optimizer.lr?"),
            ("[model]\nhaed = 1", "r.toml:2: model.haed: unknown key; did you mean model.head?"),
            (
                "[loss]\nzzz = 1",
                "r.toml:2: loss.zzz: unknown key; there are cate_w, ohem_min_kept, \
                                       class_w, mask_w, dice_w, no_object_w, num_points, oversample, importance",
            ),
        ] {
            assert_eq!(error(text, &[]), wanted);
        }
        assert_eq!(
            error("", &["schedule.itertions=1"]),
            "--set schedule.itertions: unknown key; did you mean schedule.iterations?"
        );
        let unknown = error("", &["a.b.c=1"]);
        assert!(
            unknown.starts_with("--set a.b.c: a: unknown key; there are name, seed, "),
            "{unknown}"
        );
    }

    #[test]
    fn wrong_types_are_errors_with_key_and_type() {
        for (text, wanted) in [
            (
                "[optimizer]\nlr = \"fast\"",
                "r.toml:2: optimizer.lr: a number is wanted, not the string \
                                           \"fast\"",
            ),
            (
                "optimizer.betas = [1, true]",
                "r.toml:1: optimizer.betas[1]: a number is wanted, not true",
            ),
            ("data = 3", "r.toml:1: data: a table is wanted, not 3"),
            ("preset = 3", "r.toml:1: preset: the name of a preset is wanted"),
            (
                "data.order = \"strid\"",
                "r.toml:1: data.order: \"shuffle\" or \"stride\" or \"sequential\" is wanted, not \
                                       \"strid\"; did you mean \"stride\"?",
            ),
            (
                "eval.slide = { crop = [1, 1] }",
                "r.toml:1: eval.slide: missing field `stride`, or \"none\"",
            ),
        ] {
            assert_eq!(error(text, &[]), wanted);
        }
        assert_eq!(
            error("", &["data.batch_size=many"]),
            "--set data.batch_size: a whole number of at least 0 is wanted, not the string \"many\", or \"auto\""
        );
        assert_eq!(error("seed = 1", &["seed.x=1"]), "--set seed.x=1: seed is no table");
    }

    #[test]
    fn broken_toml_is_an_error_with_its_line() {
        let error = error("seed = 1\nname = \"x\n", &[]);
        assert!(error.starts_with("r.toml:2: ") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn values_out_of_range_are_errors_with_their_place() {
        for (set, wanted) in [
            ("data.batch_size=0", "0 is not in 1..=4096"),
            ("optimizer.lr=0", "0 is not a number above 0"),
            ("optimizer.lr=inf", "inf is not a number above 0"),
            ("optimizer.lr=nan", "NaN is not a number above 0"),
            ("optimizer.betas=[0.9, 1.0]", "1 is not in 0..1"),
            (
                "optimizer.no_decay=['']",
                "\"\" is part of every name; leave it out, or set \
                                         weight_decay to 0",
            ),
            ("optimizer.clip_norm=-1", "-1 is not a number above 0"),
            ("schedule.iterations=0", "0 is not in 1..=1073741824"),
            ("schedule.warmup_ratio=2", "2 is not in 0..=1"),
            ("schedule.min_lr=1", "1 is not between 0 and optimizer.lr"),
            ("eval.every=0", "0 is not in 1..=1073741824"),
            ("eval.slide={crop=[9, 9], stride=[9, 10]}", "10 is not in 1..=9"),
            ("checkpoint.every=0", "0 is not in 1..=1073741824"),
            ("name=../x", "\"../x\" cannot be the name of a folder"),
            ("model.num_classes=1", "1 is not in 2..=255"),
        ] {
            let error = error("", &[set]);
            let key = set.split(['=']).next().unwrap();
            assert!(error.contains(&format!("--set {key}: ")), "{error}");
            assert!(error.ends_with(&format!(": {wanted}")), "{error}");
        }
        let place = error("[model]\nembed_dim = 7", &[]);
        assert!(place.contains("model.num_heads"), "{place}");
        assert_eq!(error("loss.cate_w = -1", &[]), "r.toml:1: loss.cate_w: -1 is not 0 or more");
    }

    #[test]
    fn a_preset_that_is_not_there_is_an_error_with_its_line() {
        let text = error("\npreset = \"semask-x\"", &[]);
        assert!(text.starts_with("r.toml:2: preset: ") && text.contains("semask-t?"), "{text}");
    }

    #[test]
    fn classes_come_from_the_data_set_unless_given() {
        let mut recipe = Recipe::preset("semask-t").unwrap();
        recipe.set_num_classes(19).unwrap();
        assert_eq!(recipe.model.num_classes, 19);
        let mut again = Recipe::from_toml(&recipe.to_toml(), "r.toml").unwrap();
        assert_eq!(again, recipe);
        let error = again.set_num_classes(20).unwrap_err().to_string();
        assert!(error.starts_with("model.num_classes: the recipe says 19"), "{error}");
        assert!(Recipe::default().set_num_classes(1).is_err());
    }

    #[test]
    fn weight_decay_spares_what_the_recipe_names() {
        let official = OptimizerTable::default();
        let decays = |table: &OptimizerTable, name, rank| table.weight_decay_of(name, rank) > 0.0;
        assert!(!decays(&official, "backbone.layers.0.blocks.0.norm1.weight", 1));
        assert!(!decays(&official, "x.attn.relative_position_bias_table", 2));
        // The decoder's batch norms are called bn, so they do decay.
        assert!(decays(&official, "decode_head.scale_heads.0.0.bn.weight", 1));
        assert!(decays(&official, "x.qkv.bias", 1));
        let quickstart = Recipe::preset("quickstart").unwrap().optimizer;
        assert!(!decays(&quickstart, "x.qkv.bias", 1) && decays(&quickstart, "x.qkv.weight", 2));
    }

    #[test]
    fn a_file_that_is_no_recipe_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("big.toml");
        std::fs::write(&path, "#".repeat(MAX_BYTES as usize + 1)).unwrap();
        for (path, wanted) in [
            (&path, "more than"),
            (&folder.path().join("none"), "none"),
            (&folder.path().into(), "read"),
        ] {
            let error = Recipe::load(path).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
        std::fs::write(&path, b"\xff").unwrap();
        assert!(Recipe::load(&path).is_err());
        std::fs::write(&path, "\u{feff}seed = 4\r\nname = \"n\"\r\n").unwrap();
        assert_eq!(Recipe::load(&path).unwrap().seed, 4);
    }
}
