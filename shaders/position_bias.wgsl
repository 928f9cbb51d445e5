// The bias of every pair of tokens in a window, looked up by their relative position.
//
//   row(a, b) = (y_a - y_b + M - 1) (2 M - 1) + x_a - x_b + M - 1
//   y[head, b, a] = table[row(a, b), head]
//
// Host: src/ops/window_attention.rs        Test: kernels-tests/window_attention.rs
// M = window side, N = M² tokens; a = query, b = key.

struct Params {
    window_size: u32,
    num_heads: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> table: array<f32>;        // [(2 M - 1)², heads]
@group(0) @binding(2) var<storage, read_write> y: array<f32>;      // [heads, N, N]
@group(0) @binding(3) var<storage, read> dy: array<f32>;           // [heads, N, N]
@group(0) @binding(4) var<storage, read_write> dtable: array<f32>; // [(2 M - 1)², heads]

// ---- forward: table -> y -------------------------------------------------------------------------
// One workgroup per head and key; lanes along the queries.

@compute @workgroup_size(64)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let side = params.window_size;
    let tokens = side * side;
    let id = group.x + group.y * groups.x;
    let head = id / tokens;
    let key = id % tokens;
    if head >= params.num_heads {
        return;
    }
    for (var query = lane; query < tokens; query += 64u) {
        let dy_ = query / side + side - 1u - key / side;
        let dx_ = query % side + side - 1u - key % side;
        y[id * tokens + query] = table[(dy_ * (2u * side - 1u) + dx_) * params.num_heads + head];
    }
}

// ---- backward: dy -> dtable ----------------------------------------------------------------------
// One invocation per entry of the table, which adds up the pairs that look it up, key by key.

@compute @workgroup_size(64)
fn backward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let side = params.window_size;
    let tokens = side * side;
    let span = 2u * side - 1u;
    let entry = (group.x + group.y * groups.x) * 64u + lane;
    if entry >= span * span * params.num_heads {
        return;
    }
    let head = entry % params.num_heads;
    let row = entry / params.num_heads;
    // query = key + offset - (M - 1), both within the window.
    let oy = row / span;
    let ox = row % span;
    let first_y = side - 1u - min(oy, side - 1u);
    let first_x = side - 1u - min(ox, side - 1u);
    let last_y = min(side, 2u * side - 1u - oy);
    let last_x = min(side, 2u * side - 1u - ox);
    var sum = 0.0;
    for (var ky = first_y; ky < last_y; ky++) {
        for (var kx = first_x; kx < last_x; kx++) {
            let key = ky * side + kx;
            let query = (ky + oy - (side - 1u)) * side + kx + ox - (side - 1u);
            sum += dy[(head * tokens + key) * tokens + query];
        }
    }
    dtable[entry] = sum;
}
