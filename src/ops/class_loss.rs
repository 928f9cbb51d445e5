//! Cross entropy of the queries' classes: `shaders/class_loss.wgsl`.

use crate::gpu::{Grid, Kernel, Params as _, Source, params, source};
use crate::{Tape, Tensor};

const SOURCES: &[Source] = &[source!("class_loss"), source!("lib/reduce")];

static NORMALISE: Kernel = kernel("normalise", &["x", "lse_out"]);
static TOTAL: Kernel = kernel("total", &["x", "goals", "lse", "sum_w_out", "loss"]);
static BACKWARD: Kernel = kernel("backward", &["x", "goals", "lse", "sum_w", "dy", "dx"]);
pub(super) const KERNELS: &[&Kernel] = &[&NORMALISE, &TOTAL, &BACKWARD];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("class_loss", entry, SOURCES, Params::FIELDS, bindings)
}

params! {
    struct Params { rows: u32, classes: u32, no_object: f32, weight: f32 }
}

/// `weight ·` the weighted mean of the cross entropy of each row, where rows whose goal is the last
/// class count `no_object` times and all others once.
///
/// - `x`: `[.., C]`, before softmax
/// - `goals`: as many `u32` as there are rows, below C
/// - returns `[1]`
///
/// Equals `weight * torch.nn.functional.cross_entropy(x, goals, w)` with `w` 1 but for the last class. Keeps
/// `x` and a number per row for the backward pass.
///
/// # Panics
///
/// If `goals` has not as many elements as `x` has rows.
#[track_caller]
pub fn class_loss(
    tape: &mut Tape,
    x: &Tensor,
    goals: &Tensor,
    no_object: f32,
    weight: f32,
) -> Tensor {
    let (rows, classes) = (x.shape().rows(), x.shape().last());
    assert_eq!(goals.shape().len(), rows, "class_loss: goals for x {:?}", x.shape());
    let params = Params { rows: rows as u32, classes: classes as u32, no_object, weight };
    let recorder = tape.recorder();
    let [lse, sum_w, loss] = [rows, 1, 1].map(|len| recorder.empty([len]));
    let flops = 4 * x.shape().len();
    recorder.run(&NORMALISE, params, &[x, &lse], Grid::rows(rows)).flops(flops);
    recorder.run(&TOTAL, params, &[x, goals, &lse, &sum_w, &loss], Grid::rows(1));
    let (x_, goals) = (x.clone(), goals.clone());
    tape.record([x], loss, move |recorder, dy| {
        let dx = recorder.empty(x_.shape().clone());
        let bound = [&x_, &goals, &lse, &sum_w, dy, &dx];
        recorder.run(&BACKWARD, params, &bound, Grid::elements(dx.shape().len())).flops(flops);
        [Some(dx)]
    })
}
