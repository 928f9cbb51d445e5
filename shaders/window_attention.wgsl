// Attention within shifted windows (W-MSA, SW-MSA of Swin), forward and backward.
//
//   s[i, j] = scale q_i · k_j + position_bias[head, j, i] - 100 [i, j from different regions]
//   p = softmax over j of s,  y_i = Σ_j p[i, j] v_j
//
// Padding, the cyclic shift and the cut into windows are index arithmetic: x[y, x] of the rolled map
// is x[y + shift mod Hp, x + shift mod Wp]. Tokens that are only padding are keys like any other,
// with q, k, v equal to the bias of the layer that made qkv; nothing masks them.
//
// Host: src/ops/window_attention.rs        Test: kernels-tests/window_attention.rs
// T = B H W tokens, C = channels, D = C / heads, M = window side, N = M² tokens of a window.
// Everything is bound as vectors of four: C and D are multiples of 4.

override WORKGROUP: u32 = 64u;
// Queries of a block of backward_queries, and keys of one of backward_keys.
override SPAN: u32 = 8u;
const MOST_SPAN: u32 = 18u;
// Blocks that a workgroup does side by side.
override BLOCKS: u32 = 8u;

struct Params {
    height: u32,
    width: u32,
    windows_y: u32,
    windows_x: u32,
    window_size: u32,
    shift: u32,
    num_heads: u32,
    channel_vectors: u32,
    head_vectors: u32,
    first_window: u32,
    window_count: u32,
    scale: f32,
    first_group: u32,  // of a part of the dispatch
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> qkv: array<vec4<Real>>;          // [T, 3 C]
@group(0) @binding(2) var<storage, read> qkv_bias: array<vec4<f32>>;      // [3 C]
@group(0) @binding(3) var<storage, read> position_bias: array<f32>;       // [heads, key, query]
@group(0) @binding(4) var<storage, read_write> y: array<vec4<Real>>;      // [T, C]
@group(0) @binding(5) var<storage, read_write> lse: array<f32>;           // [T, heads]
@group(0) @binding(6) var<storage, read> dy: array<vec4<f32>>;            // [T, C]
@group(0) @binding(7) var<storage, read> stats: array<vec2<f32>>;         // [T, heads]: lse, Σ y dy
@group(0) @binding(8) var<storage, read_write> dqkv: array<vec4<f32>>;    // [T, 3 C]
@group(0) @binding(9) var<storage, read_write> p_out: array<f32>;         // [windows, heads, key, query]
@group(0) @binding(10) var<storage, read_write> ds_out: array<f32>;       // [windows, heads, key, query]
@group(0) @binding(11) var<storage, read> p: array<f32>;                  // [windows, heads, key, query]
@group(0) @binding(12) var<storage, read> ds: array<f32>;                 // [windows, heads, key, query]
@group(0) @binding(13) var<storage, read_write> dpadding: array<vec4<f32>>;    // [B padding, 3 C]
@group(0) @binding(14) var<storage, read> saved_y: array<vec4<Real>>;          // [T, C]
@group(0) @binding(15) var<storage, read> saved_lse: array<f32>;               // [T, heads]
@group(0) @binding(16) var<storage, read_write> stats_out: array<vec2<f32>>;   // [T, heads]

const PADDING: u32 = 0xffffffffu;

// A place in the rolled and padded map.
struct Place {
    token: u32,   // or PADDING
    region: u32,  // tokens of different regions are not neighbours in the picture
}

fn place_of(window: Window, ty: u32, tx: u32) -> Place {
    let y = unrolled(window.y + ty, padded_height());
    let x = unrolled(window.x + tx, padded_width());
    let inside = y < params.height && x < params.width;
    var place: Place;
    place.token = select(PADDING, (window.batch * params.height + y) * params.width + x, inside);
    place.region = region_of(window, ty, tx);
    return place;
}

// Vector i of the query (part 0), key (1) or value (2) of a token.
fn load_qkv(token: u32, part: u32, head: u32, i: u32) -> vec4<f32> {
    let at = part * params.channel_vectors + head * params.head_vectors + i;
    if token == PADDING {
        return qkv_bias[at];
    }
    return vec4<f32>(qkv[token * 3u * params.channel_vectors + at]);
}

// ---- forward: qkv, qkv_bias, position_bias -> y, lse ---------------------------------------------
// x, y of the grid: window; z: head. One invocation per query, which meets the keys four at a time
// and keeps the running maximum, sum and weighted values (Milakov & Gimelshein 2018).

@compute @workgroup_size(WORKGROUP)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = params.first_group + group.x + group.y * groups.x;
    if index >= params.window_count {
        return;
    }
    let window = window_of(index);
    let head = group.z;
    let tokens = params.window_size * params.window_size;
    for (var query = lane; query < tokens; query += WORKGROUP) {
        let at = place_of(window, query / params.window_size, query % params.window_size);
        // What padding asks for is cropped.
        if at.token == PADDING {
            continue;
        }
        var q: array<vec4<f32>, HEAD_VECTORS>;
        var out: array<vec4<f32>, HEAD_VECTORS>;
        for (var i = 0u; i < HEAD_VECTORS; i++) {
            if i < params.head_vectors {
                q[i] = params.scale * load_qkv(at.token, 0u, head, i);
            }
        }
        var largest = LOWEST;
        var sum = 0.0;
        var ty = 0u;
        var tx = 0u;
        for (var key = 0u; key < tokens; key += 4u) {
            var places: array<u32, 4>;
            var s: vec4<f32>;
            for (var j = 0u; j < 4u; j++) {
                let there = place_of(window, min(ty, params.window_size - 1u), tx);
                places[j] = there.token;
                var score = 0.0;
                for (var i = 0u; i < HEAD_VECTORS; i++) {
                    if i < params.head_vectors {
                        score += dot(q[i], load_qkv(there.token, 1u, head, i));
                    }
                }
                let bias = position_bias[(head * tokens + min(key + j, tokens - 1u)) * tokens + query];
                score += bias + select(0.0, MASKED, there.region != at.region);
                s[j] = select(score, LOWEST, key + j >= tokens);
                tx += 1u;
                if tx == params.window_size {
                    tx = 0u;
                    ty += 1u;
                }
            }
            let raised = max(largest, max(max(s.x, s.y), max(s.z, s.w)));
            let fade = exp(largest - raised);
            let e = exp(s - raised);
            sum = sum * fade + ((e.x + e.y) + (e.z + e.w));
            largest = raised;
            for (var i = 0u; i < HEAD_VECTORS; i++) {
                if i < params.head_vectors {
                    var value = out[i] * fade;
                    for (var j = 0u; j < 4u; j++) {
                        value = fma(vec4(e[j]), load_qkv(places[j], 2u, head, i), value);
                    }
                    out[i] = value;
                }
            }
        }
        for (var i = 0u; i < HEAD_VECTORS; i++) {
            if i < params.head_vectors {
                y[at.token * params.channel_vectors + head * params.head_vectors + i] = vec4<Real>(out[i] / sum);
            }
        }
        lse[at.token * params.num_heads + head] = largest + log(sum);
    }
}

