// What the masks of matched queries lose against those of their targets.
//
//   loss = mask_w sum_pairs mask / M + dice_w sum_pairs dice / M          M = targets of the batch, at least 1
//   mask = 1/n sum_i  l(z_i, t_i)                                         z = sample of the mask, t of the target
//   dice = 1 - (2 sum p t + 1) / (sum p + sum t + 1)                      p = sigmoid(z)
//   l    = t softplus(-z) + (1 - t) softplus(z)                           at chosen points (Mask2Former)
//        = 1/4 (1 - p)² softplus(-z) or 3/4 p² softplus(z)                focal, at the label map's pixels (MaskFormer)
//
// Points are chosen for their uncertainty: of `candidates` points the `hard` ones whose |z| is least, of equal
// ones the first; those after the candidates all count.
//
// Host: src/ops/mask_loss.rs        Test: kernels-tests/mask_loss.rs
// R = pairs that the dispatch is for, from first_pair on, A = as many as there can be, P = points of a pair,
// h × w = masks, H × W = labels.

struct Params {
    height: u32,
    width: u32,
    goal_height: u32,
    goal_width: u32,
    queries: u32,
    rows: u32,
    first_pair: u32,
    capacity: u32,
    // Points of a pair, the first of which are candidates.
    points: u32,
    candidates: u32,
    hard: u32,
    // How many samples a mean is over.
    samples: u32,
    chunks: u32,
    mask_w: f32,
    dice_w: f32,
    first_group: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> z: array<f32>;                     // [R, P]
@group(0) @binding(2) var<storage, read> points: array<vec2<f32>>;          // [R, P]
@group(0) @binding(3) var<storage, read> labels: array<u32>;                // [B, H, W] of u8
@group(0) @binding(4) var<storage, read> matching: array<u32>;              // pairs, 1 / M; [A] masks; [A] classes
@group(0) @binding(5) var<storage, read> choice: array<vec2<u32>>;          // [A]: largest |z|, last of that
@group(0) @binding(6) var<storage, read> masks: array<f32>;                 // [B, Q, h, w]
@group(0) @binding(7) var<storage, read> parts: array<vec4<f32>>;           // [A, chunks]
@group(0) @binding(8) var<storage, read> sums: array<vec4<f32>>;            // [A]: l, p t, p, t
@group(0) @binding(9) var<storage, read> dy: array<f32>;                    // [1]
@group(0) @binding(10) var<storage, read_write> choice_out: array<vec2<u32>>; // [A]
@group(0) @binding(11) var<storage, read_write> parts_out: array<vec4<f32>>; // [A, chunks]
@group(0) @binding(12) var<storage, read_write> sums_out: array<vec4<f32>>; // [A]
@group(0) @binding(13) var<storage, read_write> loss: array<f32>;           // [1]
@group(0) @binding(14) var<storage, read_write> terms: array<f32>;          // [2]: mask, dice
@group(0) @binding(15) var<storage, read_write> dz: array<f32>;             // [R, P]
@group(0) @binding(16) var<storage, read_write> dmasks: array<f32>;         // [B, Q, h, w]

const WORKGROUP: u32 = 256u;

fn group_id(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return params.first_group + group.x + group.y * groups.x;
}

fn mask_of(pair: u32) -> u32 {
    return matching[2u + pair];
}

fn class_of(pair: u32) -> u32 {
    return matching[2u + params.capacity + pair];
}

// 1 where the pixel of the label map of a pair's picture has its class.
fn inside(pair: u32, pixel: u32) -> f32 {
    let image = mask_of(pair) / params.queries;
    let at = image * params.goal_height * params.goal_width + pixel;
    return select(0.0, 1.0, ((labels[at >> 2u] >> ((at & 3u) * 8u)) & 255u) == class_of(pair));
}

// The sample of a pair's target at a point.
fn sample_of_target(pair: u32, point: vec2<f32>) -> f32 {
    let corners = corners_of(point, params.goal_height, params.goal_width);
    return dot(
        corners.weight,
        vec4(
            inside(pair, corners.at.x),
            inside(pair, corners.at.y),
            inside(pair, corners.at.z),
            inside(pair, corners.at.w),
        ),
    );
}

// ---- choose: z, matching -> choice_out -----------------------------------------------------------
// One workgroup per pair. Radix selection: each round counts one byte of |z| among the candidates whose
// higher bytes are those chosen so far, smallest first. Integer sums, so their order does not matter.

var<workgroup> bins: array<atomic<u32>, 256>;
var<workgroup> equal: array<u32, WORKGROUP>;
// A byte, how many are still to be found, how many have that byte; later the last place.
var<workgroup> found: vec3<u32>;

// Magnitudes are ordered like their bits, NaN last.
fn key_of(i: u32) -> u32 {
    return bitcast<u32>(z[i]) & 0x7fffffffu;
}

@compute @workgroup_size(WORKGROUP)
fn choose(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group_id(group, groups);
    let pair = params.first_pair + row;
    if row >= params.rows || pair >= matching[0] {
        return;
    }
    let first = row * params.points;
    var key = 0u;
    var state = vec3(0u, params.hard, 0u);
    for (var round = 0u; round < 4u; round++) {
        let shift = 24u - 8u * round;
        atomicStore(&bins[lane], 0u);
        workgroupBarrier();
        for (var i = lane; i < params.candidates; i += WORKGROUP) {
            let other = key_of(first + i);
            // The bytes above; a shift by 32 would not clear them.
            if round == 0u || ((other ^ key) >> (shift + 8u)) == 0u {
                atomicAdd(&bins[(other >> shift) & 255u], 1u);
            }
        }
        workgroupBarrier();
        if lane == 0u {
            var left = state.y;
            var byte = 0u;
            for (; byte < 255u && atomicLoad(&bins[byte]) < left; byte++) {
                left -= atomicLoad(&bins[byte]);
            }
            found = vec3(byte, left, atomicLoad(&bins[byte]));
        }
        state = workgroupUniformLoad(&found);
        key |= state.x << shift;
    }
    var last = 0xffffffffu;
    if state.y < state.z {
        // Not all of the equal ones: each lane counts those of a part, the first lane finds the last part,
        // whose lane finds the last one.
        let each = (params.candidates + WORKGROUP - 1u) / WORKGROUP;
        let end = min((lane + 1u) * each, params.candidates);
        var count = 0u;
        for (var i = lane * each; i < end; i++) {
            count += select(0u, 1u, key_of(first + i) == key);
        }
        equal[lane] = count;
        workgroupBarrier();
        if lane == 0u {
            var left = state.y;
            var part = 0u;
            for (; part < WORKGROUP - 1u && equal[part] < left; part++) {
                left -= equal[part];
            }
            found = vec3(part, left, 0u);
        }
        let place = workgroupUniformLoad(&found);
        if lane == place.x {
            var left = place.y;
            var i = lane * each;
            for (; i < end; i++) {
                left -= select(0u, 1u, key_of(first + i) == key);
                if left == 0u {
                    break;
                }
            }
            found.x = i;
        }
        last = workgroupUniformLoad(&found).x;
    }
    if lane == 0u {
        choice_out[pair] = vec2(key, last);
    }
}

fn is_chosen(pair: u32, row: u32, i: u32) -> bool {
    let key = key_of(row * params.points + i);
    let limit = choice[pair];
    return i >= params.candidates || key < limit.x || (key == limit.x && i <= limit.y);
}

// ---- point_sums: z, points, labels, matching, choice -> sums_out ---------------------------------
// One workgroup per pair.

@compute @workgroup_size(WORKGROUP)
fn point_sums(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group_id(group, groups);
    let pair = params.first_pair + row;
    if row >= params.rows || pair >= matching[0] {
        return;
    }
    var sum = vec4(0.0);
    for (var i = lane; i < params.points; i += WORKGROUP) {
        if is_chosen(pair, row, i) {
            let at = row * params.points + i;
            let v = z[at];
            let p = sigmoid(v);
            let t = sample_of_target(pair, points[at]);
            sum += vec4(t * softplus(-v) + (1.0 - t) * softplus(v), p * t, p, t);
        }
    }
    let total = vec4(workgroup_sum2(sum.xy, lane), workgroup_sum2(sum.zw, lane));
    if lane == 0u {
        sums_out[pair] = total;
    }
}

// ---- pixel_parts: masks, labels, matching -> parts_out -------------------------------------------
// One workgroup per SPAN pixels of a pair.

const SPAN: u32 = 16384u;

// A mask resized to the label map.
fn resized(first: u32, y: Taps, x: Taps) -> f32 {
    let near = first + y.near * params.width;
    let far = first + y.far * params.width;
    return y.near_weight * (x.near_weight * masks[near + x.near] + x.far_weight * masks[near + x.far])
        + y.far_weight * (x.near_weight * masks[far + x.near] + x.far_weight * masks[far + x.far]);
}

@compute @workgroup_size(WORKGROUP)
fn pixel_parts(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = group_id(group, groups);
    let pair = id / params.chunks;
    if pair >= matching[0] {
        return;
    }
    let first = mask_of(pair) * params.height * params.width;
    let start = (id - pair * params.chunks) * SPAN;
    let end = min(start + SPAN, params.samples);
    var sum = vec4(0.0);
    for (var i = start + lane; i < end; i += WORKGROUP) {
        let row = i / params.goal_width;
        let y = taps(row, params.height, params.goal_height);
        let x = taps(i - row * params.goal_width, params.width, params.goal_width);
        let v = resized(first, y, x);
        let p = sigmoid(v);
        let t = inside(pair, i);
        let wrong = select(p, sigmoid(-v), t == 1.0);
        let focal = select(0.75, 0.25, t == 1.0) * wrong * wrong * softplus(select(v, -v, t == 1.0));
        sum += vec4(focal, p * t, p, t);
    }
    let total = vec4(workgroup_sum2(sum.xy, lane), workgroup_sum2(sum.zw, lane));
    if lane == 0u {
        parts_out[id] = total;
    }
}

// ---- fold: parts, matching -> sums_out -----------------------------------------------------------
// One invocation per pair.

@compute @workgroup_size(64)
fn fold(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let pair = group_id(group, groups) * 64u + lane;
    if pair >= matching[0] {
        return;
    }
    var sum = vec4(0.0);
    for (var chunk = 0u; chunk < params.chunks; chunk++) {
        sum += parts[pair * params.chunks + chunk];
    }
    sums_out[pair] = sum;
}

// ---- total: sums, matching -> loss, terms --------------------------------------------------------
// One workgroup.

@compute @workgroup_size(WORKGROUP)
fn total(@builtin(local_invocation_index) lane: u32) {
    var sum = vec2(0.0);
    for (var pair = lane; pair < matching[0]; pair += WORKGROUP) {
        let own = sums[pair];
        sum += vec2(own.x / f32(params.samples), 1.0 - (2.0 * own.y + 1.0) / (own.z + own.w + 1.0));
    }
    let all = workgroup_sum2(sum, lane) * vec2(params.mask_w, params.dice_w) * bitcast<f32>(matching[1]);
    if lane == 0u {
        loss[0] = all.x + all.y;
        terms[0] = all.x;
        terms[1] = all.y;
    }
}

// d dice / dp of a sample.
fn dice_slope(own: vec4<f32>, t: f32) -> f32 {
    let area = own.z + own.w + 1.0;
    return ((2.0 * own.y + 1.0) / area - 2.0 * t) / area;
}

// ---- point_slopes: z, points, labels, matching, choice, sums, dy -> dz ---------------------------
// z of the grid: pair. Nothing for rows beyond the last one.

@compute @workgroup_size(64)
fn point_slopes(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.z;
    let pair = params.first_pair + row;
    let point = group_id(group, groups) * 64u + lane;
    if pair >= matching[0] || point >= params.points {
        return;
    }
    let at = row * params.points + point;
    var slope = 0.0;
    if is_chosen(pair, row, point) {
        let p = sigmoid(z[at]);
        let t = sample_of_target(pair, points[at]);
        let mask = params.mask_w / f32(params.samples) * (p - t);
        let dice = params.dice_w * dice_slope(sums[pair], t) * p * sigmoid(-z[at]);
        slope = dy[0] * bitcast<f32>(matching[1]) * (mask + dice);
    }
    dz[at] = slope;
}

// ---- pixel_slopes: masks, labels, matching, sums, dy -> dmasks -----------------------------------
// One invocation per pixel of a mask: it meets the pixels of the label map that it has a weight in.

@compute @workgroup_size(64)
fn pixel_slopes(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = group_id(group, groups) * 64u + lane;
    let size = params.height * params.width;
    let pair = at / size;
    if pair >= matching[0] {
        return;
    }
    let pixel = at - pair * size;
    let i = pixel / params.width;
    let j = pixel - i * params.width;
    let first = mask_of(pair) * size;
    let own = sums[pair];
    let mask_factor = params.mask_w / f32(params.samples);
    let rows = meeting(i, params.height, params.goal_height);
    let columns = meeting(j, params.width, params.goal_width);
    var sum = 0.0;
    for (var row = rows.x; row < rows.y; row++) {
        let y = taps(row, params.height, params.goal_height);
        let y_weight = meeting_weight(row, i, params.height, params.goal_height);
        for (var column = columns.x; column < columns.y; column++) {
            let x = taps(column, params.width, params.goal_width);
            let v = resized(first, y, x);
            let p = sigmoid(v);
            let not_p = sigmoid(-v);
            let t = inside(pair, row * params.goal_width + column);
            var focal = 0.75 * p * p * (2.0 * not_p * softplus(v) + p);
            if t == 1.0 {
                focal = -0.25 * not_p * not_p * (2.0 * p * softplus(-v) + not_p);
            }
            let slope = mask_factor * focal + params.dice_w * dice_slope(own, t) * p * not_p;
            sum += y_weight * meeting_weight(column, j, params.width, params.goal_width) * slope;
        }
    }
    dmasks[first + pixel] = dy[0] * bitcast<f32>(matching[1]) * sum;
}
