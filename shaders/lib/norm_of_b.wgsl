// Operands of lib/fours.wgsl: b is the layer norm of what is bound, taken while it is read; its rows are contiguous.
//
//   b[k, n] = (x[k, n] - mean[k]) rstd[k] weight[n] + bias[n]

@group(0) @binding(9) var<storage, read> stats: array<vec2<f32>>;         // [K] of (mean, rstd)
@group(0) @binding(10) var<storage, read> norm_weight: array<vec4<f32>>;  // [N]
@group(0) @binding(11) var<storage, read> norm_bias: array<vec4<f32>>;    // [N]

// Of an invocation's four columns: they are the same at every k.
struct Known {
    weight: vec4<f32>,
    bias: vec4<f32>,
}

fn before_loop(place: Place, of_a: Share, of_b: Share) -> Known {
    let four = place.col / 4u + of_b.four;
    return Known(norm_weight[four], norm_bias[four]);
}

fn prepared_a(vectors: mat4x4<f32>, known: Known, share: Share, k: u32) -> mat4x4<f32> {
    return vectors;
}

fn prepared_b(vectors: mat4x4<f32>, known: Known, share: Share, k: u32) -> mat4x4<f32> {
    let row = k + share.k;
    return mat4x4<f32>(
        normed(vectors[0], stats[row], known),
        normed(vectors[1], stats[row + NEXT_K], known),
        normed(vectors[2], stats[row + 2u * NEXT_K], known),
        normed(vectors[3], stats[row + 3u * NEXT_K], known));
}

fn normed(vector: vec4<f32>, of_row: vec2<f32>, known: Known) -> vec4<f32> {
    let xhat = fma(vector, vec4(of_row.y), vec4(-of_row.x * of_row.y));
    return fma(xhat, known.weight, known.bias);
}
