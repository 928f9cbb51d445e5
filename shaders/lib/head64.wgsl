
// Room for heads of up to 64 channels.
const HEAD_VECTORS: u32 = 16u;
