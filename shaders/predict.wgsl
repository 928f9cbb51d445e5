// From logits to predictions, resized on the way; scores. Nothing here has a gradient.
//
//   v[Y, X, k]  = bilinear resize of logits, or the resize of such a resize      never stored
//   sum[Y, X]  += softmax(v), mirrored in X                  multiple scales and flips
//   sum[Y, X]  += v, mirrored in X                           the same of what are scores already
//   words       = argmax_k v, four to a word
//   counts[label, predicted] += 1
//   sum[window] += v,  hits[window] += 1,  sum /= hits       sliding windows
//
// Host: src/ops/predict.rs        Test: kernels-tests/predict.rs        Weights: lib/axis.wgsl
// B = batch, h, w = size of logits, H, W = goal size, R = rows of a band of it, K = classes.

struct Params {
    rows: u32,
    height: u32,
    width: u32,
    via_height: u32,
    via_width: u32,
    goal_height: u32,
    goal_width: u32,
    classes: u32,
    band: u32,
    first_row: u32,
    held_rows: u32,   // of `height`, from held_first on
    held_first: u32,
    pixels: u32,
    mirror: u32,
    add: u32,
    top: u32,
    left: u32,
    map_height: u32,
    map_width: u32,
    first_word: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;             // [B, h, w, K]
@group(0) @binding(2) var<storage, read> lse: array<f32>;                // [B, R, W]
@group(0) @binding(3) var<storage, read> predicted: array<u32>;          // [B, H, W] of u8
@group(0) @binding(4) var<storage, read> labels: array<u32>;             // [B, H, W] of u8
@group(0) @binding(5) var<storage, read> hits: array<f32>;               // [H, W]
@group(0) @binding(6) var<storage, read_write> lse_out: array<f32>;      // [B, R, W]
@group(0) @binding(7) var<storage, read_write> sum: array<f32>;          // [B, R, W, K]
@group(0) @binding(8) var<storage, read_write> words: array<u32>;        // [B, H, W] of u8
@group(0) @binding(9) var<storage, read_write> counts: array<atomic<u32>>; // [K, K]
@group(0) @binding(10) var<storage, read_write> hits_out: array<f32>;    // [H, W]

// Of lib/axis.wgsl.
override TAPS: u32 = 2u;

const LOWEST: f32 = -3.4028234e38;

// The rows of logits for goal row y of an image, as first pixels.
fn axis_of_rows(image: u32, y: u32) -> Axis {
    let v = axis(y, params.height, params.via_height, params.goal_height);
    return Axis((image * params.held_rows + v.at - params.held_first) * params.width, v.weight);
}

fn axis_of_columns(x: u32) -> Axis {
    return axis(x, params.width, params.via_width, params.goal_width);
}

fn value(v: Axis, u: Axis, k: u32) -> f32 {
    if TAPS == 1u {
        return logits[(v.at.x + u.at.x) * params.classes + k];
    }
    var y = v.weight.x * along(v.at.x, u, k) + v.weight.y * along(v.at.y, u, k);
    if TAPS == 3u {
        y += v.weight.z * along(v.at.z, u, k);
    }
    return y;
}

fn along(row: u32, u: Axis, k: u32) -> f32 {
    var y = u.weight.x * logits[(row + u.at.x) * params.classes + k]
        + u.weight.y * logits[(row + u.at.y) * params.classes + k];
    if TAPS == 3u {
        y += u.weight.z * logits[(row + u.at.z) * params.classes + k];
    }
    return y;
}

// What one workgroup of 32 lanes does, a lane per class: pixels `start..end` of row `row`.
struct Place {
    row: u32,
    start: u32,
    end: u32,
    slice: u32,
}

fn locate(id: u32, width: u32) -> Place {
    let slices = (params.classes + 31u) / 32u;
    let walks = (width + 15u) / 16u;
    let start = id / slices % walks * 16u;
    return Place(id / slices / walks, start, min(start + 16u, width), id % slices);
}

// ---- normalise: logits -> lse_out ----------------------------------------------------------------
// One invocation per pixel of the band.

@compute @workgroup_size(64)
fn normalise(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let pixel = (group.x + group.y * groups.x) * 64u + lane;
    if pixel >= params.pixels {
        return;
    }
    let row = pixel / params.goal_width;
    let image = row / params.band;
    let v = axis_of_rows(image, params.first_row + row - image * params.band);
    let u = axis_of_columns(pixel - row * params.goal_width);
    var largest = LOWEST;
    var total = 0.0;
    for (var k = 0u; k < params.classes; k++) {
        let y = value(v, u, k);
        if y > largest {
            total *= exp(largest - y);
            largest = y;
        }
        total += exp(y - largest);
    }
    lse_out[pixel] = largest + log(total);
}

// ---- accumulate: logits, lse -> sum --------------------------------------------------------------

@compute @workgroup_size(32)
fn accumulate(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group.x + group.y * groups.x, params.goal_width);
    let k = place.slice * 32u + lane;
    if place.row >= params.rows || k >= params.classes {
        return;
    }
    let image = place.row / params.band;
    let v = axis_of_rows(image, params.first_row + place.row - image * params.band);
    for (var x = place.start; x < place.end; x++) {
        add_to_sum(place.row, x, k, exp(value(v, axis_of_columns(x), k) - lse[place.row * params.goal_width + x]));
    }
}

