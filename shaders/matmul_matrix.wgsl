// Matrix products by the matrix units of a GPU: operands of 16 bits, sums of 32.
//
//   c[m, n] = alpha Σ_k a[m, k] b[k, n]   for every matrix of a batch
//   and with an epilogue:  + bias[n],  gelu(+ bias[n]),  residual[m, n] + keep[sample] (+ bias[n])
//
// Host: src/ops/matmul_matrix.rs        Test: kernels-tests/mixed.rs
// M = rows, N = cols, K = inner, all multiples of SIDE. A workgroup is a subgroup, and has 4 × 2 matrices
// of SIDE × SIDE of c, which it reads from where a and b lie; what of them is beyond the last row or column
// is not stored. Sums pass through workgroup memory to the epilogue, as only memory tells which lane has
// which of their elements.

override WORKGROUP: u32 = 32u;
// Whether rows are contiguous, else columns are.
override ROWS_OF_A: bool = true;
override ROWS_OF_B: bool = true;

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
@group(0) @binding(1) var<storage, read> a: array<Real>;                    // strides of Params
@group(0) @binding(2) var<storage, read> b: array<Real>;                    // strides of Params
@group(0) @binding(3) var<storage, read> bias: array<f32>;                  // [N]
@group(0) @binding(4) var<storage, read> residual: array<f32>;              // [M, N]
@group(0) @binding(5) var<storage, read> keep: array<f32>;                  // [samples]
@group(0) @binding(6) var<storage, read_write> c: array<f32>;               // strides of Params
@group(0) @binding(7) var<storage, read_write> preactivation: array<Real>;  // [M, N]
@group(0) @binding(8) var<storage, read_write> activation: array<Real>;     // [M, N]

const HEIGHT: u32 = 4u * SIDE;
const WIDTH: u32 = 2u * SIDE;

var<workgroup> tile: array<f32, HEIGHT * WIDTH>;

// ---- product: a, b -> c --------------------------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn product(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group, groups);
    fill_tile(place);
    for (var i = lane; i < place.height * place.width; i += WORKGROUP) {
        let row = i / place.width;
        let col = i % place.width;
        finish_plain(place.row + row, place.col + col, place.matrix, tile[row * WIDTH + col]);
    }
}

// ---- product_bias: a, b, bias -> c ---------------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn product_bias(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group, groups);
    fill_tile(place);
    for (var i = lane; i < place.height * place.width; i += WORKGROUP) {
        let row = i / place.width;
        let col = i % place.width;
        finish_bias(place.row + row, place.col + col, place.matrix, tile[row * WIDTH + col]);
    }
}

// ---- product_operand: a, b, bias -> activation ---------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn product_operand(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group, groups);
    fill_tile(place);
    for (var i = lane; i < place.height * place.width; i += WORKGROUP) {
        let row = i / place.width;
        let col = i % place.width;
        finish_operand(place.row + row, place.col + col, tile[row * WIDTH + col]);
    }
}

// ---- product_gelu: a, b, bias -> activation, preactivation ---------------------------------------

@compute @workgroup_size(WORKGROUP)
fn product_gelu(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group, groups);
    fill_tile(place);
    for (var i = lane; i < place.height * place.width; i += WORKGROUP) {
        let row = i / place.width;
        let col = i % place.width;
        finish_gelu(place.row + row, place.col + col, tile[row * WIDTH + col]);
    }
}

// ---- product_residual: a, b, bias, residual, keep -> c -------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn product_residual(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group, groups);
    fill_tile(place);
    for (var i = lane; i < place.height * place.width; i += WORKGROUP) {
        let row = i / place.width;
        let col = i % place.width;
        finish_residual(place.row + row, place.col + col, tile[row * WIDTH + col]);
    }
}

// ---- shared --------------------------------------------------------------------------------------

struct Place {
    row: u32,
    col: u32,
    height: u32,  // of the tile, as far as there are rows
    width: u32,
    matrix: u32,  // of the output; the split counts
    a: u32,       // offset of the matrix in a
    b: u32,       // offset of the matrix in b
    start: u32,   // of the split, along k
    end: u32,
}

fn locate(group: vec3<u32>, groups: vec3<u32>) -> Place {
    let id = params.first_group + group.x + group.y * groups.x;
    let col_tiles = (params.cols + WIDTH - 1u) / WIDTH;
    let batch = group.z / params.splits;
    let split = group.z % params.splits;
    let per_split = (params.inner / SIDE + params.splits - 1u) / params.splits * SIDE;
    var place: Place;
    place.row = id / col_tiles * HEIGHT;
    place.col = id % col_tiles * WIDTH;
    // None for workgroups beyond the last.
    place.height = min(HEIGHT, params.rows - min(place.row, params.rows));
    place.width = min(WIDTH, params.cols - place.col);
    place.matrix = group.z;
    place.a = params.a_offset + batch * params.a_batch;
    place.b = params.b_offset + batch * params.b_batch;
    place.start = min(split * per_split, params.inner);
    place.end = min(place.start + per_split, params.inner);
    return place;
}

fn load_a(place: Place, row: u32, k: u32) -> Left {
    // Beyond the last row: the last matrix that there is.
    let start = place.a + min(place.row + row, params.rows - SIDE) * params.a_row + k * params.a_inner;
    if ROWS_OF_A {
        return coopLoadT<Left>(&a[start], params.a_row);
    }
    return coopLoad<Left>(&a[start], params.a_inner);
}

fn load_b(place: Place, k: u32, col: u32) -> Right {
    let start = place.b + k * params.b_inner + min(place.col + col, params.cols - SIDE) * params.b_col;
    if ROWS_OF_B {
        return coopLoadT<Right>(&b[start], params.b_inner);
    }
    return coopLoad<Right>(&b[start], params.b_col);
}

fn fill_tile(place: Place) {
    var c00: Sum;
    var c01: Sum;
    var c10: Sum;
    var c11: Sum;
    var c20: Sum;
    var c21: Sum;
    var c30: Sum;
    var c31: Sum;
    for (var k = place.start; k < place.end; k += SIDE) {
        let b0 = load_b(place, k, 0u);
        let b1 = load_b(place, k, SIDE);
        let a0 = load_a(place, 0u, k);
        c00 = coopMultiplyAdd(a0, b0, c00);
        c01 = coopMultiplyAdd(a0, b1, c01);
        let a1 = load_a(place, SIDE, k);
        c10 = coopMultiplyAdd(a1, b0, c10);
        c11 = coopMultiplyAdd(a1, b1, c11);
        let a2 = load_a(place, 2u * SIDE, k);
        c20 = coopMultiplyAdd(a2, b0, c20);
        c21 = coopMultiplyAdd(a2, b1, c21);
        let a3 = load_a(place, 3u * SIDE, k);
        c30 = coopMultiplyAdd(a3, b0, c30);
        c31 = coopMultiplyAdd(a3, b1, c31);
    }
    coopStoreT(c00, &tile[0], WIDTH);
    coopStoreT(c01, &tile[SIDE], WIDTH);
    coopStoreT(c10, &tile[SIDE * WIDTH], WIDTH);
    coopStoreT(c11, &tile[SIDE * WIDTH + SIDE], WIDTH);
    coopStoreT(c20, &tile[2u * SIDE * WIDTH], WIDTH);
    coopStoreT(c21, &tile[2u * SIDE * WIDTH + SIDE], WIDTH);
    coopStoreT(c30, &tile[3u * SIDE * WIDTH], WIDTH);
    coopStoreT(c31, &tile[3u * SIDE * WIDTH + SIDE], WIDTH);
    workgroupBarrier();
}
