
// Philox 4x32-10 (Salmon et al. 2011), as in src/random.rs: 128 random bits as a function of a key
// (the seed) and a counter (which number of which op in which step).
fn philox(key: vec2<u32>, counter: vec4<u32>) -> vec4<u32> {
    var k = key;
    var x = counter;
    for (var round = 0u; round < 10u; round++) {
        let p0 = wide_product(x.x, 0xD2511F53u);
        let p1 = wide_product(x.z, 0xCD9E8D57u);
        x = vec4(p1.y ^ x.y ^ k.x, p1.x, p0.y ^ x.w ^ k.y, p0.x);
        k += vec2(0x9E3779B9u, 0xBB67AE85u);
    }
    return x;
}

// The 64 bits of a product, low word first. WGSL has no such multiplication.
fn wide_product(a: u32, b: u32) -> vec2<u32> {
    let a0 = a & 0xffffu;
    let a1 = a >> 16u;
    let b0 = b & 0xffffu;
    let b1 = b >> 16u;
    let mid = a1 * b0 + (a0 * b0 >> 16u);
    let mid2 = a0 * b1 + (mid & 0xffffu);
    return vec2(a * b, a1 * b1 + (mid >> 16u) + (mid2 >> 16u));
}

// Uniform in 0..1, a multiple of 2⁻²⁴.
fn unit(bits: u32) -> f32 {
    return f32(bits >> 8u) * 5.9604645e-8;
}
