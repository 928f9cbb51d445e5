// Depthwise 3 × 3 convolution with zeros around the map, and a bias.
//
//   y[b, i, j, c] = bias[c] + Σ weight[c, ky, kx] x[b, i + ky - 1, j + kx - 1, c]
//
// Host: src/ops/depthwise.rs        Test: kernels-tests/depthwise.rs
// B × H × W = maps, C = channels. Lanes run along the channels; an invocation walks along a row, so
// that each column of three values is read once.

struct Params {
    lines: u32,           // B H
    height: u32,
    width: u32,
    channels: u32,
    turned: u32,          // 1: taps in reverse and no bias, which is the gradient of x
    lines_per_part: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;             // [B, H, W, C]
@group(0) @binding(2) var<storage, read> weight: array<f32>;        // [C, 1, 3, 3]
@group(0) @binding(3) var<storage, read> bias: array<f32>;          // [C]
@group(0) @binding(4) var<storage, read_write> y: array<f32>;       // [B, H, W, C]
@group(0) @binding(5) var<storage, read> dy: array<f32>;            // [B, H, W, C]
@group(0) @binding(6) var<storage, read_write> dweight: array<f32>; // [parts, C, 3, 3]
@group(0) @binding(7) var<storage, read_write> dbias: array<f32>;   // [parts, C]

const WORKGROUP: u32 = 64u;
// Places that an invocation does.
const RUN: u32 = 16u;

// Three values of a column: of the lines above, at and below a place.
struct Column {
    above: f32,
    at: f32,
    below: f32,
}

// The column of a line at place j; zeros outside the map.
fn column(line: u32, j: i32, c: u32) -> Column {
    var found: Column;
    if j < 0 || j >= i32(params.width) {
        return found;
    }
    let i = line % params.height;
    let stride = params.width * params.channels;
    let at = line * stride + u32(j) * params.channels + c;
    if i > 0u {
        found.above = x[at - stride];
    }
    found.at = x[at];
    if i + 1u < params.height {
        found.below = x[at + stride];
    }
    return found;
}

// ---- forward: x, weight, bias -> y ---------------------------------------------------------------
// One workgroup per run of 16 places of a line and 64 channels. With `turned` dy -> dx.

@compute @workgroup_size(WORKGROUP)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = group.x + group.y * groups.x;
    let runs = (params.width + RUN - 1u) / RUN;
    let line = id / runs;
    let c = group.z * WORKGROUP + lane;
    if line >= params.lines || c >= params.channels {
        return;
    }
    var taps: array<f32, 9>;
    for (var k = 0u; k < 9u; k++) {
        let tap = select(k, 8u - k, params.turned == 1u);
        taps[k] = weight[9u * c + tap];
    }
    var start = 0.0;
    if params.turned == 0u {
        start = bias[c];
    }
    let first = id % runs * RUN;
    let end = min(first + RUN, params.width);
    var left = column(line, i32(first) - 1, c);
    var middle = column(line, i32(first), c);
    for (var j = first; j < end; j++) {
        let right = column(line, i32(j) + 1, c);
        var sum = start;
        sum = fma(taps[0], left.above, sum);
        sum = fma(taps[1], middle.above, sum);
        sum = fma(taps[2], right.above, sum);
        sum = fma(taps[3], left.at, sum);
        sum = fma(taps[4], middle.at, sum);
        sum = fma(taps[5], right.at, sum);
        sum = fma(taps[6], left.below, sum);
        sum = fma(taps[7], middle.below, sum);
        sum = fma(taps[8], right.below, sum);
        y[(line * params.width + j) * params.channels + c] = sum;
        left = middle;
        middle = right;
    }
}

// ---- backward_weight: x, dy -> dweight, dbias ----------------------------------------------------
// One workgroup per part of the lines and 64 channels; the parts are added up elsewhere.

@compute @workgroup_size(WORKGROUP)
fn backward_weight(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let part = group.x + group.y * groups.x;
    let c = group.z * WORKGROUP + lane;
    let first = part * params.lines_per_part;
    if first >= params.lines || c >= params.channels {
        return;
    }
    let end = min(first + params.lines_per_part, params.lines);
    // Rows of taps; the bias has a sum of its own.
    var above = vec3(0.0);
    var at = vec3(0.0);
    var below = vec3(0.0);
    var sum = 0.0;
    for (var line = first; line < end; line++) {
        var left: Column;
        var middle = column(line, 0, c);
        for (var j = 0u; j < params.width; j++) {
            let right = column(line, i32(j) + 1, c);
            let d = dy[(line * params.width + j) * params.channels + c];
            above += d * vec3(left.above, middle.above, right.above);
            at += d * vec3(left.at, middle.at, right.at);
            below += d * vec3(left.below, middle.below, right.below);
            sum += d;
            left = middle;
            middle = right;
        }
    }
    let to = 9u * (part * params.channels + c);
    for (var k = 0u; k < 3u; k++) {
        dweight[to + k] = above[k];
        dweight[to + 3u + k] = at[k];
        dweight[to + 6u + k] = below[k];
    }
    dbias[part * params.channels + c] = sum;
}
