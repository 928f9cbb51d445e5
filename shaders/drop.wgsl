// Dropout and stochastic depth. Nothing is stored: the backward pass draws the same numbers again.
//
//   keep = 1 / (1 - rate) with probability 1 - rate, else 0
//
// Host: src/ops/drop.rs        Test: kernels-tests/drop.rs
// L = elements, S = samples (or samples × channels), C = channels.

struct Params {
    len: u32,
    per_sample: u32,
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

// Number `index` of this op's stream in this step.
fn draw(index: u32) -> f32 {
    let key = vec2(random[0], random[1]);
    let bits = philox(key, vec4(index >> 2u, params.stream, random[2], random[3]));
    return select(0.0, 1.0 / (1.0 - params.rate), unit(bits[index & 3u]) >= params.rate);
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
        drawn[i] = draw(i);
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

@compute @workgroup_size(WORKGROUP)
fn scale_channels(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (group.x + group.y * groups.x) * WORKGROUP + lane;
    if i < params.len {
        y[i] = x[i] * keep[i / params.per_sample * params.channels + i % params.channels];
    }
}

// ---- dropout: random, x -> y ---------------------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn dropout(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (group.x + group.y * groups.x) * WORKGROUP + lane;
    if i < params.len {
        y[i] = x[i] * draw(i);
    }
}
