// Batch normalisation of each channel over all rows, with or without ReLU.
//
//   xhat = (x - mean) rstd,  rstd = 1 / sqrt(variance + eps)
//   y    = xhat weight + bias,  or max(that, 0)
//
// Host: src/ops/batch_norm.rs        Test: kernels-tests/batch_norm.rs
// R = rows (all leading axes flattened), C = channels, P = parts of `rows_per_part` rows. Lanes run
// along the channels; a workgroup has 64 channels of one part, four rows at a time.

struct Params {
    rows: u32,
    channels: u32,
    rows_per_part: u32,
    parts: u32,
    relu: u32,
    eps: f32,
    momentum: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;                    // [R, C]
@group(0) @binding(2) var<storage, read> weight: array<f32>;               // [C]
@group(0) @binding(3) var<storage, read> bias: array<f32>;                 // [C]
@group(0) @binding(4) var<storage, read> mean: array<f32>;                 // [C]
@group(0) @binding(5) var<storage, read> variance: array<f32>;             // [C]
@group(0) @binding(6) var<storage, read> stats: array<f32>;                // [2, C]: mean, rstd
@group(0) @binding(7) var<storage, read> part_stats: array<f32>;           // [P, 2, C]: mean, M2
@group(0) @binding(8) var<storage, read> dy: array<f32>;                   // [R, C]
@group(0) @binding(9) var<storage, read> dweight: array<f32>;              // [C]
@group(0) @binding(10) var<storage, read> dbias: array<f32>;               // [C]
@group(0) @binding(11) var<storage, read_write> y: array<f32>;             // [R, C]
@group(0) @binding(12) var<storage, read_write> new_part: array<f32>;      // [P, 2, C]: mean, M2
@group(0) @binding(13) var<storage, read_write> new_stats: array<f32>;     // [2, C]: mean, rstd
@group(0) @binding(14) var<storage, read_write> running_mean: array<f32>;  // [C]
@group(0) @binding(15) var<storage, read_write> running_var: array<f32>;   // [C]
@group(0) @binding(16) var<storage, read_write> part_dweight: array<f32>;  // [P, C]
@group(0) @binding(17) var<storage, read_write> part_dbias: array<f32>;    // [P, C]
@group(0) @binding(18) var<storage, read_write> dx: array<f32>;            // [R, C]

const WORKGROUP: u32 = 64u;

// ---- statistics: x -> new_part -------------------------------------------------------------------
// Two passes over a part that the cache holds: E[x²] - E[x]² would cancel where |mean| is far above
// the deviation. For the same reason the first row is taken off before adding up.

@compute @workgroup_size(WORKGROUP)
fn statistics(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group, groups, lane);
    if !place.inside {
        return;
    }
    let channels = params.channels;
    let n = f32(place.end - place.start);
    let first = x[place.start * channels + place.channel];
    let end = place.end * channels + place.channel;
    // Four rows side by side: shorter chains, and less rounding than one long one.
    var sums = vec4(0.0);
    var at = place.start * channels + place.channel;
    for (; at + 3u * channels < end; at += 4u * channels) {
        sums += rows_at(at) - first;
    }
    var sum = (sums.x + sums.y) + (sums.z + sums.w);
    for (; at < end; at += channels) {
        sum += x[at] - first;
    }
    let center = first + sum / n;
    var squares = vec4(0.0);
    at = place.start * channels + place.channel;
    for (; at + 3u * channels < end; at += 4u * channels) {
        let d = rows_at(at) - center;
        squares += d * d;
    }
    var m2 = (squares.x + squares.y) + (squares.z + squares.w);
    for (; at < end; at += channels) {
        let d = x[at] - center;
        m2 += d * d;
    }
    let to = place.part * 2u * channels + place.channel;
    new_part[to] = center;
    new_part[to + channels] = m2;
}

// ---- combine: part_stats -> new_stats, running_mean, running_var ---------------------------------
// Chan et al.'s formula for any number of parts of n_p rows:
//
//   mean = Σ n_p mean_p / n        M2 = Σ M2_p + n_p (mean_p - mean)²

@compute @workgroup_size(WORKGROUP)
fn combine(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let c = group.x * WORKGROUP + lane;
    let channels = params.channels;
    if c >= channels {
        return;
    }
    let n = f32(params.rows);
    let first = part_stats[c];
    var sum = 0.0;
    for (var part = 0u; part < params.parts; part++) {
        sum += rows_of(part) * (part_stats[part * 2u * channels + c] - first);
    }
    let center = first + sum / n;
    var m2 = 0.0;
    for (var part = 0u; part < params.parts; part++) {
        let at = part * 2u * channels + c;
        let d = part_stats[at] - center;
        m2 += part_stats[at + channels] + rows_of(part) * d * d;
    }
    new_stats[c] = center;
    new_stats[channels + c] = 1.0 / sqrt(m2 / n + params.eps);
    let unbiased = m2 / f32(max(params.rows, 2u) - 1u);
    running_mean[c] = (1.0 - params.momentum) * running_mean[c] + params.momentum * center;
    running_var[c] = (1.0 - params.momentum) * running_var[c] + params.momentum * unbiased;
}

// ---- normalize: x, weight, bias, stats -> y ------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn normalize(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group, groups, lane);
    if !place.inside {
        return;
    }
    let c = place.channel;
    let center = stats[c];
    let rstd = stats[params.channels + c];
    let w = weight[c];
    let b = bias[c];
    let step = params.channels;
    let end = place.end * step + c;
    var at = place.start * step + c;
    for (; at + 3u * step < end; at += 4u * step) {
        let v = activate((rows_at(at) - center) * rstd * w + b);
        y[at] = v.x;
        y[at + step] = v.y;
        y[at + 2u * step] = v.z;
        y[at + 3u * step] = v.w;
    }
    for (; at < end; at += step) {
        y[at] = activate(vec4((x[at] - center) * rstd * w + b)).x;
    }
}

