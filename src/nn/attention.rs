//! [`MultiheadAttention`].

use super::{Init, Linear, ParameterScope};
use crate::{Tape, Tensor, ops};

/// Attention of queries to keys with learned projections. Names and layout of the parameters are those of
/// `torch.nn.MultiheadAttention`: the projections of queries, keys and values are one matrix.
#[derive(Debug)]
pub struct MultiheadAttention {
    /// `[3C, C]`
    in_proj_weight: Tensor,
    /// `[3C]`
    in_proj_bias: Tensor,
    out_proj: Linear,
    num_heads: usize,
    dropout: f32,
}

impl MultiheadAttention {
    /// Attention of `num_heads` heads over `channels` channels. `dropout` is the rate at which it leaves
    /// out keys when the tape is random.
    pub fn new(
        mut scope: ParameterScope<'_>,
        channels: usize,
        num_heads: usize,
        dropout: f32,
    ) -> Self {
        let (zero, xavier) = (Init::Constant(0.0), Init::xavier(channels, channels));
        let packed = Init::xavier(channels, 3 * channels);
        Self {
            in_proj_weight: scope.create("in_proj_weight", [3 * channels, channels], packed),
            in_proj_bias: scope.create("in_proj_bias", [3 * channels], zero),
            out_proj: Linear::with_init(scope.at("out_proj"), channels, channels, xavier, zero),
            num_heads,
            dropout,
        }
    }

    /// `queries`: `[B, Q, C]`, `keys`, `values`: `[B, N, C]` → `[B, Q, C]`. For `mask` see
    /// [`ops::attention`].
    pub fn forward(
        &self,
        tape: &mut Tape,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        mask: Option<&Tensor>,
    ) -> Tensor {
        let q = self.project(tape, queries, 0);
        let k = self.project(tape, keys, 1);
        let v = self.project(tape, values, 2);
        let y = ops::attention(tape, &q, &k, &v, self.num_heads, mask, self.dropout);
        self.out_proj.forward(tape, &y)
    }

    /// `x` as queries (part 0), keys (1) or values (2).
    fn project(&self, tape: &mut Tape, x: &Tensor, part: usize) -> Tensor {
        let channels = self.in_proj_weight.shape().last();
        let rows = part * channels..(part + 1) * channels;
        let weight = ops::slice(tape, &self.in_proj_weight, 0, rows.clone());
        let bias = ops::slice(tape, &self.in_proj_bias, 0, rows);
        ops::linear(tape, x, &weight, Some(&bias))
    }
}