// ---- backward_stats: saved_y, saved_lse, dy -> stats_out -----------------------------------------
// One invocation per token and head: Σ_j p dp = y · dy, without the probabilities.

@compute @workgroup_size(64)
fn backward_stats(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let item = (params.first_group + group.x + group.y * groups.x) * 64u + lane;
    // Here the number of tokens and heads together.
    if item >= params.window_count {
        return;
    }
    var sum = 0.0;
    for (var i = 0u; i < params.head_vectors; i++) {
        sum += dot(vec4<f32>(saved_y[item * params.head_vectors + i]), dy[item * params.head_vectors + i]);
    }
    stats_out[item] = vec2(saved_lse[item], sum);
}

// ---- backward_scores: qkv, qkv_bias, position_bias, dy, stats -> p_out, ds_out -------------------
// As forward, one invocation per query. Registers hold no more than eight vectors of both q and dy, so a wider
// head takes two rounds, between which p_out and ds_out have the sums of products.
//
//   p = exp(s - lse),  ds = p (dy · v - Σ y dy)

const ROUND: u32 = min(HEAD_VECTORS, 8u);

@compute @workgroup_size(WORKGROUP)
fn backward_scores(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let local_index = params.first_group + group.x + group.y * groups.x;
    if local_index >= params.window_count {
        return;
    }
    let window = window_of(params.first_window + local_index);
    let head = group.z;
    let tokens = params.window_size * params.window_size;
    let matrix = (local_index * params.num_heads + head) * tokens * tokens;
    for (var query = lane; query < tokens; query += WORKGROUP) {
        let at = place_of(window, query / params.window_size, query % params.window_size);
        if at.token == PADDING {
            for (var key = 0u; key < tokens; key++) {
                p_out[matrix + key * tokens + query] = 0.0;
                ds_out[matrix + key * tokens + query] = 0.0;
            }
            continue;
        }
        let known = stats[at.token * params.num_heads + head];
        for (var first = 0u; first < HEAD_VECTORS; first += ROUND) {
            var q: array<vec4<f32>, ROUND>;
            var g: array<vec4<f32>, ROUND>;
            for (var i = 0u; i < ROUND; i++) {
                if first + i < params.head_vectors {
                    q[i] = params.scale * load_qkv(at.token, 0u, head, first + i);
                    g[i] = dy[at.token * params.channel_vectors + head * params.head_vectors + first + i];
                }
            }
            var key = 0u;
            for (var ty = 0u; ty < params.window_size; ty++) {
                for (var tx = 0u; tx < params.window_size; tx++) {
                    let there = place_of(window, ty, tx);
                    let pair = matrix + key * tokens + query;
                    var score = 0.0;
                    var dp = 0.0;
                    for (var i = 0u; i < ROUND; i++) {
                        if first + i < params.head_vectors {
                            score += dot(q[i], load_qkv(there.token, 1u, head, first + i));
                            dp += dot(g[i], load_qkv(there.token, 2u, head, first + i));
                        }
                    }
                    if first > 0u {
                        score += p_out[pair];
                        dp += ds_out[pair];
                    }
                    if first + ROUND == HEAD_VECTORS {
                        score += position_bias[(head * tokens + key) * tokens + query];
                        score += select(0.0, MASKED, there.region != at.region);
                        score = exp(score - known.x);
                        dp = score * (dp - known.y);
                    }
                    p_out[pair] = score;
                    ds_out[pair] = dp;
                    key += 1u;
                }
            }
        }
    }
}

