//! Joining tensors along an axis, and taking parts of one: `shaders/concat.wgsl`.

use std::ops::Range;

use super::elementwise;
use crate::gpu::{Grid, Kernel, Params as _, Recorder, Source, params, source};
use crate::{Tape, Tensor};

const SOURCES: &[Source] = &[source!("concat")];

static COPY: Kernel = Kernel::new("concat", "copy", SOURCES, Params::FIELDS, &["x", "y"]);
pub(super) const KERNELS: &[&Kernel] = &[&COPY];

params! {
    struct Params { len: u32, part: u32, row_x: u32, row_y: u32, start_x: u32, start_y: u32 }
}

/// Joins tensors along `axis`, in which alone their shapes differ. Equals `torch.cat`. Keeps nothing.
///
/// # Panics
///
/// If the shapes differ in another axis, or something is empty.
#[track_caller]
pub fn concat<const N: usize>(tape: &mut Tape, parts: [&Tensor; N], axis: usize) -> Tensor {
    let mut dims = parts[0].dims().to_vec();
    dims[axis] = 0;
    for part in parts {
        let same = |(i, (a, b)): (usize, (&usize, &usize))| i == axis || a == b;
        let fits = part.dims().len() == dims.len()
            && part.dims().iter().zip(parts[0].dims()).enumerate().all(same);
        assert!(fits, "concat: {:?} beside {:?}", part.shape(), parts[0].shape());
        dims[axis] += part.dims()[axis];
    }
    let recorder = tape.recorder();
    let y = recorder.empty(&dims[..]);
    let mut start = 0;
    let ranges = parts.map(|part| {
        let range = start..start + part.dims()[axis];
        start = range.end;
        copy(recorder, part, 0..range.len(), &y, range.start, axis);
        range
    });
    let tracked = parts.map(Tensor::is_tracked);
    tape.record(parts, y, move |recorder, dy| {
        let dy = dy.reshape(&dims[..]);
        let mut at = 0;
        ranges.map(|range| {
            at += 1;
            tracked[at - 1].then(|| part_of(recorder, &dy, axis, range))
        })
    })
}

/// The places `range` of an axis. Equals `torch.narrow`. Keeps nothing.
///
/// # Panics
///
/// If the axis has no such places, or something is empty.
#[track_caller]
pub fn slice(tape: &mut Tape, x: &Tensor, axis: usize, range: Range<usize>) -> Tensor {
    assert!(range.end <= x.dims()[axis], "slice: {range:?} of axis {axis} of {:?}", x.shape());
    let y = part_of(tape.recorder(), x, axis, range.clone());
    let shape = x.shape().clone();
    tape.record([x], y, move |recorder, dy| {
        let mut dims = shape.dims().to_vec();
        dims[axis] = range.len();
        let dx = elementwise::fill(recorder, shape, 0.0);
        copy(recorder, &dy.reshape(&dims[..]), 0..range.len(), &dx, range.start, axis);
        [Some(dx)]
    })
}

#[track_caller]
fn part_of(recorder: &mut Recorder, x: &Tensor, axis: usize, range: Range<usize>) -> Tensor {
    let mut dims = x.dims().to_vec();
    dims[axis] = range.len();
    let y = recorder.empty(&dims[..]);
    copy(recorder, x, range, &y, 0, axis);
    y
}

/// Copies the places `from` of an axis of `x` to `to` and on of `y`.
#[track_caller]
fn copy(
    recorder: &mut Recorder,
    x: &Tensor,
    from: Range<usize>,
    y: &Tensor,
    to: usize,
    axis: usize,
) {
    let inner: usize = x.dims()[axis + 1..].iter().product();
    let outer: usize = x.dims()[..axis].iter().product();
    let part = from.len() * inner;
    let len = outer * part;
    assert!(len > 0, "a copy of nothing: {from:?} of axis {axis} of {:?}", x.shape());
    let params = Params {
        len: len as u32,
        part: part as u32,
        row_x: (x.dims()[axis] * inner) as u32,
        row_y: (y.dims()[axis] * inner) as u32,
        start_x: (from.start * inner) as u32,
        start_y: (to * inner) as u32,
    };
    recorder.run(&COPY, params, &[x, y], Grid::elements(len));
}
