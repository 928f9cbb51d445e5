// Matrix products for drivers that run on a CPU: register tiles, no barriers.
//
//   c[m, n] = alpha Σ_k a[m, k] b[k, n]   for every matrix of a batch
//   and with an epilogue:  + bias[n],  gelu(+ bias[n]),  residual[m, n] + keep[sample] (+ bias[n])
//
// Host: src/ops/matmul.rs        Test: kernels-tests/matmul.rs        For GPUs: matmul_tiled.wgsl
// M = rows, N = cols, K = inner. An invocation owns 16 rows of 4 columns that lie 8 apart, so that
// 8 lanes read 32 neighbouring columns of b, and each a is one scalar for all of them. Rows are
// many because lanes that read neighbours gather all the same: 16 rows make up for it, though they
// spill (measured: 1.4 times as fast as 8). b is packed
// beforehand into strips [N / 32][K][32]: rows of a large b lie multiples of 4 KiB apart, which
// would throw each other out of the cache (measured: 2.9 → 13 GFLOP/s at 256 × 768 × 3072). A b
// whose columns are contiguous and whose rows are short is read where it lies: `strip` is then 32,
// else the elements of a packed strip. An a whose
// rows lie multiples of 4 KiB apart is packed likewise, as strips of 32 rows.

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
@group(0) @binding(2) var<storage, read> source: array<Real>;              // strides of Params
@group(0) @binding(3) var<storage, read_write> strips: array<f32>;         // [batch, N / 32, K, 32]
@group(0) @binding(4) var<storage, read> b: array<f32>;                    // [batch, N / 32, K, 32]
@group(0) @binding(5) var<storage, read> bias: array<f32>;                 // [N]
@group(0) @binding(6) var<storage, read> residual: array<f32>;             // [M, N]
@group(0) @binding(7) var<storage, read> keep: array<f32>;                 // [samples]
@group(0) @binding(8) var<storage, read_write> c: array<f32>;              // strides of Params
@group(0) @binding(9) var<storage, read_write> preactivation: array<Real>; // [M, N]
@group(0) @binding(10) var<storage, read_write> activation: array<Real>;   // [M, N]

const STRIP: u32 = 32u;
const TILE_ROWS: u32 = 16u;

// ---- pack: source -> strips ---------------------------------------------------------------------------
// One workgroup per strip and 64 rows of it; zero beyond the last column.

@compute @workgroup_size(STRIP)
fn pack(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = params.first_group + group.x + group.y * groups.x;
    let strips_per_matrix = (params.cols + STRIP - 1u) / STRIP;
    let strip = id % strips_per_matrix;
    let start = id / strips_per_matrix * 64u;
    let end = min(start + 64u, params.inner);
    let col = strip * STRIP + lane;
    let from_column = params.b_offset + group.z * params.b_batch + min(col, params.cols - 1u) * params.b_col;
    let to = ((group.z * strips_per_matrix + strip) * params.inner) * STRIP + lane;
    for (var k = start; k < end; k++) {
        let v = f32(source[from_column + k * params.b_inner]);
        strips[to + k * STRIP] = select(0.0, v, col < params.cols);
    }
}

// ---- product: a, b -> c ---------------------------------------------------------------------
// One workgroup per 16 × 32 tile; neighbours share a strip. z = split and matrix of the batch.

@compute @workgroup_size(8)
fn product(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group, groups);
    let tile = accumulate_tile(place, lane);
    let col = place.col + lane;
    store_plain(place.row + 0u, col, place.matrix, tile[0]);
    store_plain(place.row + 1u, col, place.matrix, tile[1]);
    store_plain(place.row + 2u, col, place.matrix, tile[2]);
    store_plain(place.row + 3u, col, place.matrix, tile[3]);
    store_plain(place.row + 4u, col, place.matrix, tile[4]);
    store_plain(place.row + 5u, col, place.matrix, tile[5]);
    store_plain(place.row + 6u, col, place.matrix, tile[6]);
    store_plain(place.row + 7u, col, place.matrix, tile[7]);
    store_plain(place.row + 8u, col, place.matrix, tile[8]);
    store_plain(place.row + 9u, col, place.matrix, tile[9]);
    store_plain(place.row + 10u, col, place.matrix, tile[10]);
    store_plain(place.row + 11u, col, place.matrix, tile[11]);
    store_plain(place.row + 12u, col, place.matrix, tile[12]);
    store_plain(place.row + 13u, col, place.matrix, tile[13]);
    store_plain(place.row + 14u, col, place.matrix, tile[14]);
    store_plain(place.row + 15u, col, place.matrix, tile[15]);
}

