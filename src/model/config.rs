//! [`ModelConfig`]: what a model is made of, and the published sizes.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The `[model]` table of a recipe; keys are the official code's.
///
/// A plain Swin or Mix Transformer is a SeMask with no semantic blocks (`num_sem_blocks = [0, 0, 0, 0]`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// The decoder: `"fpn"` (Semantic FPN), `"maskformer"`, `"mask2former"`, `"fapn"` or `"msfapn"`
    /// (Mask2Former with FaPN's pixel decoder, or with both).
    pub head: Head,
    /// The encoder: `"swin"` (Swin) or `"mit"` (Mix Transformer).
    pub encoder: Encoder,
    /// Channels of the first stage. Of Swin each later stage has twice the one before; of the Mix
    /// Transformer these are the channels of an attention head in all stages.
    pub embed_dim: usize,
    /// Transformer blocks per stage.
    pub depths: Vec<usize>,
    /// Attention heads per stage.
    pub num_heads: Vec<usize>,
    /// Swin: side of the attention windows, in tokens.
    pub window_size: usize,
    /// Mix Transformer: per stage, side of the squares of tokens that attention sees as one.
    pub sr_ratios: Vec<usize>,
    /// Side of the semantic attention's windows, in tokens.
    pub sem_window_size: usize,
    /// Semantic blocks per stage; 0 leaves the stage a plain Swin stage.
    pub num_sem_blocks: Vec<usize>,
    /// Per stage: whether semantic attention works inside windows. Absent: the official rule,
    /// [`ModelConfig::semantic_windows`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub windowed: Option<Vec<bool>>,
    /// Classes that can be predicted.
    pub num_classes: usize,
    /// Width of a block's MLP, in units of its channels.
    pub mlp_ratio: usize,
    /// Rate of stochastic depth in the last block; it grows linearly from 0 in the first.
    pub drop_path_rate: f32,
    /// Whether a learned absolute position embedding is added to the patches.
    pub ape: bool,
    /// Side of the pictures that `ape` was trained on, in pixels.
    pub pretrain_img_size: usize,
    /// Channels of the head.
    pub channels: usize,
    /// How the convolutions of Semantic FPN start.
    pub head_init: HeadInit,
    /// Semantic FPN: dropout of whole channels before the classifier. MaskFormer: dropout in its transformer
    /// decoder. The others have none.
    pub dropout: f32,
    /// Dropout inside semantic attention; the official code has 0.1 hard-coded.
    pub sem_dropout: f32,
    /// How the last layer of semantic attention starts.
    pub sem_res_init: SemResInit,
    /// Heads that find masks: how many in a picture.
    pub num_queries: usize,
    /// Heads that find masks: attention heads.
    pub nheads: usize,
    /// Heads that find masks: width of an MLP of the transformer decoder.
    pub dim_feedforward: usize,
    /// Heads that find masks: layers of the transformer decoder. `0`: as published, 6 for MaskFormer and 9 for
    /// the others (which detectron2 calls 10, with the prediction before the first layer).
    pub dec_layers: usize,
    /// Mask2Former and MSFaPN: layers of the pixel decoder's transformer.
    pub enc_layers: usize,
    /// Mask2Former and MSFaPN: width of an MLP of the pixel decoder's transformer.
    pub enc_dim_feedforward: usize,
    /// Mean of a channel (red, green, blue), in 0..255, that is subtracted from pictures.
    pub mean: [f32; 3],
    /// Standard deviation of a channel, in 0..255, that pictures are divided by.
    pub std: [f32; 3],
}

/// An encoder, with or without semantic layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Encoder {
    /// Swin transformer (Liu et al. 2021, <https://arxiv.org/abs/2103.14030>).
    Swin,
    /// Mix Transformer, that of SegFormer (Xie et al. 2021, <https://arxiv.org/abs/2105.15203>).
    Mit,
}

/// A decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Head {
    /// Semantic FPN (Kirillov et al. 2019, <https://arxiv.org/abs/1901.02446>).
    Fpn,
    /// MaskFormer (Cheng et al. 2021, <https://arxiv.org/abs/2107.06278>).
    Maskformer,
    /// Mask2Former (Cheng et al. 2022, <https://arxiv.org/abs/2112.01527>).
    Mask2former,
    /// Mask2Former with the pixel decoder of FaPN (Huang et al. 2021, <https://arxiv.org/abs/2108.07058>).
    Fapn,
    /// Mask2Former whose pixel decoder ends with FaPN's alignment.
    Msfapn,
}

