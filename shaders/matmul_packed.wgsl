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
// else the elements of a packed strip.

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
const TILE_ROWS: u32 = 16u;

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
// One workgroup per 16 × 32 tile; neighbours share a strip. z = split and matrix of the batch.

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
    last: u32,    // its last column that there is
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
    let there = min(strip, strips_per_matrix - 1u);
    place.strip = params.b_offset + batch * params.b_batch + there * params.strip;
    place.last = select(params.cols - there * STRIP, STRIP, params.strip != STRIP) - 1u;
    place.start = min(split * per_split, params.inner);
    place.end = min(place.start + per_split, params.inner);
    return place;
}

fn accumulate_tile(place: Place, lane: u32) -> array<vec4<f32>, TILE_ROWS> {
    var from_row: array<u32, TILE_ROWS>;
    var tile: array<vec4<f32>, TILE_ROWS>;
    for (var r = 0u; r < TILE_ROWS; r++) {
        from_row[r] = place.a + min(place.row + r, params.rows - 1u) * params.a_row;
        tile[r] = vec4(0.0);
    }
    let from_column = place.strip + min(vec4(lane, lane + 8u, lane + 16u, lane + 24u), vec4(place.last));
    for (var k = place.start; k < place.end; k++) {
        let at = k * params.a_inner;
        let from_strip = k * params.b_inner + from_column;
        let v = vec4(packed[from_strip.x], packed[from_strip.y], packed[from_strip.z], packed[from_strip.w]);
        for (var r = 0u; r < TILE_ROWS; r++) {
            tile[r] = fma(vec4(a[from_row[r] + at]), v, tile[r]);
        }
    }
    return tile;
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
