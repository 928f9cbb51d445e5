// Element by element: fill, sum, bias, scale, activations.
//
//   gelu(v) = v Φ(v),  gelu'(v) = Φ(v) + v φ(v)      Φ, φ: the standard normal
//   relu(v) = max(v, 0)
//   narrowed(v): v with 16 bits
//
// Host: src/ops/elementwise.rs        Test: kernels-tests/elementwise.rs        Spans: lib/vectors.wgsl
// L = elements, bound as vectors of four; the last vector may have fewer, whose neighbours belong to
// others or to nobody and are not written.

struct Params {
    len: u32,
    value: f32,
    period: u32,  // elements of other, which repeats
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;         // [L]
@group(0) @binding(2) var<storage, read> other: array<vec4<f32>>;     // [L], or [period]
@group(0) @binding(3) var<storage, read> dy: array<vec4<f32>>;        // [L]
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;   // [L]
@group(0) @binding(5) var<storage, read_write> dx: array<vec4<f32>>;  // [L]
@group(0) @binding(6) var<storage, read> wide: array<vec4<f32>>;                  // [L]
@group(0) @binding(7) var<storage, read_write> narrow: array<vec4<Real>>;         // [L]
@group(0) @binding(8) var<storage, read> preactivation: array<vec4<Real>>;        // [L]
@group(0) @binding(9) var<storage, read_write> dpreactivation: array<vec4<Real>>; // [L]

// The last vector of y or dx, of which only some elements may be there.
fn store_y(i: u32, v: vec4<f32>) {
    for (var k = 0u; k < elements_of(i); k++) {
        y[i][k] = v[k];
    }
}

fn store_dx(i: u32, v: vec4<f32>) {
    for (var k = 0u; k < elements_of(i); k++) {
        dx[i][k] = v[k];
    }
}

// ---- fill: -> y = value --------------------------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn fill(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let span = span_of(group.x + group.y * groups.x, lane);
    if span.whole {
        for (var j = 0u; j < EACH; j++) {
            let i = span.start + j * WORKGROUP + span.lane;
            y[i] = vec4(params.value);
        }
        return;
    }
    for (var i = span.start + span.lane; i < span.end; i += WORKGROUP) {
        store_y(i, vec4(params.value));
    }
}

// ---- sum: x, other -> y = x + value other --------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn sum(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let span = span_of(group.x + group.y * groups.x, lane);
    if span.whole {
        for (var j = 0u; j < EACH; j++) {
            let i = span.start + j * WORKGROUP + span.lane;
            y[i] = x[i] + params.value * other[i];
        }
        return;
    }
    for (var i = span.start + span.lane; i < span.end; i += WORKGROUP) {
        store_y(i, x[i] + params.value * other[i]);
    }
}

// ---- add_bias: x, other -> y = x + other, over and over ------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn add_bias(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let span = span_of(group.x + group.y * groups.x, lane);
    for (var i = span.start + span.lane; i < span.end; i += WORKGROUP) {
        store_y(i, x[i] + repeated(4u * i % params.period));
    }
}

// Four elements of other from `at` on, which goes on with its first after its last.
fn repeated(at: u32) -> vec4<f32> {
    if params.period % 4u == 0u {
        return other[at / 4u];
    }
    var v: vec4<f32>;
    for (var k = 0u; k < 4u; k++) {
        let e = (at + k) % params.period;
        v[k] = other[e / 4u][e % 4u];
    }
    return v;
}

// ---- accumulate: x -> y += value x ---------------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn accumulate(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let span = span_of(group.x + group.y * groups.x, lane);
    if span.whole {
        for (var j = 0u; j < EACH; j++) {
            let i = span.start + j * WORKGROUP + span.lane;
            y[i] = y[i] + params.value * x[i];
        }
        return;
    }
    for (var i = span.start + span.lane; i < span.end; i += WORKGROUP) {
        store_y(i, y[i] + params.value * x[i]);
    }
}

