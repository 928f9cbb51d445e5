// Depthwise 3 × 3 convolution with zeros around the map, and a bias, for drivers that run on a CPU and have
// subgroups of eight: see lib/lanes.wgsl. Formula: depthwise.wgsl.
//
// Host: src/ops/depthwise.rs        Test: kernels-tests/depthwise.rs
// B × H × W = maps, C = channels, an even number. Lanes run along the pairs of channels; an invocation walks
// along ROWS rows side by side, so that a column of values serves all of them, and three places in each.

struct Params {
    images: u32,
    height: u32,
    width: u32,
    pairs: u32,            // of channels
    turned: u32,           // 1: taps in reverse and no bias, which is the gradient of x
    blocks_per_part: u32,
    first_group: u32,      // of a part of the dispatch
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u64>;             // [B, H, W, C]
@group(0) @binding(2) var<storage, read> weight: array<f32>;        // [C, 1, 3, 3]
@group(0) @binding(3) var<storage, read> bias: array<f32>;          // [C]
@group(0) @binding(4) var<storage, read_write> y: array<u64>;       // [B, H, W, C]
@group(0) @binding(5) var<storage, read> dy: array<u64>;            // [B, H, W, C]
@group(0) @binding(6) var<storage, read_write> dweight: array<f32>; // [parts, C, 3, 3]
@group(0) @binding(7) var<storage, read_write> dbias: array<u64>;   // [parts, C]

const ROWS: u32 = 4u;
// Places of a row that go together: a pass of a loop costs as much as several loads.
const STEP: u32 = 2u;
// Places of a row that an invocation does.
const RUN: u32 = 32u;

// Of the rows of a block, and of those above and below.
alias Column = array<vec2<f32>, ROWS + 2u>;

// ROWS rows of a map; beyond its last one there are none.
struct Block {
    row: u32,
    start: u32,  // of the map, in pairs
}

fn locate(block: u32) -> Block {
    let per_image = (params.height + ROWS - 1u) / ROWS;
    let image = block / per_image;
    return Block(block % per_image * ROWS, image * params.height * params.width * params.pairs);
}

// Of place j, with zeros outside the map. Before it, rows and places wrap around to beyond it.
fn column(block: Block, j: u32, pair: u32) -> Column {
    var found: Column;
    for (var r = 0u; r < ROWS + 2u; r++) {
        let row = block.row + r - 1u;
        let at = min(row, params.height - 1u) * params.width + min(j, params.width - 1u);
        let v = floats(x[block.start + at * params.pairs + pair]);
        found[r] = select(vec2(0.0), v, row < params.height && j < params.width);
    }
    return found;
}

// ---- forward: x, weight, bias -> y ---------------------------------------------------------------
// One workgroup per RUN places of a block and eight pairs of channels. With `turned` dy -> dx.

@compute @workgroup_size(8)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let id = params.first_group + group.x + group.y * groups.x;
    let runs = (params.width + RUN - 1u) / RUN;
    let blocks = (params.height + ROWS - 1u) / ROWS * params.images;
    let pair = group.z * 8u + lane;
    if id / runs >= blocks || pair >= params.pairs {
        return;
    }
    let block = locate(id / runs);
    var taps: array<vec2<f32>, 9>;
    for (var k = 0u; k < 9u; k++) {
        let tap = 18u * pair + select(k, 8u - k, params.turned == 1u);
        taps[k] = vec2(weight[tap], weight[tap + 9u]);
    }
    var start = vec2(0.0);
    if params.turned == 0u {
        start = vec2(bias[2u * pair], bias[2u * pair + 1u]);
    }
    let first = id % runs * RUN;
    let end = min(first + RUN, params.width);
    var columns: array<Column, STEP + 2u>;
    columns[0] = column(block, first - 1u, pair);
    columns[1] = column(block, first, pair);
    for (var j = first; j < end; j += STEP) {
        for (var s = 0u; s < STEP; s++) {
            columns[s + 2u] = column(block, j + s + 1u, pair);
            for (var r = 0u; r < ROWS; r++) {
                var sum = start;
                for (var k = 0u; k < 9u; k++) {
                    sum = fma(taps[k], columns[s + k % 3u][r + k / 3u], sum);
                }
                if block.row + r < params.height && j + s < end {
                    let at = (block.row + r) * params.width + j + s;
                    y[block.start + at * params.pairs + pair] = pair_of(sum);
                }
            }
        }
        columns[0] = columns[STEP];
        columns[1] = columns[STEP + 1u];
    }
}

// ---- backward_weight: x, dy -> dweight, dbias ----------------------------------------------------
// One workgroup per part of the blocks and eight pairs of channels; the parts are added up elsewhere.

@compute @workgroup_size(8)
fn backward_weight(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let part = params.first_group + group.x + group.y * groups.x;
    let pair = group.z * 8u + lane;
    let blocks = (params.height + ROWS - 1u) / ROWS * params.images;
    let first = part * params.blocks_per_part;
    if first >= blocks || pair >= params.pairs {
        return;
    }
    let end = min(first + params.blocks_per_part, blocks);
    var taps: array<vec2<f32>, 9>;
    var sum = vec2(0.0);
    for (var b = first; b < end; b++) {
        let block = locate(b);
        var columns: array<Column, STEP + 2u>;
        columns[1] = column(block, 0u, pair);
        for (var j = 0u; j < params.width; j += STEP) {
            for (var s = 0u; s < STEP; s++) {
                columns[s + 2u] = column(block, j + s + 1u, pair);
                for (var r = 0u; r < ROWS; r++) {
                    let row = min(block.row + r, params.height - 1u);
                    let at = row * params.width + min(j + s, params.width - 1u);
                    let v = floats(dy[block.start + at * params.pairs + pair]);
                    let there = block.row + r < params.height && j + s < params.width;
                    let d = select(vec2(0.0), v, there);
                    for (var k = 0u; k < 9u; k++) {
                        taps[k] = fma(d, columns[s + k % 3u][r + k / 3u], taps[k]);
                    }
                    sum += d;
                }
            }
            columns[0] = columns[STEP];
            columns[1] = columns[STEP + 1u];
        }
    }
    let to = part * params.pairs + pair;
    for (var k = 0u; k < 9u; k++) {
        dweight[18u * to + k] = taps[k].x;
        dweight[18u * to + 9u + k] = taps[k].y;
    }
    dbias[to] = pair_of(sum);
}
