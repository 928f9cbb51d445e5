// What it costs to match a query to a target: class, mask and dice, from samples of both masks.
//
//   cost[q, k] = mask_w mask(q, k) - class_w softmax(logits[q])[label_k] + dice_w dice(q, k)
//   mask(q, k) = 1/n sum_i  t pos + (1 - t) neg                t = sample i of target k, z of query q, p = sigmoid(z)
//   dice(q, k) = 1 - (2 sum p t + 1) / (sum p + sum t + 1)
//   pos, neg   = softplus(-z), softplus(z)                      at points (Mask2Former)
//              = 1/4 (1 - p)² softplus(-z), 3/4 p² softplus(z)  focal, at the pixels of the mask (MaskFormer)
//
// Host: src/ops/mask_cost.rs        Test: kernels-tests/mask_cost.rs
// B = batch, Q = queries, h × w = masks, H × W = labels, n = samples, K = classes; of the K columns of an
// image as many count as it has targets.

struct Params {
    queries: u32,
    height: u32,
    width: u32,
    goal_height: u32,
    goal_width: u32,
    classes: u32,
    samples: u32,
    rows: u32,
    class_w: f32,
    mask_w: f32,
    dice_w: f32,
    first_group: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;             // [B, Q, K + 1]
@group(0) @binding(2) var<storage, read> masks: array<f32>;              // [B, Q, h, w]
@group(0) @binding(3) var<storage, read> points: array<vec2<f32>>;       // [B, n]
@group(0) @binding(4) var<storage, read> labels: array<u32>;             // [B, H, W] of u8
@group(0) @binding(5) var<storage, read> targets: array<u32>;            // [B, 1 + K]: how many, which
@group(0) @binding(6) var<storage, read> spots: array<vec4<u32>>;        // [B, n]: labels of four corners, x, y
@group(0) @binding(7) var<storage, read_write> spots_out: array<vec4<u32>>; // [B, n]
@group(0) @binding(8) var<storage, read_write> cost: array<f32>;         // [B, Q, K]

const WORKGROUP: u32 = 64u;

// Samples are the pixels of the masks, and the mask's cost is focal.
override DENSE: bool = false;

// ---- spots_at_points: points, labels -> spots_out ------------------------------------------------
// The samples of all targets at once: a point and the labels around it.

fn label_at(image: u32, y: i32, x: i32) -> u32 {
    if y < 0 || x < 0 || y >= i32(params.goal_height) || x >= i32(params.goal_width) {
        // Of no class.
        return 255u;
    }
    let pixel = (image * params.goal_height + u32(y)) * params.goal_width + u32(x);
    return (labels[pixel >> 2u] >> ((pixel & 3u) * 8u)) & 255u;
}

@compute @workgroup_size(WORKGROUP)
fn spots_at_points(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (params.first_group + group.x + group.y * groups.x) * WORKGROUP + lane;
    if i >= params.rows * params.samples {
        return;
    }
    let image = i / params.samples;
    let size = vec2(f32(params.goal_width), f32(params.goal_height));
    let place = points[i] * size - 0.5;
    let low = vec2<i32>(floor(place));
    let near = label_at(image, low.y, low.x) | (label_at(image, low.y, low.x + 1) << 8u);
    let next = label_at(image, low.y + 1, low.x) | (label_at(image, low.y + 1, low.x + 1) << 8u);
    spots_out[i] = vec4(near | (next << 16u), bitcast<u32>(points[i].x), bitcast<u32>(points[i].y), 0u);
}

// ---- spots_at_pixels: labels -> spots_out --------------------------------------------------------
// The nearest label of each pixel of the masks, torch's: that of pixel floor(d in / out).

@compute @workgroup_size(WORKGROUP)
fn spots_at_pixels(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (params.first_group + group.x + group.y * groups.x) * WORKGROUP + lane;
    if i >= params.rows * params.samples {
        return;
    }
    let image = i / params.samples;
    let pixel = i - image * params.samples;
    let row = pixel / params.width;
    let y = row * params.goal_height / params.height;
    let x = (pixel - row * params.width) * params.goal_width / params.width;
    spots_out[i] = vec4(label_at(image, i32(y), i32(x)) | 0xffffff00u, 0u, 0u, 0u);
}

// ---- costs: logits, masks, targets, spots -> cost ------------------------------------------------
// One workgroup per query. Targets eight at a time, so that a sample's logarithms serve them all.

// Of a sample of a mask: t pos + (1 - t) neg = neg + t gain.
struct Term {
    gain: f32,
    neg: f32,
    p: f32,
}

fn term_of(map: u32, spot: vec4<u32>, i: u32) -> Term {
    if DENSE {
        let z = masks[map + i];
        let p = sigmoid(z);
        let not_p = sigmoid(-z);
        let neg = 0.75 * p * p * softplus(z);
        return Term(0.25 * not_p * not_p * softplus(-z) - neg, neg, p);
    }
    let corners = corners_of(bitcast<vec2<f32>>(spot.yz), params.height, params.width);
    let z = dot(
        corners.weight,
        vec4(
            masks[map + corners.at.x],
            masks[map + corners.at.y],
            masks[map + corners.at.z],
            masks[map + corners.at.w],
        ),
    );
    return Term(-z, softplus(z), sigmoid(z));
}

// Of the four labels of a spot.
fn weights_of(spot: vec4<u32>) -> vec4<f32> {
    if DENSE {
        return vec4(1.0, 0.0, 0.0, 0.0);
    }
    let size = vec2(f32(params.goal_width), f32(params.goal_height));
    let far = fract(bitcast<vec2<f32>>(spot.yz) * size - 0.5);
    let across = vec2(1.0 - far.x, far.x);
    return vec4(across * (1.0 - far.y), across * far.y);
}

// Of four targets: their samples at a spot.
fn shares(labels: u32, weights: vec4<f32>, classes: vec4<u32>) -> vec4<f32> {
    var t = vec4(0.0);
    for (var c = 0u; c < 4u; c++) {
        let label = (labels >> (8u * c)) & 255u;
        t += select(vec4(0.0), vec4(weights[c]), classes == vec4(label));
    }
    return t;
}

// Of four targets.
struct Sums {
    gain: vec4<f32>,
    both: vec4<f32>,
    area: vec4<f32>,
}

fn added(sums: Sums, t: vec4<f32>, term: Term) -> Sums {
    return Sums(sums.gain + t * term.gain, sums.both + t * term.p, sums.area + t);
}

fn class_of(first: u32, k: u32, count: u32) -> u32 {
    if k < count {
        return targets[first + 1u + k];
    }
    // Not a label: labels have eight bits.
    return 256u;
}

fn classes_of(first: u32, k: u32, count: u32) -> vec4<u32> {
    return vec4(
        class_of(first, k, count),
        class_of(first, k + 1u, count),
        class_of(first, k + 2u, count),
        class_of(first, k + 3u, count),
    );
}

// Of query `row`: the largest class logit and the sum of exponentials relative to it.
fn softmax_of(row: u32, lane: u32) -> vec2<f32> {
    let first = row * (params.classes + 1u);
    var largest = -3.4028234e38;
    for (var k = lane; k <= params.classes; k += WORKGROUP) {
        largest = max(largest, logits[first + k]);
    }
    largest = workgroup_max(largest, lane);
    var sum = 0.0;
    for (var k = lane; k <= params.classes; k += WORKGROUP) {
        sum += exp(logits[first + k] - largest);
    }
    return vec2(largest, workgroup_sum2(vec2(sum, 0.0), lane).x);
}

// The costs of four targets from k on; `own` are the query's sums of neg and p.
fn finish(sums: Sums, k: u32, own: vec2<f32>, row: u32, softmax: vec2<f32>, lane: u32) {
    let first = row / params.queries * (1u + params.classes);
    let end = min(k + 4u, targets[first]);
    for (var column = k; column < end; column++) {
        let j = column - k;
        let of_both = workgroup_sum2(vec2(sums.gain[j], sums.both[j]), lane);
        let area = workgroup_sum2(vec2(sums.area[j], 0.0), lane).x;
        let logit = logits[row * (params.classes + 1u) + targets[first + 1u + column]];
        let probability = exp(logit - softmax.x) / softmax.y;
        let mask = (own.x + of_both.x) / f32(params.samples);
        let dice = 1.0 - (2.0 * of_both.y + 1.0) / (own.y + area + 1.0);
        if lane == 0u {
            cost[row * params.classes + column] =
                params.mask_w * mask - params.class_w * probability + params.dice_w * dice;
        }
    }
}

@compute @workgroup_size(WORKGROUP)
fn costs(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = params.first_group + group.x + group.y * groups.x;
    if row >= params.rows {
        return;
    }
    let image = row / params.queries;
    let first = image * (1u + params.classes);
    let count = targets[first];
    let softmax = softmax_of(row, lane);
    let map = row * params.height * params.width;
    for (var k = 0u; k < count; k += 8u) {
        let classes = classes_of(first, k, count);
        let classes_after = classes_of(first, k + 4u, count);
        var sums = Sums();
        var sums_after = Sums();
        var own = vec2(0.0);
        for (var i = lane; i < params.samples; i += WORKGROUP) {
            let spot = spots[image * params.samples + i];
            let term = term_of(map, spot, i);
            let weights = weights_of(spot);
            own += vec2(term.neg, term.p);
            sums = added(sums, shares(spot.x, weights, classes), term);
            if k + 4u < count {
                sums_after = added(sums_after, shares(spot.x, weights, classes_after), term);
            }
        }
        own = workgroup_sum2(own, lane);
        finish(sums, k, own, row, softmax, lane);
        finish(sums_after, k + 4u, own, row, softmax, lane);
    }
}
