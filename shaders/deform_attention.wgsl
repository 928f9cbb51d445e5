// Multi-scale deformable attention: each query reads a few places of each map, forward and backward.
//
//   p[q]   = softmax of a head's logits over its samples n = (level, point)
//   y[q]   = sum_n p[q, n] s[q, n],   s: the map of the level, sampled bilinearly at
//   (X, Y) = ((column + 1/2) w / w_q - 1/2, (row + 1/2) h / h_q - 1/2) + offset
//
//   dlogit = p (g - sum_n p g),  g[n] = dy . s[n]
//   doffset = p (dy . ds/dX, dy . ds/dY)
//   dvalue: deform_scatter.wgsl, from the links that are made here
//
// Host: src/ops/deform_attention.rs   Test: kernels-tests/deform_attention.rs   Samples: lib/deform.wgsl
// B = batch, S = tokens, the pixels of all levels, each of which is also a query, in the row and column
// of its own map (h_q × w_q); M = heads, V = vectors of four channels per head, N = samples of a query and
// head. Rows are (image, query, head).

struct Params {
    widths: vec4<u32>,
    heights: vec4<u32>,
    // How many rows there is something to do for; of `link` also the first image that they are of.
    rows: u32,
    first_image: u32,
    tokens: u32,
    cells: u32,
    heads: u32,
    vectors: u32,
    levels: u32,
    points: u32,
    first_group: u32,  // of a part of the dispatch
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> value: array<vec4<f32>>;            // [B, S, M, V]
@group(0) @binding(2) var<storage, read> offsets: array<vec2<f32>>;          // [B, S, M, N] of (x, y)
@group(0) @binding(3) var<storage, read> logits: array<f32>;                 // [B, S, M, N]
@group(0) @binding(4) var<storage, read> dy: array<vec4<f32>>;               // [B, S, M, V]
@group(0) @binding(5) var<storage, read_write> y: array<vec4<f32>>;          // [B, S, M, V]
@group(0) @binding(6) var<storage, read_write> doffsets: array<vec2<f32>>;   // [B, S, M, N]
@group(0) @binding(7) var<storage, read_write> dlogits: array<f32>;          // [B, S, M, N]
@group(0) @binding(8) var<storage, read_write> links: array<vec4<u32>>;      // [images, S, M, N]
@group(0) @binding(9) var<storage, read_write> first: array<atomic<u32>>;    // [images, M, cells]
@group(0) @binding(10) var<storage, read_write> largest: array<atomic<u32>>; // [1]

const WORKGROUP: u32 = 64u;

// The softmax of a row's logits from `start` on: exp(logit - x) * y.
fn softmax(start: u32) -> vec2<f32> {
    let samples = params.levels * params.points;
    var most = logits[start];
    for (var n = 1u; n < samples; n++) {
        most = max(most, logits[start + n]);
    }
    var sum = 0.0;
    for (var n = 0u; n < samples; n++) {
        sum += exp(logits[start + n] - most);
    }
    return vec2(most, 1.0 / sum);
}

struct Query {
    image: u32,
    head: u32,
    // Where it is: of its map's width and height, the middle of its pixel.
    reference: vec2<f32>,
}

fn locate_query(row: u32) -> Query {
    let query = row / params.heads;
    let image = query / params.tokens;
    let token = locate_token(query - image * params.tokens, params.widths, params.heights);
    let size = vec2<f32>(vec2(params.widths[token.level], params.heights[token.level]));
    let reference = (vec2(f32(token.column), f32(token.row)) + 0.5) / size;
    return Query(image, row - query * params.heads, reference);
}

// The middle of the query's pixel, in pixels of a level.
fn centre(query: Query, level: u32) -> vec2<f32> {
    return query.reference * vec2<f32>(vec2(params.widths[level], params.heights[level])) - 0.5;
}

// Where the corners of a sample are in value, for the first vector.
fn addresses(corners: Corners, query: Query, first_token: u32) -> vec4<u32> {
    let tokens = query.image * params.tokens + first_token + corners.at;
    return (tokens * params.heads + query.head) * params.vectors;
}

// ---- forward: value, offsets, logits -> y --------------------------------------------------------
// One invocation per vector of y.

@compute @workgroup_size(WORKGROUP)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = (params.first_group + group.x + group.y * groups.x) * WORKGROUP + lane;
    let row = id / params.vectors;
    if row >= params.rows {
        return;
    }
    let vector = id - row * params.vectors;
    let query = locate_query(row);
    var n = row * params.levels * params.points;
    let normalise = softmax(n);
    var sum = vec4(0.0);
    var first_token = 0u;
    for (var level = 0u; level < params.levels; level++) {
        let width = params.widths[level];
        let height = params.heights[level];
        let middle = centre(query, level);
        for (var point = 0u; point < params.points; point++) {
            let p = exp(logits[n] - normalise.x) * normalise.y;
            let corners = corners_at(middle + offsets[n], width, height);
            let weights = p * corner_weights(corners);
            let at = addresses(corners, query, first_token) + vector;
            sum += weights.x * value[at.x] + weights.y * value[at.y]
                + weights.z * value[at.z] + weights.w * value[at.w];
            n += 1u;
        }
        first_token += width * height;
    }
    y[id] = sum;
}

