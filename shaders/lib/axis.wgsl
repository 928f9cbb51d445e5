
// ==== lib/axis.wgsl: what a pixel takes from one axis of logits that are resized once, or twice ==========
//
// With lib/bilinear.wgsl, and where TAPS says how many taps that are per axis: 1 without a resize, 2 for one,
// 3 for an enlargement that is resized once more.

struct Axis {
    at: vec3<u32>,
    weight: vec3<f32>,
}

fn axis(d: u32, size: u32, via: u32, goal: u32) -> Axis {
    if TAPS == 1u {
        return Axis(vec3(d), vec3(1.0, 0.0, 0.0));
    }
    if TAPS == 2u {
        let t = taps(d, size, goal);
        return Axis(vec3(t.near, t.far, t.far), vec3(t.near_weight, t.far_weight, 0.0));
    }
    // Neighbours of an enlarged axis lie less than a pixel apart in the small one: three taps in all.
    let t = taps(d, via, goal);
    let a = taps(t.near, size, via);
    let b = taps(t.far, size, via);
    let weight = t.near_weight * (put(0u, a.near_weight) + put(a.far - a.near, a.far_weight))
        + t.far_weight * (put(b.near - a.near, b.near_weight) + put(b.far - a.near, b.far_weight));
    return Axis(min(a.near + vec3(0u, 1u, 2u), vec3(size - 1u)), weight);
}

fn put(at: u32, weight: f32) -> vec3<f32> {
    return select(vec3(0.0), vec3(weight), vec3(0u, 1u, 2u) == vec3(at));
}

// The first pixel whose first tap is i, or a later one; `goal` if there is none.
fn first_pixel(i: u32, size: u32, via: u32, goal: u32) -> u32 {
    if i >= size {
        return goal;
    }
    if TAPS == 1u {
        return i;
    }
    if TAPS == 2u {
        return min(cell_start(i, size, goal), goal);
    }
    let between = cell_start(i, size, via);
    return select(min(cell_start(between, via, goal), goal), goal, between >= via);
}
