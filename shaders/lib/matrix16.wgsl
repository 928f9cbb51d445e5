// Cooperative matrices of 16 × 16, which the lanes of a subgroup hold together; matrix8.wgsl has smaller ones.

alias Left = coop_mat16x16<f16, A>;
alias Right = coop_mat16x16<f16, B>;
alias Sum = coop_mat16x16<f32, C>;

const SIDE: u32 = 16u;
