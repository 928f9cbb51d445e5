//! [`Parameters`]: every learnable tensor of a model, under the name it has in checkpoints.

use std::collections::BTreeMap;
use std::path::Path;

use crate::checkpoint::{Checkpoint, Entry};
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

    /// Further names that parameters have in checkpoints, each with its parameter's name: a layer that
    /// serves at two places is listed twice there.
    pub fn aliases(&self) -> impl Iterator<Item = (&str, &str)> {
        self.aliases.iter().map(|(alias, name)| (alias.as_str(), name.as_str()))
    }

    /// The entry of the parameter `name`, under any of its names.
    fn entry<'a>(
        &self,
        checkpoint: &'a Checkpoint,
        path: &Path,
        name: &str,
    ) -> Result<Option<&'a Entry>> {
        let mut found = checkpoint.get(name);
        for (alias, _) in self.aliases().filter(|(_, of)| *of == name) {
            let Some(entry) = checkpoint.get(alias) else { continue };
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

    /// Takes the values of all parameters and states from a checkpoint; names that the model does
    /// not know are left alone and returned.
    ///
    /// A relative position bias table for windows of another size is resized bicubically, as the
    /// official code does.
    ///
    /// # Errors
    ///
    /// [`Error::MissingParameters`], [`Error::ParameterShape`]; `path` is for the message.
    pub fn load(&self, gpu: &Gpu, checkpoint: &Checkpoint, path: &Path) -> Result<Vec<String>> {
        let mut missing = Vec::new();
        for (name, _) in self.iter() {
            if self.entry(checkpoint, path, name)?.is_none() {
                missing.push(name.to_owned());
            }
        }
        if !missing.is_empty() {
            return Err(Error::MissingParameters { path: path.to_owned(), names: missing });
        }
        self.load_some(gpu, checkpoint, path)
    }

    /// [`load`](Self::load) of a file that may lack some parameters: those keep their values.
    ///
    /// # Errors
    ///
    /// [`Error::ParameterShape`]; `path` is for the message.
    pub fn load_some(
        &self,
        gpu: &Gpu,
        checkpoint: &Checkpoint,
        path: &Path,
    ) -> Result<Vec<String>> {
        for (name, parameter) in self.iter() {
            let Some(entry) = self.entry(checkpoint, path, name)? else { continue };
            let wanted = parameter.tensor.shape();
            let values =
                entry.to_f32().map_err(|e| Error::invalid_file(path, format!("{name}: {e}")))?;
            if entry.shape().dims() == wanted.dims() {
                parameter.tensor.write(gpu, &values)?;
                continue;
            }
            let resized = match (entry.shape().dims(), wanted.dims()) {
                (&[rows, heads], &[wanted_rows, wanted_heads])
                    if heads == wanted_heads && name.ends_with("relative_position_bias_table") =>
                {
                    resize_table(&values, rows, wanted_rows, heads)
                }
                _ => None,
            };
            let Some(values) = resized else {
                return Err(Error::ParameterShape {
                    path: path.to_owned(),
                    name: name.to_owned(),
                    found: entry.shape().clone(),
                    wanted: wanted.clone(),
                });
            };
            parameter.tensor.write(gpu, &values)?;
        }
        let known = |name: &str| self.by_name.contains_key(name) || self.aliases.contains_key(name);
        Ok(checkpoint
            .parameters()
            .map(|(name, _)| name)
            .filter(|name| !known(name))
            .map(str::to_owned)
            .collect())
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

/// `[(2a − 1)², heads]` to `[(2b − 1)², heads]`, if both are such tables.
fn resize_table(values: &[f32], rows: usize, wanted: usize, heads: usize) -> Option<Vec<f32>> {
    let side = |rows: usize| Some(rows.isqrt()).filter(|s| s * s == rows && s % 2 == 1);
    side(rows)?;
    side(wanted)?;
    Some(ops::resize_bicubic_table(values, heads, rows.isqrt(), wanted.isqrt()))
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
