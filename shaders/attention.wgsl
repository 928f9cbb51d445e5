// Multi-head attention of queries to keys, forward and backward.
//
//   s[i, j] = scale q_i · k_j,  only keys that query i may see
//   p = softmax over j of s,    y_i = Σ_j keep[i, j] p[i, j] v_j
//
// Host: src/ops/attention.rs        Test: kernels-tests/attention.rs        HEAD_VECTORS: lib/head*.wgsl
// B = batch, Q = queries, N = keys, C = channels, D = C / heads, P = parts, W = N / 32 rounded up.
// Everything is bound as vectors of four: C and D are multiples of 4. Keys are cut into parts, so that few
// queries and many keys keep a GPU busy. The mask is one for all heads.

override WORKGROUP: u32 = 64u;
// What `words` are: 0 nothing, 1 the mask, 2 the state of random numbers.
override WORDS: u32 = 0u;

struct Params {
    queries: u32,
    keys: u32,
    num_heads: u32,
    channel_vectors: u32,
    head_vectors: u32,
    part: u32,   // keys of a part, a multiple of 4
    parts: u32,
    rows: u32,   // queries and heads of all images
    mask_words: u32,
    scale: f32,
    stream: u32,
    rate: f32,
    first_group: u32,  // of a part of the dispatch
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;             // [B, Q, C]
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;             // [B, N, C]
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;             // [B, N, C]
@group(0) @binding(4) var<storage, read> words: array<u32>;               // [B, Q, W] bits, or [4]
@group(0) @binding(5) var<storage, read_write> part_y: array<vec4<f32>>;  // [P, B, Q, C]
@group(0) @binding(6) var<storage, read_write> part_stats: array<vec2<f32>>;    // [P, B, Q, heads]: largest, sum
@group(0) @binding(7) var<storage, read> parts_y: array<vec4<f32>>;             // [P, B, Q, C]
@group(0) @binding(8) var<storage, read> parts_stats: array<vec2<f32>>;         // [P, B, Q, heads]
@group(0) @binding(9) var<storage, read_write> y: array<vec4<f32>>;       // [B, Q, C]
@group(0) @binding(10) var<storage, read_write> lse: array<f32>;          // [B, Q, heads]
@group(0) @binding(11) var<storage, read> saved_y: array<vec4<f32>>;      // [B, Q, C]
@group(0) @binding(12) var<storage, read> saved_lse: array<f32>;          // [B, Q, heads]
@group(0) @binding(13) var<storage, read> dy: array<vec4<f32>>;           // [B, Q, C]
@group(0) @binding(14) var<storage, read_write> stats_out: array<vec2<f32>>;    // [B, Q, heads]: lse, Σ y dy
@group(0) @binding(15) var<storage, read> stats: array<vec2<f32>>;              // [B, Q, heads]
@group(0) @binding(16) var<storage, read_write> part_dq: array<vec4<f32>>;      // [P, B, Q, C]
@group(0) @binding(17) var<storage, read_write> dk: array<vec4<f32>>;     // [B, N, C]
@group(0) @binding(18) var<storage, read_write> dv: array<vec4<f32>>;     // [B, N, C]

const LOWEST: f32 = -3.4028235e38;

// Which of the keys key..key + 3, a multiple of 4 and on, query `row` (of all images) may see.
fn visible(row: u32, key: u32) -> vec4<bool> {
    let four = vec4(0u, 1u, 2u, 3u);
    let exists = key + four < vec4(params.keys);
    if WORDS != 1u {
        return exists;
    }
    let bits = words[row * params.mask_words + key / 32u] >> (key % 32u);
    return exists & ((vec4(bits) >> four & vec4(1u)) == vec4(1u));
}

// What dropout makes of these keys' weights. The backward pass draws the same numbers again.
fn kept(row: u32, head: u32, key: u32) -> vec4<f32> {
    if WORDS != 2u {
        return vec4(1.0);
    }
    let index = (row * params.num_heads + head) * ((params.keys + 3u) / 4u) + key / 4u;
    let bits = philox(vec2(words[0], words[1]), vec4(index, params.stream, words[2], words[3]));
    let drawn = vec4(unit(bits.x), unit(bits.y), unit(bits.z), unit(bits.w));
    return select(vec4(0.0), vec4(1.0 / (1.0 - params.rate)), drawn >= vec4(params.rate));
}

// Where the vectors of a head begin in row `row` of q, k, v or y.
fn start(row: u32, head: u32) -> u32 {
    return row * params.channel_vectors + head * params.head_vectors;
}

// A row of k or v of this image; the last in place of those that do not exist.
fn key_row(image: u32, key: u32) -> u32 {
    return image * params.keys + min(key, params.keys - 1u);
}

// ---- forward: q, k, v, words -> part_y, part_stats -----------------------------------------------
// x, y of the grid: part of the keys and block of queries; z: image and head. One invocation per query,
// which meets the keys four at a time and keeps the running maximum, sum and weighted values (Milakov &
// Gimelshein 2018).

@compute @workgroup_size(WORKGROUP)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let blocks = (params.queries + WORKGROUP - 1u) / WORKGROUP;
    let id = params.first_group + group.x + group.y * groups.x;
    let part = id / blocks;
    let query = id % blocks * WORKGROUP + lane;
    if part >= params.parts || query >= params.queries {
        return;
    }
    let image = group.z / params.num_heads;
    let head = group.z % params.num_heads;
    let row = image * params.queries + query;
    var query_vectors: array<vec4<f32>, HEAD_VECTORS>;
    var out: array<vec4<f32>, HEAD_VECTORS>;
    for (var i = 0u; i < HEAD_VECTORS; i++) {
        if i < params.head_vectors {
            query_vectors[i] = params.scale * q[start(row, head) + i];
        }
    }
    var largest = LOWEST;
    var sum = 0.0;
    let end = min((part + 1u) * params.part, params.keys);
    for (var key = part * params.part; key < end; key += 4u) {
        var from_key: array<u32, 4>;
        var s: vec4<f32>;
        for (var j = 0u; j < 4u; j++) {
            from_key[j] = start(key_row(image, key + j), head);
            var score = 0.0;
            for (var i = 0u; i < HEAD_VECTORS; i++) {
                if i < params.head_vectors {
                    score += dot(query_vectors[i], k[from_key[j] + i]);
                }
            }
            s[j] = score;
        }
        let seen = visible(row, key);
        s = select(vec4(LOWEST), s, seen);
        let raised = max(largest, max(max(s.x, s.y), max(s.z, s.w)));
        let fade = exp(largest - raised);
        // Not by its score: as long as nothing was seen, the lowest is the largest.
        let e = select(vec4(0.0), exp(s - raised), seen);
        sum = sum * fade + ((e.x + e.y) + (e.z + e.w));
        largest = raised;
        let weights = e * kept(row, head, key);
        for (var i = 0u; i < HEAD_VECTORS; i++) {
            if i < params.head_vectors {
                var value = out[i] * fade;
                for (var j = 0u; j < 4u; j++) {
                    value = fma(vec4(weights[j]), v[from_key[j] + i], value);
                }
                out[i] = value;
            }
        }
    }
    let of_part = part * params.rows;
    part_stats[of_part + row * params.num_heads + head] = vec2(largest, sum);
    for (var i = 0u; i < HEAD_VECTORS; i++) {
        if i < params.head_vectors {
            part_y[of_part * params.head_vectors + start(row, head) + i] = out[i];
        }
    }
}

