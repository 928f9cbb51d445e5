// Patches of pictures as rows of a matrix, normalised on the way.
//
//   v[b, y, x, c] = (value - mean[c]) / deviation[c], value in 0..255, or 0 where alpha is 0
//   cells[b, i, j, (c, ky, kx)] = v[b, i s + ky - o, j s + kx - o, c], or 0 beyond the picture
//
// Host: src/ops/patch.rs        Test: kernels-tests/patch.rs
// B = batch, H × W = picture, p = side of a patch, s = step from one patch to the next, o = rows and columns of
// zeros before the picture. Pixels are words, red in the lowest byte. A workgroup has 32 patches side by
// side: lanes go along the pixels of a patch, and along patches where one has fewer pixels than there are lanes.

struct Params {
    mean: vec4<f32>,
    deviation: vec4<f32>,
    batch: u32,
    height: u32,
    width: u32,
    side: u32,
    step: u32,
    before: u32,
    down: u32,    // patches
    across: u32,
    flip: u32,    // whether left and right change places
    linear: u32,  // whether the texture answers linear light
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> rgba: array<u32>;     // [B, H, W]
@group(0) @binding(2) var image: texture_2d<f32>;              // [H, W]
@group(0) @binding(3) var<storage, read_write> y: array<f32>;  // [B, down, across, 3 p²]

const WORKGROUP: u32 = 64u;
const ACROSS: u32 = 32u;
const EIGHT: u32 = 8u;

// ---- cut: rgba -> y ------------------------------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn cut(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let run = locate(group, groups, lane);
    for (var q = run.first; q < run.pixels; q += run.along) {
        let from_row = row_of(run, q);
        let kx = q % params.side;
        // Eight patches at a time: on a CPU driver each pass of a loop costs as much as several loads.
        for (var j = run.start; j < run.end; j += EIGHT * run.abreast) {
            for (var i = 0u; i < EIGHT; i++) {
                let to = j + i * run.abreast;
                let at = col_of(to, kx);
                if to < run.end {
                    var v = vec3(0.0);
                    if from_row < params.height && at.x < params.width {
                        let word = rgba[(run.b * params.height + from_row) * params.width + at.y];
                        v = normalized(pixel_of(word), params.mean, params.deviation);
                    }
                    store(run, to, q, v);
                }
            }
        }
    }
}

// ---- cut_texture: image -> y ---------------------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn cut_texture(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let run = locate(group, groups, lane);
    for (var q = run.first; q < run.pixels; q += run.along) {
        let from_row = row_of(run, q);
        let kx = q % params.side;
        for (var j = run.start; j < run.end; j += run.abreast) {
            let at = col_of(j, kx);
            var v = vec3(0.0);
            if from_row < params.height && at.x < params.width {
                let there = textureLoad(image, vec2(at.y, from_row), 0);
                let pixel = 255.0 * encoded(there, params.linear);
                v = normalized(pixel, params.mean, params.deviation);
            }
            store(run, j, q, v);
        }
    }
}

// ---- shared --------------------------------------------------------------------------------------

// What a lane does of row `i` of the patches of picture `b`: of the patches `start`, `start + abreast`, … before
// `end` the pixels `first`, `first + along`, … .
struct Run {
    b: u32,
    i: u32,
    row: u32,      // of patches, of all pictures
    start: u32,
    end: u32,
    abreast: u32,
    first: u32,
    pixels: u32,   // of a patch; none beyond the last picture
    along: u32,
}

fn locate(group: vec3<u32>, groups: vec3<u32>, lane: u32) -> Run {
    let id = group.x + group.y * groups.x;
    let runs = (params.across + ACROSS - 1u) / ACROSS;
    let pixels = params.side * params.side;
    var run: Run;
    run.row = id / runs;
    run.b = run.row / params.down;
    run.i = run.row % params.down;
    run.along = min(pixels, WORKGROUP);
    run.abreast = WORKGROUP / run.along;
    run.first = lane % run.along;
    run.start = id % runs * ACROSS + lane / run.along;
    run.end = min(id % runs * ACROSS + ACROSS, params.across);
    // Lanes that are too few for another patch have none.
    let some = run.b < params.batch && lane / run.along < run.abreast;
    run.pixels = select(0u, pixels, some);
    return run;
}

// The picture's row that pixel `q` of a patch is of. Before the picture it wraps around to beyond it.
fn row_of(run: Run, q: u32) -> u32 {
    return run.i * params.step + q / params.side - params.before;
}

// The column that column `kx` of patch `j` is of, likewise, and which it is in memory.
fn col_of(j: u32, kx: u32) -> vec2<u32> {
    let col = j * params.step + kx - params.before;
    return vec2(col, select(col, params.width - 1u - col, params.flip != 0u));
}

fn store(run: Run, j: u32, q: u32, v: vec3<f32>) {
    let pixels = run.pixels;
    let to = (run.row * params.across + j) * 3u * pixels + q;
    y[to] = v.r;
    y[to + pixels] = v.g;
    y[to + 2u * pixels] = v.b;
}
