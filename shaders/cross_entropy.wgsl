// Softmax cross entropy of low-resolution logits against full-resolution labels, forward and backward.
//
//   v[Y, X, k] = bilinear resize of logits                     never stored
//   lse        = log sum_k exp(v_k),  ce = lse - v_label       0 where the label is ignored
//   loss       = weight mean(kept ce)                          mean over all pixels, ignored ones too,
//                                                              or over those with a label
//   dlogits[i, j, k] = dy weight / pixels  sum_Y sum_X  u(Y, i) u(X, j) (softmax(v)_k - [k = label])
//
// Host: src/ops/cross_entropy.rs        Test: kernels-tests/cross_entropy.rs
// B = batch, h, w = size of logits, H, W = size of labels, K = classes, P = W rounded up to 64.
// Maps of pixels have rows of P so that each is the work of one invocation, and sums need no guard.

struct Params {
    rows: u32,
    height: u32,
    width: u32,
    goal_height: u32,
    goal_width: u32,
    classes: u32,
    chunks: u32,
    strip: u32,
    pixels: u32,
    kept: u32,
    digit: u32,
    shift: u32,
    mask: u32,
    coefficient: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;            // [B, h, w, K]
@group(0) @binding(2) var<storage, read> labels: array<u32>;            // [B, H, W] of u8
@group(0) @binding(3) var<storage, read> lse: array<f32>;               // [B, H, P]
@group(0) @binding(4) var<storage, read> ce: array<f32>;                // [B, H, P]
@group(0) @binding(5) var<storage, read> dy: array<f32>;                // [1]
@group(0) @binding(6) var<storage, read_write> lse_out: array<f32>;     // [B, H, P]
@group(0) @binding(7) var<storage, read_write> ce_out: array<f32>;      // [B, H, P]
@group(0) @binding(8) var<storage, read_write> correct: array<f32>;     // [B, H, P] of 0 and 1
@group(0) @binding(9) var<storage, read_write> bins: array<atomic<u32>>; // [digits, 256]
@group(0) @binding(10) var<storage, read_write> choice: array<u32>;     // [3]: key, order, how many
@group(0) @binding(11) var<storage, read_write> dlogits: array<f32>;    // [B, h, w, K]
@group(0) @binding(12) var<storage, read> total: array<f32>;            // [1]: of ce
@group(0) @binding(13) var<storage, read> marked: array<f32>;           // [1]: of correct
@group(0) @binding(14) var<storage, read_write> mean_out: array<f32>;   // [1]

// Labels are as large as logits: no resize.
override SAME_SIZE: bool = false;

// `correct` shall be which pixels have a label, to count them.
override MARK_LABELLED: bool = false;

// The lse of a pixel without loss: it has no label, or easier than those that are kept.
const WITHOUT_LOSS: f32 = 3.4028234e38;
const LOWEST: f32 = -3.4028234e38;

fn label_of(pixel: u32) -> u32 {
    return (labels[pixel >> 2u] >> ((pixel & 3u) * 8u)) & 255u;
}

// ---- forward: logits, labels -> lse_out, ce_out, correct ---------------------------------------------
// One invocation per pixel. The sum of exponentials is kept relative to the largest so far, and
// rescaled at most once per four classes.

struct Corners {
    at: vec4<u32>,
    weight: vec4<f32>,
}

fn value(corners: Corners, k: u32) -> f32 {
    if SAME_SIZE {
        return logits[corners.at.x + k];
    }
    return corners.weight.x * logits[corners.at.x + k] + corners.weight.y * logits[corners.at.y + k]
        + (corners.weight.z * logits[corners.at.z + k] + corners.weight.w * logits[corners.at.w + k]);
}

fn corners_of(row: u32, x: u32) -> Corners {
    if SAME_SIZE {
        return Corners(vec4((row * params.width + x) * params.classes), vec4(1.0, 0.0, 0.0, 0.0));
    }
    let image = row / params.goal_height;
    let v = taps(row - image * params.goal_height, params.height, params.goal_height);
    let u = taps(x, params.width, params.goal_width);
    let near = (image * params.height + v.near) * params.width;
    let far = (image * params.height + v.far) * params.width;
    return Corners(
        vec4(near + u.near, near + u.far, far + u.near, far + u.far) * params.classes,
        vec4(v.near_weight * vec2(u.near_weight, u.far_weight), v.far_weight * vec2(u.near_weight, u.far_weight)),
    );
}

@compute @workgroup_size(64)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = group.x + group.y * groups.x;
    let row = id / params.chunks;
    if row >= params.rows {
        return;
    }
    let x = (id - row * params.chunks) * 64u + lane;
    let at = id * 64u + lane;
    var label = 255u;
    if x < params.goal_width {
        label = label_of(row * params.goal_width + x);
    }
    // Labels come checked; one that is no class must not become an index.
    if label >= params.classes {
        lse_out[at] = WITHOUT_LOSS;
        ce_out[at] = 0.0;
        correct[at] = 0.0;
        return;
    }
    let corners = corners_of(row, x);
    var largest = LOWEST;
    var found = 0u;
    var sum = 0.0;
    // Neither comparisons nor every driver's exp() let a NaN through; a plain sum does.
    var total = 0.0;
    var k = 0u;
    for (; k + 4u <= params.classes; k += 4u) {
        let v = vec4(value(corners, k), value(corners, k + 1u), value(corners, k + 2u), value(corners, k + 3u));
        let before = largest;
        for (var i = 0u; i < 4u; i++) {
            found = select(found, k + i, v[i] > largest);
            largest = select(largest, v[i], v[i] > largest);
        }
        if largest > before {
            sum *= exp(before - largest);
        }
        let e = exp(v - largest);
        total += (v.x + v.y) + (v.z + v.w);
        sum += (e.x + e.y) + (e.z + e.w);
    }
    for (; k < params.classes; k++) {
        let v = value(corners, k);
        if v > largest {
            sum *= exp(largest - v);
            largest = v;
            found = k;
        }
        total += v;
        sum += exp(v - largest);
    }
    sum += 0.0 * total;
    // In this order the large terms cancel exactly.
    let loss = (largest - value(corners, label)) + log(sum);
    lse_out[at] = largest + log(sum);
    // Rounding may leave it a little below 0; not max(), which hides a NaN.
    ce_out[at] = abs(loss);
    correct[at] = select(0.0, 1.0, found == label || MARK_LABELLED);
}

