// Two neighbours of what lib/f32.wgsl calls Real, for kernels that read and write pairs: see lib/lanes.wgsl.

alias RealPair = u64;

fn floats_of(pair: RealPair) -> vec2<f32> {
    return floats(pair);
}

fn real_pair(v: vec2<f32>) -> RealPair {
    return pair_of(v);
}
