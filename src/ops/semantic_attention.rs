//! Semantic attention and its gated residual: [`matmul`](super::matmul()) and
//! [`softmax`](super::softmax()) over as many scores at a time as fit 16 MiB, and
//! `shaders/gated_residual.wgsl`.

use super::matmul::{Epilogue, Extents, Matrices, PLAIN, product};
use super::reduce;
use super::softmax::{softmax_rows, softmax_rows_backward};
use crate::gpu::{Grid, Kernel, Params as _, Recorder, Source, params, source};
use crate::{Tape, Tensor};

const SOURCES: &[Source] = &[source!("gated_residual")];

static FORWARD: Kernel = kernel("forward", &["x", "update", "gamma", "y"]);
static BACKWARD: Kernel = kernel("backward", &["update", "gamma", "dy", "dupdate", "parts"]);
pub(super) const KERNELS: &[&Kernel] = &[&FORWARD, &BACKWARD];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("gated_residual", entry, SOURCES, Params::FIELDS, bindings)
}

params! {
    struct Params { len: u32 }
}

/// `x + gamma · update` with one learned scalar.
///
/// - `x`, `update`: of one shape
/// - `gamma`: `[1]`
///
/// Keeps `update`.
///
/// # Panics
///
/// If the shapes do not fit together.
#[track_caller]
pub fn gated_residual(tape: &mut Tape, x: &Tensor, update: &Tensor, gamma: &Tensor) -> Tensor {
    assert_eq!(x.shape(), update.shape(), "gated_residual");
    assert_eq!(gamma.dims(), [1], "gated_residual: gamma");
    const PER_GROUP: usize = 4096;
    let len = x.shape().len();
    let groups = len.div_ceil(PER_GROUP);
    let params = Params { len: len as u32 };
    let recorder = tape.recorder();
    let y = recorder.empty(x.shape().clone());
    recorder.run(&FORWARD, params, &[x, update, gamma, &y], Grid::rows(groups)).flops(2 * len);
    let saved = (update.clone(), gamma.clone());
    tape.record([x, update, gamma], y, move |recorder, dy| {
        let (update, gamma) = &saved;
        let dupdate = recorder.empty(update.shape().clone());
        let parts = recorder.empty([groups, 64]);
        recorder
            .run(&BACKWARD, params, &[update, gamma, dy, &dupdate, &parts], Grid::rows(groups))
            .flops(3 * len);
        let lanes = reduce::sum_rows(recorder, &parts, groups, 64);
        let dgamma = reduce::sum_rows(recorder, &lanes, 64, 1);
        [Some(dy.clone()), Some(dupdate), Some(dgamma)]
    })
}

/// Scores that are in memory at one time; of 4 bytes each.
const SCORES: usize = 4 << 20;

/// Queries `rows` of the groups `groups`, whose scores are in memory together.
struct Chunk {
    groups: std::ops::Range<usize>,
    rows: std::ops::Range<usize>,
}

/// Whole groups as long as one fits, else some queries of one group.
fn chunks(batch: usize, tokens: usize) -> Vec<Chunk> {
    let groups_at_once = (SCORES / (tokens * tokens)).clamp(1, batch);
    let rows_at_once = (SCORES / tokens).clamp(1, tokens);
    let mut chunks = Vec::new();
    for group in (0..batch).step_by(groups_at_once) {
        let groups = group..(group + groups_at_once).min(batch);
        for row in (0..tokens).step_by(rows_at_once) {
            let rows = row..(row + rows_at_once).min(tokens);
            chunks.push(Chunk { groups: groups.clone(), rows });
        }
    }
    chunks
}

