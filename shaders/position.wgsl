// Absolute positions: a learned table resized to the map, and added to every image of a batch.
//
//   y[i, j, c]  = Σ_{m, n} cubic(s_i - m) cubic(s_j - n) table[c, m', n'],  s_i = (i + 1/2) S / h - 1/2
//   cubic(t)    = (a + 2)|t|³ - (a + 3)|t|² + 1            for |t| ≤ 1
//               = a|t|³ - 5a|t|² + 8a|t| - 4a              for |t| ≤ 2,  a = -3/4
//
// Host: src/ops/position.rs        Test: kernels-tests/position.rs
// The table is [C, S_y, S_x], as in checkpoints; m' is m within the table: its border is repeated.
// h × w = map, C = channels.

struct Params {
    channels: u32,
    table_height: u32,
    table_width: u32,
    height: u32,
    width: u32,
    len: u32,  // of a map
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> table: array<f32>;         // [C, S_y, S_x]
@group(0) @binding(2) var<storage, read> x: array<f32>;             // [B, h, w, C]
@group(0) @binding(3) var<storage, read> pos: array<f32>;           // [h, w, C]
@group(0) @binding(4) var<storage, read> dy: array<f32>;            // [h, w, C]
@group(0) @binding(5) var<storage, read_write> y: array<f32>;       // [h, w, C] or [B, h, w, C]
@group(0) @binding(6) var<storage, read_write> dtable: array<f32>;  // [C, S_y, S_x]

const WORKGROUP: u32 = 64u;

// ---- resize: table -> y --------------------------------------------------------------------------
// One workgroup per place of the map; lanes along the channels.

@compute @workgroup_size(WORKGROUP)
fn resize(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = group.x + group.y * groups.x;
    if place >= params.height * params.width {
        return;
    }
    let sy = source(place / params.width, params.height, params.table_height);
    let sx = source(place % params.width, params.width, params.table_width);
    let my = i32(floor(sy));
    let mx = i32(floor(sx));
    for (var c = lane; c < params.channels; c += WORKGROUP) {
        var sum = 0.0;
        for (var m = my - 1; m <= my + 2; m++) {
            let row = within(m, params.table_height);
            let from_row = (c * params.table_height + row) * params.table_width;
            var line = 0.0;
            for (var n = mx - 1; n <= mx + 2; n++) {
                line += cubic(sx - f32(n)) * table[from_row + within(n, params.table_width)];
            }
            sum += cubic(sy - f32(m)) * line;
        }
        y[place * params.channels + c] = sum;
    }
}

// ---- resize_backward: dy -> dtable ---------------------------------------------------------------
// One workgroup per place of the table; gathers from all places of the map that read it.

@compute @workgroup_size(WORKGROUP)
fn resize_backward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = group.x + group.y * groups.x;
    if place >= params.table_height * params.table_width {
        return;
    }
    let row = place / params.table_width;
    let col = place % params.table_width;
    let rows = readers(row, params.height, params.table_height);
    let cols = readers(col, params.width, params.table_width);
    for (var c = lane; c < params.channels; c += WORKGROUP) {
        var sum = 0.0;
        for (var i = rows.x; i < rows.y; i++) {
            var line = 0.0;
            for (var j = cols.x; j < cols.y; j++) {
                let g = dy[(i * params.width + j) * params.channels + c];
                line += share(j, params.width, params.table_width, col) * g;
            }
            sum += share(i, params.height, params.table_height, row) * line;
        }
        dtable[(c * params.table_height + row) * params.table_width + col] = sum;
    }
}

// ---- add: x, pos -> y ----------------------------------------------------------------------------
// z of the grid: image.

@compute @workgroup_size(WORKGROUP)
fn add(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = (group.x + group.y * groups.x) * 256u;
    let end = min(start + 256u, params.len);
    let base = group.z * params.len;
    for (var i = start + lane; i < end; i += WORKGROUP) {
        y[base + i] = x[base + i] + pos[i];
    }
}

// ---- shared --------------------------------------------------------------------------------------

// Where place `i` of `count` lies in a table of `size`, from the centre of its first element.
fn source(i: u32, count: u32, size: u32) -> f32 {
    return (f32(i) + 0.5) * (f32(size) / f32(count)) - 0.5;
}

fn within(m: i32, size: u32) -> u32 {
    return u32(clamp(m, 0, i32(size) - 1));
}

fn cubic(distance: f32) -> f32 {
    const A: f32 = -0.75;
    let t = abs(distance);
    let near = ((A + 2.0) * t - (A + 3.0)) * t * t + 1.0;
    let far = ((A * t - 5.0 * A) * t + 8.0 * A) * t - 4.0 * A;
    return select(select(0.0, far, t < 2.0), near, t <= 1.0);
}

// The weight of element `m` of the table in place `i`, with what the border repeats.
fn share(i: u32, count: u32, size: u32, m: u32) -> f32 {
    let s = source(i, count, size);
    let first = i32(floor(s)) - 1;
    var sum = 0.0;
    for (var n = first; n < first + 4; n++) {
        sum += select(0.0, cubic(s - f32(n)), within(n, size) == m);
    }
    return sum;
}

// The places that may read element `m` of the table, `x..y`; the border is read from beyond it too.
fn readers(m: u32, count: u32, size: u32) -> vec2<u32> {
    let scale = f32(count) / f32(size);
    // One more on each side: rounding.
    let low = i32(floor((f32(m) - 1.5) * scale - 0.5)) - 1;
    let high = i32(ceil((f32(m) + 2.5) * scale - 0.5)) + 2;
    let start = select(clamp(low, 0, i32(count)), 0, m == 0u);
    let end = select(clamp(high, 0, i32(count)), i32(count), m == size - 1u);
    return vec2(u32(start), u32(end));
}
