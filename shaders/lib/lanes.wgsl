
// Products in the registers of eight lanes, for drivers that run on a CPU and make an eight-lane vector of
// a subgroup. A workgroup is one subgroup.
//
// Lanes that read neighbours gather all the same there, at the price of some twenty additions, and each
// gather brings up to 64 bits a lane: so tensors are bound as pairs of floats, 64-bit integers. A value
// for all lanes costs as much as an addition when another lane has it, but four times that from memory.
//
// A lane's number is to be @builtin(subgroup_invocation_id), which is a constant there: selecting by it moves
// parts of vectors. local_invocation_index takes 24 divisions.

fn floats(pair: u64) -> vec2<f32> {
    return vec2(bitcast<f32>(u32(pair)), bitcast<f32>(u32(pair >> 32u)));
}

fn pair_of(v: vec2<f32>) -> u64 {
    return u64(bitcast<u32>(v.x)) | (u64(bitcast<u32>(v.y)) << 32u);
}

// Value l of eight that are the same for all lanes goes to lane l. Eight loads from addresses that are, and this,
// take half of the time of a gather, if one address is known from the other.
fn spread(v: array<u64, 8>, lane: u32) -> u64 {
    let odd = (lane & 1u) != 0u;
    let upper = (lane & 2u) != 0u;
    let low = select(select(v[0], v[1], odd), select(v[2], v[3], odd), upper);
    let high = select(select(v[4], v[5], odd), select(v[6], v[7], odd), upper);
    return select(low, high, lane >= 4u);
}

// Sixteen rows of 32 columns; lane l has columns 2 l, 2 l + 1, 16 + 2 l, 17 + 2 l.
struct Tile {
    rows: array<vec4<f32>, 16>,
}

// Eight steps of k of a's rows: whichever of 16 rows a lane read.
struct Left {
    values: array<array<f32, 8>, 2>,
}

// Eight steps of k of b's columns.
struct Right {
    values: array<vec4<f32>, 8>,
}

// Adds the products of eight steps. If a was read along k, values[h] of lane l belong to row 8 h + l,
// else to row 2 l + h. Loops of constant length are unrolled, so nothing is indexed at run time.
fn add_products(tile: ptr<function, Tile>, a: Left, b: Right, along_k: bool) {
    for (var r = 0u; r < 16u; r++) {
        let half = select(r % 2u, r / 8u, along_k);
        let from_lane = select(r / 2u, r % 8u, along_k);
        for (var i = 0u; i < 8u; i++) {
            let v = subgroupShuffle(a.values[half][i], from_lane);
            (*tile).rows[r] = fma(vec4(v), b.values[i], (*tile).rows[r]);
        }
    }
}

// Columns 2 l and 2 l + 1 of the half j of a row.
fn half_of(tile: Tile, row: u32, j: u32) -> vec2<f32> {
    return select(tile.rows[row].xy, tile.rows[row].zw, j == 1u);
}