// ---- count: lse, ce, choice -> bins --------------------------------------------------------------
// Which pixels have the largest loss (OHEM), by radix selection: each round counts the values of one
// byte among the pixels whose higher bytes are those chosen so far, largest first. Four rounds choose
// the loss of the last pixel to keep; more rounds choose that pixel's place, so that of equal losses
// the first are kept. Integer sums, so their order does not matter.

const COUNTED: u32 = 4096u;

var<workgroup> counted: array<atomic<u32>, 256>;

// Grows with the loss: floats without sign are ordered like their bits. 0: no loss to keep.
fn key_of(loss: f32, normaliser: f32) -> u32 {
    return select((bitcast<u32>(loss) & 0x7fffffffu) + 1u, 0u, normaliser == WITHOUT_LOSS);
}

// Falls along the pixels.
fn order_of(i: u32) -> u32 {
    return params.pixels - 1u - i;
}

@compute @workgroup_size(256)
fn count(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    atomicStore(&counted[lane], 0u);
    workgroupBarrier();
    let start = (group.x + group.y * groups.x) * COUNTED;
    let end = min(start + COUNTED, params.pixels);
    let by_order = params.digit >= 4u;
    for (var i = start + lane; i < end; i += 256u) {
        let key = key_of(ce[i], lse[i]);
        let digits = select(key, order_of(i), by_order);
        let chosen = select(choice[0], choice[1], by_order);
        let candidate = select(key != 0u, key == choice[0], by_order);
        if candidate && (digits & params.mask) == (chosen & params.mask) {
            atomicAdd(&counted[(digits >> params.shift) & 255u], 1u);
        }
    }
    workgroupBarrier();
    let n = atomicLoad(&counted[lane]);
    if n > 0u {
        atomicAdd(&bins[params.digit * 256u + lane], n);
    }
}

// ---- pick: bins -> choice ------------------------------------------------------------------------
// One invocation: the byte at which the count from above reaches how many are still to be found.

@compute @workgroup_size(1)
fn pick() {
    let bin = params.digit * 256u;
    var left = choice[2];
    if params.digit == 0u {
        var total = 0u;
        for (var i = 0u; i < 256u; i++) {
            total += atomicLoad(&bins[bin + i]);
        }
        left = min(params.kept, total);
        choice[0] = 0u;
        choice[1] = 0u;
    }
    if left == 0u {
        // A key that no pixel has, so that later rounds find none either.
        choice[0] = 0xffffffffu;
        choice[2] = 0u;
        return;
    }
    var digit = 255u;
    for (; digit > 0u; digit--) {
        let n = atomicLoad(&bins[bin + digit]);
        if n >= left {
            break;
        }
        left -= n;
    }
    choice[select(0u, 1u, params.digit >= 4u)] |= digit << params.shift;
    choice[2] = left;
}

// ---- drop_easy: choice -> lse_out, ce_out --------------------------------------------------------

@compute @workgroup_size(64)
fn drop_easy(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (group.x + group.y * groups.x) * 64u + lane;
    if i >= params.pixels {
        return;
    }
    let key = key_of(ce_out[i], lse_out[i]);
    if key < choice[0] || (key == choice[0] && order_of(i) < choice[1]) {
        lse_out[i] = WITHOUT_LOSS;
        ce_out[i] = 0.0;
    }
}

// ---- mean: total, marked -> mean_out -------------------------------------------------------------
// Over the pixels with a label: of the loss, and of its gradient.

@compute @workgroup_size(1)
fn mean() {
    mean_out[0] = params.coefficient * total[0] / max(marked[0], 1.0);
}

