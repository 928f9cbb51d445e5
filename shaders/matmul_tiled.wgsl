// Matrix products for GPUs: tiles of a and b pass through workgroup memory.
//
//   c[m, n] = alpha Σ_k a[m, k] b[k, n]   for every matrix of a batch
//   and with an epilogue:  + bias[n],  gelu(+ bias[n]),  residual[m, n] + keep[sample] (+ bias[n])
//
// Host: src/ops/matmul.rs        Test: kernels-tests/matmul.rs        For CPUs: matmul_packed.wgsl
// M = rows, N = cols, K = inner. One workgroup per 64 × 64 of c: see lib/tiles.wgsl. In mixed precision a, b and
// what GELU is taken of and makes have 16 bits; sums have 32.

// Whether the matrices hold a whole tile and K is a multiple of DEPTH: no tile then reads beyond them, the last of a
// row or column being moved back over its neighbour.
override INSIDE: bool = false;

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
@group(0) @binding(1) var<storage, read> a: array<Real>;                   // strides of Params
@group(0) @binding(2) var<storage, read> b: array<Real>;                   // strides of Params
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
    for (var i = 0u; i < 16u; i++) {
        for (var j = 0u; j < 4u; j++) {
            let row = place.row + spread(lane / SIDE, i / 2u);
            let col = place.col + spread(lane % SIDE, i % 2u * 4u + j);
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
    for (var i = 0u; i < 16u; i++) {
        for (var j = 0u; j < 4u; j++) {
            let row = place.row + spread(lane / SIDE, i / 2u);
            let col = place.col + spread(lane % SIDE, i % 2u * 4u + j);
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
    for (var i = 0u; i < 16u; i++) {
        for (var j = 0u; j < 4u; j++) {
            let row = place.row + spread(lane / SIDE, i / 2u);
            let col = place.col + spread(lane % SIDE, i % 2u * 4u + j);
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
    for (var i = 0u; i < 16u; i++) {
        for (var j = 0u; j < 4u; j++) {
            let row = place.row + spread(lane / SIDE, i / 2u);
            let col = place.col + spread(lane % SIDE, i % 2u * 4u + j);
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
    for (var i = 0u; i < 16u; i++) {
        for (var j = 0u; j < 4u; j++) {
            let row = place.row + spread(lane / SIDE, i / 2u);
            let col = place.col + spread(lane % SIDE, i % 2u * 4u + j);
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
    if INSIDE {
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
    return there && (!INSIDE || row >= place.first_row && col >= place.first_col);
}

fn accumulate_tile(place: Place, lane: u32) -> Sums {
    var sums: Sums;
    for (var k = place.start; k < place.end; k += DEPTH) {
        fill_a(place, k, lane);
        fill_b(place, k, lane);
        workgroupBarrier();
        multiply_tiles(&sums, lane);
        workgroupBarrier();
    }
    return sums;
}

// Inside, places of a tile are the first one plus what is the same for all lanes, so that little more than loads is
// left in the loop.
fn fill_a(place: Place, k: u32, lane: u32) {
    let share = share(lane, params.a_inner == 1u);
    if INSIDE {
        let start = place.a + (k + share.k) * params.a_inner + (place.row + 4u * share.four) * params.a_row;
        let step = select(4u * params.a_inner, 16u * params.a_row, share.along_k);
        for (var i = 0u; i < 4u; i++) {
            let at = start + i * step;
            tile_a[share.to + i * share.step] = vec4(
                f32(a[at]),
                f32(a[at + params.a_row]),
                f32(a[at + 2u * params.a_row]),
                f32(a[at + 3u * params.a_row]));
        }
        return;
    }
    for (var i = 0u; i < 4u; i++) {
        let at = k + share.k + select(4u * i, 0u, share.along_k);
        let row = place.row + 4u * share.four + select(0u, 16u * i, share.along_k);
        tile_a[share.to + i * share.step] = load_a(place, row, at);
    }
}

fn fill_b(place: Place, k: u32, lane: u32) {
    let share = share(lane, params.b_inner == 1u);
    if INSIDE {
        let start = place.b + (k + share.k) * params.b_inner + (place.col + 4u * share.four) * params.b_col;
        let step = select(4u * params.b_inner, 16u * params.b_col, share.along_k);
        for (var i = 0u; i < 4u; i++) {
            let at = start + i * step;
            tile_b[share.to + i * share.step] = vec4(
                f32(b[at]),
                f32(b[at + params.b_col]),
                f32(b[at + 2u * params.b_col]),
                f32(b[at + 3u * params.b_col]));
        }
        return;
    }
    for (var i = 0u; i < 4u; i++) {
        let at = k + share.k + select(4u * i, 0u, share.along_k);
        let col = place.col + 4u * share.four + select(0u, 16u * i, share.along_k);
        tile_b[share.to + i * share.step] = load_b(place, at, col);
    }
}

// Four rows, or columns, at one k; zero beyond the matrix, so that edge tiles need no branch of their own.
// What is read there instead is the last that there is: without branches loads do not wait for each other.
fn load_a(place: Place, row: u32, k: u32) -> vec4<f32> {
    let at = place.a + min(k, place.end - 1u) * params.a_inner;
    let rows = row + vec4(0u, 1u, 2u, 3u);
    let from_row = at + min(rows, vec4(params.rows - 1u)) * params.a_row;
    let v = vec4<f32>(vec4(a[from_row.x], a[from_row.y], a[from_row.z], a[from_row.w]));
    return select(vec4(0.0), v, (rows < vec4(params.rows)) & vec4(k < place.end));
}

fn load_b(place: Place, k: u32, col: u32) -> vec4<f32> {
    let at = place.b + min(k, place.end - 1u) * params.b_inner;
    let cols = col + vec4(0u, 1u, 2u, 3u);
    let from_col = at + min(cols, vec4(params.cols - 1u)) * params.b_col;
    let v = vec4<f32>(vec4(b[from_col.x], b[from_col.y], b[from_col.z], b[from_col.w]));
    return select(vec4(0.0), v, (cols < vec4(params.cols)) & vec4(k < place.end));
}
