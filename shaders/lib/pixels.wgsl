
// ==== lib/pixels.wgsl: pixels in 0..255, red, green, blue and alpha ==========================================

// A word's pixel, red in the lowest byte.
fn pixel_of(word: u32) -> vec4<f32> {
    return vec4<f32>(vec4(word, word >> 8u, word >> 16u, word >> 24u) & vec4(255u));
}

// What the network sees. The padding of a batch has alpha 0, and is 0 for the network as in training.
fn normalized(v: vec4<f32>, mean: vec4<f32>, deviation: vec4<f32>) -> vec3<f32> {
    return select((v.rgb - mean.rgb) / deviation.rgb, vec3(0.0), v.a == 0.0);
}

// What a texture answers, in 0..1, as the bytes of an image file would be.
fn encoded(v: vec4<f32>, linear: u32) -> vec4<f32> {
    // What sRGB textures decode.
    let low = 12.92 * v.rgb;
    let high = 1.055 * pow(max(v.rgb, vec3(0.0)), vec3(1.0 / 2.4)) - 0.055;
    let bytes = select(high, low, v.rgb <= vec3(0.0031308));
    return vec4(select(v.rgb, bytes, linear != 0u), v.a);
}
