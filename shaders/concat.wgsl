// Tensors joined along an axis, and parts of one.
//
//   y[o, start_y + i] = x[o, start_x + i]
//
// Host: src/ops/concat.rs        Test: kernels-tests/concat.rs
// O = all axes before the one in question, flattened; a row is that axis with all that is behind it.

struct Params {
    len: u32,
    part: u32,  // elements of a row that are copied
    row_x: u32,
    row_y: u32,
    start_x: u32,
    start_y: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;        // [O, row_x]
@group(0) @binding(2) var<storage, read_write> y: array<f32>;  // [O, row_y]

const WORKGROUP: u32 = 64u;

// ---- copy: x -> y --------------------------------------------------------------------------------
// One invocation per element that is copied.

@compute @workgroup_size(WORKGROUP)
fn copy(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = (group.x + group.y * groups.x) * WORKGROUP + lane;
    if id >= params.len {
        return;
    }
    let outer = id / params.part;
    let i = id - outer * params.part;
    y[outer * params.row_y + params.start_y + i] = x[outer * params.row_x + params.start_x + i];
}
