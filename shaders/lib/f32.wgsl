// The elements of tensors that have 16 bits in mixed precision; f16.wgsl then takes the place of this file.

alias Real = f32;
