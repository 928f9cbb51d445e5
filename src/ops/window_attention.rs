//! Attention within shifted windows: `shaders/window_attention.wgsl`, `shaders/position_bias.wgsl`, and
//! `window_attention_lanes` for CPU drivers with subgroups of eight.

use super::{elementwise, reduce, window_attention_lanes};
use crate::gpu::{
    Family, Field, Grid, Kernel, Params as _, Recorder, Source, Variant, params, source,
};
use crate::{Tape, Tensor};

/// Room for heads of up to 8, 16, 32 and 64 channels: registers need a size that is known.
const HEAD_WIDTHS: [usize; 4] = [8, 16, 32, 64];

/// Queries or keys that a block of the way back has room for.
const MOST_SPAN: usize = 18;

static FORWARD: [Kernel; 4] = kernels("forward", &["qkv", "qkv_bias", "position_bias", "y", "lse"]);
static BACKWARD_STATS: Kernel =
    kernel("backward_stats", SOURCES[0], &["saved_y", "saved_lse", "dy", "stats_out"]);
static BACKWARD_SCORES: [Kernel; 4] = kernels(
    "backward_scores",
    &["qkv", "qkv_bias", "position_bias", "dy", "stats", "p_out", "ds_out"],
);
static BACKWARD_QUERIES: Kernel =
    kernel("backward_queries", SOURCES[0], &["qkv", "qkv_bias", "ds", "dqkv"]);
static BACKWARD_KEYS: Kernel =
    kernel("backward_keys", SOURCES[0], &["qkv", "qkv_bias", "dy", "p", "ds", "dqkv", "dpadding"]);
static BIAS_FORWARD: Kernel = bias_kernel("forward", &["table", "y"]);
static BIAS_BACKWARD: Kernel = bias_kernel("backward", &["dy", "dtable"]);
pub(super) const KERNELS: &[&Kernel] = &[
    &FORWARD[0],
    &FORWARD[1],
    &FORWARD[2],
    &FORWARD[3],
    &BACKWARD_STATS,
    &BACKWARD_SCORES[0],
    &BACKWARD_SCORES[1],
    &BACKWARD_SCORES[2],
    &BACKWARD_SCORES[3],
    &BACKWARD_QUERIES,
    &BACKWARD_KEYS,
    &BIAS_FORWARD,
    &BIAS_BACKWARD,
];

const SOURCES: [&[Source]; 4] = [
    &[
        source!("window_attention"),
        source!("lib/windows"),
        source!("lib/head8"),
        source!("lib/f32", half "lib/f16"),
    ],
    &[
        source!("window_attention"),
        source!("lib/windows"),
        source!("lib/head16"),
        source!("lib/f32", half "lib/f16"),
    ],
    &[
        source!("window_attention"),
        source!("lib/windows"),
        source!("lib/head32"),
        source!("lib/f32", half "lib/f16"),
    ],
    &[
        source!("window_attention"),
        source!("lib/windows"),
        source!("lib/head64"),
        source!("lib/f32", half "lib/f16"),
    ],
];

const fn kernel(
    entry: &'static str,
    sources: &'static [Source],
    bindings: &'static [&'static str],
) -> Kernel {
    Kernel::new("window_attention", entry, sources, Params::FIELDS, bindings)
}

const fn kernels(entry: &'static str, bindings: &'static [&'static str]) -> [Kernel; 4] {
    [
        kernel(entry, SOURCES[0], bindings),
        kernel(entry, SOURCES[1], bindings),
        kernel(entry, SOURCES[2], bindings),
        kernel(entry, SOURCES[3], bindings),
    ]
}

const fn bias_kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    const SOURCES: &[Source] = &[source!("position_bias")];
    const FIELDS: &[Field] = BiasParams::FIELDS;
    Kernel::new("position_bias", entry, SOURCES, FIELDS, bindings)
}

params! {
    struct Params {
        height: u32,
        width: u32,
        windows_y: u32,
        windows_x: u32,
        window_size: u32,
        shift: u32,
        num_heads: u32,
        channel_vectors: u32,
        head_vectors: u32,
        first_window: u32,
        window_count: u32,
        scale: f32,
        first_group: u32,
    }
}

