// A residual branch with a learned gate, forward and backward.
//
//   y = x + gamma update
//   dx = dy,  dupdate = gamma dy,  dgamma = Σ dy update
//
// Host: src/ops/semantic_attention.rs        Test: kernels-tests/semantic_attention.rs
// L = elements. A workgroup takes 4096 of them.

struct Params {
    len: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;               // [L]
@group(0) @binding(2) var<storage, read> update: array<f32>;          // [L]
@group(0) @binding(3) var<storage, read> gamma: array<f32>;           // [1]
@group(0) @binding(4) var<storage, read_write> y: array<f32>;         // [L]
@group(0) @binding(5) var<storage, read> dy: array<f32>;              // [L]
@group(0) @binding(6) var<storage, read_write> dupdate: array<f32>;   // [L]
@group(0) @binding(7) var<storage, read_write> parts: array<f32>;     // [groups, 64] of dgamma

const WORKGROUP: u32 = 64u;
const PER_GROUP: u32 = 4096u;

// ---- forward: x, update, gamma -> y --------------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = (group.x + group.y * groups.x) * PER_GROUP;
    let end = min(start + PER_GROUP, params.len);
    for (var i = start + lane; i < end; i += WORKGROUP) {
        y[i] = x[i] + gamma[0] * update[i];
    }
}

// ---- backward: update, gamma, dy -> dupdate, parts -----------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn backward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = group.x + group.y * groups.x;
    let start = id * PER_GROUP;
    if start >= params.len {
        return;
    }
    let end = min(start + PER_GROUP, params.len);
    var sum = 0.0;
    for (var i = start + lane; i < end; i += WORKGROUP) {
        dupdate[i] = gamma[0] * dy[i];
        sum += dy[i] * update[i];
    }
    parts[id * WORKGROUP + lane] = sum;
}
