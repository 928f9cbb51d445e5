// Bilinear samples of maps at points, zero outside, and their gradient.
//
//   y[n, p] = sum over the four corners of  weight[p, corner] maps[n, corner]
//   dmaps[n, pixel] = sum over the points p that meet the pixel of  weight[p, pixel] dy[n, p]
//
// The backward pass adds whole numbers of 64 bits with atomics, whose sum does not depend on the order: the
// result is the same bit for bit each time. With |dy[n]| < 2^e the sum of P samples is below P 2^e; in units of
// 2^-k, k = 62 - ceil(log2 P) - e, it fits 63 bits with a sign. A unit is 2^(ceil(log2 P) - 62) of the largest
// dy, far below its rounding. A map that an infinity or NaN flows to becomes NaN.
//
// Host: src/ops/point_sample.rs        Test: kernels-tests/point_sample.rs
// N = maps that are sampled, h × w = map, P = points of each; z of the grid: map. With matching, the maps are those of
// the matched queries first_pair, first_pair + 1, … among all; there are mostly far fewer pairs than rows, so workgroups
// of rows beyond the last pair return at once.

struct Params {
    rows: u32,
    height: u32,
    width: u32,
    points: u32,
    first_pair: u32,
    // ceil(log2 P)
    bits: u32,
    stream: u32,
    first_group: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> maps: array<f32>;                 // [.., h, w]
@group(0) @binding(2) var<storage, read> points: array<vec2<f32>>;         // [N, P]
@group(0) @binding(3) var<storage, read> matching: array<u32>;             // how many pairs, _, their maps
@group(0) @binding(4) var<storage, read> dy: array<f32>;                   // [N, P]
@group(0) @binding(5) var<storage, read> largest: array<u32>;              // [N]: bits of the largest |dy|
@group(0) @binding(6) var<storage, read> units: array<u32>;                // [N, h, w, 2]: low and high word
@group(0) @binding(7) var<storage, read> random: array<u32>;               // [4]: seed, step; low word first
@group(0) @binding(8) var<storage, read_write> y: array<f32>;              // [N, P]
@group(0) @binding(9) var<storage, read_write> largest_out: array<u32>;    // [N]
@group(0) @binding(10) var<storage, read_write> units_out: array<atomic<u32>>; // [N, h, w, 2]
@group(0) @binding(11) var<storage, read_write> dmaps: array<f32>;         // [.., h, w]
@group(0) @binding(12) var<storage, read_write> points_out: array<vec2<f32>>; // [N, P]

const WORKGROUP: u32 = 64u;

fn group_id(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return params.first_group + group.x + group.y * groups.x;
}

fn sample(map: u32, point: vec2<f32>) -> f32 {
    let first = map * params.height * params.width;
    let corners = corners_of(point, params.height, params.width);
    return dot(
        corners.weight,
        vec4(
            maps[first + corners.at.x],
            maps[first + corners.at.y],
            maps[first + corners.at.z],
            maps[first + corners.at.w],
        ),
    );
}

fn has_pair(row: u32) -> bool {
    return params.first_pair + row < matching[0];
}

// Points 2 i and 2 i + 1 of a row, uniform in 0..1. Which number is which does not depend on how rows are cut.
fn draw_two(row: u32, i: u32) {
    let each = (params.points + 1u) / 2u;
    if i >= each {
        return;
    }
    let key = vec2(random[0], random[1]);
    let number = (params.first_pair + row) * each + i;
    let bits = philox(key, vec4(number, params.stream, random[2], random[3]));
    let at = row * params.points + 2u * i;
    points_out[at] = vec2(unit(bits.x), unit(bits.y));
    if 2u * i + 1u < params.points {
        points_out[at + 1u] = vec2(unit(bits.z), unit(bits.w));
    }
}

// ---- draw: random -> points_out ------------------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn draw(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    draw_two(group.z, group_id(group, groups) * WORKGROUP + lane);
}

// ---- draw_pairs: random, matching -> points_out --------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn draw_pairs(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    if has_pair(group.z) {
        draw_two(group.z, group_id(group, groups) * WORKGROUP + lane);
    }
}

// ---- forward: maps, points -> y ------------------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let point = group_id(group, groups) * WORKGROUP + lane;
    if point < params.points {
        let at = group.z * params.points + point;
        y[at] = sample(group.z, points[at]);
    }
}

