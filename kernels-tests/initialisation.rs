//! How parameters start out when no checkpoint gives them, against the official models' rules.

use std::collections::BTreeMap;

use semask_gpu::model::{Head, HeadInit, Model, ModelConfig, SemResInit};

use crate::support::GPU;

/// A small SeMask with every kind of parameter.
fn config() -> ModelConfig {
    let head_init = HeadInit::Official;
    ModelConfig { ape: true, head_init, ..ModelConfig::preset("quickstart").unwrap() }
}

fn initialised(config: &ModelConfig, seed: u64) -> BTreeMap<String, Vec<f32>> {
    let model = Model::new(config).unwrap();
    model.parameters().initialise(&GPU, seed).unwrap();
    let values = model.parameters().iter().map(|(name, p)| (name, p.tensor.read(&GPU).unwrap()));
    values.map(|(name, values)| (name.to_owned(), values)).collect()
}

/// What the official code starts a parameter with.
#[derive(Debug)]
enum Start {
    All(f64),
    Uniform(f64),
    Normal(f64),
}

fn official(name: &str, config: &ModelConfig) -> Start {
    let (module, kind) = name.rsplit_once('.').unwrap();
    let layer = module.rsplit_once('.').map_or(module, |(_, layer)| layer);
    match (layer, kind) {
        (_, "gamma" | "running_mean") => Start::All(0.0),
        (_, "running_var") => Start::All(1.0),
        (_, "relative_position_bias_table" | "absolute_pos_embed") => Start::Normal(0.02),
        // torch.nn.Conv2d's own: 1 / √(3 · 4 · 4).
        ("proj", _) if module.ends_with("patch_embed.proj") => Start::Uniform(48f64.powf(-0.5)),
        ("norm" | "norm1" | "norm2" | "bn" | "norm0" | "norm3", kind) => {
            Start::All(if kind == "weight" { 1.0 } else { 0.0 })
        }
        (_, "bias") => Start::All(0.0),
        ("conv_seg", _) => Start::Normal(0.01),
        ("conv", _) => Start::Normal((2.0 / (9 * config.channels) as f64).sqrt()),
        ("qkv" | "proj" | "fc1" | "fc2" | "reduction", _) => Start::Normal(0.02),
        ("mlp_cls_q" | "mlp_cls_k" | "mlp_v" | "mlp_res", _) => Start::Normal(0.02),
        _ => panic!("no rule for {name}"),
    }
}

/// Asserts that mean and deviation of `values` are what chance allows: five standard errors.
fn assert_moments(name: &str, values: &[f32], std: f64, kurtosis: f64) {
    let n = values.len() as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let variance = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / n;
    assert!(mean.abs() <= 5.0 * std / n.sqrt(), "{name}: mean {mean} of {n}");
    let error = variance / (std * std) - 1.0;
    assert!(error.abs() <= 5.0 * ((kurtosis - 1.0) / n).sqrt(), "{name}: {variance} for {std}²");
}

#[test]
fn parameters_start_as_the_official_models_do() {
    let config = config();
    let mut normals: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for (name, values) in initialised(&config, 7) {
        match official(&name, &config) {
            Start::All(value) => {
                assert!(values.iter().all(|&v| f64::from(v) == value), "{name} is all {value}");
            }
            Start::Uniform(bound) => {
                assert_moments(&name, &values, bound / 3f64.sqrt(), 1.8);
                let largest = values.iter().fold(0.0, |max, v| f64::max(max, v.abs().into()));
                assert!(largest <= bound, "{name}: {largest} is within {bound}");
            }
            Start::Normal(std) => {
                assert_moments(&name, &values, std, 3.0);
                // The official initialiser has a rare fault that makes a weight 100 deviations large.
                let largest = values.iter().fold(0.0, |max, v| f64::max(max, v.abs().into()));
                assert!(largest < 6.0 * std, "{name}: {largest} for {std}");
                let scaled = values.iter().map(|v| v / std as f32);
                normals.entry("all".into()).or_default().extend(scaled);
            }
        }
    }
    let all = &normals["all"];
    assert!(all.len() > 2_000_000);
    assert_moments("all normals", all, 1.0, 3.0);
    // Normal, not only of that deviation: shares beyond 1, 2 and 3 deviations.
    for (bound, share) in [(1.0, 0.317_311), (2.0, 0.045_500), (3.0, 0.002_700)] {
        let beyond = all.iter().filter(|v| v.abs() > bound).count() as f64 / all.len() as f64;
        let error = 5.0 * (share * (1.0 - share) / all.len() as f64).sqrt();
        assert!((beyond - share).abs() <= error, "{beyond} beyond {bound}");
    }
}

