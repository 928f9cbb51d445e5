//! What a model costs: multiply-adds in closed form.

use super::{Encoder, Head, Model, ModelConfig};

/// Multiply-adds of a forward pass over one picture, as matrix products and convolutions; norms,
/// softmax and resizing are left out, as counters of other frameworks do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MultiplyAdds {
    /// Of the encoder: what is not in `semantic`.
    pub transformer: u64,
    /// Of the encoder's semantic layers.
    pub semantic: u64,
    /// Of the head.
    pub head: u64,
}

impl MultiplyAdds {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.transformer + self.semantic + self.head
    }
}

/// A part of the network as [`ModelConfig::layers`] lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Where its parameters are: what their names start with.
    pub name: String,
    /// Height, width and channels of what it makes of one picture.
    pub shape: [usize; 3],
    /// What it is made of, in words.
    pub note: String,
    /// What it belongs to.
    pub part: Part,
    /// Of one picture.
    pub multiply_adds: u64,
}

/// A part of [`MultiplyAdds`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The encoder, but for its semantic layers.
    Transformer,
    /// A semantic layer.
    Semantic,
    /// The head.
    Head,
}

impl Model {
    /// Multiply-adds of a forward pass over one picture; see [`ModelConfig::multiply_adds`].
    pub fn multiply_adds(&self, height: usize, width: usize) -> MultiplyAdds {
        self.config.multiply_adds(height, width)
    }
}

impl ModelConfig {
    /// Multiply-adds of a forward pass over one picture of `height` × `width` pixels.
    ///
    /// Counted like the official model, which multiplies the tokens that pad the last windows too,
    /// so that the numbers can be compared; the crate's kernels leave some of those out.
    pub fn multiply_adds(&self, height: usize, width: usize) -> MultiplyAdds {
        let mut count = MultiplyAdds { transformer: 0, semantic: 0, head: 0 };
        for layer in self.layers(height, width) {
            *match layer.part {
                Part::Transformer => &mut count.transformer,
                Part::Semantic => &mut count.semantic,
                Part::Head => &mut count.head,
            } += layer.multiply_adds;
        }
        count
    }

    /// The network in the order in which it computes, with what each part makes of one picture of
    /// `height` × `width` pixels. Every parameter belongs to one of them.
    pub fn layers(&self, height: usize, width: usize) -> Vec<Layer> {
        let mut layers = Vec::new();
        let sizes = self.stage_sizes(height, width);
        match self.encoder {
            Encoder::Swin => self.swin_layers(&sizes, &mut layers),
            Encoder::Mit => self.mit_layers(&sizes, &mut layers),
        }
        match self.head.finds_masks() {
            false => self.fpn_layers(&sizes, &mut layers),
            true => self.mask_layers(&sizes, &mut layers),
        }
        layers
    }

    fn fpn_layers(&self, sizes: &[[usize; 2]], layers: &mut Vec<Layer>) {
        let mut add = |name: String, shape: [usize; 3], note: String, multiply_adds| {
            layers.push(Layer { name, shape, note, part: Part::Head, multiply_adds });
        };
        let [height, width] = sizes[0];
        for (i, &[down, across]) in sizes.iter().enumerate() {
            // Each unit but the first sees a map of twice the side.
            let unit = |k: usize| {
                let inputs = if k == 0 { self.stage_channels(i) } else { self.channels };
                product(&[(down * across) << (2 * k), 9, inputs, self.channels])
            };
            let units = i.max(1);
            let adds = (0..units).map(unit).sum();
            let doubled = 1 << i;
            let shape = [down * doubled, across * doubled, self.channels];
            let note = format!("{units} of 3 × 3, norm, rectifier");
            add(format!("decode_head.scale_heads.{i}"), shape, note, adds);
        }
        let adds = product(&[height, width, self.channels, self.num_classes]);
        let shape = [height, width, self.num_classes];
        add("decode_head.conv_seg".into(), shape, "1 × 1".into(), adds);
    }

