// Dropout and stochastic depth. Nothing is stored: the backward pass draws the same numbers again.
//
//   keep = 1 / (1 - rate) with probability 1 - rate, else 0
//
// Host: src/ops/drop.rs        Test: kernels-tests/drop.rs
// L = elements, S = samples (or samples × channels), C = channels.

struct Params {
    len: u32,
    per_sample: u32,  // elements, or pixels
    channels: u32,
    stream: u32,
    rate: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> random: array<u32>;      // [4]: seed, step; low word first
@group(0) @binding(2) var<storage, read> x: array<f32>;           // [L]
@group(0) @binding(3) var<storage, read> keep: array<f32>;        // [S] or [S, C]
@group(0) @binding(4) var<storage, read_write> y: array<f32>;     // [L]
@group(0) @binding(5) var<storage, read_write> drawn: array<f32>; // [L]

const WORKGROUP: u32 = 64u;

// Numbers 4 `four` and the next three of this op's stream in this step.
fn draw(four: u32) -> vec4<f32> {
    let key = vec2(random[0], random[1]);
    let bits = philox(key, vec4(four, params.stream, random[2], random[3]));
    let numbers = vec4(unit(bits.x), unit(bits.y), unit(bits.z), unit(bits.w));
    return select(vec4(0.0), vec4(1.0 / (1.0 - params.rate)), numbers >= vec4(params.rate));
}

// ---- draw_keep: random -> drawn ------------------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn draw_keep(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (group.x + group.y * groups.x) * WORKGROUP + lane;
    if i < params.len {
        drawn[i] = draw(i / 4u)[i % 4u];
    }
}

// ---- scale_samples: x, keep -> y = x keep[sample] ------------------------------------------------
// z of the grid: sample.

@compute @workgroup_size(WORKGROUP)
fn scale_samples(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = (group.x + group.y * groups.x) * 256u;
    let end = min(start + 256u, params.per_sample);
    let sample = group.z * params.per_sample;
    for (var i = start + lane; i < end; i += WORKGROUP) {
        y[sample + i] = x[sample + i] * keep[group.z];
    }
}

// ---- scale_channels: x, keep -> y = x keep[sample, channel] --------------------------------------
// One workgroup per ROWS pixels; z of the grid: sample.

const ROWS: u32 = 16u;

@compute @workgroup_size(WORKGROUP)
fn scale_channels(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first = (group.x + group.y * groups.x) * ROWS;
    for (var c = lane; c < params.channels; c += WORKGROUP) {
        let factor = keep[group.z * params.channels + c];
        let start = (group.z * params.per_sample + first) * params.channels + c;
        for (var row = 0u; row < ROWS; row++) {
            if first + row < params.per_sample {
                y[start + row * params.channels] = x[start + row * params.channels] * factor;
            }
        }
    }
}

// ---- dropout: random, x -> y ---------------------------------------------------------------------
// One invocation per four elements, which share a draw.

@compute @workgroup_size(WORKGROUP)
fn dropout(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let four = (group.x + group.y * groups.x) * WORKGROUP + lane;
    let factors = draw(four);
    for (var i = 0u; i < 4u; i++) {
        let at = 4u * four + i;
        if at < params.len {
            y[at] = x[at] * factors[i];
        }
    }
}
