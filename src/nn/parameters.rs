//! [`Parameters`]: every learnable tensor of a model, under the name it has in checkpoints.

use std::collections::BTreeMap;
use std::path::Path;

use crate::checkpoint::{Checkpoint, Entry, Official, encoder_alone, is_needless};
use crate::gpu::{Memory, Recorder};
use crate::random::Rng;
use crate::tape::Gradients;
use crate::{Error, Gpu, Result, Shape, Tensor, ops};

/// Parameters share buffers of at most this many bytes.
const BUFFER_BYTES: u64 = 64 << 20;

/// All parameters of a model by name, such as `backbone.layers.0.blocks.1.attn.qkv.weight`.
///
/// They lie in a few large buffers, and gradients and moments in buffers of the same layout, so that
/// an optimiser step is one dispatch per buffer. Building a model allocates nothing: values arrive
/// with [`initialise`](Self::initialise) or [`load`](Self::load).
#[derive(Debug, Default)]
pub struct Parameters {
    by_name: BTreeMap<String, Parameter>,
    /// Further names in checkpoints, each with the name of the parameter.
    aliases: BTreeMap<String, String>,
    values: Vec<Memory>,
    states: Option<Memory>,
}

/// One parameter or state of a model.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Its elements.
    pub tensor: Tensor,
    /// How it starts out.
    pub init: Init,
    /// Which of the model's buffers it is in; none for a state that training updates without
    /// gradient, such as a running mean.
    pub(crate) buffer: Option<usize>,
}

impl Parameter {
    /// Whether the optimiser moves it.
    pub fn is_trained(&self) -> bool {
        self.buffer.is_some()
    }
}

/// How a parameter starts out when no checkpoint provides it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// The same value everywhere.
    Constant(f32),
    /// Uniform in `-bound..bound`.
    Uniform {
        /// Largest magnitude.
        bound: f32,
    },
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f32,
    },
    /// 1 everywhere but in the last place.
    OnesBut {
        /// What is there.
        last: f32,
    },
    /// Offsets of deformable attention, `[heads, levels, points, 2]`: each head looks in a direction of its
    /// own, point i at distance i + 1, measured along the longer axis.
    Ring {
        /// Directions.
        heads: usize,
        /// Maps, in all of which the head looks alike.
        levels: usize,
        /// Distances.
        points: usize,
    },
}

impl Init {
    /// Normal with deviation √(2 / `fan`): keeps the variance through a rectifier (He et al. 2015,
    /// <https://arxiv.org/abs/1502.01852>). Equals `torch.nn.init.kaiming_normal_(nonlinearity="relu")`.
    pub fn kaiming_normal(fan: usize) -> Self {
        Self::Normal { std: (2.0 / fan as f32).sqrt() }
    }

    /// Uniform within ±1 / √`fan_in`: what PyTorch's `Conv2d` and `Linear` start with.
    pub fn pytorch(fan_in: usize) -> Self {
        Self::Uniform { bound: (fan_in as f32).sqrt().recip() }
    }

    /// Uniform within ±√(6 / (`fan_in` + `fan_out`)) (Glorot & Bengio 2010). Equals
    /// `torch.nn.init.xavier_uniform_`.
    pub fn xavier(fan_in: usize, fan_out: usize) -> Self {
        Self::Uniform { bound: (6.0 / (fan_in + fan_out) as f32).sqrt() }
    }

    /// Uniform within ±√(3 / `fan_in`): keeps the variance. Equals `torch.nn.init.kaiming_uniform_(a=1)`,
    /// which detectron2's convolutions start with.
    pub fn kaiming_uniform(fan_in: usize) -> Self {
        Self::Uniform { bound: (3.0 / fan_in as f32).sqrt() }
    }

