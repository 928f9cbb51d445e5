// 3 × 3 convolution, padding 1, stride 1, for GPUs: tiles pass through workgroup memory.
//
//   y[p, o]              = Σ_{ky, kx, i} x[p + (ky - 1, kx - 1), i] weight[o, i, ky, kx]
//   dweight[o, i, ky, kx] = Σ_p dy[p, o] x[p + (ky - 1, kx - 1), i]
//
// Host: src/ops/conv3x3.rs        Test: kernels-tests/conv3x3.rs        For CPUs: conv3x3.wgsl
// B = batch, H × W = map, P = B H W pixels, I = inputs, O = outputs (channels). One workgroup per
// 64 × 64 tile, one invocation per 4 × 4 of it, 16 apart, as in matmul_tiled.wgsl. The weight comes
// packed from conv3x3.wgsl, so that lanes along the outputs read neighbouring words.

struct Params {
    batch: u32,
    height: u32,
    width: u32,
    inputs: u32,
    outputs: u32,
    from_output: u32,
    from_input: u32,
    turned: u32,
    splits: u32,  // of dweight's sum, along the rows of all maps
    first_group: u32,  // of a part of the dispatch
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Real>;             // [B, H, W, I]
@group(0) @binding(2) var<storage, read> strips: array<f32>;         // [O / 32, 9 I, 32]
@group(0) @binding(3) var<storage, read> dy: array<Real>;            // [P, O]
@group(0) @binding(4) var<storage, read_write> y: array<f32>;        // [P, O]
@group(0) @binding(5) var<storage, read_write> dweight: array<f32>;  // [splits, O, I, 3, 3]

const STRIP: u32 = 32u;
const TILE: u32 = 64u;
const DEPTH: u32 = 16u;
const SIDE: u32 = 16u;

var<workgroup> tile_a: array<f32, 1088>;  // [DEPTH][TILE + 4], padded against bank conflicts
var<workgroup> tile_b: array<f32, 1088>;
const PITCH: u32 = 68u;

// ---- forward: x, strips -> y ---------------------------------------------------------------------

@compute @workgroup_size(256)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = params.first_group + group.x + group.y * groups.x;
    let pixels = params.batch * params.height * params.width;
    let col_tiles = (params.outputs + TILE - 1u) / TILE;
    let first = id / col_tiles * TILE;
    let col = id % col_tiles * TILE;
    // An invocation fills the tile of x for four pixels, always the same.
    let p0 = locate(first + lane / SIDE, pixels);
    let p1 = locate(first + lane / SIDE + SIDE, pixels);
    let p2 = locate(first + lane / SIDE + 2u * SIDE, pixels);
    let p3 = locate(first + lane / SIDE + 3u * SIDE, pixels);
    let to_a = lane % DEPTH * PITCH + lane / SIDE;

    var tile = array<vec4<f32>, 4>();
    for (var tap = 0u; tap < 9u; tap++) {
        let ky = tap / 3u;
        let kx = tap % 3u;
        for (var start = 0u; start < params.inputs; start += DEPTH) {
            let input = start + lane % DEPTH;
            tile_a[to_a] = load_x(p0, ky, kx, input);
            tile_a[to_a + SIDE] = load_x(p1, ky, kx, input);
            tile_a[to_a + 2u * SIDE] = load_x(p2, ky, kx, input);
            tile_a[to_a + 3u * SIDE] = load_x(p3, ky, kx, input);
            for (var i = 0u; i < 4u; i++) {
                let k = lane / TILE + 4u * i;
                tile_b[k * PITCH + lane % TILE] = load_weight(tap, start + k, col + lane % TILE);
            }
            workgroupBarrier();
            multiply(&tile, lane);
            workgroupBarrier();
        }
    }
    for (var i = 0u; i < 4u; i++) {
        for (var j = 0u; j < 4u; j++) {
            let pixel = first + lane / SIDE + SIDE * i;
            let output = col + lane % SIDE + SIDE * j;
            if pixel < pixels && output < params.outputs {
                y[pixel * params.outputs + output] = tile[i][j];
            }
        }
    }
}