// ---- evaluate: x, weight, bias, mean, variance -> y ----------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn evaluate(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group, groups, lane);
    if !place.inside {
        return;
    }
    let c = place.channel;
    let center = mean[c];
    let rstd = 1.0 / sqrt(variance[c] + params.eps);
    let w = weight[c];
    let b = bias[c];
    let step = params.channels;
    let end = place.end * step + c;
    var at = place.start * step + c;
    for (; at + 3u * step < end; at += 4u * step) {
        let v = activate((rows_at(at) - center) * rstd * w + b);
        y[at] = v.x;
        y[at + step] = v.y;
        y[at + 2u * step] = v.z;
        y[at + 3u * step] = v.w;
    }
    for (; at < end; at += step) {
        y[at] = activate(vec4((x[at] - center) * rstd * w + b)).x;
    }
}

// ---- backward_sums: x, weight, bias, stats, dy -> part_dweight, part_dbias -----------------------
//
//   g       = dy where y > 0, else 0  (dy without ReLU)
//   dweight = Σ g xhat        dbias = Σ g

@compute @workgroup_size(WORKGROUP)
fn backward_sums(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group, groups, lane);
    if !place.inside {
        return;
    }
    let c = place.channel;
    let center = stats[c];
    let rstd = stats[params.channels + c];
    let w = weight[c];
    let b = bias[c];
    let step = params.channels;
    let end = place.end * step + c;
    var at = place.start * step + c;
    var sums_dweight = vec4(0.0);
    var sums_dbias = vec4(0.0);
    for (; at + 3u * step < end; at += 4u * step) {
        let xhat = (rows_at(at) - center) * rstd;
        let g = masked(gradients_at(at), xhat * w + b);
        sums_dweight += g * xhat;
        sums_dbias += g;
    }
    for (; at < end; at += step) {
        let xhat = (x[at] - center) * rstd;
        let g = masked(vec4(dy[at]), vec4(xhat * w + b)).x;
        sums_dweight.x += g * xhat;
        sums_dbias.x += g;
    }
    let to = place.part * step + c;
    part_dweight[to] = (sums_dweight.x + sums_dweight.y) + (sums_dweight.z + sums_dweight.w);
    part_dbias[to] = (sums_dbias.x + sums_dbias.y) + (sums_dbias.z + sums_dbias.w);
}

// ---- backward_x: x, weight, bias, stats, dy, dweight, dbias -> dx --------------------------------
//
//   dx = weight rstd (g - dbias / R - xhat dweight / R)

@compute @workgroup_size(WORKGROUP)
fn backward_x(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group, groups, lane);
    if !place.inside {
        return;
    }
    let c = place.channel;
    let center = stats[c];
    let rstd = stats[params.channels + c];
    let w = weight[c];
    let b = bias[c];
    let n = f32(params.rows);
    let mean_g = dbias[c] / n;
    let mean_g_xhat = dweight[c] / n;
    let step = params.channels;
    let end = place.end * step + c;
    var at = place.start * step + c;
    for (; at + 3u * step < end; at += 4u * step) {
        let xhat = (rows_at(at) - center) * rstd;
        let g = masked(gradients_at(at), xhat * w + b);
        let v = w * rstd * (g - mean_g - xhat * mean_g_xhat);
        dx[at] = v.x;
        dx[at + step] = v.y;
        dx[at + 2u * step] = v.z;
        dx[at + 3u * step] = v.w;
    }
    for (; at < end; at += step) {
        let xhat = (x[at] - center) * rstd;
        let g = masked(vec4(dy[at]), vec4(xhat * w + b)).x;
        dx[at] = w * rstd * (g - mean_g - xhat * mean_g_xhat);
    }
}

// ---- shared --------------------------------------------------------------------------------------

struct Place {
    channel: u32,
    part: u32,
    start: u32,  // rows of the part
    end: u32,
    inside: bool,
}

fn locate(group: vec3<u32>, groups: vec3<u32>, lane: u32) -> Place {
    let id = group.x + group.y * groups.x;
    let blocks = (params.channels + WORKGROUP - 1u) / WORKGROUP;
    var place: Place;
    place.channel = id % blocks * WORKGROUP + lane;
    place.part = id / blocks;
    place.start = place.part * params.rows_per_part;
    place.end = min(place.start + params.rows_per_part, params.rows);
    place.inside = place.channel < params.channels && place.part < params.parts;
    return place;
}

// x at four rows.
fn rows_at(at: u32) -> vec4<f32> {
    let step = params.channels;
    return vec4(x[at], x[at + step], x[at + 2u * step], x[at + 3u * step]);
}

fn rows_of(part: u32) -> f32 {
    return f32(min(params.rows_per_part, params.rows - part * params.rows_per_part));
}

fn gradients_at(at: u32) -> vec4<f32> {
    let step = params.channels;
    return vec4(dy[at], dy[at + step], dy[at + 2u * step], dy[at + 3u * step]);
}

// Not max(), which hides a NaN.
fn activate(v: vec4<f32>) -> vec4<f32> {
    return select(v, vec4(0.0), (v < vec4(0.0)) & vec4(params.relu != 0u));
}

fn masked(g: vec4<f32>, v: vec4<f32>) -> vec4<f32> {
    return select(g, vec4(0.0), (v <= vec4(0.0)) & vec4(params.relu != 0u));
}