// ---- combine: parts_y, parts_stats -> y, lse -----------------------------------------------------
// One invocation per query and head.

@compute @workgroup_size(64)
fn combine(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let item = (params.first_group + group.x + group.y * groups.x) * 64u + lane;
    if item >= params.rows {
        return;
    }
    var largest = LOWEST;
    for (var part = 0u; part < params.parts; part++) {
        largest = max(largest, parts_stats[part * params.rows + item].x);
    }
    var sum = 0.0;
    for (var part = 0u; part < params.parts; part++) {
        let stats = parts_stats[part * params.rows + item];
        sum += stats.y * exp(stats.x - largest);
    }
    for (var i = 0u; i < params.head_vectors; i++) {
        var total = vec4(0.0);
        for (var part = 0u; part < params.parts; part++) {
            let at = part * params.rows + item;
            total += exp(parts_stats[at].x - largest) * parts_y[at * params.head_vectors + i];
        }
        y[item * params.head_vectors + i] = total / sum;
    }
    lse[item] = largest + log(sum);
}

// ---- backward_stats: saved_y, saved_lse, dy -> stats_out -----------------------------------------
// One invocation per query and head: Σ_j p dp = y · dy, without the probabilities.

@compute @workgroup_size(64)
fn backward_stats(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let item = (params.first_group + group.x + group.y * groups.x) * 64u + lane;
    if item >= params.rows {
        return;
    }
    var sum = 0.0;
    for (var i = 0u; i < params.head_vectors; i++) {
        sum += dot(saved_y[item * params.head_vectors + i], dy[item * params.head_vectors + i]);
    }
    stats_out[item] = vec2(saved_lse[item], sum);
}