// ---- forward_pairs: maps, points, matching -> y --------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn forward_pairs(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let point = group_id(group, groups) * WORKGROUP + lane;
    if has_pair(group.z) && point < params.points {
        let at = group.z * params.points + point;
        y[at] = sample(matching[2u + params.first_pair + group.z], points[at]);
    }
}

// ---- bound: dy -> largest_out --------------------------------------------------------------------
// One workgroup per row.

@compute @workgroup_size(WORKGROUP)
fn bound(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group_id(group, groups);
    if row < params.rows {
        find_largest(row, lane);
    }
}

// ---- bound_pairs: dy, matching -> largest_out ----------------------------------------------------
// One workgroup per row; 0 for rows beyond the last pair.

@compute @workgroup_size(WORKGROUP)
fn bound_pairs(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group_id(group, groups);
    if row >= params.rows {
        return;
    }
    if has_pair(row) {
        find_largest(row, lane);
    } else if lane == 0u {
        largest_out[row] = 0u;
    }
}

var<workgroup> largest_of: array<u32, WORKGROUP>;

// Bits of magnitudes are in the order of the magnitudes, infinity and NaN last.
fn find_largest(row: u32, lane: u32) {
    var most = 0u;
    for (var p = lane; p < params.points; p += WORKGROUP) {
        most = max(most, bitcast<u32>(dy[row * params.points + p]) & 0x7fffffffu);
    }
    largest_of[lane] = most;
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            largest_of[lane] = max(largest_of[lane], largest_of[lane + half]);
        }
    }
    if lane == 0u {
        largest_out[row] = largest_of[0];
    }
}

// The exponent of a row's units. Not of a largest dy below 2^-60, where the units are small enough and
// their scale is still a number.
fn exponent_of(row: u32) -> i32 {
    return 62 - i32(params.bits) - max(i32(largest[row] >> 23u) - 126, -60);
}

fn power_of_two(exponent: i32) -> f32 {
    return bitcast<f32>(u32(exponent + 127) << 23u);
}

// ---- scatter: points, dy, largest -> units_out ---------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn scatter(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.z;
    let point = group_id(group, groups) * WORKGROUP + lane;
    // What is not finite makes the row NaN anyway.
    if largest[row] == 0u || largest[row] >= 0x7f800000u || point >= params.points {
        return;
    }
    let slope = dy[row * params.points + point];
    if slope == 0.0 {
        return;
    }
    let scale = power_of_two(exponent_of(row));
    let corners = corners_of(points[row * params.points + point], params.height, params.width);
    for (var c = 0u; c < 4u; c++) {
        let term = corners.weight[c] * slope * scale;
        let size = abs(term);
        // Exact: a float has 24 significant bits.
        let high = floor(size / 4294967296.0);
        var words = vec2(u32(size - high * 4294967296.0), u32(high));
        if term < 0.0 {
            words = ~words;
            words.x++;
            words.y += select(0u, 1u, words.x == 0u);
        }
        if words.x == 0u && words.y == 0u {
            continue;
        }
        let at = 2u * (row * params.height * params.width + corners.at[c]);
        let before = atomicAdd(&units_out[at], words.x);
        let carry = select(0u, 1u, before + words.x < before);
        if words.y + carry != 0u {
            atomicAdd(&units_out[at + 1u], words.y + carry);
        }
    }
}

// The gradient of element `i` of the rows.
fn gradient(i: u32, row: u32) -> f32 {
    if largest[row] >= 0x7f800000u {
        return bitcast<f32>(largest[row] | 0x7fc00000u);
    }
    var words = vec2(units[2u * i], units[2u * i + 1u]);
    let negative = words.y >> 31u == 1u;
    if negative {
        words = ~words;
        words.x++;
        words.y += select(0u, 1u, words.x == 0u);
    }
    let size = (f32(words.y) * 4294967296.0 + f32(words.x)) * power_of_two(-exponent_of(row));
    return select(size, -size, negative);
}

// ---- finish: units, largest -> dmaps -------------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn finish(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let pixel = group_id(group, groups) * WORKGROUP + lane;
    let size = params.height * params.width;
    if pixel < size {
        dmaps[group.z * size + pixel] = gradient(group.z * size + pixel, group.z);
    }
}

// ---- finish_pairs: units, largest, matching -> dmaps ---------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn finish_pairs(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let pixel = group_id(group, groups) * WORKGROUP + lane;
    let size = params.height * params.width;
    if has_pair(group.z) && pixel < size {
        let map = matching[2u + params.first_pair + group.z];
        dmaps[map * size + pixel] = gradient(group.z * size + pixel, group.z);
    }
}
