// Products of tiles in workgroup memory, for GPUs: 64 invocations have 64 × 64 sums, each 8 × 8 of them: four
// neighbours and the four 32 beyond, in both directions, so that eight lanes read neighbouring vectors of
// workgroup memory, four of them for 64 products.

const TILE: u32 = 64u;
const DEPTH: u32 = 16u;
const SIDE: u32 = 8u;

var<workgroup> tile_a: array<vec4<f32>, 272>;  // [DEPTH][TILE / 4 + 1], padded against bank conflicts
var<workgroup> tile_b: array<vec4<f32>, 272>;
const PITCH: u32 = 17u;

// Eight rows of eight columns, each row as two vectors.
alias Sums = array<vec4<f32>, 16>;

// Which of a tile's rows or columns is number i of the eight that invocation `place` has along it.
fn spread(place: u32, i: u32) -> u32 {
    return i / 4u * 32u + place * 4u + i % 4u;
}

// Adds the products of DEPTH steps.
fn multiply_tiles(sums: ptr<function, Sums>, lane: u32) {
    let y = lane / SIDE;
    let x = lane % SIDE;
    for (var k = 0u; k < DEPTH; k++) {
        let rows = array<vec4<f32>, 2>(tile_a[k * PITCH + y], tile_a[k * PITCH + 8u + y]);
        let left = tile_b[k * PITCH + x];
        let right = tile_b[k * PITCH + 8u + x];
        for (var i = 0u; i < 8u; i++) {
            (*sums)[2u * i] = fma(vec4(rows[i / 4u][i % 4u]), left, (*sums)[2u * i]);
            (*sums)[2u * i + 1u] = fma(vec4(rows[i / 4u][i % 4u]), right, (*sums)[2u * i + 1u]);
        }
    }
}

// What an invocation puts into a tile: four vectors, each of four rows (or columns) at one k. The others have k
// four further than the one before, or their rows 16 further. Lanes run along k, or along the rows.
struct Share {
    k: u32,
    four: u32,  // of rows
    to: u32,    // where the first vector goes
    step: u32,  // from there to the next
    along_k: bool,
}

fn share(lane: u32, along_k: bool) -> Share {
    let k = select(lane / (TILE / 4u), lane % DEPTH, along_k);
    let four = select(lane % (TILE / 4u), lane / DEPTH, along_k);
    return Share(k, four, k * PITCH + four, select(4u * PITCH, 4u, along_k), along_k);
}
