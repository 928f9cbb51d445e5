// The elements of tensors that have 16 bits in mixed precision; f32.wgsl takes the place of this file otherwise.

alias Real = f16;
