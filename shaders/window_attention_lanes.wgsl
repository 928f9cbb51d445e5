// Attention within shifted windows for drivers that run on a CPU and have subgroups of eight: see
// lib/lanes.wgsl. What padding, shift and windows mean is said in window_attention.wgsl.
//
//   s[j, i] = scale k_j · q_i + position_bias[head, j, i] - 100 [i, j from different regions]
//   p = softmax over j of s,  y_i = Σ_j p[j, i] v_j
//
//   dp[j, i] = v_j · dy_i,  ds = p (dp - y_i · dy_i)
//   dq_i = scale Σ_j ds[j, i] k_j,  dk_j = scale Σ_i ds[j, i] q_i,  dv_j = Σ_i p[j, i] dy_i
//
// Host: src/ops/window_attention_lanes.rs        Test: kernels-tests/window_attention.rs
// T = B H W tokens, C = channels, D = C / heads, a multiple of 8, N = M² tokens of a window. Products go over
// tiles of 7 keys × 56 queries, which windows of 7 × 7 fill: lane l has queries l, 8 + l, .. 48 + l, so a
// softmax needs no other lane, and knows of key l, whose numbers the others get from it. K is N rounded up
// to sevens; what is packed has seven numbers and an empty place for each lane, row and tile of queries.

// Channels of a head.
override HEAD: u32 = 32u;
const MOST_CHANNELS: u32 = 32u;
const KEYS: u32 = 7u;
// Queries of a lane.
const QUERIES: u32 = 7u;
const TILE_QUERIES: u32 = 56u;

struct Params {
    height: u32,
    width: u32,
    windows_y: u32,
    windows_x: u32,
    window_size: u32,
    shift: u32,
    num_heads: u32,
    channel_pairs: u32,
    window_count: u32,
    run: u32,          // windows that a workgroup of backward takes, one after the other
    runs: u32,
    scale: f32,
    first_group: u32,  // of a part of the dispatch
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> qkv: array<RealPair>;           // [T, 3 C]
@group(0) @binding(2) var<storage, read> qkv_bias: array<u64>;           // [3 C]
@group(0) @binding(3) var<storage, read> position_bias: array<f32>;      // [heads, key, query]
@group(0) @binding(4) var<storage, read_write> packed_out: array<f32>;   // [heads, K, tiles, 8, 8]
@group(0) @binding(5) var<storage, read> packed: array<u64>;             // [heads, K, tiles, 8, 8]
@group(0) @binding(6) var<storage, read_write> y: array<RealPair>;       // [T, C]
@group(0) @binding(7) var<storage, read_write> lse: array<f32>;          // [T, heads]
@group(0) @binding(8) var<storage, read> stats: array<u64>;              // [T, heads]: lse, y · dy
@group(0) @binding(9) var<storage, read> dy: array<u64>;                // [T, C]
@group(0) @binding(10) var<storage, read_write> dqkv: array<u64>;        // [T, 3 C]
@group(0) @binding(11) var<storage, read_write> dpadding: array<u64>;    // [B padding, 3 C]
@group(0) @binding(12) var<storage, read_write> ds_out: array<u64>;      // [runs, heads, K, tiles, 8, 8]
@group(0) @binding(13) var<storage, read> ds: array<f32>;                // [runs, heads, K, tiles, 8, 8]
@group(0) @binding(14) var<storage, read_write> dbias: array<f32>;       // [heads, key, query]

// ---- pack_bias: position_bias -> packed_out ------------------------------------------------------
// One workgroup per head and row of keys. Keys that are none are as unlikely as can be.

@compute @workgroup_size(8)
fn pack_bias(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let row = params.first_group + group.x + group.y * groups.x;
    if row >= params.num_heads * rows_of_keys() {
        return;
    }
    let key = row % rows_of_keys();
    let from_row = (row / rows_of_keys() * tokens() + min(key, tokens() - 1u)) * tokens();
    for (var tile = 0u; tile < tiles_of_queries(); tile++) {
        for (var j = 0u; j < QUERIES; j++) {
            let query = tile * TILE_QUERIES + 8u * j + lane;
            let bias = position_bias[from_row + min(query, tokens() - 1u)];
            packed_out[packed_pair(row, tile, lane) * 2u + j] = select(LOWEST, bias, key < tokens());
        }
    }
}

// ---- forward: qkv, qkv_bias, packed -> y, lse ----------------------------------------------------
// x, y of the grid: window; z: head. Of each query the running maximum, sum and weighted values
// (Milakov & Gimelshein 2018).

@compute @workgroup_size(8)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let index = params.first_group + group.x + group.y * groups.x;
    if index >= params.window_count {
        return;
    }
    let window = window_of(index);
    let head = group.z;
    for (var tile = 0u; tile < tiles_of_queries(); tile++) {
        var queries = queries_of(window, tile, lane);
        var q: Columns;
        load_queries(&q, &queries, head);
        var out: Columns;
        var largest: array<f32, QUERIES>;
        var sum: array<f32, QUERIES>;
        for (var j = 0u; j < QUERIES; j++) {
            largest[j] = LOWEST;
        }
        for (var first_key = 0u; first_key < tokens(); first_key += KEYS) {
            let place = key_of(window, first_key, lane);
            var k: Key;
            var v: Key;
            load_keys(&k, &v, window, place, head);
            var s = products(&k, &q);
            add_bias(&s, &queries, window, place, packed_pair(head * rows_of_keys() + first_key, tile, lane));
            for (var j = 0u; j < QUERIES; j++) {
                var raised = largest[j];
                for (var r = 0u; r < KEYS; r++) {
                    raised = max(raised, s.rows[r][j]);
                }
                let fade = exp(largest[j] - raised);
                largest[j] = raised;
                sum[j] *= fade;
                for (var r = 0u; r < KEYS; r++) {
                    s.rows[r][j] = exp(s.rows[r][j] - raised);
                    sum[j] += s.rows[r][j];
                }
                for (var d = 0u; d < HEAD; d++) {
                    out.channels[d][j] *= fade;
                }
            }
            add_weighted(&out, &s, &v);
        }
        for (var j = 0u; j < QUERIES; j++) {
            if queries.there[j] {
                let token = queries.tokens[j];
                let to = token * params.channel_pairs + head * (HEAD / 2u);
                let share = 1.0 / sum[j];
                for (var i = 0u; i < HEAD / 2u; i++) {
                    let pair = vec2(out.channels[2u * i][j], out.channels[2u * i + 1u][j]);
                    y[to + i] = real_pair(share * pair);
                }
                lse[token * params.num_heads + head] = largest[j] + log(sum[j]);
            }
        }
    }
}