// ---- backward_queries: qkv, qkv_bias, ds -> dqkv (q) ---------------------------------------------
// x, y of the grid: window and blocks of queries; z: head. Lanes run along the head's channels, eight to a
// block.
//
//   dq_i = scale Σ_j ds[i, j] k_j

@compute @workgroup_size(WORKGROUP)
fn backward_queries(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tokens = params.window_size * params.window_size;
    let blocks = (tokens + SPAN - 1u) / SPAN;
    let groups_per_window = (blocks + BLOCKS - 1u) / BLOCKS;
    let id = params.first_group + group.x + group.y * groups.x;
    let local_index = id / groups_per_window;
    var block = id % groups_per_window;
    if BLOCKS > 1u {
        block = block * BLOCKS + lane / 8u;
    }
    if local_index >= params.window_count || block >= blocks {
        return;
    }
    let window = window_of(params.first_window + local_index);
    let head = group.z;
    let matrix = (local_index * params.num_heads + head) * tokens * tokens;
    for (var vector = lane % 8u; vector < params.head_vectors; vector += 8u) {
        var dq: array<vec4<f32>, MOST_SPAN>;
        var key = 0u;
        for (var ty = 0u; ty < params.window_size; ty++) {
            for (var tx = 0u; tx < params.window_size; tx++) {
                let k = load_qkv(place_of(window, ty, tx).token, 1u, head, vector);
                for (var i = 0u; i < SPAN; i++) {
                    let query = min(block * SPAN + i, tokens - 1u);
                    dq[i] = fma(vec4(ds[matrix + key * tokens + query]), k, dq[i]);
                }
                key += 1u;
            }
        }
        for (var i = 0u; i < SPAN; i++) {
            let query = block * SPAN + i;
            let token = place_of(window, query / params.window_size, query % params.window_size).token;
            if query < tokens && token != PADDING {
                let to = token * 3u * params.channel_vectors + head * params.head_vectors + vector;
                dqkv[to] = params.scale * dq[i];
            }
        }
    }
}