/// Attention by agreement of class vectors: `softmax(q · kᵀ) · v` within each group of tokens
/// (Jain et al. 2021, <https://arxiv.org/abs/2112.12782>).
///
/// - `q`, `k`: `[G, N, K]`, class logits of each token
/// - `v`: `[G, N, C]`
/// - returns `[G, N, C]`
///
/// No 1/√K: the reference takes the softmax of the raw products. A group is a window, or a whole
/// map: scores are in memory for as many queries at a time as fit 16 MiB, so memory grows with the
/// number of tokens, not with its square. Keeps `q`, `k` and `v`; the backward pass recomputes the
/// probabilities.
///
/// # Panics
///
/// If the shapes do not fit together.
#[track_caller]
pub fn semantic_attention(tape: &mut Tape, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
    let [batch, tokens, classes] = *q.dims() else { panic!("semantic_attention: {:?}", q.shape()) };
    let channels = v.shape().last();
    assert_eq!(k.shape(), q.shape(), "semantic_attention: k");
    assert_eq!(v.dims(), [batch, tokens, channels], "semantic_attention: v");

    let recorder = tape.recorder();
    let y = recorder.empty(v.shape().clone());
    for chunk in chunks(batch, tokens) {
        let p = probabilities(recorder, q, k, &chunk);
        let (p, v, y) = (part_of(&p), whole(v, &chunk), rows_of(&y, &chunk));
        let extents =
            Extents { batch: chunk.groups.len(), m: chunk.rows.len(), k: tokens, n: channels };
        product(recorder, p, v, y, extents, PLAIN);
    }
    let saved = (q.clone(), k.clone(), v.clone());
    tape.record([q, k, v], y, move |recorder, dy| {
        let (q, k, v) = &saved;
        let [dq, dk, dv] = [q, k, v].map(|t| recorder.empty(t.shape().clone()));
        for chunk in chunks(batch, tokens) {
            let (groups, rows) = (chunk.groups.len(), chunk.rows.len());
            let p = probabilities(recorder, q, k, &chunk);
            let g = rows_of(dy, &chunk);
            // Gradients of keys and values add up over the queries of a group.
            let add = Epilogue::Plain { alpha: 1.0, accumulate: chunk.rows.start > 0 };

            let extents = Extents { batch: groups, m: tokens, k: rows, n: channels };
            product(recorder, part_of(&p).transposed(), g, whole(&dv, &chunk), extents, add);

            let dp = recorder.empty(p.shape().clone());
            let extents = Extents { batch: groups, m: rows, k: channels, n: tokens };
            let v = whole(v, &chunk).transposed();
            product(recorder, g, v, part_of(&dp), extents, PLAIN);
            let ds = softmax_rows_backward(recorder, &p, &dp);

            let extents = Extents { batch: groups, m: rows, k: tokens, n: classes };
            let (keys, to) = (whole(k, &chunk), rows_of(&dq, &chunk));
            product(recorder, part_of(&ds), keys, to, extents, PLAIN);

            let extents = Extents { batch: groups, m: tokens, k: rows, n: classes };
            let (queries, to) = (rows_of(q, &chunk), whole(&dk, &chunk));
            product(recorder, part_of(&ds).transposed(), queries, to, extents, add);
        }
        [Some(dq), Some(dk), Some(dv)]
    })
}

/// `softmax(q · kᵀ)` for the queries of a chunk: `[groups, rows, N]`.
fn probabilities(recorder: &mut Recorder, q: &Tensor, k: &Tensor, chunk: &Chunk) -> Tensor {
    let [_, tokens, classes] = *q.dims() else { unreachable!("checked by the op") };
    let (groups, rows) = (chunk.groups.len(), chunk.rows.len());
    let scores = recorder.empty([groups, rows, tokens]);
    let extents = Extents { batch: groups, m: rows, k: classes, n: tokens };
    let (queries, keys) = (rows_of(q, chunk), whole(k, chunk).transposed());
    product(recorder, queries, keys, part_of(&scores), extents, PLAIN);
    softmax_rows(recorder, &scores)
}

/// All tokens of a chunk's groups.
fn whole<'a>(t: &'a Tensor, chunk: &Chunk) -> Matrices<'a> {
    let [_, tokens, width] = *t.dims() else { unreachable!("checked by the op") };
    let matrices = Matrices::new(t, tokens, width);
    Matrices { offset: chunk.groups.start * matrices.batch_stride, ..matrices }
}

/// A chunk's queries.
fn rows_of<'a>(t: &'a Tensor, chunk: &Chunk) -> Matrices<'a> {
    whole(t, chunk).at_row(chunk.rows.start)
}

/// A tensor that holds a chunk and nothing else.
fn part_of(t: &Tensor) -> Matrices<'_> {
    let [_, rows, cols] = *t.dims() else { unreachable!("made for a chunk") };
    Matrices::new(t, rows, cols)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_every_query_once_and_fit() {
        for (batch, tokens) in [(1, 1), (361, 49), (3000, 49), (5, 144), (2, 1024), (3, 8192)] {
            let mut seen = 0;
            for Chunk { groups, rows } in chunks(batch, tokens) {
                assert!(groups.len() * rows.len() * tokens <= SCORES.max(tokens));
                seen += groups.len() * rows.len();
            }
            assert_eq!(seen, batch * tokens);
        }
    }
}