// ---- backward: qkv, qkv_bias, packed, stats, dy -> dqkv, dpadding, ds_out ------------------------
// x, y of the grid: run of windows; z: head. ds_out is summed over the run. A tile of queries meets all keys
// before the next one does, so what it adds to the gradients of keys goes through memory.

@compute @workgroup_size(8)
fn backward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let run = params.first_group + group.x + group.y * groups.x;
    if run >= params.runs {
        return;
    }
    let head = group.z;
    let first_window = run * params.run;
    for (var index = first_window; index < min(first_window + params.run, params.window_count); index++) {
        let window = window_of(index);
        for (var tile = 0u; tile < tiles_of_queries(); tile++) {
            var queries = queries_of(window, tile, lane);
            var q: Columns;
            var g: Columns;
            load_queries(&q, &queries, head);
            load_dy(&g, &queries, head);
            var known = known_of(&queries, head);
            var dq: Columns;
            for (var first_key = 0u; first_key < tokens(); first_key += KEYS) {
                let place = key_of(window, first_key, lane);
                var k: Key;
                var v: Key;
                load_keys(&k, &v, window, place, head);
                var p = products(&k, &q);
                let row = head * rows_of_keys() + first_key;
                add_bias(&p, &queries, window, place, packed_pair(row, tile, lane));
                var s = products(&v, &g);
                for (var r = 0u; r < KEYS; r++) {
                    for (var j = 0u; j < QUERIES; j++) {
                        p.rows[r][j] = exp(p.rows[r][j] - known.lse[j]);
                        s.rows[r][j] = p.rows[r][j] * (s.rows[r][j] - known.sum[j]);
                    }
                }
                let of_run = run * params.num_heads * rows_of_keys();
                keep_ds(&s, packed_pair(of_run + row, tile, lane), index > first_window);
                add_weighted(&dq, &s, &k);
                var dk: Key;
                var dv: Key;
                sum_over_queries(&dk, &s, &q, lane);
                sum_over_queries(&dv, &p, &g, lane);
                if lane < KEYS && first_key + lane < tokens() {
                    store_key(&dk, &dv, window, place, first_key + lane, head, tile > 0u);
                }
            }
            for (var j = 0u; j < QUERIES; j++) {
                if queries.there[j] {
                    let to = queries.tokens[j] * 3u * params.channel_pairs + head * (HEAD / 2u);
                    for (var i = 0u; i < HEAD / 2u; i++) {
                        let pair = vec2(dq.channels[2u * i][j], dq.channels[2u * i + 1u][j]);
                        dqkv[to + i] = pair_of(params.scale * pair);
                    }
                }
            }
        }
    }
}

