
// ==== lib/bilinear.wgsl: one axis of a bilinear resize from `size` to `goal` pixels ==================
//
//   taps floor(s) and min(floor(s) + 1, size - 1) of pixel d
//
// lib/bilinear_centres.wgsl or lib/bilinear_corners.wgsl, one of which goes with it, says what s is: in whole
// numbers, so which pixels a tap meets is exact, forward and backward, at any size up to 32 767. It has
//
//   position(d)       n, the place of pixel d, in units of which unit_of(goal) are one tap
//   cell_edge(q)      pixels whose first tap is q form cell q: cell_edge(q) <= n < cell_edge(q + 1), where
//                     the last cell has no upper bound
//   cell_of(n)        the q of a place
//   cell_start(q)     the first pixel of cell q
//   meeting_start(i)  the first pixel that tap i > 0 has a weight in

struct Taps {
    near: u32,
    far: u32,
    near_weight: f32,
    far_weight: f32,
}

// Weights of the taps q and q + 1 for a pixel of cell q at n.
fn cell_weights(n: u32, q: u32, size: u32, goal: u32) -> vec2<f32> {
    let unit = unit_of(goal);
    // At the last pixel both taps are one.
    let rest = select(n - min(n, cell_edge(q, goal)), 0u, q + 1u == size);
    return vec2(f32(unit - rest), f32(rest)) / f32(unit);
}

fn taps(d: u32, size: u32, goal: u32) -> Taps {
    let n = position(d, size);
    let near = cell_of(n, goal);
    let weights = cell_weights(n, near, size, goal);
    return Taps(near, min(near + 1u, size - 1u), weights.x, weights.y);
}

// The pixels that tap i has a weight in: from x to before y.
fn meeting(i: u32, size: u32, goal: u32) -> vec2<u32> {
    let start = select(meeting_start(i, size, goal), 0u, i == 0u);
    let end = select(cell_start(i + 1u, size, goal), goal, i + 1u == size);
    return vec2(start, min(end, goal));
}

// The weight of tap i in pixel d, one of meeting(i).
fn meeting_weight(d: u32, i: u32, size: u32, goal: u32) -> f32 {
    let n = position(d, size);
    if n < cell_edge(i, goal) && i > 0u {
        return cell_weights(n, i - 1u, size, goal).y;
    }
    return cell_weights(n, i, size, goal).x;
}
