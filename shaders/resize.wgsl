// Bilinear resizing of the two middle axes, forward and backward.
//
//   y[Y, X]  = sum_i sum_j  v(Y, i) u(X, j) x[i, j]        at most two i and two j have a weight
//   dx[i, j] = sum_Y sum_X  v(Y, i) u(X, j) dy[Y, X]
//
// Host: src/ops/resize.rs        Test: kernels-tests/resize.rs        Weights: lib/bilinear.wgsl,
// or lib/bilinear_corners.wgsl where the corners' centres stay where they are (align_corners = True)
// B = batch, h, w = size of x, H, W = size of y, C = channels. Lanes run along the channels; an
// invocation walks along 16 pixels of one row with four channels that lie LANES apart, so that it reads
// a column of x only once and all addresses but the channel are uniform. Images that become exactly
// twice as large have kernels of their own. The backward passes gather, in a fixed order.

struct Params {
    rows: u32,
    height: u32,
    width: u32,
    goal_height: u32,
    goal_width: u32,
    channels: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;        // [B, h, w, C]
@group(0) @binding(2) var<storage, read> other: array<f32>;    // [B, H, W, C]
@group(0) @binding(3) var<storage, read> dy: array<f32>;       // [B, H, W, C]
@group(0) @binding(4) var<storage, read_write> y: array<f32>;  // [B, H, W, C]
@group(0) @binding(5) var<storage, read_write> dx: array<f32>; // [B, h, w, C]

// A GPU's 32, or the 8 of a CPU's vector, where four channels share the work on addresses and weights.
override LANES: u32 = 32u;
const WALK: u32 = 16u;

// What one invocation does: pixels `start..end` of row `row` (of all images), four channels.
struct Place {
    row: u32,
    start: u32,
    end: u32,
    channel: u32,
    // Whether all of the workgroup's channels exist.
    full: bool,
}

fn locate(id: u32, lane: u32, width: u32) -> Place {
    let slices = (params.channels + 4u * LANES - 1u) / (4u * LANES);
    let walks = (width + WALK - 1u) / WALK;
    let channel = id % slices * 4u * LANES;
    let start = id / slices % walks * WALK;
    let full = channel + 4u * LANES <= params.channels;
    return Place(id / slices / walks, start, min(start + WALK, width), channel + lane, full);
}

// Where the four channels of a pixel are; the last channel in place of those that do not exist.
fn places(pixel: u32, place: Place) -> vec4<u32> {
    let base = pixel * params.channels;
    let channels = place.channel + LANES * vec4(0u, 1u, 2u, 3u);
    if place.full {
        return base + channels;
    }
    return base + min(channels, vec4(params.channels - 1u));
}

// Which of the four channels exist.
fn existing(place: Place) -> vec4<bool> {
    return place.channel + LANES * vec4(0u, 1u, 2u, 3u) < vec4(params.channels);
}

// ---- forward: x -> y -----------------------------------------------------------------------------

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group.x + group.y * groups.x, lane, params.goal_width);
    if place.row >= params.rows || place.channel >= params.channels {
        return;
    }
    let rows = locate_rows(place.row);
    var columns = columns_at(place.start, place, rows);
    for (var d = place.start; d < place.end; d++) {
        columns = walk_to(columns, d, place, rows);
        store_y(places(place.row * params.goal_width + d, place), place, blend(columns, d));
    }
}

// ---- forward_add: x, other -> y = other + resize(x) ----------------------------------------------

@compute @workgroup_size(LANES)
fn forward_add(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group.x + group.y * groups.x, lane, params.goal_width);
    if place.row >= params.rows || place.channel >= params.channels {
        return;
    }
    let rows = locate_rows(place.row);
    var columns = columns_at(place.start, place, rows);
    for (var d = place.start; d < place.end; d++) {
        columns = walk_to(columns, d, place, rows);
        let at = places(place.row * params.goal_width + d, place);
        let sum = vec4(other[at.x], other[at.y], other[at.z], other[at.w]) + blend(columns, d);
        store_y(at, place, sum);
    }
}

fn store_y(at: vec4<u32>, place: Place, v: vec4<f32>) {
    let exists = existing(place);
    y[at.x] = v.x;
    if exists.y {
        y[at.y] = v.y;
    }
    if exists.z {
        y[at.z] = v.z;
    }
    if exists.w {
        y[at.w] = v.w;
    }
}

// The two rows of x, as pixels of all images, that a row of y lies between.
struct Rows {
    near: u32,
    far: u32,
    weights: vec2<f32>,
}

