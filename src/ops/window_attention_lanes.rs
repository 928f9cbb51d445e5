//! Attention within windows in eight lanes of a CPU: `shaders/window_attention_lanes.wgsl`.

use super::window_attention::Extents;
use crate::Tensor;
use crate::gpu::{Grid, Kernel, Params as _, Recorder, Source, params, source};

const SOURCES: &[Source] = &[
    source!("window_attention_lanes"),
    source!("lib/windows"),
    source!("lib/lanes"),
    source!("lib/pairs_f32", half "lib/pairs_f16"),
];

static PACK_BIAS: Kernel = kernel("pack_bias", &["position_bias", "packed_out"]);
static FORWARD: Kernel = kernel("forward", &["qkv", "qkv_bias", "packed", "y", "lse"]);
static BACKWARD: Kernel =
    kernel("backward", &["qkv", "qkv_bias", "packed", "stats", "dy", "dqkv", "dpadding", "ds_out"]);
static UNPACK_BIAS: Kernel = kernel("unpack_bias", &["ds", "dbias"]);
pub(super) const KERNELS: &[&Kernel] = &[&PACK_BIAS, &FORWARD, &BACKWARD, &UNPACK_BIAS];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("window_attention_lanes", entry, SOURCES, Params::FIELDS, bindings).on_lanes()
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
        channel_pairs: u32,
        window_count: u32,
        run: u32,
        runs: u32,
        scale: f32,
        first_group: u32,
    }
}

/// Windows whose position biases have their gradients summed one by one.
const RUN: usize = 8;

impl Params {
    fn new(extents: Extents) -> Self {
        // Of the sums of runs, which 16 MiB have to hold.
        let most = ((4 << 20) / packed_len(extents)).max(1);
        let run = RUN.max(extents.window_count().div_ceil(most));
        Self {
            height: extents.height as u32,
            width: extents.width as u32,
            windows_y: extents.windows_y() as u32,
            windows_x: extents.windows_x() as u32,
            window_size: extents.windows.size as u32,
            shift: extents.windows.shift as u32,
            num_heads: extents.num_heads as u32,
            channel_pairs: (extents.channels() / 2) as u32,
            window_count: extents.window_count() as u32,
            run: run as u32,
            runs: extents.window_count().div_ceil(run) as u32,
            scale: extents.scale(),
            first_group: 0,
        }
    }
}

/// Whether these kernels are for the device and the heads.
pub(super) fn suit(recorder: &Recorder, extents: Extents) -> bool {
    recorder.profile().lanes && extents.head_dim.is_multiple_of(8) && extents.head_dim <= 32
}

/// Keys of a tile, and so of its queries for each of eight lanes.
const TILE: usize = 7;

/// Keys of all heads, with those that fill tiles.
fn packed_rows(extents: Extents) -> usize {
    extents.num_heads * extents.tokens().next_multiple_of(TILE)
}

/// Pairs of keys and queries, with those that fill tiles and with empty places.
fn packed_len(extents: Extents) -> usize {
    packed_rows(extents) * extents.tokens().div_ceil(8 * TILE) * 8 * 8
}

fn packed_bias(recorder: &mut Recorder, position_bias: &Tensor, extents: Extents) -> Tensor {
    let packed = recorder.empty([packed_len(extents)]);
    let grid = Grid::rows(packed_rows(extents));
    recorder.run(&PACK_BIAS, Params::new(extents), &[position_bias, &packed], grid);
    packed
}

/// `y` and `lse`.
pub(super) fn forward(
    recorder: &mut Recorder,
    [qkv, qkv_bias, position_bias]: [&Tensor; 3],
    [y, lse]: [&Tensor; 2],
    extents: Extents,
) {
    let packed = packed_bias(recorder, position_bias, extents);
    recorder
        .run(
            &FORWARD,
            Params::new(extents),
            &[qkv, qkv_bias, &packed, y, lse],
            Grid::rows_of(extents.window_count(), extents.num_heads),
        )
        .half(qkv.is_half())
        .constant("HEAD", extents.head_dim as u32)
        .flops(4 * extents.pairs() * extents.head_dim);
}

/// `dqkv`, `dpadding` and the gradient of the position bias.
pub(super) fn backward(
    recorder: &mut Recorder,
    [qkv, qkv_bias, position_bias]: [&Tensor; 3],
    [stats, dy]: [&Tensor; 2],
    [dqkv, dpadding, dbias]: [&Tensor; 3],
    extents: Extents,
) {
    let packed = packed_bias(recorder, position_bias, extents);
    let params = Params::new(extents);
    let ds = recorder.empty([params.runs as usize, packed_len(extents)]);
    recorder
        .run(
            &BACKWARD,
            params,
            &[qkv, qkv_bias, &packed, stats, dy, dqkv, dpadding, &ds],
            Grid::rows_of(params.runs as usize, extents.num_heads),
        )
        .half(qkv.is_half())
        .constant("HEAD", extents.head_dim as u32)
        .flops(10 * extents.pairs() * extents.head_dim);
    let grid = Grid::elements(extents.num_heads * extents.tokens().pow(2));
    recorder.run(&UNPACK_BIAS, params, &[&ds, dbias], grid);
}