// ---- product_bias: a, b, bias -> c ----------------------------------------------------------

@compute @workgroup_size(8)
fn product_bias(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group, groups);
    let tile = accumulate_tile(place, lane);
    let col = place.col + lane;
    store_with_bias(place.row + 0u, col, place.matrix, tile[0]);
    store_with_bias(place.row + 1u, col, place.matrix, tile[1]);
    store_with_bias(place.row + 2u, col, place.matrix, tile[2]);
    store_with_bias(place.row + 3u, col, place.matrix, tile[3]);
    store_with_bias(place.row + 4u, col, place.matrix, tile[4]);
    store_with_bias(place.row + 5u, col, place.matrix, tile[5]);
    store_with_bias(place.row + 6u, col, place.matrix, tile[6]);
    store_with_bias(place.row + 7u, col, place.matrix, tile[7]);
    store_with_bias(place.row + 8u, col, place.matrix, tile[8]);
    store_with_bias(place.row + 9u, col, place.matrix, tile[9]);
    store_with_bias(place.row + 10u, col, place.matrix, tile[10]);
    store_with_bias(place.row + 11u, col, place.matrix, tile[11]);
    store_with_bias(place.row + 12u, col, place.matrix, tile[12]);
    store_with_bias(place.row + 13u, col, place.matrix, tile[13]);
    store_with_bias(place.row + 14u, col, place.matrix, tile[14]);
    store_with_bias(place.row + 15u, col, place.matrix, tile[15]);
}

// ---- product_operand: a, b, bias -> activation ---------------------------------------------------

@compute @workgroup_size(8)
fn product_operand(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group, groups);
    let tile = accumulate_tile(place, lane);
    let col = place.col + lane;
    store_operand(place.row + 0u, col, tile[0]);
    store_operand(place.row + 1u, col, tile[1]);
    store_operand(place.row + 2u, col, tile[2]);
    store_operand(place.row + 3u, col, tile[3]);
    store_operand(place.row + 4u, col, tile[4]);
    store_operand(place.row + 5u, col, tile[5]);
    store_operand(place.row + 6u, col, tile[6]);
    store_operand(place.row + 7u, col, tile[7]);
    store_operand(place.row + 8u, col, tile[8]);
    store_operand(place.row + 9u, col, tile[9]);
    store_operand(place.row + 10u, col, tile[10]);
    store_operand(place.row + 11u, col, tile[11]);
    store_operand(place.row + 12u, col, tile[12]);
    store_operand(place.row + 13u, col, tile[13]);
    store_operand(place.row + 14u, col, tile[14]);
    store_operand(place.row + 15u, col, tile[15]);
}

// ---- product_gelu: a, b, bias -> activation, preactivation -------------------------------------------

@compute @workgroup_size(8)
fn product_gelu(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group, groups);
    let tile = accumulate_tile(place, lane);
    let col = place.col + lane;
    store_with_gelu(place.row + 0u, col, tile[0]);
    store_with_gelu(place.row + 1u, col, tile[1]);
    store_with_gelu(place.row + 2u, col, tile[2]);
    store_with_gelu(place.row + 3u, col, tile[3]);
    store_with_gelu(place.row + 4u, col, tile[4]);
    store_with_gelu(place.row + 5u, col, tile[5]);
    store_with_gelu(place.row + 6u, col, tile[6]);
    store_with_gelu(place.row + 7u, col, tile[7]);
    store_with_gelu(place.row + 8u, col, tile[8]);
    store_with_gelu(place.row + 9u, col, tile[9]);
    store_with_gelu(place.row + 10u, col, tile[10]);
    store_with_gelu(place.row + 11u, col, tile[11]);
    store_with_gelu(place.row + 12u, col, tile[12]);
    store_with_gelu(place.row + 13u, col, tile[13]);
    store_with_gelu(place.row + 14u, col, tile[14]);
    store_with_gelu(place.row + 15u, col, tile[15]);
}

