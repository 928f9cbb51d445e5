// 3 × 3 convolution, padding 1, stride 1, for GPUs: tiles pass through workgroup memory, see lib/tiles.wgsl.
//
//   y[p, o]              = Σ_{ky, kx, i} x[p + (ky - 1, kx - 1), i] weight[o, i, ky, kx]
//   dweight[o, i, ky, kx] = Σ_p dy[p, o] x[p + (ky - 1, kx - 1), i]
//
// Host: src/ops/conv3x3.rs        Test: kernels-tests/conv3x3.rs        For CPUs: conv3x3.wgsl
// B = batch, H × W = map, P = B H W pixels, I = inputs, O = outputs (channels); C = I or O, rounded up to
// whole DEPTHs. Zeros around the map make all pixels alike, so that what varies from step to step of a sum
// is the same for all lanes: a padded map has B (H + 2) lines of W + 2 pixels, and some lines of zeros. The
// gradient of x is the same product of dy with the weight turned by 180° and its channels exchanged. In
// mixed precision x, dy and the weight have 16 bits.

struct Params {
    batch: u32,
    height: u32,
    width: u32,
    inputs: u32,
    outputs: u32,
    lines: u32,        // of the padded map
    from_output: u32,  // elements of weight from one output to the next
    from_input: u32,
    turned: u32,       // whether to turn the weight by 180°
    splits: u32,       // of dweight's sum
    first_group: u32,  // of a part of the dispatch
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Real>;                         // [B, H, W, I]
@group(0) @binding(2) var<storage, read> weight: array<Real>;                    // strides of Params
@group(0) @binding(3) var<storage, read> strips: array<vec4<f32>>;               // [O / TILE, 9 C of I, TILE]
@group(0) @binding(4) var<storage, read> padded_x: array<vec4<Real>>;            // [lines, W + 2, C of I]
@group(0) @binding(5) var<storage, read> padded_dy: array<vec4<Real>>;           // [lines, W + 2, C of O]
@group(0) @binding(6) var<storage, read_write> padded_out: array<Real>;          // [lines, W + 2, C of I]
@group(0) @binding(7) var<storage, read_write> strips_out: array<f32>;           // [O / TILE, 9 C of I, TILE]
@group(0) @binding(8) var<storage, read_write> y: array<f32>;                    // [P, O]
@group(0) @binding(9) var<storage, read_write> dweight: array<f32>;             // [splits, O, I, 3, 3]

// Channels of a padded map.
fn rounded(channels: u32) -> u32 {
    return (channels + DEPTH - 1u) / DEPTH * DEPTH;
}

// ---- pad: x -> padded_out ------------------------------------------------------------------------
// One workgroup per line of the padded map.

@compute @workgroup_size(64)
fn pad(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let line = params.first_group + group.x + group.y * groups.x;
    let channels = rounded(params.inputs);
    let elements = (params.width + 2u) * channels;
    if line >= params.lines {
        return;
    }
    let row = line % (params.height + 2u);
    let inside = line < params.batch * (params.height + 2u) && row > 0u && row <= params.height;
    let start = (line / (params.height + 2u) * params.height + row - 1u) * params.width;
    for (var i = lane; i < elements; i += 64u) {
        let pixel = i / channels;
        let channel = i % channels;
        var v = Real(0.0);
        if inside && pixel > 0u && pixel <= params.width && channel < params.inputs {
            v = x[(start + pixel - 1u) * params.inputs + channel];
        }
        padded_out[line * elements + i] = v;
    }
}

// ---- pack_weight: weight -> strips_out -----------------------------------------------------------
// Strips of TILE outputs, [tap][input][TILE]; zero beyond the last output and input. One workgroup per strip and
// DEPTH inputs.

@compute @workgroup_size(TILE)
fn pack_weight(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = params.first_group + group.x + group.y * groups.x;
    let channels = rounded(params.inputs);
    let count = (params.outputs + TILE - 1u) / TILE;
    let strip = id % count;
    let first = id / count * DEPTH;
    let output = strip * TILE + lane;
    for (var i = first; i < min(first + DEPTH, channels); i++) {
        for (var tap = 0u; tap < 9u; tap++) {
            var v = 0.0;
            if output < params.outputs && i < params.inputs {
                let from_tap = select(tap, 8u - tap, params.turned != 0u);
                v = f32(weight[output * params.from_output + i * params.from_input + from_tap]);
            }
            strips_out[((strip * 9u + tap) * channels + i) * TILE + lane] = v;
        }
    }
}

// ---- forward: padded_x, strips -> y ----------------------------------------------------------------

@compute @workgroup_size(64)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = params.first_group + group.x + group.y * groups.x;
    let pixels = params.batch * params.height * params.width;
    let strips_count = (params.outputs + TILE - 1u) / TILE;
    let first = id / strips_count * TILE;
    let strip = id % strips_count;
    let channels = rounded(params.inputs);
    let share_a = share(0u, lane, true);
    let share_b = share(TILE_B, lane, false);
    let sums_at = corner_of(lane);
    // An invocation fills the tile of x for four pixels, always the same.
    var corners: array<u32, 4>;
    for (var i = 0u; i < 4u; i++) {
        let pixel = first + 4u * share_a.four + i;
        corners[i] = (corner(min(pixel, pixels - 1u)) * channels + share_a.k) / 4u;
    }
    var from_strip = (strip * 9u * channels + share_b.k) * (TILE / 4u) + share_b.four;

