// The four phases of a map as channels, for drivers that run on a CPU and have subgroups of eight: see
// lib/lanes.wgsl.
//
//   merged[b, i, j, (kx, ky, c)] = map[b, 2 i + ky, 2 j + kx, c], or 0 beyond the map
//
// Host: src/ops/patch.rs        Test: kernels-tests/patch.rs
// B = batch, H × W = map, C = channels, an even number. Lanes run along the pairs of channels.

struct Params {
    batch: u32,
    height: u32,
    width: u32,
    pairs: u32,        // of channels
    down: u32,         // places of the merged map
    across: u32,
    first_group: u32,  // of a part of the dispatch
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u64>;         // [B, H, W, C]
@group(0) @binding(2) var<storage, read> dy: array<u64>;        // [B, down, across, 4 C]
@group(0) @binding(3) var<storage, read_write> y: array<u64>;   // [B, down, across, 4 C]
@group(0) @binding(4) var<storage, read_write> dx: array<u64>;  // [B, H, W, C]

// ---- merge: x -> y -------------------------------------------------------------------------------
// One workgroup per place of the merged map and 64 channels.

@compute @workgroup_size(8)
fn merge(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let id = params.first_group + group.x + group.y * groups.x;
    if id >= params.batch * params.down * params.across {
        return;
    }
    // Four vectors at a time: each pass of a loop costs as much as several loads.
    for (var pair = lane; pair < params.pairs; pair += 32u) {
        for (var phase = 0u; phase < 4u; phase++) {
            let at = locate_phase(id, phase);
            let to = (4u * id + phase) * params.pairs;
            for (var i = 0u; i < 4u; i++) {
                let p = pair + 8u * i;
                if p < params.pairs {
                    y[to + p] = select(u64(0u), x[at.start + p], at.inside);
                }
            }
        }
    }
}

// ---- merge_backward: dy -> dx --------------------------------------------------------------------

@compute @workgroup_size(8)
fn merge_backward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let id = params.first_group + group.x + group.y * groups.x;
    if id >= params.batch * params.down * params.across {
        return;
    }
    for (var pair = lane; pair < params.pairs; pair += 32u) {
        for (var phase = 0u; phase < 4u; phase++) {
            let at = locate_phase(id, phase);
            let origin = (4u * id + phase) * params.pairs;
            for (var i = 0u; i < 4u; i++) {
                let p = pair + 8u * i;
                if p < params.pairs && at.inside {
                    dx[at.start + p] = dy[origin + p];
                }
            }
        }
    }
}

// Where a phase of a place of the merged map starts in the map; beyond it, somewhere within.
struct Phase {
    start: u32,
    inside: bool,
}

fn locate_phase(id: u32, phase: u32) -> Phase {
    let b = id / (params.down * params.across);
    let row = 2u * (id / params.across % params.down) + (phase & 1u);
    let col = 2u * (id % params.across) + (phase >> 1u);
    let inside = row < params.height && col < params.width;
    let there = min(row, params.height - 1u) * params.width + min(col, params.width - 1u);
    return Phase((b * params.height * params.width + there) * params.pairs, inside);
}