    fn values(self, len: usize, rng: &mut Rng) -> Vec<f32> {
        match self {
            Self::Ring { heads, levels, points } => {
                let of_head = |head: usize| {
                    let angle = std::f64::consts::TAU * head as f64 / heads as f64;
                    let (y, x) = angle.sin_cos();
                    let longer = x.abs().max(y.abs());
                    let at = move |i: usize| [x, y].map(|v| (v / longer * i as f64) as f32);
                    (0..levels).flat_map(move |_| (1..=points).flat_map(at))
                };
                (0..heads).flat_map(of_head).collect()
            }
            Self::Constant(value) => vec![value; len],
            Self::OnesBut { last } => {
                let mut values = vec![1.0; len];
                values[len - 1] = last;
                values
            }
            Self::Uniform { bound } => (0..len).map(|_| rng.between(-bound, bound)).collect(),
            Self::Normal { std } => (0..len).map(|_| std * rng.normal()).collect(),
        }
    }
}

impl Parameters {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// The scope of the whole model.
    pub fn root(&mut self) -> ParameterScope<'_> {
        ParameterScope { all: self, prefix: String::new() }
    }

    /// Parameters and states in order of name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Parameter)> {
        self.by_name.iter().map(|(name, parameter)| (name.as_str(), parameter))
    }

    /// The parameters that are trained, in order of name.
    pub fn trained(&self) -> impl Iterator<Item = (&str, &Parameter)> {
        self.iter().filter(|(_, p)| p.is_trained())
    }

    /// The parameter called `name`.
    pub fn get(&self, name: &str) -> Option<&Parameter> {
        self.by_name.get(name)
    }

    /// Changes how parameters start out: `rule` is told a parameter's name and the fan-in of its layer, if
    /// that has any.
    pub(crate) fn change_init(&mut self, rule: impl Fn(&str, Option<usize>) -> Option<Init>) {
        let fan_in = |name: &str| {
            let layer = name.rsplit_once('.').map_or("", |(layer, _)| layer);
            let weight = self.by_name.get(&format!("{layer}.weight"))?.tensor.dims();
            (weight.len() > 1).then(|| weight[1..].iter().product())
        };
        let names = self.by_name.keys();
        let changed: Vec<(String, Init)> =
            names.filter_map(|name| Some((name.clone(), rule(name, fan_in(name))?))).collect();
        for (name, init) in changed {
            self.by_name.get_mut(&name).expect("is one of them").init = init;
        }
    }

    /// Further names that parameters have in checkpoints, each with its parameter's name: a layer that
    /// serves at two places is listed twice there.
    pub fn aliases(&self) -> impl Iterator<Item = (&str, &str)> {
        self.aliases.iter().map(|(alias, name)| (alias.as_str(), name.as_str()))
    }

    /// The array of the parameter `name`, under any of its names.
    fn entry<'a>(
        &self,
        official: &Official<'a>,
        path: &Path,
        name: &str,
    ) -> Result<Option<&'a Entry>> {
        let mut found = official.entries.get(name).copied();
        for (alias, _) in self.aliases().filter(|(_, of)| *of == name) {
            let Some(&entry) = official.entries.get(alias) else { continue };
            let first = *found.get_or_insert(entry);
            if first.shape() != entry.shape() || first.to_f32().ok() != entry.to_f32().ok() {
                let reason = format!("{name} and {alias} are one parameter but differ");
                return Err(Error::invalid_file(path, reason));
            }
        }
        Ok(found)
    }

    /// Number of trained elements.
    pub fn count(&self) -> usize {
        self.trained().map(|(_, p)| p.tensor.shape().len()).sum()
    }

    /// The buffers that hold the trained parameters.
    pub(crate) fn buffers(&self) -> &[Memory] {
        &self.values
    }

    /// Gives every parameter its initial value. The values depend on `seed` and on the parameter's
    /// name alone, so that adding a layer does not change the others.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] when the device has no room for them.
    pub fn initialise(&self, gpu: &Gpu, seed: u64) -> Result<()> {
        for (name, parameter) in self.iter() {
            // FNV-1a, a name's own stream of random numbers.
            let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
            });
            let mut rng = Rng::new(seed, hash >> 2);
            let len = parameter.tensor.shape().len();
            parameter.tensor.write(gpu, &parameter.init.values(len, &mut rng))?;
        }
        Ok(())
    }

    /// Compares the names and shapes of a checkpoint with the model's. `path` is for messages.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when the checkpoint contradicts itself.
    pub fn fit(&self, checkpoint: &Checkpoint, path: &Path) -> Result<Fit> {
        let official = checkpoint.official();
        if let Some(name) = official.twice.first() {
            return Err(Error::invalid_file(path, format!("has two arrays called {name}")));
        }
        let mut fit = Fit { encoder_alone: official.encoder_alone, ..Fit::default() };
        for (name, parameter) in self.iter() {
            let wanted = parameter.tensor.shape();
            let name = name.to_owned();
            let Some(entry) = self.entry(&official, path, &name)? else {
                fit.missing.push(name);
                continue;
            };
            match Fitting::of(&name, entry.shape(), wanted) {
                Some(Fitting::Equal) => fit.equal.push(name),
                Some(_) => fit.resized.push(name),
                None => {
                    let (found, wanted) = (entry.shape().clone(), wanted.clone());
                    fit.mismatched.push(Mismatch { name, found, wanted });
                }
            }
        }
        let known = |name: &str| self.by_name.contains_key(name) || self.aliases.contains_key(name);
        let names = official.entries.keys().filter(|name| !known(name) && !is_needless(name));
        fit.unexpected = names.map(|name| name.to_string()).collect();
        Ok(fit)
    }

    /// Takes the values of all parameters and states from a checkpoint, which may have the names of
    /// the published files ([`Checkpoint::official`]). Names that the model does not know are left
    /// alone and returned.
    ///
    /// Tables that belong to another size of window or picture are resized bicubically, as the
    /// official code does: relative position biases, and the absolute position embedding.
    ///
    /// # Errors
    ///
    /// [`Error::MissingParameters`], [`Error::ParameterShape`]; [`Error::Invalid`] when the checkpoint
    /// is an encoder's alone. `path` is for the message.
    pub fn load(&self, gpu: &Gpu, checkpoint: &Checkpoint, path: &Path) -> Result<Vec<String>> {
        let fit = self.fit(checkpoint, path)?;
        if fit.encoder_alone && !fit.missing.is_empty() {
            return Err(encoder_alone(path));
        }
        if !fit.missing.is_empty() {
            return Err(Error::MissingParameters { path: path.to_owned(), names: fit.missing });
        }
        if let Some(Mismatch { name, found, wanted }) = fit.mismatched.into_iter().next() {
            return Err(Error::ParameterShape { path: path.to_owned(), name, found, wanted });
        }
        self.take(gpu, checkpoint, path)?;
        Ok(fit.unexpected)
    }

    /// [`load`](Self::load) of what fits: parameters that the checkpoint lacks or has in another shape,
    /// such as a classifier's of other classes, keep their values.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when nothing fits. `path` is for the message.
    pub fn load_some(&self, gpu: &Gpu, checkpoint: &Checkpoint, path: &Path) -> Result<Fit> {
        let fit = self.fit(checkpoint, path)?;
        if fit.equal.is_empty() && fit.resized.is_empty() {
            let reason = match fit.mismatched.first() {
                Some(Mismatch { name, found, wanted }) => format!(
                    "none of its arrays fits the model: {name}, for one, is {found:?} where the \
                     model wants {wanted:?}"
                ),
                None => "has nothing of the model's names".into(),
            };
            return Err(Error::invalid_file(path, reason));
        }
        self.take(gpu, checkpoint, path)?;
        Ok(fit)
    }

    /// Takes what fits.
    fn take(&self, gpu: &Gpu, checkpoint: &Checkpoint, path: &Path) -> Result<()> {
        let official = checkpoint.official();
        for (name, parameter) in self.iter() {
            let Some(entry) = self.entry(&official, path, name)? else { continue };
            let wanted = parameter.tensor.shape();
            let Some(fitting) = Fitting::of(name, entry.shape(), wanted) else { continue };
            let values =
                entry.to_f32().map_err(|e| Error::invalid_file(path, format!("{name}: {e}")))?;
            parameter.tensor.write(gpu, &fitting.apply(values))?;
        }
        Ok(())
    }

    /// Adds all values to a checkpoint, under all their names.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] when the device was lost.
    pub fn save(&self, gpu: &Gpu, checkpoint: &mut Checkpoint) -> Result<()> {
        for (name, parameter) in self.iter() {
            let values = parameter.tensor.read(gpu)?;
            let aliases = self.aliases().filter(|(_, of)| *of == name).map(|(alias, _)| alias);
            for name in aliases.chain([name]) {
                checkpoint.insert(name, Entry::from_f32(parameter.tensor.shape().clone(), &values));
            }
        }
        Ok(())
    }

    /// Puts the gradient of every trained parameter at its place in `memories`, which have the
    /// layout of the parameters' buffers.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] that names a parameter which no gradient reached: left alone, it would be
    /// frozen without a word while the loss still falls.
    pub(crate) fn place_gradients(
        &self,
        recorder: &mut Recorder,
        gradients: &Gradients,
        memories: &[Memory],
    ) -> Result<()> {
        for (name, parameter) in self.trained() {
            let gradient = gradients.get(&parameter.tensor).ok_or_else(|| {
                Error::invalid(format!("parameter {name}"), "no gradient reached it")
            })?;
            let at = parameter.tensor.twin(&memories[parameter.buffer.expect("is trained")]);
            // A gradient that belongs to two parameters at once is copied for the second.
            if !recorder.place(gradient, &at) {
                ops::copy(recorder, gradient, &at);
            }
        }
        Ok(())
    }
}

