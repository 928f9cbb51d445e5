
// Tiles of 64 × 64 for lib/tiles.wgsl: an invocation has 8 × 8 sums.
const TILE: u32 = 64u;
const DEPTH: u32 = 16u;
const EACH: u32 = 8u;
