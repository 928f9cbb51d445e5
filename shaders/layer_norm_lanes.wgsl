// Layer normalisation over the last axis, forward and backward, for drivers that run on a CPU and have subgroups of
// eight: see lib/lanes.wgsl. Formulas: layer_norm.wgsl.
//
// Host: src/ops/layer_norm.rs        Test: kernels-tests/layer_norm.rs
// C = channels, a multiple of 16, R = rows (all leading axes flattened). A workgroup has the rows of a part; a row is
// BLOCKS blocks of EACH pairs per lane. Loops of constant length are unrolled, and what a single block holds is
// loaded once.

struct Params {
    rows: u32,
    channels: u32,
    rows_per_part: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u64>;                  // [R, C]
@group(0) @binding(2) var<storage, read> weight: array<u64>;             // [C]
@group(0) @binding(3) var<storage, read> bias: array<u64>;               // [C]
@group(0) @binding(4) var<storage, read_write> y: array<RealPair>;       // [R, C]
@group(0) @binding(5) var<storage, read_write> stats: array<vec2<f32>>;  // [R] of (mean, rstd)
@group(0) @binding(6) var<storage, read> dy: array<u64>;                 // [R, C]
@group(0) @binding(7) var<storage, read_write> dx: array<u64>;           // [R, C]
@group(0) @binding(8) var<storage, read> saved: array<vec2<f32>>;        // [R] of (mean, rstd)
@group(0) @binding(9) var<storage, read_write> parts: array<u64>;        // [parts, 2 C]: dweight, dbias

const MOST: u32 = 24u;
override EACH: u32 = MOST;
override BLOCKS: u32 = 1u;

alias Block = array<vec2<f32>, MOST>;

fn block_of_x(at: u32) -> Block {
    var v: Block;
    for (var k = 0u; k < EACH; k++) {
        v[k] = floats(x[at + 8u * k]);
    }
    return v;
}

fn block_of_dy(at: u32) -> Block {
    var v: Block;
    for (var k = 0u; k < EACH; k++) {
        v[k] = floats(dy[at + 8u * k]);
    }
    return v;
}

fn block_of_weight(at: u32) -> Block {
    var v: Block;
    for (var k = 0u; k < EACH; k++) {
        v[k] = floats(weight[at + 8u * k]);
    }
    return v;
}

fn block_of_bias(at: u32) -> Block {
    var v: Block;
    for (var k = 0u; k < EACH; k++) {
        v[k] = floats(bias[at + 8u * k]);
    }
    return v;
}

// ---- forward: x, weight, bias -> y, stats --------------------------------------------------------

@compute @workgroup_size(8)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let start = (group.x + group.y * groups.x) * params.rows_per_part;
    let end = min(start + params.rows_per_part, params.rows);
    let count = f32(params.channels);
    var w = block_of_weight(lane);
    var b = block_of_bias(lane);
    for (var row = start; row < end; row++) {
        let base = row * params.channels / 2u + lane;
        var v = block_of_x(base);
        var sum = vec2(0.0);
        for (var i = 0u; i < BLOCKS; i++) {
            if BLOCKS > 1u {
                v = block_of_x(base + 8u * EACH * i);
            }
            for (var k = 0u; k < EACH; k++) {
                sum += v[k];
            }
        }
        let mean = subgroupAdd(sum.x + sum.y) / count;
        var squares = 0.0;
        for (var i = 0u; i < BLOCKS; i++) {
            if BLOCKS > 1u {
                v = block_of_x(base + 8u * EACH * i);
            }
            for (var k = 0u; k < EACH; k++) {
                squares += dot(v[k] - mean, v[k] - mean);
            }
        }
        let rstd = 1.0 / sqrt(subgroupAdd(squares) / count + params.eps);
        for (var i = 0u; i < BLOCKS; i++) {
            if BLOCKS > 1u {
                v = block_of_x(base + 8u * EACH * i);
                w = block_of_weight(lane + 8u * EACH * i);
                b = block_of_bias(lane + 8u * EACH * i);
            }
            for (var k = 0u; k < EACH; k++) {
                y[base + 8u * (EACH * i + k)] = real_pair((v[k] - mean) * rstd * w[k] + b[k]);
            }
        }
        if lane == 0u {
            stats[row] = vec2(mean, rstd);
        }
    }
}

