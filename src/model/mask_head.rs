//! Mask-classification heads: a pixel decoder and a transformer decoder.

use super::{
    DeformEncoderConfig, DeformPixelDecoder, FpnPixelDecoder, Head, MaskedQueryDecoder,
    ModelConfig, PlainQueryDecoder, Prediction, QueryDecoderConfig,
};
use crate::nn::ParameterScope;
use crate::{Tape, Tensor};

/// MaskFormer, Mask2Former, FaPN or MSFaPN: finds masks and a class for each.
#[derive(Debug)]
pub struct MaskHead {
    pixel_decoder: PixelDecoder,
    predictor: QueryDecoder,
}

#[derive(Debug)]
enum PixelDecoder {
    Fpn(Box<FpnPixelDecoder>),
    Deform(Box<DeformPixelDecoder>),
}

#[derive(Debug)]
enum QueryDecoder {
    Plain(PlainQueryDecoder),
    Masked(MaskedQueryDecoder),
}

impl MaskHead {
    /// The head of `config`, one that [finds masks](Head::finds_masks).
    pub fn new(mut scope: ParameterScope<'_>, config: &ModelConfig) -> Self {
        let in_channels = [0, 1, 2, 3].map(|i| config.stage_channels(i));
        let (dim, heads) = (config.channels, config.nheads);
        let encoder = DeformEncoderConfig {
            dim,
            heads,
            ffn: config.enc_dim_feedforward,
            layers: config.enc_layers,
        };
        let align = matches!(config.head, Head::Fapn | Head::Msfapn);
        let pixels = scope.at("pixel_decoder");
        let pixel_decoder = match config.head {
            Head::Maskformer | Head::Fapn => {
                let decoder = FpnPixelDecoder::new(pixels, in_channels, dim, dim, align);
                PixelDecoder::Fpn(Box::new(decoder))
            }
            Head::Mask2former | Head::Msfapn => {
                let decoder = DeformPixelDecoder::new(pixels, in_channels, encoder, dim, align);
                PixelDecoder::Deform(Box::new(decoder))
            }
            Head::Fpn => panic!("MaskHead: {:?} finds no masks", config.head),
        };
        let decoder = QueryDecoderConfig {
            dim,
            classes: config.num_classes,
            queries: config.num_queries,
            heads,
            ffn: config.dim_feedforward,
            layers: config.decoder_layers(),
            dropout: config.dropout,
        };
        let queries = scope.at("predictor");
        let predictor = match config.head {
            Head::Maskformer => {
                QueryDecoder::Plain(PlainQueryDecoder::new(queries, in_channels[3], decoder))
            }
            _ => QueryDecoder::Masked(MaskedQueryDecoder::new(queries, decoder)),
        };
        Self { pixel_decoder, predictor }
    }

    /// `maps`: strides 4, 8, 16 and 32 → the prediction of each layer of the transformer decoder, the last
    /// one the head's.
    pub fn forward(&self, tape: &mut Tape, maps: &[Tensor]) -> Vec<Prediction> {
        let features = tape.scope("pixel_decoder", |tape| match &self.pixel_decoder {
            PixelDecoder::Fpn(decoder) => decoder.forward(tape, maps),
            PixelDecoder::Deform(decoder) => decoder.forward(tape, maps),
        });
        tape.scope("predictor", |tape| match &self.predictor {
            QueryDecoder::Plain(decoder) => {
                let coarsest = maps.last().expect("four maps");
                decoder.forward(tape, coarsest, &features.mask_features)
            }
            QueryDecoder::Masked(decoder) => decoder.forward(tape, &features),
        })
    }
}
