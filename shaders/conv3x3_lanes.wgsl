// 3 × 3 convolution, padding 1, stride 1, for drivers that run on a CPU and have subgroups of eight: see
// lib/lanes.wgsl.
//
//   y[p, o]              = Σ_{ky, kx, i} x[p + (ky - 1, kx - 1), i] weight[o, i, ky, kx]
//   dweight[o, i, ky, kx] = Σ_p dy[p, o] x[p + (ky - 1, kx - 1), i]
//
// Host: src/ops/conv3x3_lanes.rs        Test: kernels-tests/conv3x3.rs
// B = batch, H × W = map, P = B H W pixels, I = inputs, O = outputs, both even; C = I or O, rounded up to a
// multiple of 8. Zeros around the map make all pixels alike: a padded map has Q = B (H + 2) (W + 2)
// pixels and eight more, rounded up to a multiple of 8. The gradient of x is the same product of dy
// with the weight turned by 180° and its channels exchanged.

struct Params {
    batch: u32,
    height: u32,
    width: u32,
    inputs: u32,
    outputs: u32,
    channels: u32,     // C
    pixels: u32,       // of the padded maps
    from_output: u32,  // elements of weight from one output to the next
    from_input: u32,
    turned: u32,       // whether to turn the weight by 180°
    splits: u32,       // of dweight's sum
    first_group: u32,  // of a part of the dispatch
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<RealPair>;            // [B, H, W, I]
@group(0) @binding(2) var<storage, read> weight: array<Real>;           // strides of Params
@group(0) @binding(3) var<storage, read> padded: array<u64>;            // [Q, C]
@group(0) @binding(4) var<storage, read> strips: array<u64>;            // [O / 32, 9 C, 32]
@group(0) @binding(5) var<storage, read> dy_strips: array<u64>;         // [O / 16, Q, 16]
@group(0) @binding(6) var<storage, read> x_strips: array<u64>;          // [I / 32, Q, 32]
@group(0) @binding(7) var<storage, read_write> padded_out: array<u64>;  // [Q, C]
@group(0) @binding(8) var<storage, read_write> strips_out: array<u64>;  // [O / 32, 9 C, 32]
@group(0) @binding(9) var<storage, read_write> y: array<u64>;           // [P, O]
@group(0) @binding(10) var<storage, read_write> dweight: array<f32>;    // [splits, O, I, 3, 3]

// ---- pad: x -> padded_out ------------------------------------------------------------------------
// One workgroup per row of a padded map, and one for the pixels beyond.

@compute @workgroup_size(8)
fn pad(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let row = params.first_group + group.x + group.y * groups.x;
    let rows = params.batch * (params.height + 2u);
    if row > rows {
        return;
    }
    let b = row / (params.height + 2u);
    let line = row % (params.height + 2u);
    let inside = row < rows && line > 0u && line <= params.height;
    let first = row * (params.width + 2u);
    let count = min(params.width + 2u, params.pixels - first);
    let start = (b * params.height + line - 1u) * params.width;
    let pairs = params.channels / 2u;
    for (var i = 0u; i < select(count, params.pixels - first, row == rows); i++) {
        let there = inside && i > 0u && i <= params.width;
        let from_pixel = (start + i - 1u) * (params.inputs / 2u);
        let to = (first + i) * pairs;
        // Four vectors at a time: each pass of a loop costs as much as several loads.
        for (var c = lane; c < pairs; c += 32u) {
            for (var j = 0u; j < 4u; j++) {
                let pair = c + 8u * j;
                if pair < pairs {
                    var v = vec2(0.0);
                    if there && 2u * pair < params.inputs {
                        v = floats_of(x[from_pixel + pair]);
                    }
                    padded_out[to + pair] = pair_of(v);
                }
            }
        }
    }
}

// ---- pack_weight: weight -> strips_out -----------------------------------------------------------
// Strips of 32 outputs, [tap][input][32]; zero beyond the last. One workgroup per 16 outputs and 8 inputs.

@compute @workgroup_size(8)
fn pack_weight(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let id = params.first_group + group.x + group.y * groups.x;
    let halves = (params.outputs + 31u) / 32u * 2u;
    let half = id % halves;
    let start = id / halves * 8u;
    let output = half * 16u + 2u * lane;
    let last = params.outputs - 1u;
    let from_x = min(output, last) * params.from_output;
    let from_y = min(output + 1u, last) * params.from_output;
    for (var i = start; i < min(start + 8u, params.channels); i++) {
        let from_input = min(i, params.inputs - 1u) * params.from_input;
        let there = i < params.inputs && output < params.outputs;
        for (var tap = 0u; tap < 9u; tap++) {
            let at = from_input + select(tap, 8u - tap, params.turned != 0u);
            let v = select(vec2(0.0), vec2<f32>(vec2(weight[from_x + at], weight[from_y + at])), there);
            let to = (half / 2u * 9u + tap) * params.channels + i;
            strips_out[to * 16u + half % 2u * 8u + lane] = pair_of(v);
        }
    }
}

// ---- forward: padded, strips -> y ----------------------------------------------------------------
// One workgroup per 16 × 32 tile; neighbours share a strip.

@compute @workgroup_size(8)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let id = params.first_group + group.x + group.y * groups.x;
    let pixels = params.batch * params.height * params.width;
    let tiles = (pixels + 15u) / 16u;
    let first = id % tiles * 16u;
    let strip = id / tiles;
    if strip * 32u >= params.outputs {
        return;
    }
    let pairs = params.channels / 2u;
    var near = corner(min(first + lane, pixels - 1u)) * pairs;
    var far = corner(min(first + 8u + lane, pixels - 1u)) * pairs;
    var from_strip = strip * 9u * params.channels * 16u + lane;
    var tile: Tile;
    for (var ky = 0u; ky < 3u; ky++) {
        // The three taps of a row, and their channels, are neighbours both here and in the strip.
        for (var at = 0u; at < 3u * pairs; at += 4u) {
            var left: Left;
            for (var i = 0u; i < 4u; i++) {
                let a = floats(padded[near + at + i]);
                let b = floats(padded[far + at + i]);
                left.values[0][2u * i] = a.x;
                left.values[0][2u * i + 1u] = a.y;
                left.values[1][2u * i] = b.x;
                left.values[1][2u * i + 1u] = b.y;
            }
            var right: Right;
            for (var i = 0u; i < 8u; i++) {
                let from_row = from_strip + i * 16u;
                right.values[i] = vec4(floats(strips[from_row]), floats(strips[from_row + 8u]));
            }
            add_products(&tile, left, right, true);
            from_strip += 128u;
        }
        near += (params.width + 2u) * pairs;
        far += (params.width + 2u) * pairs;
    }
    for (var r = 0u; r < 16u; r++) {
        if first + r < pixels {
            for (var j = 0u; j < 2u; j++) {
                let pair = strip * 16u + 8u * j + lane;
                if 2u * pair < params.outputs {
                    y[(first + r) * (params.outputs / 2u) + pair] = pair_of(half_of(tile, r, j));
                }
            }
        }
    }
}

