// Group normalisation, with or without ReLU, for drivers that run on a CPU and have subgroups of eight: see
// lib/lanes.wgsl. Formulas: group_norm.wgsl, which combines the parts.
//
// Host: src/ops/group_norm.rs        Test: kernels-tests/group_norm.rs
// B = images, N = pixels of an image, C = channels, an even number, G = groups, P = parts of an image, of
// `pixels_per_part`. A workgroup has a slice of a part: lib/slices.wgsl, whose rows are pixels.

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
@group(0) @binding(1) var<storage, read> x: array<u64>;              // [B, N, C]
@group(0) @binding(2) var<storage, read> weight: array<u64>;         // [C]
@group(0) @binding(3) var<storage, read> bias: array<u64>;           // [C]
@group(0) @binding(4) var<storage, read> dy: array<u64>;             // [B, N, C]
@group(0) @binding(5) var<storage, read> stats: array<u64>;          // [B, G]: mean, rstd
@group(0) @binding(6) var<storage, read> means: array<u64>;          // [B, G]: of g w xhat, g w
@group(0) @binding(7) var<storage, read_write> new_part: array<u64>; // [B, P, 2, C]
@group(0) @binding(8) var<storage, read_write> y: array<u64>;        // [B, N, C]
@group(0) @binding(9) var<storage, read_write> dx: array<u64>;       // [B, N, C]

fn locate(group: vec3<u32>, groups: vec3<u32>, lane: u32) -> Slice {
    let id = group.x + group.y * groups.x;
    let part = id / slices();
    let image = part / params.parts;
    let pixel = min((part - image * params.parts) * params.pixels_per_part, params.pixels);
    let count = select(min(params.pixels_per_part, params.pixels - pixel), 0u, image >= params.images);
    let start = image * params.pixels + pixel;
    return Slice(part, start, start + count, id % slices() * 8u * BLOCKS, lane, params.channels / 2u);
}

// The groups of a pair's channels.
fn groups_of(slice: Slice, pair: u32) -> vec2<u32> {
    let image = slice.part / params.parts;
    let per_image = params.channels / params.channels_per_group;
    return image * per_image + vec2(2u * pair, 2u * pair + 1u) / params.channels_per_group;
}

fn channels_of(slice: Slice) -> Channels {
    var c: Channels;
    for (var k = 0u; k < BLOCKS; k++) {
        let pair = pair_at(slice, k);
        let groups = groups_of(slice, pair);
        let left = floats(stats[groups.x]);
        let right = floats(stats[groups.y]);
        c.mean[k] = vec2(left.x, right.x);
        c.rstd[k] = vec2(left.y, right.y);
        c.weight[k] = floats(weight[pair]);
        c.bias[k] = floats(bias[pair]);
    }
    return c;
}

// ---- statistics: x -> new_part -------------------------------------------------------------------

@compute @workgroup_size(8)
fn statistics(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let slice = locate(group, groups, lane);
    if slice.start >= slice.end {
        return;
    }
    write_moments(slice);
}

// ---- normalize: x, weight, bias, stats -> y ------------------------------------------------------

@compute @workgroup_size(8)
fn normalize(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let slice = locate(group, groups, lane);
    if slice.start >= slice.end {
        return;
    }
    var c = channels_of(slice);
    write_y(slice, &c);
}

// ---- backward_sums: x, weight, bias, stats, dy -> new_part ---------------------------------------

@compute @workgroup_size(8)
fn backward_sums(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let slice = locate(group, groups, lane);
    if slice.start >= slice.end {
        return;
    }
    var c = channels_of(slice);
    var sum_g_xhat: Blocks;
    var sum_g: Blocks;
    var seen = 0u;
    for (var row = slice.start; row < slice.end; row++) {
        seen |= fetch_x(slice, row + 1u) | fetch_dy(slice, row + 1u);
        for (var k = 0u; k < BLOCKS; k++) {
            let at = row * slice.pairs + pair_at(slice, k);
            let xhat = (floats(x[at]) - c.mean[k]) * c.rstd[k];
            let g = gate(floats(dy[at]), xhat * c.weight[k] + c.bias[k]);
            sum_g_xhat[k] += g * xhat;
            sum_g[k] += g;
        }
    }
    for (var k = 0u; k < BLOCKS; k++) {
        let to = slice.part * 2u * slice.pairs + pair_at(slice, k);
        new_part[to] = pair_of(sum_g_xhat[k]);
        new_part[to + slice.pairs] = pair_of(sum_g[k]);
    }
    if never() {
        new_part[0] = u64(seen);
    }
}

// ---- backward_x: x, weight, bias, stats, dy, means -> dx -----------------------------------------

@compute @workgroup_size(8)
fn backward_x(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let slice = locate(group, groups, lane);
    if slice.start >= slice.end {
        return;
    }
    var c = channels_of(slice);
    var mean_g_xhat: Blocks;
    var mean_g: Blocks;
    for (var k = 0u; k < BLOCKS; k++) {
        let groups = groups_of(slice, pair_at(slice, k));
        let left = floats(means[groups.x]);
        let right = floats(means[groups.y]);
        mean_g_xhat[k] = vec2(left.x, right.x);
        mean_g[k] = vec2(left.y, right.y);
    }
    var seen = 0u;
    for (var row = slice.start; row < slice.end; row++) {
        seen |= fetch_x(slice, row + 1u) | fetch_dy(slice, row + 1u);
        for (var k = 0u; k < BLOCKS; k++) {
            let at = row * slice.pairs + pair_at(slice, k);
            let xhat = (floats(x[at]) - c.mean[k]) * c.rstd[k];
            let g = gate(floats(dy[at]), xhat * c.weight[k] + c.bias[k]);
            dx[at] = pair_of(c.rstd[k] * (g * c.weight[k] - mean_g[k] - xhat * mean_g_xhat[k]));
        }
    }
    if never() {
        dx[0] = u64(seen);
    }
}