#[test]
fn a_head_may_start_as_pytorch_does() {
    let config = ModelConfig { head_init: HeadInit::Pytorch, ..config() };
    let started = initialised(&config, 7);
    let mut convolutions = 0;
    for (name, values) in &started {
        let layer = name.strip_prefix("decode_head.").and_then(|n| n.strip_suffix(".weight"));
        let Some(layer) = layer.filter(|l| l.ends_with("conv") || *l == "conv_seg") else {
            continue;
        };
        // torch.nn.Conv2d: uniform within 1 / √fan-in.
        let fan_in = values.len() / if layer == "conv_seg" { 150 } else { config.channels };
        let bound = (fan_in as f64).powf(-0.5);
        assert_moments(name, values, bound / 3f64.sqrt(), 1.8);
        assert!(values.iter().all(|&v| f64::from(v.abs()) <= bound), "{name} is within {bound}");
        convolutions += 1;
    }
    assert_eq!(convolutions, 1 + 1 + 2 + 3 + 1);
}

#[test]
fn a_seed_and_a_name_decide_the_values() {
    let config = config();
    let first = initialised(&config, 7);
    assert!(first == initialised(&config, 7));

    // Another head and no absolute positions: the encoder starts the same.
    let other = ModelConfig { num_classes: 19, ape: false, channels: 16, ..config.clone() };
    let other = initialised(&other, 7);
    let mut shared = 0;
    for (name, values) in other.iter().filter(|(name, _)| name.starts_with("backbone.")) {
        if !name.contains(".mlp_cls_") {
            assert!(first[name] == *values, "{name}");
            shared += 1;
        }
    }
    assert!(shared > 100);

    let random = |name: &str| !matches!(official(name, &config), Start::All(_));
    let seeded = initialised(&config, 8);
    for (name, values) in first.iter().filter(|(name, _)| random(name)) {
        assert!(seeded[name] != *values, "{name} depends on the seed");
    }
    // No two parameters of the same size are equal.
    let (mut names, mut distinct) = (0, std::collections::HashSet::new());
    for (_, values) in first.iter().filter(|(name, _)| random(name)) {
        names += 1;
        let head = values.iter().take(3).map(|v| v.to_bits()).collect::<Vec<_>>();
        distinct.insert(head);
    }
    // Scaled alike or not: equal streams of random numbers would show in equal ratios.
    assert_eq!(distinct.len(), names);
}

