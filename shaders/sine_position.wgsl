// The sine code of positions in a map: the first half of the channels is of the row, the second of the
// column.
//
//   angle(i, k) = 2 pi (i + 1) / (n + 1e-6) / 10000^(2 k / (C / 2))     row or column i of n
//   y = sin(angle(i, k)) in channel 2 k of the half, cos(angle(i, k)) in channel 2 k + 1
//
// Host: src/ops/sine_position.rs        Test: kernels-tests/sine_position.rs
// h × w = the map, C = channels. One invocation per element.

struct Params {
    // 10000^(-2 m / (C / 2)) for m = 1, 2, 4, 8 and 16, 32, 64, 128: any power is a product of them.
    low_powers: vec4<f32>,
    high_powers: vec4<f32>,
    height: u32,
    width: u32,
    channels: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;  // [h, w, C]

const WORKGROUP: u32 = 64u;
const TAU: f32 = 6.2831853;

// ---- forward: -> y -------------------------------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = (group.x + group.y * groups.x) * WORKGROUP + lane;
    let pixel = id / params.channels;
    if pixel >= params.height * params.width {
        return;
    }
    let half = params.channels / 2u;
    let channel = id - pixel * params.channels;
    let of_row = channel < half;
    let place = select(pixel % params.width, pixel / params.width, of_row) + 1u;
    let size = select(params.width, params.height, of_row);
    let c = channel % half;
    let angle = f32(place) / (f32(size) + 1e-6) * TAU * frequency(c / 2u);
    y[id] = sine(angle, c % 2u);
}

fn frequency(k: u32) -> f32 {
    var product = 1.0;
    for (var bit = 0u; bit < 4u; bit++) {
        product *= select(1.0, params.low_powers[bit], ((k >> bit) & 1u) == 1u);
        product *= select(1.0, params.high_powers[bit], ((k >> (bit + 4u)) & 1u) == 1u);
    }
    return product;
}

// The sine of an angle in 0..2π, or with `quarters` = 1 its cosine. WGSL's own may be off by 2⁻¹¹. Taylor's
// series up to π/4 are off by 3e-8 at most.
fn sine(angle: f32, quarters: u32) -> f32 {
    let quarter = round(angle * 0.63661977);
    // π/2 in two parts, so that the difference loses nothing.
    let r = (angle - quarter * 1.5703125) - quarter * 4.8382679e-4;
    let s = r * r;
    let sine_r = r * (1.0 + s * (-0.16666667 + s * (8.3333333e-3 + s * (-1.9841270e-4 + s * 2.7557319e-6))));
    let cosine_r = 1.0 + s * (-0.5 + s * (4.1666667e-2 + s * (-1.3888889e-3 + s * 2.4801587e-5)));
    let turn = (u32(quarter) + quarters) % 4u;
    let v = select(sine_r, cosine_r, turn % 2u == 1u);
    return select(v, -v, turn >= 2u);
}