// ---- backward: logits, labels, lse, dy -> dlogits ------------------------------------------------
// Lanes along the classes, EACH of them to a lane; an invocation walks along `strip` cells of a row of logits,
// as the backward pass of resize.wgsl does, and everything but its classes is the same for all lanes. On CPU
// drivers several classes share the work on that.

override LANES: u32 = 32u;
override EACH: u32 = 1u;
const MOST: u32 = 5u;

alias Classes = array<f32, MOST>;

@compute @workgroup_size(LANES)
fn backward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = group.x + group.y * groups.x;
    let slices = (params.classes + LANES * EACH - 1u) / (LANES * EACH);
    let strips = (params.width + params.strip - 1u) / params.strip;
    let slice = id % slices;
    let strip = id / slices % strips;
    let row = id / slices / strips;
    // The lane's first class; the others follow LANES apart, those that exist.
    let k = slice * LANES * EACH + lane;
    if row >= params.rows || k >= params.classes {
        return;
    }
    let start = strip * params.strip;
    let end = min(start + params.strip, params.width);
    let scale = dy[0] * params.coefficient;
    if SAME_SIZE {
        for (var j = start; j < end; j++) {
            let v = load_classes(row * params.width + j, k);
            store_classes(row * params.width + j, k, scale, slopes(v, k, row, j));
        }
        return;
    }

    let image = row / params.height;
    let i = row - image * params.height;
    let rows = meeting(i, params.height, params.goal_height);
    // Rows of logits above, here and below, as pixels of all images.
    let bases = (image * params.height + vec3(max(i, 1u) - 1u, i, min(i + 1u, params.height - 1u))) * params.width;
    var j = max(start, 1u) - 1u;
    var x = cell_start(j, params.width, params.goal_width);
    var column = load_column(bases, j, k);
    var here: Classes;
    for (; j < end; j++) {
        let column_after = load_column(bases, min(j + 1u, params.width - 1u), k);
        let x_start = x;
        while x < params.goal_width
            && (j + 1u == params.width || position(x, params.width) < cell_edge(j + 1u, params.goal_width)) {
            x++;
        }
        var next: Classes;
        for (var y = rows.x; y < rows.y; y++) {
            let n = position(y, params.height);
            let above = i > 0u && n < cell_edge(i, params.goal_height);
            let v = cell_weights(n, i - select(0u, 1u, above), params.height, params.goal_height);
            // Of the rows above, here and below.
            let weights = select(vec3(0.0, v), vec3(v, 0.0), above);
            var left: Classes;
            var right: Classes;
            for (var c = 0u; c < EACH; c++) {
                left[c] = dot(weights, column[c]);
                right[c] = dot(weights, column_after[c]);
            }
            for (var d = x_start; d < x; d++) {
                let u = cell_weights(position(d, params.width), j, params.width, params.goal_width);
                var between: Classes;
                for (var c = 0u; c < EACH; c++) {
                    between[c] = u.x * left[c] + u.y * right[c];
                }
                let slope = slopes(between, k, image * params.goal_height + y, d);
                for (var c = 0u; c < EACH; c++) {
                    here[c] += weights.y * u.x * slope[c];
                    next[c] += weights.y * u.y * slope[c];
                }
            }
        }
        if j >= start {
            store_classes(row * params.width + j, k, scale, here);
        }
        here = next;
        column = column_after;
    }
}

fn class_of(k: u32, c: u32) -> u32 {
    return min(k + c * LANES, params.classes - 1u);
}

fn load_classes(pixel: u32, k: u32) -> Classes {
    var v: Classes;
    for (var c = 0u; c < EACH; c++) {
        v[c] = logits[pixel * params.classes + class_of(k, c)];
    }
    return v;
}

fn store_classes(pixel: u32, k: u32, scale: f32, v: Classes) {
    for (var c = 0u; c < EACH; c++) {
        if k + c * LANES < params.classes {
            dlogits[pixel * params.classes + k + c * LANES] = scale * v[c];
        }
    }
}

fn load_column(bases: vec3<u32>, j: u32, k: u32) -> array<vec3<f32>, MOST> {
    var column: array<vec3<f32>, MOST>;
    for (var c = 0u; c < EACH; c++) {
        let at = (bases + j) * params.classes + class_of(k, c);
        column[c] = vec3(logits[at.x], logits[at.y], logits[at.z]);
    }
    return column;
}

// softmax(v)_k - [k = label] of one pixel; 0 where it has no loss.
fn slopes(v: Classes, k: u32, row: u32, x: u32) -> Classes {
    var slope: Classes;
    let normaliser = lse[row * params.chunks * 64u + x];
    if normaliser == WITHOUT_LOSS {
        return slope;
    }
    let label = label_of(row * params.goal_width + x);
    for (var c = 0u; c < EACH; c++) {
        let d = v[c] - normaliser;
        slope[c] = exp(d) + 0.0 * d - select(0.0, 1.0, k + c * LANES == label);
    }
    return slope;
}
