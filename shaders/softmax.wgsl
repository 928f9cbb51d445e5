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