// ---- backward_samples: value, offsets, logits, dy -> doffsets, dlogits ---------------------------
// One invocation per row.

@compute @workgroup_size(WORKGROUP)
fn backward_samples(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = (params.first_group + group.x + group.y * groups.x) * WORKGROUP + lane;
    if row >= params.rows {
        return;
    }
    let query = locate_query(row);
    let start = row * params.levels * params.points;
    let normalise = softmax(start);
    var n = start;
    var mean = 0.0;
    var first_token = 0u;
    for (var level = 0u; level < params.levels; level++) {
        let width = params.widths[level];
        let height = params.heights[level];
        let middle = centre(query, level);
        for (var point = 0u; point < params.points; point++) {
            let p = exp(logits[n] - normalise.x) * normalise.y;
            let corners = corners_at(middle + offsets[n], width, height);
            let at = addresses(corners, query, first_token);
            var products = vec4(0.0);
            for (var v = 0u; v < params.vectors; v++) {
                let g = dy[row * params.vectors + v];
                products += vec4(
                    dot(g, value[at.x + v]),
                    dot(g, value[at.y + v]),
                    dot(g, value[at.z + v]),
                    dot(g, value[at.w + v]),
                );
            }
            products *= corners.there;
            let sample = dot(corner_weights(corners), products);
            doffsets[n] = p * slope(corners, products);
            dlogits[n] = sample;
            mean += p * sample;
            n += 1u;
        }
        first_token += width * height;
    }
    for (var i = start; i < n; i++) {
        dlogits[i] = exp(logits[i] - normalise.x) * normalise.y * (dlogits[i] - mean);
    }
}

// ---- link: offsets, logits -> links, first, largest ----------------------------------------------
// One invocation per row puts its samples into the lists that deform_scatter.wgsl reads.

@compute @workgroup_size(WORKGROUP)
fn link(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = (params.first_group + group.x + group.y * groups.x) * WORKGROUP + lane;
    if row >= params.rows {
        return;
    }
    let query = locate_query(row);
    // Samples are counted from the first image on.
    let ahead = params.first_image * params.tokens * params.heads * params.levels * params.points;
    var n = row * params.levels * params.points;
    let normalise = softmax(ahead + n);
    var first_cell = (query.image * params.heads + query.head) * params.cells;
    for (var level = 0u; level < params.levels; level++) {
        let width = params.widths[level];
        let height = params.heights[level];
        let middle = centre(query, level);
        for (var point = 0u; point < params.points; point++) {
            let p = exp(logits[ahead + n] - normalise.x) * normalise.y;
            let place = middle + offsets[ahead + n];
            let x = along(place.x, width);
            let y = along(place.y, height);
            if meets_map(x, y) {
                let next = atomicExchange(&first[first_cell + cell_of(x, y, width)], n + 1u);
                links[n] = make_link(next, p, x, y);
                if !is_finite(p) {
                    atomicMax(&largest[0], NOT_A_NUMBER);
                }
            }
            n += 1u;
        }
        first_cell += (width + 1u) * (height + 1u);
    }
}
