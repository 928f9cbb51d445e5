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
