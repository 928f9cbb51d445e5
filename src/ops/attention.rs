//! Attention of queries to keys: `shaders/attention.wgsl`, `shaders/attention_mask.wgsl`.

use super::{reduce, resize};
use crate::gpu::{Field, Grid, Kernel, Params as _, Recorder, Source, params, source};
use crate::{Tape, Tensor};

/// Room for heads of up to 8, 16, 32 and 64 channels: registers need a size that is known.
const HEAD_WIDTHS: [usize; 4] = [8, 16, 32, 64];

static FORWARD: [Kernel; 4] = kernels("forward", &["q", "k", "v", "words", "part_y", "part_stats"]);
static COMBINE: Kernel = kernel("combine", SOURCES[0], &["parts_y", "parts_stats", "y", "lse"]);
static BACKWARD_STATS: Kernel =
    kernel("backward_stats", SOURCES[0], &["saved_y", "saved_lse", "dy", "stats_out"]);
static BACKWARD_QUERIES: [Kernel; 4] =
    kernels("backward_queries", &["q", "k", "v", "words", "dy", "stats", "part_dq"]);
static BACKWARD_KEYS: [Kernel; 4] =
    kernels("backward_keys", &["q", "k", "v", "words", "dy", "stats", "dk", "dv"]);
static MASK_BITS: Kernel = mask_kernel("bits", &["logits", "words"]);
static MASK_OPEN: Kernel = mask_kernel("open", &["words"]);
pub(super) const KERNELS: &[&Kernel] = &[
    &FORWARD[0],
    &FORWARD[1],
    &FORWARD[2],
    &FORWARD[3],
    &COMBINE,
    &BACKWARD_STATS,
    &BACKWARD_QUERIES[0],
    &BACKWARD_QUERIES[1],
    &BACKWARD_QUERIES[2],
    &BACKWARD_QUERIES[3],
    &BACKWARD_KEYS[0],
    &BACKWARD_KEYS[1],
    &BACKWARD_KEYS[2],
    &BACKWARD_KEYS[3],
    &MASK_BITS,
    &MASK_OPEN,
];

const SOURCES: [&[Source]; 4] = [
    &[source!("attention"), source!("lib/philox"), source!("lib/head8")],
    &[source!("attention"), source!("lib/philox"), source!("lib/head16")],
    &[source!("attention"), source!("lib/philox"), source!("lib/head32")],
    &[source!("attention"), source!("lib/philox"), source!("lib/head64")],
];

const fn kernel(
    entry: &'static str,
    sources: &'static [Source],
    bindings: &'static [&'static str],
) -> Kernel {
    Kernel::new("attention", entry, sources, Params::FIELDS, bindings)
}

const fn kernels(entry: &'static str, bindings: &'static [&'static str]) -> [Kernel; 4] {
    [
        kernel(entry, SOURCES[0], bindings),
        kernel(entry, SOURCES[1], bindings),
        kernel(entry, SOURCES[2], bindings),
        kernel(entry, SOURCES[3], bindings),
    ]
}

const fn mask_kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    const SOURCES: &[Source] =
        &[source!("attention_mask"), source!("lib/bilinear"), source!("lib/bilinear_centres")];
    const FIELDS: &[Field] = MaskParams::FIELDS;
    Kernel::new("attention_mask", entry, SOURCES, FIELDS, bindings)
}

params! {
    struct Params {
        queries: u32,
        keys: u32,
        num_heads: u32,
        channel_vectors: u32,
        head_vectors: u32,
        part: u32,
        parts: u32,
        rows: u32,
        mask_words: u32,
        scale: f32,
        stream: u32,
        rate: f32,
        first_group: u32,
    }
}

params! {
    struct MaskParams {
        rows: u32,
        height: u32,
        width: u32,
        goal_height: u32,
        goal_width: u32,
        words_per_row: u32,
    }
}

/// Which of `height` × `width` places a query may attend to: those where its mask, resized bilinearly,
/// has a sigmoid of at least ½; everything, where that is nothing (Cheng et al. 2022,
/// <https://arxiv.org/abs/2112.01527>). Has no gradient.
///
/// - `mask_logits`: `[B, Q, h, w]`
/// - returns `[B, Q, W]` of `u32`, W = height · width / 32 rounded up: a bit for each place, the first
///   one lowest
///
/// # Panics
///
/// If `mask_logits` are not of this kind, or a side is 0 or above 32 767.
#[track_caller]
pub fn attention_mask(
    recorder: &mut Recorder,
    mask_logits: &Tensor,
    height: usize,
    width: usize,
) -> Tensor {
    let [batch, queries, from_height, from_width] = *mask_logits.dims() else {
        panic!("attention_mask: {:?} is not [B, Q, h, w]", mask_logits.shape())
    };
    let sides = 1..=resize::MAX_SIDE;
    for side in [height, width, from_height, from_width] {
        assert!(sides.contains(&side), "attention_mask: a side of {side}");
    }
    let words_per_row = (height * width).div_ceil(32);
    let rows = batch * queries;
    let params = MaskParams {
        rows: rows as u32,
        height: from_height as u32,
        width: from_width as u32,
        goal_height: height as u32,
        goal_width: width as u32,
        words_per_row: words_per_row as u32,
    };
    let words = recorder.empty([batch, queries, words_per_row]);
    let grid = Grid::elements(rows * words_per_row);
    recorder.run(&MASK_BITS, params, &[mask_logits, &words], grid).flops(8 * rows * height * width);
    recorder.run(&MASK_OPEN, params, &[&words], Grid::elements(rows));
    words
}