// ---- product_residual: a, b, bias, residual, keep -> c --------------------------------------

@compute @workgroup_size(8)
fn product_residual(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group, groups);
    let tile = accumulate_tile(place, lane);
    let col = place.col + lane;
    store_with_residual(place.row + 0u, col, tile[0]);
    store_with_residual(place.row + 1u, col, tile[1]);
    store_with_residual(place.row + 2u, col, tile[2]);
    store_with_residual(place.row + 3u, col, tile[3]);
    store_with_residual(place.row + 4u, col, tile[4]);
    store_with_residual(place.row + 5u, col, tile[5]);
    store_with_residual(place.row + 6u, col, tile[6]);
    store_with_residual(place.row + 7u, col, tile[7]);
    store_with_residual(place.row + 8u, col, tile[8]);
    store_with_residual(place.row + 9u, col, tile[9]);
    store_with_residual(place.row + 10u, col, tile[10]);
    store_with_residual(place.row + 11u, col, tile[11]);
    store_with_residual(place.row + 12u, col, tile[12]);
    store_with_residual(place.row + 13u, col, tile[13]);
    store_with_residual(place.row + 14u, col, tile[14]);
    store_with_residual(place.row + 15u, col, tile[15]);
}

// ---- shared --------------------------------------------------------------------------------------

struct Place {
    row: u32,
    col: u32,
    matrix: u32,  // of the output; the split counts
    a: u32,       // offset of the matrix in a
    strip: u32,   // offset of the strip in packed
    last: u32,    // its last column that there is
    start: u32,   // of the split, along k
    end: u32,
}

fn locate(group: vec3<u32>, groups: vec3<u32>) -> Place {
    let id = params.first_group + group.x + group.y * groups.x;
    let row_tiles = (params.rows + TILE_ROWS - 1u) / TILE_ROWS;
    let strips_per_matrix = (params.cols + STRIP - 1u) / STRIP;
    let strip = id / row_tiles;
    let batch = group.z / params.splits;
    let split = group.z % params.splits;
    let per_split = (params.inner + params.splits - 1u) / params.splits;
    var place: Place;
    place.row = id % row_tiles * TILE_ROWS;
    place.col = strip * STRIP;
    place.matrix = group.z;
    place.a = params.a_offset + batch * params.a_batch;
    // Workgroups beyond the last strip have nothing to store; they may read the last one.
    let there = min(strip, strips_per_matrix - 1u);
    place.strip = params.b_offset + batch * params.b_batch + there * params.strip;
    place.last = select(params.cols - there * STRIP, STRIP, params.strip != STRIP) - 1u;
    place.start = min(split * per_split, params.inner);
    place.end = min(place.start + per_split, params.inner);
    return place;
}

// Where a row of a starts: packed into strips of 32 rows, or where it lies.
fn row_of_a(row: u32) -> u32 {
    if params.a_strip != 0u {
        return row / STRIP * params.a_strip + row % STRIP;
    }
    return row * params.a_row;
}

