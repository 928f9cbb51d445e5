
// ==== lib/bilinear_corners.wgsl: where lib/bilinear.wgsl puts pixels for torch's align_corners = True ====
//
//   s = d (size - 1) / (goal - 1), or 0 if goal is 1: the corners' centres stay where they are
//
// In whole numbers, with n = d (size - 1):  s = n / (goal - 1).

fn position(d: u32, size: u32) -> u32 {
    return d * (size - 1u);
}

fn unit_of(goal: u32) -> u32 {
    return max(goal, 2u) - 1u;
}

fn cell_edge(q: u32, goal: u32) -> u32 {
    return q * unit_of(goal);
}

fn cell_of(n: u32, goal: u32) -> u32 {
    return n / unit_of(goal);
}

fn cell_start(q: u32, size: u32, goal: u32) -> u32 {
    let step = max(size, 2u) - 1u;
    return (q * unit_of(goal) + step - 1u) / step;
}

fn meeting_start(i: u32, size: u32, goal: u32) -> u32 {
    return cell_start(max(i, 1u) - 1u, size, goal);
}
