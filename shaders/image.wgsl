// Images in and out: bytes to what the network sees, class ids to colours over the image.
//
//   x[b, y, x, c] = (value - mean[c]) / deviation[c], value in 0..255, or 0 where alpha is 0
//   painted       = image (1 - opacity) + colour opacity, truncated
//
// Host: src/ops/image.rs        Test: kernels-tests/image.rs
// B = batch, H × W = image. Pixels are words, red in the lowest byte; labels are four to a word. A
// workgroup has 256 pixels of one row.

struct Params {
    mean: vec4<f32>,
    deviation: vec4<f32>,
    rows: u32,     // B H
    width: u32,
    flip: u32,
    linear: u32,   // whether textures answer linear light
    opacity: u32,  // times 2²⁴
    reserved_0: u32,
    reserved_1: u32,
    reserved_2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> rgba: array<u32>;             // [B, H, W]
@group(0) @binding(2) var<storage, read> labels: array<u32>;           // [B H W / 4]
@group(0) @binding(3) var<storage, read> palette: array<u32>;          // [256]
@group(0) @binding(4) var<storage, read_write> x: array<f32>;          // [B, H, W, 3]
@group(0) @binding(5) var<storage, read_write> painted: array<u32>;    // [B, H, W]
@group(0) @binding(6) var image: texture_2d<f32>;                      // [H, W]
@group(0) @binding(7) var canvas: texture_storage_2d<rgba8unorm, write>;  // [H, W]

const WORKGROUP: u32 = 64u;
const PER_GROUP: u32 = 256u;
const IGNORED: u32 = 255u;

// ---- normalize: rgba -> x ------------------------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn normalize(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let run = locate(group, groups);
    for (var col = run.start + lane; col < run.end; col += WORKGROUP) {
        store(run.row, col, pixel_of(rgba[run.row * params.width + col]));
    }
}

// ---- normalize_texture: image -> x ---------------------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn normalize_texture(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let run = locate(group, groups);
    for (var col = run.start + lane; col < run.end; col += WORKGROUP) {
        store(run.row, col, 255.0 * load(run.row, col));
    }
}

// ---- paint: rgba, labels, palette -> painted -----------------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn paint(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let run = locate(group, groups);
    for (var col = run.start + lane; col < run.end; col += WORKGROUP) {
        let at = run.row * params.width + col;
        painted[at] = blend(rgba[at], label_at(at));
    }
}

// ---- paint_texture: image, labels, palette -> canvas ---------------------------------------------

@compute @workgroup_size(WORKGROUP)
fn paint_texture(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let run = locate(group, groups);
    for (var col = run.start + lane; col < run.end; col += WORKGROUP) {
        let word = pack4x8unorm(load(run.row, col));
        let v = unpack4x8unorm(blend(word, label_at(run.row * params.width + col)));
        textureStore(canvas, vec2(col, run.row), v);
    }
}

// ---- shared --------------------------------------------------------------------------------------

// Pixels `start..end` of a row; none beyond the last.
struct Run {
    row: u32,
    start: u32,
    end: u32,
}

fn locate(group: vec3<u32>, groups: vec3<u32>) -> Run {
    let id = group.x + group.y * groups.x;
    let runs = (params.width + PER_GROUP - 1u) / PER_GROUP;
    let row = id / runs;
    let start = id % runs * PER_GROUP;
    return Run(row, start, select(0u, min(start + PER_GROUP, params.width), row < params.rows));
}

// `v`: red, green, blue and alpha in 0..255.
fn store(row: u32, col: u32, v: vec4<f32>) {
    let n = normalized(v, params.mean, params.deviation);
    let to = 3u * (row * params.width + select(col, params.width - 1u - col, params.flip != 0u));
    x[to] = n.r;
    x[to + 1u] = n.g;
    x[to + 2u] = n.b;
}

// A texture's pixel in 0..1, as the bytes of an image file would be.
fn load(row: u32, col: u32) -> vec4<f32> {
    return encoded(textureLoad(image, vec2(col, row), 0), params.linear);
}

fn label_at(at: u32) -> u32 {
    return (labels[at >> 2u] >> (8u * (at & 3u))) & 255u;
}

// In whole numbers, the same on every device: 255 · 2²⁴ fits a word. The 128 outweighs the rounding
// of the opacity, so that what should be whole is.
fn blend(word: u32, label: u32) -> u32 {
    let v = vec3(word, word >> 8u, word >> 16u) & vec3(255u);
    let colour = palette[label];
    let c = vec3(colour, colour >> 8u, colour >> 16u) & vec3(255u);
    let mixed = (v * (0x1000000u - params.opacity) + c * params.opacity + 128u) >> vec3(24u);
    let painted = mixed.r | (mixed.g << 8u) | (mixed.b << 16u) | (word & 0xff000000u);
    return select(painted, word, label == IGNORED);
}