params! {
    struct BiasParams { window_size: u32, num_heads: u32 }
}

/// A cut of a map into squares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Side of a window (M), in tokens.
    pub size: usize,
    /// How far the map is rolled up and left before it is cut, in tokens; 0 or `size / 2`.
    pub shift: usize,
}

/// Extents of an attention.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extents {
    pub(super) batch: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) num_heads: usize,
    pub(super) head_dim: usize,
    pub(super) windows: Windows,
}

impl Extents {
    #[track_caller]
    fn new(qkv: &Tensor, qkv_bias: &Tensor, position_bias: &Tensor, windows: Windows) -> Self {
        let [batch, height, width, channels3] = *qkv.dims() else {
            panic!("window_attention: qkv {:?}", qkv.shape())
        };
        let (num_heads, tokens) = (position_bias.dims()[0], windows.size.pow(2));
        let head_dim = channels3 / 3 / num_heads;
        assert_eq!(3 * head_dim * num_heads, channels3, "window_attention: qkv {:?}", qkv.shape());
        assert!(
            head_dim.is_multiple_of(4) && head_dim <= 64,
            "window_attention: heads of {head_dim}"
        );
        assert_eq!(qkv_bias.dims(), [channels3], "window_attention: qkv_bias");
        assert_eq!(position_bias.dims(), [num_heads, tokens, tokens], "window_attention: bias");
        Self { batch, height, width, num_heads, head_dim, windows }
    }

    /// The variant for this work, forward and backward.
    fn decide<T>(
        self,
        recorder: &mut Recorder,
        record: impl FnOnce(&mut Recorder, Variant) -> T,
    ) -> T {
        let sizes = [
            ("windows", self.window_count()),
            ("heads", self.num_heads),
            ("tokens", self.tokens()),
            ("channels", self.head_dim),
        ];
        recorder.decide(Family::WindowAttention, &sizes, record)
    }

    fn params(self) -> Params {
        Params {
            height: self.height as u32,
            width: self.width as u32,
            windows_y: self.windows_y() as u32,
            windows_x: self.windows_x() as u32,
            window_size: self.windows.size as u32,
            shift: self.windows.shift as u32,
            num_heads: self.num_heads as u32,
            channel_vectors: (self.channels() / 4) as u32,
            head_vectors: (self.head_dim / 4) as u32,
            first_window: 0,
            window_count: self.window_count() as u32,
            scale: self.scale(),
            first_group: 0,
        }
    }

