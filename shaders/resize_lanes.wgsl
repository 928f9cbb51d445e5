// Bilinear resizing of images to exactly twice their size, for drivers that run on a CPU and have subgroups of eight:
// see lib/lanes.wgsl. Formulas: resize.wgsl.
//
// Host: src/ops/resize.rs        Test: kernels-tests/resize.rs
// B = batch, h, w = size of x, H, W = size of y, C = channels, an even number. Lanes run along the pairs of channels.

struct Params {
    rows: u32,
    height: u32,
    width: u32,
    goal_height: u32,
    goal_width: u32,
    pairs: u32,  // of channels
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u64>;         // [B, h, w, C]
@group(0) @binding(2) var<storage, read> other: array<u64>;     // [B, H, W, C]
@group(0) @binding(3) var<storage, read> dy: array<u64>;        // [B, H, W, C]
@group(0) @binding(4) var<storage, read_write> y: array<u64>;   // [B, H, W, C]
@group(0) @binding(5) var<storage, read_write> dx: array<u64>;  // [B, h, w, C]

// Columns start - 1 to start + SPAN of x, blended for the upper and the lower row of y.
alias Columns = array<vec2<f32>, SPAN + 2u>;

struct Blended {
    upper: Columns,
    lower: Columns,
}

fn blend_columns(gap: Gap) -> Blended {
    var v: Blended;
    for (var k = 0u; k < SPAN + 2u; k++) {
        let column = min(max(gap.start + k, 1u) - 1u, params.width - 1u);
        let above = floats(x[(gap.above + column) * params.pairs + gap.place]);
        let below = floats(x[(gap.below + column) * params.pairs + gap.place]);
        v.upper[k] = 0.75 * above + 0.25 * below;
        v.lower[k] = 0.75 * below + 0.25 * above;
    }
    return v;
}

// ---- double: x -> y ------------------------------------------------------------------------------

@compute @workgroup_size(8)
fn double(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let gap = locate_gap(group.x + group.y * groups.x, lane, 8u, params.pairs);
    if !gap.exists {
        return;
    }
    let v = blend_columns(gap);
    if gap.has_upper {
        store_row(gap, gap.upper, v.upper);
    }
    if gap.has_lower {
        store_row(gap, gap.lower, v.lower);
    }
}

fn store_row(gap: Gap, row: u32, v: Columns) {
    for (var k = 0u; k < SPAN; k++) {
        if gap.start + k < params.width {
            let at = (row + 2u * (gap.start + k)) * params.pairs + gap.place;
            y[at] = pair_of(0.25 * v[k] + 0.75 * v[k + 1u]);
            y[at + params.pairs] = pair_of(0.75 * v[k + 1u] + 0.25 * v[k + 2u]);
        }
    }
}

// ---- double_add: x, other -> y = other + double(x) -----------------------------------------------

@compute @workgroup_size(8)
fn double_add(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let gap = locate_gap(group.x + group.y * groups.x, lane, 8u, params.pairs);
    if !gap.exists {
        return;
    }
    let v = blend_columns(gap);
    if gap.has_upper {
        add_row(gap, gap.upper, v.upper);
    }
    if gap.has_lower {
        add_row(gap, gap.lower, v.lower);
    }
}

fn add_row(gap: Gap, row: u32, v: Columns) {
    for (var k = 0u; k < SPAN; k++) {
        if gap.start + k < params.width {
            let at = (row + 2u * (gap.start + k)) * params.pairs + gap.place;
            let next = at + params.pairs;
            y[at] = pair_of(floats(other[at]) + (0.25 * v[k] + 0.75 * v[k + 1u]));
            y[next] = pair_of(floats(other[next]) + (0.75 * v[k + 1u] + 0.25 * v[k + 2u]));
        }
    }
}

// ---- double_backward: dy -> dx -------------------------------------------------------------------
// BLOCK_ROWS x BLOCK_COLUMNS pixels of dx in an invocation, from the columns of dy around them.

const BLOCK_ROWS: u32 = 4u;
const BLOCK_COLUMNS: u32 = 8u;

@compute @workgroup_size(8)
fn double_backward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let block = locate_block(group.x + group.y * groups.x, lane, 8u, params.pairs);
    if !block.exists {
        return;
    }
    // Of each column around the block, already added up along it.
    var sums: array<array<vec2<f32>, BLOCK_ROWS>, 2u * BLOCK_COLUMNS + 2u>;
    for (var d = 0u; d < 2u * BLOCK_COLUMNS + 2u; d++) {
        let column = min(max(2u * block.column + d, 1u) - 1u, params.goal_width - 1u);
        var v: array<vec2<f32>, 2u * BLOCK_ROWS + 2u>;
        for (var r = 0u; r < 2u * BLOCK_ROWS + 2u; r++) {
            let row = min(max(2u * block.row + r, 1u) - 1u, params.goal_height - 1u);
            let at = (block.image * params.goal_height + row) * params.goal_width + column;
            v[r] = floats(dy[at * params.pairs + block.place]);
        }
        for (var r = 0u; r < BLOCK_ROWS; r++) {
            sums[d][r] = 0.25 * (v[2u * r] + v[2u * r + 3u]) + 0.75 * (v[2u * r + 1u] + v[2u * r + 2u]);
        }
    }
    for (var r = 0u; r < BLOCK_ROWS; r++) {
        for (var k = 0u; k < BLOCK_COLUMNS; k++) {
            if block.row + r < params.height && block.column + k < params.width {
                let at = (block.image * params.height + block.row + r) * params.width + block.column + k;
                let outer = sums[2u * k][r] + sums[2u * k + 3u][r];
                let inner = sums[2u * k + 1u][r] + sums[2u * k + 2u][r];
                dx[at * params.pairs + block.place] = pair_of(0.25 * outer + 0.75 * inner);
            }
        }
    }
}
