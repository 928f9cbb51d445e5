// Bilinear resizing of the two middle axes (align_corners = False), forward and backward.
//
//   y[Y, X]  = sum_i sum_j  v(Y, i) u(X, j) x[i, j]        at most two i and two j have a weight
//   dx[i, j] = sum_Y sum_X  v(Y, i) u(X, j) dy[Y, X]
//
// Host: src/ops/resize.rs        Test: kernels-tests/resize.rs        Weights: lib/bilinear.wgsl
// B = batch, h, w = size of x, H, W = size of y, C = channels. Lanes run along the channels; an
// invocation walks along 16 pixels of one row, so that it reads a column of x only once and all
// addresses but the channel are uniform. The backward pass gathers, in a fixed order.

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

const WORKGROUP: u32 = 32u;
const WALK: u32 = 16u;

// What one workgroup does: pixels `start..end` of row `row` (of all images), channels from `channel`.
struct Place {
    row: u32,
    start: u32,
    end: u32,
    channel: u32,
}

fn locate(id: u32, width: u32) -> Place {
    let slices = (params.channels + WORKGROUP - 1u) / WORKGROUP;
    let walks = (width + WALK - 1u) / WALK;
    let slice = id % slices;
    let walk = id / slices % walks;
    let start = walk * WALK;
    return Place(id / slices / walks, start, min(start + WALK, width), slice * WORKGROUP);
}

// ---- forward: x -> y -----------------------------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group.x + group.y * groups.x, params.goal_width);
    let channel = place.channel + lane;
    if place.row >= params.rows || channel >= params.channels {
        return;
    }
    let rows = locate_rows(place.row);
    var columns = columns_at(place.start, channel, rows);
    for (var d = place.start; d < place.end; d++) {
        columns = walk_to(columns, d, channel, rows);
        y[(place.row * params.goal_width + d) * params.channels + channel] = blend(columns, d);
    }
}

// ---- forward_add: x, other -> y = other + resize(x) ----------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn forward_add(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group.x + group.y * groups.x, params.goal_width);
    let channel = place.channel + lane;
    if place.row >= params.rows || channel >= params.channels {
        return;
    }
    let rows = locate_rows(place.row);
    var columns = columns_at(place.start, channel, rows);
    for (var d = place.start; d < place.end; d++) {
        columns = walk_to(columns, d, channel, rows);
        let at = (place.row * params.goal_width + d) * params.channels + channel;
        y[at] = other[at] + blend(columns, d);
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
    near: f32,
    far: f32,
}

fn column(j: u32, channel: u32, rows: Rows) -> f32 {
    let at = min(j, params.width - 1u);
    return rows.weights.x * x[(rows.near + at) * params.channels + channel]
        + rows.weights.y * x[(rows.far + at) * params.channels + channel];
}

fn columns_at(d: u32, channel: u32, rows: Rows) -> Columns {
    let cell = taps(d, params.width, params.goal_width).near;
    return Columns(cell, column(cell, channel, rows), column(cell + 1u, channel, rows));
}

fn walk_to(columns: Columns, d: u32, channel: u32, rows: Rows) -> Columns {
    let n = (2u * d + 1u) * params.width;
    var next = columns;
    while next.cell + 1u < params.width && n >= cell_edge(next.cell + 1u, params.goal_width) {
        next.cell += 1u;
        next.near = next.far;
        next.far = column(next.cell + 1u, channel, rows);
    }
    return next;
}

fn blend(columns: Columns, d: u32) -> f32 {
    let weights = cell_weights((2u * d + 1u) * params.width, columns.cell, params.width, params.goal_width);
    return weights.x * columns.near + weights.y * columns.far;
}

// ---- backward: dy -> dx --------------------------------------------------------------------------
// Walks along the cells of a row of x. A pixel of cell j adds to dx[j] and dx[j + 1], so the cell left
// of the walk is visited too.

@compute @workgroup_size(WORKGROUP)
fn backward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = locate(group.x + group.y * groups.x, params.width);
    let channel = place.channel + lane;
    if place.row >= params.rows || channel >= params.channels {
        return;
    }
    let image = place.row / params.height;
    let i = place.row - image * params.height;
    let rows = meeting(i, params.height, params.goal_height);

    var j = max(place.start, 1u) - 1u;
    var d = cell_start(j, params.width, params.goal_width);
    var here = 0.0;
    for (; j < place.end; j++) {
        let edge = cell_edge(j + 1u, params.goal_width);
        var next = 0.0;
        for (; d < params.goal_width; d++) {
            let n = (2u * d + 1u) * params.width;
            if n >= edge && j + 1u < params.width {
                break;
            }
            let weights = cell_weights(n, j, params.width, params.goal_width);
            var g = 0.0;
            for (var row = rows.x; row < rows.y; row++) {
                let at = (image * params.goal_height + row) * params.goal_width + d;
                g += meeting_weight(row, i, params.height, params.goal_height) * dy[at * params.channels + channel];
            }
            here += weights.x * g;
            next += weights.y * g;
        }
        if j >= place.start {
            dx[(place.row * params.width + j) * params.channels + channel] = here;
        }
        here = next;
    }
}
