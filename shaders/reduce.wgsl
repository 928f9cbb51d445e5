// Sums over the leading axis: of rows (a bias gradient) or of the parts of a split product.
//
//   y[c] = alpha Σ_r x[r, c]
//
// Host: src/ops/reduce.rs        Test: kernels-tests/reduce.rs
// R = rows, C = columns. Lanes run along the columns. Long sums go in two steps: each workgroup adds
// up `rows_per_part` rows, then a second dispatch adds up the parts. The order is always the same.

struct Params {
    rows: u32,
    columns: u32,
    rows_per_part: u32,
    accumulate: u32,
    alpha: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Real>;       // [R, C]
@group(0) @binding(2) var<storage, read_write> y: array<f32>;  // [parts, C]
@group(0) @binding(3) var<storage, read_write> z: array<f32>;  // [C]

// ---- sum_rows: x -> y ----------------------------------------------------------------------------
// x of the grid: 64 columns; y: part.

// Rows without a condition between them: what compilers for CPUs need most.
const UNROLLED: u32 = 16u;

@compute @workgroup_size(64)
fn sum_rows(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let column = group.x * 64u + lane;
    if column >= params.columns {
        return;
    }
    let start = group.y * params.rows_per_part;
    let end = min(start + params.rows_per_part, params.rows);
    // Four sums side by side: shorter chains, and less rounding than one long one.
    var sums = vec4(0.0);
    var row = start;
    for (; row + UNROLLED <= end; row += UNROLLED) {
        for (var k = 0u; k < UNROLLED; k += 4u) {
            let at = (row + k) * params.columns + column;
            sums += vec4<f32>(
                vec4(x[at], x[at + params.columns], x[at + 2u * params.columns], x[at + 3u * params.columns]));
        }
    }
    var total = (sums.x + sums.y) + (sums.z + sums.w);
    for (; row < end; row++) {
        total += f32(x[row * params.columns + column]);
    }
    let at = group.y * params.columns + column;
    y[at] = select(0.0, y[at], params.accumulate != 0u) + params.alpha * total;
}

// ---- sum_pairs: x [R, 2, C] -> y [C], z [C] ------------------------------------------------------

@compute @workgroup_size(64)
fn sum_pairs(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let column = group.x * 64u + lane;
    if column >= params.columns {
        return;
    }
    var sums = vec2(0.0);
    for (var row = 0u; row < params.rows; row++) {
        let at = row * 2u * params.columns + column;
        sums += vec2<f32>(vec2(x[at], x[at + params.columns]));
    }
    y[column] = sums.x;
    z[column] = sums.y;
}