/// spec: what the official code of a head that finds masks starts a parameter with, given its extents and, for
/// a bias, the fan-in of its layer.
fn official_of_masks(name: &str, shape: &[usize], fan_in: usize) -> Start {
    let parts: Vec<&str> = name.split('.').collect();
    let [.., layer, kind] = parts[..] else { return Start::Normal(1.0) };
    let has = |part: &str| parts.contains(&part);
    let xavier = || Start::Uniform((6.0 / (shape[0] + shape[1]) as f64).sqrt());
    let torch = || Start::Uniform((fan_in as f64).powf(-0.5));
    let weight = kind == "weight";
    match layer {
        _ if kind == "gamma" || has("mlp_res") => Start::All(0.0),
        _ if kind == "relative_position_bias_table" => Start::Normal(0.02),
        _ if kind == "level_embed" => Start::Normal(1.0),
        _ if layer.contains("norm") => Start::All(if weight { 1.0 } else { 0.0 }),
        // The projections of the deformable decoder are followed by a norm, the second of the pair.
        "1" if has("pixel_decoder") && has("input_proj") => {
            Start::All(if weight { 1.0 } else { 0.0 })
        }
        "level_embed" | "query_embed" | "query_feat" => Start::Normal(1.0),
        _ if has("class_injection") && !weight => Start::All(0.0),
        _ if has("class_injection") => Start::Normal((2.0 / fan_in as f64).sqrt()),
        _ if has("backbone") => torch(),
        "conv_offset_mask" | "attention_weights" => Start::All(0.0),
        "dcpack_L2" => {
            if weight {
                torch()
            } else {
                Start::All(0.0)
            }
        }
        "sampling_offsets" => Start::All(0.0),
        "value_proj" | "output_proj" | "out_proj" => {
            if weight {
                xavier()
            } else {
                Start::All(0.0)
            }
        }
        _ if kind == "in_proj_weight" => xavier(),
        _ if kind == "in_proj_bias" => Start::All(0.0),
        "0" if has("pixel_decoder") && has("input_proj") => {
            if weight {
                xavier()
            } else {
                Start::All(0.0)
            }
        }
        "linear1" | "linear2" if weight => xavier(),
        "linear1" | "linear2" | "class_embed" => torch(),
        _ if has("mask_embed") => torch(),
        // detectron2's convolutions.
        "input_proj" | "mask_features" | "offset" if !weight => Start::All(0.0),
        _ if shape.len() == 4 => Start::Uniform((3.0 / fan_in as f64).sqrt()),
        _ => panic!("no rule for {name}"),
    }
}

#[test]
fn heads_that_find_masks_start_as_the_official_ones_do() {
    for head in [Head::Maskformer, Head::Mask2former, Head::Fapn, Head::Msfapn] {
        let config = ModelConfig {
            head,
            channels: 64,
            enc_layers: 2,
            sem_res_init: SemResInit::Zero,
            ..ModelConfig::preset("quickstart").unwrap()
        };
        let model = Model::new(&config).unwrap();
        let shapes: BTreeMap<&str, Vec<usize>> = (model.parameters().iter())
            .map(|(name, parameter)| (name, parameter.tensor.dims().to_vec()))
            .collect();
        for (name, values) in initialised(&config, 7) {
            if name == "criterion.empty_weight" {
                let (last, others) = values.split_last().unwrap();
                assert!(*last == 0.1 && others.iter().all(|v| *v == 1.0));
                continue;
            }
            if name.ends_with("sampling_offsets.bias") {
                continue; // A test of its own has the ring.
            }
            let layer = name.rsplit_once('.').map_or("", |(layer, _)| layer);
            let weight = shapes.get(format!("{layer}.weight").as_str());
            let fan_in = weight.map_or(0, |shape| shape[1..].iter().product());
            match official_of_masks(&name, &shapes[name.as_str()], fan_in) {
                Start::All(value) => {
                    assert!(values.iter().all(|&v| f64::from(v) == value), "{name} is all {value}");
                }
                Start::Uniform(bound) => {
                    assert_moments(&name, &values, bound / 3f64.sqrt(), 1.8);
                    let largest = values.iter().fold(0.0, |max, v| f64::max(max, v.abs().into()));
                    assert!(largest <= bound * (1.0 + 1e-6), "{name}: {largest} within {bound}");
                }
                Start::Normal(std) => assert_moments(&name, &values, std, 3.0),
            }
        }
        // Otherwise the last layer of semantic attention is as in SeMask-FPN.
        let active = ModelConfig { sem_res_init: SemResInit::Normal, ..config };
        for (name, values) in initialised(&active, 7) {
            if name.ends_with("mlp_res.weight") {
                assert_moments(&name, &values, 0.02, 3.0);
            }
        }
    }
}