    fn mask_layers(&self, sizes: &[[usize; 2]], layers: &mut Vec<Layer>) {
        let (dim, queries, classes) = (self.channels, self.num_queries, self.num_classes);
        let mut add = |name: &str, shape: [usize; 3], note: String, multiply_adds| {
            let name = format!("sem_seg_head.{name}");
            layers.push(Layer { name, shape, note, part: Part::Head, multiply_adds });
        };
        let pixels = |i: usize| sizes[i].iter().product::<usize>();
        let map = |i: usize, channels: usize| [sizes[i][0], sizes[i][1], channels];
        let convolution =
            |i: usize, inputs: usize, side: usize| product(&[pixels(i), side * side, inputs, dim]);

        // The pixel decoder.
        let deform = matches!(self.head, Head::Mask2former | Head::Msfapn);
        let aligned = matches!(self.head, Head::Fapn | Head::Msfapn);
        if deform {
            for j in 0..3 {
                let (name, i) = (format!("pixel_decoder.input_proj.{j}"), 3 - j);
                let adds = convolution(i, self.stage_channels(i), 1);
                add(&name, map(i, dim), "1 × 1, group norm".into(), adds);
            }
            let tokens = pixels(1) + pixels(2) + pixels(3);
            // Three maps, four places in each, two coordinates and a weight.
            let sampling = 3 * self.nheads * 3 * 4;
            let layer = product(&[tokens, dim, sampling + 2 * dim + 2 * self.enc_dim_feedforward]);
            let note = format!("{} layers of {} heads", self.enc_layers, self.nheads);
            let adds = self.enc_layers as u64 * layer;
            add("pixel_decoder.transformer", [tokens, 1, dim], note, adds);
        } else {
            let adds = convolution(3, self.stage_channels(3), 3);
            let note = "3 × 3, group norm, rectifier".into();
            add("pixel_decoder.layer_4", map(3, dim), note, adds);
        }
        for i in (0..if deform { 1 } else { 3 }).rev() {
            let name = |part: &str| format!("pixel_decoder.{part}_{}", i + 1);
            let adds = convolution(i, self.stage_channels(i), 1);
            add(&name("adapter"), map(i, dim), "1 × 1, group norm".into(), adds);
            if aligned {
                // Guide; offsets and masks of eight groups; the convolution at those places.
                let adds = product(&[pixels(i), 2 * dim + 9 * 27 * 8 + 9 * dim, dim]);
                add(&name("align"), map(i, dim), "3 × 3 at learned places".into(), adds);
            }
            let note = "3 × 3, group norm, rectifier".into();
            add(&name("layer"), map(i, dim), note, convolution(i, dim, 3));
        }
        let side = if deform { 1 } else { 3 };
        let adds = convolution(0, dim, side);
        add("pixel_decoder.mask_features", map(0, dim), format!("{side} × {side}"), adds);

        // The query decoder.
        let depth = self.decoder_layers();
        let of_queries = [queries, 1, dim];
        let attention = |keys: usize| {
            product(&[2, queries + keys, dim, dim]) + product(&[2, queries, keys, dim])
        };
        let note = format!("{depth} layers of {} heads", self.nheads);
        let ffn = depth as u64 * product(&[2, queries, dim, self.dim_feedforward]);
        let own = depth as u64 * attention(queries);
        let predictions = if self.head == Head::Maskformer {
            let cross = depth as u64 * attention(pixels(3));
            add("predictor.transformer", of_queries, note, own + cross + ffn);
            let inputs = self.stage_channels(3);
            if inputs != dim {
                let adds = product(&[pixels(3), inputs, dim]);
                add("predictor.input_proj", map(3, dim), "1 × 1".into(), adds);
            }
            depth
        } else {
            let cross = (0..depth).map(|i| attention(pixels(3 - i % 3))).sum();
            let note = |what: &str| format!("{note}, {what}");
            let name = "predictor.transformer_cross_attention_layers";
            add(name, of_queries, note("to what the masks show"), cross);
            let name = "predictor.transformer_self_attention_layers";
            add(name, of_queries, note("of queries"), own);
            let name = "predictor.transformer_ffn_layers";
            add(name, of_queries, format!("{depth} of {} wide", self.dim_feedforward), ffn);
            for (name, rows) in
                [("decoder_norm", queries), ("query_feat", queries), ("level_embed", 3)]
            {
                add(&format!("predictor.{name}"), [rows, 1, dim], String::new(), 0);
            }
            // Queries are asked before the first layer, too.
            depth + 1
        };
        add("predictor.query_embed", of_queries, String::new(), 0);
        let times = format!("after each layer, {predictions} times");
        let adds = predictions as u64 * product(&[queries, dim, classes + 1]);
        add("predictor.class_embed", [queries, 1, classes + 1], times.clone(), adds);
        let mask = product(&[3, queries, dim, dim]) + product(&[queries, dim, pixels(0)]);
        let adds = predictions as u64 * mask;
        add("predictor.mask_embed", map(0, queries), times, adds);
    }