impl Head {
    /// Whether it finds masks and classifies them, rather than classify pixels.
    pub fn finds_masks(self) -> bool {
        self != Self::Fpn
    }
}

/// How the last layer of semantic attention, `mlp_res`, starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SemResInit {
    /// `"normal"`: with deviation 0.02, as in the official SeMask-FPN.
    Normal,
    /// `"zero"`: as in the official code of the heads that find masks. The gate before it starts at 0 too, so
    /// that neither ever gets a gradient: semantic attention only serves its loss, and does not change tokens.
    Zero,
}

/// How a head's convolutions start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum HeadInit {
    /// `"official"`: Kaiming normal by fan-out, the classifier normal with deviation 0.01. Meant for a
    /// pretrained encoder.
    Official,
    /// `"pytorch"`: uniform within ±1 / √fan-in, as PyTorch's convolutions start. These weights are
    /// smaller, and batch norm makes small weights learn faster: better when all starts from nothing.
    Pytorch,
}

impl Default for ModelConfig {
    /// SeMask-Swin-T for ADE20K.
    fn default() -> Self {
        Self {
            head: Head::Fpn,
            encoder: Encoder::Swin,
            embed_dim: 96,
            depths: vec![2, 2, 6, 2],
            num_heads: vec![3, 6, 12, 24],
            window_size: 7,
            sr_ratios: vec![8, 4, 2, 1],
            sem_window_size: 7,
            num_sem_blocks: vec![1; 4],
            windowed: None,
            num_classes: 150,
            mlp_ratio: 4,
            drop_path_rate: 0.3,
            ape: false,
            pretrain_img_size: 224,
            channels: 256,
            head_init: HeadInit::Official,
            dropout: 0.1,
            sem_dropout: 0.1,
            sem_res_init: SemResInit::Normal,
            num_queries: 100,
            nheads: 8,
            dim_feedforward: 2048,
            dec_layers: 0,
            enc_layers: 6,
            enc_dim_feedforward: 1024,
            mean: [123.675, 116.28, 103.53],
            std: [58.395, 57.12, 57.375],
        }
    }
}

/// Names that `--preset` understands, with a line about each.
pub const PRESETS: &[(&str, &str)] = &[
    ("quickstart", "2.6 M parameters, for a first run of minutes without a GPU"),
    ("semask-t", "SeMask-Swin-T with Semantic FPN, 35 M parameters"),
    ("semask-s", "SeMask-Swin-S with Semantic FPN, 56 M parameters"),
    ("semask-b", "SeMask-Swin-B with Semantic FPN, 96 M parameters"),
    ("semask-l", "SeMask-Swin-L with Semantic FPN, 211 M parameters"),
    ("semask-mit-b0", "SeMask on the Mix Transformer B0 with Semantic FPN, 7 M parameters"),
    ("semask-mit-b1", "SeMask on the Mix Transformer B1 with Semantic FPN, 18 M parameters"),
    ("semask-mit-b2", "SeMask on the Mix Transformer B2 with Semantic FPN, 29 M parameters"),
    ("semask-mit-b3", "SeMask on the Mix Transformer B3 with Semantic FPN, 49 M parameters"),
    ("semask-mit-b4", "SeMask on the Mix Transformer B4 with Semantic FPN, 66 M parameters"),
    ("semask-mit-b5", "SeMask on the Mix Transformer B5 with Semantic FPN, 87 M parameters"),
    ("swin-t", "plain Swin-T with Semantic FPN, the paper's baseline"),
    ("swin-s", "plain Swin-S with Semantic FPN"),
    ("swin-b", "plain Swin-B with Semantic FPN"),
    ("swin-l", "plain Swin-L with Semantic FPN"),
    ("mit-b0", "plain Mix Transformer B0 with Semantic FPN"),
    ("mit-b1", "plain Mix Transformer B1 with Semantic FPN"),
    ("mit-b2", "plain Mix Transformer B2 with Semantic FPN"),
    ("mit-b3", "plain Mix Transformer B3 with Semantic FPN"),
    ("mit-b4", "plain Mix Transformer B4 with Semantic FPN"),
    ("mit-b5", "plain Mix Transformer B5 with Semantic FPN"),
];

