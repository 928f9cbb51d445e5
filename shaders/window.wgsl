// A map cut into windows, and put together again.
//
//   windows[b, wy, wx, ty, tx, c] = map[b, wy w + ty, wx w + tx, c], or 0 beyond the map
//
// Host: src/ops/window.rs        Test: kernels-tests/window.rs
// B = batch, H × W = map, w = side of a window, C = channels. Windows and the tokens in a window are
// row-major. A workgroup has one row of one window: w C neighbouring elements on both sides.

struct Params {
    batch: u32,
    height: u32,
    width: u32,
    channels: u32,
    side: u32,
    rows_down: u32,    // windows down times their rows
    windows_across: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;        // map or windows
@group(0) @binding(2) var<storage, read_write> y: array<f32>;  // the other one

const WORKGROUP: u32 = 64u;

// ---- split: x (map) -> y (windows) ---------------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn split(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let run = locate(group, groups);
    for (var i = lane; i < run.valid; i += WORKGROUP) {
        y[run.in_windows + i] = x[run.in_map + i];
    }
    for (var i = run.valid + lane; i < run.len; i += WORKGROUP) {
        y[run.in_windows + i] = 0.0;
    }
}

// ---- join: x (windows) -> y (map) ----------------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn join(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let run = locate(group, groups);
    for (var i = lane; i < run.valid; i += WORKGROUP) {
        y[run.in_map + i] = x[run.in_windows + i];
    }
}

// ---- shared --------------------------------------------------------------------------------------

// Neighbouring elements: `len` in the windows, of which the map has the first `valid`.
struct Run {
    in_map: u32,
    in_windows: u32,
    valid: u32,
    len: u32,
}

fn locate(group: vec3<u32>, groups: vec3<u32>) -> Run {
    let id = group.x + group.y * groups.x;
    // Neighbouring workgroups have neighbouring runs of the map.
    let wx = id % params.windows_across;
    let row = id / params.windows_across;
    let b = row / params.rows_down;
    let y = row % params.rows_down;
    let window = (b * (params.rows_down / params.side) + y / params.side) * params.windows_across + wx;
    var run: Run;
    if b >= params.batch {
        return run;
    }
    run.len = params.side * params.channels;
    run.in_windows = (window * params.side + y % params.side) * run.len;
    if y < params.height {
        let left = wx * params.side;
        run.in_map = ((b * params.height + y) * params.width + left) * params.channels;
        run.valid = min(params.side, params.width - left) * params.channels;
    }
    return run;
}