// What is known of queries from the forward pass.
struct Known {
    lse: array<f32, QUERIES>,
    sum: array<f32, QUERIES>,  // y · dy = Σ_j p dp
}

fn known_of(queries: ptr<function, Queries>, head: u32) -> Known {
    var known: Known;
    for (var j = 0u; j < QUERIES; j++) {
        let pair = floats(stats[(*queries).tokens[j] * params.num_heads + head]);
        // Nothing is probable where no query is.
        known.lse[j] = select(-LOWEST, pair.x, (*queries).there[j]);
        known.sum[j] = pair.y;
    }
    return known;
}

fn load_dy(g: ptr<function, Columns>, queries: ptr<function, Queries>, head: u32) {
    for (var i = 0u; i < HEAD / 2u; i++) {
        for (var j = 0u; j < QUERIES; j++) {
            let at = (*queries).tokens[j] * params.channel_pairs + head * (HEAD / 2u) + i;
            let pair = floats(dy[at]);
            (*g).channels[2u * i][j] = pair.x;
            (*g).channels[2u * i + 1u][j] = pair.y;
        }
    }
}

fn keep_ds(s: ptr<function, Scores>, start: u32, add: bool) {
    for (var r = 0u; r < KEYS; r++) {
        let at = start + packed_pair(r, 0u, 0u);
        for (var i = 0u; i < 4u; i++) {
            var pair = vec2((*s).rows[r][2u * i], 0.0);
            if i < 3u {
                pair.y = (*s).rows[r][2u * i + 1u];
            }
            if add {
                pair += floats(ds_out[at + i]);
            }
            ds_out[at + i] = pair_of(pair);
        }
    }
}

// For each key the sum over queries of their weights times their channels.
fn sum_over_queries(
    to: ptr<function, Key>,
    weights: ptr<function, Scores>,
    queries: ptr<function, Columns>,
    lane: u32,
) {
    for (var d = 0u; d < HEAD; d++) {
        var sums: array<f32, 8>;
        for (var r = 0u; r < KEYS; r++) {
            for (var j = 0u; j < QUERIES; j++) {
                sums[r] = fma((*weights).rows[r][j], (*queries).channels[d][j], sums[r]);
            }
        }
        // Lane l gets the sum of all lanes' sums[l]: it keeps one of two and gives away the other.
        for (var step = 1u; step < 8u; step *= 2u) {
            let odd = (lane & step) != 0u;
            for (var i = 0u; i < 4u / step; i++) {
                let kept = select(sums[2u * i], sums[2u * i + 1u], odd);
                let given = select(sums[2u * i + 1u], sums[2u * i], odd);
                sums[i] = kept + subgroupShuffleXor(given, step);
            }
        }
        (*to).channels[d] = sums[0];
    }
}

fn store_key(
    dk: ptr<function, Key>,
    dv: ptr<function, Key>,
    window: Window,
    place: Place,
    index: u32,
    head: u32,
    add: bool,
) {
    let pairs = params.channel_pairs;
    let at = head * (HEAD / 2u);
    if place.padding {
        let to_k = (padding_row(window, index / params.window_size, index % params.window_size) * 3u + 1u) * pairs + at;
        for (var i = 0u; i < HEAD / 2u; i++) {
            var k = vec2((*dk).channels[2u * i], (*dk).channels[2u * i + 1u]);
            var v = vec2((*dv).channels[2u * i], (*dv).channels[2u * i + 1u]);
            if add {
                k += floats(dpadding[to_k + i]);
                v += floats(dpadding[to_k + pairs + i]);
            }
            dpadding[to_k - pairs + i] = u64(0u);
            dpadding[to_k + i] = pair_of(k);
            dpadding[to_k + pairs + i] = pair_of(v);
        }
    } else {
        let to_k = (place.token * 3u + 1u) * pairs + at;
        for (var i = 0u; i < HEAD / 2u; i++) {
            var k = vec2((*dk).channels[2u * i], (*dk).channels[2u * i + 1u]);
            var v = vec2((*dv).channels[2u * i], (*dv).channels[2u * i + 1u]);
            if add {
                k += floats(dqkv[to_k + i]);
                v += floats(dqkv[to_k + pairs + i]);
            }
            dqkv[to_k + i] = pair_of(k);
            dqkv[to_k + pairs + i] = pair_of(v);
        }
    }
}