/// How the names and shapes of a checkpoint compare with a model's; see [`Parameters::fit`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fit {
    /// Parameters and states that the checkpoint has in the model's shape.
    pub equal: Vec<String>,
    /// Those that it has for another size of window or picture.
    pub resized: Vec<String>,
    /// Those that it lacks.
    pub missing: Vec<String>,
    /// Those that it has in a shape of no use.
    pub mismatched: Vec<Mismatch>,
    /// What the checkpoint has that the model does not know; what follows from the configuration is
    /// not listed.
    pub unexpected: Vec<String>,
    /// Whether the checkpoint is an encoder's alone.
    pub encoder_alone: bool,
}

/// A parameter of other shape in a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Mismatch {
    /// Its name.
    pub name: String,
    /// Its shape in the checkpoint.
    pub found: Shape,
    /// The model's.
    pub wanted: Shape,
}

/// How an array of a checkpoint becomes a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fitting {
    /// It is one.
    Equal,
    /// Relative position biases, `[from², heads]` to `[to², heads]`.
    Table { heads: usize, from: usize, to: usize },
    /// An absolute position embedding, `[1, C, from, from]`, or `[1, from², C]` in older files, to
    /// `[1, C, to, to]`.
    Position { channels: usize, from: usize, to: usize, channels_first: bool },
}

