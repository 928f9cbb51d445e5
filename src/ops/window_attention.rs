//! Attention within shifted windows: `shaders/window_attention.wgsl`, `shaders/position_bias.wgsl`.

use super::{elementwise, reduce};
use crate::gpu::{Field, Grid, Kernel, Params as _, Source, params, source};
use crate::{Tape, Tensor};

/// Room for heads of up to 8, 16, 32 and 64 channels: registers need a size that is known.
const HEAD_WIDTHS: [usize; 4] = [8, 16, 32, 64];

static FORWARD: [Kernel; 4] = kernels("forward", &["qkv", "qkv_bias", "position_bias", "y", "lse"]);
static BACKWARD_STATS: Kernel =
    kernel("backward_stats", SOURCES[0], &["saved_y", "saved_lse", "dy", "stats_out"]);
static BACKWARD_SCORES: [Kernel; 4] = kernels(
    "backward_scores",
    &["qkv", "qkv_bias", "position_bias", "dy", "stats", "dqkv", "p_out", "ds_out"],
);
static BACKWARD_KEYS: [Kernel; 4] =
    kernels("backward_keys", &["qkv", "qkv_bias", "dy", "p", "ds", "dqkv", "dpadding"]);
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
    &BACKWARD_KEYS[0],
    &BACKWARD_KEYS[1],
    &BACKWARD_KEYS[2],
    &BACKWARD_KEYS[3],
    &BIAS_FORWARD,
    &BIAS_BACKWARD,
];

const SOURCES: [&[Source]; 4] = [
    &[source!("window_attention"), source!("lib/head8")],
    &[source!("window_attention"), source!("lib/head16")],
    &[source!("window_attention"), source!("lib/head32")],
    &[source!("window_attention"), source!("lib/head64")],
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
/// 16 MiB.
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
    let [batch, height, width, channels3] = *qkv.dims() else {
        panic!("window_attention: qkv {:?}", qkv.shape())
    };
    let (channels, num_heads) = (channels3 / 3, position_bias.dims()[0]);
    let (head_dim, tokens) = (channels / num_heads, windows.size.pow(2));
    assert_eq!(3 * head_dim * num_heads, channels3, "window_attention: qkv {:?}", qkv.shape());
    assert!(head_dim.is_multiple_of(4) && head_dim <= 64, "window_attention: heads of {head_dim}");
    assert_eq!(qkv_bias.dims(), [channels3], "window_attention: qkv_bias");
    assert_eq!(position_bias.dims(), [num_heads, tokens, tokens], "window_attention: bias");
    let variant = HEAD_WIDTHS.iter().position(|&w| head_dim <= w).expect("at most 64");

    let (windows_y, windows_x) = (height.div_ceil(windows.size), width.div_ceil(windows.size));
    let window_count = batch * windows_y * windows_x;
    let params = Params {
        height: height as u32,
        width: width as u32,
        windows_y: windows_y as u32,
        windows_x: windows_x as u32,
        window_size: windows.size as u32,
        shift: windows.shift as u32,
        num_heads: num_heads as u32,
        channel_vectors: (channels / 4) as u32,
        head_vectors: (head_dim / 4) as u32,
        first_window: 0,
        window_count: window_count as u32,
        scale: (head_dim as f32).sqrt().recip(),
        first_group: 0,
    };
    let recorder = tape.recorder();
    let y = recorder.empty([batch, height, width, channels]);
    let lse = recorder.empty([batch * height * width, num_heads]);
    let pairs = window_count * num_heads * tokens * tokens;
    recorder
        .run(
            &FORWARD[variant],
            params,
            &[qkv, qkv_bias, position_bias, &y, &lse],
            Grid::rows_of(window_count, num_heads),
        )
        .flops(4 * pairs * head_dim);

    let (qkv_, qkv_bias_, position_bias_) = (qkv.clone(), qkv_bias.clone(), position_bias.clone());
    let saved_y = y.clone();
    tape.record([qkv, qkv_bias, position_bias], y, move |recorder, dy| {
        let (qkv, qkv_bias, position_bias) = (&qkv_, &qkv_bias_, &position_bias_);
        let rows = batch * height * width * num_heads;
        let stats = recorder.empty([rows, 2]);
        recorder
            .run(
                &BACKWARD_STATS,
                Params { window_count: rows as u32, ..params },
                &[&saved_y, &lse, dy, &stats],
                Grid::elements(rows),
            )
            .flops(2 * rows * head_dim);

        let dqkv = recorder.empty(qkv.shape().clone());
        let padding = batch * (windows_y * windows_x * tokens - height * width);
        let dpadding = recorder.empty([padding.max(1), channels3]);
        let dbias = recorder.empty(position_bias.shape().clone());
        let matrix = num_heads * tokens * tokens;
        // Two buffers of 16 MiB.
        let chunk = ((4 << 20) / matrix).clamp(1, window_count);
        // On a CPU driver addresses that depend on the lane are dear; on a GPU small groups are.
        let key_blocks = if recorder.profile().cpu { 1 } else { 8 };
        let key_groups = tokens.div_ceil(8).div_ceil(key_blocks);
        for first in (0..window_count).step_by(chunk) {
            let count = chunk.min(window_count - first);
            let params =
                Params { first_window: first as u32, window_count: count as u32, ..params };
            let p = recorder.empty([count, matrix]);
            let ds = recorder.empty([count, matrix]);
            recorder
                .run(
                    &BACKWARD_SCORES[variant],
                    params,
                    &[qkv, qkv_bias, position_bias, dy, &stats, &dqkv, &p, &ds],
                    Grid::rows_of(count, num_heads),
                )
                .flops(6 * count * matrix * head_dim);
            recorder
                .run(
                    &BACKWARD_KEYS[variant],
                    params,
                    &[qkv, qkv_bias, dy, &p, &ds, &dqkv, &dpadding],
                    Grid::rows_of(count * key_groups, num_heads),
                )
                .constant("WORKGROUP", 8.0 * key_blocks as f64)
                .constant("KEY_BLOCKS", key_blocks as f64)
                .flops(4 * count * matrix * head_dim);
            reduce::sum_rows_into(
                recorder,
                &ds,
                count,
                matrix,
                &dbias.reshape([matrix]),
                1.0,
                first > 0,
            );
        }
        // Every padded token stands for the bias.
        let dqkv_bias = match padding {
            0 => elementwise::fill(recorder, [channels3], 0.0),
            _ => reduce::sum_rows(recorder, &dpadding, padding, channels3),
        };
        [Some(dqkv), Some(dqkv_bias), Some(dbias)]
    })
}
