
// ==== lib/bilinear_centres.wgsl: where lib/bilinear.wgsl puts pixels for torch's align_corners = False ===
//
//   s = (d + 1/2) size / goal - 1/2, not below 0
//
// In whole numbers, with n = (2 d + 1) size:  s = max(n - goal, 0) / (2 goal). The first cell has no lower
// bound.

fn position(d: u32, size: u32) -> u32 {
    return (2u * d + 1u) * size;
}

fn unit_of(goal: u32) -> u32 {
    return 2u * goal;
}

fn cell_edge(q: u32, goal: u32) -> u32 {
    return (2u * q + 1u) * goal;
}

fn cell_of(n: u32, goal: u32) -> u32 {
    return (n - min(n, goal)) / unit_of(goal);
}

fn cell_start(q: u32, size: u32, goal: u32) -> u32 {
    return select(((2u * q + 1u) * goal + size - 1u) / size / 2u, 0u, q == 0u);
}

fn meeting_start(i: u32, size: u32, goal: u32) -> u32 {
    return ((2u * i - 1u) * goal / size + 1u) / 2u;
}
