
// Room for heads of up to 8 channels.
const HEAD_VECTORS: u32 = 2u;
