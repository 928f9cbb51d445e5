//! What a mask-classification head says: [`Predictions`].

use crate::Tensor;

/// What one layer of a transformer decoder says of each query.
#[derive(Clone, Debug)]
pub struct Prediction {
    /// `[B, Q, K + 1]`, before softmax; the last class is "no object".
    pub class_logits: Tensor,
    /// `[B, Q, h, w]` at stride 4 of the padded picture, before the sigmoid.
    pub mask_logits: Tensor,
}

/// What a mask-classification model says of a batch.
#[derive(Clone, Debug)]
pub struct Predictions {
    /// Of each decoder layer; the last is the prediction, the others are auxiliary.
    pub layers: Vec<Prediction>,
    /// `[B, h, w, K]` at stride 4: the summed class maps before they are resized to the padded picture.
    /// None for a plain Swin.
    pub prior: Option<Tensor>,
}