impl ModelConfig {
    /// The model of one of [`PRESETS`].
    ///
    /// # Errors
    ///
    /// When there is no such preset; the message lists those that there are.
    pub fn preset(name: &str) -> Result<Self> {
        let (family, size) = name.split_once('-').unwrap_or((name, ""));
        let num_sem_blocks = match family {
            "semask" | "quickstart" => vec![1; 4],
            "swin" | "mit" => vec![0; 4],
            _ => return Err(Self::no_such_preset(name)),
        };
        let small = Self { num_sem_blocks, ..Self::default() };
        // Sizes: configs/semask_swin/ade20k/semfpn_semask_swin_{tiny,small,base,large}_*.py
        Ok(match (family, size) {
            ("quickstart", "") => Self {
                embed_dim: 32,
                depths: vec![2; 4],
                num_heads: vec![1, 2, 4, 8],
                channels: 32,
                head_init: HeadInit::Pytorch,
                drop_path_rate: 0.0,
                ..small
            },
            ("semask", size) if size.starts_with("mit-") => Self::mit(name, &size[4..], small)?,
            ("mit", size) => Self::mit(name, size, small)?,
            (_, "t") => small,
            (_, "s") => Self { depths: vec![2, 2, 18, 2], ..small },
            (_, "b") => Self {
                embed_dim: 128,
                depths: vec![2, 2, 18, 2],
                num_heads: vec![4, 8, 16, 32],
                window_size: 12,
                sem_window_size: 12,
                ..small
            },
            (_, "l") => Self {
                embed_dim: 192,
                depths: vec![2, 2, 18, 2],
                num_heads: vec![6, 12, 24, 48],
                window_size: 12,
                sem_window_size: 12,
                ..small
            },
            _ => return Err(Self::no_such_preset(name)),
        })
    }

    /// `small` with a Mix Transformer of a size from b0 to b5, as mit_b0 to mit_b5 of SegFormer's
    /// mix_transformer.py.
    fn mit(name: &str, size: &str, small: Self) -> Result<Self> {
        let depths = match size {
            "b0" | "b1" => [2, 2, 2, 2],
            "b2" => [3, 4, 6, 3],
            "b3" => [3, 4, 18, 3],
            "b4" => [3, 8, 27, 3],
            "b5" => [3, 6, 40, 3],
            _ => return Err(Self::no_such_preset(name)),
        };
        Ok(Self {
            encoder: Encoder::Mit,
            embed_dim: if size == "b0" { 32 } else { 64 },
            depths: depths.into(),
            num_heads: vec![1, 2, 5, 8],
            drop_path_rate: 0.1,
            ..small
        })
    }

    fn no_such_preset(name: &str) -> Error {
        let names: Vec<_> = PRESETS.iter().map(|(name, _)| *name).collect();
        Error::invalid(format!("preset {name:?}"), format!("there are {}", names.join(", ")))
    }

    /// Channels of stage `i`.
    pub fn stage_channels(&self, i: usize) -> usize {
        match self.encoder {
            Encoder::Swin => self.embed_dim << i,
            Encoder::Mit => self.embed_dim * self.num_heads[i],
        }
    }

    /// The rate of stochastic depth of each block, by stage: it grows linearly over all blocks, from 0.
    pub fn drop_path_rates(&self) -> Vec<Vec<f32>> {
        let blocks: usize = self.depths.iter().sum();
        let mut rates =
            (0..blocks).map(|i| self.drop_path_rate * i as f32 / (blocks - 1).max(1) as f32);
        self.depths.iter().map(|&depth| rates.by_ref().take(depth).collect()).collect()
    }

    /// Per stage: whether semantic attention works inside windows (`true`) or over the whole map.
    ///
    /// The official rule, by which a checkpoint gives its published results. Which stages look at the whole
    /// map depends on the head's code base: with Semantic FPN the two coarse ones, if `embed_dim` is 96 or 192
    /// and there are more than 19 classes; with MaskFormer the last one; with Mask2Former the last one, if
    /// there are 150 classes; with FaPN and MSFaPN the two coarse ones.
    ///
    /// For the Mix Transformer with Semantic FPN there is no published rule: it is that of the widths to
    /// which the paper gives the whole map, the two coarse stages if there are more than 19 classes.
    pub fn semantic_windows(&self) -> Vec<bool> {
        let wide = self.encoder == Encoder::Mit || matches!(self.embed_dim, 96 | 192);
        let [third, last] = match self.head {
            Head::Fpn => [!(wide && self.num_classes > 19); 2],
            Head::Maskformer => [true, false],
            Head::Mask2former => [true, self.num_classes != 150],
            Head::Fapn | Head::Msfapn => [false; 2],
        };
        self.windowed.clone().unwrap_or_else(|| vec![true, true, third, last])
    }

    /// What the sides of pictures are padded to a multiple of: 32 for heads that find masks, else 1.
    pub fn size_divisor(&self) -> usize {
        if self.head.finds_masks() { 32 } else { 1 }
    }

