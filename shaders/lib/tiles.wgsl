// Products of tiles in workgroup memory, for GPUs: 64 invocations have 64 × 64 sums, each 8 × 8 of them: four
// neighbours and the four 32 beyond, in both directions, so that eight lanes read neighbouring vectors of
// workgroup memory, four of them for 64 products.

const TILE: u32 = 64u;
const DEPTH: u32 = 16u;
const SIDE: u32 = 8u;

// The tile of a, at 0, and that of b, at TILE_B: [DEPTH][TILE / 4 + 1] each, padded against bank conflicts.
var<workgroup> tiles: array<vec4<f32>, 544>;
const PITCH: u32 = 17u;
const TILE_B: u32 = 272u;

// Eight rows of eight columns, each row as two vectors.
alias Sums = array<vec4<f32>, 16>;

// Which of a tile's rows or columns is number i of the eight that invocation `place` has along it.
fn spread(place: u32, i: u32) -> u32 {
    return i / 4u * 32u + place * 4u + i % 4u;
}

// Where an invocation's first four rows and columns are in the tiles.
fn corner_of(lane: u32) -> vec2<u32> {
    return vec2(lane / SIDE, TILE_B + lane % SIDE);
}

// Adds the products of DEPTH steps.
fn multiply_tiles(sums: ptr<function, Sums>, corner: vec2<u32>) {
    for (var step = 0u; step < DEPTH * PITCH; step += PITCH) {
        let rows = array<vec4<f32>, 2>(tiles[corner.x + step], tiles[corner.x + step + 8u]);
        let left = tiles[corner.y + step];
        let right = tiles[corner.y + step + 8u];
        for (var i = 0u; i < 8u; i++) {
            (*sums)[2u * i] = fma(vec4(rows[i / 4u][i % 4u]), left, (*sums)[2u * i]);
            (*sums)[2u * i + 1u] = fma(vec4(rows[i / 4u][i % 4u]), right, (*sums)[2u * i + 1u]);
        }
    }
}

// What an invocation brings of a tile whose rows (or, of b, columns) or steps of k are contiguous in memory: four
// vectors. Along k, vector i is row 4 four + i at k and the next three; else it is rows 4 four and the next three at
// k + 4 i.
struct Share {
    k: u32,
    four: u32,
    to: u32,  // where its first vector goes
    along_k: bool,
}

// Of the tile that starts at `tile`.
fn share(tile: u32, lane: u32, along_k: bool) -> Share {
    let k = select(lane / 16u, 4u * (lane % 4u), along_k);
    let four = select(lane % 16u, lane / 4u, along_k);
    return Share(k, four, tile + k * PITCH + four, along_k);
}

// Puts the share into its tile.
fn put(share: Share, vectors: mat4x4<f32>) {
    let to = share.to;
    if share.along_k {
        let turned = transpose(vectors);
        tiles[to] = turned[0];
        tiles[to + PITCH] = turned[1];
        tiles[to + 2u * PITCH] = turned[2];
        tiles[to + 3u * PITCH] = turned[3];
    } else {
        tiles[to] = vectors[0];
        tiles[to + 4u * PITCH] = vectors[1];
        tiles[to + 8u * PITCH] = vectors[2];
        tiles[to + 12u * PITCH] = vectors[3];
    }
}
