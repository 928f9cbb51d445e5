//! Absolute positions, and bicubic resizing of tables: `shaders/position.wgsl`.

use super::reduce;
use crate::gpu::{Grid, Kernel, Params as _, Source, params, source};
use crate::{Tape, Tensor};

const SOURCES: &[Source] = &[source!("position")];

static RESIZE: Kernel = kernel("resize", &["table", "y"]);
static RESIZE_BACKWARD: Kernel = kernel("resize_backward", &["dy", "dtable"]);
static ADD: Kernel = kernel("add", &["x", "pos", "y"]);
pub(super) const KERNELS: &[&Kernel] = &[&RESIZE, &RESIZE_BACKWARD, &ADD];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("position", entry, SOURCES, Params::FIELDS, bindings)
}

params! {
    struct Params {
        channels: u32,
        table_height: u32,
        table_width: u32,
        height: u32,
        width: u32,
        len: u32,
    }
}

/// Resizes a learned table of positions to a map, by bicubic interpolation (a = −0.75, centres of
/// elements at halves, border repeated).
///
/// - `table`: `[.., C, S, S']`, channels first, as checkpoints have it; what is before them is 1
/// - returns `[height, width, C]`
///
/// Equals `torch.nn.functional.interpolate(table, (height, width), mode="bicubic")`, but for the layout.
/// Keeps nothing.
///
/// # Panics
///
/// If `table` is no such table or something is empty.
#[track_caller]
pub fn resize_bicubic(tape: &mut Tape, table: &Tensor, height: usize, width: usize) -> Tensor {
    let [ones @ .., channels, table_height, table_width] = table.dims() else {
        panic!("resize_bicubic of {:?}", table.shape())
    };
    assert!(ones.iter().all(|&n| n == 1), "resize_bicubic of {:?}", table.shape());
    assert!(height * width * table.shape().len() > 0, "resize_bicubic of {:?}", table.shape());
    let len = height * width * channels;
    let params = Params {
        channels: *channels as u32,
        table_height: *table_height as u32,
        table_width: *table_width as u32,
        height: height as u32,
        width: width as u32,
        len: len as u32,
    };
    let recorder = tape.recorder();
    let y = recorder.empty([height, width, *channels]);
    recorder.run(&RESIZE, params, &[table, &y], Grid::rows(height * width)).flops(40 * len);
    let (shape, places) = (table.shape().clone(), table_height * table_width);
    tape.record([table], y, move |recorder, dy| {
        let dtable = recorder.empty(shape);
        let grid = Grid::rows(places);
        recorder.run(&RESIZE_BACKWARD, params, &[dy, &dtable], grid).flops(40 * len);
        [Some(dtable)]
    })
}

/// `x + pos` for each image of a batch.
///
/// - `x`: `[B, h, w, C]`
/// - `pos`: `[h, w, C]`
///
/// Keeps nothing.
///
/// # Panics
///
/// If `pos` does not have the shape of an image of `x`.
#[track_caller]
pub fn add_position(tape: &mut Tape, x: &Tensor, pos: &Tensor) -> Tensor {
    assert_eq!(&x.dims()[1..], pos.dims(), "add_position: positions for x {:?}", x.shape());
    let (batch, len) = (x.dims()[0], pos.shape().len());
    let mut params: Params = bytemuck::Zeroable::zeroed();
    params.len = len as u32;
    let recorder = tape.recorder();
    let y = recorder.empty(x.shape().clone());
    let grid = Grid::rows_of(len.div_ceil(256), batch);
    recorder.run(&ADD, params, &[x, pos, &y], grid).flops(batch * len);
    let with_pos = pos.is_tracked();
    tape.record([x, pos], y, move |recorder, dy| {
        let dpos = with_pos.then(|| reduce::sum_rows(recorder, dy, batch, len));
        [Some(dy.clone()), dpos]
    })
}

/// [`resize_bicubic`] on the host, of a table of relative position biases: for loading a checkpoint that
/// was trained with another window.
///
/// - `table`: `[(2w − 1)², heads]`, row-major
/// - `from`, `to`: sides 2w − 1 of the table's square before and after
/// - returns `[to², heads]`
///
/// # Panics
///
/// If `table` is not `from²` rows of `heads` or something is empty.
#[track_caller]
pub fn resize_bicubic_table(table: &[f32], heads: usize, from: usize, to: usize) -> Vec<f32> {
    assert!(from * to * heads > 0, "resize_bicubic_table: {from} to {to}, {heads} heads");
    assert_eq!(table.len(), from * from * heads, "resize_bicubic_table: {from}² × {heads}");
    const A: f64 = -0.75;
    let cubic = |distance: f64| {
        let t = distance.abs();
        if t <= 1.0 {
            ((A + 2.0) * t - (A + 3.0)) * t * t + 1.0
        } else {
            ((A * t - 5.0 * A) * t + 8.0 * A) * t - 4.0 * A
        }
    };
    // The four elements that place `i` is made of, and their weights.
    let taps = |i: usize| {
        let s = (i as f64 + 0.5) * from as f64 / to as f64 - 0.5;
        [-1.0, 0.0, 1.0, 2.0].map(|offset| {
            let m = s.floor() + offset;
            (m.clamp(0.0, (from - 1) as f64) as usize, cubic(s - m))
        })
    };
    let mut resized = Vec::with_capacity(to * to * heads);
    for place in 0..to * to {
        let (rows, cols) = (taps(place / to), taps(place % to));
        for head in 0..heads {
            let mut sum = 0.0;
            for (m, weight) in rows {
                let value = |n: usize| f64::from(table[(m * from + n) * heads + head]);
                sum += weight * cols.iter().map(|&(n, weight)| weight * value(n)).sum::<f64>();
            }
            resized.push(sum as f32);
        }
    }
    resized
}
