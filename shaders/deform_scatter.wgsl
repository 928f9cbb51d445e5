// The gradient of maps that were sampled: every sample adds to the four pixels around it.
//
//   dmaps[pixel] = sum over samples n that meet the pixel of  weight[n] share[n, pixel] g[row of n]
//
// `link` of deform_attention.wgsl and deform_conv.wgsl has put the samples between the same four pixels into
// a list, in whatever order they came. A pixel walks along the lists of its four cells, so that no two
// invocations write to one place, and adds up whole numbers, whose sum does not depend on the order: the
// result is the same bit for bit each time.
//
//   |g| < 2^e, and weights and shares are at most 1, so the sum of N samples is below N 2^e. In units of
//   2^-k, k = 29 - ceil(log2 N) - e, it fits 31 bits with a sign. Below the unit 24 bits more are kept: what
//   is cut off of a sample is less than 2^(ceil(log2 N) - 53) of the largest g.
//
// If some g or weight is infinite or NaN, all of dmaps becomes NaN.
//
// Host: src/ops/deform_scatter.rs   Test: kernels-tests/deform_attention.rs   Lists: lib/deform.wgsl
// B = images of a chunk, S = pixels of all levels, M = heads, V = vectors of four channels per head.

struct Params {
    widths: vec4<u32>,
    heights: vec4<u32>,
    // Vectors of g, or of dmaps, that there is something to do for, and where they start.
    len: u32,
    g_offset: u32,
    offset: u32,
    tokens: u32,
    cells: u32,
    heads: u32,
    vectors: u32,
    // Samples that share a row of g.
    samples_per_row: u32,
    // ceil(log2 N)
    bits: u32,
    // Whether to add to what is in dmaps.
    accumulate: u32,
    first_group: u32,  // of a part of the dispatch
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> g: array<vec4<f32>>;                   // [samples / samples_per_row, V]
@group(0) @binding(2) var<storage, read> links: array<vec4<u32>>;               // [samples]
@group(0) @binding(3) var<storage, read> first: array<u32>;                     // [B, M, cells]
@group(0) @binding(4) var<storage, read> largest: array<u32>;                   // [1]
@group(0) @binding(5) var<storage, read_write> largest_out: array<atomic<u32>>; // [1]
@group(0) @binding(6) var<storage, read_write> dmaps: array<vec4<f32>>;         // [.., S, M, V]

const WORKGROUP: u32 = 64u;
const PER_GROUP: u32 = 1024u;

// ---- bound: g -> largest_out, the bits of the largest magnitude ----------------------------------
// Bits of magnitudes are in the order of the magnitudes, infinity and NaN last.

@compute @workgroup_size(WORKGROUP)
fn bound(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = (params.first_group + group.x + group.y * groups.x) * PER_GROUP;
    let end = min(start + PER_GROUP, params.len);
    var most = vec4(0u);
    for (var i = start + lane; i < end; i += WORKGROUP) {
        most = max(most, bitcast<vec4<u32>>(g[params.g_offset + i]) & vec4(0x7fffffffu));
    }
    let largest = max(max(most.x, most.y), max(most.z, most.w));
    // Few invocations get past this, and so do not wait for each other.
    if largest > atomicLoad(&largest_out[0]) {
        atomicMax(&largest_out[0], largest);
    }
}

// ---- gather: g, links, first, largest -> dmaps ---------------------------------------------------
// One invocation per vector of dmaps.

@compute @workgroup_size(WORKGROUP)
fn gather(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = (params.first_group + group.x + group.y * groups.x) * WORKGROUP + lane;
    if id >= params.len {
        return;
    }
    let vector = id % params.vectors;
    let row = id / params.vectors;
    let head = row % params.heads;
    let pixel = row / params.heads;
    let image = pixel / params.tokens;
    let token = locate_token(pixel - image * params.tokens, params.widths, params.heights);
    let cells_per_row = params.widths[token.level] + 1u;
    let first_cell = (image * params.heads + head) * params.cells + token.first_cell;

    // Not below 2^-90, where the units are small enough and their scale is still a number.
    let exponent = max(i32(largest[0] >> 23u) - 126, -90);
    let k = 29 - i32(params.bits) - exponent;
    let scale = power_of_two(k);
    var units = vec4(0);
    var parts = vec4(0);
    for (var cell = 0u; cell < 4u; cell++) {
        // The cell's first pixel is this one, or the one before it.
        let down = cell / 2u;
        let right = cell % 2u;
        var n = first[first_cell + (token.row + down) * cells_per_row + token.column + right];
        while n != 0u {
            let link = links[n - 1u];
            let sample = bitcast<vec3<f32>>(link.yzw);
            let x = select(sample.y, 1.0 - sample.y, right == 1u);
            let y = select(sample.z, 1.0 - sample.z, down == 1u);
            let from_row = (n - 1u) / params.samples_per_row;
            let term = sample.x * y * x * g[params.g_offset + from_row * params.vectors + vector];
            let scaled = term * scale;
            let whole = trunc(scaled);
            units += vec4<i32>(whole);
            parts += vec4<i32>((scaled - whole) * 16777216.0);
            let carry = parts >> vec4(24u);
            units += carry;
            parts -= carry << vec4(24u);
            n = link.x;
        }
    }
    var sum = (vec4<f32>(units) + vec4<f32>(parts) / 16777216.0) * power_of_two(-k);
    if largest[0] >= 0x7f800000u {
        sum = vec4(bitcast<f32>(largest[0] | NOT_A_NUMBER));
    }
    let at = params.offset + id;
    if params.accumulate != 0u {
        sum += dmaps[at];
    }
    dmaps[at] = sum;
}

fn power_of_two(exponent: i32) -> f32 {
    return bitcast<f32>(u32(exponent + 127) << 23u);
}