// ---- backward: x, weight, saved, dy -> dx, parts -------------------------------------------------
// With several blocks to a row, the means over rows are taken before; every lane keeps its own copy, so no barrier is
// needed.

const PART: u32 = 64u;

var<workgroup> row_means: array<vec2<f32>, 8u * PART>;

@compute @workgroup_size(8)
fn backward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let id = group.x + group.y * groups.x;
    let start = id * params.rows_per_part;
    let end = min(start + params.rows_per_part, params.rows);
    let pairs = params.channels / 2u;
    var seen = 0u;
    for (var row = start; BLOCKS > 1u && row < end; row++) {
        seen |= fetch(row + 1u);
        var sums = vec2(0.0);
        for (var i = 0u; i < BLOCKS; i++) {
            let at = row * pairs + 8u * EACH * i + lane;
            let w = block_of_weight(8u * EACH * i + lane);
            sums += gradient_sums(block_of_x(at), block_of_dy(at), w, saved[row]);
        }
        row_means[8u * (row - start) + lane] = subgroupAdd(sums) / f32(params.channels);
    }
    for (var i = 0u; i < BLOCKS && start < end; i++) {
        let w = block_of_weight(8u * EACH * i + lane);
        var dweight: Block;
        var dbias: Block;
        for (var row = start; row < end; row++) {
            if BLOCKS == 1u {
                seen |= fetch(row + 1u);
            }
            let s = saved[row];
            let at = row * pairs + 8u * EACH * i + lane;
            let v = block_of_x(at);
            let d = block_of_dy(at);
            var means: vec2<f32>;
            if BLOCKS == 1u {
                means = subgroupAdd(gradient_sums(v, d, w, s)) / f32(params.channels);
            } else {
                means = row_means[8u * (row - start) + lane];
            }
            for (var k = 0u; k < EACH; k++) {
                let xhat = (v[k] - s.x) * s.y;
                dx[at + 8u * k] = pair_of(s.y * (d[k] * w[k] - means.x - xhat * means.y));
                dweight[k] += d[k] * xhat;
                dbias[k] += d[k];
            }
        }
        for (var k = 0u; k < EACH; k++) {
            let to = 2u * id * pairs + 8u * (EACH * i + k) + lane;
            parts[to] = pair_of(dweight[k]);
            parts[to + pairs] = pair_of(dbias[k]);
        }
    }
    if params.channels == 0u {
        dx[0] = u64(seen);
    }
}

// A lane's share in the sums of g and g xhat.
fn gradient_sums(v: Block, d: Block, w: Block, s: vec2<f32>) -> vec2<f32> {
    var sum_g = vec2(0.0);
    var sum_g_xhat = vec2(0.0);
    for (var k = 0u; k < EACH; k++) {
        let g = d[k] * w[k];
        sum_g += g;
        sum_g_xhat += g * ((v[k] - s.x) * s.y);
    }
    return vec2(sum_g.x + sum_g.y, sum_g_xhat.x + sum_g_xhat.y);
}

// Scalar loads ahead of the gathers: see lib/slices.wgsl.
fn fetch(row: u32) -> u32 {
    let start = min(row, params.rows - 1u) * params.channels / 2u;
    var seen = 0u;
    for (var i = 0u; i < BLOCKS; i++) {
        for (var k = 0u; k < EACH; k++) {
            let at = start + 8u * (EACH * i + k);
            seen |= u32(x[at]) | u32(dy[at]);
        }
    }
    return seen;
}
