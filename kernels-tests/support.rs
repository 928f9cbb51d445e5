//! The devices and the one check that all op tests share.

use std::cell::Cell;
use std::sync::LazyLock;

use semask_gpu::gpu::{Family, GpuOptions, Plan, Recorder, Tuning, Variant};
use semask_gpu::random::Rng;
use semask_gpu::{Gpu, Shape, Tape, Tensor};

/// The machine's GPU as a user gets it, opened once for the whole test binary.
pub(crate) static GPU: LazyLock<Gpu> = LazyLock::new(|| open(&GpuOptions::default()));

/// The same kernels with checked indices: unchecked ones must not depend on what a check would hide.
pub(crate) static CHECKED: LazyLock<Gpu> =
    LazyLock::new(|| open(&GpuOptions { checked: true, ..GpuOptions::default() }));

/// The same device with every other choice the other way round: checked indices, no subgroups, no immediates,
/// dispatches cut as finely as can be, and the kernels for GPUs on a CPU driver (or the reverse).
pub(crate) static OTHER: LazyLock<Gpu> = LazyLock::new(|| {
    open(&GpuOptions {
        checked: true,
        no_subgroups: true,
        no_immediates: true,
        dispatch_ms: Some(1e-9),
        cpu_kernels: Some(!GPU.profile().cpu),
        ..GpuOptions::default()
    })
});

/// [`GPU`] with the kernels for CPU drivers that need no subgroups of eight.
pub(crate) static REGISTERS: LazyLock<Gpu> = LazyLock::new(|| {
    let force = |tuning: Tuning, family: Family| tuning.with(family, Variant::Registers);
    GPU.with_tuning(Family::ALL.into_iter().fold(Tuning::default(), force))
});

/// [`GPU`] with matrix units for all products that suit them.
pub(crate) static MATRICES: LazyLock<Gpu> = LazyLock::new(|| {
    GPU.with_tuning(Tuning::default().with(Family::HalfProduct, Variant::Matrices))
});

/// [`GPU`] or [`OTHER`], whichever has the kernels for GPUs, with small tiles for all products that suit them.
pub(crate) static SMALL_TILES: LazyLock<Gpu> = LazyLock::new(|| {
    let of_gpus = if GPU.profile().cpu { &*OTHER } else { &*GPU };
    let products = [Family::Product, Family::HalfProduct].into_iter();
    of_gpus.with_tuning(products.fold(Tuning::default(), |t, f| t.with(f, Variant::SmallTiles)))
});

/// All that [`check_op`] runs on; between them they run every variant of every kernel.
pub(crate) fn devices() -> Vec<(&'static str, &'static Gpu)> {
    let mut devices = vec![("", &*GPU), (" (checked)", &*CHECKED), (" (other kernels)", &*OTHER)];
    devices.push((" (small tiles)", &*SMALL_TILES));
    if GPU.profile().lanes {
        devices.push((" (registers)", &*REGISTERS));
    }
    devices
}

/// The machine's GPU, opened in another way.
pub(crate) fn open(options: &GpuOptions) -> Gpu {
    let adapter = std::env::var("SEMASK_GPU_DEVICE").ok();
    let options = GpuOptions { adapter, ..options.clone() };
    Gpu::open(&options).expect("tests need a GPU driver: run them through tools/test")
}

thread_local! {
    /// The device that [`check_op`] is on, in this test's thread.
    static DEVICE: Cell<Option<&'static Gpu>> = const { Cell::new(None) };
}

/// The device that [`check_op`] runs its op on, for inputs that are no `f32`.
#[track_caller]
pub(crate) fn device() -> &'static Gpu {
    DEVICE.get().expect("called from within check_op")
}

/// How far results may be off, relative to the largest expected value.
#[derive(Clone, Copy)]
pub(crate) struct Tolerance {
    pub(crate) forward: f64,
    pub(crate) backward: f64,
}

/// What `f32` arithmetic over a few hundred terms allows.
pub(crate) const F32: Tolerance = Tolerance { forward: 4e-6, backward: 2e-4 };

/// Gradients of an input are compared at this many places, first and last among them.
const PROBES: usize = 48;

/// Runs `op` on the GPU with random inputs of the given shapes and compares its output with
/// `reference`, then the gradients with finite differences of `reference`. On all
/// [`devices`].
#[track_caller]
pub(crate) fn check_op(
    shapes: &[&[usize]],
    tolerance: Tolerance,
    op: impl Fn(&mut Tape, &[Tensor]) -> Tensor,
    reference: impl Fn(&[Vec<f64>]) -> Vec<f64>,
) {
    let mut rng = Rng::new(0x5eed, 0);
    let values: Vec<Vec<f32>> =
        shapes.iter().map(|s| random(&mut rng, Shape::from(*s).len())).collect();
    check_op_at(shapes, &values, tolerance, op, reference);
}

