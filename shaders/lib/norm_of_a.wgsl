// Operands of lib/fours.wgsl: a is the layer norm of what is bound, taken while it is read; its rows are contiguous.
//
//   a[m, k] = (x[m, k] - mean[m]) rstd[m] weight[k] + bias[k]

@group(0) @binding(9) var<storage, read> stats: array<vec2<f32>>;         // [M] of (mean, rstd)
@group(0) @binding(10) var<storage, read> norm_weight: array<vec4<f32>>;  // [K]
@group(0) @binding(11) var<storage, read> norm_bias: array<vec4<f32>>;    // [K]

// Of an invocation's four rows: they are the same at every k.
struct Known {
    rstd: vec4<f32>,
    shift: vec4<f32>,  // -mean rstd
}

fn before_loop(place: Place, of_a: Share, of_b: Share) -> Known {
    let row = place.row + 4u * of_a.four;
    let rstd = vec4(stats[row].y, stats[row + 1u].y, stats[row + 2u].y, stats[row + 3u].y);
    let mean = vec4(stats[row].x, stats[row + 1u].x, stats[row + 2u].x, stats[row + 3u].x);
    return Known(rstd, -mean * rstd);
}

fn prepared_a(vectors: mat4x4<f32>, known: Known, share: Share, k: u32) -> mat4x4<f32> {
    let weight = norm_weight[(k + share.k) / 4u];
    let bias = norm_bias[(k + share.k) / 4u];
    return mat4x4<f32>(
        fma(fma(vectors[0], vec4(known.rstd[0]), vec4(known.shift[0])), weight, bias),
        fma(fma(vectors[1], vec4(known.rstd[1]), vec4(known.shift[1])), weight, bias),
        fma(fma(vectors[2], vec4(known.rstd[2]), vec4(known.shift[2])), weight, bias),
        fma(fma(vectors[3], vec4(known.rstd[3]), vec4(known.shift[3])), weight, bias));
}

fn prepared_b(vectors: mat4x4<f32>, known: Known, share: Share, k: u32) -> mat4x4<f32> {
    return vectors;
}
