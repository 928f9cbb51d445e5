//! Files as others publish them: names, prefixes, tables of other sizes.

use std::path::Path;

use semask_gpu::checkpoint::{Checkpoint, Dtype, Entry};
use semask_gpu::model::{Model, ModelConfig};
use semask_gpu::nn::Mismatch;
use semask_gpu::random::Rng;
use semask_gpu::{Error, Shape, ops};

use crate::segmenter::small_config;
use crate::support::{self, GPU, random};

fn model(config: &ModelConfig, seed: u64) -> Model {
    let model = Model::new(config).unwrap();
    model.parameters().initialise(&GPU, seed).unwrap();
    model
}

fn checkpoint(model: &Model) -> Checkpoint {
    let mut checkpoint = Checkpoint::default();
    model.parameters().save(&GPU, &mut checkpoint).unwrap();
    checkpoint
}

/// What of a model's checkpoint a classifier of ImageNet has, under the names that it has there.
pub(crate) fn imagenet(checkpoint: &Checkpoint) -> Checkpoint {
    let mut file = Checkpoint::default();
    for (name, entry) in checkpoint.with_prefix("backbone.") {
        let new = name.contains("semantic_layer") || name.starts_with("norm");
        if !new {
            file.insert(name, entry.clone());
        }
    }
    for name in ["norm.weight", "norm.bias", "head.weight", "head.bias"] {
        file.insert(name, Entry::from_f32([2], &[7.0; 2]));
    }
    file.insert("layers.0.blocks.1.attn_mask", Entry::from_f32([1, 2, 2], &[0.0; 4]));
    let index = Entry::new(Dtype::I64, [1, 1], vec![0; 8]);
    file.insert("layers.0.blocks.0.attn.relative_position_index", index);
    file
}

fn written(checkpoint: &Checkpoint) -> Checkpoint {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pth");
    checkpoint.write_torch(&path).unwrap();
    Checkpoint::read(&path).unwrap()
}

#[test]
fn an_encoder_of_imagenet_is_a_start_but_no_model() {
    let config = ModelConfig { ape: true, pretrain_img_size: 32, ..small_config(3) };
    let mut file = imagenet(&checkpoint(&model(&config, 1)));
    // Windows of 7 and pictures of 20 pixels there, windows of 4 and pictures of 32 here.
    let mut rng = Rng::new(2, 0);
    let table = "layers.2.blocks.0.attn.relative_position_bias_table";
    let biases = random(&mut rng, 13 * 13 * 2);
    file.insert(table, Entry::from_f32([13 * 13, 2], &biases));
    let position = random(&mut rng, 16 * 25);
    file.insert("absolute_pos_embed", Entry::from_f32([1, 16, 5, 5], &position));
    let channels_last: Vec<f32> = (0..25 * 16).map(|i| position[i % 16 * 25 + i / 16]).collect();
    let mut older = file.clone();
    older.insert("absolute_pos_embed", Entry::from_f32([1, 25, 16], &channels_last));

    let wanted_table = ops::resize_bicubic_table(&biases, 2, 13, 7);
    let wanted_position = support::forward(&GPU, |tape| {
        let x = semask_gpu::Tensor::pinned("position", [1, 16, 5, 5]);
        x.write(&GPU, &position).unwrap();
        ops::resize_bicubic(tape, &x, 8, 8)
    });
    for file in [written(&file), older] {
        let model = model(&config, 9);
        let before = checkpoint(&model);
        let fit = model.parameters().load_some(&GPU, &file, Path::new("swin.pth")).unwrap();
        assert!(fit.encoder_alone && fit.unexpected.is_empty() && fit.mismatched.is_empty());
        assert_eq!(fit.resized.len(), 2, "{:?}", fit.resized);
        let new = |name: &String| {
            name.starts_with("decode_head.")
                || name.starts_with("backbone.norm")
                || name.contains("semantic_layer")
        };
        assert!(fit.missing.iter().all(new) && !fit.equal.iter().any(new));
        let after = checkpoint(&model);
        for (name, entry) in &after.entries {
            match name.strip_prefix("backbone.") {
                Some("absolute_pos_embed") => {
                    // [1, C, 8, 8] here; the op makes [8, 8, C].
                    let got = entry.to_f32().unwrap();
                    for (i, wanted) in wanted_position.iter().enumerate() {
                        let found = got[i % 16 * 64 + i / 16];
                        assert!((found - wanted).abs() <= 1e-5, "{found} {wanted}");
                    }
                }
                Some(rest) if rest == table => assert_eq!(entry.to_f32().unwrap(), wanted_table),
                Some(rest) if file.get(rest).is_some() => assert_eq!(entry, &file.entries[rest]),
                _ => assert_eq!(entry, &before.entries[name], "{name} starts anew"),
            }
        }
        let error = model.parameters().load(&GPU, &file, Path::new("swin.pth")).unwrap_err();
        let words = error.to_string();
        assert!(words.contains("swin.pth: holds an encoder alone"), "{words}");
    }
}

