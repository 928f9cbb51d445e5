// 3 × 3 convolution, padding 1, stride 1, for drivers that run on a CPU: register tiles, no barriers.
//
//   y[p, o]              = Σ_{ky, kx, i} x[p + (ky - 1, kx - 1), i] weight[o, i, ky, kx]
//   dweight[o, i, ky, kx] = Σ_p dy[p, o] x[p + (ky - 1, kx - 1), i]
//
// Host: src/ops/conv3x3.rs        Test: kernels-tests/conv3x3.rs        For GPUs: conv3x3_tiled.wgsl
// B = batch, H × W = map, P = B H W pixels, I = inputs, O = outputs (channels). The gradient of x is
// the same product of dy with the weight turned by 180° and its channels exchanged. Zeros around
// the map make all pixels alike: `padded` is [B, H + 2, W + 2, I]. An invocation owns 8 pixels (or 8
// rows of dweight) of 4 columns that lie 8 apart, as in matmul_packed.wgsl.

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
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;                // [B, H, W, I]
@group(0) @binding(2) var<storage, read> weight: array<f32>;           // strides of Params
@group(0) @binding(3) var<storage, read> padded: array<f32>;           // [B, H + 2, W + 2, I]
@group(0) @binding(4) var<storage, read> strips: array<f32>;           // [O / 32, 9 I, 32]
@group(0) @binding(5) var<storage, read> x_strips: array<f32>;         // [I / 32, B, H + 2, W + 2, 32]
@group(0) @binding(6) var<storage, read> dy: array<f32>;               // [P, O]
@group(0) @binding(7) var<storage, read_write> packed: array<f32>;     // padded, strips or x_strips
@group(0) @binding(8) var<storage, read_write> y: array<f32>;          // [P, O]
@group(0) @binding(9) var<storage, read_write> dweight: array<f32>;    // [splits, O, I, 3, 3]

const STRIP: u32 = 32u;
const TILE_ROWS: u32 = 8u;

// ---- pack_weight: weight -> packed ---------------------------------------------------------------
// Strips of 32 outputs, [tap][input][32]; zero beyond the last. One workgroup per strip and 16 inputs.

@compute @workgroup_size(STRIP)
fn pack_weight(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = group.x + group.y * groups.x;
    let count = (params.outputs + STRIP - 1u) / STRIP;
    let strip = id % count;
    let start = id / count * 16u;
    let end = min(start + 16u, params.inputs);
    let output = strip * STRIP + lane;
    let from_output = min(output, params.outputs - 1u) * params.from_output;
    for (var i = start; i < end; i++) {
        for (var tap = 0u; tap < 9u; tap++) {
            let from_tap = select(tap, 8u - tap, params.turned != 0u);
            let v = weight[from_output + i * params.from_input + from_tap];
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
    let row = group.x + group.y * groups.x;
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
        packed[to + params.inputs + i] = x[start + i];
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
    let id = group.x + group.y * groups.x;
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
            v = x[start + i * params.inputs];
        }
        packed[to + (i + 1u) * STRIP] = v;
    }
}

// ---- forward: padded, strips -> y ----------------------------------------------------------------
// One workgroup per 8 × 32 tile; neighbours share a strip.