// ---- narrowed: wide -> narrow --------------------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn narrowed(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let span = span_of(group.x + group.y * groups.x, lane);
    if span.whole {
        for (var j = 0u; j < EACH; j++) {
            let i = span.start + j * WORKGROUP + span.lane;
            narrow[i] = vec4<Real>(wide[i]);
        }
        return;
    }
    for (var i = span.start + span.lane; i < span.end; i += WORKGROUP) {
        let v = vec4<Real>(wide[i]);
        for (var k = 0u; k < elements_of(i); k++) {
            narrow[i][k] = v[k];
        }
    }
}

// ---- scale: x -> y = value x ---------------------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn scale(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let span = span_of(group.x + group.y * groups.x, lane);
    if span.whole {
        for (var j = 0u; j < EACH; j++) {
            let i = span.start + j * WORKGROUP + span.lane;
            y[i] = params.value * x[i];
        }
        return;
    }
    for (var i = span.start + span.lane; i < span.end; i += WORKGROUP) {
        store_y(i, params.value * x[i]);
    }
}

// ---- gelu_forward: x -> y ------------------------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn gelu_forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let span = span_of(group.x + group.y * groups.x, lane);
    if span.whole {
        for (var j = 0u; j < EACH; j++) {
            let i = span.start + j * WORKGROUP + span.lane;
            y[i] = gelu_of(x[i]);
        }
        return;
    }
    for (var i = span.start + span.lane; i < span.end; i += WORKGROUP) {
        store_y(i, gelu_of(x[i]));
    }
}

// ---- gelu_backward: preactivation, dy -> dpreactivation ------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn gelu_backward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let span = span_of(group.x + group.y * groups.x, lane);
    if span.whole {
        for (var j = 0u; j < EACH; j++) {
            let i = span.start + j * WORKGROUP + span.lane;
            dpreactivation[i] = vec4<Real>(dy[i] * gelu_slope_of(vec4<f32>(preactivation[i])));
        }
        return;
    }
    for (var i = span.start + span.lane; i < span.end; i += WORKGROUP) {
        let v = vec4<Real>(dy[i] * gelu_slope_of(vec4<f32>(preactivation[i])));
        for (var k = 0u; k < elements_of(i); k++) {
            dpreactivation[i][k] = v[k];
        }
    }
}

// ---- relu_forward: x -> y ------------------------------------------------------------------------
// Not max(), which hides a NaN.

@compute @workgroup_size(WORKGROUP)
fn relu_forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let span = span_of(group.x + group.y * groups.x, lane);
    if span.whole {
        for (var j = 0u; j < EACH; j++) {
            let i = span.start + j * WORKGROUP + span.lane;
            y[i] = select(x[i], vec4(0.0), x[i] < vec4(0.0));
        }
        return;
    }
    for (var i = span.start + span.lane; i < span.end; i += WORKGROUP) {
        store_y(i, select(x[i], vec4(0.0), x[i] < vec4(0.0)));
    }
}

// ---- relu_backward: x, dy -> dx ------------------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn relu_backward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let span = span_of(group.x + group.y * groups.x, lane);
    if span.whole {
        for (var j = 0u; j < EACH; j++) {
            let i = span.start + j * WORKGROUP + span.lane;
            dx[i] = select(vec4(0.0), dy[i], x[i] > vec4(0.0));
        }
        return;
    }
    for (var i = span.start + span.lane; i < span.end; i += WORKGROUP) {
        store_dx(i, select(vec4(0.0), dy[i], x[i] > vec4(0.0)));
    }
}

// ---- shared --------------------------------------------------------------------------------------

fn gelu_of(v: vec4<f32>) -> vec4<f32> {
    return vec4(gelu(v.x), gelu(v.y), gelu(v.z), gelu(v.w));
}

fn gelu_slope_of(v: vec4<f32>) -> vec4<f32> {
    return vec4(gelu_slope(v.x), gelu_slope(v.y), gelu_slope(v.z), gelu_slope(v.w));
}
