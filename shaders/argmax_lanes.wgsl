// The class of each pixel's largest value, of logits that are resized on the way, for drivers that run on a
// CPU and have subgroups of eight.
//
//   found[Y, X] = argmax_k v[Y, X, k]   v: see predict.wgsl; the first of equal values wins; 255 where one is NaN
//   words       = found, four to a word
//
// Host: src/ops/predict.rs        Test: kernels-tests/predict.rs        Weights: lib/axis.wgsl
// B = batch, h, w = size of logits, H, W = goal size, R = rows of a band of it, K = classes. Lanes run along
// the classes, EACH of them to a lane. A workgroup has all pixels of the band whose first taps are one row and
// SPAN columns of the logits, so that most of the work is on values in registers.

struct Params {
    batch: u32,
    height: u32,
    width: u32,
    via_height: u32,
    via_width: u32,
    goal_height: u32,
    goal_width: u32,
    classes: u32,
    band: u32,
    first_row: u32,
    held_rows: u32,    // of `height`, from held_first on
    held_first: u32,
    pixels: u32,
    first_word: u32,
    first_group: u32,  // of a part of the dispatch
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;           // [B, h, w, K]
@group(0) @binding(2) var<storage, read> found: array<u32>;            // [B, R, W]
@group(0) @binding(3) var<storage, read_write> found_out: array<u32>;  // [B, R, W]
@group(0) @binding(4) var<storage, read_write> words: array<u32>;      // [B, R, W] of u8

// Of lib/axis.wgsl.
override TAPS: u32 = 2u;
override EACH: u32 = 32u;

const MOST: u32 = 32u;
const SPAN: u32 = 8u;
const INFINITY: u32 = 0x7f800000u;

alias Classes = array<f32, MOST>;
// By the row that a value is from.
alias Column = array<Classes, 3>;

// ---- argmax: logits -> found_out -----------------------------------------------------------------

@compute @workgroup_size(8)
fn argmax(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let id = params.first_group + group.x + group.y * groups.x;
    let spans = (params.width + SPAN - 1u) / SPAN;
    let row = id / spans;
    let image = row / params.held_rows;
    let i = row % params.held_rows + params.held_first;
    let start_y = max(first_row(i), params.first_row);
    let end_y = min(first_row(i + 1u), params.first_row + params.band);
    if image >= params.batch || start_y >= end_y {
        return;
    }
    let start = id % spans * SPAN;
    let end = min(start + SPAN, params.width);
    // Of the logits, as first pixels.
    let rows = (image * params.held_rows + min(i + vec3(0u, 1u, 2u), vec3(params.height - 1u)) - params.held_first)
        * params.width;
    var columns: array<Column, 3>;
    for (var t = 1u; t < TAPS; t++) {
        columns[t] = load_column(rows, start + t - 1u, lane);
    }
    var x = first_column(start);
    for (var j = start; j < end; j++) {
        if TAPS > 1u {
            columns[0] = columns[1];
        }
        if TAPS > 2u {
            columns[1] = columns[2];
        }
        columns[TAPS - 1u] = load_column(rows, j + TAPS - 1u, lane);
        let end_x = first_column(j + 1u);
        for (var y = start_y; y < end_y; y++) {
            let v = axis(y, params.height, params.via_height, params.goal_height).weight;
            let to = ((image * params.band) + y - params.first_row) * params.goal_width;
            let blended = Column(along(columns[0], v), along(columns[1], v), along(columns[2], v));
            for (var at = x; at < end_x; at++) {
                let u = axis(at, params.width, params.via_width, params.goal_width).weight;
                let winner = largest(along(blended, u), lane);
                if lane == 0u {
                    found_out[to + at] = winner;
                }
            }
        }
        x = end_x;
    }
}

fn first_row(i: u32) -> u32 {
    return first_pixel(i, params.height, params.via_height, params.goal_height);
}

fn first_column(j: u32) -> u32 {
    return first_pixel(j, params.width, params.via_width, params.goal_width);
}

// Those beyond the last are the last.
fn class_of(c: u32, lane: u32) -> u32 {
    return min(8u * c + lane, params.classes - 1u);
}

fn load_column(rows: vec3<u32>, j: u32, lane: u32) -> Column {
    var column: Column;
    let at = (rows + min(j, params.width - 1u)) * params.classes;
    for (var c = 0u; c < EACH; c++) {
        let k = class_of(c, lane);
        column[0][c] = logits[at.x + k];
        if TAPS > 1u {
            column[1][c] = logits[at.y + k];
        }
        if TAPS > 2u {
            column[2][c] = logits[at.z + k];
        }
    }
    return column;
}

// The sum of what is tapped.
fn along(tapped: Column, weight: vec3<f32>) -> Classes {
    var v: Classes;
    for (var c = 0u; c < EACH; c++) {
        if TAPS == 1u {
            v[c] = tapped[0][c];
        } else if TAPS == 2u {
            v[c] = weight.x * tapped[0][c] + weight.y * tapped[1][c];
        } else {
            v[c] = weight.x * tapped[0][c] + weight.y * tapped[1][c] + weight.z * tapped[2][c];
        }
    }
    return v;
}

fn largest(v: Classes, lane: u32) -> u32 {
    var best = v[0];
    // Its class plus one; nothing for a NaN.
    var found = 1u + class_of(0u, lane);
    // A NaN is known by its bits: some drivers take `v != v` to be false.
    var bits = bitcast<u32>(v[0]) & 0x7fffffffu;
    for (var c = 1u; c < EACH; c++) {
        bits = max(bits, bitcast<u32>(v[c]) & 0x7fffffffu);
        found = select(found, 1u + class_of(c, lane), v[c] > best);
        best = select(best, v[c], v[c] > best);
    }
    if bits > INFINITY {
        best = bitcast<f32>(min(bits, INFINITY));
        found = 0u;
    }
    var top = subgroupShuffle(best, 0u);
    for (var l = 1u; l < 8u; l++) {
        top = max(top, subgroupShuffle(best, l));
    }
    let first = select(256u, found, best == top);
    var least = subgroupShuffle(first, 0u);
    for (var l = 1u; l < 8u; l++) {
        least = min(least, subgroupShuffle(first, l));
    }
    return (least - 1u) & 255u;
}

// ---- pack: found -> words ------------------------------------------------------------------------
// One invocation per word.

@compute @workgroup_size(64)
fn pack(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = (params.first_group + group.x + group.y * groups.x) * 64u + lane;
    if 4u * at >= params.pixels {
        return;
    }
    var word = 0u;
    for (var i = 0u; i < 4u; i++) {
        if 4u * at + i < params.pixels {
            word |= found[4u * at + i] << (8u * i);
        }
    }
    words[params.first_word + at] = word;
}
