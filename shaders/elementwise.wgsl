// Element by element: fill, sum, bias, scale, activations.
//
//   gelu(v) = v Φ(v),  gelu'(v) = Φ(v) + v φ(v)      Φ, φ: the standard normal
//   relu(v) = max(v, 0)
//
// Host: src/ops/elementwise.rs        Test: kernels-tests/elementwise.rs
// L = elements. One invocation per four elements: an invocation handles base + 64 i.

struct Params {
    len: u32,
    value: f32,
    period: u32,  // elements of other, which repeats
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;         // [L]
@group(0) @binding(2) var<storage, read> other: array<f32>;     // [L], or [period]
@group(0) @binding(3) var<storage, read> dy: array<f32>;        // [L]
@group(0) @binding(4) var<storage, read_write> y: array<f32>;   // [L]
@group(0) @binding(5) var<storage, read_write> dx: array<f32>;  // [L]

const WORKGROUP: u32 = 64u;
const PER_GROUP: u32 = 256u;

// ---- fill: -> y = value --------------------------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn fill(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = (group.x + group.y * groups.x) * PER_GROUP;
    let end = min(start + PER_GROUP, params.len);
    for (var i = start + lane; i < end; i += WORKGROUP) {
        y[i] = params.value;
    }
}

// ---- sum: x, other -> y = x + value other --------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn sum(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = (group.x + group.y * groups.x) * PER_GROUP;
    let end = min(start + PER_GROUP, params.len);
    for (var i = start + lane; i < end; i += WORKGROUP) {
        y[i] = x[i] + params.value * other[i];
    }
}

// ---- add_bias: x, other -> y = x + other, over and over ------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn add_bias(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = (group.x + group.y * groups.x) * PER_GROUP;
    let end = min(start + PER_GROUP, params.len);
    for (var i = start + lane; i < end; i += WORKGROUP) {
        y[i] = x[i] + other[i % params.period];
    }
}

// ---- accumulate: x -> y += value x ---------------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn accumulate(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = (group.x + group.y * groups.x) * PER_GROUP;
    let end = min(start + PER_GROUP, params.len);
    for (var i = start + lane; i < end; i += WORKGROUP) {
        y[i] += params.value * x[i];
    }
}

// ---- scale: x -> y = value x ---------------------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn scale(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = (group.x + group.y * groups.x) * PER_GROUP;
    let end = min(start + PER_GROUP, params.len);
    for (var i = start + lane; i < end; i += WORKGROUP) {
        y[i] = params.value * x[i];
    }
}

// ---- gelu_forward: x -> y ------------------------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn gelu_forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = (group.x + group.y * groups.x) * PER_GROUP;
    let end = min(start + PER_GROUP, params.len);
    for (var i = start + lane; i < end; i += WORKGROUP) {
        y[i] = gelu(x[i]);
    }
}

// ---- gelu_backward: x, dy -> dx ------------------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn gelu_backward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = (group.x + group.y * groups.x) * PER_GROUP;
    let end = min(start + PER_GROUP, params.len);
    for (var i = start + lane; i < end; i += WORKGROUP) {
        dx[i] = dy[i] * gelu_slope(x[i]);
    }
}

// ---- relu_forward: x -> y ------------------------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn relu_forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = (group.x + group.y * groups.x) * PER_GROUP;
    let end = min(start + PER_GROUP, params.len);
    for (var i = start + lane; i < end; i += WORKGROUP) {
        // Not max(), which hides a NaN.
        y[i] = select(x[i], 0.0, x[i] < 0.0);
    }
}

// ---- relu_backward: x, dy -> dx ------------------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn relu_backward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = (group.x + group.y * groups.x) * PER_GROUP;
    let end = min(start + PER_GROUP, params.len);
    for (var i = start + lane; i < end; i += WORKGROUP) {
        dx[i] = select(0.0, dy[i], x[i] > 0.0);
    }
}
