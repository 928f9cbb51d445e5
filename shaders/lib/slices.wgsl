
// ==== lib/slices.wgsl: rows of channels for eight lanes that read pairs (lib/lanes.wgsl) =============
//
// A workgroup has a slice of the channels, BLOCKS times eight pairs, of a part of the rows, which it reads as they lie in
// memory: down the columns every gather would wait for it. What is known and added up of channels lies on the stack.
//
// Gathers from memory that no cache holds take several times as long as scalar loads, so one of these goes ahead for
// each 64 bytes of a row. What they bring is used nowhere, but in a condition that never holds: else compilers would
// leave them out.

const MOST: u32 = 16u;
override BLOCKS: u32 = MOST;

// Of each block of pairs.
alias Blocks = array<vec2<f32>, MOST>;

struct Slice {
    part: u32,
    start: u32,  // rows of the part
    end: u32,
    first: u32,  // pair of the slice
    lane: u32,
    pairs: u32,  // of all channels
}

fn slices() -> u32 {
    return (params.channels / 2u + 8u * BLOCKS - 1u) / (8u * BLOCKS);
}

// Beyond the last pair, lanes do the last one once more.
fn pair_at(slice: Slice, k: u32) -> u32 {
    return min(slice.first + 8u * k + slice.lane, slice.pairs - 1u);
}

// A pair in the 64 bytes that block k of the row has, or of the part's last row.
fn line_at(slice: Slice, row: u32, k: u32) -> u32 {
    let pair = min(slice.first + 8u * k, slice.pairs - 1u);
    return min(row, slice.end - 1u) * slice.pairs + pair;
}

fn never() -> bool {
    return params.channels == 0u;
}

// What is the same in all rows of a part.
struct Channels {
    mean: Blocks,
    rstd: Blocks,
    weight: Blocks,
    bias: Blocks,
}

// Mean and M2 (sum of squared deviations) of some rows, without the first row, which is taken off: |mean| may be
// far above the deviation.
struct Moments {
    first: Blocks,
    mean: Blocks,
    m2: Blocks,
}

// Welford's formula for one row more, the n-th:
//
//   mean += (v - mean) / n        M2 += (v - mean before) (v - mean)
fn add_row(moments: ptr<function, Moments>, k: u32, v: vec2<f32>, share: f32) {
    let shifted = v - (*moments).first[k];
    let d = shifted - (*moments).mean[k];
    (*moments).mean[k] += d * share;
    (*moments).m2[k] += d * (shifted - (*moments).mean[k]);
}
