// Layer normalisation over the last axis, forward and backward.
//
//   xhat = (x - mean) * rstd,  rstd = 1 / sqrt(var + eps)
//   y    = xhat * weight + bias
//
// Host: src/ops/layer_norm.rs        Test: kernels-tests/layer_norm.rs
// C = channels, R = rows (all leading axes flattened).

override WORKGROUP: u32 = 64u;

struct Params {
    rows: u32,
    channels: u32,
    rows_per_part: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;                  // [R, C]
@group(0) @binding(2) var<storage, read> weight: array<f32>;             // [C]
@group(0) @binding(3) var<storage, read> bias: array<f32>;               // [C]
@group(0) @binding(4) var<storage, read_write> y: array<Real>;           // [R, C]
@group(0) @binding(5) var<storage, read_write> stats: array<vec2<f32>>;  // [R] of (mean, rstd)
@group(0) @binding(6) var<storage, read> dy: array<f32>;                 // [R, C]
@group(0) @binding(7) var<storage, read_write> dx: array<f32>;           // [R, C]
@group(0) @binding(8) var<storage, read> saved: array<vec2<f32>>;        // [R] of (mean, rstd)
@group(0) @binding(9) var<storage, read_write> parts: array<f32>;        // [parts, 2 C]: dweight, dbias

// ---- forward: x, weight, bias -> y, stats --------------------------------------------------------
// One workgroup per row.

@compute @workgroup_size(WORKGROUP)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.x + group.y * groups.x;
    if row >= params.rows {
        return;
    }
    let base = row * params.channels;
    let of_row = row_stats(base, lane);
    for (var c = lane; c < params.channels; c += WORKGROUP) {
        y[base + c] = Real((x[base + c] - of_row.x) * of_row.y * weight[c] + bias[c]);
    }
    if lane == 0u {
        stats[row] = of_row;
    }
}

// ---- statistics: x -> stats ----------------------------------------------------------------------
// The same without y, for products that take the norm while they read x.

@compute @workgroup_size(WORKGROUP)
fn statistics(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.x + group.y * groups.x;
    if row >= params.rows {
        return;
    }
    let of_row = row_stats(row * params.channels, lane);
    if lane == 0u {
        stats[row] = of_row;
    }
}

// Mean and 1 / deviation of the row that starts at base.
fn row_stats(base: u32, lane: u32) -> vec2<f32> {
    let count = f32(params.channels);
    var sum = 0.0;
    for (var c = lane; c < params.channels; c += WORKGROUP) {
        sum += x[base + c];
    }
    let mean = workgroup_sum2(vec2(sum, 0.0), lane).x / count;

    // Two passes: E[x²] - E[x]² would cancel badly where |mean| is far above the deviation.
    var squares = 0.0;
    for (var c = lane; c < params.channels; c += WORKGROUP) {
        let d = x[base + c] - mean;
        squares += d * d;
    }
    let rstd = 1.0 / sqrt(workgroup_sum2(vec2(squares, 0.0), lane).x / count + params.eps);
    return vec2(mean, rstd);
}

// ---- apply: x, weight, bias, saved -> y ----------------------------------------------------------
// What statistics has left to do. One workgroup per row.

@compute @workgroup_size(WORKGROUP)
fn apply(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.x + group.y * groups.x;
    if row >= params.rows {
        return;
    }
    let base = row * params.channels;
    for (var c = lane; c < params.channels; c += WORKGROUP) {
        y[base + c] = Real((x[base + c] - saved[row].x) * saved[row].y * weight[c] + bias[c]);
    }
}

// ---- backward_x: x, weight, saved, dy -> dx ------------------------------------------------------
// One workgroup per row.
//
//   g  = dy * weight
//   dx = rstd * (g - mean(g) - xhat * mean(g * xhat))

@compute @workgroup_size(WORKGROUP)
fn backward_x(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.x + group.y * groups.x;
    if row >= params.rows {
        return;
    }
    let base = row * params.channels;
    let mean = saved[row].x;
    let rstd = saved[row].y;

    var sums = vec2(0.0);
    for (var c = lane; c < params.channels; c += WORKGROUP) {
        let xhat = (x[base + c] - mean) * rstd;
        let g = dy[base + c] * weight[c];
        sums += vec2(g, g * xhat);
    }
    let means = workgroup_sum2(sums, lane) / f32(params.channels);
    for (var c = lane; c < params.channels; c += WORKGROUP) {
        let xhat = (x[base + c] - mean) * rstd;
        let g = dy[base + c] * weight[c];
        dx[base + c] = rstd * (g - means.x - xhat * means.y);
    }
}

// ---- backward_weight: x, saved, dy -> parts ------------------------------------------------------
// Lanes along 64 channels; each workgroup adds up the rows of one part.

@compute @workgroup_size(64)
fn backward_weight(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let c = group.x * 64u + lane;
    if c >= params.channels {
        return;
    }
    let start = group.y * params.rows_per_part;
    let end = min(start + params.rows_per_part, params.rows);
    var sums = vec2(0.0);
    for (var row = start; row < end; row++) {
        let g = dy[row * params.channels + c];
        let xhat = (x[row * params.channels + c] - saved[row].x) * saved[row].y;
        sums += vec2(g * xhat, g);
    }
    parts[group.y * 2u * params.channels + c] = sums.x;
    parts[(group.y * 2u + 1u) * params.channels + c] = sums.y;
}

