
// Room for heads of up to 16 channels.
const HEAD_VECTORS: u32 = 4u;
