// 3 × 3 convolution, padding 1, stride 1, for drivers that run on a CPU: register tiles, no barriers.
//
//   y[p, o]              = Σ_{ky, kx, i} x[p + (ky - 1, kx - 1), i] weight[o, i, ky, kx]
//   dweight[o, i, ky, kx] = Σ_p dy[p, o] x[p + (ky - 1, kx - 1), i]
//
// Host: src/ops/conv3x3.rs        Test: kernels-tests/conv3x3.rs        For GPUs: conv3x3_tiled.wgsl
// B = batch, H × W = map, P = B H W pixels, I = inputs, O = outputs (channels). The gradient of x is
// the same product of dy with the weight turned by 180° and its channels exchanged. Zeros around
// the map make all pixels alike: `padded` is [B, H + 2, W + 2, I]. An invocation owns 16 pixels (or
// 16 rows of dweight) of 4 columns that lie 8 apart: reading 8 neighbouring words of a strip costs
// lavapipe more than an fma, so tall tiles pay although they do not fit its registers (f2 of the
// benches, CPU ms: 4 rows 125, 8 rows 80, 16 rows 60, 24 rows 61). It unrolls the loops over rows. In mixed
// precision x, dy and the weight have 16 bits.

struct Params {
    batch: u32,
    height: u32,
    width: u32,
    inputs: u32,
    outputs: u32,
    from_output: u32,  // elements of weight from one output to the next
    from_input: u32,
    turned: u32,       // whether to turn the weight by 180°
    splits: u32,       // of dweight's sum, along the rows of all maps
    first_group: u32,  // of a part of the dispatch
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Real>;               // [B, H, W, I]
@group(0) @binding(2) var<storage, read> weight: array<Real>;          // strides of Params
@group(0) @binding(3) var<storage, read> padded: array<f32>;           // [B, H + 2, W + 2, I]
@group(0) @binding(4) var<storage, read> strips: array<f32>;           // [O / 32, 9 I, 32]
@group(0) @binding(5) var<storage, read> x_strips: array<f32>;         // [I / 32, B, H + 2, W + 2, 32]
@group(0) @binding(6) var<storage, read> dy: array<Real>;              // [P, O]
@group(0) @binding(7) var<storage, read_write> packed: array<f32>;     // padded, strips or x_strips
@group(0) @binding(8) var<storage, read_write> y: array<f32>;          // [P, O]
@group(0) @binding(9) var<storage, read_write> dweight: array<f32>;    // [splits, O, I, 3, 3]

const STRIP: u32 = 32u;
const TILE_ROWS: u32 = 16u;

// ---- pack_weight: weight -> packed ---------------------------------------------------------------
// Strips of 32 outputs, [tap][input][32]; zero beyond the last. One workgroup per strip and 16 inputs.

@compute @workgroup_size(STRIP)
fn pack_weight(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = params.first_group + group.x + group.y * groups.x;
    let count = (params.outputs + STRIP - 1u) / STRIP;
    let strip = id % count;
    let start = id / count * 16u;
    let end = min(start + 16u, params.inputs);
    let output = strip * STRIP + lane;
    let from_output = min(output, params.outputs - 1u) * params.from_output;
    for (var i = start; i < end; i++) {
        for (var tap = 0u; tap < 9u; tap++) {
            let from_tap = select(tap, 8u - tap, params.turned != 0u);
            let v = f32(weight[from_output + i * params.from_input + from_tap]);
            let to = (strip * 9u + tap) * params.inputs + i;
            packed[to * STRIP + lane] = select(0.0, v, output < params.outputs);
        }
    }
}

// ---- pad: x -> packed ----------------------------------------------------------------------------
// One workgroup per row of a padded map.

@compute @workgroup_size(64)
fn pad(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = params.first_group + group.x + group.y * groups.x;
    if row >= params.batch * (params.height + 2u) {
        return;
    }
    let b = row / (params.height + 2u);
    let line = row % (params.height + 2u);
    let to = row * (params.width + 2u) * params.inputs;
    let len = (params.width + 2u) * params.inputs;
    if line == 0u || line > params.height {
        for (var i = lane; i < len; i += 64u) {
            packed[to + i] = 0.0;
        }
        return;
    }
    let start = (b * params.height + line - 1u) * params.width * params.inputs;
    let inner = params.width * params.inputs;
    for (var i = lane; i < params.inputs; i += 64u) {
        packed[to + i] = 0.0;
        packed[to + params.inputs + inner + i] = 0.0;
    }
    for (var i = lane; i < inner; i += 64u) {
        packed[to + params.inputs + i] = f32(x[start + i]);
    }
}

// ---- pad_strips: x -> packed ---------------------------------------------------------------------
// Strips of 32 inputs of the padded map; zero beyond the last. One workgroup per row of one strip.

@compute @workgroup_size(STRIP)
fn pad_strips(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = params.first_group + group.x + group.y * groups.x;
    let lines = params.batch * (params.height + 2u);
    let strip = id / lines;
    let row = id % lines;
    let input = strip * STRIP + lane;
    if strip * STRIP >= params.inputs {
        return;
    }
    let b = row / (params.height + 2u);
    let line = row % (params.height + 2u);
    let to = id * (params.width + 2u) * STRIP + lane;
    let inside = line > 0u && line <= params.height && input < params.inputs;
    packed[to] = 0.0;
    packed[to + (params.width + 1u) * STRIP] = 0.0;
    let start = (b * params.height + max(line, 1u) - 1u) * params.width * params.inputs + input;
    for (var i = 0u; i < params.width; i++) {
        var v = 0.0;
        if inside {
            v = f32(x[start + i * params.inputs]);
        }
        packed[to + (i + 1u) * STRIP] = v;
    }
}

// ---- forward: padded, strips -> y ----------------------------------------------------------------
// One workgroup per 16 × 32 tile; neighbours share a strip.

@compute @workgroup_size(8)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = params.first_group + group.x + group.y * groups.x;
    let pixels = params.batch * params.height * params.width;
    let tiles = (pixels + TILE_ROWS - 1u) / TILE_ROWS;
    let first = id % tiles * TILE_ROWS;
    let strip = id / tiles;
    if strip * STRIP >= params.outputs {
        return;
    }
    var corners = array<u32, TILE_ROWS>();
    for (var r = 0u; r < TILE_ROWS; r++) {
        corners[r] = corner(first + r, pixels);
    }
    var tile = array<vec4<f32>, TILE_ROWS>();
    var from_strip = strip * 9u * params.inputs * STRIP + lane;
    // The three taps of a row, and their channels, are neighbours both here and in the strip.
    let run = 3u * params.inputs;
    for (var ky = 0u; ky < 3u; ky++) {
        var at = ky * (params.width + 2u) * params.inputs;
        let end = at + run;
        for (; at + 4u <= end; at += 4u) {
            {
                let row = from_strip;
                let v = vec4(strips[row], strips[row + 8u], strips[row + 16u], strips[row + 24u]);
                for (var r = 0u; r < TILE_ROWS; r++) {
                    tile[r] = fma(vec4(padded[corners[r] + at]), v, tile[r]);
                }
            }
            {
                let row = from_strip + STRIP;
                let v = vec4(strips[row], strips[row + 8u], strips[row + 16u], strips[row + 24u]);
                for (var r = 0u; r < TILE_ROWS; r++) {
                    tile[r] = fma(vec4(padded[corners[r] + at + 1u]), v, tile[r]);
                }
            }
            {
                let row = from_strip + 2u * STRIP;
                let v = vec4(strips[row], strips[row + 8u], strips[row + 16u], strips[row + 24u]);
                for (var r = 0u; r < TILE_ROWS; r++) {
                    tile[r] = fma(vec4(padded[corners[r] + at + 2u]), v, tile[r]);
                }
            }
            {
                let row = from_strip + 3u * STRIP;
                let v = vec4(strips[row], strips[row + 8u], strips[row + 16u], strips[row + 24u]);
                for (var r = 0u; r < TILE_ROWS; r++) {
                    tile[r] = fma(vec4(padded[corners[r] + at + 3u]), v, tile[r]);
                }
            }
            from_strip += 4u * STRIP;
        }
        for (; at < end; at++) {
            let row = from_strip;
            let v = vec4(strips[row], strips[row + 8u], strips[row + 16u], strips[row + 24u]);
            for (var r = 0u; r < TILE_ROWS; r++) {
                tile[r] = fma(vec4(padded[corners[r] + at]), v, tile[r]);
            }
            from_strip += STRIP;
        }
    }
    for (var r = 0u; r < TILE_ROWS; r++) {
        for (var j = 0u; j < 4u; j++) {
            let output = strip * STRIP + lane + 8u * j;
            if first + r < pixels && output < params.outputs {
                y[(first + r) * params.outputs + output] = tile[r][j];
            }
        }
    }
}

