// Group normalisation: of groups of channels, each over all pixels of its image, with or without ReLU.
//
//   xhat = (x - mean) rstd,  rstd = 1 / sqrt(variance + eps)
//   y    = xhat weight + bias,  or max(that, 0)
//
// Host: src/ops/group_norm.rs        Test: kernels-tests/group_norm.rs
// B = images, N = pixels of an image, C = channels, G = groups, P = parts of an image, of
// `pixels_per_part`. Lanes run along the channels; a workgroup has 64 channels of one part.

struct Params {
    images: u32,
    pixels: u32,
    channels: u32,
    channels_per_group: u32,
    pixels_per_part: u32,
    parts: u32,
    relu: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;                     // [B, N, C]
@group(0) @binding(2) var<storage, read> weight: array<f32>;                // [C]
@group(0) @binding(3) var<storage, read> bias: array<f32>;                  // [C]
@group(0) @binding(4) var<storage, read> dy: array<f32>;                    // [B, N, C]
@group(0) @binding(5) var<storage, read> part_stats: array<f32>;            // [B, P, 2, C]: mean, M2
@group(0) @binding(6) var<storage, read> stats: array<vec2<f32>>;           // [B, G]: mean, rstd
@group(0) @binding(7) var<storage, read> part_sums: array<f32>;             // [B, P, 2, C]: of g xhat, g
@group(0) @binding(8) var<storage, read> means: array<vec2<f32>>;           // [B, G]: of g w xhat, g w
@group(0) @binding(9) var<storage, read_write> new_part: array<f32>;        // [B, P, 2, C]
@group(0) @binding(10) var<storage, read_write> new_stats: array<vec2<f32>>; // [B, G]
@group(0) @binding(11) var<storage, read_write> y: array<f32>;              // [B, N, C]
@group(0) @binding(12) var<storage, read_write> dx: array<f32>;             // [B, N, C]

const WORKGROUP: u32 = 64u;

struct Place {
    inside: bool,
    channel: u32,
    // Of all images: part, and elements of its first pixel and past its last one.
    part: u32,
    start: u32,
    end: u32,
    // Of the statistics.
    group: u32,
}

fn locate(workgroup: vec3<u32>, groups: vec3<u32>, lane: u32) -> Place {
    let id = workgroup.x + workgroup.y * groups.x;
    let slices = (params.channels + WORKGROUP - 1u) / WORKGROUP;
    let channel = id % slices * WORKGROUP + lane;
    let part = id / slices;
    let image = part / params.parts;
    let first = (part - image * params.parts) * params.pixels_per_part;
    let start = image * params.pixels + first;
    let end = start + min(params.pixels_per_part, params.pixels - min(first, params.pixels));
    let groups_per_image = params.channels / params.channels_per_group;
    return Place(
        image < params.images && channel < params.channels,
        channel,
        part,
        start * params.channels + channel,
        end * params.channels + channel,
        image * groups_per_image + channel / params.channels_per_group,
    );
}

fn activate(v: f32) -> f32 {
    return select(v, max(v, 0.0), params.relu != 0u);
}

// ---- statistics: x -> new_part -------------------------------------------------------------------
// Two passes over a part that the cache holds: E[x²] - E[x]² would cancel where |mean| is far above
// the deviation. For the same reason the first pixel is taken off before adding up.

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
    let n = f32((place.end - place.start) / params.channels);
    let first = x[place.start];
    var sum = 0.0;
    for (var at = place.start; at < place.end; at += params.channels) {
        sum += x[at] - first;
    }
    let mean = first + sum / n;
    var m2 = 0.0;
    for (var at = place.start; at < place.end; at += params.channels) {
        let d = x[at] - mean;
        m2 += d * d;
    }
    let to = place.part * 2u * params.channels + place.channel;
    new_part[to] = mean;
    new_part[to + params.channels] = m2;
}

