// Operands of a product of tiles, four numbers at a time: matrices that hold a whole tile, whose rows or columns are
// contiguous and start at multiples of four, and K a multiple of DEPTH. Offsets and strides of a and b count fours.

// Whether rows are contiguous, else columns are.
override ROWS_OF_A: bool = true;
override ROWS_OF_B: bool = true;

@group(0) @binding(1) var<storage, read> a: array<vec4<Real>>;  // strides of Params
@group(0) @binding(2) var<storage, read> b: array<vec4<Real>>;  // strides of Params

const WHOLE: bool = true;

fn accumulate_tile(place: Place, lane: u32) -> Sums {
    let of_a = share(0u, lane, ROWS_OF_A);
    let of_b = share(TILE_B, lane, !ROWS_OF_B);
    let known = before_loop(place, of_a, of_b);
    var at_a = start(of_a, place.a, place.row, place.start, select(params.a_inner, params.a_row, ROWS_OF_A));
    var at_b = start(of_b, place.b, place.col, place.start, select(params.b_col, params.b_inner, ROWS_OF_B));
    let step_a = select(NEXT_K * params.a_inner, params.a_row, ROWS_OF_A);
    let step_b = select(params.b_col, NEXT_K * params.b_inner, ROWS_OF_B);
    let corner = corner_of(lane);
    var sums: Sums;
    for (var k = place.start; k < place.end; k += DEPTH) {
        // One tile after the other, so that few vectors are in registers at once.
        put(of_a, prepared_a(mat4x4<f32>(
            vec4<f32>(a[at_a]),
            vec4<f32>(a[at_a + step_a]),
            vec4<f32>(a[at_a + 2u * step_a]),
            vec4<f32>(a[at_a + 3u * step_a])), known, of_a, k));
        put(of_b, prepared_b(mat4x4<f32>(
            vec4<f32>(b[at_b]),
            vec4<f32>(b[at_b + step_b]),
            vec4<f32>(b[at_b + 2u * step_b]),
            vec4<f32>(b[at_b + 3u * step_b])), known, of_b, k));
        at_a += select(DEPTH * params.a_inner, DEPTH / 4u, ROWS_OF_A);
        at_b += select(DEPTH / 4u, DEPTH * params.b_inner, ROWS_OF_B);
        workgroupBarrier();
        multiply_tiles(&sums, corner);
        workgroupBarrier();
    }
    return sums;
}

// Where an invocation's first vector is. `stride`: from one row (or column) or step of k to the next, whichever is not
// contiguous.
fn start(share: Share, matrix: u32, first: u32, k: u32, stride: u32) -> u32 {
    if share.along_k {
        return matrix + (first + 4u * share.four) * stride + (k + share.k) / 4u;
    }
    return matrix + (k + share.k) * stride + first / 4u + share.four;
}
