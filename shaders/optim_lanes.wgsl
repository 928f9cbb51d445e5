// AdamW and the gradient norm, for drivers that run on a CPU and have subgroups of eight: see lib/lanes.wgsl. Formulas:
// optim.wgsl.
//
// Host: src/optim.rs        Test: kernels-tests/blocks.rs, kernels-tests/models.rs
// L = elements of the buffer. Every 64 elements, four vectors of pairs, belong to one parameter, or to nothing: a cell.

struct Params {
    len: u32,
    first_row: u32,
    parts: u32,     // these two are optim.wgsl's
    max_norm: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> gradient: array<u64>;          // [L]
@group(0) @binding(2) var<storage, read> groups_of: array<vec2<f32>>;   // [L / 64]: lr factor, decay
@group(0) @binding(3) var<storage, read> step: array<f32>;              // [4]: lr, 1 - b1ⁿ, √(1 - b2ⁿ), gradient factor
@group(0) @binding(4) var<storage, read> norm: array<f32>;              // [3]: global norm, gradient factor, whether it is finite
@group(0) @binding(5) var<storage, read_write> parameter: array<u64>;   // [L]
@group(0) @binding(6) var<storage, read_write> m: array<u64>;           // [L]
@group(0) @binding(7) var<storage, read_write> v: array<u64>;           // [L]
@group(0) @binding(8) var<storage, read_write> squares: array<f32>;     // [parts, 8]

// Whether gradients are scaled.
override SCALED: bool = false;

// Cells that a workgroup has.
const SHARE: u32 = 32u;
const PAIRS: u32 = 32u;

// Eight pairs from `at` on, one for each lane.
fn gradient_of(at: u32, lane: u32) -> vec2<f32> {
    var pairs: array<u64, 8>;
    for (var k = 0u; k < 8u; k++) {
        pairs[k] = gradient[at + k];
    }
    return floats(spread(pairs, lane));
}

fn parameter_of(at: u32, lane: u32) -> vec2<f32> {
    var pairs: array<u64, 8>;
    for (var k = 0u; k < 8u; k++) {
        pairs[k] = parameter[at + k];
    }
    return floats(spread(pairs, lane));
}

fn m_of(at: u32, lane: u32) -> vec2<f32> {
    var pairs: array<u64, 8>;
    for (var k = 0u; k < 8u; k++) {
        pairs[k] = m[at + k];
    }
    return floats(spread(pairs, lane));
}

fn v_of(at: u32, lane: u32) -> vec2<f32> {
    var pairs: array<u64, 8>;
    for (var k = 0u; k < 8u; k++) {
        pairs[k] = v[at + k];
    }
    return floats(spread(pairs, lane));
}

// ---- square_sums: gradient -> squares ------------------------------------------------------------
// One row of partial sums per workgroup; `first_row` is that of this buffer.

@compute @workgroup_size(8)
fn square_sums(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let id = group.x + group.y * groups.x;
    let cells = params.len / 64u;
    if id * SHARE >= cells {
        return;
    }
    var sum: array<vec2<f32>, 4>;
    for (var cell = id * SHARE; cell < min((id + 1u) * SHARE, cells); cell++) {
        for (var j = 0u; j < 4u; j++) {
            let g = gradient_of(cell * PAIRS + 8u * j, lane);
            sum[j] += g * g;
        }
    }
    let total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    squares[(params.first_row + id) * 8u + lane] = total.x + total.y;
}

// ---- adamw: gradient, groups_of, step, norm -> parameter, m, v -----------------------------------

@compute @workgroup_size(8)
fn adamw(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    if SCALED && norm[2] == 0.0 {
        return;
    }
    let first = (group.x + group.y * groups.x) * SHARE;
    let m_scale = 1.0 / step[1];
    let v_scale = 1.0 / step[2];
    for (var cell = first; cell < min(first + SHARE, params.len / 64u); cell++) {
        let belongs = groups_of[cell];
        let lr = step[0] * belongs.x;
        for (var j = 0u; j < 4u; j++) {
            let start = cell * PAIRS + 8u * j;
            let at = start + lane;
            let g = gradient_of(start, lane) * norm[1];
            let m_new = params.beta1 * m_of(start, lane) + (1.0 - params.beta1) * g;
            let v_new = params.beta2 * v_of(start, lane) + (1.0 - params.beta2) * g * g;
            m[at] = pair_of(m_new);
            v[at] = pair_of(v_new);
            let kept = parameter_of(start, lane) * (1.0 - lr * belongs.y);
            parameter[at] = pair_of(kept - lr * m_scale * m_new / (sqrt(v_new) * v_scale + params.eps));
        }
    }
}
