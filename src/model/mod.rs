//! Networks: configuration and presets, the encoder, the heads.
//!
//! Model code never touches the GPU: it appends dispatches to a [`Tape`].

mod config;
mod count;
mod deform_decoder;
mod fpn;
mod pixel_decoder;
mod prediction;
mod semantic;
mod swin;

pub use config::{Head, HeadInit, ModelConfig, PRESETS};
pub use count::{Layer, MultiplyAdds, Part};
pub use deform_decoder::{
    DeformEncoderConfig, DeformEncoderLayer, DeformPixelDecoder, MsDeformAttention,
};
pub use fpn::{FpnHead, semantic_branch};
pub use pixel_decoder::{FeatureAlign, FpnPixelDecoder, PixelFeatures};
pub use prediction::{Prediction, Predictions};
pub use semantic::{SemanticAttention, SemanticLayer};
pub use swin::{Features, PatchEmbed, PatchMerging, Swin, SwinBlock, WindowAttention};

use crate::nn::{ParameterScope, Parameters};
use crate::ops::{self, CrossEntropy};
use crate::{Tape, Tensor};

/// An encoder with a head: pictures to class logits.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    parameters: Parameters,
    backbone: Swin,
    decode_head: FpnHead,
}

/// The two losses of a training step, and their sum.
#[derive(Debug)]
pub struct Losses {
    /// `[1]`: `ce + cate`.
    pub total: Tensor,
    /// `[1]`: cross entropy of the prediction.
    pub ce: Tensor,
    /// `[1]`: cross entropy of the summed priors times its weight; none for a plain Swin.
    pub cate: Option<Tensor>,
    /// `[1]`: percent of all pixels that are predicted right; ignored ones count as wrong.
    pub accuracy: Tensor,
}

/// How the losses of a training step are weighed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossSettings {
    /// Weight of the priors' cross entropy.
    pub cate_w: f32,
    /// Online hard example mining: how many pixels per image count.
    pub ohem_min_kept: Option<usize>,
}

impl Default for LossSettings {
    fn default() -> Self {
        Self { cate_w: 0.4, ohem_min_kept: None }
    }
}

impl Model {
    /// The model of `config`. Allocates nothing: its [`parameters`](Self::parameters) get their
    /// values later.
    ///
    /// # Errors
    ///
    /// When `config` is not [valid](ModelConfig::validate).
    pub fn new(config: &ModelConfig) -> crate::Result<Self> {
        config.validate()?;
        let mut parameters = Parameters::new();
        let mut root: ParameterScope<'_> = parameters.root();
        let backbone = Swin::new(root.at("backbone"), config);
        let decode_head = FpnHead::new(root.at("decode_head"), config);
        Ok(Self { config: config.clone(), parameters, backbone, decode_head })
    }

    /// What the model is made of.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Its parameters and states.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The encoder alone.
    pub fn backbone(&self) -> &Swin {
        &self.backbone
    }

    /// `image`: normalised, `[B, H, W, 3]`, any size → class logits `[B, ⌈H / 4⌉, ⌈W / 4⌉, K]`,
    /// before softmax.
    pub fn forward(&self, tape: &mut Tape, image: &Tensor) -> Tensor {
        let features = tape.scope("backbone", |tape| self.backbone.forward(tape, image));
        tape.scope("decode_head", |tape| self.decode_head.forward(tape, &features.maps))
    }

    /// Logits, and the summed priors where there are semantic layers, both at stride 4.
    pub fn forward_with_prior(&self, tape: &mut Tape, image: &Tensor) -> (Tensor, Option<Tensor>) {
        let features = tape.scope("backbone", |tape| self.backbone.forward(tape, image));
        let logits =
            tape.scope("decode_head", |tape| self.decode_head.forward(tape, &features.maps));
        let prior = semantic_branch(tape, &features);
        (logits, prior)
    }

    /// The losses of a batch.
    ///
    /// - `image`: normalised, `[B, H, W, 3]`
    /// - `labels`: class ids of `[B, H, W]`, four to a word, 255 where ignored
    pub fn losses(
        &self,
        tape: &mut Tape,
        image: &Tensor,
        labels: &Tensor,
        settings: LossSettings,
    ) -> Losses {
        let (height, width) = (image.dims()[1], image.dims()[2]);
        let (logits, prior) = self.forward_with_prior(tape, image);
        let plain = CrossEntropy { height, width, weight: 1.0, ohem_min_kept: None };
        let main = CrossEntropy { ohem_min_kept: settings.ohem_min_kept, ..plain };
        let output = ops::cross_entropy(tape, &logits, labels, main);
        let cate = prior.map(|prior| {
            let auxiliary = CrossEntropy { weight: settings.cate_w, ..plain };
            ops::cross_entropy(tape, &prior, labels, auxiliary).loss
        });
        let total = match &cate {
            Some(cate) => ops::add(tape, &output.loss, cate),
            None => output.loss.clone(),
        };
        Losses { total, ce: output.loss, cate, accuracy: output.accuracy }
    }
}