fn locate_rows(row: u32) -> Rows {
    let image = row / params.goal_height;
    let t = taps(row - image * params.goal_height, params.height, params.goal_height);
    let top = image * params.height;
    return Rows((top + t.near) * params.width, (top + t.far) * params.width, vec2(t.near_weight, t.far_weight));
}

// The two columns of x that the walk is between, each already blended along its rows.
struct Columns {
    cell: u32,
    near: vec4<f32>,
    far: vec4<f32>,
}

fn column(j: u32, place: Place, rows: Rows) -> vec4<f32> {
    let column = min(j, params.width - 1u);
    let near = places(rows.near + column, place);
    let far = places(rows.far + column, place);
    return rows.weights.x * vec4(x[near.x], x[near.y], x[near.z], x[near.w])
        + rows.weights.y * vec4(x[far.x], x[far.y], x[far.z], x[far.w]);
}

fn columns_at(d: u32, place: Place, rows: Rows) -> Columns {
    let cell = taps(d, params.width, params.goal_width).near;
    return Columns(cell, column(cell, place, rows), column(cell + 1u, place, rows));
}

fn walk_to(columns: Columns, d: u32, place: Place, rows: Rows) -> Columns {
    let n = position(d, params.width);
    var next = columns;
    while next.cell + 1u < params.width && n >= cell_edge(next.cell + 1u, params.goal_width) {
        next.cell += 1u;
        next.near = next.far;
        next.far = column(next.cell + 1u, place, rows);
    }
    return next;
}

fn blend(columns: Columns, d: u32) -> vec4<f32> {
    let weights = cell_weights(position(d, params.width), columns.cell, params.width, params.goal_width);
    return weights.x * columns.near + weights.y * columns.far;
}

// ---- backward: dy -> dx --------------------------------------------------------------------------
// Walks along the cells of a row of x. A pixel of cell j adds to dx[j] and dx[j + 1], so the cell left
// of the walk is visited too.

@compute @workgroup_size(LANES)
fn backward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group.x + group.y * groups.x, lane, params.width);
    if place.row >= params.rows || place.channel >= params.channels {
        return;
    }
    let image = place.row / params.height;
    let i = place.row - image * params.height;
    let rows = meeting(i, params.height, params.goal_height);

    var j = max(place.start, 1u) - 1u;
    var d = cell_start(j, params.width, params.goal_width);
    var here = vec4(0.0);
    for (; j < place.end; j++) {
        let edge = cell_edge(j + 1u, params.goal_width);
        var next = vec4(0.0);
        for (; d < params.goal_width; d++) {
            let n = position(d, params.width);
            if n >= edge && j + 1u < params.width {
                break;
            }
            let weights = cell_weights(n, j, params.width, params.goal_width);
            var g = vec4(0.0);
            for (var row = rows.x; row < rows.y; row++) {
                let at = places((image * params.goal_height + row) * params.goal_width + d, place);
                g += meeting_weight(row, i, params.height, params.goal_height)
                    * vec4(dy[at.x], dy[at.y], dy[at.z], dy[at.w]);
            }
            here += weights.x * g;
            next += weights.y * g;
        }
        if j >= place.start {
            store_dx(places(place.row * params.width + j, place), place, here);
        }
        here = next;
    }
}

fn store_dx(at: vec4<u32>, place: Place, v: vec4<f32>) {
    let exists = existing(place);
    dx[at.x] = v.x;
    if exists.y {
        dx[at.y] = v.y;
    }
    if exists.z {
        dx[at.z] = v.z;
    }
    if exists.w {
        dx[at.w] = v.w;
    }
}

// ---- twice the size ------------------------------------------------------------------------------
// All weights are products of 1/4 and 3/4 then, and x goes on beyond its edges as it is there:
//
//   y[2i - 1] = 3/4 x[i - 1] + 1/4 x[i]        dx[i] = 1/4 dy[2i - 1] + 3/4 dy[2i]
//   y[2i]     = 1/4 x[i - 1] + 3/4 x[i]              + 3/4 dy[2i + 1] + 1/4 dy[2i + 2]
//
// `rows` are those that an invocation goes along, one channel wide, so that a load serves two outputs or
// more.

// Columns start - 1 to start + SPAN of x, blended for the upper and the lower row of y.
fn blend_columns(gap: Gap) -> array<vec2<f32>, SPAN + 2u> {
    var columns: array<vec2<f32>, SPAN + 2u>;
    for (var k = 0u; k < SPAN + 2u; k++) {
        let column = min(max(gap.start + k, 1u) - 1u, params.width - 1u);
        let above = x[(gap.above + column) * params.channels + gap.place];
        let below = x[(gap.below + column) * params.channels + gap.place];
        columns[k] = 0.75 * vec2(above, below) + 0.25 * vec2(below, above);
    }
    return columns;
}