fn add_to_sum(row: u32, x: u32, k: u32, v: f32) {
    let to = select(x, params.goal_width - 1u - x, params.mirror != 0u);
    let at = (row * params.goal_width + to) * params.classes + k;
    sum[at] = select(0.0, sum[at], params.add != 0u) + v;
}

// ---- accumulate_scores: logits -> sum ------------------------------------------------------------

@compute @workgroup_size(32)
fn accumulate_scores(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group.x + group.y * groups.x, params.goal_width);
    let k = place.slice * 32u + lane;
    if place.row >= params.rows || k >= params.classes {
        return;
    }
    let image = place.row / params.band;
    let v = axis_of_rows(image, params.first_row + place.row - image * params.band);
    for (var x = place.start; x < place.end; x++) {
        add_to_sum(place.row, x, k, value(v, axis_of_columns(x), k));
    }
}

// ---- argmax: logits -> words ---------------------------------------------------------------------
// One invocation per word of four pixels. The first of equal values wins; a NaN leaves no class, 255.

@compute @workgroup_size(64)
fn argmax(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = (group.x + group.y * groups.x) * 64u + lane;
    if at * 4u >= params.pixels {
        return;
    }
    var word = 0u;
    for (var i = 0u; i < min(4u, params.pixels - at * 4u); i++) {
        let pixel = at * 4u + i;
        let row = pixel / params.goal_width;
        let image = row / params.band;
        let v = axis_of_rows(image, params.first_row + row - image * params.band);
        let u = axis_of_columns(pixel - row * params.goal_width);
        var best = value(v, u, 0u);
        var found = 0u;
        var undefined = is_nan(best);
        for (var k = 1u; k < params.classes; k++) {
            let y = value(v, u, k);
            undefined = undefined || is_nan(y);
            found = select(found, k, y > best);
            best = select(best, y, y > best);
        }
        word |= select(found, 255u, undefined) << (8u * i);
    }
    words[params.first_word + at] = word;
}

// By its bits: some drivers take `v != v` to be false.
fn is_nan(v: f32) -> bool {
    return (bitcast<u32>(v) & 0x7fffffffu) > 0x7f800000u;
}

// ---- confusion: predicted, labels -> counts ------------------------------------------------------
// One invocation per word. Neighbours mostly agree, so equal ones are counted together.

@compute @workgroup_size(64)
fn confusion(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = (group.x + group.y * groups.x) * 64u + lane;
    if at * 4u >= params.pixels {
        return;
    }
    let end = min(4u, params.pixels - at * 4u);
    var run = 0u;
    for (var i = 0u; i < end; i++) {
        let label = labels[at] >> (8u * i) & 255u;
        let found = predicted[at] >> (8u * i) & 255u;
        run += 1u;
        let next = i + 1u;
        if next < end && (labels[at] >> (8u * next) & 255u) == label
            && (predicted[at] >> (8u * next) & 255u) == found {
            continue;
        }
        if label < params.classes && found < params.classes {
            atomicAdd(&counts[label * params.classes + found], run);
        }
        run = 0u;
    }
}

// ---- add_window: logits -> sum, hits_out ---------------------------------------------------------

@compute @workgroup_size(32)
fn add_window(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group.x + group.y * groups.x, params.goal_width);
    let k = place.slice * 32u + lane;
    if place.row >= params.rows || k >= params.classes {
        return;
    }
    let image = place.row / params.band;
    let y = params.first_row + place.row - image * params.band;
    let v = axis_of_rows(image, y);
    for (var x = place.start; x < place.end; x++) {
        let pixel = (params.top + y) * params.map_width + params.left + x;
        let at = (image * params.map_height * params.map_width + pixel) * params.classes + k;
        sum[at] += value(v, axis_of_columns(x), k);
        if image == 0u && k == 0u {
            hits_out[pixel] += 1.0;
        }
    }
}

// ---- divide: hits -> sum -------------------------------------------------------------------------

@compute @workgroup_size(32)
fn divide(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group.x + group.y * groups.x, params.goal_width);
    let k = place.slice * 32u + lane;
    if place.row >= params.rows || k >= params.classes {
        return;
    }
    let y = place.row % params.goal_height;
    for (var x = place.start; x < place.end; x++) {
        sum[(place.row * params.goal_width + x) * params.classes + k] /= hits[y * params.goal_width + x];
    }
}
