
// ==== lib/bilinear.wgsl: one axis of a bilinear resize from `size` to `goal` pixels ==================
//
//   s = (d + 1/2) size / goal - 1/2, not below 0;  taps floor(s) and min(floor(s) + 1, size - 1)
//
// which is torch's align_corners = False. In whole numbers, with n = (2 d + 1) size:
//
//   s = max(n - goal, 0) / (2 goal)
//
// so which pixels a tap meets is exact, forward and backward, at any size up to 32 767.
//
// Pixels d whose first tap is q form cell q: cell_edge(q) <= n < cell_edge(q + 1), where the first cell
// has no lower bound and the last no upper one.

struct Taps {
    near: u32,
    far: u32,
    near_weight: f32,
    far_weight: f32,
}

fn position(d: u32, size: u32) -> u32 {
    return (2u * d + 1u) * size;
}

fn cell_edge(q: u32, goal: u32) -> u32 {
    return (2u * q + 1u) * goal;
}

// The first pixel of cell q.
fn cell_start(q: u32, size: u32, goal: u32) -> u32 {
    return select(((2u * q + 1u) * goal + size - 1u) / size / 2u, 0u, q == 0u);
}

// Weights of the taps q and q + 1 for a pixel of cell q, n = (2 d + 1) size.
fn cell_weights(n: u32, q: u32, size: u32, goal: u32) -> vec2<f32> {
    let unit = 2u * goal;
    // At the last pixel both taps are one.
    let rest = select(n - min(n, cell_edge(q, goal)), 0u, q + 1u == size);
    return vec2(f32(unit - rest), f32(rest)) / f32(unit);
}

fn taps(d: u32, size: u32, goal: u32) -> Taps {
    let n = position(d, size);
    let near = (n - min(n, goal)) / (2u * goal);
    let weights = cell_weights(n, near, size, goal);
    return Taps(near, min(near + 1u, size - 1u), weights.x, weights.y);
}

// The pixels that tap i has a weight in: from x to before y.
fn meeting(i: u32, size: u32, goal: u32) -> vec2<u32> {
    let start = select(((2u * i - 1u) * goal / size + 1u) / 2u, 0u, i == 0u);
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
