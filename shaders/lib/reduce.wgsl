
// Sums and maxima over a workgroup of WORKGROUP lanes, in workgroup memory: the same value in every
// lane, added in the same order every time. Every lane must take part.

var<workgroup> reduce_sums: array<vec2<f32>, WORKGROUP>;
var<workgroup> reduce_maxima: array<f32, WORKGROUP>;

fn workgroup_sum2(value: vec2<f32>, lane: u32) -> vec2<f32> {
    reduce_sums[lane] = value;
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        if lane < half {
            reduce_sums[lane] += reduce_sums[lane + half];
        }
        workgroupBarrier();
    }
    let total = reduce_sums[0];
    // Nobody may start the next sum before everybody has this one.
    workgroupBarrier();
    return total;
}

fn workgroup_max(value: f32, lane: u32) -> f32 {
    reduce_maxima[lane] = value;
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        if lane < half {
            reduce_maxima[lane] = max(reduce_maxima[lane], reduce_maxima[lane + half]);
        }
        workgroupBarrier();
    }
    let total = reduce_maxima[0];
    workgroupBarrier();
    return total;
}
