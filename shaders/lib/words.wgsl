// Operands of a product of tiles, one number at a time: any strides, any extents.

@group(0) @binding(1) var<storage, read> a: array<Real>;  // strides of Params
@group(0) @binding(2) var<storage, read> b: array<Real>;  // strides of Params

const WHOLE: bool = false;

fn accumulate_tile(place: Place, lane: u32) -> Sums {
    let of_a = part(lane, params.a_inner == 1u);
    let of_b = part(lane, params.b_inner == 1u);
    let corner = corner_of(lane);
    var sums: Sums;
    for (var k = place.start; k < place.end; k += DEPTH) {
        for (var i = 0u; i < 4u; i++) {
            let row = place.row + 4u * (of_a.four + i * of_a.next_four);
            let col = place.col + 4u * (of_b.four + i * of_b.next_four);
            let from_a = of_a.k + i * of_a.next_k;
            let from_b = of_b.k + i * of_b.next_k;
            tiles[from_a * PITCH + of_a.four + i * of_a.next_four] = load_a(place, row, k + from_a);
            tiles[TILE_B + from_b * PITCH + of_b.four + i * of_b.next_four] = load_b(place, k + from_b, col);
        }
        workgroupBarrier();
        multiply_tiles(&sums, corner);
        workgroupBarrier();
    }
    return sums;
}

// What an invocation brings of a tile: four vectors of four rows (or columns) at one k. The next is four steps of k
// further, or 16 rows. Lanes run along k, or along the rows.
struct Part {
    k: u32,
    next_k: u32,
    four: u32,
    next_four: u32,
}

fn part(lane: u32, along_k: bool) -> Part {
    if along_k {
        return Part(lane % DEPTH, 0u, lane / DEPTH, 4u);
    }
    return Part(lane / (TILE / 4u), 4u, lane % (TILE / 4u), 0u);
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