// ---- backward_keys: qkv, dy, p, ds -> dqkv (k, v), dpadding --------------------------------------
// As backward_queries, with blocks of keys.
//
//   dk_j = scale Σ_i ds[i, j] q_i,  dv_j = Σ_i p[i, j] dy_i

@compute @workgroup_size(WORKGROUP)
fn backward_keys(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tokens = params.window_size * params.window_size;
    let blocks = (tokens + SPAN - 1u) / SPAN;
    let groups_per_window = (blocks + BLOCKS - 1u) / BLOCKS;
    let id = params.first_group + group.x + group.y * groups.x;
    let local_index = id / groups_per_window;
    var block = id % groups_per_window;
    if BLOCKS > 1u {
        block = block * BLOCKS + lane / 8u;
    }
    if local_index >= params.window_count || block >= blocks {
        return;
    }
    let window = window_of(params.first_window + local_index);
    let head = group.z;
    let matrix = (local_index * params.num_heads + head) * tokens * tokens;
    for (var vector = lane % 8u; vector < params.head_vectors; vector += 8u) {
        var dk: array<vec4<f32>, MOST_SPAN>;
        var dv: array<vec4<f32>, MOST_SPAN>;
        var query = 0u;
        for (var ty = 0u; ty < params.window_size; ty++) {
            for (var tx = 0u; tx < params.window_size; tx++) {
                let from_token = place_of(window, ty, tx).token;
                if from_token != PADDING {
                    let q = load_qkv(from_token, 0u, head, vector);
                    let g = dy[from_token * params.channel_vectors + head * params.head_vectors + vector];
                    for (var j = 0u; j < SPAN; j++) {
                        let key = min(block * SPAN + j, tokens - 1u);
                        let at = matrix + key * tokens + query;
                        dk[j] = fma(vec4(ds[at]), q, dk[j]);
                        dv[j] = fma(vec4(p[at]), g, dv[j]);
                    }
                }
                query += 1u;
            }
        }
        for (var j = 0u; j < SPAN; j++) {
            let key = block * SPAN + j;
            if key < tokens {
                store_key(window, key, head, vector, params.scale * dk[j], dv[j]);
            }
        }
    }
}

fn store_key(window: Window, key: u32, head: u32, vector: u32, dk: vec4<f32>, dv: vec4<f32>) {
    let ty = key / params.window_size;
    let tx = key % params.window_size;
    let token = place_of(window, ty, tx).token;
    let at = head * params.head_vectors + vector;
    if token != PADDING {
        let row = token * 3u * params.channel_vectors;
        dqkv[row + params.channel_vectors + at] = dk;
        dqkv[row + 2u * params.channel_vectors + at] = dv;
        return;
    }
    let row = padding_row(window, ty, tx) * 3u * params.channel_vectors;
    dpadding[row + at] = vec4(0.0);
    dpadding[row + params.channel_vectors + at] = dk;
    dpadding[row + 2u * params.channel_vectors + at] = dv;
}