    fn swin_layers(&self, sizes: &[[usize; 2]], layers: &mut Vec<Layer>) {
        let ([down, across], channels) = (sizes[0], self.embed_dim);
        let adds = product(&[down, across, 3 * 4 * 4, channels]);
        let shape = [down, across, channels];
        layers.push(of_encoder("patch_embed".into(), shape, "4 × 4, norm".into(), adds));
        if self.ape {
            layers.push(of_encoder("absolute_pos_embed".into(), shape, String::new(), 0));
        }
        for (i, &depth) in self.depths.iter().enumerate() {
            let [height, width] = sizes[i];
            let channels = self.stage_channels(i);
            let shape = [height, width, channels];
            let (tokens, side) = (height * width, self.window_size);
            let inside = height.next_multiple_of(side) * width.next_multiple_of(side);
            // Queries, keys, values, projection; scores and what they weigh; two layers of the MLP.
            let block = product(&[4, inside, channels, channels])
                + product(&[2, inside, side, side, channels])
                + product(&[2 * self.mlp_ratio, tokens, channels, channels]);
            let heads = self.num_heads[i];
            let note = format!("{depth} blocks of {heads} heads, windows of {side}");
            let adds = depth as u64 * block;
            layers.push(of_encoder(format!("layers.{i}.blocks"), shape, note, adds));
            layers.extend(self.semantic_layer(i, sizes[i], format!("layers.{i}.semantic_layer")));
            layers.push(of_encoder(format!("norm{i}"), shape, String::new(), 0));
            if i + 1 < self.depths.len() {
                let [height, width] = sizes[i + 1];
                let adds = product(&[height, width, 8, channels, channels]);
                let (shape, note) = ([height, width, 2 * channels], "2 × 2 patches".into());
                layers.push(of_encoder(format!("layers.{i}.downsample"), shape, note, adds));
            }
        }
    }

    fn mit_layers(&self, sizes: &[[usize; 2]], layers: &mut Vec<Layer>) {
        for (i, &depth) in self.depths.iter().enumerate() {
            let n = i + 1;
            let [height, width] = sizes[i];
            let (tokens, channels) = (height * width, self.stage_channels(i));
            let shape = [height, width, channels];
            let (inputs, kernel) = match i {
                0 => (3, 7),
                _ => (self.stage_channels(i - 1), 3),
            };
            let adds = product(&[tokens, kernel * kernel, inputs, channels]);
            let note = format!("{kernel} × {kernel}, norm");
            layers.push(of_encoder(format!("patch_embed{n}"), shape, note, adds));

            let (side, heads) = (self.sr_ratios[i], self.num_heads[i]);
            let squares = |extent: usize| match height.min(width) < side {
                true => extent.div_ceil(side),
                false => extent / side,
            };
            let keys = squares(height) * squares(width);
            let reduction =
                if side > 1 { product(&[keys, side * side, channels, channels]) } else { 0 };
            let hidden = self.mlp_ratio * channels;
            // Queries, projection; squares; keys, values; scores and what they weigh; the MLP and the
            // convolution within.
            let block = product(&[2, tokens, channels, channels])
                + reduction
                + product(&[2, keys, channels, channels])
                + product(&[2, tokens, keys, channels])
                + product(&[2, tokens, hidden, channels])
                + product(&[9, tokens, hidden]);
            let note = format!("{depth} blocks of {heads} heads, keys of {side} × {side}");
            layers.push(of_encoder(format!("block{n}"), shape, note, depth as u64 * block));
            layers.extend(self.semantic_layer(i, sizes[i], format!("semantic_layer{n}")));
            layers.push(of_encoder(format!("norm{n}"), shape, String::new(), 0));
        }
    }

