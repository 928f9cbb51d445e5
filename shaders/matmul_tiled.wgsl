// Matrix products for GPUs: tiles of a and b pass through workgroup memory.
//
//   c[m, n] = alpha Σ_k a[m, k] b[k, n]   for every matrix of a batch
//   and with an epilogue:  + bias[n],  gelu(+ bias[n]),  residual[m, n] + keep[sample] (+ bias[n])
//
// Host: src/ops/matmul_tiled.rs        Test: kernels-tests/matmul.rs        For CPUs: matmul_packed.wgsl
// M = rows, N = cols, K = inner. One workgroup per TILE × TILE of c: see lib/tiles.wgsl. How a and b are read, and what
// becomes of them on the way, is in lib/words.wgsl or lib/fours.wgsl. In mixed precision a, b and what GELU is taken of
// and makes have 16 bits; sums have 32.

struct Params {
    rows: u32,
    cols: u32,
    inner: u32,
    splits: u32,
    a_offset: u32,
    a_batch: u32,
    a_row: u32,
    a_inner: u32,
    b_offset: u32,
    b_batch: u32,
    b_inner: u32,
    b_col: u32,
    c_offset: u32,
    c_batch: u32,
    c_row: u32,
    strip: u32,
    a_strip: u32,
    accumulate: u32,
    rows_per_sample: u32,
    alpha: f32,
    first_group: u32,  // of a part of the dispatch
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(3) var<storage, read> bias: array<f32>;                 // [N]
@group(0) @binding(4) var<storage, read> residual: array<f32>;             // [M, N]
@group(0) @binding(5) var<storage, read> keep: array<f32>;                 // [samples]
@group(0) @binding(6) var<storage, read_write> c: array<f32>;              // strides of Params
@group(0) @binding(7) var<storage, read_write> preactivation: array<Real>; // [M, N]
@group(0) @binding(8) var<storage, read_write> activation: array<Real>;    // [M, N]

// ---- product: a, b -> c -------------------------------------------------------------------------

@compute @workgroup_size(64)
fn product(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group, groups);
    let tile = accumulate_tile(place, lane);
    for (var i = 0u; i < EACH * VECTORS; i++) {
        for (var j = 0u; j < 4u; j++) {
            let row = place.row + spread(lane / SIDE, i / VECTORS);
            let col = place.col + spread(lane % SIDE, i % VECTORS * 4u + j);
            if is_ours(place, row, col) {
                finish_plain(row, col, place.matrix, tile[i][j]);
            }
        }
    }
}

// ---- product_bias: a, b, bias -> c --------------------------------------------------------------

@compute @workgroup_size(64)
fn product_bias(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group, groups);
    let tile = accumulate_tile(place, lane);
    for (var i = 0u; i < EACH * VECTORS; i++) {
        for (var j = 0u; j < 4u; j++) {
            let row = place.row + spread(lane / SIDE, i / VECTORS);
            let col = place.col + spread(lane % SIDE, i % VECTORS * 4u + j);
            if is_ours(place, row, col) {
                finish_bias(row, col, place.matrix, tile[i][j]);
            }
        }
    }
}

// ---- product_operand: a, b, bias -> activation -----------------------------------------------------------

@compute @workgroup_size(64)
fn product_operand(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group, groups);
    let tile = accumulate_tile(place, lane);
    for (var i = 0u; i < EACH * VECTORS; i++) {
        for (var j = 0u; j < 4u; j++) {
            let row = place.row + spread(lane / SIDE, i / VECTORS);
            let col = place.col + spread(lane % SIDE, i % VECTORS * 4u + j);
            if is_ours(place, row, col) {
                finish_operand(row, col, tile[i][j]);
            }
        }
    }
}

// ---- product_gelu: a, b, bias -> activation, preactivation -----------------------------------------------

@compute @workgroup_size(64)
fn product_gelu(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group, groups);
    let tile = accumulate_tile(place, lane);
    for (var i = 0u; i < EACH * VECTORS; i++) {
        for (var j = 0u; j < 4u; j++) {
            let row = place.row + spread(lane / SIDE, i / VECTORS);
            let col = place.col + spread(lane % SIDE, i % VECTORS * 4u + j);
            if is_ours(place, row, col) {
                finish_gelu(row, col, tile[i][j]);
            }
        }
    }
}

// ---- product_residual: a, b, bias, residual, keep -> c ------------------------------------------

@compute @workgroup_size(64)
fn product_residual(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group, groups);
    let tile = accumulate_tile(place, lane);
    for (var i = 0u; i < EACH * VECTORS; i++) {
        for (var j = 0u; j < 4u; j++) {
            let row = place.row + spread(lane / SIDE, i / VECTORS);
            let col = place.col + spread(lane % SIDE, i % VECTORS * 4u + j);
            if is_ours(place, row, col) {
                finish_residual(row, col, tile[i][j]);
            }
        }
    }
}

// ---- shared --------------------------------------------------------------------------------------

struct Place {
    row: u32,
    col: u32,
    first_row: u32,  // that is to be stored, where a tile was moved back
    first_col: u32,
    matrix: u32,  // of the output; the split counts
    a: u32,       // offset of the matrix in a
    b: u32,       // offset of the matrix in b
    start: u32,   // of the split, along k
    end: u32,
}

fn locate(group: vec3<u32>, groups: vec3<u32>) -> Place {
    let id = params.first_group + group.x + group.y * groups.x;
    let col_tiles = (params.cols + TILE - 1u) / TILE;
    let batch = group.z / params.splits;
    let split = group.z % params.splits;
    let per_split = (params.inner + params.splits * DEPTH - 1u) / (params.splits * DEPTH) * DEPTH;
    var place: Place;
    place.first_row = id / col_tiles * TILE;
    place.first_col = id % col_tiles * TILE;
    place.row = place.first_row;
    place.col = place.first_col;
    // Where a matrix holds a whole tile, the last of a row or column is moved back over its neighbour, so that none
    // reads beyond it.
    if WHOLE {
        place.row = min(place.row, params.rows - TILE);
        place.col = min(place.col, params.cols - TILE);
    }
    place.matrix = group.z;
    place.a = params.a_offset + batch * params.a_batch;
    place.b = params.b_offset + batch * params.b_batch;
    place.start = min(split * per_split, params.inner);
    place.end = min(place.start + per_split, params.inner);
    return place;
}

fn is_ours(place: Place, row: u32, col: u32) -> bool {
    let there = row < params.rows && col < params.cols;
    return there && (!WHOLE || row >= place.first_row && col >= place.first_col);
}
