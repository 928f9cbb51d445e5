// Matrix products for drivers that run on a CPU and have subgroups of eight: see lib/lanes.wgsl.
//
//   c[m, n] = alpha Σ_k a[m, k] b[k, n]   for every matrix of a batch
//   and with an epilogue:  + bias[n],  gelu(+ bias[n]),  residual[m, n] + keep[sample] (+ bias[n])
//
// Host: src/ops/matmul_lanes.rs        Test: kernels-tests/matmul.rs
// M = rows, N = cols, K = inner, a multiple of 8. One workgroup per 16 × 32 or 16 × 64 of c. b
// lies in strips [N / 32][K][32], or its rows where they are. a's rows lie where they are, in pairs along k
// (ALONG_K), else it is read in pairs of rows: from strips [M / 16][K][16] or where they lie. Results that
// are not whole pairs, such as those of an odd N, are stored in words.

override ALONG_K: bool = true;
// Sixteens of columns of a workgroup: a strip, or two, which share what is read of a.
override HALVES: u32 = 2u;

struct Params {
    rows: u32,
    cols: u32,
    inner: u32,
    block: u32,     // tiles, one below the other, that go along b together
    splits: u32,
    a_offset: u32,  // offsets and strides count pairs of floats
    a_batch: u32,
    a_tile: u32,    // from 16 rows to the next
    a_row: u32,     // along k: from a row to the next
    a_step: u32,    // from a pair of k to the next; in pairs of rows: from one k to the next
    b_offset: u32,
    b_batch: u32,
    b_strip: u32,   // from 32 columns to the next
    b_step: u32,    // from one k to the next
    c_offset: u32,  // in words: of floats
    c_batch: u32,
    c_row: u32,
    accumulate: u32,
    rows_per_sample: u32,
    alpha: f32,
    first_group: u32,  // of a part of the dispatch
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<u64>;                    // strides of Params
@group(0) @binding(2) var<storage, read> b: array<u64>;                    // strides of Params
@group(0) @binding(3) var<storage, read> bias: array<u64>;                 // [N]
@group(0) @binding(4) var<storage, read> residual: array<u64>;             // [M, N]
@group(0) @binding(5) var<storage, read> keep: array<f32>;                 // [samples]
@group(0) @binding(6) var<storage, read_write> c: array<u64>;              // strides of Params
@group(0) @binding(7) var<storage, read_write> preactivation: array<RealPair>;  // [M, N]
@group(0) @binding(8) var<storage, read> bias_words: array<f32>;           // [N]
@group(0) @binding(9) var<storage, read_write> c_words: array<f32>;        // strides of Params
@group(0) @binding(10) var<storage, read_write> activation: array<RealPair>;  // [M, N]

// ---- product: a, b -> c --------------------------------------------------------------------------

@compute @workgroup_size(8)
fn product(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let place = locate(group, groups);
    let tiles = accumulate_tiles(place, lane);
    for (var r = 0u; r < 16u; r++) {
        if place.row + r < params.rows {
            for (var j = 0u; j < HALVES; j++) {
                let pair = place.first_pair + 8u * j + lane;
                if 2u * pair < params.cols {
                    let at = params.c_offset + group.z * params.c_batch + (place.row + r) * params.c_row + pair;
                    var v = params.alpha * half_of(tiles[j / 2u], r, j % 2u);
                    if params.accumulate != 0u {
                        v += floats(c[at]);
                    }
                    c[at] = pair_of(v);
                }
            }
        }
    }
}

// ---- product_words: a, b -> c_words --------------------------------------------------------------

@compute @workgroup_size(8)
fn product_words(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let place = locate(group, groups);
    let tiles = accumulate_tiles(place, lane);
    let first = params.c_offset + group.z * params.c_batch + place.row * params.c_row;
    // One loop over all of it is longer than compilers unroll, and a tile that is indexed at run time lies in memory.
    store_words(tiles[0], place, 0u, first, lane);
    store_words(tiles[0], place, 1u, first, lane);
    if HALVES > 2u {
        store_words(tiles[1], place, 2u, first, lane);
        store_words(tiles[1], place, 3u, first, lane);
    }
}

// Half j % 2 of a tile, to rows of c of which the first is at `first`.
fn store_words(tile: Tile, place: Place, j: u32, first: u32, lane: u32) {
    for (var i = 0u; i < 2u; i++) {
        let col = 2u * (place.first_pair + 8u * j + lane) + i;
        if col >= params.cols {
            return;
        }
        for (var r = 0u; r < 16u; r++) {
            if place.row + r < params.rows {
                let at = first + r * params.c_row + col;
                var v = params.alpha * half_of(tile, r, j % 2u)[i];
                if params.accumulate != 0u {
                    v += c_words[at];
                }
                c_words[at] = v;
            }
        }
    }
}

// ---- product_bias: a, b, bias -> c ---------------------------------------------------------------

@compute @workgroup_size(8)
fn product_bias(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let place = locate(group, groups);
    let tiles = accumulate_tiles(place, lane);
    let shifts = shifts_of(place, lane);
    for (var r = 0u; r < 16u; r++) {
        if place.row + r < params.rows {
            for (var j = 0u; j < HALVES; j++) {
                let pair = place.first_pair + 8u * j + lane;
                if 2u * pair < params.cols {
                    let v = half_of(tiles[j / 2u], r, j % 2u) + shifts[j];
                    c[params.c_offset + group.z * params.c_batch + (place.row + r) * params.c_row + pair] = pair_of(v);
                }
            }
        }
    }
}

// ---- product_bias_words: a, b, bias_words -> c_words ---------------------------------------------

@compute @workgroup_size(8)
fn product_bias_words(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let place = locate(group, groups);
    let tiles = accumulate_tiles(place, lane);
    let last = params.cols - 1u;
    var shifts: array<vec2<f32>, 4>;
    for (var j = 0u; j < HALVES; j++) {
        let first = 2u * (place.first_pair + 8u * j + lane);
        shifts[j] = vec2(bias_words[min(first, last)], bias_words[min(first + 1u, last)]);
    }
    for (var r = 0u; r < 16u; r++) {
        if place.row + r < params.rows {
            for (var j = 0u; j < HALVES; j++) {
                let first = 2u * (place.first_pair + 8u * j + lane);
                let at = params.c_offset + group.z * params.c_batch + (place.row + r) * params.c_row + first;
                let v = half_of(tiles[j / 2u], r, j % 2u) + shifts[j];
                for (var i = 0u; i < 2u; i++) {
                    if first + i < params.cols {
                        c_words[at + i] = v[i];
                    }
                }
            }
        }
    }
}

// ---- product_operand: a, b, bias -> activation ---------------------------------------------------

@compute @workgroup_size(8)
fn product_operand(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let place = locate(group, groups);
    let tiles = accumulate_tiles(place, lane);
    let shifts = shifts_of(place, lane);
    for (var r = 0u; r < 16u; r++) {
        if place.row + r < params.rows {
            for (var j = 0u; j < HALVES; j++) {
                let pair = place.first_pair + 8u * j + lane;
                if 2u * pair < params.cols {
                    let v = half_of(tiles[j / 2u], r, j % 2u) + shifts[j];
                    activation[(place.row + r) * params.c_row + pair] = real_pair(v);
                }
            }
        }
    }
}

// ---- product_gelu: a, b, bias -> activation, preactivation ---------------------------------------

@compute @workgroup_size(8)
fn product_gelu(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let place = locate(group, groups);
    let tiles = accumulate_tiles(place, lane);
    let shifts = shifts_of(place, lane);
    for (var r = 0u; r < 16u; r++) {
        if place.row + r < params.rows {
            for (var j = 0u; j < HALVES; j++) {
                let pair = place.first_pair + 8u * j + lane;
                if 2u * pair < params.cols {
                    let v = half_of(tiles[j / 2u], r, j % 2u) + shifts[j];
                    let at = (place.row + r) * params.c_row + pair;
                    preactivation[at] = real_pair(v);
                    activation[at] = real_pair(vec2(gelu(v.x), gelu(v.y)));
                }
            }
        }
    }
}

// ---- product_residual: a, b, bias, residual, keep -> c -------------------------------------------

@compute @workgroup_size(8)
fn product_residual(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let place = locate(group, groups);
    let tiles = accumulate_tiles(place, lane);
    let shifts = shifts_of(place, lane);
    for (var r = 0u; r < 16u; r++) {
        if place.row + r < params.rows {
            let factor = keep[(place.row + r) / params.rows_per_sample];
            for (var j = 0u; j < HALVES; j++) {
                let pair = place.first_pair + 8u * j + lane;
                if 2u * pair < params.cols {
                    let v = half_of(tiles[j / 2u], r, j % 2u) + shifts[j];
                    let at = (place.row + r) * params.c_row + pair;
                    c[at] = pair_of(floats(residual[at]) + factor * v);
                }
            }
        }
    }
}

// ---- shared --------------------------------------------------------------------------------------

struct Place {
    row: u32,
    first_pair: u32,  // of columns
    a: u32,           // offset of the 16 rows in a
    b: u32,           // offset of the first strip in b
    last_pair: u32,   // of all columns, counted from the first strip
    start: u32,       // of the split, along k
    end: u32,
}

// Neighbours share strips, and their block of a meets one after the other. z = split and matrix
// of the batch.
fn locate(group: vec3<u32>, groups: vec3<u32>) -> Place {
    let id = params.first_group + group.x + group.y * groups.x;
    let row_tiles = (params.rows + 15u) / 16u;
    let pairs = 8u * HALVES;
    let strips = (params.cols + 2u * pairs - 1u) / (2u * pairs);
    let first_tile = id / (params.block * strips) * params.block;
    let height = min(params.block, row_tiles - min(first_tile, row_tiles - 1u));
    let within = id % (params.block * strips);
    let row_tile = first_tile + within % height;
    let strip = within / height;
    let batch = group.z / params.splits;
    let split = group.z % params.splits;
    let per_split = (params.inner / 8u + params.splits - 1u) / params.splits * 8u;
    // Workgroups beyond the last have nothing to store; they may read something that is there.
    let there = min(strip, strips - 1u);
    var place: Place;
    place.row = row_tile * 16u;
    place.first_pair = strip * pairs;
    place.a = params.a_offset + batch * params.a_batch + min(row_tile, row_tiles - 1u) * params.a_tile;
    place.b = params.b_offset + batch * params.b_batch + there * (pairs / 16u) * params.b_strip;
    place.last_pair = (params.cols - 1u) / 2u - there * pairs;
    place.start = min(split * per_split, params.inner);
    place.end = min(place.start + per_split, params.inner);
    return place;
}

// The biases of a lane's columns. Epilogues go through a row's columns before the next row: the other way round, their
// loops are longer than compilers unroll, and tiles that are indexed at run time took as long as the whole product
// where K is 96.
fn shifts_of(place: Place, lane: u32) -> array<vec2<f32>, 4> {
    var shifts: array<vec2<f32>, 4>;
    for (var j = 0u; j < HALVES; j++) {
        shifts[j] = floats(bias[min(place.first_pair + 8u * j + lane, params.cols / 2u - 1u)]);
    }
    return shifts;
}

fn accumulate_tiles(place: Place, lane: u32) -> array<Tile, 2> {
    // Beyond the last row or column: the last one.
    let last_row = params.rows - 1u - min(place.row, params.rows - 1u);
    let a0 = place.a + select(min(lane, last_row / 2u), min(lane, last_row) * params.a_row, ALONG_K);
    let a1 = place.a + min(lane + 8u, last_row) * params.a_row;
    let b0 = place.b + min(lane, place.last_pair);
    let b1 = place.b + min(lane + 8u, place.last_pair);
    let b2 = place.b + params.b_strip + min(lane, place.last_pair - 16u);
    let b3 = place.b + params.b_strip + min(lane + 8u, place.last_pair - 16u);
    var first: Tile;
    var second: Tile;
    for (var k = place.start; k < place.end; k += 8u) {
        var left: Left;
        if ALONG_K {
            for (var i = 0u; i < 4u; i++) {
                let near = floats(a[a0 + (k / 2u + i) * params.a_step]);
                let far = floats(a[a1 + (k / 2u + i) * params.a_step]);
                left.values[0][2u * i] = near.x;
                left.values[0][2u * i + 1u] = near.y;
                left.values[1][2u * i] = far.x;
                left.values[1][2u * i + 1u] = far.y;
            }
        } else {
            for (var i = 0u; i < 8u; i++) {
                let rows = floats(a[a0 + (k + i) * params.a_step]);
                left.values[0][i] = rows.x;
                left.values[1][i] = rows.y;
            }
        }
        add_products(&first, left, load_b(b0, b1, k), ALONG_K);
        if HALVES > 2u {
            add_products(&second, left, load_b(b2, b3, k), ALONG_K);
        }
    }
    return array<Tile, 2>(first, second);
}

fn load_b(near: u32, far: u32, k: u32) -> Right {
    var right: Right;
    for (var i = 0u; i < 8u; i++) {
        let at = (k + i) * params.b_step;
        right.values[i] = vec4(floats(b[near + at]), floats(b[far + at]));
    }
    return right;
}