// ---- unpack_bias: ds -> dbias --------------------------------------------------------------------
// One invocation per head, key and query, which adds up the runs.

@compute @workgroup_size(64)
fn unpack_bias(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let item = (params.first_group + group.x + group.y * groups.x) * 64u + lane;
    if item >= params.num_heads * tokens() * tokens() {
        return;
    }
    let query = item % tokens();
    let key = item / tokens();
    let row = key / tokens() * rows_of_keys() + key % tokens();
    let within = query % TILE_QUERIES;
    let at = packed_pair(row, query / TILE_QUERIES, within % 8u) * 2u + within / 8u;
    let matrices = packed_pair(params.num_heads * rows_of_keys(), 0u, 0u) * 2u;
    var sum = 0.0;
    for (var run = 0u; run < params.runs; run++) {
        sum += ds[run * matrices + at];
    }
    dbias[item] = sum;
}

// ---- shared --------------------------------------------------------------------------------------

// Tokens of a window.
fn tokens() -> u32 {
    return params.window_size * params.window_size;
}

fn rows_of_keys() -> u32 {
    return (tokens() + KEYS - 1u) / KEYS * KEYS;
}

fn tiles_of_queries() -> u32 {
    return (tokens() + TILE_QUERIES - 1u) / TILE_QUERIES;
}

// Where the pairs of a lane start in what is packed. Rows: of keys, of all heads.
fn packed_pair(row: u32, tile: u32, lane: u32) -> u32 {
    return ((row * tiles_of_queries() + tile) * 8u + lane) * 4u;
}

// Whether a window may have tokens that are only padding.
fn has_padding(window: Window) -> bool {
    let reach = params.window_size + params.shift;
    return window.y + reach > params.height || window.x + reach > params.width;
}

// Whether a window may have tokens of different regions.
fn has_regions(window: Window) -> bool {
    let last_y = window.y + params.window_size == padded_height();
    let last_x = window.x + params.window_size == padded_width();
    return params.shift > 0u && (last_y || last_x);
}

// A place in the rolled and padded map.
struct Place {
    token: u32,  // that of padding is one nearby
    region: u32, // tokens of different regions are not neighbours in the picture
    padding: bool,
}

fn place_of(window: Window, index: u32) -> Place {
    // There are no vectors of whole numbers that divide.
    let ty = u32((f32(index) + 0.5) / f32(params.window_size));
    let tx = index - ty * params.window_size;
    let y = unrolled(window.y + ty, padded_height());
    let x = unrolled(window.x + tx, padded_width());
    let row = window.batch * params.height + min(y, params.height - 1u);
    var place: Place;
    place.token = row * params.width + min(x, params.width - 1u);
    place.region = region_of(window, ty, tx);
    place.padding = y >= params.height || x >= params.width;
    return place;
}

// The key that a lane knows of; beyond the last one of a tile or window, the last one.
fn key_of(window: Window, first: u32, lane: u32) -> Place {
    return place_of(window, min(first + min(lane, KEYS - 1u), tokens() - 1u));
}

// Channels of a lane's key.
struct Key {
    channels: array<f32, MOST_CHANNELS>,
}

// Channels of 56 queries.
struct Columns {
    channels: array<array<f32, QUERIES>, MOST_CHANNELS>,
}

// 7 keys × 56 queries.
struct Scores {
    rows: array<array<f32, QUERIES>, KEYS>,
}

struct Queries {
    tokens: array<u32, QUERIES>,
    regions: array<u32, QUERIES>,
    there: array<bool, QUERIES>,  // or beyond the last one, or padding, which asks for what is cropped
}

