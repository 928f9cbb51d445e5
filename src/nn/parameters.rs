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

    fn values(self, len: usize, rng: &mut Rng) -> Vec<f32> {
        match self {
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
        let missing: Vec<String> = (self.iter())
            .filter(|(name, _)| checkpoint.get(name).is_none())
            .map(|(name, _)| name.to_owned())
            .collect();
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
            let Some(entry) = checkpoint.get(name) else { continue };
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
        let known = |name: &str| self.by_name.contains_key(name);
        Ok(checkpoint
            .parameters()
            .map(|(name, _)| name)
            .filter(|name| !known(name))
            .map(str::to_owned)
            .collect())
    }

    /// Adds all values to a checkpoint, under their names.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] when the device was lost.
    pub fn save(&self, gpu: &Gpu, checkpoint: &mut Checkpoint) -> Result<()> {
        for (name, parameter) in self.iter() {
            let values = parameter.tensor.read(gpu)?;
            checkpoint.insert(name, Entry::from_f32(parameter.tensor.shape().clone(), &values));
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

    fn insert(&mut self, name: &str, parameter: Parameter) -> Tensor {
        let name = format!("{}{name}", self.prefix);
        let tensor = parameter.tensor.clone();
        let earlier = self.all.by_name.insert(name.clone(), parameter);
        assert!(earlier.is_none(), "parameter {name} exists twice");
        tensor
    }
}
