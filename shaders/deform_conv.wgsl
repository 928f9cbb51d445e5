// Deformable convolution v2, 3 × 3: each tap of each group of channels reads where an offset leads it,
// times a mask; forward and backward.
//
//   s[p, tap, c] = m x sampled bilinearly at (row - 1 + tap / 3 + dy, column - 1 + tap % 3 + dx)
//   y[p, o]      = bias[o] + sum_tap sum_c weight[o, c, tap] s[p, tap, c]
//   m            = 1 / (1 + exp(-logit))
//
// The products are matmul's; here are its columns s and their gradients ds:
//
//   dlogit     = m (1 - m) sum_c ds s / m
//   (dx, dy)   = m sum_c ds (ds/dX, ds/dY)
//   gradient of x: deform_scatter.wgsl, from the links that are made here
//
// Host: src/ops/deform_conv.rs        Test: kernels-tests/deform_conv.rs        Samples: lib/deform.wgsl
// B = batch, H, W = size of the maps, G = groups, V = vectors of four channels per group, P = places of
// the chunk that is worked on: pixels of one image or of whole ones. O = outputs, I = inputs = 4 G V.

struct Params {
    height: u32,
    width: u32,
    groups: u32,
    vectors: u32,
    cells: u32,
    // First pixel of the chunk, of those of all images, and how many.
    first_place: u32,
    places: u32,
    outputs: u32,
    first_group: u32,  // of a part of the dispatch
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;                // [B, H, W, G, V]
@group(0) @binding(2) var<storage, read> offset_mask: array<f32>;            // [B, H, W, 27 G]
@group(0) @binding(3) var<storage, read> dcolumns: array<vec4<f32>>;         // [P, 9, G, V]
@group(0) @binding(4) var<storage, read> weight: array<f32>;                 // [O, I, 3, 3]
@group(0) @binding(5) var<storage, read> dpacked: array<f32>;                // [O, 9, I]
@group(0) @binding(6) var<storage, read_write> columns_out: array<vec4<f32>>; // [P, 9, G, V]
@group(0) @binding(7) var<storage, read_write> doffset_mask: array<f32>;     // [B, H, W, 27 G]
@group(0) @binding(8) var<storage, read_write> links: array<vec4<u32>>;      // [P, 9, G]
@group(0) @binding(9) var<storage, read_write> first: array<atomic<u32>>;    // [images, G, cells]
@group(0) @binding(10) var<storage, read_write> largest: array<atomic<u32>>; // [1]
@group(0) @binding(11) var<storage, read_write> packed: array<f32>;          // [O, 9, I]
@group(0) @binding(12) var<storage, read_write> dweight: array<f32>;         // [O, I, 3, 3]

const WORKGROUP: u32 = 64u;

struct Sample {
    image: u32,
    group: u32,
    // (x, y)
    place: vec2<f32>,
    mask: f32,
    // m (1 - m)
    mask_slope: f32,
    // Where its offset (dy, dx) and the logit of its mask are.
    offset_at: u32,
    mask_at: u32,
}

// Sample n of the chunk: (place, tap, group).
fn locate_sample(n: u32) -> Sample {
    let group = n % params.groups;
    let tap = n / params.groups % 9u;
    let place = params.first_place + n / params.groups / 9u;
    let image = place / (params.height * params.width);
    let row = place / params.width - image * params.height;
    let column = place % params.width;
    let base = place * 27u * params.groups;
    let offset_at = base + (group * 9u + tap) * 2u;
    let mask_at = base + 18u * params.groups + group * 9u + tap;
    let whole = vec2(i32(column + tap % 3u) - 1, i32(row + tap / 3u) - 1);
    let at = vec2<f32>(whole) + vec2(offset_mask[offset_at + 1u], offset_mask[offset_at]);
    let logit = offset_mask[mask_at];
    // Of the smaller side, so that the exponential cannot overflow.
    let e = exp(-abs(logit));
    let mask = select(e, 1.0, logit >= 0.0) / (1.0 + e);
    return Sample(image, group, at, mask, e / ((1.0 + e) * (1.0 + e)), offset_at, mask_at);
}

// Where the corners of a sample are in x, for the first vector.
fn addresses(corners: Corners, sample: Sample) -> vec4<u32> {
    let pixels = sample.image * params.height * params.width + corners.at;
    return (pixels * params.groups + sample.group) * params.vectors;
}

// ---- columns: x, offset_mask -> columns_out ------------------------------------------------------
// One invocation per vector.

@compute @workgroup_size(WORKGROUP)
fn columns(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = (params.first_group + group.x + group.y * groups.x) * WORKGROUP + lane;
    let n = id / params.vectors;
    if n >= params.places * 9u * params.groups {
        return;
    }
    let sample = locate_sample(n);
    let corners = corners_at(sample.place, params.width, params.height);
    let weights = sample.mask * corner_weights(corners);
    let at = addresses(corners, sample) + id % params.vectors;
    columns_out[id] = weights.x * x[at.x] + weights.y * x[at.y] + weights.z * x[at.z] + weights.w * x[at.w];
}

// ---- backward_samples: x, offset_mask, dcolumns -> doffset_mask ----------------------------------
// One invocation per sample.

@compute @workgroup_size(WORKGROUP)
fn backward_samples(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let n = (params.first_group + group.x + group.y * groups.x) * WORKGROUP + lane;
    if n >= params.places * 9u * params.groups {
        return;
    }
    let sample = locate_sample(n);
    let corners = corners_at(sample.place, params.width, params.height);
    let at = addresses(corners, sample);
    var products = vec4(0.0);
    for (var v = 0u; v < params.vectors; v++) {
        let g = dcolumns[n * params.vectors + v];
        products += vec4(dot(g, x[at.x + v]), dot(g, x[at.y + v]), dot(g, x[at.z + v]), dot(g, x[at.w + v]));
    }
    products *= corners.there;
    let doffset = sample.mask * slope(corners, products);
    doffset_mask[sample.offset_at] = doffset.y;
    doffset_mask[sample.offset_at + 1u] = doffset.x;
    doffset_mask[sample.mask_at] = sample.mask_slope * dot(corner_weights(corners), products);
}

// ---- link: offset_mask -> links, first, largest --------------------------------------------------
// One invocation per sample puts it into the list that deform_scatter.wgsl reads.

@compute @workgroup_size(WORKGROUP)
fn link(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let n = (params.first_group + group.x + group.y * groups.x) * WORKGROUP + lane;
    if n >= params.places * 9u * params.groups {
        return;
    }
    let sample = locate_sample(n);
    let x_axis = along(sample.place.x, params.width);
    let y_axis = along(sample.place.y, params.height);
    if !meets_map(x_axis, y_axis) {
        return;
    }
    let image = sample.image - params.first_place / (params.height * params.width);
    let list = (image * params.groups + sample.group) * params.cells + cell_of(x_axis, y_axis, params.width);
    let next = atomicExchange(&first[list], n + 1u);
    links[n] = make_link(next, sample.mask, x_axis, y_axis);
    if !is_finite(sample.mask) {
        atomicMax(&largest[0], NOT_A_NUMBER);
    }
}

// ---- pack_weight: weight -> packed;  unpack_weight: dpacked -> dweight ---------------------------
// Taps before inputs, as in the columns. One invocation per element.

@compute @workgroup_size(WORKGROUP)
fn pack_weight(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = (params.first_group + group.x + group.y * groups.x) * WORKGROUP + lane;
    if id < params.outputs * 9u * inputs() {
        packed[id] = weight[unpacked(id)];
    }
}

@compute @workgroup_size(WORKGROUP)
fn unpack_weight(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = (params.first_group + group.x + group.y * groups.x) * WORKGROUP + lane;
    if id < params.outputs * 9u * inputs() {
        dweight[unpacked(id)] = dpacked[id];
    }
}

fn inputs() -> u32 {
    return 4u * params.groups * params.vectors;
}

// Where element `id` of the packed weight is in the weight.
fn unpacked(id: u32) -> u32 {
    let input = id % inputs();
    let tap = id / inputs() % 9u;
    let output = id / inputs() / 9u;
    return (output * inputs() + input) * 9u + tap;
}
