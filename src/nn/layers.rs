//! Small layers.

use super::{Init, ParameterScope};
use crate::ops::{self, Running};
use crate::{Tape, Tensor};

/// A fully connected layer, `y = x · weightᵀ + bias`.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[outputs, inputs]`
    pub weight: Tensor,
    /// `[outputs]`
    pub bias: Tensor,
}

impl Linear {
    /// A layer from `inputs` to `outputs` features, as the official encoder starts: weights normal
    /// with deviation 0.02, biases 0.
    pub fn new(scope: ParameterScope<'_>, inputs: usize, outputs: usize) -> Self {
        Self::with_init(scope, inputs, outputs, Init::Normal { std: 0.02 }, Init::Constant(0.0))
    }

    /// A layer from `inputs` to `outputs` features with weights and biases that start like this.
    pub fn with_init(
        mut scope: ParameterScope<'_>,
        inputs: usize,
        outputs: usize,
        weight: Init,
        bias: Init,
    ) -> Self {
        Self {
            weight: scope.create("weight", [outputs, inputs], weight),
            bias: scope.create("bias", [outputs], bias),
        }
    }

    /// `x`: `[.., inputs]` → `[.., outputs]`.
    pub fn forward(&self, tape: &mut Tape, x: &Tensor) -> Tensor {
        ops::linear(tape, x, &self.weight, Some(&self.bias))
    }

    /// [`forward`](Self::forward) for an op that reads 16 bits in mixed precision: the result then has as many.
    pub fn forward_operand(&self, tape: &mut Tape, x: &Tensor) -> Tensor {
        ops::linear_operand(tape, x, &self.weight, &self.bias)
    }

    /// `gelu(forward(x))` in one kernel, for another linear layer to read: in mixed precision the result has
    /// 16 bits.
    pub fn forward_gelu(&self, tape: &mut Tape, x: &Tensor) -> Tensor {
        ops::linear_gelu(tape, x, &self.weight, &self.bias)
    }

    /// `residual + keep[sample] · forward(x)` in one kernel.
    pub fn forward_residual(
        &self,
        tape: &mut Tape,
        x: &Tensor,
        residual: &Tensor,
        keep: Option<&Tensor>,
    ) -> Tensor {
        ops::linear_residual(tape, x, &self.weight, &self.bias, residual, keep)
    }
}

/// Layer normalisation over the last axis.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl LayerNorm {
    /// `torch.nn.LayerNorm`'s default.
    const EPS: f32 = 1e-5;

    /// A layer for `channels` channels that at first only normalises.
    pub fn new(scope: ParameterScope<'_>, channels: usize) -> Self {
        Self::with_eps(scope, channels, Self::EPS)
    }

    /// A layer that adds `eps` to the variance.
    pub fn with_eps(mut scope: ParameterScope<'_>, channels: usize, eps: f32) -> Self {
        Self {
            weight: scope.create("weight", [channels], Init::Constant(1.0)),
            bias: scope.create("bias", [channels], Init::Constant(0.0)),
            eps,
        }
    }

    /// `x`: `[.., channels]` → the same shape.
    pub fn forward(&self, tape: &mut Tape, x: &Tensor) -> Tensor {
        ops::layer_norm(tape, x, &self.weight, &self.bias, self.eps)
    }

    /// [`forward`](Self::forward) for linear layers only to read: in mixed precision the result has 16 bits.
    pub fn forward_operand(&self, tape: &mut Tape, x: &Tensor) -> Tensor {
        ops::layer_norm_operand(tape, x, &self.weight, &self.bias, self.eps)
    }
}

/// Batch normalisation over all axes but the last, and the rectifier after it.
#[derive(Debug)]
pub struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
}

impl BatchNorm {
    /// A layer for `channels` channels that at first only normalises.
    pub fn new(mut scope: ParameterScope<'_>, channels: usize) -> Self {
        Self {
            weight: scope.create("weight", [channels], Init::Constant(1.0)),
            bias: scope.create("bias", [channels], Init::Constant(0.0)),
            running_mean: scope.create_state("running_mean", [channels], Init::Constant(0.0)),
            running_var: scope.create_state("running_var", [channels], Init::Constant(1.0)),
        }
    }

