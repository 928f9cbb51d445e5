// Products of tiles in workgroup memory, for GPUs: 64 invocations have TILE × TILE sums, each EACH × EACH of them: four
// neighbours, and with EACH = 8 the four 32 beyond, in both directions, so that eight lanes read neighbouring vectors of
// workgroup memory, four of them for 64 products, or two for 16. TILE, DEPTH and EACH are those of lib/tile64.wgsl or
// lib/tile32.wgsl.

const SIDE: u32 = 8u;
const VECTORS: u32 = EACH / 4u;
const FOURS: u32 = TILE / 4u;

// The tile of a, at 0, and that of b, at TILE_B: [DEPTH][FOURS + 1] each, padded against bank conflicts.
const PITCH: u32 = FOURS + 1u;
const TILE_B: u32 = DEPTH * PITCH;
var<workgroup> tiles: array<vec4<f32>, 2u * TILE_B>;

// EACH rows of as many columns, each row as VECTORS vectors.
alias Sums = array<vec4<f32>, EACH * VECTORS>;

// Which of a tile's rows or columns is number i of those that invocation `place` has along it.
fn spread(place: u32, i: u32) -> u32 {
    return i / 4u * 32u + place * 4u + i % 4u;
}

// Where an invocation's first four rows and columns are in the tiles.
fn corner_of(lane: u32) -> vec2<u32> {
    return vec2(lane / SIDE, TILE_B + lane % SIDE);
}

// Adds the products of DEPTH steps.
fn multiply_tiles(sums: ptr<function, Sums>, corner: vec2<u32>) {
    // Two steps to a pass: compilers that keep the loop have one end of it for both.
    for (var step = 0u; step < DEPTH * PITCH; step += 2u * PITCH) {
        multiply_step(sums, corner + step);
        multiply_step(sums, corner + step + PITCH);
    }
}

fn multiply_step(sums: ptr<function, Sums>, corner: vec2<u32>) {
    var rows: array<vec4<f32>, VECTORS>;
    var columns: array<vec4<f32>, VECTORS>;
    for (var v = 0u; v < VECTORS; v++) {
        rows[v] = tiles[corner.x + SIDE * v];
        columns[v] = tiles[corner.y + SIDE * v];
    }
    for (var i = 0u; i < EACH; i++) {
        for (var v = 0u; v < VECTORS; v++) {
            let at = i * VECTORS + v;
            (*sums)[at] = fma(vec4(rows[i / 4u][i % 4u]), columns[v], (*sums)[at]);
        }
    }
}

// What an invocation brings of a tile whose rows (or, of b, columns) or steps of k are contiguous in memory: four
// vectors. Along k, vector i is row 4 four + i at k and the next three; else it is rows 4 four and the next three at
// k + NEXT_K i.
const NEXT_K: u32 = 64u / FOURS;

struct Share {
    k: u32,
    four: u32,
    to: u32,  // where its first vector goes
    along_k: bool,
}

// Of the tile that starts at `tile`.
fn share(tile: u32, lane: u32, along_k: bool) -> Share {
    let k = select(lane / FOURS, 4u * (lane % (DEPTH / 4u)), along_k);
    let four = select(lane % FOURS, lane / (DEPTH / 4u), along_k);
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
        tiles[to + NEXT_K * PITCH] = vectors[1];
        tiles[to + 2u * NEXT_K * PITCH] = vectors[2];
        tiles[to + 3u * NEXT_K * PITCH] = vectors[3];
    }
}