struct Pixel {
    row: u32,  // of all maps
    y: u32,
    x: u32,
    inside: bool,
}

fn locate(pixel: u32, pixels: u32) -> Pixel {
    let row = pixel / params.width;
    return Pixel(row, row % params.height, pixel % params.width, pixel < pixels);
}

// The value at a tap of a pixel, or zero beyond the map, so that edges need no branch of their own.
// Unsigned: 0 - 1 is far beyond the map too.
fn load_x(pixel: Pixel, ky: u32, kx: u32, input: u32) -> f32 {
    let down = pixel.y + ky - 1u;
    let across = pixel.x + kx - 1u;
    if !pixel.inside || down >= params.height || across >= params.width || input >= params.inputs {
        return 0.0;
    }
    return f32(x[((pixel.row + ky - 1u) * params.width + across) * params.inputs + input]);
}

fn load_weight(tap: u32, input: u32, output: u32) -> f32 {
    if input >= params.inputs || output >= params.outputs {
        return 0.0;
    }
    return strips[((output / STRIP * 9u + tap) * params.inputs + input) * STRIP + output % STRIP];
}

// ---- backward_weight: dy, x -> dweight -----------------------------------------------------------
// Rows of a tile are outputs, its columns inputs of one tap; z = split.

@compute @workgroup_size(256)
fn backward_weight(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = params.first_group + group.x + group.y * groups.x;
    let tap = id % 9u;
    let ky = tap / 3u;
    let kx = tap % 3u;
    let col_tiles = (params.inputs + TILE - 1u) / TILE;
    let first = id / 9u / col_tiles * TILE;
    let col = id / 9u % col_tiles * TILE;
    let rows = params.batch * params.height;
    let end = rows * (group.z + 1u) / params.splits;

    var tile = array<vec4<f32>, 4>();
    for (var row = rows * group.z / params.splits; row < end; row++) {
        let down = row % params.height;
        for (var start = 0u; start < params.width; start += DEPTH) {
            for (var i = 0u; i < 4u; i++) {
                let k = lane / TILE + 4u * i;
                let pixel = Pixel(row, down, start + k, start + k < params.width);
                tile_a[k * PITCH + lane % TILE] = load_dy(pixel, first + lane % TILE);
                tile_b[k * PITCH + lane % TILE] = load_x(pixel, ky, kx, col + lane % TILE);
            }
            workgroupBarrier();
            multiply(&tile, lane);
            workgroupBarrier();
        }
    }
    for (var i = 0u; i < 4u; i++) {
        for (var j = 0u; j < 4u; j++) {
            let output = first + lane / SIDE + SIDE * i;
            let input = col + lane % SIDE + SIDE * j;
            if output < params.outputs && input < params.inputs {
                let to = (group.z * params.outputs + output) * params.inputs + input;
                dweight[to * 9u + tap] = tile[i][j];
            }
        }
    }
}

fn load_dy(pixel: Pixel, output: u32) -> f32 {
    if !pixel.inside || output >= params.outputs {
        return 0.0;
    }
    return f32(dy[(pixel.row * params.width + pixel.x) * params.outputs + output]);
}

// ---- shared --------------------------------------------------------------------------------------

fn multiply(tile: ptr<function, array<vec4<f32>, 4>>, lane: u32) {
    let y = lane / SIDE;
    let x = lane % SIDE;
    for (var k = 0u; k < DEPTH; k++) {
        let at = k * PITCH;
        let v = vec4(tile_b[at + x], tile_b[at + x + 16u], tile_b[at + x + 32u], tile_b[at + x + 48u]);
        (*tile)[0] = fma(vec4(tile_a[at + y]), v, (*tile)[0]);
        (*tile)[1] = fma(vec4(tile_a[at + y + 16u]), v, (*tile)[1]);
        (*tile)[2] = fma(vec4(tile_a[at + y + 32u]), v, (*tile)[2]);
        (*tile)[3] = fma(vec4(tile_a[at + y + 48u]), v, (*tile)[3]);
    }
}