// ---- combine: part_stats -> new_stats ------------------------------------------------------------
// One invocation per group: Chan et al.'s formula for all its channels and parts, of n_p pixels each:
//
//   mean = Σ n_p mean_p / n        M2 = Σ M2_p + n_p (mean_p - mean)²

@compute @workgroup_size(WORKGROUP)
fn combine(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = group.x * WORKGROUP + lane;
    let groups_per_image = params.channels / params.channels_per_group;
    let image = id / groups_per_image;
    if image >= params.images {
        return;
    }
    let start = image * params.parts * 2u * params.channels
        + (id - image * groups_per_image) * params.channels_per_group;
    let n = f32(params.pixels * params.channels_per_group);
    let first = part_stats[start];
    var sum = 0.0;
    for (var part = 0u; part < params.parts; part++) {
        for (var c = 0u; c < params.channels_per_group; c++) {
            sum += pixels_of(part) * (part_stats[start + part * 2u * params.channels + c] - first);
        }
    }
    let mean = first + sum / n;
    var m2 = 0.0;
    for (var part = 0u; part < params.parts; part++) {
        for (var c = 0u; c < params.channels_per_group; c++) {
            let at = start + part * 2u * params.channels + c;
            let d = part_stats[at] - mean;
            m2 += part_stats[at + params.channels] + pixels_of(part) * d * d;
        }
    }
    new_stats[id] = vec2(mean, 1.0 / sqrt(m2 / n + params.eps));
}

fn pixels_of(part: u32) -> f32 {
    return f32(min(params.pixels_per_part, params.pixels - part * params.pixels_per_part));
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
    let s = stats[place.group];
    let w = weight[place.channel];
    let b = bias[place.channel];
    for (var at = place.start; at < place.end; at += params.channels) {
        y[at] = activate((x[at] - s.x) * s.y * w + b);
    }
}

// ---- backward_sums: x, weight, bias, stats, dy -> new_part ---------------------------------------
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
    let s = stats[place.group];
    let w = weight[place.channel];
    let b = bias[place.channel];
    var sums = vec2(0.0);
    for (var at = place.start; at < place.end; at += params.channels) {
        let xhat = (x[at] - s.x) * s.y;
        let g = gate(dy[at], xhat * w + b);
        sums += vec2(g * xhat, g);
    }
    let to = place.part * 2u * params.channels + place.channel;
    new_part[to] = sums.x;
    new_part[to + params.channels] = sums.y;
}

fn gate(dy: f32, y: f32) -> f32 {
    return select(dy, 0.0, params.relu != 0u && y <= 0.0);
}

// ---- backward_means: part_sums, weight -> new_stats ----------------------------------------------
// One invocation per group.

@compute @workgroup_size(WORKGROUP)
fn backward_means(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = group.x * WORKGROUP + lane;
    let groups_per_image = params.channels / params.channels_per_group;
    let image = id / groups_per_image;
    if image >= params.images {
        return;
    }
    let channel = (id - image * groups_per_image) * params.channels_per_group;
    let start = image * params.parts * 2u * params.channels + channel;
    var sums = vec2(0.0);
    for (var c = 0u; c < params.channels_per_group; c++) {
        var of_channel = vec2(0.0);
        for (var part = 0u; part < params.parts; part++) {
            let at = start + part * 2u * params.channels + c;
            of_channel += vec2(part_sums[at], part_sums[at + params.channels]);
        }
        sums += weight[channel + c] * of_channel;
    }
    new_stats[id] = sums / f32(params.pixels * params.channels_per_group);
}

// ---- backward_x: x, weight, bias, stats, dy, means -> dx -----------------------------------------
//
//   dx = rstd (g w - mean(g w) - xhat mean(g w xhat))

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
    let s = stats[place.group];
    let m = means[place.group];
    let w = weight[place.channel];
    let b = bias[place.channel];
    for (var at = place.start; at < place.end; at += params.channels) {
        let xhat = (x[at] - s.x) * s.y;
        let g = gate(dy[at], xhat * w + b);
        dx[at] = s.y * (g * w - m.y - xhat * m.x);
    }
}
