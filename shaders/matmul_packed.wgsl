// Matrix products for drivers that run on a CPU: register tiles, no barriers.
//
//   c[m, n] = alpha Σ_k a[m, k] b[k, n]   for every matrix of a batch
//   and with an epilogue:  + bias[n],  gelu(+ bias[n]),  residual[m, n] + keep[sample] (+ bias[n])
//
// Host: src/ops/matmul.rs        Test: kernels-tests/matmul.rs        For GPUs: matmul_tiled.wgsl
// M = rows, N = cols, K = inner. An invocation owns 8 rows of 4 columns that lie 8 apart, so that 8
// lanes read 32 neighbouring columns of b, and each a is one scalar for all of them. b is packed
// beforehand into strips [N / 32][K][32]: rows of a large b lie multiples of 4 KiB apart, which
// would throw each other out of the cache (measured: 2.9 → 13 GFLOP/s at 256 × 768 × 3072).

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
    accumulate: u32,
    rows_per_sample: u32,
    alpha: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<f32>;                    // strides of Params
@group(0) @binding(2) var<storage, read> b: array<f32>;                    // strides of Params
@group(0) @binding(3) var<storage, read_write> strips: array<f32>;         // [batch, N / 32, K, 32]
@group(0) @binding(4) var<storage, read> packed: array<f32>;               // [batch, N / 32, K, 32]
@group(0) @binding(5) var<storage, read> bias: array<f32>;                 // [N]
@group(0) @binding(6) var<storage, read> residual: array<f32>;             // [M, N]
@group(0) @binding(7) var<storage, read> keep: array<f32>;                 // [samples]
@group(0) @binding(8) var<storage, read_write> c: array<f32>;              // strides of Params
@group(0) @binding(9) var<storage, read_write> preactivation: array<f32>;  // [M, N]

const STRIP: u32 = 32u;
const TILE_ROWS: u32 = 8u;

// ---- pack: b -> strips ---------------------------------------------------------------------------
// One workgroup per strip and 64 rows of it; zero beyond the last column.

@compute @workgroup_size(STRIP)
fn pack(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = group.x + group.y * groups.x;
    let strips_per_matrix = (params.cols + STRIP - 1u) / STRIP;
    let strip = id % strips_per_matrix;
    let start = id / strips_per_matrix * 64u;
    let end = min(start + 64u, params.inner);
    let col = strip * STRIP + lane;
    let from_column = params.b_offset + group.z * params.b_batch + min(col, params.cols - 1u) * params.b_col;
    let to = ((group.z * strips_per_matrix + strip) * params.inner) * STRIP + lane;
    for (var k = start; k < end; k++) {
        let v = b[from_column + k * params.b_inner];
        strips[to + k * STRIP] = select(0.0, v, col < params.cols);
    }
}

// ---- product: a, packed -> c ---------------------------------------------------------------------
// One workgroup per 8 × 32 tile; neighbours share a strip. z = split and matrix of the batch.

@compute @workgroup_size(8)
fn product(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group, groups);
    let tile = accumulate_tile(place, lane);
    for (var r = 0u; r < TILE_ROWS; r++) {
        for (var j = 0u; j < 4u; j++) {
            let row = place.row + r;
            let col = place.col + lane + 8u * j;
            if row < params.rows && col < params.cols {
                finish_plain(row, col, place.matrix, tile[r][j]);
            }
        }
    }
}

// ---- product_bias: a, packed, bias -> c ----------------------------------------------------------

@compute @workgroup_size(8)
fn product_bias(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group, groups);
    let tile = accumulate_tile(place, lane);
    for (var r = 0u; r < TILE_ROWS; r++) {
        for (var j = 0u; j < 4u; j++) {
            let row = place.row + r;
            let col = place.col + lane + 8u * j;
            if row < params.rows && col < params.cols {
                finish_bias(row, col, place.matrix, tile[r][j]);
            }
        }
    }
}

