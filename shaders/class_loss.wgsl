// Cross entropy of the queries' classes; queries without a target should be of the last class, "no object".
//
//   loss = weight sum_i w_i (lse_i - x_i[goal_i]) / sum_i w_i          w = no_object where the goal is the last class, else 1
//   dx_i[k] = dy weight w_i / sum w (softmax(x_i)_k - [k = goal_i])
//
// Host: src/ops/class_loss.rs        Test: kernels-tests/class_loss.rs
// R = queries of the batch, C = classes with "no object".

struct Params {
    rows: u32,
    classes: u32,
    no_object: f32,
    weight: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;                   // [R, C]
@group(0) @binding(2) var<storage, read> goals: array<u32>;               // [R]
@group(0) @binding(3) var<storage, read> lse: array<f32>;                 // [R]
@group(0) @binding(4) var<storage, read> sum_w: array<f32>;               // [1]
@group(0) @binding(5) var<storage, read> dy: array<f32>;                  // [1]
@group(0) @binding(6) var<storage, read_write> lse_out: array<f32>;       // [R]
@group(0) @binding(7) var<storage, read_write> sum_w_out: array<f32>;     // [1]
@group(0) @binding(8) var<storage, read_write> loss: array<f32>;          // [1]
@group(0) @binding(9) var<storage, read_write> dx: array<f32>;            // [R, C]

const WORKGROUP: u32 = 64u;

fn weight_of(row: u32) -> f32 {
    return select(1.0, params.no_object, goals[row] + 1u == params.classes);
}

// ---- normalise: x -> lse_out ---------------------------------------------------------------------
// One workgroup per row.

@compute @workgroup_size(WORKGROUP)
fn normalise(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.x + group.y * groups.x;
    if row >= params.rows {
        return;
    }
    let first = row * params.classes;
    var largest = -3.4028234e38;
    for (var k = lane; k < params.classes; k += WORKGROUP) {
        largest = max(largest, x[first + k]);
    }
    largest = workgroup_max(largest, lane);
    // Neither max() nor every driver's exp() lets a NaN through; a plain sum does.
    var sums = vec2(0.0);
    for (var k = lane; k < params.classes; k += WORKGROUP) {
        sums += vec2(exp(x[first + k] - largest), x[first + k]);
    }
    sums = workgroup_sum2(sums, lane);
    if lane == 0u {
        lse_out[row] = largest + log(sums.x) + 0.0 * sums.y;
    }
}

// ---- total: x, goals, lse -> sum_w_out, loss ------------------------------------------------------
// One workgroup.

@compute @workgroup_size(WORKGROUP)
fn total(@builtin(local_invocation_index) lane: u32) {
    var sum = vec2(0.0);
    for (var row = lane; row < params.rows; row += WORKGROUP) {
        let nll = lse[row] - x[row * params.classes + goals[row]];
        sum += weight_of(row) * vec2(nll, 1.0);
    }
    sum = workgroup_sum2(sum, lane);
    if lane == 0u {
        sum_w_out[0] = sum.y;
        loss[0] = params.weight * sum.x / sum.y;
    }
}

// ---- backward: x, goals, lse, sum_w, dy -> dx -----------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn backward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (group.x + group.y * groups.x) * WORKGROUP + lane;
    if i >= params.rows * params.classes {
        return;
    }
    let row = i / params.classes;
    let goal = select(0.0, 1.0, i - row * params.classes == goals[row]);
    dx[i] = dy[0] * params.weight * weight_of(row) / sum_w[0] * (exp(x[i] - lse[row]) - goal);
}