@compute @workgroup_size(8)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = group.x + group.y * groups.x;
    let pixels = params.batch * params.height * params.width;
    let tiles = (pixels + TILE_ROWS - 1u) / TILE_ROWS;
    let first = id % tiles * TILE_ROWS;
    let strip = id / tiles;
    if strip * STRIP >= params.outputs {
        return;
    }
    let a0 = corner(first + 0u, pixels);
    let a1 = corner(first + 1u, pixels);
    let a2 = corner(first + 2u, pixels);
    let a3 = corner(first + 3u, pixels);
    let a4 = corner(first + 4u, pixels);
    let a5 = corner(first + 5u, pixels);
    let a6 = corner(first + 6u, pixels);
    let a7 = corner(first + 7u, pixels);
    var t0 = vec4(0.0);
    var t1 = vec4(0.0);
    var t2 = vec4(0.0);
    var t3 = vec4(0.0);
    var t4 = vec4(0.0);
    var t5 = vec4(0.0);
    var t6 = vec4(0.0);
    var t7 = vec4(0.0);
    var from_strip = strip * 9u * params.inputs * STRIP + lane;
    // The three taps of a row, and their channels, are neighbours both here and in the strip.
    let run = 3u * params.inputs;
    for (var ky = 0u; ky < 3u; ky++) {
        var at = ky * (params.width + 2u) * params.inputs;
        let end = at + run;
        for (; at + 4u <= end; at += 4u) {
            {
                let row = from_strip + 0u * STRIP;
                let v = vec4(strips[row], strips[row + 8u], strips[row + 16u], strips[row + 24u]);
                t0 = fma(vec4(padded[a0 + at]), v, t0);
                t1 = fma(vec4(padded[a1 + at]), v, t1);
                t2 = fma(vec4(padded[a2 + at]), v, t2);
                t3 = fma(vec4(padded[a3 + at]), v, t3);
                t4 = fma(vec4(padded[a4 + at]), v, t4);
                t5 = fma(vec4(padded[a5 + at]), v, t5);
                t6 = fma(vec4(padded[a6 + at]), v, t6);
                t7 = fma(vec4(padded[a7 + at]), v, t7);
            }
            {
                let row = from_strip + 1u * STRIP;
                let v = vec4(strips[row], strips[row + 8u], strips[row + 16u], strips[row + 24u]);
                t0 = fma(vec4(padded[a0 + at + 1u]), v, t0);
                t1 = fma(vec4(padded[a1 + at + 1u]), v, t1);
                t2 = fma(vec4(padded[a2 + at + 1u]), v, t2);
                t3 = fma(vec4(padded[a3 + at + 1u]), v, t3);
                t4 = fma(vec4(padded[a4 + at + 1u]), v, t4);
                t5 = fma(vec4(padded[a5 + at + 1u]), v, t5);
                t6 = fma(vec4(padded[a6 + at + 1u]), v, t6);
                t7 = fma(vec4(padded[a7 + at + 1u]), v, t7);
            }
            {
                let row = from_strip + 2u * STRIP;
                let v = vec4(strips[row], strips[row + 8u], strips[row + 16u], strips[row + 24u]);
                t0 = fma(vec4(padded[a0 + at + 2u]), v, t0);
                t1 = fma(vec4(padded[a1 + at + 2u]), v, t1);
                t2 = fma(vec4(padded[a2 + at + 2u]), v, t2);
                t3 = fma(vec4(padded[a3 + at + 2u]), v, t3);
                t4 = fma(vec4(padded[a4 + at + 2u]), v, t4);
                t5 = fma(vec4(padded[a5 + at + 2u]), v, t5);
                t6 = fma(vec4(padded[a6 + at + 2u]), v, t6);
                t7 = fma(vec4(padded[a7 + at + 2u]), v, t7);
            }
            {
                let row = from_strip + 3u * STRIP;
                let v = vec4(strips[row], strips[row + 8u], strips[row + 16u], strips[row + 24u]);
                t0 = fma(vec4(padded[a0 + at + 3u]), v, t0);
                t1 = fma(vec4(padded[a1 + at + 3u]), v, t1);
                t2 = fma(vec4(padded[a2 + at + 3u]), v, t2);
                t3 = fma(vec4(padded[a3 + at + 3u]), v, t3);
                t4 = fma(vec4(padded[a4 + at + 3u]), v, t4);
                t5 = fma(vec4(padded[a5 + at + 3u]), v, t5);
                t6 = fma(vec4(padded[a6 + at + 3u]), v, t6);
                t7 = fma(vec4(padded[a7 + at + 3u]), v, t7);
            }
            from_strip += 4u * STRIP;
        }
        for (; at < end; at++) {
            let row = from_strip;
            let v = vec4(strips[row], strips[row + 8u], strips[row + 16u], strips[row + 24u]);
            t0 = fma(vec4(padded[a0 + at]), v, t0);
            t1 = fma(vec4(padded[a1 + at]), v, t1);
            t2 = fma(vec4(padded[a2 + at]), v, t2);
            t3 = fma(vec4(padded[a3 + at]), v, t3);
            t4 = fma(vec4(padded[a4 + at]), v, t4);
            t5 = fma(vec4(padded[a5 + at]), v, t5);
            t6 = fma(vec4(padded[a6 + at]), v, t6);
            t7 = fma(vec4(padded[a7 + at]), v, t7);
            from_strip += STRIP;
        }
    }
    let tile = array<vec4<f32>, TILE_ROWS>(t0, t1, t2, t3, t4, t5, t6, t7);
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
// One workgroup per tap and 8 outputs × 32 inputs; z = split. Neighbours share dy and the strip.

@compute @workgroup_size(8)
fn backward_weight(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = group.x + group.y * groups.x;
    let tap = id % 9u;
    let tiles = (params.outputs + TILE_ROWS - 1u) / TILE_ROWS;
    let first = id / 9u % tiles * TILE_ROWS;
    let strip = id / 9u / tiles;
    if strip * STRIP >= params.inputs {
        return;
    }
    let last = params.outputs - 1u;
    let o0 = min(first + 0u, last);
    let o1 = min(first + 1u, last);
    let o2 = min(first + 2u, last);
    let o3 = min(first + 3u, last);
    let o4 = min(first + 4u, last);
    let o5 = min(first + 5u, last);
    let o6 = min(first + 6u, last);
    let o7 = min(first + 7u, last);
    var t0 = vec4(0.0);
    var t1 = vec4(0.0);
    var t2 = vec4(0.0);
    var t3 = vec4(0.0);
    var t4 = vec4(0.0);
    var t5 = vec4(0.0);
    var t6 = vec4(0.0);
    var t7 = vec4(0.0);
    let rows = params.batch * params.height;
    let start = rows * group.z / params.splits;
    let end = rows * (group.z + 1u) / params.splits;
    let lines = params.batch * (params.height + 2u);
    for (var row = start; row < end; row++) {
        let line = row + 2u * (row / params.height) + tap / 3u;
        var from_strip = ((strip * lines + line) * (params.width + 2u) + tap % 3u) * STRIP + lane;
        var at = row * params.width * params.outputs;
        let stop = at + params.width * params.outputs;
        for (; at < stop; at += params.outputs) {
            let v = vec4(x_strips[from_strip], x_strips[from_strip + 8u], x_strips[from_strip + 16u], x_strips[from_strip + 24u]);
            t0 = fma(vec4(dy[o0 + at]), v, t0);
            t1 = fma(vec4(dy[o1 + at]), v, t1);
            t2 = fma(vec4(dy[o2 + at]), v, t2);
            t3 = fma(vec4(dy[o3 + at]), v, t3);
            t4 = fma(vec4(dy[o4 + at]), v, t4);
            t5 = fma(vec4(dy[o5 + at]), v, t5);
            t6 = fma(vec4(dy[o6 + at]), v, t6);
            t7 = fma(vec4(dy[o7 + at]), v, t7);
            from_strip += STRIP;
        }
    }
    let tile = array<vec4<f32>, TILE_ROWS>(t0, t1, t2, t3, t4, t5, t6, t7);
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
