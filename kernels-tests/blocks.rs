//! Layers and blocks against the reference implementation, with its weights: what they compute and
//! every gradient, on both kinds of kernel.

use std::collections::{BTreeMap, BTreeSet};

use semask_gpu::gpu::Plan;
use semask_gpu::model::{
    DeformEncoderConfig, DeformEncoderLayer, FeatureAlign, Features, FpnHead, ModelConfig,
    MsDeformAttention, PatchEmbed, PatchMerging, SemanticAttention, SemanticLayer, SwinBlock,
    WindowAttention, semantic_branch,
};
use semask_gpu::nn::{
    Conv3x3, GroupNorm, Init, LayerNorm, Linear, MultiheadAttention, ParameterScope, Parameters,
};
use semask_gpu::ops::{self, Windows};
use semask_gpu::optim::{AdamW, AdamWSettings};
use semask_gpu::{Shape, Tape, Tensor};

use crate::fixtures::{Fixture, nchw_to_nhwc, nhwc_to_nchw};
use crate::support::{GPU, OTHER, forward, run};

/// How a fixture lays out what the crate has as `[B, H, W, C]`.
#[derive(Clone, Copy)]
enum Layout {
    /// Just so; or of another rank, and the same here and there.
    Same,
    /// `[B, C, H, W]`
    Image,
    /// `[nW, M·M, C]`: the windows of one map of `height` × `width`, without padding.
    Windows { windows: Windows, height: usize, width: usize },
}

impl Layout {
    fn to_crate(self, shape: &[usize], data: &[f32]) -> (Shape, Vec<f32>) {
        match (self, shape) {
            (Self::Image, &[b, c, h, w]) => ([b, h, w, c].into(), nchw_to_nhwc(data, [b, c, h, w])),
            (Self::Windows { height, width, .. }, &[_, _, channels]) => {
                let mut map = vec![0.0; data.len()];
                for (token, at) in self.places().into_iter().enumerate() {
                    map[at * channels..][..channels]
                        .copy_from_slice(&data[token * channels..][..channels]);
                }
                ([1, height, width, channels].into(), map)
            }
            (Self::Same, shape) => (shape.into(), data.to_vec()),
            (_, shape) => panic!("{shape:?} is not of this layout"),
        }
    }

    /// `shape` is the fixture's.
    fn to_fixture(self, shape: &[usize], data: &[f32]) -> Vec<f32> {
        match (self, shape) {
            (Self::Image, &[b, c, h, w]) => nhwc_to_nchw(data, [b, c, h, w]),
            (Self::Windows { .. }, &[_, _, channels]) => {
                let places = self.places().into_iter();
                places.flat_map(|at| &data[at * channels..][..channels]).copied().collect()
            }
            (Self::Same, _) => data.to_vec(),
            (_, shape) => panic!("{shape:?} is not of this layout"),
        }
    }

    /// Of each token, window after window: its place in the map before the map was rolled.
    fn places(self) -> Vec<usize> {
        let Self::Windows { windows: Windows { size, shift }, height, width } = self else {
            unreachable!("asked for windows only")
        };
        let place = |n: usize| {
            let (window, token) = (n / (size * size), n % (size * size));
            let (wy, wx) = (window / (width / size), window % (width / size));
            let (y, x) = (wy * size + token / size, wx * size + token % size);
            (y + shift) % height * width + (x + shift) % width
        };
        (0..height * width).map(place).collect()
    }
}

/// The inputs of a fixture, by name.
type Inputs = BTreeMap<String, Tensor>;