#[test]
fn names_of_several_gpus_and_versions_are_understood() {
    let config = small_config(3);
    let own = checkpoint(&model(&config, 1));
    let mut wrapped = Checkpoint::default();
    for (name, entry) in &own.entries {
        wrapped.insert(format!("module.{name}"), entry.to_dtype(Dtype::BF16).unwrap());
    }
    let model = model(&config, 2);
    let unknown = model.parameters().load(&GPU, &wrapped, Path::new("x")).unwrap();
    assert_eq!(unknown, [""; 0]);
    let rounded = |entry: &Entry| entry.to_dtype(Dtype::BF16).unwrap().to_f32().unwrap();
    for (name, entry) in checkpoint(&model).entries {
        assert_eq!(entry.to_f32().unwrap(), rounded(&own.entries[&name]), "{name}");
    }
    wrapped.insert("backbone.norm0.bias", own.entries["backbone.norm0.bias"].clone());
    let error = model.parameters().load(&GPU, &wrapped, Path::new("x")).unwrap_err().to_string();
    assert!(error.contains("two arrays called backbone.norm0.bias"), "{error}");
}

#[test]
fn a_classifier_of_other_classes_starts_anew() {
    let three = checkpoint(&model(&small_config(3), 1));
    let five = model(&small_config(5), 2);
    let before = checkpoint(&five);
    let fit = five.parameters().load_some(&GPU, &three, Path::new("x")).unwrap();
    // Weight and bias of the classifier, and of two class maps in each of four stages.
    assert_eq!(fit.mismatched.len(), 2 + 4 * 4);
    let name = "decode_head.conv_seg.bias".to_owned();
    let mismatch = Mismatch { name, found: Shape::from([3]), wanted: Shape::from([5]) };
    assert!(fit.mismatched.contains(&mismatch), "{:?}", fit.mismatched);
    for (name, entry) in checkpoint(&five).entries {
        let anew = fit.mismatched.iter().any(|other| other.name == name);
        let wanted = if anew { &before.entries[&name] } else { &three.entries[&name] };
        assert_eq!(&entry, wanted, "{name}");
    }
    let error = five.parameters().load(&GPU, &three, Path::new("x")).unwrap_err();
    assert!(matches!(error, Error::ParameterShape { .. }), "{error}");
    let mut foreign = Checkpoint::default();
    foreign.insert("resnet.conv1.weight", Entry::from_f32([1], &[0.0]));
    let error = five.parameters().load_some(&GPU, &foreign, Path::new("x")).unwrap_err();
    assert!(error.to_string().contains("nothing of the model's names"), "{error}");
}

/// The nearest of all numbers of 16 bits, found by looking at each.
fn nearest(x: f64, of_bits: impl Fn(u16) -> f64) -> u16 {
    let finite = (0..=u16::MAX).filter(|&bits| of_bits(bits).is_finite());
    let same_sign = finite.filter(|bits| (bits >> 15 == 1) == x.is_sign_negative());
    same_sign
        .min_by(|&a, &b| {
            let distance = |bits: u16| (of_bits(bits) - x).abs();
            // Of two that are as near, the even one.
            distance(a).total_cmp(&distance(b)).then((a & 1).cmp(&(b & 1)))
        })
        .unwrap()
}

#[test]
fn numbers_are_rounded_once_to_the_nearest() {
    let half = |bits: u16| f64::from(half::f16::from_bits(bits).to_f32());
    let brain = |bits: u16| f64::from(f32::from_bits(u32::from(bits) << 16));
    let mut rng = Rng::new(5, 0);
    let mut values = vec![
        0.0,
        -0.0,
        1.0 + 2f64.powi(-11),         // halfway between two of f16
        1.0 + 3.0 * 2f64.powi(-11),   // likewise, the other way
        1.0 + 2f64.powi(-11) + 1e-13, // by way of f32 it would seem halfway
        1.0 + 2f64.powi(-8) + 1e-13,  // likewise for bf16
        2f64.powi(-25),               // halfway to the smallest of f16
        2f64.powi(-25) * 1.000_000_1,
        65_519.9,
        3.0e38,
        1e-40,
    ];
    values.extend((0..40).map(|_| f64::from(rng.normal()) * 10f64.powi(rng.below(12) as i32 - 7)));
    let bytes = values.iter().flat_map(|v: &f64| v.to_le_bytes()).collect();
    let entry = Entry::new(Dtype::F64, [values.len()], bytes);
    let bits = |dtype| {
        let bytes = entry.to_dtype(dtype).unwrap().bytes().to_vec();
        bytes.as_chunks().0.iter().map(|&b| u16::from_le_bytes(b)).collect::<Vec<_>>()
    };
    for (i, (f16, bf16)) in bits(Dtype::F16).into_iter().zip(bits(Dtype::BF16)).enumerate() {
        let x = values[i];
        match x.abs() < 65_520.0 {
            true => assert_eq!(f16, nearest(x, half), "{x:e} in f16"),
            false => assert_eq!(f16 & 0x7fff, 0x7c00, "{x:e} is infinite in f16"),
        }
        assert_eq!(bf16, nearest(x, brain), "{x:e} in bf16");
    }
    // What is wider holds it exactly, and back.
    for dtype in [Dtype::F16, Dtype::BF16] {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let all = Entry::new(dtype, [1 << 16], bytes);
        for wide in [Dtype::F32, Dtype::F64] {
            let back = all.to_dtype(wide).unwrap().to_dtype(dtype).unwrap();
            for (i, (a, b)) in all.bytes().chunks(2).zip(back.bytes().chunks(2)).enumerate() {
                let value = if dtype == Dtype::F16 { half(i as u16) } else { brain(i as u16) };
                assert!(a == b || value.is_nan(), "{dtype} {i:#06x}");
            }
        }
    }
}
