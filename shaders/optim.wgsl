// The optimiser: global gradient norm, clipping, and AdamW on a whole buffer of parameters.
//
//   p <- p (1 - lr decay);  m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g²
//   p <- p - lr / (1 - b1ⁿ) m / (√v / √(1 - b2ⁿ) + eps)
//
// In mixed precision gradients are those of `scale` times the loss. A step whose gradient is not finite
// is left out, and the scale halved; after GROWTH good ones it doubles.
//
// Host: src/optim.rs        Test: kernels-tests/blocks.rs, kernels-tests/models.rs
// L = elements of the buffer, bound as vectors of four. Every 64 elements belong to one parameter, or
// to nothing.

struct Params {
    len: u32,
    first_row: u32,
    parts: u32,
    max_norm: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> gradient: array<vec4<f32>>;            // [L]
@group(0) @binding(2) var<storage, read> groups_of: array<vec2<f32>>;     // [L / 64]: lr factor, decay
@group(0) @binding(3) var<storage, read> step: array<f32>;                // [4]: lr, 1 - b1ⁿ, √(1 - b2ⁿ), gradient factor
@group(0) @binding(4) var<storage, read> norm: array<f32>;                // [3]: global norm, gradient factor, whether it is finite
@group(0) @binding(5) var<storage, read_write> parameter: array<vec4<f32>>;     // [L]
@group(0) @binding(6) var<storage, read_write> m: array<vec4<f32>>;             // [L]
@group(0) @binding(7) var<storage, read_write> v: array<vec4<f32>>;             // [L]
@group(0) @binding(8) var<storage, read_write> squares: array<f32>;       // [parts, WORKGROUP]
@group(0) @binding(9) var<storage, read_write> norm_out: array<f32>;      // [3]
@group(0) @binding(10) var<storage, read> sums: array<f32>;               // [parts, WORKGROUP]
@group(0) @binding(11) var<storage, read_write> scaling: array<f32>;      // [3]: scale, good steps in a row, steps left out

// Whether gradients are scaled.
override SCALED: bool = false;

// ---- square_sums: gradient -> squares ------------------------------------------------------------
// One row of partial sums per workgroup, which has SPANS spans; `first_row` is that of this buffer.

const SPANS: u32 = 4u;

@compute @workgroup_size(WORKGROUP)
fn square_sums(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = group.x + group.y * groups.x;
    if 4u * id * SPANS * WORKGROUP * EACH >= params.len {
        return;
    }
    var sum = vec4(0.0);
    for (var part = 0u; part < SPANS; part++) {
        let span = span_of(id * SPANS + part, lane);
        if span.whole {
            for (var j = 0u; j < EACH; j++) {
                let g = gradient[span.start + j * WORKGROUP + span.lane];
                sum += g * g;
            }
        } else {
            for (var i = span.start + span.lane; i < span.end; i += WORKGROUP) {
                sum += gradient[i] * gradient[i];
            }
        }
    }
    squares[(params.first_row + id) * WORKGROUP + lane] = (sum.x + sum.y) + (sum.z + sum.w);
}

// ---- global_norm: sums, step -> norm_out ---------------------------------------------------------
// One invocation: a few hundred thousand additions at most, in order.

@compute @workgroup_size(1)
fn global_norm() {
    store_norm(sqrt(total_of_sums()) * step[3], step[3], 1.0);
}

// ---- scaled_norm: sums, step -> norm_out, scaling ------------------------------------------------

const GROWTH: f32 = 2000.0;
const LARGEST_SCALE: f32 = 16777216.0;

@compute @workgroup_size(1)
fn scaled_norm() {
    let total = total_of_sums();
    // By bits: compilers may take a comparison with infinity or of a number with itself for granted.
    let exponent = bitcast<u32>(total) & 0x7f800000u;
    let finite = exponent != 0x7f800000u;
    let factor = step[3] / scaling[0];
    store_norm(select(0.0, sqrt(total) * factor, finite), factor, select(0.0, 1.0, finite));
    if !finite {
        scaling[0] = max(0.5 * scaling[0], 1.0);
        scaling[1] = 0.0;
        scaling[2] += 1.0;
        return;
    }
    scaling[1] += 1.0;
    if scaling[1] == GROWTH {
        scaling[0] = min(2.0 * scaling[0], LARGEST_SCALE);
        scaling[1] = 0.0;
    }
}

// `factor` is that of the gradient before it is clipped.
fn store_norm(size: f32, factor: f32, finite: f32) {
    norm_out[0] = size;
    norm_out[1] = factor * select(1.0, min(1.0, params.max_norm / (size + 1e-6)), params.max_norm > 0.0);
    norm_out[2] = finite;
}

fn total_of_sums() -> f32 {
    // Kahan's sum: the order is long.
    var sum = 0.0;
    var lost = 0.0;
    for (var i = 0u; i < params.parts * WORKGROUP; i++) {
        let next = sums[i] - lost;
        let total = sum + next;
        lost = (total - sum) - next;
        sum = total;
    }
    return sum;
}

// ---- adamw: gradient, groups_of, step, norm -> parameter, m, v -----------------------------------

@compute @workgroup_size(WORKGROUP)
fn adamw(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    if SCALED && norm[2] == 0.0 {
        return;
    }
    let span = span_of(group.x + group.y * groups.x, lane);
    if span.whole {
        for (var j = 0u; j < EACH; j++) {
            update(span.start + j * WORKGROUP, span.lane);
        }
        return;
    }
    for (var start = span.start; start + span.lane < span.end; start += WORKGROUP) {
        update(start, span.lane);
    }
}

// The vector that lies `lane` after `start`, a multiple of the workgroup.
fn update(start: u32, lane: u32) {
    let at = start + lane;
    // Up to 16 lanes have the same parameter, and compilers for CPUs should see it.
    let belongs = groups_of[select((start + lane) / 16u, start / 16u, WORKGROUP <= 16u)];
    let lr = step[0] * belongs.x;
    let g = gradient[at] * norm[1];
    let m_new = params.beta1 * m[at] + (1.0 - params.beta1) * g;
    let v_new = params.beta2 * v[at] + (1.0 - params.beta2) * g * g;
    m[at] = m_new;
    v[at] = v_new;
    let kept = parameter[at] * (1.0 - lr * belongs.y);
    let m_scale = 1.0 / step[1];
    let v_scale = 1.0 / step[2];
    parameter[at] = kept - lr * m_scale * m_new / (sqrt(v_new) * v_scale + params.eps);
}