// ---- for CPU drivers -----------------------------------------------------------------------------
// Where a workgroup is a subgroup and its lanes divide the channels: a workgroup has the rows of a part, and
// rows are BLOCKS blocks of EACH elements per lane in registers. Loops of constant length are unrolled, and what
// a single block holds is loaded once.

const MOST: u32 = 16u;
override EACH: u32 = MOST;
override BLOCKS: u32 = 1u;

alias Block = array<f32, MOST>;

fn block_of_x(at: u32) -> Block {
    var v: Block;
    for (var k = 0u; k < EACH; k++) {
        v[k] = x[at + k * WORKGROUP];
    }
    return v;
}

fn block_of_dy(at: u32) -> Block {
    var v: Block;
    for (var k = 0u; k < EACH; k++) {
        v[k] = dy[at + k * WORKGROUP];
    }
    return v;
}

fn block_of_weight(at: u32) -> Block {
    var v: Block;
    for (var k = 0u; k < EACH; k++) {
        v[k] = weight[at + k * WORKGROUP];
    }
    return v;
}

fn block_of_bias(at: u32) -> Block {
    var v: Block;
    for (var k = 0u; k < EACH; k++) {
        v[k] = bias[at + k * WORKGROUP];
    }
    return v;
}

// ---- forward_rows: x, weight, bias -> y, stats ---------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn forward_rows(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = (group.x + group.y * groups.x) * params.rows_per_part;
    let end = min(start + params.rows_per_part, params.rows);
    let count = f32(params.channels);
    let wide = EACH * WORKGROUP;
    var w = block_of_weight(lane);
    var b = block_of_bias(lane);
    for (var row = start; row < end; row++) {
        let base = row * params.channels + lane;
        var v = block_of_x(base);
        var sum = 0.0;
        for (var i = 0u; i < BLOCKS; i++) {
            if BLOCKS > 1u {
                v = block_of_x(base + i * wide);
            }
            for (var k = 0u; k < EACH; k++) {
                sum += v[k];
            }
        }
        let mean = workgroup_sum2(vec2(sum, 0.0), lane).x / count;
        var squares = 0.0;
        for (var i = 0u; i < BLOCKS; i++) {
            if BLOCKS > 1u {
                v = block_of_x(base + i * wide);
            }
            for (var k = 0u; k < EACH; k++) {
                squares += (v[k] - mean) * (v[k] - mean);
            }
        }
        let rstd = 1.0 / sqrt(workgroup_sum2(vec2(squares, 0.0), lane).x / count + params.eps);
        for (var i = 0u; i < BLOCKS; i++) {
            if BLOCKS > 1u {
                v = block_of_x(base + i * wide);
                w = block_of_weight(lane + i * wide);
                b = block_of_bias(lane + i * wide);
            }
            for (var k = 0u; k < EACH; k++) {
                y[base + i * wide + k * WORKGROUP] = Real((v[k] - mean) * rstd * w[k] + b[k]);
            }
        }
        if lane == 0u {
            stats[row] = vec2(mean, rstd);
        }
    }
}

// ---- backward_rows: x, weight, saved, dy -> dx, parts --------------------------------------------
// backward_x and backward_weight together. With several blocks to a row, the means over rows are taken before;
// every lane keeps its own copy, so no barrier is needed.

const PART: u32 = 64u;

var<workgroup> row_means: array<vec2<f32>, PART * WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn backward_rows(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = group.x + group.y * groups.x;
    let start = id * params.rows_per_part;
    let end = min(start + params.rows_per_part, params.rows);
    let wide = EACH * WORKGROUP;
    for (var row = start; BLOCKS > 1u && row < end; row++) {
        var sums = vec2(0.0);
        for (var i = 0u; i < BLOCKS; i++) {
            let at = row * params.channels + i * wide + lane;
            sums += gradient_sums(block_of_x(at), block_of_dy(at), block_of_weight(i * wide + lane), row);
        }
        row_means[(row - start) * WORKGROUP + lane] = workgroup_sum2(sums, lane) / f32(params.channels);
    }
    for (var i = 0u; i < BLOCKS && start < end; i++) {
        let w = block_of_weight(lane + i * wide);
        var dweight: Block;
        var dbias: Block;
        for (var row = start; row < end; row++) {
            let mean = saved[row].x;
            let rstd = saved[row].y;
            let at = row * params.channels + i * wide + lane;
            let v = block_of_x(at);
            let d = block_of_dy(at);
            var means: vec2<f32>;
            if BLOCKS == 1u {
                means = workgroup_sum2(gradient_sums(v, d, w, row), lane) / f32(params.channels);
            } else {
                means = row_means[(row - start) * WORKGROUP + lane];
            }
            for (var k = 0u; k < EACH; k++) {
                let xhat = (v[k] - mean) * rstd;
                dx[at + k * WORKGROUP] = rstd * (d[k] * w[k] - means.x - xhat * means.y);
                dweight[k] += d[k] * xhat;
                dbias[k] += d[k];
            }
        }
        for (var k = 0u; k < EACH; k++) {
            let c = i * wide + k * WORKGROUP + lane;
            parts[id * 2u * params.channels + c] = dweight[k];
            parts[(id * 2u + 1u) * params.channels + c] = dbias[k];
        }
    }
}

// A lane's share in the sums of g and g xhat.
fn gradient_sums(v: Block, d: Block, w: Block, row: u32) -> vec2<f32> {
    var sums = vec2(0.0);
    for (var k = 0u; k < EACH; k++) {
        let g = d[k] * w[k];
        sums += vec2(g, g * (v[k] - saved[row].x) * saved[row].y);
    }
    return sums;
}
