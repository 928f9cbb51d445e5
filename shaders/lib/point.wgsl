
// ==== lib/point.wgsl: bilinear samples at points of a map ============================================
//
// A point (x, y) in 0..1 lies at (x w - 1/2, y h - 1/2) of the pixels' centres; what is outside the map is 0.

struct Corners {
    at: vec4<u32>,
    // 0 where the corner is outside.
    weight: vec4<f32>,
}

fn corners_of(point: vec2<f32>, height: u32, width: u32) -> Corners {
    let place = point * vec2(f32(width), f32(height)) - 0.5;
    let low = floor(place);
    let far = place - low;
    let last = vec2(f32(width), f32(height)) - 1.0;
    let low_weight = select(vec2(0.0), 1.0 - far, (low >= vec2(0.0)) & (low <= last));
    let high_weight = select(vec2(0.0), far, (low >= vec2(-1.0)) & (low < last));
    let near = vec2<u32>(clamp(low, vec2(0.0), last));
    let next = vec2<u32>(clamp(low + 1.0, vec2(0.0), last));
    return Corners(
        vec4(near.y, near.y, next.y, next.y) * width + vec4(near.x, next.x, near.x, next.x),
        vec4(
            low_weight.y * vec2(low_weight.x, high_weight.x),
            high_weight.y * vec2(low_weight.x, high_weight.x),
        ),
    );
}