    /// `relu(normalised x)`, `[.., channels]` → the same shape.
    pub fn forward_relu(&self, tape: &mut Tape, x: &Tensor) -> Tensor {
        let running = Running { mean: &self.running_mean, var: &self.running_var };
        let settings = ops::BatchNorm { relu: true, ..ops::BatchNorm::default() };
        ops::batch_norm(tape, x, &self.weight, &self.bias, running, settings)
    }
}

/// Normalisation of groups of channels over all pixels of an image.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
}

impl GroupNorm {
    /// A layer for `channels` channels in 32 groups that at first only normalises.
    pub fn new(mut scope: ParameterScope<'_>, channels: usize) -> Self {
        Self {
            weight: scope.create("weight", [channels], Init::Constant(1.0)),
            bias: scope.create("bias", [channels], Init::Constant(0.0)),
        }
    }

    /// The same layer at a second place: checkpoints list its parameters under both scopes.
    pub fn shared(&self, mut scope: ParameterScope<'_>) -> Self {
        scope.alias("weight", &self.weight);
        scope.alias("bias", &self.bias);
        self.clone()
    }

    /// `x`: `[B, .., channels]` → the same shape.
    pub fn forward(&self, tape: &mut Tape, x: &Tensor) -> Tensor {
        ops::group_norm(tape, x, &self.weight, &self.bias, ops::GroupNorm::default())
    }

    /// `relu(forward(x))` in one kernel.
    pub fn forward_relu(&self, tape: &mut Tape, x: &Tensor) -> Tensor {
        let options = ops::GroupNorm { relu: true, ..ops::GroupNorm::default() };
        ops::group_norm(tape, x, &self.weight, &self.bias, options)
    }
}

/// A 3×3 convolution.
#[derive(Debug)]
pub struct Conv3x3 {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Conv3x3 {
    /// A layer from `inputs` to `outputs` channels, without bias.
    pub fn new(mut scope: ParameterScope<'_>, inputs: usize, outputs: usize, init: Init) -> Self {
        Self { weight: scope.create("weight", [outputs, inputs, 3, 3], init), bias: None }
    }

    /// A layer with biases, which start at 0.
    pub fn with_bias(
        mut scope: ParameterScope<'_>,
        inputs: usize,
        outputs: usize,
        init: Init,
    ) -> Self {
        let bias = scope.create("bias", [outputs], Init::Constant(0.0));
        Self { bias: Some(bias), ..Self::new(scope, inputs, outputs, init) }
    }

    /// `x`: `[B, H, W, inputs]` → `[B, H, W, outputs]`.
    pub fn forward(&self, tape: &mut Tape, x: &Tensor) -> Tensor {
        let y = ops::conv3x3(tape, x, &self.weight);
        match &self.bias {
            Some(bias) => ops::add_bias(tape, &y, bias),
            None => y,
        }
    }
}

/// A 1×1 convolution: a fully connected layer at every pixel, with a convolution's weight shape.
#[derive(Debug)]
pub struct Conv1x1 {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Conv1x1 {
    /// A layer from `inputs` to `outputs` channels; biases start at 0.
    pub fn new(mut scope: ParameterScope<'_>, inputs: usize, outputs: usize, init: Init) -> Self {
        let bias = scope.create("bias", [outputs], Init::Constant(0.0));
        Self { bias: Some(bias), ..Self::without_bias(scope, inputs, outputs, init) }
    }

    /// A layer without bias.
    pub fn without_bias(
        mut scope: ParameterScope<'_>,
        inputs: usize,
        outputs: usize,
        init: Init,
    ) -> Self {
        Self { weight: scope.create("weight", [outputs, inputs, 1, 1], init), bias: None }
    }

    /// `x`: `[.., inputs]` → `[.., outputs]`.
    pub fn forward(&self, tape: &mut Tape, x: &Tensor) -> Tensor {
        let [outputs, inputs, ..] = *self.weight.dims() else { unreachable!("made in new") };
        ops::linear(tape, x, &self.weight.reshape([outputs, inputs]), self.bias.as_ref())
    }
}