impl Fitting {
    fn of(name: &str, found: &Shape, wanted: &Shape) -> Option<Self> {
        let side = |places: usize| Some(places.isqrt()).filter(|side| side * side == places);
        let (found, wanted) = (found.dims(), wanted.dims());
        if found == wanted {
            return Some(Self::Equal);
        }
        if found.contains(&0) {
            return None;
        }
        if name.ends_with("relative_position_bias_table") {
            let (&[rows, heads], &[wanted_rows, wanted_heads]) = (found, wanted) else {
                return None;
            };
            let odd = |rows| side(rows).filter(|side| side % 2 == 1);
            let (from, to) = (odd(rows)?, odd(wanted_rows)?);
            return (heads == wanted_heads).then_some(Self::Table { heads, from, to });
        }
        if name.ends_with("absolute_pos_embed") {
            let &[1, channels, to, _] = wanted else { return None };
            return match *found {
                [1, c, from, across] if c == channels && from == across => {
                    Some(Self::Position { channels, from, to, channels_first: true })
                }
                [1, places, c] if c == channels => {
                    let from = side(places)?;
                    Some(Self::Position { channels, from, to, channels_first: false })
                }
                _ => None,
            };
        }
        None
    }

    fn apply(self, values: Vec<f32>) -> Vec<f32> {
        match self {
            Self::Equal => values,
            Self::Table { heads, from, to } => ops::resize_bicubic_table(&values, heads, from, to),
            Self::Position { channels, from, to, channels_first } => {
                let rows = match channels_first {
                    true => transpose(&values, channels),
                    false => values,
                };
                let resized = ops::resize_bicubic_table(&rows, channels, from, to);
                transpose(&resized, to * to)
            }
        }
    }
}