// Where the first of a column's two pixels in the row of y is.
fn place_in(row: u32, column: u32, channel: u32) -> u32 {
    return (row + 2u * column) * params.channels + channel;
}

// ---- double: x -> y ------------------------------------------------------------------------------

@compute @workgroup_size(LANES)
fn double(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let gap = locate_gap(group.x + group.y * groups.x, lane, LANES, params.channels);
    if !gap.exists {
        return;
    }
    let v = blend_columns(gap);
    for (var k = 0u; gap.has_upper && k < SPAN; k++) {
        if gap.start + k < params.width {
            let at = place_in(gap.upper, gap.start + k, gap.place);
            y[at] = 0.25 * v[k].x + 0.75 * v[k + 1u].x;
            y[at + params.channels] = 0.75 * v[k + 1u].x + 0.25 * v[k + 2u].x;
        }
    }
    for (var k = 0u; gap.has_lower && k < SPAN; k++) {
        if gap.start + k < params.width {
            let at = place_in(gap.lower, gap.start + k, gap.place);
            y[at] = 0.25 * v[k].y + 0.75 * v[k + 1u].y;
            y[at + params.channels] = 0.75 * v[k + 1u].y + 0.25 * v[k + 2u].y;
        }
    }
}

// ---- double_add: x, other -> y = other + double(x) -----------------------------------------------

@compute @workgroup_size(LANES)
fn double_add(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let gap = locate_gap(group.x + group.y * groups.x, lane, LANES, params.channels);
    if !gap.exists {
        return;
    }
    let v = blend_columns(gap);
    for (var k = 0u; gap.has_upper && k < SPAN; k++) {
        if gap.start + k < params.width {
            let at = place_in(gap.upper, gap.start + k, gap.place);
            y[at] = other[at] + (0.25 * v[k].x + 0.75 * v[k + 1u].x);
            let next = at + params.channels;
            y[next] = other[next] + (0.75 * v[k + 1u].x + 0.25 * v[k + 2u].x);
        }
    }
    for (var k = 0u; gap.has_lower && k < SPAN; k++) {
        if gap.start + k < params.width {
            let at = place_in(gap.lower, gap.start + k, gap.place);
            y[at] = other[at] + (0.25 * v[k].y + 0.75 * v[k + 1u].y);
            let next = at + params.channels;
            y[next] = other[next] + (0.75 * v[k + 1u].y + 0.25 * v[k + 2u].y);
        }
    }
}

// ---- double_backward: dy -> dx -------------------------------------------------------------------
// BLOCK_ROWS x BLOCK_COLUMNS pixels of dx in an invocation, from the columns of dy around them.

const BLOCK_ROWS: u32 = 4u;
const BLOCK_COLUMNS: u32 = 2u;

@compute @workgroup_size(LANES)
fn double_backward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let block = locate_block(group.x + group.y * groups.x, lane, LANES, params.channels);
    if !block.exists {
        return;
    }
    // Of each column around the block, already added up along it.
    var sums: array<array<f32, 2u * BLOCK_COLUMNS + 2u>, BLOCK_ROWS>;
    for (var d = 0u; d < 2u * BLOCK_COLUMNS + 2u; d++) {
        let column = min(max(2u * block.column + d, 1u) - 1u, params.goal_width - 1u);
        var v: array<f32, 2u * BLOCK_ROWS + 2u>;
        for (var r = 0u; r < 2u * BLOCK_ROWS + 2u; r++) {
            let row = min(max(2u * block.row + r, 1u) - 1u, params.goal_height - 1u);
            let at = (block.image * params.goal_height + row) * params.goal_width + column;
            v[r] = dy[at * params.channels + block.place];
        }
        for (var r = 0u; r < BLOCK_ROWS; r++) {
            sums[r][d] = 0.25 * (v[2u * r] + v[2u * r + 3u]) + 0.75 * (v[2u * r + 1u] + v[2u * r + 2u]);
        }
    }
    for (var r = 0u; r < BLOCK_ROWS; r++) {
        for (var k = 0u; k < BLOCK_COLUMNS; k++) {
            if block.row + r < params.height && block.column + k < params.width {
                let at = (block.image * params.height + block.row + r) * params.width + block.column + k;
                let v = sums[r];
                dx[at * params.channels + block.place] =
                    0.25 * (v[2u * k] + v[2u * k + 3u]) + 0.75 * (v[2u * k + 1u] + v[2u * k + 2u]);
            }
        }
    }
}
