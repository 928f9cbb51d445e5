
// lib/bilinear.wgsl for torch's align_corners = True: the corners' centres stay where they are.
//
//   s = d (size - 1) / (goal - 1), or 0 if goal is 1;  taps floor(s) and min(floor(s) + 1, size - 1)
//
// In whole numbers, with n = d (size - 1):  s = n / (goal - 1). Pixels d whose first tap is q form cell q.

struct Taps {
    near: u32,
    far: u32,
    near_weight: f32,
    far_weight: f32,
}

fn position(d: u32, size: u32) -> u32 {
    return d * (size - 1u);
}

fn unit_of(goal: u32) -> u32 {
    return max(goal, 2u) - 1u;
}

fn cell_edge(q: u32, goal: u32) -> u32 {
    return q * unit_of(goal);
}

// The first pixel of cell q.
fn cell_start(q: u32, size: u32, goal: u32) -> u32 {
    let step = max(size, 2u) - 1u;
    return (q * unit_of(goal) + step - 1u) / step;
}

// Weights of the taps q and q + 1 for a pixel of cell q, n = d (size - 1).
fn cell_weights(n: u32, q: u32, size: u32, goal: u32) -> vec2<f32> {
    let unit = unit_of(goal);
    // At the last pixel both taps are one.
    let rest = select(n - min(n, cell_edge(q, goal)), 0u, q + 1u == size);
    return vec2(f32(unit - rest), f32(rest)) / f32(unit);
}

fn taps(d: u32, size: u32, goal: u32) -> Taps {
    let n = position(d, size);
    let near = n / unit_of(goal);
    let weights = cell_weights(n, near, size, goal);
    return Taps(near, min(near + 1u, size - 1u), weights.x, weights.y);
}

// The pixels that tap i has a weight in: from x to before y.
fn meeting(i: u32, size: u32, goal: u32) -> vec2<u32> {
    let start = select(cell_start(max(i, 1u) - 1u, size, goal), 0u, i == 0u);
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
