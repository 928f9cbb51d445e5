// Which classes a picture has: the targets of mask classification. The mask of a target is where the label
// map has its class, and is never stored.
//
// Host: src/ops/mask_targets.rs        Test: kernels-tests/mask_targets.rs
// B = batch, H × W = label map, K = classes; labels from K on are no targets.

struct Params {
    pixels: u32,
    classes: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> labels: array<u32>;               // [B, H, W] of u8
@group(0) @binding(2) var<storage, read> seen: array<u32>;                 // [B, 8]: a bit per label
@group(0) @binding(3) var<storage, read_write> seen_out: array<atomic<u32>>; // [B, 8]
@group(0) @binding(4) var<storage, read_write> targets: array<u32>;        // [B, 1 + K]: how many, which

const SPAN: u32 = 4096u;

var<workgroup> here: array<atomic<u32>, 8>;

// ---- find: labels -> seen_out --------------------------------------------------------------------
// One workgroup per SPAN pixels; z of the grid: image.

@compute @workgroup_size(64)
fn find(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    if lane < 8u {
        atomicStore(&here[lane], 0u);
    }
    workgroupBarrier();
    let start = (group.x + group.y * groups.x) * SPAN;
    let end = min(start + SPAN, params.pixels);
    var last = 256u;
    for (var i = start + lane; i < end; i += 64u) {
        let pixel = group.z * params.pixels + i;
        let label = (labels[pixel >> 2u] >> ((pixel & 3u) * 8u)) & 255u;
        // Neighbours mostly have the same label.
        if label != last {
            atomicOr(&here[label >> 5u], 1u << (label & 31u));
            last = label;
        }
    }
    workgroupBarrier();
    if lane < 8u {
        atomicOr(&seen_out[group.z * 8u + lane], atomicLoad(&here[lane]));
    }
}

// ---- list: seen -> targets -----------------------------------------------------------------------
// One invocation per image.

@compute @workgroup_size(1)
fn list(@builtin(workgroup_id) group: vec3<u32>) {
    let first = group.x * (1u + params.classes);
    var count = 0u;
    for (var k = 0u; k < params.classes; k++) {
        if ((seen[group.x * 8u + (k >> 5u)] >> (k & 31u)) & 1u) == 1u {
            count++;
            targets[first + count] = k;
        }
    }
    targets[first] = count;
}
