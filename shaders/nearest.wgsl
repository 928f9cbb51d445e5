// Nearest-neighbour resizing of the two middle axes plus another map, forward and backward.
//
//   y[I, J]  = other[I, J] + x[I h / H, J w / W]        in whole numbers, rounded down
//   dx[i, j] = sum of dy over the pixels that read x[i, j]
//
// Host: src/ops/nearest.rs        Test: kernels-tests/nearest.rs
// B = batch, h, w = size of x, H, W = size of y, V = vectors of four channels. One invocation per vector
// of the result; the backward pass gathers, in a fixed order.

struct Params {
    batch: u32,
    height: u32,
    width: u32,
    goal_height: u32,
    goal_width: u32,
    vectors: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;        // [B, h, w, V]
@group(0) @binding(2) var<storage, read> other: array<vec4<f32>>;    // [B, H, W, V]
@group(0) @binding(3) var<storage, read> dy: array<vec4<f32>>;       // [B, H, W, V]
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;  // [B, H, W, V]
@group(0) @binding(5) var<storage, read_write> dx: array<vec4<f32>>; // [B, h, w, V]

const WORKGROUP: u32 = 64u;

// ---- forward_add: x, other -> y ------------------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn forward_add(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = (group.x + group.y * groups.x) * WORKGROUP + lane;
    let pixel = id / params.vectors;
    let row = pixel / params.goal_width;
    let image = row / params.goal_height;
    if image >= params.batch {
        return;
    }
    let i = (row - image * params.goal_height) * params.height / params.goal_height;
    let j = (pixel - row * params.goal_width) * params.width / params.goal_width;
    let from_pixel = (image * params.height + i) * params.width + j;
    y[id] = other[id] + x[from_pixel * params.vectors + id % params.vectors];
}

// ---- backward: dy -> dx --------------------------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn backward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = (group.x + group.y * groups.x) * WORKGROUP + lane;
    let pixel = id / params.vectors;
    let row = pixel / params.width;
    let image = row / params.height;
    if image >= params.batch {
        return;
    }
    let rows = readers(row - image * params.height, params.height, params.goal_height);
    let columns = readers(pixel - row * params.width, params.width, params.goal_width);
    var sum = vec4(0.0);
    for (var i = rows.x; i < rows.y; i++) {
        for (var j = columns.x; j < columns.y; j++) {
            let reader = (image * params.goal_height + i) * params.goal_width + j;
            sum += dy[reader * params.vectors + id % params.vectors];
        }
    }
    dx[id] = sum;
}

// The places that read place i: from x to before y.
fn readers(i: u32, size: u32, goal: u32) -> vec2<u32> {
    return (vec2(i, i + 1u) * goal + size - 1u) / size;
}
