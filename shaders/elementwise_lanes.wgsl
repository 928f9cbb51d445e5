// Element by element where there is much to compute, for drivers that run on a CPU and have subgroups of eight: see
// lib/lanes.wgsl. Formulas: elementwise.wgsl.
//
// Host: src/ops/elementwise.rs        Test: kernels-tests/elementwise.rs
// L = elements, an even number.

struct Params {
    len: u32,
    value: f32,   // these two are elementwise.wgsl's
    period: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u64>;         // [L]
@group(0) @binding(2) var<storage, read> dy: array<u64>;        // [L]
@group(0) @binding(3) var<storage, read_write> y: array<u64>;   // [L]
@group(0) @binding(4) var<storage, read_write> dx: array<u64>;  // [L]

// Pairs that a workgroup has.
const SHARE: u32 = 128u;
// Vectors without a condition between them.
const UNROLLED: u32 = 8u;

// Eight pairs from `at` on, one for each lane.
fn x_of(at: u32, lane: u32) -> vec2<f32> {
    var v: array<u64, 8>;
    for (var k = 0u; k < 8u; k++) {
        v[k] = x[at + k];
    }
    return floats(spread(v, lane));
}

fn dy_of(at: u32, lane: u32) -> vec2<f32> {
    var v: array<u64, 8>;
    for (var k = 0u; k < 8u; k++) {
        v[k] = dy[at + k];
    }
    return floats(spread(v, lane));
}

// ---- gelu_forward: x -> y ------------------------------------------------------------------------

@compute @workgroup_size(8)
fn gelu_forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let start = (group.x + group.y * groups.x) * SHARE;
    let end = params.len / 2u;
    if start + SHARE > end {
        for (var at = start + lane; at < end; at += 8u) {
            y[at] = pair_of(gelu_of(floats(x[at])));
        }
        return;
    }
    for (var i = 0u; i < SHARE; i += 8u * UNROLLED) {
        for (var j = 0u; j < UNROLLED; j++) {
            let at = start + i + 8u * j;
            y[at + lane] = pair_of(gelu_of(x_of(at, lane)));
        }
    }
}

// ---- gelu_backward: x, dy -> dx ------------------------------------------------------------------

@compute @workgroup_size(8)
fn gelu_backward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let start = (group.x + group.y * groups.x) * SHARE;
    let end = params.len / 2u;
    if start + SHARE > end {
        for (var at = start + lane; at < end; at += 8u) {
            dx[at] = pair_of(floats(dy[at]) * gelu_slope_of(floats(x[at])));
        }
        return;
    }
    for (var i = 0u; i < SHARE; i += 8u * UNROLLED) {
        for (var j = 0u; j < UNROLLED; j++) {
            let at = start + i + 8u * j;
            dx[at + lane] = pair_of(dy_of(at, lane) * gelu_slope_of(x_of(at, lane)));
        }
    }
}

fn gelu_of(v: vec2<f32>) -> vec2<f32> {
    return vec2(gelu(v.x), gelu(v.y));
}

fn gelu_slope_of(v: vec2<f32>) -> vec2<f32> {
    return vec2(gelu_slope(v.x), gelu_slope(v.y));
}
