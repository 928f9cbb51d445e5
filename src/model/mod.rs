//! Networks: configuration and presets, the encoder, the heads.
//!
//! Model code never touches the GPU: it appends dispatches to a [`Tape`].

mod config;
mod count;
mod criterion;
mod deform_decoder;
mod fpn;
mod mask_head;
mod mit;
mod pixel_decoder;
mod prediction;
mod query_decoder;
mod semantic;
mod swin;

pub use config::{Encoder, Head, HeadInit, ModelConfig, PRESETS, SemResInit};
pub use count::{Layer, MultiplyAdds, Part};
pub use criterion::{GivenPoints, LayerLosses, MaskSettings, PointSettings, SetLosses, set_losses};
pub use deform_decoder::{
    DeformEncoderConfig, DeformEncoderLayer, DeformPixelDecoder, MsDeformAttention,
};
pub use fpn::{FpnHead, semantic_branch};
pub use mask_head::MaskHead;
pub use mit::{MixBlock, MixTransformer, OverlapPatchEmbed, ReducedAttention};
pub use pixel_decoder::{FeatureAlign, FpnPixelDecoder, PixelFeatures};
pub use prediction::{Prediction, Predictions};
pub use query_decoder::{MaskedQueryDecoder, PlainQueryDecoder, QueryDecoderConfig};
pub use semantic::{SemanticAttention, SemanticLayer};
pub use swin::{Features, PatchEmbed, PatchMerging, Swin, SwinBlock, WindowAttention};

use crate::nn::{Init, ParameterScope, Parameters};
use crate::ops::{self, CrossEntropy, Image};
use crate::{Tape, Tensor};

/// An encoder with a head: pictures to class logits.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    parameters: Parameters,
    backbone: Backbone,
    decoder: Decoder,
}

/// An encoder: a picture to maps of strides 4, 8, 16 and 32.
#[derive(Debug)]
pub enum Backbone {
    /// Swin, with or without semantic layers.
    Swin(Box<Swin>),
    /// The Mix Transformer, with or without them.
    Mit(MixTransformer),
}

impl Backbone {
    fn new(scope: ParameterScope<'_>, config: &ModelConfig) -> Self {
        match config.encoder {
            Encoder::Swin => Self::Swin(Box::new(Swin::new(scope, config))),
            Encoder::Mit => Self::Mit(MixTransformer::new(scope, config)),
        }
    }

    /// `image`: pictures of any size, or a tensor of normalised ones, `[B, H, W, 3]`.
    pub fn forward(&self, tape: &mut Tape, image: impl Into<Image>) -> Features {
        match self {
            Self::Swin(swin) => swin.forward(tape, image.into()),
            Self::Mit(mit) => mit.forward(tape, image.into()),
        }
    }
}

#[derive(Debug)]
enum Decoder {
    Fpn(Box<FpnHead>),
    Mask(Box<MaskHead>),
}

/// Weight of "no object" in the class loss of heads that find masks; published checkpoints carry it.
const NO_OBJECT: f32 = 0.1;

/// The losses of a training step, each times its weight, and their sum.
#[derive(Debug)]
pub struct Losses {
    /// `[1]`: the sum.
    pub total: Tensor,
    /// `[1]`: cross entropy of the prediction, or of the classes of the last layer's queries.
    pub ce: Tensor,
    /// `[1]`: cross entropy of the summed priors; none for a plain Swin.
    pub cate: Option<Tensor>,
    /// `[1]`: percent of all pixels that are predicted right; ignored ones count as wrong. None for heads
    /// that find masks.
    pub accuracy: Option<Tensor>,
    /// Of each layer of a head that finds masks, the last one at the end.
    pub layers: Vec<LayerLosses>,
}

impl Losses {
    /// Every term but [`ce`](Self::ce) and [`cate`](Self::cate): its name, as detectron2's logs have it, the
    /// tensor that it is in, and its place there.
    pub fn more_terms(&self) -> Vec<(String, &Tensor, usize)> {
        let mut terms = Vec::new();
        for (i, layer) in self.layers.iter().enumerate() {
            let last = i + 1 == self.layers.len();
            let name = |term: &str| if last { term.to_owned() } else { format!("{term}_{i}") };
            if !last {
                terms.push((name("loss_ce"), &layer.class, 0));
            }
            terms.push((name("loss_mask"), &layer.masks, 0));
            terms.push((name("loss_dice"), &layer.masks, 1));
        }
        terms
    }
}

/// How the losses of a training step are weighed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossSettings {
    /// Weight of the priors' cross entropy.
    pub cate_w: f32,
    /// Online hard example mining: how many pixels per image count. Not for heads that find masks.
    pub ohem_min_kept: Option<usize>,
    /// For heads that find masks.
    pub masks: MaskSettings,
}