    /// Layers of the transformer decoder.
    pub fn decoder_layers(&self) -> usize {
        match (self.dec_layers, self.head) {
            (0, Head::Maskformer) => 6,
            (0, _) => 9,
            (layers, _) => layers,
        }
    }

    /// Refuses what cannot be built.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] that names the key.
    pub fn validate(&self) -> Result<()> {
        let wrong = |key: &str, reason: String| Err(Error::invalid(format!("model.{key}"), reason));
        let four = [
            ("depths", self.depths.len()),
            ("num_heads", self.num_heads.len()),
            ("num_sem_blocks", self.num_sem_blocks.len()),
            ("sr_ratios", self.sr_ratios.len()),
            ("windowed", self.windowed.as_ref().map_or(4, Vec::len)),
        ];
        for (key, len) in four {
            if len != 4 {
                return wrong(key, format!("has {len} entries but there are 4 stages"));
            }
        }
        if !(2..=255).contains(&self.num_classes) {
            return wrong("num_classes", format!("{} is not in 2..=255", self.num_classes));
        }
        if self.embed_dim == 0 || self.embed_dim > 4096 {
            return wrong("embed_dim", format!("{} is not in 1..=4096", self.embed_dim));
        }
        for (i, (&heads, &depth)) in self.num_heads.iter().zip(&self.depths).enumerate() {
            let channels = self.stage_channels(i);
            if heads == 0 || !channels.is_multiple_of(heads) {
                return wrong(
                    "num_heads",
                    format!("stage {i} has {channels} channels, not a multiple of {heads} heads"),
                );
            }
            if self.encoder == Encoder::Mit && !self.embed_dim.is_multiple_of(4) {
                return wrong("embed_dim", format!("{} is no multiple of 4", self.embed_dim));
            }
            if !(1..=16).contains(&self.sr_ratios[i]) {
                return wrong("sr_ratios", format!("{} is not in 1..=16", self.sr_ratios[i]));
            }
            if channels / heads > 64 {
                return wrong(
                    "num_heads",
                    format!(
                        "stage {i} has heads of {} channels, at most 64 work",
                        channels / heads
                    ),
                );
            }
            if depth == 0 || depth > 256 {
                return wrong("depths", format!("stage {i} has {depth} blocks, not 1..=256"));
            }
        }
        for (key, size) in
            [("window_size", self.window_size), ("sem_window_size", self.sem_window_size)]
        {
            if !(2..=32).contains(&size) {
                return wrong(key, format!("{size} is not in 2..=32"));
            }
        }
        if self.head.finds_masks() {
            // Groups of 32 channels are normalised, and four make a vector.
            if !self.channels.is_multiple_of(32) || self.channels > 1024 {
                let reason = format!("{} is no multiple of 32 up to 1024", self.channels);
                return wrong("channels", reason);
            }
            let head = self.channels / self.nheads.max(1);
            if self.nheads * head != self.channels || !head.is_multiple_of(4) || head > 64 {
                return wrong(
                    "nheads",
                    format!(
                        "{} channels do not make {} heads of a multiple of 4 channels up to 64",
                        self.channels, self.nheads
                    ),
                );
            }
            for (key, value, most) in [
                ("num_queries", self.num_queries, 1024),
                ("dim_feedforward", self.dim_feedforward, 1 << 16),
                ("enc_dim_feedforward", self.enc_dim_feedforward, 1 << 16),
                ("enc_layers", self.enc_layers, 64),
                ("dec_layers", self.decoder_layers(), 64),
            ] {
                if value == 0 || value > most {
                    return wrong(key, format!("{value} is not in 1..={most}"));
                }
            }
        }
        let counts = [
            ("channels", self.channels, 4096),
            ("mlp_ratio", self.mlp_ratio, 16),
            ("pretrain_img_size", self.pretrain_img_size, 4096),
        ];
        for (key, value, most) in counts {
            if value == 0 || value > most {
                return wrong(key, format!("{value} is not in 1..={most}"));
            }
        }
        let rates = [
            ("drop_path_rate", self.drop_path_rate),
            ("dropout", self.dropout),
            ("sem_dropout", self.sem_dropout),
        ];
        for (key, rate) in rates {
            if !(0.0..1.0).contains(&rate) {
                return wrong(key, format!("{rate} is not in 0..1"));
            }
        }
        if self.std.iter().any(|s| !(s.is_finite() && *s > 0.0))
            || self.mean.iter().any(|m| !m.is_finite())
        {
            return wrong("std", "mean must be finite and std above 0".into());
        }
        Ok(())
    }
}
