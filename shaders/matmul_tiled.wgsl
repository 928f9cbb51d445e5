// Matrix products for GPUs: tiles of a and b pass through workgroup memory.
//
//   c[m, n] = alpha Σ_k a[m, k] b[k, n]   for every matrix of a batch
//   and with an epilogue:  + bias[n],  gelu(+ bias[n]),  residual[m, n] + keep[sample] (+ bias[n])
//
// Host: src/ops/matmul.rs        Test: kernels-tests/matmul.rs        For CPUs: matmul_packed.wgsl
// M = rows, N = cols, K = inner. One workgroup per 64 × 64 tile of c, one invocation per 8 × 8 of it:
// four neighbours and the four 32 beyond, in both directions, so that eight lanes read neighbouring
// vectors of workgroup memory, four of them for 64 products. In mixed precision a, b and what GELU is taken
// of and makes have 16 bits; sums have 32.

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

const TILE: u32 = 64u;
const DEPTH: u32 = 16u;
const SIDE: u32 = 8u;

var<workgroup> tile_a: array<vec4<f32>, 272>;  // [DEPTH][TILE / 4 + 1], padded against bank conflicts
var<workgroup> tile_b: array<vec4<f32>, 272>;
const PITCH: u32 = 17u;

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
            if row < params.rows && col < params.cols {
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
            if row < params.rows && col < params.cols {
                finish_bias(row, col, place.matrix, tile[i][j]);
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
            if row < params.rows && col < params.cols {
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
            if row < params.rows && col < params.cols {
                finish_residual(row, col, tile[i][j]);
            }
        }
    }
}

// ---- shared --------------------------------------------------------------------------------------

struct Place {
    row: u32,
    col: u32,
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
    let per_split = (params.inner + params.splits - 1u) / params.splits;
    var place: Place;
    place.row = id / col_tiles * TILE;
    place.col = id % col_tiles * TILE;
    place.matrix = group.z;
    place.a = params.a_offset + batch * params.a_batch;
    place.b = params.b_offset + batch * params.b_batch;
    place.start = min(split * per_split, params.inner);
    place.end = min(place.start + per_split, params.inner);
    return place;
}

// Which of a tile's rows or columns is number i of the eight that invocation `place` has along it.
fn spread(place: u32, i: u32) -> u32 {
    return i / 4u * 32u + place * 4u + i % 4u;
}

// Eight rows of eight columns, each row as two vectors.
fn accumulate_tile(place: Place, lane: u32) -> array<vec4<f32>, 16> {
    var tile = array<vec4<f32>, 16>();
    let y = lane / SIDE;
    let x = lane % SIDE;
    for (var k0 = place.start; k0 < place.end; k0 += DEPTH) {
        for (var i = 0u; i < 4u; i++) {
            let item = lane + 64u * i;
            // Lanes run along whichever direction is contiguous in memory.
            let along_k = vec2(item % DEPTH, item / DEPTH);
            let across = vec2(item / (TILE / 4u), item % (TILE / 4u));
            let at_a = select(across, along_k, params.a_inner == 1u);
            let at_b = select(across, along_k, params.b_inner == 1u);
            tile_a[at_a.x * PITCH + at_a.y] = load_a(place, place.row + 4u * at_a.y, k0 + at_a.x);
            tile_b[at_b.x * PITCH + at_b.y] = load_b(place, k0 + at_b.x, place.col + 4u * at_b.y);
        }
        workgroupBarrier();
        for (var k = 0u; k < DEPTH; k++) {
            let rows = array<vec4<f32>, 2>(tile_a[k * PITCH + y], tile_a[k * PITCH + 8u + y]);
            let left = tile_b[k * PITCH + x];
            let right = tile_b[k * PITCH + 8u + x];
            for (var i = 0u; i < 8u; i++) {
                tile[2u * i] = fma(vec4(rows[i / 4u][i % 4u]), left, tile[2u * i]);
                tile[2u * i + 1u] = fma(vec4(rows[i / 4u][i % 4u]), right, tile[2u * i + 1u]);
            }
        }
        workgroupBarrier();
    }
    return tile;
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