impl Default for LossSettings {
    fn default() -> Self {
        Self { cate_w: 0.4, ohem_min_kept: None, masks: MaskSettings::default() }
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
        let backbone = Backbone::new(root.at("backbone"), config);
        let decoder = if config.head.finds_masks() {
            let classes = config.num_classes + 1;
            let init = Init::OnesBut { last: NO_OBJECT };
            root.at("criterion").create_state("empty_weight", [classes], init);
            Decoder::Mask(Box::new(MaskHead::new(root.at("sem_seg_head"), config)))
        } else {
            Decoder::Fpn(Box::new(FpnHead::new(root.at("decode_head"), config)))
        };
        parameters.change_init(|name, fan_in| encoder_init(config, name, fan_in));
        Ok(Self { config: config.clone(), parameters, backbone, decoder })
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
    pub fn backbone(&self) -> &Backbone {
        &self.backbone
    }

    /// `image`: pictures of any size, or a tensor of normalised ones, `[B, H, W, 3]` → class logits
    /// `[B, ⌈H / 4⌉, ⌈W / 4⌉, K]`, before softmax.
    ///
    /// # Panics
    ///
    /// If the head finds masks.
    #[track_caller]
    pub fn forward(&self, tape: &mut Tape, image: impl Into<Image>) -> Tensor {
        self.maps_and_logits(tape, image.into()).1
    }

    /// Logits, and the summed priors where there are semantic layers, both at stride 4.
    ///
    /// # Panics
    ///
    /// If the head finds masks.
    #[track_caller]
    pub fn forward_with_prior(
        &self,
        tape: &mut Tape,
        image: impl Into<Image>,
    ) -> (Tensor, Option<Tensor>) {
        let (features, logits) = self.maps_and_logits(tape, image.into());
        (logits, semantic_branch(tape, &features, false))
    }

    #[track_caller]
    fn maps_and_logits(&self, tape: &mut Tape, image: Image) -> (Features, Tensor) {
        let Decoder::Fpn(head) = &self.decoder else {
            panic!("{:?} finds masks", self.config.head)
        };
        let features = tape.scope("backbone", |tape| self.backbone.forward(tape, image));
        let logits = tape.scope("decode_head", |tape| head.forward(tape, &features.maps));
        (features, logits)
    }

    /// What a head that finds masks makes of `image`: pictures of any size, or a tensor of normalised ones,
    /// `[B, H, W, 3]`. It is padded with zeros, right and below, to multiples of 32.
    ///
    /// # Panics
    ///
    /// If the head finds none.
    #[track_caller]
    pub fn forward_masks(&self, tape: &mut Tape, image: impl Into<Image>) -> Predictions {
        let Decoder::Mask(head) = &self.decoder else {
            panic!("{:?} finds no masks", self.config.head)
        };
        let image = image.into().padded(self.config.size_divisor());
        let features = tape.scope("backbone", |tape| self.backbone.forward(tape, image));
        let layers = tape.scope("sem_seg_head", |tape| head.forward(tape, &features.maps));
        let prior = semantic_branch(tape, &features, true);
        Predictions { layers, prior }
    }

    /// The losses of a batch.
    ///
    /// - `image`: pictures, or a tensor of normalised ones, `[B, H, W, 3]`
    /// - `labels`: class ids of `[B, H, W]`, four to a word, 255 where ignored
    ///
    /// # Panics
    ///
    /// If H or W is no multiple of [`size_divisor`](ModelConfig::size_divisor).
    #[track_caller]
    pub fn losses(
        &self,
        tape: &mut Tape,
        image: impl Into<Image>,
        labels: &Tensor,
        settings: LossSettings,
    ) -> Losses {
        let image = image.into();
        let size @ [_, height, width] = image.dims();
        if self.config.head.finds_masks() {
            let divisor = self.config.size_divisor();
            let fits = height.is_multiple_of(divisor) && width.is_multiple_of(divisor);
            assert!(fits, "losses: {size:?} is not padded to multiples of {divisor}");
            let predictions = self.forward_masks(tape, image);
            let SetLosses { total, layers, cate } = tape.scope("criterion", |tape| {
                set_losses(tape, &predictions, labels, size, settings.masks, settings.cate_w, None)
            });
            let ce = layers.last().expect("a head has layers").class.clone();
            return Losses { total, ce, cate, accuracy: None, layers };
        }
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
        let (ce, accuracy) = (output.loss, Some(output.accuracy));
        Losses { total, ce, cate, accuracy, layers: Vec::new() }
    }
}

/// How the encoder starts where that depends on the head.
fn encoder_init(config: &ModelConfig, name: &str, fan_in: Option<usize>) -> Option<Init> {
    let name = name.strip_prefix("backbone.")?;
    if name.contains(".mlp_res.") && config.sem_res_init == SemResInit::Zero {
        return Some(Init::Constant(0.0));
    }
    // The official initialiser of Swin is not called by the code of these heads: all is as PyTorch's
    // layers, and semantic attention's own, start out.
    let by_default = config.head.finds_masks() && config.encoder == Encoder::Swin;
    let fan_in = fan_in.filter(|_| by_default)?;
    let semantic = name.contains(".class_injection.");
    match name.ends_with(".bias") {
        _ if name.contains(".mlp_res.") => None,
        true if semantic => Some(Init::Constant(0.0)),
        false if semantic => Some(Init::kaiming_normal(fan_in)),
        _ => Some(Init::pytorch(fan_in)),
    }
}
