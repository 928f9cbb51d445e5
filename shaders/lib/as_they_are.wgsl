// Operands of lib/fours.wgsl as they are.

alias Known = u32;

fn before_loop(place: Place, of_a: Share, of_b: Share) -> Known {
    return 0u;
}

fn prepared_a(vectors: mat4x4<f32>, known: Known, share: Share, k: u32) -> mat4x4<f32> {
    return vectors;
}

fn prepared_b(vectors: mat4x4<f32>, known: Known, share: Share, k: u32) -> mat4x4<f32> {
    return vectors;
}