/// [`check_op`] with given inputs.
#[track_caller]
pub(crate) fn check_op_at(
    shapes: &[&[usize]],
    values: &[Vec<f32>],
    tolerance: Tolerance,
    op: impl Fn(&mut Tape, &[Tensor]) -> Tensor,
    reference: impl Fn(&[Vec<f64>]) -> Vec<f64>,
) {
    let exact: Vec<Vec<f64>> =
        values.iter().map(|v| v.iter().map(|&v| v.into()).collect()).collect();
    let expected = reference(&exact);
    // A random weighted sum of the output stands in for the loss.
    let dy = random(&mut Rng::new(0x5eed, 1), expected.len());
    let loss = |inputs: &[Vec<f64>]| -> f64 {
        reference(inputs).iter().zip(&dy).map(|(y, &dy)| y * f64::from(dy)).sum()
    };
    let mut numeric: Vec<Vec<(usize, f64)>> = Vec::new();
    for (i, input) in exact.iter().enumerate() {
        let mut rng = Rng::new(0x5eed, 2);
        let places: Vec<usize> = match input.len() {
            len if len <= PROBES => (0..len).collect(),
            len => (0..PROBES - 2).map(|_| rng.below(len)).chain([0, len - 1]).collect(),
        };
        numeric.push(places.into_iter().map(|at| (at, slope(loss, &exact, i, at))).collect());
    }

    for (device, gpu) in devices() {
        DEVICE.set(Some(gpu));
        let inputs: Vec<Tensor> = (shapes.iter().zip(values))
            .map(|(shape, v)| Tensor::from_slice(gpu, *shape, v).tracked())
            .collect();
        let mut tape = Tape::training(gpu.profile());
        let y = op(&mut tape, &inputs);
        let seed = Tensor::from_slice(gpu, y.shape().clone(), &dy);
        let kept = tape.recorder().keep(&y, "y");
        let (mut recorder, grads) = tape.backward_from(&[(&y, seed)]);
        if std::ptr::eq(gpu, &*SMALL_TILES) && !has_small_tiles(&recorder) {
            continue;
        }
        let grads: Vec<Tensor> = (inputs.iter().enumerate())
            .map(|(i, input)| {
                let grad = grads.get(input);
                let grad = grad.unwrap_or_else(|| panic!("no gradient for input {i}"));
                assert_eq!(grad.shape(), input.shape(), "a gradient has its tensor's shape");
                recorder.keep(grad, "gradient")
            })
            .collect();
        run(gpu, &recorder);
        assert_close(
            &format!("output{device}"),
            &kept.read(gpu).unwrap(),
            &expected,
            tolerance.forward,
        );
        for (i, (grad, numeric)) in grads.iter().zip(&numeric).enumerate() {
            let grad = grad.read(gpu).unwrap();
            assert!(grad.iter().all(|g| g.is_finite()), "gradient of input {i}{device} is finite");
            let got: Vec<f32> = numeric.iter().map(|&(at, _)| grad[at]).collect();
            let expected: Vec<f64> = numeric.iter().map(|&(_, slope)| slope).collect();
            let what = format!("gradient of input {i}{device}");
            assert_close(&what, &got, &expected, tolerance.backward);
        }
    }
}

/// Whether it is not what another device has run already.
fn has_small_tiles(recorder: &Recorder) -> bool {
    recorder.programs().iter().any(|program| program.kernel.variant.starts_with("small"))
}

/// Plans and runs a recording once.
#[track_caller]
pub(crate) fn run(gpu: &Gpu, recorder: &Recorder) {
    Plan::new(gpu, recorder).unwrap().run().unwrap();
}

/// What a forward pass computes, on `gpu`.
#[track_caller]
pub(crate) fn forward(gpu: &Gpu, op: impl FnOnce(&mut Tape) -> Tensor) -> Vec<f32> {
    let mut tape = Tape::inference(gpu.profile());
    let y = op(&mut tape);
    let y = tape.recorder().keep(&y, "y");
    run(gpu, &tape.finish());
    y.read(gpu).unwrap()
}

/// `d loss / d inputs[i][at]` by central differences.
fn slope(loss: impl Fn(&[Vec<f64>]) -> f64, inputs: &[Vec<f64>], i: usize, at: usize) -> f64 {
    const STEP: f64 = 1e-4;
    let shifted = |by: f64| {
        let mut inputs = inputs.to_vec();
        inputs[i][at] += by;
        loss(&inputs)
    };
    (shifted(STEP) - shifted(-STEP)) / (2.0 * STEP)
}

/// Asserts that no value is off by more than `tolerance` times the largest expected one.
#[track_caller]
pub(crate) fn assert_close(what: &str, got: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    let scale = expected.iter().fold(1e-6, |max: f64, e| max.max(e.abs()));
    for (at, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(got) - expected).abs() / scale;
        assert!(
            error <= tolerance,
            "{what}[{at}]: {got} but expected {expected} (off {error:.1e})"
        );
    }
}

/// `len` values, uniform in -2..2.
pub(crate) fn random(rng: &mut Rng, len: usize) -> Vec<f32> {
    (0..len).map(|_| rng.between(-2.0, 2.0)).collect()
}

/// Normal distribution by Simpson's rule; slow and sure.
pub(crate) fn normal_cdf(v: f64) -> f64 {
    let density = |t: f64| (-0.5 * t * t).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let n = 400;
    let h = v / n as f64;
    let inner: f64 =
        (1..n).map(|i| density(i as f64 * h) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
    0.5 + h / 3.0 * (density(0.0) + inner + density(v))
}
