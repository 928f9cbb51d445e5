// What a device can do at most, for benchmarks to be compared with; and a product without any art.
//
// Host: src/bench/roofs.rs        Test: kernels-tests/roofs.rs
// L = invocations, T = vectors in the table (a power of two).

override WORKGROUP: u32 = 64u;

struct Params {
    rounds: u32,
    mask: u32,
    inner: u32,
    columns: u32,
    value: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> table: array<vec4<f32>>;    // [T]
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;  // [L]
@group(0) @binding(3) var<storage, read> x: array<f32>;              // [rows, inner]
@group(0) @binding(4) var<storage, read> weight: array<f32>;         // [columns, inner]
@group(0) @binding(5) var<storage, read_write> product: array<f32>;  // [rows, columns]

// ---- arithmetic: -> y ----------------------------------------------------------------------------
// Sixteen chains of multiplications and additions in registers, 16 · rounds of each: sums = sums · value + value.

const CHAINS: u32 = 4u;
const UNROLLED: u32 = 16u;

@compute @workgroup_size(WORKGROUP)
fn arithmetic(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    var sums: array<vec4<f32>, CHAINS>;
    for (var i = 0u; i < CHAINS; i++) {
        sums[i] = params.value * (f32(lane + i) + vec4(0.0, 0.25, 0.5, 0.75));
    }
    for (var round = 0u; round < params.rounds; round++) {
        for (var k = 0u; k < UNROLLED; k++) {
            for (var i = 0u; i < CHAINS; i++) {
                sums[i] = sums[i] * params.value + params.value;
            }
        }
    }
    y[group.x * WORKGROUP + lane] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// ---- gather: table -> y --------------------------------------------------------------------------
// Each invocation adds up vectors from all over the table.

const READS: u32 = 32u;

@compute @workgroup_size(WORKGROUP)
fn gather(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = group.x * WORKGROUP + lane;
    var sum = vec4(0.0);
    for (var k = 0u; k < READS; k++) {
        // Knuth's multiplicative hash: the upper bits are well mixed.
        sum += table[(((id * READS + k) * 2654435761u) >> 8u) & params.mask];
    }
    y[id] = sum;
}

// ---- simple_product: x, weight -> product = x weightᵀ --------------------------------------------
// One invocation per element.

@compute @workgroup_size(64)
fn simple_product(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let column = group.x * 64u + lane;
    if column >= params.columns {
        return;
    }
    var sum = 0.0;
    for (var k = 0u; k < params.inner; k++) {
        sum += x[group.y * params.inner + k] * weight[column * params.inner + k];
    }
    product[group.y * params.columns + column] = sum;
}