/// `[rows, columns]` to `[columns, rows]`.
fn transpose(values: &[f32], rows: usize) -> Vec<f32> {
    let columns = values.len() / rows;
    (0..values.len()).map(|i| values[i % rows * columns + i / rows]).collect()
}

/// A place in the tree of names, handed to layers while a model is built.
#[derive(Debug)]
pub struct ParameterScope<'a> {
    all: &'a mut Parameters,
    prefix: String,
}

impl ParameterScope<'_> {
    /// The scope one level down.
    pub fn at(&mut self, name: impl std::fmt::Display) -> ParameterScope<'_> {
        ParameterScope { prefix: format!("{}{name}.", self.prefix), all: self.all }
    }

    /// Creates the trained parameter `name` of this scope.
    ///
    /// # Panics
    ///
    /// If there is one of that name.
    pub fn create(&mut self, name: &str, shape: impl Into<Shape>, init: Init) -> Tensor {
        let shape = shape.into();
        let buffers = &mut self.all.values;
        let full = |m: &Memory| m.size() > 0 && m.size() + 4 * shape.len() as u64 > BUFFER_BYTES;
        if buffers.last().is_none_or(full) {
            buffers.push(Memory::new(&format!("parameters {}", buffers.len())));
        }
        let buffer = buffers.len() - 1;
        let tensor = Tensor::within(&buffers[buffer], shape).tracked();
        self.insert(name, Parameter { tensor, init, buffer: Some(buffer) })
    }

    /// Creates the state `name` of this scope, which training updates without gradient.
    ///
    /// # Panics
    ///
    /// If there is one of that name.
    pub fn create_state(&mut self, name: &str, shape: impl Into<Shape>, init: Init) -> Tensor {
        let memory = self.all.states.get_or_insert_with(|| Memory::new("states"));
        let tensor = Tensor::within(memory, shape.into());
        self.insert(name, Parameter { tensor, init, buffer: None })
    }

    /// Makes `name` of this scope a further name of a parameter that there is.
    ///
    /// # Panics
    ///
    /// If `of` is no parameter of the model, or there is one of that name.
    pub fn alias(&mut self, name: &str, of: &Tensor) {
        let alias = format!("{}{name}", self.prefix);
        let mut parameters = self.all.by_name.iter();
        let found = parameters.find(|(_, parameter)| parameter.tensor.id() == of.id());
        let (name, _) = found.unwrap_or_else(|| panic!("{alias} would be a name of nothing"));
        let name = name.clone();
        assert!(!self.all.by_name.contains_key(&alias), "parameter {alias} exists twice");
        let earlier = self.all.aliases.insert(alias.clone(), name);
        assert!(earlier.is_none(), "parameter {alias} exists twice");
    }

    fn insert(&mut self, name: &str, parameter: Parameter) -> Tensor {
        let name = format!("{}{name}", self.prefix);
        let tensor = parameter.tensor.clone();
        let twice = self.all.aliases.contains_key(&name);
        let earlier = self.all.by_name.insert(name.clone(), parameter);
        assert!(!twice && earlier.is_none(), "parameter {name} exists twice");
        tensor
    }
}
