// Softmax over the last axis, for drivers that run on a CPU and have subgroups of eight: see lib/lanes.wgsl. Formulas:
// softmax.wgsl, whose kernels for CPU drivers add up in the same order.
//
// Host: src/ops/softmax.rs        Test: kernels-tests/softmax.rs
// C = channels, up to 128, R = rows, an even number: two of them are C whole pairs, also where C is odd. A workgroup
// has ROWS of those twos, one after the other, EACH pairs to a lane. Compilers know which pairs are of which row.

struct Params {
    rows: u32,
    channels: u32,  // which is CHANNELS
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u64>;            // [R, C]
@group(0) @binding(2) var<storage, read_write> y: array<u64>;      // [R, C]
@group(0) @binding(3) var<storage, read> probability: array<u64>;  // [R, C]
@group(0) @binding(4) var<storage, read> dy: array<u64>;           // [R, C]
@group(0) @binding(5) var<storage, read_write> dx: array<u64>;     // [R, C]

override CHANNELS: u32 = 128u;
override EACH: u32 = 16u;
const MOST: u32 = 16u;
const ROWS: u32 = 8u;

alias Rows = array<vec2<f32>, MOST>;

// The k-th pairs of the lanes in two rows that start at `base`; beyond their end the last one.
fn x_of(base: u32, k: u32, lane: u32) -> vec2<f32> {
    var v: array<u64, 8>;
    for (var i = 0u; i < 8u; i++) {
        v[i] = x[base + min(8u * k + i, CHANNELS - 1u)];
    }
    return floats(spread(v, lane));
}

fn probability_of(base: u32, k: u32, lane: u32) -> vec2<f32> {
    var v: array<u64, 8>;
    for (var i = 0u; i < 8u; i++) {
        v[i] = probability[base + min(8u * k + i, CHANNELS - 1u)];
    }
    return floats(spread(v, lane));
}

fn dy_of(base: u32, k: u32, lane: u32) -> vec2<f32> {
    var v: array<u64, 8>;
    for (var i = 0u; i < 8u; i++) {
        v[i] = dy[base + min(8u * k + i, CHANNELS - 1u)];
    }
    return floats(spread(v, lane));
}

// Whether a lane has a k-th pair, and which of its elements are of the first row and of the second.
fn exists(k: u32, lane: u32) -> bool {
    return 8u * k + lane < CHANNELS;
}

fn of_first(k: u32, lane: u32) -> vec2<bool> {
    return 2u * (8u * k + lane) + vec2(0u, 1u) < vec2(CHANNELS);
}

fn of_second(k: u32, lane: u32) -> vec2<bool> {
    return select(vec2(false), !of_first(k, lane), exists(k, lane));
}

// For each element that of its row.
fn by_row(v: vec2<f32>, k: u32, lane: u32) -> vec2<f32> {
    return select(v.yy, v.xx, of_first(k, lane));
}

// Adds elements of one row, zeros for others, to eight sums, of which lanes 0 to 3 have two each: of every eighth
// element.
fn add_up(sums: vec2<f32>, v: vec2<f32>) -> vec2<f32> {
    let far = vec2(subgroupShuffleXor(v.x, 4u), subgroupShuffleXor(v.y, 4u));
    return (sums + v) + far;
}

// The sum of these eight, from that of element `first` on: a row's.
fn total_of(sums: vec2<f32>, first: u32, lane: u32) -> f32 {
    let at = (first + lane) % 8u;
    let v = vec2(subgroupShuffle(sums.x, at / 2u), subgroupShuffle(sums.y, at / 2u));
    return subgroupAdd(select(v.x, v.y, at % 2u == 1u));
}

// ---- forward: x -> y -----------------------------------------------------------------------------

@compute @workgroup_size(8)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let start = (group.x + group.y * groups.x) * ROWS;
    for (var two = start; two < min(start + ROWS, params.rows / 2u); two++) {
        let base = two * CHANNELS;
        var v: Rows;
        for (var k = 0u; k < EACH; k++) {
            v[k] = x_of(base, k, lane);
        }
        // The lowest finite number, for lanes without an element.
        let lowest = vec2(-3.4028235e38);
        var first = lowest;
        var second = lowest;
        for (var k = 0u; k < EACH; k++) {
            first = max(first, select(lowest, v[k], of_first(k, lane)));
            second = max(second, select(lowest, v[k], of_second(k, lane)));
        }
        let largest = vec2(subgroupMax(max(first.x, first.y)), subgroupMax(max(second.x, second.y)));
        first = vec2(0.0);
        second = vec2(0.0);
        for (var k = 0u; k < EACH; k++) {
            v[k] = exp(v[k] - by_row(largest, k, lane));
            first = add_up(first, select(vec2(0.0), v[k], of_first(k, lane)));
            second = add_up(second, select(vec2(0.0), v[k], of_second(k, lane)));
        }
        let scale = 1.0 / vec2(total_of(first, 0u, lane), total_of(second, CHANNELS, lane));
        for (var k = 0u; k < EACH; k++) {
            if exists(k, lane) {
                y[base + 8u * k + lane] = pair_of(v[k] * by_row(scale, k, lane));
            }
        }
    }
}

// ---- backward: probability, dy -> dx -------------------------------------------------------------

@compute @workgroup_size(8)
fn backward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let start = (group.x + group.y * groups.x) * ROWS;
    for (var two = start; two < min(start + ROWS, params.rows / 2u); two++) {
        let base = two * CHANNELS;
        var p: Rows;
        var d: Rows;
        for (var k = 0u; k < EACH; k++) {
            p[k] = probability_of(base, k, lane);
        }
        for (var k = 0u; k < EACH; k++) {
            d[k] = dy_of(base, k, lane);
        }
        var first = vec2(0.0);
        var second = vec2(0.0);
        for (var k = 0u; k < EACH; k++) {
            first = add_up(first, select(vec2(0.0), p[k] * d[k], of_first(k, lane)));
            second = add_up(second, select(vec2(0.0), p[k] * d[k], of_second(k, lane)));
        }
        let total = vec2(total_of(first, 0u, lane), total_of(second, CHANNELS, lane));
        for (var k = 0u; k < EACH; k++) {
            if exists(k, lane) {
                dx[base + 8u * k + lane] = pair_of(p[k] * (d[k] - by_row(total, k, lane)));
            }
        }
    }
}
