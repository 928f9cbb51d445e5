// Cooperative matrices of 8 × 8, which the lanes of a subgroup hold together; matrix16.wgsl has larger ones.

alias Left = coop_mat8x8<f16, A>;
alias Right = coop_mat8x8<f16, B>;
alias Sum = coop_mat8x8<f32, C>;

const SIDE: u32 = 8u;
