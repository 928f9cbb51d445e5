// Copies a matrix into strips, in the order in which products read it on CPU drivers.
//
//   strips[s][k][w] = source[k, width s + w],  0 beyond the last column and the last k
//
// Host: src/ops/matmul_lanes.rs        Test: kernels-tests/matmul.rs
// S = strips of `width` columns, K = inner, rounded up to whole eights.

struct Params {
    cols: u32,
    inner: u32,
    width: u32,        // a multiple of 16
    rounded: u32,      // K, a multiple of 8
    offset: u32,       // of the source, in what it is bound as, as all strides
    batch: u32,
    step: u32,         // from one k to the next, or from a pair of k to the next
    col: u32,          // from one column to the next, or from a pair of columns to the next
    first_group: u32,  // of a part of the dispatch
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> words: array<Real>;          // any strides
@group(0) @binding(2) var<storage, read> pairs: array<RealPair>;      // pairs along k, or along columns
@group(0) @binding(3) var<storage, read_write> strips: array<u64>;    // [batch, S, K, width] in pairs

const DEPTH: u32 = 64u;

struct Place {
    pair: u32,   // of columns, in the matrix
    from_k: u32,
    to: u32,     // where its first pair goes
}

// Lanes have neighbouring pairs of columns; a workgroup has 16 columns and DEPTH steps of k.
fn locate(group: vec3<u32>, groups: vec3<u32>, lane: u32) -> Place {
    let id = params.first_group + group.x + group.y * groups.x;
    let per_strip = params.width / 16u;
    let count = (params.cols + params.width - 1u) / params.width * per_strip;
    let part = id % count;
    let from_k = id / count * DEPTH;
    let strip = group.z * (count / per_strip) + part / per_strip;
    let within = part % per_strip * 8u + lane;
    return Place(part * 8u + lane, from_k, (strip * params.rounded + from_k) * (params.width / 2u) + within);
}

// ---- pack_words: words -> strips -----------------------------------------------------------------

@compute @workgroup_size(8)
fn pack_words(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let place = locate(group, groups, lane);
    let last = params.cols - 1u;
    let from_matrix = params.offset + group.z * params.batch;
    let x = from_matrix + min(2u * place.pair, last) * params.col;
    let y = from_matrix + min(2u * place.pair + 1u, last) * params.col;
    let there = 2u * vec2(place.pair) + vec2(0u, 1u) < vec2(params.cols);
    let pitch = params.width / 2u;
    let end = min(place.from_k + DEPTH, params.rounded);
    var to = place.to;
    // Eight steps at a time: each pass of a loop costs as much as several loads.
    for (var k = place.from_k; k < end; k += 8u) {
        for (var i = 0u; i < 8u; i++) {
            var v = vec2(0.0);
            if k + i < params.inner {
                let at = (k + i) * params.step;
                v = select(vec2(0.0), vec2<f32>(vec2(words[x + at], words[y + at])), there);
            }
            strips[to + i * pitch] = pair_of(v);
        }
        to += 8u * pitch;
    }
}

// ---- pack_pairs: pairs -> strips -----------------------------------------------------------------
// Pairs lie along k; inner is even.

@compute @workgroup_size(8)
fn pack_pairs(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let place = locate(group, groups, lane);
    let last = params.cols - 1u;
    let from_matrix = params.offset + group.z * params.batch;
    let there = 2u * vec2(place.pair) + vec2(0u, 1u) < vec2(params.cols);
    let pitch = params.width / 2u;
    let end = min(place.from_k + DEPTH, params.rounded);
    var to = place.to;
    for (var k = place.from_k; k < end; k += 8u) {
        let x = from_matrix + min(2u * place.pair, last) * params.col + k / 2u * params.step;
        let y = from_matrix + min(2u * place.pair + 1u, last) * params.col + k / 2u * params.step;
        for (var i = 0u; i < 4u; i++) {
            var left = vec2(0.0);
            var right = vec2(0.0);
            if k + 2u * i < params.inner {
                left = select(vec2(0.0), floats_of(pairs[x + i * params.step]), there.x);
                right = select(vec2(0.0), floats_of(pairs[y + i * params.step]), there.y);
            }
            strips[to + 2u * i * pitch] = pair_of(vec2(left.x, right.x));
            strips[to + (2u * i + 1u) * pitch] = pair_of(vec2(left.y, right.y));
        }
        to += 8u * pitch;
    }
}

// ---- pack_rows: pairs -> strips ------------------------------------------------------------------
// Pairs lie along columns, whose number is even. A workgroup has 64 columns of eight steps of k: what lies together
// is read together.

@compute @workgroup_size(8)
fn pack_rows(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let id = params.first_group + group.x + group.y * groups.x;
    let per_strip = params.width / 16u;
    let strips_count = (params.cols + params.width - 1u) / params.width;
    let parts = strips_count * per_strip;
    let across = (parts + 3u) / 4u;
    let first = id % across * 4u;
    let from_k = id / across * 8u;
    if from_k >= params.rounded {
        return;
    }
    let last = (params.cols - 1u) / 2u;
    let pitch = params.width / 2u;
    var source: array<u32, 4>;
    var to: array<u32, 4>;
    for (var j = 0u; j < 4u; j++) {
        let part = min(first + j, parts - 1u);
        source[j] = params.offset + group.z * params.batch + min(part * 8u + lane, last) * params.col + from_k * params.step;
        let strip = group.z * strips_count + part / per_strip;
        to[j] = (strip * params.rounded + from_k) * pitch + part % per_strip * 8u + lane;
    }
    for (var i = 0u; i < 8u; i++) {
        for (var j = 0u; j < 4u; j++) {
            let there = from_k + i < params.inner && (first + j) * 8u + lane <= last;
            if first + j < parts {
                let v = select(vec2(0.0), floats_of(pairs[source[j] + i * params.step]), there);
                strips[to[j] + i * pitch] = pair_of(v);
            }
        }
    }
}
