//! How time grows with pixels, batch and channels: [`FAMILIES`], [`measure`] and [`Growth`].

use serde::Serialize;

use super::{Bench, Inputs, Work, attention};
use crate::ops::{self, BatchNorm, CrossEntropy, Running};
use crate::picture::{Picture, Series, curve};
use crate::{Gpu, Result, Tape, Tensor};

/// The size of a piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Height and width of the maps.
    pub side: usize,
    /// Maps.
    pub batch: usize,
    /// Their channels.
    pub channels: usize,
}

/// What the others grow from.
const LEAST: Size = Size { side: 64, batch: 1, channels: 64 };

/// A direction to grow in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Axis {
    /// Of a map.
    Pixels,
    /// Maps.
    Batch,
    /// The width of a model.
    Channels,
}

impl Axis {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Pixels, Self::Batch, Self::Channels];

    /// Sizes along the axis.
    fn sizes(self) -> Vec<Size> {
        match self {
            Self::Pixels => [64, 96, 128, 160].map(|side| Size { side, ..LEAST }).into(),
            Self::Batch => [1, 2, 4, 6].map(|batch| Size { batch, ..LEAST }).into(),
            Self::Channels => [64, 96, 128, 192].map(|channels| Size { channels, ..LEAST }).into(),
        }
    }

    fn of(self, size: Size) -> usize {
        match self {
            Self::Pixels => size.side * size.side,
            Self::Batch => size.batch,
            Self::Channels => size.channels,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pixels => "pixels",
            Self::Batch => "batch",
            Self::Channels => "channels",
        }
    }
}

