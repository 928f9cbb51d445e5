// Batch normalisation of each channel over all rows, with or without ReLU, for drivers that run on a CPU and
// have subgroups of eight: see lib/lanes.wgsl. Formulas: batch_norm.wgsl, which combines the parts.
//
// Host: src/ops/batch_norm.rs        Test: kernels-tests/batch_norm.rs
// R = rows (all leading axes flattened), C = channels, an even number, P = parts of `rows_per_part` rows. A
// workgroup has a slice of a part: lib/slices.wgsl.

struct Params {
    rows: u32,
    channels: u32,
    rows_per_part: u32,
    parts: u32,
    relu: u32,
    eps: f32,
    momentum: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u64>;                    // [R, C]
@group(0) @binding(2) var<storage, read> weight: array<u64>;               // [C]
@group(0) @binding(3) var<storage, read> bias: array<u64>;                 // [C]
@group(0) @binding(4) var<storage, read> mean: array<u64>;                 // [C]
@group(0) @binding(5) var<storage, read> variance: array<u64>;             // [C]
@group(0) @binding(6) var<storage, read> stats: array<u64>;                // [2, C]: mean, rstd
@group(0) @binding(7) var<storage, read> dy: array<u64>;                   // [R, C]
@group(0) @binding(8) var<storage, read> dweight: array<u64>;              // [C]
@group(0) @binding(9) var<storage, read> dbias: array<u64>;                // [C]
@group(0) @binding(10) var<storage, read_write> y: array<u64>;             // [R, C]
@group(0) @binding(11) var<storage, read_write> new_part: array<u64>;      // [P, 2, C]: mean, M2
@group(0) @binding(12) var<storage, read_write> part_dweight: array<u64>;  // [P, C]
@group(0) @binding(13) var<storage, read_write> part_dbias: array<u64>;    // [P, C]
@group(0) @binding(14) var<storage, read_write> dx: array<u64>;            // [R, C]

fn locate(group: vec3<u32>, groups: vec3<u32>, lane: u32) -> Slice {
    let id = group.x + group.y * groups.x;
    let part = id / slices();
    let start = min(part * params.rows_per_part, params.rows);
    let end = min(start + params.rows_per_part, params.rows);
    return Slice(part, start, end, id % slices() * 8u * BLOCKS, lane, params.channels / 2u);
}

fn channels_of(slice: Slice) -> Channels {
    var c: Channels;
    for (var k = 0u; k < BLOCKS; k++) {
        let pair = pair_at(slice, k);
        c.mean[k] = floats(stats[pair]);
        c.rstd[k] = floats(stats[slice.pairs + pair]);
        c.weight[k] = floats(weight[pair]);
        c.bias[k] = floats(bias[pair]);
    }
    return c;
}

// ---- statistics: x -> new_part -------------------------------------------------------------------

@compute @workgroup_size(8)
fn statistics(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let slice = locate(group, groups, lane);
    if slice.start >= slice.end {
        return;
    }
    write_moments(slice);
}

// ---- normalize: x, weight, bias, stats -> y ------------------------------------------------------

@compute @workgroup_size(8)
fn normalize(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let slice = locate(group, groups, lane);
    var c = channels_of(slice);
    write_y(slice, &c);
}

// ---- evaluate: x, weight, bias, mean, variance -> y ----------------------------------------------

@compute @workgroup_size(8)
fn evaluate(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let slice = locate(group, groups, lane);
    var c: Channels;
    for (var k = 0u; k < BLOCKS; k++) {
        let pair = pair_at(slice, k);
        c.mean[k] = floats(mean[pair]);
        c.rstd[k] = 1.0 / sqrt(floats(variance[pair]) + params.eps);
        c.weight[k] = floats(weight[pair]);
        c.bias[k] = floats(bias[pair]);
    }
    write_y(slice, &c);
}

// ---- backward_sums: x, weight, bias, stats, dy -> part_dweight, part_dbias -----------------------

@compute @workgroup_size(8)
fn backward_sums(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let slice = locate(group, groups, lane);
    if slice.start >= slice.end {
        return;
    }
    var c = channels_of(slice);
    var sum_dweight: Blocks;
    var sum_dbias: Blocks;
    var seen = 0u;
    for (var row = slice.start; row < slice.end; row++) {
        seen |= fetch_x(slice, row + 1u) | fetch_dy(slice, row + 1u);
        for (var k = 0u; k < BLOCKS; k++) {
            let at = row * slice.pairs + pair_at(slice, k);
            let xhat = (floats(x[at]) - c.mean[k]) * c.rstd[k];
            let g = gate(floats(dy[at]), xhat * c.weight[k] + c.bias[k]);
            sum_dweight[k] += g * xhat;
            sum_dbias[k] += g;
        }
    }
    for (var k = 0u; k < BLOCKS; k++) {
        let to = slice.part * slice.pairs + pair_at(slice, k);
        part_dweight[to] = pair_of(sum_dweight[k]);
        part_dbias[to] = pair_of(sum_dbias[k]);
    }
    if never() {
        part_dbias[0] = u64(seen);
    }
}

// ---- backward_x: x, weight, bias, stats, dy, dweight, dbias -> dx --------------------------------

@compute @workgroup_size(8)
fn backward_x(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let slice = locate(group, groups, lane);
    var c = channels_of(slice);
    var mean_g: Blocks;
    var mean_g_xhat: Blocks;
    for (var k = 0u; k < BLOCKS; k++) {
        let pair = pair_at(slice, k);
        mean_g[k] = floats(dbias[pair]) / f32(params.rows);
        mean_g_xhat[k] = floats(dweight[pair]) / f32(params.rows);
    }
    var seen = 0u;
    for (var row = slice.start; row < slice.end; row++) {
        seen |= fetch_x(slice, row + 1u) | fetch_dy(slice, row + 1u);
        for (var k = 0u; k < BLOCKS; k++) {
            let at = row * slice.pairs + pair_at(slice, k);
            let xhat = (floats(x[at]) - c.mean[k]) * c.rstd[k];
            let g = gate(floats(dy[at]), xhat * c.weight[k] + c.bias[k]);
            dx[at] = pair_of(c.weight[k] * c.rstd[k] * (g - mean_g[k] - xhat * mean_g_xhat[k]));
        }
    }
    if never() {
        dx[0] = u64(seen);
    }
}