    pub(super) fn channels(self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Tokens of a window.
    pub(super) fn tokens(self) -> usize {
        self.windows.size.pow(2)
    }

    pub(super) fn windows_y(self) -> usize {
        self.height.div_ceil(self.windows.size)
    }

    pub(super) fn windows_x(self) -> usize {
        self.width.div_ceil(self.windows.size)
    }

    pub(super) fn window_count(self) -> usize {
        self.batch * self.windows_y() * self.windows_x()
    }

    /// Tokens that fill the maps up to whole windows.
    fn padding(self) -> usize {
        self.window_count() * self.tokens() - self.batch * self.height * self.width
    }

    /// Queries and keys that meet, of all heads.
    pub(super) fn pairs(self) -> usize {
        self.window_count() * self.num_heads * self.tokens().pow(2)
    }

    pub(super) fn scale(self) -> f32 {
        (self.head_dim as f32).sqrt().recip()
    }

    /// The narrowest of the kernels that have room for a head.
    fn width_class(self) -> usize {
        HEAD_WIDTHS.iter().position(|&w| self.head_dim <= w).expect("at most 64")
    }
}

/// The learned bias of each pair of tokens in a window: `y[h, b, a] = table[row(a, b), h]`, where
/// `row` numbers the relative positions of query `a` and key `b` (`relative_position_index` of the
/// official checkpoints).
///
/// - `table`: `[(2M − 1)², heads]`
/// - returns `[heads, M², M²]`, keys before queries
///
/// # Panics
///
/// If the table does not belong to windows of side `window_size`.
#[track_caller]
pub fn relative_position_bias(tape: &mut Tape, table: &Tensor, window_size: usize) -> Tensor {
    let [entries, num_heads] = *table.dims() else { panic!("relative_position_bias: table") };
    assert_eq!(entries, (2 * window_size - 1).pow(2), "relative_position_bias: table");
    let params = BiasParams { window_size: window_size as u32, num_heads: num_heads as u32 };
    let tokens = window_size * window_size;
    let recorder = tape.recorder();
    let y = recorder.empty([num_heads, tokens, tokens]);
    recorder.run(&BIAS_FORWARD, params, &[table, &y], Grid::rows(num_heads * tokens));
    tape.record([table], y, move |recorder, dy| {
        let dtable = recorder.empty([entries, num_heads]);
        let grid = Grid::elements(entries * num_heads);
        recorder.run(&BIAS_BACKWARD, params, &[dy, &dtable], grid);
        [Some(dtable)]
    })
}

/// Multi-head attention within the windows of a map (W-MSA; SW-MSA when shifted; Liu et al. 2021,
/// <https://arxiv.org/abs/2103.14030>).
///
/// - `qkv`: `[B, H, W, 3C]`, for each token queries, keys, values, each heads × channels of a head
/// - `qkv_bias`: `[3C]`, what `qkv` is for tokens that pad the map to whole windows
/// - `position_bias`: `[heads, M², M²]` from [`relative_position_bias`]
/// - returns `[B, H, W, C]`
///
/// Equals padding, `torch.roll`, window partition, attention with the mask of −100, window reverse,
/// roll back and crop in the official code. Keeps `qkv`, the result and one number per token and
/// head; the backward pass recomputes the probabilities, for as many windows at a time as fit
/// 16 MiB. In mixed precision `qkv` and the result have 16 bits.
///
/// # Panics
///
/// If the shapes do not fit together, or a head's channels are no multiple of 4 or above 64.
#[track_caller]
pub fn window_attention(
    tape: &mut Tape,
    qkv: &Tensor,
    qkv_bias: &Tensor,
    position_bias: &Tensor,
    windows: Windows,
) -> Tensor {
    let extents = Extents::new(qkv, qkv_bias, position_bias, windows);
    let Extents { batch, height, width, num_heads, .. } = extents;
    let recorder = tape.recorder();
    let y = recorder.empty_as([batch, height, width, extents.channels()], qkv.is_half());
    let lse = recorder.empty([batch * height * width, num_heads]);
    let variant = extents.decide(recorder, |recorder, variant| {
        let lanes = variant == Variant::Lanes && window_attention_lanes::suit(recorder, extents);
        let record = if lanes { window_attention_lanes::forward } else { forward };
        record(recorder, [qkv, qkv_bias, position_bias], [&y, &lse], extents);
        if lanes { Variant::Lanes } else { Variant::Registers }
    });

    let saved = [qkv, qkv_bias, position_bias, &y, &lse].map(Tensor::clone);
    tape.record([qkv, qkv_bias, position_bias], y, move |recorder, dy| {
        let [qkv, qkv_bias, position_bias, y, lse] = &saved;
        let dqkv = recorder.empty(qkv.shape().clone());
        let dpadding = recorder.empty([extents.padding().max(1), 3 * extents.channels()]);
        let dbias = recorder.empty(position_bias.shape().clone());
        extents.decide(recorder, |recorder, _| {
            let lanes = variant == Variant::Lanes;
            let record = if lanes { window_attention_lanes::backward } else { backward };
            let inputs = [qkv, qkv_bias, position_bias];
            let stats = backward_stats(recorder, [y, lse, dy], extents);
            record(recorder, inputs, [&stats, dy], [&dqkv, &dpadding, &dbias], extents);
        });
        // Every padded token stands for the bias.
        let dqkv_bias = match extents.padding() {
            0 => elementwise::fill(recorder, [3 * extents.channels()], 0.0),
            padding => reduce::sum_rows(recorder, &dpadding, padding, 3 * extents.channels()),
        };
        [Some(dqkv), Some(dqkv_bias), Some(dbias)]
    })
}

/// `y`, and the logarithms of the sums of exponentials of each query's scores.
fn forward(
    recorder: &mut Recorder,
    [qkv, qkv_bias, position_bias]: [&Tensor; 3],
    [y, lse]: [&Tensor; 2],
    extents: Extents,
) {
    recorder
        .run(
            &FORWARD[extents.width_class()],
            extents.params(),
            &[qkv, qkv_bias, position_bias, y, lse],
            Grid::rows_of(extents.window_count(), extents.num_heads),
        )
        .half(qkv.is_half())
        .flops(4 * extents.pairs() * extents.head_dim);
}

/// Of each query what the way back needs to know: `lse` and `y · dy`.
fn backward_stats(recorder: &mut Recorder, [y, lse, dy]: [&Tensor; 3], extents: Extents) -> Tensor {
    let rows = extents.batch * extents.height * extents.width * extents.num_heads;
    let stats = recorder.empty([rows, 2]);
    let params = Params { window_count: rows as u32, ..extents.params() };
    recorder
        .run(&BACKWARD_STATS, params, &[y, lse, dy, &stats], Grid::elements(rows))
        .half(y.is_half())
        .flops(2 * rows * extents.head_dim);
    stats
}

fn backward(
    recorder: &mut Recorder,
    [qkv, qkv_bias, position_bias]: [&Tensor; 3],
    [stats, dy]: [&Tensor; 2],
    [dqkv, dpadding, dbias]: [&Tensor; 3],
    extents: Extents,
) {
    let Extents { num_heads, head_dim, .. } = extents;
    let half = qkv.is_half();
    let (tokens, window_count) = (extents.tokens(), extents.window_count());
    let matrix = num_heads * tokens * tokens;
    // Two buffers of 16 MiB.
    let chunk = ((4 << 20) / matrix).clamp(1, window_count);
    // On a CPU driver addresses that depend on the lane are dear, and so are passes of a loop, which long
    // blocks have few of; on a GPU small groups and many registers are.
    let (blocks, span) = match recorder.profile().cpu {
        true => (1, tokens.div_ceil(tokens.div_ceil(MOST_SPAN))),
        false => (8, 8),
    };
    for first in (0..window_count).step_by(chunk) {
        let count = chunk.min(window_count - first);
        let params =
            Params { first_window: first as u32, window_count: count as u32, ..extents.params() };
        let p = recorder.empty([count, matrix]);
        let ds = recorder.empty([count, matrix]);
        recorder
            .run(
                &BACKWARD_SCORES[extents.width_class()],
                params,
                &[qkv, qkv_bias, position_bias, dy, stats, &p, &ds],
                Grid::rows_of(count, num_heads),
            )
            .half(half)
            .flops(4 * count * matrix * head_dim);
        let groups = count * tokens.div_ceil(span).div_ceil(blocks);
        let grid = Grid::rows_of(groups, num_heads);
        recorder
            .run(&BACKWARD_QUERIES, params, &[qkv, qkv_bias, &ds, dqkv], grid)
            .half(half)
            .constant("WORKGROUP", 8.0 * blocks as f64)
            .constant("BLOCKS", blocks as f64)
            .constant("SPAN", span as f64)
            .flops(2 * count * matrix * head_dim);
        recorder
            .run(&BACKWARD_KEYS, params, &[qkv, qkv_bias, dy, &p, &ds, dqkv, dpadding], grid)
            .half(half)
            .constant("WORKGROUP", 8.0 * blocks as f64)
            .constant("BLOCKS", blocks as f64)
            .constant("SPAN", span as f64)
            .flops(4 * count * matrix * head_dim);
        let sums = dbias.reshape([matrix]);
        reduce::sum_rows_into(recorder, &ds, count, matrix, &sums, 1.0, first > 0);
    }
}