// ---- backward_queries: q, k, v, words, dy, stats -> part_dq --------------------------------------
// As forward, one invocation per query.
//
//   p = exp(s - lse),  dp = keep (dy · v),  ds = p (dp - Σ y dy),  dq = scale Σ_j ds k_j

@compute @workgroup_size(WORKGROUP)
fn backward_queries(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let blocks = (params.queries + WORKGROUP - 1u) / WORKGROUP;
    let id = params.first_group + group.x + group.y * groups.x;
    let part = id / blocks;
    let query = id % blocks * WORKGROUP + lane;
    if part >= params.parts || query >= params.queries {
        return;
    }
    let image = group.z / params.num_heads;
    let head = group.z % params.num_heads;
    let row = image * params.queries + query;
    var query_vectors: array<vec4<f32>, HEAD_VECTORS>;
    var g: array<vec4<f32>, HEAD_VECTORS>;
    var dq: array<vec4<f32>, HEAD_VECTORS>;
    for (var i = 0u; i < HEAD_VECTORS; i++) {
        if i < params.head_vectors {
            query_vectors[i] = params.scale * q[start(row, head) + i];
            g[i] = dy[start(row, head) + i];
        }
    }
    let known = stats[row * params.num_heads + head];
    let end = min((part + 1u) * params.part, params.keys);
    for (var key = part * params.part; key < end; key += 4u) {
        let seen = visible(row, key);
        let keep = kept(row, head, key);
        for (var j = 0u; j < 4u; j++) {
            let from_key = start(key_row(image, key + j), head);
            var score = 0.0;
            var dp = 0.0;
            for (var i = 0u; i < HEAD_VECTORS; i++) {
                if i < params.head_vectors {
                    score += dot(query_vectors[i], k[from_key + i]);
                    dp += dot(g[i], v[from_key + i]);
                }
            }
            let ds = select(0.0, exp(score - known.x) * (keep[j] * dp - known.y), seen[j]);
            for (var i = 0u; i < HEAD_VECTORS; i++) {
                if i < params.head_vectors {
                    dq[i] = fma(vec4(ds), k[from_key + i], dq[i]);
                }
            }
        }
    }
    let to = part * params.rows * params.head_vectors + start(row, head);
    for (var i = 0u; i < HEAD_VECTORS; i++) {
        if i < params.head_vectors {
            part_dq[to + i] = params.scale * dq[i];
        }
    }
}

// ---- backward_keys: q, k, v, words, dy, stats -> dk, dv ------------------------------------------
// x, y of the grid: block of keys; z: image and head. One invocation per key.
//
//   dk_j = scale Σ_i ds[i, j] q_i,  dv_j = Σ_i keep[i, j] p[i, j] dy_i

@compute @workgroup_size(WORKGROUP)
fn backward_keys(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let key = (params.first_group + group.x + group.y * groups.x) * WORKGROUP + lane;
    if key >= params.keys {
        return;
    }
    let image = group.z / params.num_heads;
    let head = group.z % params.num_heads;
    let at = start(image * params.keys + key, head);
    var key_vectors: array<vec4<f32>, HEAD_VECTORS>;
    var value: array<vec4<f32>, HEAD_VECTORS>;
    var dkey: array<vec4<f32>, HEAD_VECTORS>;
    var dvalue: array<vec4<f32>, HEAD_VECTORS>;
    for (var i = 0u; i < HEAD_VECTORS; i++) {
        if i < params.head_vectors {
            key_vectors[i] = params.scale * k[at + i];
            value[i] = v[at + i];
        }
    }
    let four = key & ~3u;
    for (var query = 0u; query < params.queries; query++) {
        let row = image * params.queries + query;
        let from_query = start(row, head);
        let known = stats[row * params.num_heads + head];
        let keep = kept(row, head, four)[key & 3u];
        var score = 0.0;
        var dp = 0.0;
        for (var i = 0u; i < HEAD_VECTORS; i++) {
            if i < params.head_vectors {
                score += dot(key_vectors[i], q[from_query + i]);
                dp += dot(value[i], dy[from_query + i]);
            }
        }
        let p = select(0.0, exp(score - known.x), visible(row, four)[key & 3u]);
        let ds = p * (keep * dp - known.y);
        for (var i = 0u; i < HEAD_VECTORS; i++) {
            if i < params.head_vectors {
                dkey[i] = fma(vec4(ds), q[from_query + i], dkey[i]);
                dvalue[i] = fma(vec4(keep * p), dy[from_query + i], dvalue[i]);
            }
        }
    }
    for (var i = 0u; i < HEAD_VECTORS; i++) {
        if i < params.head_vectors {
            dk[at + i] = params.scale * dkey[i];
            dv[at + i] = dvalue[i];
        }
    }
}

