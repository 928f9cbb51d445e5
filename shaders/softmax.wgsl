// Softmax over the last axis, forward and backward.
//
//   y  = exp(x - max) / Σ exp(x - max)
//   dx = y (dy - Σ y dy)
//
// Host: src/ops/softmax.rs        Test: kernels-tests/softmax.rs
// C = channels, R = rows (all leading axes flattened). One workgroup per row.

override WORKGROUP: u32 = 64u;

struct Params {
    rows: u32,
    channels: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;             // [R, C]
@group(0) @binding(2) var<storage, read_write> y: array<f32>;       // [R, C]
@group(0) @binding(3) var<storage, read> probability: array<f32>;   // [R, C]
@group(0) @binding(4) var<storage, read> dy: array<f32>;            // [R, C]
@group(0) @binding(5) var<storage, read_write> dx: array<f32>;      // [R, C]

// ---- forward: x -> y -----------------------------------------------------------------------------

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
    // The lowest finite number, for lanes without an element.
    var largest = -3.4028235e38;
    for (var c = lane; c < params.channels; c += WORKGROUP) {
        largest = max(largest, x[base + c]);
    }
    largest = workgroup_max(largest, lane);
    var sum = 0.0;
    for (var c = lane; c < params.channels; c += WORKGROUP) {
        let e = exp(x[base + c] - largest);
        y[base + c] = e;
        sum += e;
    }
    let scale = 1.0 / workgroup_sum2(vec2(sum, 0.0), lane).x;
    // Each lane reads what it wrote itself.
    for (var c = lane; c < params.channels; c += WORKGROUP) {
        y[base + c] *= scale;
    }
}

// ---- backward: probability, dy -> dx -------------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn backward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.x + group.y * groups.x;
    if row >= params.rows {
        return;
    }
    let base = row * params.channels;
    var sum = 0.0;
    for (var c = lane; c < params.channels; c += WORKGROUP) {
        sum += probability[base + c] * dy[base + c];
    }
    let total = workgroup_sum2(vec2(sum, 0.0), lane).x;
    for (var c = lane; c < params.channels; c += WORKGROUP) {
        dx[base + c] = probability[base + c] * (dy[base + c] - total);
    }
}

// ---- for CPU drivers -----------------------------------------------------------------------------
// Where a workgroup is a subgroup, it holds a row in registers, EACH elements to a lane, and has ROWS rows. Lanes
// beyond the end read the last element again, and leave it out of sums.

const ROWS: u32 = 8u;
const MOST: u32 = 16u;
override EACH: u32 = MOST;

alias Row = array<f32, MOST>;

// The element of a row that is the k-th of a lane.
fn element(k: u32, lane: u32) -> u32 {
    return min(k * WORKGROUP + lane, params.channels - 1u);
}

// Whether it is: of all but the last, every lane has one.
fn exists(k: u32, lane: u32) -> bool {
    return k + 1u < EACH || k * WORKGROUP + lane < params.channels;
}

// ---- forward_rows: x -> y ------------------------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn forward_rows(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = (group.x + group.y * groups.x) * ROWS;
    for (var row = start; row < min(start + ROWS, params.rows); row++) {
        let base = row * params.channels;
        var v: Row;
        for (var k = 0u; k < EACH; k++) {
            v[k] = x[base + element(k, lane)];
        }
        var largest = v[0];
        for (var k = 1u; k < EACH; k++) {
            largest = max(largest, v[k]);
        }
        largest = workgroup_max(largest, lane);
        var sum = 0.0;
        for (var k = 0u; k < EACH; k++) {
            v[k] = exp(v[k] - largest);
            sum += select(0.0, v[k], exists(k, lane));
        }
        let scale = 1.0 / workgroup_sum2(vec2(sum, 0.0), lane).x;
        for (var k = 0u; k < EACH; k++) {
            if exists(k, lane) {
                y[base + k * WORKGROUP + lane] = v[k] * scale;
            }
        }
    }
}

// ---- backward_rows: probability, dy -> dx --------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn backward_rows(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = (group.x + group.y * groups.x) * ROWS;
    for (var row = start; row < min(start + ROWS, params.rows); row++) {
        let base = row * params.channels;
        var p: Row;
        var d: Row;
        var sum = 0.0;
        for (var k = 0u; k < EACH; k++) {
            p[k] = probability[base + element(k, lane)];
            d[k] = dy[base + element(k, lane)];
            sum += select(0.0, p[k] * d[k], exists(k, lane));
        }
        let total = workgroup_sum2(vec2(sum, 0.0), lane).x;
        for (var k = 0u; k < EACH; k++) {
            if exists(k, lane) {
                dx[base + k * WORKGROUP + lane] = p[k] * (d[k] - total);
            }
        }
    }
}