// Rows are written out one by one: as an array with a running index the tile would lie in memory.
fn accumulate_tile(place: Place, lane: u32) -> array<vec4<f32>, TILE_ROWS> {
    let last = params.rows - 1u;
    let a0 = place.a + row_of_a(min(place.row + 0u, last));
    let a1 = place.a + row_of_a(min(place.row + 1u, last));
    let a2 = place.a + row_of_a(min(place.row + 2u, last));
    let a3 = place.a + row_of_a(min(place.row + 3u, last));
    let a4 = place.a + row_of_a(min(place.row + 4u, last));
    let a5 = place.a + row_of_a(min(place.row + 5u, last));
    let a6 = place.a + row_of_a(min(place.row + 6u, last));
    let a7 = place.a + row_of_a(min(place.row + 7u, last));
    let a8 = place.a + row_of_a(min(place.row + 8u, last));
    let a9 = place.a + row_of_a(min(place.row + 9u, last));
    let a10 = place.a + row_of_a(min(place.row + 10u, last));
    let a11 = place.a + row_of_a(min(place.row + 11u, last));
    let a12 = place.a + row_of_a(min(place.row + 12u, last));
    let a13 = place.a + row_of_a(min(place.row + 13u, last));
    let a14 = place.a + row_of_a(min(place.row + 14u, last));
    let a15 = place.a + row_of_a(min(place.row + 15u, last));
    var t0 = vec4(0.0);
    var t1 = vec4(0.0);
    var t2 = vec4(0.0);
    var t3 = vec4(0.0);
    var t4 = vec4(0.0);
    var t5 = vec4(0.0);
    var t6 = vec4(0.0);
    var t7 = vec4(0.0);
    var t8 = vec4(0.0);
    var t9 = vec4(0.0);
    var t10 = vec4(0.0);
    var t11 = vec4(0.0);
    var t12 = vec4(0.0);
    var t13 = vec4(0.0);
    var t14 = vec4(0.0);
    var t15 = vec4(0.0);
    let column = place.strip + min(vec4(lane, lane + 8u, lane + 16u, lane + 24u), vec4(place.last));
    var k = place.start;
    // Two steps at a time: half as many checks of the loop.
    for (; k + 2u <= place.end; k += 2u) {
        let at0 = k * params.a_inner;
        let at1 = at0 + params.a_inner;
        let from0 = column + k * params.b_inner;
        let from1 = from0 + params.b_inner;
        let v0 = vec4(b[from0.x], b[from0.y], b[from0.z], b[from0.w]);
        let v1 = vec4(b[from1.x], b[from1.y], b[from1.z], b[from1.w]);
        t0 = fma(vec4(a[a0 + at0]), v0, t0);
        t1 = fma(vec4(a[a1 + at0]), v0, t1);
        t2 = fma(vec4(a[a2 + at0]), v0, t2);
        t3 = fma(vec4(a[a3 + at0]), v0, t3);
        t4 = fma(vec4(a[a4 + at0]), v0, t4);
        t5 = fma(vec4(a[a5 + at0]), v0, t5);
        t6 = fma(vec4(a[a6 + at0]), v0, t6);
        t7 = fma(vec4(a[a7 + at0]), v0, t7);
        t8 = fma(vec4(a[a8 + at0]), v0, t8);
        t9 = fma(vec4(a[a9 + at0]), v0, t9);
        t10 = fma(vec4(a[a10 + at0]), v0, t10);
        t11 = fma(vec4(a[a11 + at0]), v0, t11);
        t12 = fma(vec4(a[a12 + at0]), v0, t12);
        t13 = fma(vec4(a[a13 + at0]), v0, t13);
        t14 = fma(vec4(a[a14 + at0]), v0, t14);
        t15 = fma(vec4(a[a15 + at0]), v0, t15);
        t0 = fma(vec4(a[a0 + at1]), v1, t0);
        t1 = fma(vec4(a[a1 + at1]), v1, t1);
        t2 = fma(vec4(a[a2 + at1]), v1, t2);
        t3 = fma(vec4(a[a3 + at1]), v1, t3);
        t4 = fma(vec4(a[a4 + at1]), v1, t4);
        t5 = fma(vec4(a[a5 + at1]), v1, t5);
        t6 = fma(vec4(a[a6 + at1]), v1, t6);
        t7 = fma(vec4(a[a7 + at1]), v1, t7);
        t8 = fma(vec4(a[a8 + at1]), v1, t8);
        t9 = fma(vec4(a[a9 + at1]), v1, t9);
        t10 = fma(vec4(a[a10 + at1]), v1, t10);
        t11 = fma(vec4(a[a11 + at1]), v1, t11);
        t12 = fma(vec4(a[a12 + at1]), v1, t12);
        t13 = fma(vec4(a[a13 + at1]), v1, t13);
        t14 = fma(vec4(a[a14 + at1]), v1, t14);
        t15 = fma(vec4(a[a15 + at1]), v1, t15);
    }
    if k < place.end {
        let at = k * params.a_inner;
        let from_row = column + k * params.b_inner;
        let v = vec4(b[from_row.x], b[from_row.y], b[from_row.z], b[from_row.w]);
        t0 = fma(vec4(a[a0 + at]), v, t0);
        t1 = fma(vec4(a[a1 + at]), v, t1);
        t2 = fma(vec4(a[a2 + at]), v, t2);
        t3 = fma(vec4(a[a3 + at]), v, t3);
        t4 = fma(vec4(a[a4 + at]), v, t4);
        t5 = fma(vec4(a[a5 + at]), v, t5);
        t6 = fma(vec4(a[a6 + at]), v, t6);
        t7 = fma(vec4(a[a7 + at]), v, t7);
        t8 = fma(vec4(a[a8 + at]), v, t8);
        t9 = fma(vec4(a[a9 + at]), v, t9);
        t10 = fma(vec4(a[a10 + at]), v, t10);
        t11 = fma(vec4(a[a11 + at]), v, t11);
        t12 = fma(vec4(a[a12 + at]), v, t12);
        t13 = fma(vec4(a[a13 + at]), v, t13);
        t14 = fma(vec4(a[a14 + at]), v, t14);
        t15 = fma(vec4(a[a15 + at]), v, t15);
    }
    return array<vec4<f32>, TILE_ROWS>(
        t0, t1, t2, t3, t4, t5, t6, t7,
        t8, t9, t10, t11, t12, t13, t14, t15,
    );
}

