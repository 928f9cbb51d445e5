//! What a device can do at most: `shaders/roofs.wgsl`.

use serde::{Deserialize, Serialize};

use super::{Bench, Inputs, Measurement, Work};
use crate::gpu::{Dispatch, Grid, Kernel, Params as _, Plan, Recorder, Source, params, source};
use crate::ops;
use crate::random::Rng;
use crate::{Gpu, Result, Tensor};

const SOURCES: &[Source] = &[source!("roofs")];

static ARITHMETIC: Kernel = kernel("arithmetic", &["y"]);
static GATHER: Kernel = kernel("gather", &["table", "y"]);
static SIMPLE_PRODUCT: Kernel = kernel("simple_product", &["x", "weight", "product"]);
pub(crate) const KERNELS: &[&Kernel] = &[&ARITHMETIC, &GATHER, &SIMPLE_PRODUCT];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("roofs", entry, SOURCES, Params::FIELDS, bindings)
}

params! {
    struct Params { rounds: u32, mask: u32, inner: u32, columns: u32, value: f32 }
}

/// Rates that nothing on the device exceeds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Roofs {
    /// Multiplications and additions in registers, 10⁹ per second.
    pub arithmetic: f64,
    /// Bytes read and written by a kernel that copies, 10⁹ per second.
    pub copy: f64,
    /// Bytes of vectors of four read from random places of 4 MiB, 10⁹ per second.
    pub gather: f64,
}

/// What binds a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Roof {
    /// [`Roofs::arithmetic`]
    Arithmetic,
    /// [`Roofs::copy`]
    Copy,
    /// [`Roofs::gather`]
    Gather,
}

impl std::fmt::Display for Roof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Arithmetic => "FMA",
            Self::Copy => "copy",
            Self::Gather => "gather",
        })
    }
}

impl Roofs {
    /// Measures a device, `budget_s` seconds for each rate.
    ///
    /// # Errors
    ///
    /// As [`Bench::new`] and [`Bench::measure`].
    pub fn measure(gpu: &Gpu, budget_s: f64) -> Result<Self> {
        let of = |recorder: &Recorder, bytes: u64| -> Result<Measurement> {
            let modes = vec![("roof".into(), Plan::new(gpu, recorder)?)];
            let bench = Bench { gpu: gpu.clone(), modes, bytes: vec![bytes], gathered: 0 };
            Ok(bench.measure("roof", budget_s)?.remove(0))
        };
        let profile = gpu.profile();
        let workgroup = workgroup(profile.cpu);
        let mut inputs = Inputs::new(gpu);

        let mut recorder = Recorder::new(profile);
        arithmetic(&mut recorder, if profile.cpu { 256 } else { 16_384 });
        let arithmetic = of(&recorder, 0)?.gflop_per_s;

        const COPIED: usize = 1 << 24;
        let x = inputs.new_tensor([COPIED])?;
        let mut recorder = Recorder::new(profile);
        let y = recorder.empty([COPIED]);
        ops::copy(&mut recorder, &x, &y);
        let copy = of(&recorder, 8 * COPIED as u64)?.gbyte_per_s;

        const TABLE: usize = 1 << 18;
        let groups = if profile.cpu { 4096 } else { 16_384 };
        let table = inputs.new_tensor([TABLE, 4])?;
        let mut recorder = Recorder::new(profile);
        gather(&mut recorder, &table, groups);
        let gather = of(&recorder, (groups * workgroup * 32 * 16) as u64)?.gbyte_per_s;
        Ok(Self { arithmetic, copy, gather })
    }

    /// What binds work of so many FLOPs and bytes, and the milliseconds that it takes at the least.
    pub fn bound(&self, flops: u64, bytes: u64, gathered: u64) -> (Roof, f64) {
        let ms = |amount: u64, rate: f64| amount as f64 / 1e6 / rate;
        let times = [
            (Roof::Arithmetic, ms(flops, self.arithmetic)),
            (Roof::Copy, ms(bytes, self.copy)),
            (Roof::Gather, ms(gathered, self.gather)),
        ];
        times.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).expect("three of them")
    }
}

fn workgroup(cpu: bool) -> usize {
    if cpu { 8 } else { 64 }
}

fn run<'a>(
    recorder: &'a mut Recorder,
    kernel: &'static Kernel,
    params: Params,
    tensors: &[&Tensor],
    groups: usize,
) -> &'a mut Dispatch {
    let workgroup = workgroup(recorder.profile().cpu);
    let dispatch = recorder.run(kernel, params, tensors, Grid([groups as u32, 1, 1]));
    dispatch.constant("WORKGROUP", workgroup as u32)
}

const NONE: Params = Params { rounds: 0, mask: 0, inner: 0, columns: 0, value: 0.0 };

/// Arithmetic in registers: `[invocations, 4]`, each element the sum of four numbers to which
/// `s ← s / 2 + 1 / 2` was done 4096 times.
pub fn arithmetic(recorder: &mut Recorder, groups: usize) -> Tensor {
    const ROUNDS: usize = 256;
    let invocations = groups * workgroup(recorder.profile().cpu);
    let y = recorder.empty([invocations, 4]);
    let params = Params { rounds: ROUNDS as u32, value: 0.5, ..NONE };
    run(recorder, &ARITHMETIC, params, &[&y], groups).flops(invocations * ROUNDS * 16 * 16 * 2);
    y
}

/// Sums of 32 vectors of `table`, `[T, 4]`: `[invocations, 4]`.
///
/// # Panics
///
/// If T is no power of two.
pub fn gather(recorder: &mut Recorder, table: &Tensor, groups: usize) -> Tensor {
    let vectors = table.dims()[0];
    assert!(vectors.is_power_of_two(), "gather: a table of {vectors}");
    let y = recorder.empty([groups * workgroup(recorder.profile().cpu), 4]);
    let params = Params { mask: vectors as u32 - 1, ..NONE };
    run(recorder, &GATHER, params, &[table, &y], groups);
    y
}

/// `x · weightᵀ`, one invocation per element: what a kernel gains is told by comparison with this.
///
/// - `x`: `[rows, inner]`, at most 65 535 rows
/// - `weight`: `[columns, inner]`
/// - returns `[rows, columns]`
pub fn simple_product(recorder: &mut Recorder, x: &Tensor, weight: &Tensor) -> Tensor {
    let (rows, inner, columns) = (x.shape().rows(), x.shape().last(), weight.shape().rows());
    let y = recorder.empty([rows, columns]);
    let params = Params { inner: inner as u32, columns: columns as u32, ..NONE };
    let grid = Grid([columns.div_ceil(64) as u32, rows as u32, 1]);
    recorder.run(&SIMPLE_PRODUCT, params, &[x, weight, &y], grid).flops(2 * rows * inner * columns);
    y
}

/// The simple product as a row.
pub(super) fn simple_work(x: Tensor, weight: Tensor) -> Work {
    Box::new(move |tape| vec![simple_product(tape.recorder(), &x, &weight)])
}

impl<'a> Inputs<'a> {
    pub(super) fn new(gpu: &'a Gpu) -> Self {
        Self { gpu, rng: Rng::new(1, 1), bytes: 0, tracked: 0 }
    }
}
