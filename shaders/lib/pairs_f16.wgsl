// Two neighbours of what lib/f16.wgsl calls Real, for kernels that read and write pairs.

alias RealPair = vec2<f16>;

fn floats_of(pair: RealPair) -> vec2<f32> {
    return vec2<f32>(pair);
}

fn real_pair(v: vec2<f32>) -> RealPair {
    return vec2<f16>(v);
}