// Where the 3 × 3 pixels around `pixel` start in `padded`. Beyond the last: those of the last.
fn corner(pixel: u32, pixels: u32) -> u32 {
    let p = min(pixel, pixels - 1u);
    let row = p / params.width;
    let b = row / params.height;
    return ((row + 2u * b) * (params.width + 2u) + p % params.width) * params.inputs;
}

// ---- backward_weight: dy, x_strips -> dweight ----------------------------------------------------
// One workgroup per tap and 16 outputs × 32 inputs; z = split. Neighbours share dy and the strip.

@compute @workgroup_size(8)
fn backward_weight(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = params.first_group + group.x + group.y * groups.x;
    let tap = id % 9u;
    let tiles = (params.outputs + TILE_ROWS - 1u) / TILE_ROWS;
    let first = id / 9u % tiles * TILE_ROWS;
    let strip = id / 9u / tiles;
    if strip * STRIP >= params.inputs {
        return;
    }
    let last = params.outputs - 1u;
    var columns = array<u32, TILE_ROWS>();
    for (var r = 0u; r < TILE_ROWS; r++) {
        columns[r] = min(first + r, last);
    }
    var tile = array<vec4<f32>, TILE_ROWS>();
    let rows = params.batch * params.height;
    let start = rows * group.z / params.splits;
    let end = rows * (group.z + 1u) / params.splits;
    let lines = params.batch * (params.height + 2u);
    for (var row = start; row < end; row++) {
        let line = row + 2u * (row / params.height) + tap / 3u;
        var from_strip = ((strip * lines + line) * (params.width + 2u) + tap % 3u) * STRIP + lane;
        var at = row * params.width * params.outputs;
        let stop = at + params.width * params.outputs;
        for (; at + 3u * params.outputs < stop; at += 4u * params.outputs) {
            for (var k = 0u; k < 4u; k++) {
                let v = strip_at(from_strip + k * STRIP);
                for (var r = 0u; r < TILE_ROWS; r++) {
                    tile[r] = fma(vec4(f32(dy[columns[r] + at + k * params.outputs])), v, tile[r]);
                }
            }
            from_strip += 4u * STRIP;
        }
        for (; at < stop; at += params.outputs) {
            let v = strip_at(from_strip);
            for (var r = 0u; r < TILE_ROWS; r++) {
                tile[r] = fma(vec4(f32(dy[columns[r] + at])), v, tile[r]);
            }
            from_strip += STRIP;
        }
    }
    for (var r = 0u; r < TILE_ROWS; r++) {
        for (var j = 0u; j < 4u; j++) {
            let input = strip * STRIP + lane + 8u * j;
            if first + r < params.outputs && input < params.inputs {
                let to = (group.z * params.outputs + first + r) * params.inputs + input;
                dweight[to * 9u + tap] = tile[r][j];
            }
        }
    }
}

fn strip_at(at: u32) -> vec4<f32> {
    return vec4(x_strips[at], x_strips[at + 8u], x_strips[at + 16u], x_strips[at + 24u]);
}
