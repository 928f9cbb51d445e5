//! [`parity`]: a model beside the same in PyTorch, layer by layer.

use std::collections::BTreeSet;
use std::path::Path;

use crate::checkpoint::{Checkpoint, Entry};
use crate::gpu::Plan;
use crate::model::Model;
use crate::{Error, Gpu, Result, Tape, Tensor};

/// What the picture is called among the activations: normalised, `[B, 3, H, W]`.
pub const INPUT: &str = "input";

/// A model's layers beside those of a reference.
#[derive(Clone, Debug, PartialEq)]
pub struct Parity {
    /// Those that both have, in the order in which they compute.
    pub layers: Vec<LayerError>,
    /// Those that the reference lacks, or has in another shape.
    pub not_compared: Vec<String>,
    /// What the reference has besides.
    pub unknown: usize,
}

/// How far a layer's result is from the reference's.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerError {
    /// PyTorch's name of the module.
    pub name: String,
    /// Extents here, channels last.
    pub shape: Vec<usize>,
    /// The largest difference.
    pub max: f64,
    /// The root of the mean square difference.
    pub rms: f64,
    /// The largest magnitude in the reference.
    pub scale: f64,
}

impl LayerError {
    /// Whether some element differs by more than `tolerance` times the reference's largest, or is no
    /// number.
    pub fn differs(&self, tolerance: f64) -> bool {
        // Not `>`, which is false of a NaN.
        let equal = self.max <= tolerance * self.scale;
        !equal
    }

    fn new(name: &str, shape: &[usize], found: &[f32], wanted: &[f32]) -> Self {
        let (mut max, mut squares, mut scale) = (0.0_f64, 0.0, 0.0_f64);
        for (&found, &wanted) in found.iter().zip(wanted) {
            let difference = (f64::from(found) - f64::from(wanted)).abs();
            // `max` of a NaN is the other one.
            max = if difference.is_nan() { difference } else { max.max(difference) };
            squares += difference * difference;
            scale = scale.max(f64::from(wanted).abs());
            if max.is_nan() {
                break;
            }
        }
        let rms = (squares / found.len().max(1) as f64).sqrt();
        Self { name: name.into(), shape: shape.into(), max, rms, scale }
    }
}

/// What each part of a model makes of a picture: `[B, H, W, 3]`, normalised. Parts have the names of
/// PyTorch's modules and come in the order in which they are done; channels are last. Of what is done more
/// than once it is the first time.
///
/// # Errors
///
/// As [`Plan::new`].
pub fn activations(gpu: &Gpu, model: &Model, image: &Tensor) -> Result<Vec<(String, Tensor)>> {
    let mut tape = Tape::inference(gpu.profile()).listening();
    match model.config().head.finds_masks() {
        true => drop(model.forward_masks(&mut tape, image)),
        false => drop(model.forward(&mut tape, image)),
    }
    let mut heard = tape.heard();
    let mut seen = BTreeSet::new();
    heard.retain(|(name, _)| seen.insert(name.clone()));
    Plan::new(gpu, &tape.finish())?.run()?;
    Ok(heard)
}

/// Compares what each part of `model` makes of a picture with what it made in PyTorch.
///
/// `reference`: the picture as [`INPUT`], and results by the name of the module, `NAME.0`, `NAME.1`, … where
/// there are several. Maps may be `[B, C, H, W]`, `[B, H, W, C]` or `[B, H · W, C]`. `path` is for messages.
///
/// # Errors
///
/// [`Error::Invalid`] when there is no picture, or nothing to compare.
pub fn parity(gpu: &Gpu, model: &Model, reference: &Checkpoint, path: &Path) -> Result<Parity> {
    let wrong = |reason: String| Error::invalid_file(path, reason);
    let number = |name: &str, entry: &Entry| {
        entry.to_f32().map_err(|error| wrong(format!("{name}: {error}")))
    };
    let input = reference.get(INPUT).ok_or_else(|| wrong(format!("has no {INPUT}")))?;
    let [batch, 3, height, width] = *input.shape().dims() else {
        return Err(wrong(format!("{INPUT} is {:?}, not [B, 3, H, W]", input.shape())));
    };
    if [batch, height, width].contains(&0) {
        return Err(wrong(format!("{INPUT} is {:?}", input.shape())));
    }
    let values = channels_last(&number(INPUT, input)?, [batch, 3, height, width]);
    let image = Tensor::pinned(INPUT, [batch, height, width, 3]);
    image.write(gpu, &values)?;

    let mut parity = Parity { layers: Vec::new(), not_compared: Vec::new(), unknown: 0 };
    let mut known = BTreeSet::from([INPUT]);
    for (name, tensor) in activations(gpu, model, &image)? {
        let found = tensor.read(gpu)?;
        let mut best: Option<LayerError> = None;
        for (theirs, entry) in candidates(reference, &name) {
            known.insert(theirs);
            for wanted in laid_out(&number(theirs, entry)?, entry.shape().dims(), tensor.dims()) {
                let error = LayerError::new(&name, tensor.dims(), &found, &wanted);
                // Extents may leave open which result or layout it is.
                if best.as_ref().is_none_or(|best| error.max <= best.max) {
                    best = Some(error);
                }
            }
        }
        match best {
            Some(error) => parity.layers.push(error),
            None => parity.not_compared.push(name),
        }
    }
    if parity.layers.is_empty() {
        return Err(wrong("has no results of the model's layers".into()));
    }
    parity.unknown = reference.entries.len() - known.len();
    Ok(parity)
}

/// The arrays `name`, `name.0`, `name.1`, …
fn candidates<'a>(reference: &'a Checkpoint, name: &str) -> Vec<(&'a str, &'a Entry)> {
    let of_layer = |theirs: &str| {
        let rest = theirs.strip_prefix(name).expect("starts with it");
        rest.is_empty() || rest.strip_prefix('.').is_some_and(|rest| rest.parse::<u32>().is_ok())
    };
    let names = reference.entries.range(name.to_owned()..);
    let names = names.take_while(|(theirs, _)| theirs.starts_with(name));
    names.filter(|(theirs, _)| of_layer(theirs)).map(|(name, e)| (name.as_str(), e)).collect()
}

/// The ways in which an array of extents `theirs` can be one of `ours`, whose channels are last.
fn laid_out(values: &[f32], theirs: &[usize], ours: &[usize]) -> Vec<Vec<f32>> {
    let channels = ours.last().copied().unwrap_or(1);
    let mut ways = Vec::new();
    if values.len() != ours.iter().product::<usize>() {
        return ways;
    }
    if theirs.last() == Some(&channels) {
        ways.push(values.to_vec());
    }
    if let &[batch, c, height, width] = theirs
        && c == channels
    {
        ways.push(channels_last(values, [batch, c, height, width]));
    }
    ways
}

/// `[B, C, H, W]` to `[B, H, W, C]`.
fn channels_last(values: &[f32], [batch, channels, height, width]: [usize; 4]) -> Vec<f32> {
    let places = height * width;
    let mut rows = Vec::with_capacity(values.len());
    for image in 0..batch {
        for place in 0..places {
            rows.extend((0..channels).map(|c| values[(image * channels + c) * places + place]));
        }
    }
    rows
}
