
// ==== lib/slices.wgsl: rows of channels for eight lanes that read pairs (lib/lanes.wgsl) =============
//
// A workgroup has a slice of the channels, BLOCKS times eight pairs, of a part of the rows, which it reads as they lie in
// memory: down the columns every gather would wait for it. What is known and added up of channels lies on the stack.
//
// Kernels declare `params` and the bindings that these functions name: x, dy, y and new_part, in pairs.
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

fn fetch_x(slice: Slice, row: u32) -> u32 {
    var seen = 0u;
    for (var k = 0u; k < BLOCKS; k++) {
        seen |= u32(x[line_at(slice, row, k)]);
    }
    return seen;
}

fn fetch_dy(slice: Slice, row: u32) -> u32 {
    var seen = 0u;
    for (var k = 0u; k < BLOCKS; k++) {
        seen |= u32(dy[line_at(slice, row, k)]);
    }
    return seen;
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

// Mean and M2 of the slice, where new_part has them: [part][mean, M2][C].
fn write_moments(slice: Slice) {
    var moments: Moments;
    for (var k = 0u; k < BLOCKS; k++) {
        moments.first[k] = floats(x[slice.start * slice.pairs + pair_at(slice, k)]);
    }
    var seen = 0u;
    for (var row = slice.start + 1u; row < slice.end; row++) {
        seen |= fetch_x(slice, row + 1u);
        let share = 1.0 / f32(row - slice.start + 1u);
        for (var k = 0u; k < BLOCKS; k++) {
            add_row(&moments, k, floats(x[row * slice.pairs + pair_at(slice, k)]), share);
        }
    }
    for (var k = 0u; k < BLOCKS; k++) {
        let to = slice.part * 2u * slice.pairs + pair_at(slice, k);
        new_part[to] = pair_of(moments.first[k] + moments.mean[k]);
        new_part[to + slice.pairs] = pair_of(moments.m2[k]);
    }
    if never() {
        new_part[0] = u64(seen);
    }
}

// (x - mean) rstd weight + bias of the slice, with or without ReLU.
fn write_y(slice: Slice, c: ptr<function, Channels>) {
    var seen = 0u;
    for (var row = slice.start; row < slice.end; row++) {
        seen |= fetch_x(slice, row + 1u);
        for (var k = 0u; k < BLOCKS; k++) {
            let at = row * slice.pairs + pair_at(slice, k);
            let v = (floats(x[at]) - (*c).mean[k]) * (*c).rstd[k] * (*c).weight[k] + (*c).bias[k];
            // Not max(), which hides a NaN.
            y[at] = pair_of(select(v, vec2(0.0), (v < vec2(0.0)) & vec2(params.relu != 0u)));
        }
    }
    if never() {
        y[0] = u64(seen);
    }
}

// The gradient that ReLU, if there is one, lets through to its argument y.
fn gate(dy: vec2<f32>, y: vec2<f32>) -> vec2<f32> {
    return select(dy, vec2(0.0), (y <= vec2(0.0)) & vec2(params.relu != 0u));
}