// ---- product_gelu: a, packed, bias -> c, preactivation -------------------------------------------

@compute @workgroup_size(8)
fn product_gelu(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group, groups);
    let tile = accumulate_tile(place, lane);
    for (var r = 0u; r < TILE_ROWS; r++) {
        for (var j = 0u; j < 4u; j++) {
            let row = place.row + r;
            let col = place.col + lane + 8u * j;
            if row < params.rows && col < params.cols {
                finish_gelu(row, col, tile[r][j]);
            }
        }
    }
}

// ---- product_residual: a, packed, bias, residual, keep -> c --------------------------------------

@compute @workgroup_size(8)
fn product_residual(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group, groups);
    let tile = accumulate_tile(place, lane);
    for (var r = 0u; r < TILE_ROWS; r++) {
        for (var j = 0u; j < 4u; j++) {
            let row = place.row + r;
            let col = place.col + lane + 8u * j;
            if row < params.rows && col < params.cols {
                finish_residual(row, col, tile[r][j]);
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
    strip: u32,   // offset of the strip in packed
    start: u32,   // of the split, along k
    end: u32,
}

fn locate(group: vec3<u32>, groups: vec3<u32>) -> Place {
    let id = group.x + group.y * groups.x;
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
    place.strip = (batch * strips_per_matrix + min(strip, strips_per_matrix - 1u)) * params.inner * STRIP;
    place.start = min(split * per_split, params.inner);
    place.end = min(place.start + per_split, params.inner);
    return place;
}

fn accumulate_tile(place: Place, lane: u32) -> array<vec4<f32>, TILE_ROWS> {
    let last = params.rows - 1u;
    let a0 = place.a + min(place.row + 0u, last) * params.a_row;
    var t0 = vec4(0.0);
    let a1 = place.a + min(place.row + 1u, last) * params.a_row;
    var t1 = vec4(0.0);
    let a2 = place.a + min(place.row + 2u, last) * params.a_row;
    var t2 = vec4(0.0);
    let a3 = place.a + min(place.row + 3u, last) * params.a_row;
    var t3 = vec4(0.0);
    let a4 = place.a + min(place.row + 4u, last) * params.a_row;
    var t4 = vec4(0.0);
    let a5 = place.a + min(place.row + 5u, last) * params.a_row;
    var t5 = vec4(0.0);
    let a6 = place.a + min(place.row + 6u, last) * params.a_row;
    var t6 = vec4(0.0);
    let a7 = place.a + min(place.row + 7u, last) * params.a_row;
    var t7 = vec4(0.0);
    var from_strip = place.strip + place.start * STRIP + lane;
    var k = place.start;
    // Four steps at a time: one bound check of the loop for 128 multiply-adds.
    for (; k + 4u <= place.end; k += 4u) {
        {
            let at = (k + 0u) * params.a_inner;
            let from_row = from_strip + 0u * STRIP;
            let v = vec4(packed[from_row], packed[from_row + 8u], packed[from_row + 16u], packed[from_row + 24u]);
            t0 = fma(vec4(a[a0 + at]), v, t0);
            t1 = fma(vec4(a[a1 + at]), v, t1);
            t2 = fma(vec4(a[a2 + at]), v, t2);
            t3 = fma(vec4(a[a3 + at]), v, t3);
            t4 = fma(vec4(a[a4 + at]), v, t4);
            t5 = fma(vec4(a[a5 + at]), v, t5);
            t6 = fma(vec4(a[a6 + at]), v, t6);
            t7 = fma(vec4(a[a7 + at]), v, t7);
        }
        {
            let at = (k + 1u) * params.a_inner;
            let from_row = from_strip + 1u * STRIP;
            let v = vec4(packed[from_row], packed[from_row + 8u], packed[from_row + 16u], packed[from_row + 24u]);
            t0 = fma(vec4(a[a0 + at]), v, t0);
            t1 = fma(vec4(a[a1 + at]), v, t1);
            t2 = fma(vec4(a[a2 + at]), v, t2);
            t3 = fma(vec4(a[a3 + at]), v, t3);
            t4 = fma(vec4(a[a4 + at]), v, t4);
            t5 = fma(vec4(a[a5 + at]), v, t5);
            t6 = fma(vec4(a[a6 + at]), v, t6);
            t7 = fma(vec4(a[a7 + at]), v, t7);
        }
        {
            let at = (k + 2u) * params.a_inner;
            let from_row = from_strip + 2u * STRIP;
            let v = vec4(packed[from_row], packed[from_row + 8u], packed[from_row + 16u], packed[from_row + 24u]);
            t0 = fma(vec4(a[a0 + at]), v, t0);
            t1 = fma(vec4(a[a1 + at]), v, t1);
            t2 = fma(vec4(a[a2 + at]), v, t2);
            t3 = fma(vec4(a[a3 + at]), v, t3);
            t4 = fma(vec4(a[a4 + at]), v, t4);
            t5 = fma(vec4(a[a5 + at]), v, t5);
            t6 = fma(vec4(a[a6 + at]), v, t6);
            t7 = fma(vec4(a[a7 + at]), v, t7);
        }
        {
            let at = (k + 3u) * params.a_inner;
            let from_row = from_strip + 3u * STRIP;
            let v = vec4(packed[from_row], packed[from_row + 8u], packed[from_row + 16u], packed[from_row + 24u]);
            t0 = fma(vec4(a[a0 + at]), v, t0);
            t1 = fma(vec4(a[a1 + at]), v, t1);
            t2 = fma(vec4(a[a2 + at]), v, t2);
            t3 = fma(vec4(a[a3 + at]), v, t3);
            t4 = fma(vec4(a[a4 + at]), v, t4);
            t5 = fma(vec4(a[a5 + at]), v, t5);
            t6 = fma(vec4(a[a6 + at]), v, t6);
            t7 = fma(vec4(a[a7 + at]), v, t7);
        }
        from_strip += 4u * STRIP;
    }
    for (; k < place.end; k++) {
        let at = k * params.a_inner;
        let v = vec4(packed[from_strip], packed[from_strip + 8u], packed[from_strip + 16u], packed[from_strip + 24u]);
        t0 = fma(vec4(a[a0 + at]), v, t0);
        t1 = fma(vec4(a[a1 + at]), v, t1);
        t2 = fma(vec4(a[a2 + at]), v, t2);
        t3 = fma(vec4(a[a3 + at]), v, t3);
        t4 = fma(vec4(a[a4 + at]), v, t4);
        t5 = fma(vec4(a[a5 + at]), v, t5);
        t6 = fma(vec4(a[a6 + at]), v, t6);
        t7 = fma(vec4(a[a7 + at]), v, t7);
        from_strip += STRIP;
    }
    return array<vec4<f32>, TILE_ROWS>(t0, t1, t2, t3, t4, t5, t6, t7);
}

// Alone: c = alpha a b, or added to what is there. With splits, each writes its own matrix.
fn finish_plain(row: u32, col: u32, batch: u32, value: f32) {
    let at = params.c_offset + batch * params.c_batch + row * params.c_row + col;
    c[at] = select(0.0, c[at], params.accumulate != 0u) + params.alpha * value;
}

fn finish_bias(row: u32, col: u32, batch: u32, value: f32) {
    c[params.c_offset + batch * params.c_batch + row * params.c_row + col] = value + bias[col];
}

fn finish_gelu(row: u32, col: u32, value: f32) {
    let at = row * params.c_row + col;
    let v = value + bias[col];
    preactivation[at] = v;
    c[at] = gelu(v);
}

fn finish_residual(row: u32, col: u32, value: f32) {
    let at = row * params.c_row + col;
    c[at] = residual[at] + keep[row / params.rows_per_sample] * (value + bias[col]);
}
