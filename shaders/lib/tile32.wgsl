
// Tiles of 32 × 32 for lib/tiles.wgsl: an invocation has 4 × 4 sums. Four times the workgroups, for products that are too
// small to fill a GPU with the larger ones.
const TILE: u32 = 32u;
const DEPTH: u32 = 32u;
const EACH: u32 = 4u;