// The first of the 3 × 3 padded pixels around a pixel.
fn corner(pixel: u32) -> u32 {
    let row = pixel / params.width;
    let b = row / params.height;
    return (row + 2u * b) * (params.width + 2u) + pixel % params.width;
}

// ---- backward_weight: dy_strips, x_strips -> dweight ---------------------------------------------
// One workgroup per tap and 16 outputs × 32 inputs; z = split. Neighbours share the strips. The sum goes
// over all pixels of the padded maps that have nine neighbours; where dy is padding it is zero.

@compute @workgroup_size(8)
fn backward_weight(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let id = params.first_group + group.x + group.y * groups.x;
    let tap = id % 9u;
    let tiles = (params.outputs + 15u) / 16u;
    let first = id / 9u % tiles * 16u;
    let strip = id / 9u / tiles;
    if strip * 32u >= params.inputs {
        return;
    }
    let margin = params.width + 3u;
    let eights = (params.batch * (params.height + 2u) * (params.width + 2u) - 2u * margin + 7u) / 8u;
    let start = margin + eights * group.z / params.splits * 8u;
    let end = margin + eights * (group.z + 1u) / params.splits * 8u;
    let shifted = tap / 3u * (params.width + 2u) + tap % 3u - margin;
    var from_dy = (first / 16u * params.pixels + start) * 8u + lane;
    var from_x = (strip * params.pixels + start + shifted) * 16u + lane;
    var tile: Tile;
    for (var k = start; k < end; k += 8u) {
        var left: Left;
        var right: Right;
        for (var i = 0u; i < 8u; i++) {
            let rows = floats(dy_strips[from_dy + i * 8u]);
            left.values[0][i] = rows.x;
            left.values[1][i] = rows.y;
            let from_row = from_x + i * 16u;
            right.values[i] = vec4(floats(x_strips[from_row]), floats(x_strips[from_row + 8u]));
        }
        add_products(&tile, left, right, false);
        from_dy += 64u;
        from_x += 128u;
    }
    for (var r = 0u; r < 16u; r++) {
        if first + r < params.outputs {
            for (var j = 0u; j < 2u; j++) {
                let input = strip * 32u + 16u * j + 2u * lane;
                if input < params.inputs {
                    let v = half_of(tile, r, j);
                    let to = ((group.z * params.outputs + first + r) * params.inputs + input) * 9u + tap;
                    dweight[to] = v.x;
                    dweight[to + 9u] = v.y;
                }
            }
        }
    }
}
