// How much each pixel is in the mask of each query, for semantic inference.
//
//   s[q, Y, X] = sigmoid(bilinear resize of masks[q] to four times its sides)      rows and columns of it
//
// Host: src/ops/mask_scores.rs        Test: kernels-tests/mask_scores.rs        Weights: lib/bilinear.wgsl
// B = batch, Q = queries, h, w = size of the masks, R, W = rows and columns that are wanted.

struct Params {
    maps: u32,  // queries of all images
    height: u32,
    width: u32,
    first_row: u32,
    rows: u32,
    columns: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> masks: array<f32>;    // [B, Q, h, w]
@group(0) @binding(2) var<storage, read_write> s: array<f32>;  // [B, Q, R, W]

const STRIDE: u32 = 4u;

// ---- membership: masks -> s ----------------------------------------------------------------------
// One invocation per element.

@compute @workgroup_size(64)
fn membership(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = (group.x + group.y * groups.x) * 64u + lane;
    let row = id / params.columns;
    let map = row / params.rows;
    if map >= params.maps {
        return;
    }
    let t = taps(params.first_row + row % params.rows, params.height, STRIDE * params.height);
    let u = taps(id % params.columns, params.width, STRIDE * params.width);
    let near = (map * params.height + t.near) * params.width;
    let far = (map * params.height + t.far) * params.width;
    let v = t.near_weight * (u.near_weight * masks[near + u.near] + u.far_weight * masks[near + u.far])
        + t.far_weight * (u.near_weight * masks[far + u.near] + u.far_weight * masks[far + u.far]);
    s[id] = 1.0 / (1.0 + exp(-v));
}