    var sums: Sums;
    for (var tap = 0u; tap < 9u; tap++) {
        let from_corner = (tap / 3u * (params.width + 2u) + tap % 3u) * channels;
        for (var input = 0u; input < channels; input += DEPTH) {
            let shift = (from_corner + input) / 4u;
            put(share_a, mat4x4<f32>(
                vec4<f32>(padded_x[corners[0] + shift]),
                vec4<f32>(padded_x[corners[1] + shift]),
                vec4<f32>(padded_x[corners[2] + shift]),
                vec4<f32>(padded_x[corners[3] + shift])));
            put(share_b, mat4x4<f32>(
                strips[from_strip],
                strips[from_strip + TILE],
                strips[from_strip + 2u * TILE],
                strips[from_strip + 3u * TILE]));
            from_strip += DEPTH * TILE / 4u;
            workgroupBarrier();
            multiply_tiles(&sums, sums_at);
            workgroupBarrier();
        }
    }
    for (var i = 0u; i < 16u; i++) {
        for (var j = 0u; j < 4u; j++) {
            let pixel = first + spread(lane / SIDE, i / 2u);
            let output = strip * TILE + spread(lane % SIDE, i % 2u * 4u + j);
            if pixel < pixels && output < params.outputs {
                y[pixel * params.outputs + output] = sums[i][j];
            }
        }
    }
}

// The first of the 3 × 3 pixels of the padded map around a pixel.
fn corner(pixel: u32) -> u32 {
    let row = pixel / params.width;
    return (row + 2u * (row / params.height)) * (params.width + 2u) + pixel % params.width;
}

// ---- backward_weight: padded_dy, padded_x -> dweight ---------------------------------------------
// Rows of a tile are outputs, its columns inputs of one tap; z = split. The sum is over all pixels of the padded map
// but those that have no neighbours, in whole DEPTHs; beyond dy it is zero.

@compute @workgroup_size(64)
fn backward_weight(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = params.first_group + group.x + group.y * groups.x;
    let tap = id % 9u;
    let col_tiles = (params.inputs + TILE - 1u) / TILE;
    let first = id / 9u / col_tiles * TILE;
    let col = id / 9u % col_tiles * TILE;
    let line = params.width + 2u;
    let count = params.batch * (params.height + 2u) * line - 2u * (line + 1u);
    let per_split = (count + params.splits * DEPTH - 1u) / (params.splits * DEPTH) * DEPTH;
    let start = min(group.z * per_split, count);
    let end = min(start + per_split, count);

    // Beyond the last vector of channels: the last, whose sums are not stored.
    let share_dy = share(0u, lane, false);
    let share_x = share(TILE_B, lane, false);
    let sums_at = corner_of(lane);
    let vectors_dy = rounded(params.outputs) / 4u;
    let vectors_x = rounded(params.inputs) / 4u;
    let from_dy = (line + 1u + share_dy.k) * vectors_dy + min(first / 4u + share_dy.four, vectors_dy - 1u);
    let from_x = (tap / 3u * line + tap % 3u + share_x.k) * vectors_x + min(col / 4u + share_x.four, vectors_x - 1u);
    var sums: Sums;
    for (var pixel = start; pixel < end; pixel += DEPTH) {
        let at_dy = from_dy + pixel * vectors_dy;
        let at_x = from_x + pixel * vectors_x;
        put(share_dy, mat4x4<f32>(
            vec4<f32>(padded_dy[at_dy]),
            vec4<f32>(padded_dy[at_dy + 4u * vectors_dy]),
            vec4<f32>(padded_dy[at_dy + 8u * vectors_dy]),
            vec4<f32>(padded_dy[at_dy + 12u * vectors_dy])));
        put(share_x, mat4x4<f32>(
            vec4<f32>(padded_x[at_x]),
            vec4<f32>(padded_x[at_x + 4u * vectors_x]),
            vec4<f32>(padded_x[at_x + 8u * vectors_x]),
            vec4<f32>(padded_x[at_x + 12u * vectors_x])));
        workgroupBarrier();
        multiply_tiles(&sums, sums_at);
        workgroupBarrier();
    }
    for (var i = 0u; i < 16u; i++) {
        for (var j = 0u; j < 4u; j++) {
            let output = first + spread(lane / SIDE, i / 2u);
            let input = col + spread(lane % SIDE, i % 2u * 4u + j);
            if output < params.outputs && input < params.inputs {
                let to = (group.z * params.outputs + output) * params.inputs + input;
                dweight[to * 9u + tap] = sums[i][j];
            }
        }
    }
}
