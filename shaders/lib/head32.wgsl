
// Room for heads of up to 32 channels.
const HEAD_VECTORS: u32 = 8u;
