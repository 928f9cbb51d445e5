// Patches of an image as rows of a matrix, and the four phases of a map as channels.
//
//   cells[b, i, j, (c, ky, kx)] = image[b, i s + ky - o, j s + kx - o, c], or 0 beyond the image
//   merged[b, i, j, (kx, ky, c)] = map[b, 2 i + ky, 2 j + kx, c], or 0 beyond the map
//
// Host: src/ops/patch.rs        Test: kernels-tests/patch.rs
// B = batch, H × W = image or map, C = channels, p = side of a patch (`patch` is a word of WGSL's), s = step
// from one patch to the next, o = rows and columns of zeros before the image. Patches may overlap and may
// leave rows out; a phase is one place of the map only.

struct Params {
    batch: u32,
    height: u32,
    width: u32,
    channels: u32,
    side: u32,
    step: u32,
    before: u32,
    down: u32,    // patches
    across: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;         // [B, H, W, C]
@group(0) @binding(2) var<storage, read> dy: array<f32>;        // [B, down, across, p² C]
@group(0) @binding(3) var<storage, read_write> y: array<f32>;   // [B, down, across, p² C]
@group(0) @binding(4) var<storage, read_write> dx: array<f32>;  // [B, H, W, C]

const WORKGROUP: u32 = 64u;
const ACROSS: u32 = 32u;
const EIGHT: u32 = 8u;

// ---- cut: x -> y ---------------------------------------------------------------------------------
// One workgroup per 32 patches side by side; a lane keeps its element of the patch.

@compute @workgroup_size(WORKGROUP)
fn cut(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let run = locate_run(group, groups);
    for (var e = lane; e < run.elements; e += WORKGROUP) {
        let c = e / (params.side * params.side);
        let ky = e / params.side % params.side;
        let kx = e % params.side;
        // Before the image these wrap around to beyond it.
        let row = run.i * params.step + ky - params.before;
        let from_row = (run.b * params.height + row) * params.width;
        // Eight patches at a time: on a CPU driver each pass of a loop costs as much as several loads.
        for (var j = run.start; j < run.end; j += EIGHT) {
            for (var i = 0u; i < EIGHT; i++) {
                let col = (j + i) * params.step + kx - params.before;
                if j + i < run.end {
                    var v = 0.0;
                    if row < params.height && col < params.width {
                        v = x[(from_row + col) * params.channels + c];
                    }
                    y[(run.first + j + i) * run.elements + e] = v;
                }
            }
        }
    }
}

// ---- cut_apart_backward: dy -> dx ----------------------------------------------------------------
// Of patches that cover the image side by side, where every element goes to one place. As `cut`.

@compute @workgroup_size(WORKGROUP)
fn cut_apart_backward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let run = locate_run(group, groups);
    for (var e = lane; e < run.elements; e += WORKGROUP) {
        let c = e / (params.side * params.side);
        let row = run.i * params.side + e / params.side % params.side;
        let kx = e % params.side;
        let to_row = (run.b * params.height + row) * params.width;
        for (var j = run.start; j < run.end; j += EIGHT) {
            for (var i = 0u; i < EIGHT; i++) {
                let col = (j + i) * params.side + kx;
                if j + i < run.end && row < params.height && col < params.width {
                    dx[(to_row + col) * params.channels + c] = dy[(run.first + j + i) * run.elements + e];
                }
            }
        }
    }
}

// ---- cut_backward: dy -> dx ----------------------------------------------------------------------
// One workgroup per place of the image, lanes along the channels; it gathers from every patch that has it.

@compute @workgroup_size(WORKGROUP)
fn cut_backward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = group.x + group.y * groups.x;
    if place >= params.batch * params.height * params.width {
        return;
    }
    let row = place / params.width % params.height + params.before;
    let col = place % params.width + params.before;
    let b = place / (params.width * params.height);
    let elements = params.channels * params.side * params.side;
    // The patches i with 0 <= row - i s < p, and likewise across.
    let first = vec2(first_patch(row), first_patch(col));
    let end = vec2(
        min(row / params.step + 1u, params.down),
        min(col / params.step + 1u, params.across),
    );
    for (var c = lane; c < params.channels; c += WORKGROUP) {
        var sum = 0.0;
        for (var i = first.x; i < end.x; i++) {
            let ky = row - i * params.step;
            for (var j = first.y; j < end.y; j++) {
                let kx = col - j * params.step;
                let at = (b * params.down + i) * params.across + j;
                sum += dy[at * elements + (c * params.side + ky) * params.side + kx];
            }
        }
        dx[place * params.channels + c] = sum;
    }
}

fn first_patch(row: u32) -> u32 {
    if row < params.side {
        return 0u;
    }
    return (row - params.side) / params.step + 1u;
}

// ---- merge: x -> y -------------------------------------------------------------------------------
// One workgroup per place of the merged map.

@compute @workgroup_size(WORKGROUP)
fn merge(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = group.x + group.y * groups.x;
    if id >= params.batch * params.down * params.across {
        return;
    }
    for (var phase = 0u; phase < 4u; phase++) {
        let at = locate_phase(id, phase);
        let to = (4u * id + phase) * params.channels;
        for (var c = lane; c < params.channels; c += WORKGROUP) {
            var v = 0.0;
            if at.inside {
                v = x[at.start + c];
            }
            y[to + c] = v;
        }
    }
}

// ---- merge_backward: dy -> dx --------------------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn merge_backward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = group.x + group.y * groups.x;
    if id >= params.batch * params.down * params.across {
        return;
    }
    for (var phase = 0u; phase < 4u; phase++) {
        let at = locate_phase(id, phase);
        let origin = (4u * id + phase) * params.channels;
        if at.inside {
            for (var c = lane; c < params.channels; c += WORKGROUP) {
                dx[at.start + c] = dy[origin + c];
            }
        }
    }
}

// ---- shared --------------------------------------------------------------------------------------

// Patches `start..end` of row `i` of image `b`; `first` is the row's first patch.
struct Run {
    b: u32,
    i: u32,
    first: u32,
    start: u32,
    end: u32,
    elements: u32,  // of a patch; none beyond the last image
}

fn locate_run(group: vec3<u32>, groups: vec3<u32>) -> Run {
    let id = group.x + group.y * groups.x;
    let runs = (params.across + ACROSS - 1u) / ACROSS;
    let row = id / runs;
    var run: Run;
    run.b = row / params.down;
    run.i = row % params.down;
    run.first = row * params.across;
    run.start = id % runs * ACROSS;
    run.end = min(run.start + ACROSS, params.across);
    run.elements = select(0u, params.channels * params.side * params.side, run.b < params.batch);
    return run;
}

// Where a phase of a place of the merged map starts in the map.
struct Phase {
    start: u32,
    inside: bool,
}

fn locate_phase(id: u32, phase: u32) -> Phase {
    let b = id / (params.down * params.across);
    let row = 2u * (id / params.across % params.down) + (phase & 1u);
    let col = 2u * (id % params.across) + (phase >> 1u);
    let start = ((b * params.height + row) * params.width + col) * params.channels;
    return Phase(start, row < params.height && col < params.width);
}
