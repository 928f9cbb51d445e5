// Matrix products for GPUs: tiles of a and b pass through workgroup memory.
//
//   c[m, n] = alpha Σ_k a[m, k] b[k, n]   for every matrix of a batch
//   and with an epilogue:  + bias[n],  gelu(+ bias[n]),  residual[m, n] + keep[sample] (+ bias[n])
//
// Host: src/ops/matmul.rs        Test: kernels-tests/matmul.rs        For CPUs: matmul_packed.wgsl
// M = rows, N = cols, K = inner. One workgroup per 64 × 64 tile of c, one invocation per 4 × 4 of
// it: rows 16 apart and columns 16 apart, so that lanes read neighbouring words of workgroup memory.

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
@group(0) @binding(1) var<storage, read> a: array<f32>;                    // strides of Params
@group(0) @binding(2) var<storage, read> b: array<f32>;                    // strides of Params
@group(0) @binding(3) var<storage, read> bias: array<f32>;                 // [N]
@group(0) @binding(4) var<storage, read> residual: array<f32>;             // [M, N]
@group(0) @binding(5) var<storage, read> keep: array<f32>;                 // [samples]
@group(0) @binding(6) var<storage, read_write> c: array<f32>;              // strides of Params
@group(0) @binding(7) var<storage, read_write> preactivation: array<f32>;  // [M, N]

const TILE: u32 = 64u;
const DEPTH: u32 = 16u;
const SIDE: u32 = 16u;

var<workgroup> tile_a: array<f32, 1088>;  // [DEPTH][TILE + 4], padded against bank conflicts
var<workgroup> tile_b: array<f32, 1088>;
const PITCH: u32 = 68u;

// ---- product: a, b -> c -------------------------------------------------------------------------

@compute @workgroup_size(256)
fn product(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group, groups);
    let tile = accumulate_tile(place, lane);
    for (var i = 0u; i < 4u; i++) {
        for (var j = 0u; j < 4u; j++) {
            let row = place.row + lane / SIDE + SIDE * i;
            let col = place.col + lane % SIDE + SIDE * j;
            if row < params.rows && col < params.cols {
                finish_plain(row, col, place.matrix, tile[i][j]);
            }
        }
    }
}

// ---- product_bias: a, b, bias -> c --------------------------------------------------------------

@compute @workgroup_size(256)
fn product_bias(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group, groups);
    let tile = accumulate_tile(place, lane);
    for (var i = 0u; i < 4u; i++) {
        for (var j = 0u; j < 4u; j++) {
            let row = place.row + lane / SIDE + SIDE * i;
            let col = place.col + lane % SIDE + SIDE * j;
            if row < params.rows && col < params.cols {
                finish_bias(row, col, place.matrix, tile[i][j]);
            }
        }
    }
}

// ---- product_gelu: a, b, bias -> c, preactivation -----------------------------------------------

@compute @workgroup_size(256)
fn product_gelu(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group, groups);
    let tile = accumulate_tile(place, lane);
    for (var i = 0u; i < 4u; i++) {
        for (var j = 0u; j < 4u; j++) {
            let row = place.row + lane / SIDE + SIDE * i;
            let col = place.col + lane % SIDE + SIDE * j;
            if row < params.rows && col < params.cols {
                finish_gelu(row, col, tile[i][j]);
            }
        }
    }
}

// ---- product_residual: a, b, bias, residual, keep -> c ------------------------------------------

@compute @workgroup_size(256)
fn product_residual(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group, groups);
    let tile = accumulate_tile(place, lane);
    for (var i = 0u; i < 4u; i++) {
        for (var j = 0u; j < 4u; j++) {
            let row = place.row + lane / SIDE + SIDE * i;
            let col = place.col + lane % SIDE + SIDE * j;
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

fn accumulate_tile(place: Place, lane: u32) -> array<vec4<f32>, 4> {
    var t0 = vec4(0.0);
    var t1 = vec4(0.0);
    var t2 = vec4(0.0);
    var t3 = vec4(0.0);
    let y = lane / SIDE;
    let x = lane % SIDE;
    for (var k0 = place.start; k0 < place.end; k0 += DEPTH) {
        for (var i = 0u; i < 4u; i++) {
            let item = lane + 256u * i;
            // Lanes run along whichever direction is contiguous in memory.
            let along_k = vec2(item % DEPTH, item / DEPTH);
            let across = vec2(item / TILE, item % TILE);
            let at_a = select(across, along_k, params.a_inner == 1u);
            let at_b = select(across, along_k, params.b_inner == 1u);
            tile_a[at_a.x * PITCH + at_a.y] = load_a(place, place.row + at_a.y, k0 + at_a.x);
            tile_b[at_b.x * PITCH + at_b.y] = load_b(place, k0 + at_b.x, place.col + at_b.y);
        }
        workgroupBarrier();
        for (var k = 0u; k < DEPTH; k++) {
            let at = k * PITCH;
            let v = vec4(tile_b[at + x], tile_b[at + x + 16u], tile_b[at + x + 32u], tile_b[at + x + 48u]);
            t0 = fma(vec4(tile_a[at + y]), v, t0);
            t1 = fma(vec4(tile_a[at + y + 16u]), v, t1);
            t2 = fma(vec4(tile_a[at + y + 32u]), v, t2);
            t3 = fma(vec4(tile_a[at + y + 48u]), v, t3);
        }
        workgroupBarrier();
    }
    return array<vec4<f32>, 4>(t0, t1, t2, t3);
}

// Elements, or zero beyond the matrix, so that edge tiles need no branch of their own.
fn load_a(place: Place, row: u32, k: u32) -> f32 {
    if row >= params.rows || k >= place.end {
        return 0.0;
    }
    return a[place.a + row * params.a_row + k * params.a_inner];
}

fn load_b(place: Place, k: u32, col: u32) -> f32 {
    if col >= params.cols || k >= place.end {
        return 0.0;
    }
    return b[place.b + k * params.b_inner + col * params.b_col];
}