fn queries_of(window: Window, tile: u32, lane: u32) -> Queries {
    var queries: Queries;
    for (var j = 0u; j < QUERIES; j++) {
        let index = tile * TILE_QUERIES + 8u * j + lane;
        let place = place_of(window, min(index, tokens() - 1u));
        queries.tokens[j] = place.token;
        queries.regions[j] = place.region;
        queries.there[j] = index < tokens() && !place.padding;
    }
    return queries;
}

// scale q
fn load_queries(q: ptr<function, Columns>, queries: ptr<function, Queries>, head: u32) {
    for (var i = 0u; i < HEAD / 2u; i++) {
        for (var j = 0u; j < QUERIES; j++) {
            let at = (*queries).tokens[j] * 3u * params.channel_pairs + head * (HEAD / 2u) + i;
            let pair = params.scale * floats_of(qkv[at]);
            (*q).channels[2u * i][j] = pair.x;
            (*q).channels[2u * i + 1u][j] = pair.y;
        }
    }
}

// Memory is slow to answer: the first things that are asked for lie in different lines of it.
fn load_keys(k: ptr<function, Key>, v: ptr<function, Key>, window: Window, place: Place, head: u32) {
    let at_k = params.channel_pairs + head * (HEAD / 2u);
    let at_v = at_k + params.channel_pairs;
    let row = place.token * 3u * params.channel_pairs;
    for (var n = 0u; n < HEAD / 2u; n++) {
        let i = n % 2u * (HEAD / 4u) + n / 2u;
        let pair_k = floats_of(qkv[row + at_k + i]);
        (*k).channels[2u * i] = pair_k.x;
        (*k).channels[2u * i + 1u] = pair_k.y;
        let pair_v = floats_of(qkv[row + at_v + i]);
        (*v).channels[2u * i] = pair_v.x;
        (*v).channels[2u * i + 1u] = pair_v.y;
    }
    if has_padding(window) {
        for (var i = 0u; i < HEAD / 2u; i++) {
            let pair_k = floats(qkv_bias[at_k + i]);
            (*k).channels[2u * i] = select((*k).channels[2u * i], pair_k.x, place.padding);
            (*k).channels[2u * i + 1u] = select((*k).channels[2u * i + 1u], pair_k.y, place.padding);
            let pair_v = floats(qkv_bias[at_v + i]);
            (*v).channels[2u * i] = select((*v).channels[2u * i], pair_v.x, place.padding);
            (*v).channels[2u * i + 1u] = select((*v).channels[2u * i + 1u], pair_v.y, place.padding);
        }
    }
}

// Of each key with each query. Loops of constant length are unrolled, so nothing is indexed at run time.
fn products(keys: ptr<function, Key>, queries: ptr<function, Columns>) -> Scores {
    var scores: Scores;
    for (var r = 0u; r < KEYS; r++) {
        for (var d = 0u; d < HEAD; d++) {
            let v = subgroupShuffle((*keys).channels[d], r);
            for (var j = 0u; j < QUERIES; j++) {
                scores.rows[r][j] = fma(v, (*queries).channels[d][j], scores.rows[r][j]);
            }
        }
    }
    return scores;
}

// Adds to each query's channels the sum over keys of their weights times their channels.
fn add_weighted(to: ptr<function, Columns>, weights: ptr<function, Scores>, keys: ptr<function, Key>) {
    for (var d = 0u; d < HEAD; d++) {
        for (var r = 0u; r < KEYS; r++) {
            let v = subgroupShuffle((*keys).channels[d], r);
            for (var j = 0u; j < QUERIES; j++) {
                (*to).channels[d][j] = fma(v, (*weights).rows[r][j], (*to).channels[d][j]);
            }
        }
    }
}

fn add_bias(s: ptr<function, Scores>, queries: ptr<function, Queries>, window: Window, place: Place, start: u32) {
    for (var r = 0u; r < KEYS; r++) {
        for (var j = 0u; j < QUERIES; j += 2u) {
            let pair = floats(packed[start + packed_pair(r, 0u, 0u) + j / 2u]);
            (*s).rows[r][j] += pair.x;
            if j + 1u < QUERIES {
                (*s).rows[r][j + 1u] += pair.y;
            }
        }
    }
    if has_regions(window) {
        for (var r = 0u; r < KEYS; r++) {
            let region = subgroupShuffle(place.region, r);
            for (var j = 0u; j < QUERIES; j++) {
                (*s).rows[r][j] += select(0.0, MASKED, (*queries).regions[j] != region);
            }
        }
    }
}
