// Which places of a map a query may attend to: where its mask, resized, is not below one half.
//
//   seen[query, place] = sigmoid(resize(logits[query])[place]) >= 1/2,  or everything if that is nothing
//
// Host: src/ops/attention.rs        Test: kernels-tests/attention.rs        Weights: lib/bilinear.wgsl
// R = queries of all images, h, w = size of the masks, N = places of the map, W = N / 32 rounded up.

struct Params {
    rows: u32,
    height: u32,
    width: u32,
    goal_height: u32,
    goal_width: u32,
    words_per_row: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;       // [R, h, w]
@group(0) @binding(2) var<storage, read_write> words: array<u32>;  // [R, W] of bits

// f32 has sigmoid(v) = 1/2 for what is not further below 0 than this.
const HALF: f32 = -5.9604645e-8;

// ---- bits: logits -> words -----------------------------------------------------------------------
// One invocation per word.

@compute @workgroup_size(64)
fn bits(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = (group.x + group.y * groups.x) * 64u + lane;
    let row = id / params.words_per_row;
    if row >= params.rows {
        return;
    }
    let places = params.goal_height * params.goal_width;
    let first = id % params.words_per_row * 32u;
    let base = row * params.height * params.width;
    var word = 0u;
    for (var i = 0u; i < min(32u, places - first); i++) {
        let t = taps((first + i) / params.goal_width, params.height, params.goal_height);
        let u = taps((first + i) % params.goal_width, params.width, params.goal_width);
        let near = base + t.near * params.width;
        let far = base + t.far * params.width;
        let v = t.near_weight * (u.near_weight * logits[near + u.near] + u.far_weight * logits[near + u.far])
            + t.far_weight * (u.near_weight * logits[far + u.near] + u.far_weight * logits[far + u.far]);
        word |= select(0u, 1u, v >= HALF) << i;
    }
    words[id] = word;
}

// ---- open: words -> words ------------------------------------------------------------------------
// One invocation per query.

@compute @workgroup_size(64)
fn open(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = (group.x + group.y * groups.x) * 64u + lane;
    if row >= params.rows {
        return;
    }
    let base = row * params.words_per_row;
    var any = 0u;
    for (var i = 0u; i < params.words_per_row; i++) {
        any |= words[base + i];
    }
    if any == 0u {
        for (var i = 0u; i < params.words_per_row; i++) {
            words[base + i] = 0xffffffffu;
        }
    }
}