    /// The semantic layer of stage `i`, if it has one.
    fn semantic_layer(&self, i: usize, [height, width]: [usize; 2], name: String) -> Option<Layer> {
        let (channels, classes, side) =
            (self.stage_channels(i), self.num_classes, self.sem_window_size);
        let blocks = Some(self.num_sem_blocks[i]).filter(|&blocks| blocks > 0)?;
        let padded = height.next_multiple_of(side) * width.next_multiple_of(side);
        let (inside, span, note) = match self.semantic_windows()[i] {
            true => (padded, side.pow(2), format!("windows of {side}")),
            false => (height * width, height * width, "whole map".into()),
        };
        let block = product(&[2, inside, channels, classes])
            + product(&[2, inside, channels, channels])
            + product(&[inside, span, classes + channels]);
        let note = format!("{blocks} of {classes} classes, {note}");
        let layer = of_encoder(name, [height, width, channels], note, blocks as u64 * block);
        Some(Layer { part: Part::Semantic, ..layer })
    }

    /// Height and width of each stage's map.
    fn stage_sizes(&self, height: usize, width: usize) -> Vec<[usize; 2]> {
        // Heads that find masks have the picture padded.
        let divisor = self.size_divisor();
        let first = [height, width].map(|side| side.next_multiple_of(divisor).div_ceil(4));
        let halved = |size: &[usize; 2]| Some(size.map(|side| side.div_ceil(2)));
        std::iter::successors(Some(first), halved).take(self.depths.len()).collect()
    }
}

/// A layer of the encoder.
fn of_encoder(name: String, shape: [usize; 3], note: String, multiply_adds: u64) -> Layer {
    let name = format!("backbone.{name}");
    Layer { name, shape, note, part: Part::Transformer, multiply_adds }
}

