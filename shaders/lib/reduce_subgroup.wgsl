
// lib/reduce.wgsl for workgroups that are one subgroup: no barriers, no workgroup memory.

fn workgroup_sum2(value: vec2<f32>, lane: u32) -> vec2<f32> {
    return subgroupAdd(value);
}

fn workgroup_max(value: f32, lane: u32) -> f32 {
    return subgroupMax(value);
}
