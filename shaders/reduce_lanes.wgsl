// Sums over the leading axis, for drivers that run on a CPU and have subgroups of eight: see lib/lanes.wgsl. The same
// sums in the same order as in reduce.wgsl.
//
// Host: src/ops/reduce.rs        Test: kernels-tests/reduce.rs
// R = rows, C = columns, an even number. Lanes run along the pairs of columns.

struct Params {
    rows: u32,
    columns: u32,
    rows_per_part: u32,
    accumulate: u32,
    alpha: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u64>;        // [R, C]
@group(0) @binding(2) var<storage, read_write> y: array<u64>;  // [parts, C]

// Vectors of eight pairs that a workgroup has, side by side.
override VECTORS: u32 = 4u;
const MOST: u32 = 4u;

// Eight pairs of a row, one for each lane; the last of the row in place of those beyond it.
fn x_of(row: u32, first: u32, lane: u32) -> vec2<f32> {
    let pairs = params.columns / 2u;
    var v: array<u64, 8>;
    for (var k = 0u; k < 8u; k++) {
        v[k] = x[row * pairs + min(first + k, pairs - 1u)];
    }
    return floats(spread(v, lane));
}

// ---- sum_rows: x -> y ----------------------------------------------------------------------------
// x of the grid: VECTORS vectors; y: part.

@compute @workgroup_size(8)
fn sum_rows(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let first = group.x * VECTORS * 8u;
    let start = group.y * params.rows_per_part;
    let end = min(start + params.rows_per_part, params.rows);
    // As many rows as go four sums side by side.
    let whole = end - (end - start) % 16u;
    var sums: array<array<vec2<f32>, 4>, MOST>;
    for (var row = start; row < whole; row += 4u) {
        for (var k = 0u; k < 4u; k++) {
            for (var j = 0u; j < VECTORS; j++) {
                sums[j][k] += x_of(row + k, first + 8u * j, lane);
            }
        }
    }
    let pairs = params.columns / 2u;
    for (var j = 0u; j < VECTORS; j++) {
        var total = (sums[j][0] + sums[j][1]) + (sums[j][2] + sums[j][3]);
        for (var row = whole; row < end; row++) {
            total += x_of(row, first + 8u * j, lane);
        }
        let pair = first + 8u * j + lane;
        if pair < pairs {
            let at = group.y * pairs + pair;
            let before = select(vec2(0.0), floats(y[at]), params.accumulate != 0u);
            y[at] = pair_of(before + params.alpha * total);
        }
    }
}