/// Of numbers whose product does not fit 32 bits.
fn product(factors: &[usize]) -> u64 {
    factors.iter().map(|&f| f as u64).product()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::checkpoint::{Checkpoint, Entry};
    use crate::testing;

    fn model(preset: &str, num_classes: usize) -> Model {
        let config = ModelConfig::preset(preset).unwrap();
        Model::new(&ModelConfig { num_classes, ..config }).unwrap()
    }

    /// Of the official models, counted by PyTorch: preset, classes, parameters of all and of the
    /// encoder.
    const PARAMETERS: &[(&str, usize, usize, usize)] = &[
        ("semask-t", 150, 34_655_748, 29_526_382),
        ("semask-s", 150, 55_973_652, 50_844_286),
        ("semask-b", 150, 96_485_826, 90_250_540),
        ("semask-l", 150, 210_791_934, 202_344_808),
        ("semask-t", 19, 34_243_753, 29_148_054),
        ("semask-s", 19, 55_561_657, 50_465_958),
        ("semask-b", 19, 95_948_071, 89_746_452),
        ("semask-l", 19, 210_002_659, 201_589_200),
        ("semask-t", 171, 34_721_793, 29_587_030),
        ("semask-s", 171, 56_039_697, 50_904_934),
        ("semask-b", 171, 96_572_031, 90_331_348),
        ("semask-l", 171, 210_918_459, 202_465_936),
        // Of tools/mit_reference.py.
        ("semask-mit-b0", 150, 6_660_010, 3_668_756),
        ("mit-b0", 150, 6_310_646, 3_319_392),
        ("semask-mit-b1", 150, 18_404_874, 14_233_972),
        ("mit-b1", 150, 17_322_326, 13_151_424),
        ("semask-mit-b2", 150, 29_449_738, 25_278_836),
        ("mit-b2", 150, 28_367_190, 24_196_288),
        ("semask-mit-b3", 150, 49_325_578, 45_154_676),
        ("mit-b3", 150, 48_243_030, 44_072_128),
        ("semask-mit-b4", 150, 66_096_138, 61_925_236),
        ("mit-b4", 150, 65_013_590, 60_842_688),
        ("semask-mit-b5", 150, 86_696_458, 82_525_556),
        ("mit-b5", 150, 85_613_910, 81_443_008),
        ("semask-mit-b0", 19, 6_491_151, 3_533_564),
        ("mit-b0", 19, 6_276_979, 3_319_392),
        ("semask-mit-b1", 19, 18_101_871, 13_964_636),
        ("mit-b1", 19, 17_288_659, 13_151_424),
        ("semask-mit-b2", 19, 29_146_735, 25_009_500),
        ("mit-b2", 19, 28_333_523, 24_196_288),
        ("semask-mit-b3", 19, 49_022_575, 44_885_340),
        ("mit-b3", 19, 48_209_363, 44_072_128),
        ("semask-mit-b4", 19, 65_793_135, 61_655_900),
        ("mit-b4", 19, 64_979_923, 60_842_688),
        ("semask-mit-b5", 19, 86_393_455, 82_256_220),
        ("mit-b5", 19, 85_580_243, 81_443_008),
    ];

    /// Preset, classes, height and width, multiply-adds of the encoder and of the head.
    const MULTIPLY_ADDS: &[(&str, usize, [usize; 2], [u64; 2])] = &[
        ("semask-t", 150, [512, 512], [28_677_901_758, 12_859_736_064]),
        ("semask-t", 150, [640, 640], [43_032_089_334, 20_093_337_600]),
        ("semask-s", 150, [512, 512], [52_397_019_582, 12_859_736_064]),
        ("semask-s", 150, [640, 640], [78_963_319_542, 20_093_337_600]),
        ("semask-b", 150, [512, 512], [99_176_856_576, 15_124_660_224]),
        ("semask-b", 150, [640, 640], [156_779_570_688, 23_632_281_600]),
        ("semask-l", 150, [512, 512], [215_158_992_384, 19_654_508_544]),
        ("semask-l", 150, [640, 640], [342_300_877_824, 30_710_169_600]),
        ("semask-t", 19, [512, 512], [27_393_904_701, 12_310_282_240]),
        ("semask-t", 19, [768, 768], [58_139_292_079, 27_698_135_040]),
        ("semask-t", 19, [1024, 2048], [207_652_847_187, 98_482_257_920]),
        ("semask-s", 19, [512, 512], [51_113_022_525, 12_310_282_240]),
        ("semask-s", 19, [768, 768], [108_832_462_255, 27_698_135_040]),
        ("semask-s", 19, [1024, 2048], [393_716_348_499, 98_482_257_920]),
        ("semask-b", 19, [512, 512], [97_454_648_832, 14_575_206_400]),
        ("semask-b", 19, [768, 768], [194_904_456_192, 32_794_214_400]),
        ("semask-b", 19, [1024, 2048], [731_311_343_616, 116_601_651_200]),
        ("semask-l", 19, [512, 512], [214_085_592_576, 19_105_054_720]),
        ("semask-l", 19, [768, 768], [429_091_126_272, 42_986_373_120]),
        ("semask-l", 19, [1024, 2048], [1_608_143_394_816, 152_840_437_760]),
        ("semask-t", 171, [512, 512], [28_860_150_447, 12_947_816_448]),
        ("semask-s", 171, [512, 512], [52_579_268_271, 12_947_816_448]),
        ("semask-b", 171, [512, 512], [99_452_935_680, 15_212_740_608]),
        ("semask-l", 171, [512, 512], [215_524_415_232, 19_742_588_928]),
        // Of tools/mit_reference.py.
        ("semask-mit-b0", 150, [512, 512], [4_259_518_206, 8_405_385_216]),
        ("mit-b0", 150, [512, 512], [3_203_661_824, 8_405_385_216]),
        ("semask-mit-b1", 150, [512, 512], [12_537_124_510, 10_745_806_848]),
        ("mit-b1", 150, [512, 512], [10_433_855_488, 10_745_806_848]),
        ("semask-mit-b2", 150, [512, 512], [22_338_688_670, 10_745_806_848]),
        ("mit-b2", 150, [512, 512], [20_235_419_648, 10_745_806_848]),
        ("semask-mit-b3", 150, [512, 512], [38_963_861_150, 10_745_806_848]),
        ("mit-b3", 150, [512, 512], [36_860_592_128, 10_745_806_848]),
        ("semask-mit-b4", 150, [512, 512], [55_568_324_254, 10_745_806_848]),
        ("mit-b4", 150, [512, 512], [53_465_055_232, 10_745_806_848]),
        ("semask-mit-b5", 150, [512, 512], [71_511_135_902, 10_745_806_848]),
        ("mit-b5", 150, [512, 512], [69_407_866_880, 10_745_806_848]),
        ("semask-mit-b0", 19, [768, 768], [10_775_789_967, 17_675_845_632]),
        ("mit-b0", 19, [768, 768], [10_133_766_144, 17_675_845_632]),
        ("semask-mit-b1", 19, [768, 768], [31_329_691_887, 22_941_794_304]),
        ("mit-b1", 19, [768, 768], [29_327_228_928, 22_941_794_304]),
        ("semask-mit-b2", 19, [768, 768], [58_479_290_607, 22_941_794_304]),
        ("mit-b2", 19, [768, 768], [56_476_827_648, 22_941_794_304]),
        ("semask-mit-b3", 19, [768, 768], [101_548_239_087, 22_941_794_304]),
        ("mit-b3", 19, [768, 768], [99_545_776_128, 22_941_794_304]),
        ("semask-mit-b4", 19, [768, 768], [146_174_912_751, 22_941_794_304]),
        ("mit-b4", 19, [768, 768], [144_172_449_792, 22_941_794_304]),
        ("semask-mit-b5", 19, [768, 768], [186_670_459_119, 22_941_794_304]),
        ("mit-b5", 19, [768, 768], [184_667_996_160, 22_941_794_304]),
    ];

    #[test]
    fn parameters_are_as_many_as_the_official_models_have() {
        for &(preset, classes, all, encoder) in PARAMETERS {
            let model = model(preset, classes);
            assert_eq!(model.parameters().count(), all, "{preset} {classes}");
            let trained = model.parameters().trained();
            let of_encoder = trained.filter(|(name, _)| name.starts_with("backbone."));
            let count: usize = of_encoder.map(|(_, p)| p.tensor.shape().len()).sum();
            assert_eq!(count, encoder, "{preset} {classes}: encoder");
        }
    }

    /// Of the official models with heads that find masks, size L: head, classes, parameters, multiply-adds of
    /// the head at a size.
    const MASK_HEADS: &[(Head, usize, usize, [usize; 2], u64)] = &[
        (Head::Maskformer, 150, 218_719_231, [640, 640], 44_099_020_800),
        (Head::Mask2former, 150, 222_632_383, [640, 640], 68_608_358_400),
        (Head::Fapn, 150, 226_745_479, [640, 640], 92_204_595_200),
        (Head::Msfapn, 150, 223_851_415, [640, 640], 99_803_494_400),
        (Head::Mask2former, 19, 221_843_108, [512, 1024], 87_343_054_848),
        (Head::Fapn, 150, 226_745_479, [500, 333], 41_454_237_696),
    ];

    fn with_head(head: Head, num_classes: usize) -> Model {
        let config = ModelConfig::preset("semask-l").unwrap();
        Model::new(&ModelConfig { head, num_classes, ..config }).unwrap()
    }

    #[test]
    fn heads_that_find_masks_are_as_large_as_the_official_ones() {
        for &(head, classes, parameters, [height, width], adds) in MASK_HEADS {
            let model = with_head(head, classes);
            assert_eq!(model.parameters().count(), parameters, "{head:?} {classes}");
            let count = model.multiply_adds(height, width);
            assert_eq!(count.head, adds, "{head:?} {classes}");
        }
    }

    #[test]
    fn every_parameter_belongs_to_one_layer() {
        let heads = [Head::Maskformer, Head::Mask2former, Head::Fapn, Head::Msfapn];
        let small = ModelConfig { channels: 64, ..ModelConfig::preset("quickstart").unwrap() };
        let configs = (["quickstart", "semask-t", "swin-b", "semask-mit-b0", "mit-b1"]
            .map(ModelConfig::preset)
            .into_iter())
        .map(Result::unwrap)
        .chain(heads.map(|head| ModelConfig { head, ..small.clone() }));
        for config in configs {
            let preset = format!("{:?} {}", config.head, config.embed_dim);
            let config = ModelConfig { ape: true, ..config };
            let layers = config.layers(64, 80);
            let model = Model::new(&config).unwrap();
            let mut counts = vec![0; layers.len()];
            for (name, parameter) in model.parameters().trained() {
                let of = |layer: &&Layer| {
                    name.strip_prefix(&layer.name)
                        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
                };
                let found: Vec<&Layer> = layers.iter().filter(of).collect();
                let [layer] = found[..] else { panic!("{preset}: {name} is in {found:?}") };
                let at = layers.iter().position(|other| other == layer).unwrap();
                counts[at] += parameter.tensor.shape().len();
            }
            assert!(counts.iter().all(|count| *count > 0), "{preset}: {counts:?}");
        }
    }

    #[test]
    fn multiply_adds_equal_a_counter_on_the_official_models() {
        for &(preset, classes, [height, width], [encoder, head]) in MULTIPLY_ADDS {
            let count = model(preset, classes).multiply_adds(height, width);
            let case = format!("{preset} {classes} {height}x{width}");
            assert_eq!(count.transformer + count.semantic, encoder, "{case}");
            assert_eq!(count.head, head, "{case}: head");
            assert_eq!(count.total(), encoder + head, "{case}: total");
        }
        // Of the semantic layers alone.
        let count = model("semask-t", 150).multiply_adds(512, 512);
        assert_eq!(count.semantic, 3_175_360_062);
        let count = model("semask-l", 19).multiply_adds(1024, 2048);
        assert_eq!(count.semantic, 53_512_427_520);
        assert_eq!(model("swin-t", 150).multiply_adds(512, 512).semantic, 0);
    }

    /// Names and extents of the published checkpoints. Two kinds of buffer are no parameters here, but are
    /// made for PyTorch: [`Checkpoint::add_buffers`].
    #[test]
    fn names_and_shapes_are_those_of_the_official_checkpoints() {
        for (preset, size) in
            [("semask-t", "T"), ("semask-s", "S"), ("semask-b", "B"), ("semask-l", "L")]
        {
            let Some(wanted) = published(&format!("fpn_{size}_ade20k")) else { return };
            assert_names(&model(preset, 150), wanted);
        }
        for (head, name) in [
            (Head::Maskformer, "maskformer"),
            (Head::Mask2former, "mask2former"),
            (Head::Fapn, "fapn"),
            (Head::Msfapn, "msfapn"),
        ] {
            // The encoder is that of Semantic FPN.
            let (Some(mut wanted), Some(head_names)) = (published("fpn_L_ade20k"), published(name))
            else {
                return;
            };
            wanted.retain(|name, _| name.starts_with("backbone."));
            wanted.extend(head_names);
            assert_names(&with_head(head, 150), wanted);
        }
    }

    /// Names and extents of a published checkpoint.
    fn published(case: &str) -> Option<BTreeMap<String, Vec<usize>>> {
        let path = testing::fixture(&format!("keys_{case}.json"))?;
        let text = std::fs::read_to_string(path).unwrap();
        Some(serde_json::from_str(&text).unwrap())
    }

    #[track_caller]
    fn assert_names(model: &Model, wanted: BTreeMap<String, Vec<usize>>) {
        let parameters = model.parameters();
        let shape = |name: &str| parameters.get(name).unwrap().tensor.dims().to_vec();
        let own = parameters.iter().map(|(name, _)| (name.to_owned(), shape(name)));
        let aliases = parameters.aliases().map(|(alias, of)| (alias.to_owned(), shape(of)));
        let mut found: BTreeMap<String, Vec<usize>> = own.chain(aliases).collect();
        let mut checkpoint = Checkpoint::default();
        for (name, shape) in &found {
            if name.ends_with("bias_table") || name.ends_with("running_var") {
                let zeros = vec![0.0; shape.iter().product()];
                checkpoint.insert(name, Entry::from_f32(&shape[..], &zeros));
            }
        }
        checkpoint.add_buffers();
        let shapes = checkpoint.entries.into_iter();
        found.extend(shapes.map(|(name, entry)| (name, entry.shape().dims().to_vec())));
        for (name, shape) in &wanted {
            assert_eq!(found.get(name), Some(shape), "{name}");
        }
        assert_eq!(found.len(), wanted.len());
    }
}