// A row of a tile, as far as it lies within c.
fn store_plain(row: u32, col: u32, batch: u32, v: vec4<f32>) {
    if row >= params.rows {
        return;
    }
    if col < params.cols {
        finish_plain(row, col, batch, v.x);
    }
    if col + 8u < params.cols {
        finish_plain(row, col + 8u, batch, v.y);
    }
    if col + 16u < params.cols {
        finish_plain(row, col + 16u, batch, v.z);
    }
    if col + 24u < params.cols {
        finish_plain(row, col + 24u, batch, v.w);
    }
}

fn store_with_bias(row: u32, col: u32, batch: u32, v: vec4<f32>) {
    if row >= params.rows {
        return;
    }
    if col < params.cols {
        finish_bias(row, col, batch, v.x);
    }
    if col + 8u < params.cols {
        finish_bias(row, col + 8u, batch, v.y);
    }
    if col + 16u < params.cols {
        finish_bias(row, col + 16u, batch, v.z);
    }
    if col + 24u < params.cols {
        finish_bias(row, col + 24u, batch, v.w);
    }
}

fn store_operand(row: u32, col: u32, v: vec4<f32>) {
    if row >= params.rows {
        return;
    }
    if col < params.cols {
        finish_operand(row, col, v.x);
    }
    if col + 8u < params.cols {
        finish_operand(row, col + 8u, v.y);
    }
    if col + 16u < params.cols {
        finish_operand(row, col + 16u, v.z);
    }
    if col + 24u < params.cols {
        finish_operand(row, col + 24u, v.w);
    }
}

fn store_with_gelu(row: u32, col: u32, v: vec4<f32>) {
    if row >= params.rows {
        return;
    }
    if col < params.cols {
        finish_gelu(row, col, v.x);
    }
    if col + 8u < params.cols {
        finish_gelu(row, col + 8u, v.y);
    }
    if col + 16u < params.cols {
        finish_gelu(row, col + 16u, v.z);
    }
    if col + 24u < params.cols {
        finish_gelu(row, col + 24u, v.w);
    }
}

fn store_with_residual(row: u32, col: u32, v: vec4<f32>) {
    if row >= params.rows {
        return;
    }
    if col < params.cols {
        finish_residual(row, col, v.x);
    }
    if col + 8u < params.cols {
        finish_residual(row, col + 8u, v.y);
    }
    if col + 16u < params.cols {
        finish_residual(row, col + 16u, v.z);
    }
    if col + 24u < params.cols {
        finish_residual(row, col + 24u, v.w);
    }
}