/// Multi-head attention (Vaswani et al. 2017, <https://arxiv.org/abs/1706.03762>):
/// `softmax(q kᵀ / √D) v` for each head of D = C / heads channels.
///
/// - `q`: `[B, Q, C]`
/// - `k`, `v`: `[B, N, C]`
/// - `mask`: `[B, Q, N / 32 rounded up]` of `u32`, a bit for each key that a query may see, the same for
///   all heads, at least one for each query; none: all of them. From [`attention_mask`]
/// - `dropout`: rate at which probabilities are zeroed, when the tape is random
/// - returns `[B, Q, C]`
///
/// Equals `torch.nn.functional.scaled_dot_product_attention` with heads side by side. Keeps its inputs,
/// the result and one number for each query and head; the backward pass recomputes the probabilities.
///
/// # Panics
///
/// If the shapes do not fit together, a head's channels are no multiple of 4 or above 64, or there are
/// both a mask and dropout.
#[track_caller]
pub fn attention(
    tape: &mut Tape,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    num_heads: usize,
    mask: Option<&Tensor>,
    dropout: f32,
) -> Tensor {
    let ([batch, queries, channels], [_, keys, _]) = (q.dims(), k.dims()) else {
        panic!("attention of {:?} to {:?}", q.shape(), k.shape())
    };
    let (batch, queries, channels, keys) = (*batch, *queries, *channels, *keys);
    assert_eq!(k.dims(), [batch, keys, channels], "attention: k for q {:?}", q.shape());
    assert_eq!(v.shape(), k.shape(), "attention: v");
    let head_dim = channels / num_heads;
    assert_eq!(head_dim * num_heads, channels, "attention: {num_heads} heads of {channels}");
    assert!(head_dim.is_multiple_of(4) && head_dim <= 64, "attention: heads of {head_dim}");
    let mask_words = keys.div_ceil(32);
    if let Some(mask) = mask {
        assert_eq!(mask.dims(), [batch, queries, mask_words], "attention: mask");
    }
    let variant = HEAD_WIDTHS.iter().position(|&w| head_dim <= w).expect("at most 64");
    let stream = tape.stream().filter(|_| dropout > 0.0);
    assert!(mask.is_none() || stream.is_none(), "attention: a mask and dropout");
    // Where neither is wanted nothing reads it.
    let (words, kind) = match (mask, &stream) {
        (Some(mask), _) => (mask.clone(), 1),
        (None, Some(stream)) => (stream.state.clone(), 2),
        (None, None) => (q.clone(), 0),
    };

    let recorder = tape.recorder();
    let cpu = recorder.profile().cpu;
    // A GPU needs more invocations than there are queries.
    let part = if cpu { keys.next_multiple_of(4) } else { 128 };
    let parts = keys.div_ceil(part);
    let workgroup = if cpu { 8 } else { 64 };
    let rows = batch * queries * num_heads;
    let params = Params {
        queries: queries as u32,
        keys: keys as u32,
        num_heads: num_heads as u32,
        channel_vectors: (channels / 4) as u32,
        head_vectors: (head_dim / 4) as u32,
        part: part as u32,
        parts: parts as u32,
        rows: rows as u32,
        mask_words: mask_words as u32,
        scale: (head_dim as f32).sqrt().recip(),
        stream: stream.map_or(0, |stream| stream.id),
        rate: dropout,
        first_group: 0,
    };
    let by_query = Grid::rows_of(parts * queries.div_ceil(workgroup), batch * num_heads);
    let by_key = Grid::rows_of(keys.div_ceil(workgroup), batch * num_heads);
    let pairs = rows * keys;

    let part_y = recorder.empty([parts, batch, queries, channels]);
    let part_stats = recorder.empty([parts, rows, 2]);
    recorder
        .run(&FORWARD[variant], params, &[q, k, v, &words, &part_y, &part_stats], by_query)
        .constant("WORKGROUP", workgroup as u32)
        .constant("WORDS", kind)
        .flops(4 * pairs * head_dim);
    let y = recorder.empty(q.shape().clone());
    let lse = recorder.empty([rows]);
    recorder
        .run(&COMBINE, params, &[&part_y, &part_stats, &y, &lse], Grid::elements(rows))
        .flops(2 * parts * rows * head_dim);

    let (q_, k_, v_, saved_y) = (q.clone(), k.clone(), v.clone(), y.clone());
    tape.record([q, k, v], y, move |recorder, dy| {
        let (q, k, v) = (&q_, &k_, &v_);
        let stats = recorder.empty([rows, 2]);
        recorder
            .run(&BACKWARD_STATS, params, &[&saved_y, &lse, dy, &stats], Grid::elements(rows))
            .flops(2 * rows * head_dim);
        let dq_parts = recorder.empty([parts, batch, queries, channels]);
        recorder
            .run(
                &BACKWARD_QUERIES[variant],
                params,
                &[q, k, v, &words, dy, &stats, &dq_parts],
                by_query,
            )
            .constant("WORKGROUP", workgroup as u32)
            .constant("WORDS", kind)
            .flops(6 * pairs * head_dim);
        let dq = match parts {
            1 => dq_parts,
            _ => reduce::sum_rows(recorder, &dq_parts, parts, q.shape().len()),
        };
        let (dk, dv) = (recorder.empty(k.shape().clone()), recorder.empty(v.shape().clone()));
        recorder
            .run(&BACKWARD_KEYS[variant], params, &[q, k, v, &words, dy, &stats, &dk, &dv], by_key)
            .constant("WORKGROUP", workgroup as u32)
            .constant("WORDS", kind)
            .flops(8 * pairs * head_dim);
        [Some(dq), Some(dk), Some(dv)]
    })
}