/// Builds a layer, gives it the fixture's weights, runs it and compares outputs, gradients of inputs
/// and gradients of weights. A fixture in evaluation mode is replayed as inference, forward only.
#[track_caller]
fn replay<L>(
    name: &str,
    layout: impl Fn(&str) -> Layout,
    build: impl Fn(ParameterScope<'_>, &Fixture) -> L,
    forward: impl Fn(&L, &mut Tape, &Inputs) -> Vec<(&'static str, Tensor)>,
) {
    let Some(fx) = Fixture::open(name) else { return };
    for gpu in [&*GPU, &*OTHER] {
        let mut parameters = Parameters::new();
        let layer = build(parameters.root(), &fx);
        for (name, parameter) in parameters.iter() {
            parameter.tensor.write(gpu, fx.f32(&format!("w.{name}"))).unwrap();
        }
        // The crate has no use for two of the reference's buffers.
        let known: BTreeSet<&str> = parameters.iter().map(|(name, _)| name).collect();
        let unknown = |n: &&str| {
            !known.contains(&n[2..])
                && !n.ends_with(".num_batches_tracked")
                && !n.ends_with("relative_position_index")
        };
        assert_eq!(fx.names("w.").into_iter().find(unknown), None, "{name}: unknown weight");

        let on_device = |name: &str| {
            let (shape, data) = layout(name).to_crate(fx.shape(name), fx.f32(name));
            Tensor::from_slice(gpu, shape, &data)
        };
        // A layer that needs integers takes them from the fixture.
        let inputs: Inputs = (fx.names("in.").into_iter().filter(|name| fx.is_f32(name)))
            .map(|name| (name[3..].to_owned(), on_device(name).tracked()))
            .collect();
        let trains = fx.config["train"] == true;
        let mut tape = match trains {
            true => Tape::training(gpu.profile()),
            false => Tape::inference(gpu.profile()),
        };
        let outputs = forward(&layer, &mut tape, &inputs);
        assert_eq!(outputs.len(), fx.names("out.").len(), "{name}: outputs");
        let mut results: Vec<(String, Tensor)> = Vec::new();
        for (name, y) in &outputs {
            results.push((format!("out.{name}"), tape.recorder().keep(y, name)));
        }
        let recorder = if trains {
            let seeds: Vec<(&Tensor, Tensor)> =
                outputs.iter().map(|(name, y)| (y, on_device(&format!("gout.{name}")))).collect();
            let (mut recorder, gradients) = tape.backward_from(&seeds);
            let mut want = |name: String, tensor: &Tensor| {
                let gradient = gradients.get(tensor);
                let gradient = gradient.unwrap_or_else(|| panic!("{}: no {name}", fx.name()));
                results.push((name, recorder.keep(gradient, "gradient")));
            };
            // Where queries are is index arithmetic in the crate.
            for (name, input) in inputs.iter().filter(|(name, _)| *name != "reference") {
                want(format!("gin.{name}"), input);
            }
            for (name, parameter) in parameters.trained() {
                want(format!("gw.{name}"), &parameter.tensor);
            }
            recorder
        } else {
            tape.finish()
        };
        run(gpu, &recorder);
        for (name, result) in &results {
            // Weights have no layout but their own.
            let layout = if name.starts_with("gw.") { Layout::Same } else { layout(name) };
            fx.check(name, &layout.to_fixture(fx.shape(name), &result.read(gpu).unwrap()));
        }
    }
}

/// A number of the fixture's configuration.
#[track_caller]
fn number(fx: &Fixture, key: &str) -> usize {
    fx.config[key].as_u64().unwrap_or_else(|| panic!("no {key} in {}", fx.config)) as usize
}

fn windows(fx: &Fixture) -> Windows {
    Windows { size: number(fx, "window"), shift: number(fx, "shift") }
}

/// The last extent of `name`.
fn channels(fx: &Fixture, name: &str) -> usize {
    *fx.shape(name).last().unwrap()
}

#[test]
fn layer_norm_equals_torch() {
    replay(
        "block.layernorm",
        |_| Layout::Same,
        |scope, fx| LayerNorm::new(scope, channels(fx, "in.x")),
        |norm, tape, x| vec![("y", norm.forward(tape, &x["x"]))],
    );
}

#[test]
fn mlp_equals_torch() {
    replay(
        "block.mlp",
        |_| Layout::Same,
        |mut scope, fx| {
            let (channels, hidden) = (channels(fx, "in.x"), channels(fx, "w.fc1.bias"));
            let fc1 = Linear::new(scope.at("fc1"), channels, hidden);
            (fc1, Linear::new(scope.at("fc2"), hidden, channels))
        },
        |(fc1, fc2), tape, x| {
            let y = fc1.forward_gelu(tape, &x["x"]);
            vec![("y", fc2.forward(tape, &y))]
        },
    );
}

#[test]
fn patch_embedding_equals_the_reference() {
    replay(
        "block.patch_embed",
        // The picture is [B, C, H, W] there, the map is [B, H, W, C].
        |name| if name.ends_with(".img") { Layout::Image } else { Layout::Same },
        |scope, fx| PatchEmbed::new(scope, channels(fx, "w.proj.bias")),
        |embed, tape, x| vec![("y", embed.forward(tape, &x["img"]))],
    );
}

#[test]
fn patch_merging_equals_the_reference() {
    for size in ["even", "odd"] {
        replay(
            &format!("block.patch_merging.{size}"),
            |_| Layout::Same,
            |scope, fx| PatchMerging::new(scope, channels(fx, "in.x")),
            |merging, tape, x| vec![("y", merging.forward(tape, &x["x"]))],
        );
    }
}

#[test]
fn window_attention_equals_the_reference() {
    let windows = Windows { size: 7, shift: 3 };
    replay(
        "block.window_attention",
        |_| Layout::Windows { windows, height: 14, width: 21 },
        |scope, fx| {
            assert_eq!(number(fx, "window"), windows.size);
            WindowAttention::new(scope, channels(fx, "in.x"), number(fx, "heads"), windows)
        },
        |attention, tape, x| {
            let x = &x["x"];
            let nothing = ops::fill(tape.recorder(), x.shape().clone(), 0.0);
            vec![("y", attention.forward_residual(tape, x, &nothing, None))]
        },
    );
}

fn swin_block(case: &str) {
    replay(
        &format!("block.swin_block.{case}"),
        |_| Layout::Same,
        |scope, fx| {
            let (channels, hidden) = (channels(fx, "in.x"), channels(fx, "w.mlp.fc1.bias"));
            let ratio = hidden / channels;
            SwinBlock::new(scope, channels, number(fx, "heads"), windows(fx), ratio, 0.0)
        },
        |block, tape, x| vec![("y", block.forward(tape, &x["x"]))],
    );
}

#[test]
fn blocks_of_whole_windows_equal_the_reference() {
    swin_block("plain");
    swin_block("shift");
}

#[test]
fn blocks_of_padded_windows_equal_the_reference() {
    swin_block("pad");
    swin_block("shift_pad");
    swin_block("w12_shift_pad");
}

#[test]
fn a_shifted_block_of_one_window_equals_the_reference() {
    swin_block("shift_one_window");
}

#[test]
fn semantic_attention_equals_the_reference() {
    replay(
        "block.semantic_attention",
        |_| Layout::Same,
        |scope, fx| {
            // A tape without random numbers leaves dropout out.
            SemanticAttention::new(scope, channels(fx, "in.x"), number(fx, "classes"), 0.1)
        },
        |attention, tape, x| {
            let (prior, y) = attention.forward(tape, &x["x"]);
            vec![("prior", prior), ("y", y)]
        },
    );
}

fn semantic_layer(case: &str) {
    replay(
        &format!("block.semantic_layer.{case}"),
        |_| Layout::Same,
        |scope, fx| {
            let (channels, classes) = (channels(fx, "in.x"), number(fx, "classes"));
            let window = match fx.config["scope"].as_str() {
                Some("window") => Some(number(fx, "window")),
                _ => None,
            };
            SemanticLayer::new(scope, channels, classes, number(fx, "blocks"), window, 0.1)
        },
        |layer, tape, x| {
            let (prior, y) = layer.forward(tape, &x["x"]);
            vec![("prior", prior), ("y", y)]
        },
    );
}

#[test]
fn semantic_layers_of_windows_equal_the_reference() {
    semantic_layer("window_exact");
    semantic_layer("window_pad");
    semantic_layer("w12");
}

#[test]
fn semantic_layers_of_the_whole_map_equal_the_reference() {
    semantic_layer("global");
}

#[test]
fn chains_of_semantic_blocks_equal_the_reference() {
    semantic_layer("window_two_blocks");
    semantic_layer("global_three_blocks");
}

fn fpn_head(case: &str) {
    replay(
        &format!("block.fpn_head.{case}"),
        |_| Layout::Image,
        |scope, fx| {
            let config = ModelConfig {
                embed_dim: fx.shape("in.f0")[1],
                channels: number(fx, "channels"),
                num_classes: number(fx, "classes"),
                ..ModelConfig::default()
            };
            FpnHead::new(scope, &config)
        },
        |head, tape, x| {
            let maps: Vec<Tensor> = (0..4).map(|i| x[&format!("f{i}")].clone()).collect();
            let priors = (0..4).map(|i| Some(x[&format!("p{i}")].clone())).collect();
            let logits = head.forward(tape, &maps);
            let prior = semantic_branch(tape, &Features { maps, priors }, false);
            vec![("logits", logits), ("prior", prior.expect("every level has one"))]
        },
    );
}

#[test]
fn heads_equal_the_reference() {
    fpn_head("even.train");
    fpn_head("odd.train");
}

/// Forward only: batch norm with running statistics is for inference.
#[test]
fn a_head_for_inference_equals_the_reference() {
    fpn_head("odd.eval");
}

#[test]
fn convolutions_with_group_norm_equal_torch() {
    replay(
        "block.conv_gn_relu",
        |_| Layout::Image,
        |mut scope, fx| {
            let [outputs, inputs, ..] = *fx.shape("w.weight") else { unreachable!() };
            let norm = GroupNorm::new(scope.at("norm"), outputs);
            (Conv3x3::new(scope, inputs, outputs, Init::Constant(0.0)), norm)
        },
        |(conv, norm), tape, x| {
            let y = conv.forward(tape, &x["x"]);
            vec![("y", norm.forward_relu(tape, &y))]
        },
    );
}

#[test]
fn multi_head_attention_equals_torch() {
    replay(
        "block.multihead_attention",
        |_| Layout::Same,
        |scope, fx| MultiheadAttention::new(scope, channels(fx, "in.q"), number(fx, "heads"), 0.0),
        |attention, tape, x| vec![("y", attention.forward(tape, &x["q"], &x["k"], &x["v"], None))],
    );
}

#[test]
fn attention_to_the_places_of_masks_equals_the_reference() {
    replay(
        "block.masked_cross_attention",
        |_| Layout::Same,
        |mut scope, fx| {
            let (channels, heads) = (channels(fx, "in.t"), number(fx, "heads"));
            let attention =
                MultiheadAttention::new(scope.at("multihead_attn"), channels, heads, 0.0);
            // Masks whose map is the keys in a row, and which are negative where it is forbidden.
            let &[batch, queries, keys] = fx.shape("in.forbid") else { unreachable!() };
            let forbidden = fx.integers("in.forbid");
            let logits: Vec<f32> = forbidden.iter().map(|&f| 1.0 - 2.0 * f as f32).collect();
            (attention, LayerNorm::new(scope.at("norm"), channels), [batch, queries, keys], logits)
        },
        |(attention, norm, [batch, queries, keys], logits), tape, x| {
            // Positions are the same for each image.
            let add = |tape: &mut Tape, x: &Tensor, pos: &Tensor| {
                ops::add_position(tape, x, &pos.reshape(&pos.dims()[1..]))
            };
            let size = [*batch, *queries, 1, *keys];
            let gpu =
                if tape.recorder().profile().cpu == GPU.profile().cpu { &*GPU } else { &*OTHER };
            let logits = Tensor::from_slice(gpu, size, logits);
            let mask = ops::attention_mask(tape.recorder(), &logits, 1, *keys);
            let queries = add(tape, &x["t"], &x["qpos"]);
            let keys = add(tape, &x["mem"], &x["pos"]);
            let y = attention.forward(tape, &queries, &keys, &x["mem"], Some(&mask));
            let sum = ops::add(tape, &x["t"], &y);
            vec![("y", norm.forward(tape, &sum))]
        },
    );
}

/// Height and width of the three maps of a fixture, whose queries are in the middle of each pixel.
#[track_caller]
fn pyramid(fx: &Fixture) -> [[usize; 2]; 3] {
    let size = |level: usize, axis: usize| fx.config["shapes"][level][axis].as_u64().unwrap();
    let sizes = [0, 1, 2].map(|level| [0, 1].map(|axis| size(level, axis) as usize));
    let mut reference = fx.f32("in.reference").chunks(2);
    for [height, width] in sizes {
        for pixel in 0..height * width {
            let middle = |i: usize, n: usize| (i as f32 + 0.5) / n as f32;
            let expected = [middle(pixel % width, width), middle(pixel / width, height)];
            assert_eq!(reference.next(), Some(&expected[..]));
        }
    }
    sizes
}

#[test]
fn deformable_attention_equals_the_reference() {
    replay(
        "block.msdeform_attn",
        |_| Layout::Same,
        |scope, fx| {
            let attention =
                MsDeformAttention::new(scope, channels(fx, "in.query"), number(fx, "heads"));
            (attention, pyramid(fx))
        },
        |(attention, sizes), tape, x| {
            let nothing = ops::fill(tape.recorder(), x["query"].shape().clone(), 0.0);
            let (query, value) = (&x["query"], &x["value"]);
            vec![("y", attention.forward_residual(tape, query, value, &nothing, sizes))]
        },
    );
}

#[test]
fn layers_of_the_deformable_transformer_equal_the_reference() {
    replay(
        "block.deform_encoder_layer",
        |_| Layout::Same,
        |scope, fx| {
            let (dim, ffn) = (channels(fx, "in.x"), channels(fx, "w.linear1.bias"));
            let heads = number(fx, "heads");
            let config = DeformEncoderConfig { dim, heads, ffn, layers: 1 };
            (DeformEncoderLayer::new(scope, config), pyramid(fx))
        },
        |(layer, sizes), tape, x| {
            let pos = &x["pos"];
            let pos = pos.reshape(&pos.dims()[1..]);
            vec![("y", layer.forward(tape, &x["x"], &pos, sizes))]
        },
    );
}

#[test]
fn feature_alignment_equals_the_reference() {
    replay(
        "block.feature_align",
        |_| Layout::Image,
        |scope, fx| FeatureAlign::new(scope, fx.shape("in.lateral")[1]),
        |align, tape, x| vec![("y", align.forward(tape, &x["lateral"], &x["coarse"]))],
    );
}

/// Queries and keys of zero leave the mask alone, and values that are one-hot show where each token
/// looks.
#[test]
fn tokens_attend_to_the_region_that_they_came_from() {
    // Heads of 52 and 48 channels, as many as there are tokens.
    for (name, heads, channels) in
        [("block.shift_mask_w7", 1, 52), ("block.shift_mask_w12", 3, 144)]
    {
        let Some(fx) = Fixture::open(name) else { return };
        let windows = windows(&fx);
        let side = |i: usize| fx.config["padded_map"][i].as_u64().unwrap() as usize;
        let (height, width) = (side(0), side(1));
        let tokens = windows.size * windows.size;
        let layout = Layout::Windows { windows, height, width };

        let mut qkv = vec![0f32; height * width * 3 * channels];
        for (n, row) in qkv.chunks_mut(3 * channels).enumerate() {
            row[2 * channels + n % tokens] = 1.0;
        }
        let shape = [height * width / tokens, tokens, 3 * channels];
        let (shape, qkv) = layout.to_crate(&shape, &qkv);
        for gpu in [&*GPU, &*OTHER] {
            let qkv = Tensor::from_slice(gpu, shape.clone(), &qkv);
            let qkv_bias = Tensor::from_slice(gpu, [3 * channels], &vec![0f32; 3 * channels]);
            let bias = vec![0f32; heads * tokens * tokens];
            let bias = Tensor::from_slice(gpu, [heads, tokens, tokens], &bias);
            let y =
                forward(gpu, |tape| ops::window_attention(tape, &qkv, &qkv_bias, &bias, windows));
            let y = layout.to_fixture(&[height * width / tokens, tokens, channels], &y);
            let masked: Vec<u8> =
                y.chunks(channels).flat_map(|p| &p[..tokens]).map(|&p| (p < 1e-6).into()).collect();
            fx.check_integers("mask", &masked);

            // The bias of a pair of tokens is the table's entry of the pair's index.
            let table: Vec<f32> = (0..(2 * windows.size - 1).pow(2)).map(|i| i as f32).collect();
            let table = Tensor::from_slice(gpu, [table.len(), 1], &table);
            let bias = forward(gpu, |tape| ops::relative_position_bias(tape, &table, windows.size));
            let pairs = (0..tokens * tokens).map(|n| (n / tokens, n % tokens));
            let index: Vec<i64> =
                pairs.map(|(query, key)| bias[key * tokens + query] as i64).collect();
            fx.check_integers("relative_index", &index);
        }
    }
}

#[test]
fn bicubic_resizing_equals_torch() {
    let Some(fx) = Fixture::open("block.bicubic") else { return };
    for (name, from, to) in [("w7_to_w12", 13, 23), ("w12_to_w7", 23, 13)] {
        let heads = channels(&fx, &format!("in.{name}"));
        let table = fx.f32(&format!("in.{name}"));
        fx.check(&format!("out.{name}"), &ops::resize_bicubic_table(table, heads, from, to));
    }
    for gpu in [&*GPU, &*OTHER] {
        // A table of positions is channels-first, what it becomes is a map.
        let table = fx.tensor(gpu, "in.pos");
        let [_, _, height, width] = *fx.shape("out.pos") else { panic!("an image") };
        let y = forward(gpu, |tape| ops::resize_bicubic(tape, &table, height, width));
        fx.check_image("out.pos", &y);
    }
}

/// Five steps of `torch.optim.AdamW`, with and without clipping of the gradient's norm.
#[test]
fn adamw_equals_torch() {
    let Some(fx) = Fixture::open("train.adamw") else { return };
    const BASE: f64 = 1e-3;
    for gpu in [&*GPU, &*OTHER] {
        for clipped in [false, true] {
            let mut parameters = Parameters::new();
            for name in ["a", "b", "c"] {
                let shape = fx.shape(&format!("in.{name}"));
                parameters.root().create(name, shape, Init::Constant(0.0));
            }
            for (name, parameter) in parameters.iter() {
                parameter.tensor.write(gpu, fx.f32(&format!("in.{name}"))).unwrap();
            }
            let max_norm = fx.config["clip_norm"].as_f64().unwrap() as f32;
            let max_norm = clipped.then_some(max_norm);
            let settings = AdamWSettings { max_norm, ..AdamWSettings::default() };
            let mut optimiser = AdamW::new(&parameters, settings);
            let rule = |name: &str, _| {
                let number = |key: &str| fx.config["rule"][name][key].as_f64().unwrap();
                ((number("lr") / BASE) as f32, number("weight_decay") as f32)
            };
            optimiser.set_groups(gpu, &parameters, rule).unwrap();

            // The gradient of a tensor that is its own output is what flows into it.
            let gradients: Vec<(Tensor, Tensor)> = (parameters.trained())
                .map(|(name, p)| (p.tensor.clone(), Tensor::pinned(name, p.tensor.shape().clone())))
                .collect();
            let seeds: Vec<_> = gradients.iter().map(|(p, g)| (p, g.clone())).collect();
            let (mut recorder, by_tensor) = Tape::training(gpu.profile()).backward_from(&seeds);
            optimiser.record_gradients(&mut recorder, &parameters, &by_tensor).unwrap();
            optimiser.record_update(&mut recorder);
            let plan = Plan::new(gpu, &recorder).unwrap();

            let scales = fx.config["lr_scale"].as_array().unwrap();
            for (step, scale) in scales.iter().enumerate() {
                for ((name, _), (_, gradient)) in parameters.trained().zip(&gradients) {
                    gradient.write(gpu, fx.f32(&format!("grad.{step}.{name}"))).unwrap();
                }
                optimiser.prepare(gpu, BASE * scale.as_f64().unwrap()).unwrap();
                plan.run().unwrap();
                let kind = if clipped { "out.clip" } else { "out" };
                for (name, parameter) in parameters.trained() {
                    let name = format!("{kind}.{step}.{name}");
                    let values = parameter.tensor.read(gpu).unwrap();
                    fx.check(&name, &values);
                    // Steps are small next to the values, which are below 2: a few of their ulps.
                    let wanted = fx.f32(&name).iter();
                    let off = values.iter().zip(wanted).map(|(v, w)| (v - w).abs());
                    let off = off.fold(0.0, f32::max);
                    assert!(off <= 5e-7, "{name} is off by {off}");
                }
                let norm = optimiser.norm().read(gpu).unwrap()[0];
                fx.check(&format!("out.norm.{step}"), &[norm]);
            }
            assert_eq!(optimiser.updates(), 5);
        }
    }
}