/// Kernels that grow alike.
#[derive(Debug)]
pub struct Family {
    /// What they do.
    pub name: &'static str,
    /// The power of pixels, batch and channels that the work grows with, when it is large.
    pub expected: [f64; 3],
    work: fn(&mut Inputs<'_>, Size) -> Result<Work>,
}

/// Every family that models are made of.
pub const FAMILIES: &[Family] = &[
    Family { name: "linear layer", expected: [1.0, 1.0, 2.0], work: linear },
    Family { name: "layer norm", expected: [1.0, 1.0, 1.0], work: layer_norm },
    Family { name: "window attention", expected: [1.0, 1.0, 1.0], work: window_attention },
    Family { name: "global attention", expected: [2.0, 1.0, 1.0], work: global_attention },
    Family { name: "3 × 3 convolution", expected: [1.0, 1.0, 2.0], work: conv3x3 },
    Family { name: "batch norm + ReLU", expected: [1.0, 1.0, 1.0], work: batch_norm },
    Family { name: "resizing", expected: [1.0, 1.0, 1.0], work: resize },
    Family { name: "cross entropy", expected: [1.0, 1.0, 1.0], work: cross_entropy },
    Family { name: "element by element", expected: [1.0, 1.0, 1.0], work: gelu },
];

fn map(inputs: &mut Inputs<'_>, Size { side, batch, channels }: Size) -> Result<Tensor> {
    inputs.new_tensor([batch, side, side, channels])
}

fn linear(inputs: &mut Inputs<'_>, size: Size) -> Result<Work> {
    let (x, weight) = (map(inputs, size)?, inputs.new_tensor([size.channels, size.channels])?);
    Ok(Box::new(move |tape: &mut Tape| vec![ops::linear(tape, &x, &weight, None)]))
}

fn layer_norm(inputs: &mut Inputs<'_>, size: Size) -> Result<Work> {
    let x = map(inputs, size)?;
    let [weight, bias] = [inputs.new_tensor([size.channels])?, inputs.new_tensor([size.channels])?];
    Ok(Box::new(move |tape: &mut Tape| vec![ops::layer_norm(tape, &x, &weight, &bias, 1e-5)]))
}

fn window_attention(inputs: &mut Inputs<'_>, size: Size) -> Result<Work> {
    attention(inputs, [size.batch, size.side, size.side], size.channels)
}

fn global_attention(inputs: &mut Inputs<'_>, size: Size) -> Result<Work> {
    // Where the models have it, maps are four times smaller.
    let tokens = (size.side / 4) * (size.side / 4);
    let mut rows = || inputs.new_tensor([size.batch, tokens, size.channels]);
    let (q, k, v) = (rows()?, rows()?, rows()?);
    Ok(Box::new(move |tape: &mut Tape| vec![ops::semantic_attention(tape, &q, &k, &v)]))
}

fn conv3x3(inputs: &mut Inputs<'_>, size: Size) -> Result<Work> {
    let (x, weight) =
        (map(inputs, size)?, inputs.new_tensor([size.channels, size.channels, 3, 3])?);
    Ok(Box::new(move |tape: &mut Tape| vec![ops::conv3x3(tape, &x, &weight)]))
}

fn batch_norm(inputs: &mut Inputs<'_>, size: Size) -> Result<Work> {
    let x = map(inputs, size)?;
    let [weight, bias] = [inputs.new_tensor([size.channels])?, inputs.new_tensor([size.channels])?];
    let running = [(); 2].map(|()| Tensor::pinned("running statistics", [size.channels]));
    Ok(Box::new(move |tape: &mut Tape| {
        let running = Running { mean: &running[0], var: &running[1] };
        let options = BatchNorm { relu: true, ..BatchNorm::default() };
        vec![ops::batch_norm(tape, &x, &weight, &bias, running, options)]
    }))
}

fn resize(inputs: &mut Inputs<'_>, size: Size) -> Result<Work> {
    let x = map(inputs, size)?;
    Ok(Box::new(move |tape: &mut Tape| vec![ops::resize(tape, &x, 2 * size.side, 2 * size.side)]))
}

fn cross_entropy(inputs: &mut Inputs<'_>, size: Size) -> Result<Work> {
    let x = map(inputs, size)?;
    let labels = inputs.labels(size.batch * size.side * size.side, size.channels)?;
    let settings =
        CrossEntropy { height: size.side, width: size.side, weight: 1.0, ohem_min_kept: None };
    Ok(Box::new(move |tape: &mut Tape| vec![ops::cross_entropy(tape, &x, &labels, settings).loss]))
}

fn gelu(inputs: &mut Inputs<'_>, size: Size) -> Result<Work> {
    let x = map(inputs, size)?;
    Ok(Box::new(move |tape: &mut Tape| vec![ops::gelu(tape, &x)]))
}

/// How the time of a family grows along an axis, forward and backward together.
#[derive(Clone, Debug, Serialize)]
pub struct Growth {
    /// See [`Family::name`].
    pub family: &'static str,
    /// What grew.
    pub axis: Axis,
    /// How large it was, and the milliseconds.
    pub points: Vec<(usize, f64)>,
    /// Time grows with this power of the size: the slope of the line through the logarithms.
    pub exponent: f64,
    /// See [`Family::expected`].
    pub expected: f64,
}

/// Measures a family along an axis, `budget_s` seconds for each size.
///
/// # Errors
///
/// As [`Bench::new`] and [`Bench::measure`].
pub fn measure(gpu: &Gpu, family: &Family, axis: Axis, budget_s: f64) -> Result<Growth> {
    let mut points = Vec::new();
    for size in axis.sizes() {
        let mut inputs = Inputs::new(gpu);
        let work = (family.work)(&mut inputs, size)?;
        let bench = Bench::plan(inputs, &work, true, 0)?;
        let both = bench.measure(family.name, budget_s)?.pop().expect("two modes");
        points.push((axis.of(size), both.busy_ms));
    }
    let exponent = exponent(&points);
    Ok(Growth {
        family: family.name,
        axis,
        points,
        exponent,
        expected: family.expected[axis as usize],
    })
}

/// The slope of the line that comes closest to the logarithms of both (least squares).
fn exponent(points: &[(usize, f64)]) -> f64 {
    let logarithms: Vec<_> =
        points.iter().map(|&(size, ms)| ((size as f64).ln(), ms.ln())).collect();
    let n = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| logarithms.iter().map(of).sum::<f64>() / n;
    let (x, y) = (mean(|p| p.0), mean(|p| p.1));
    let covariance: f64 = logarithms.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
    covariance / logarithms.iter().map(|p| (p.0 - x).powi(2)).sum::<f64>()
}

/// A chart for each axis: how often twice as large, and how often twice as long. A line that rises by one
/// for each step to the right grows with the first power.
pub fn picture(growths: &[Growth], device: &str) -> Picture {
    const COLOURS: [[u8; 3]; 9] = [
        [52, 101, 164],
        [204, 0, 0],
        [78, 154, 6],
        [117, 80, 123],
        [206, 92, 0],
        [6, 152, 154],
        [193, 125, 17],
        [85, 87, 83],
        [230, 80, 160],
    ];
    let charts: Vec<Picture> = Axis::ALL
        .into_iter()
        .map(|axis| {
            let of: Vec<&Growth> = growths.iter().filter(|growth| growth.axis == axis).collect();
            let series = of.iter().zip(COLOURS.iter().cycle()).map(|(growth, &colour)| {
                let (size, ms) = growth.points[0];
                let doublings =
                    |p: &(usize, f64)| ((p.0 as f64 / size as f64).log2(), (p.1 / ms).log2());
                let points = growth.points.iter().map(doublings).collect();
                let name = format!("{}: {:.2}", growth.family, growth.exponent);
                Series { name, colour, points, right: false }
            });
            let title = format!("Time against {}: {device}", axis.name());
            let x_label = format!("{}, how often doubled", axis.name());
            curve(&series.collect::<Vec<_>>(), &title, &x_label, "time, how often doubled")
        })
        .collect();
    let mut all =
        Picture::new(charts[0].width, charts.iter().map(|chart| chart.height).sum(), [255; 3]);
    let mut y = 0;
    for chart in &charts {
        all.paste(chart, 0, y);
        y += chart.height;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponent_of_a_power_is_that_power() {
        for power in [0.0, 1.0, 1.5, 2.0] {
            let points: Vec<_> =
                [3usize, 5, 8, 21].map(|n| (n, 0.7 * (n as f64).powf(power))).into();
            assert!((exponent(&points) - power).abs() < 1e-12, "{power}");
        }
    }

    #[test]
    fn sizes_grow_along_one_axis() {
        for axis in Axis::ALL {
            let sizes = axis.sizes();
            assert_eq!(sizes[0], LEAST);
            assert!(sizes.windows(2).all(|pair| axis.of(pair[0]) < axis.of(pair[1])));
            for other in Axis::ALL.into_iter().filter(|&other| other != axis) {
                assert!(sizes.iter().all(|&size| other.of(size) == other.of(LEAST)));
            }
        }
    }
}
