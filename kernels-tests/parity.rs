//! Models beside PyTorch, layer by layer.

use std::path::Path;

use semask_gpu::Tensor;
use semask_gpu::checkpoint::{Checkpoint, Entry};
use semask_gpu::infer::{INPUT, Parity, activations, parity};
use semask_gpu::model::{Model, ModelConfig};
use semask_gpu::random::Rng;

use crate::fixtures::Fixture;
use crate::models::config;
use crate::segmenter::small_config;
use crate::support::{GPU, random};

/// As far as `f32` goes in so small a model.
const EQUAL: f64 = 2e-5;

/// The same model as PyTorch's modules would show it: maps with channels first, stages and semantic
/// layers with several results.
fn reference(model: &Model, height: usize, width: usize) -> Checkpoint {
    let mut rng = Rng::new(4, 0);
    let picture = random(&mut rng, height * width * 3);
    let image = Tensor::pinned(INPUT, [1, height, width, 3]);
    image.write(&GPU, &picture).unwrap();
    let mut file = Checkpoint::default();
    file.insert(INPUT, channels_first(&picture, [1, height, width, 3]));
    for (name, tensor) in activations(&GPU, model, &image).unwrap() {
        let values = tensor.read(&GPU).unwrap();
        match *tensor.dims() {
            [1, height, width, channels] if name.starts_with("backbone.layers") => {
                // Tokens of a stage; what else it has to say comes first.
                let tokens = Entry::from_f32([1, height * width, channels], &values);
                file.insert(format!("{name}.0"), Entry::from_f32([1], &[0.0]));
                file.insert(format!("{name}.1"), tokens);
            }
            [1, height, width, channels] => {
                file.insert(name, channels_first(&values, [1, height, width, channels]));
            }
            _ => file.insert(name, Entry::from_f32(tensor.shape().clone(), &values)),
        }
    }
    file.insert("decode_head.dropout", Entry::from_f32([1], &[0.0]));
    file
}

fn channels_first(values: &[f32], [batch, height, width, channels]: [usize; 4]) -> Entry {
    let places = height * width;
    let at = |i: usize| {
        let (image, channel, place) = (i / places / channels, i / places % channels, i % places);
        values[(image * places + place) * channels + channel]
    };
    let values: Vec<f32> = (0..values.len()).map(at).collect();
    Entry::from_f32([batch, channels, height, width], &values)
}

fn compare(model: &Model, reference: &Checkpoint) -> Parity {
    parity(&GPU, model, reference, Path::new("reference")).unwrap()
}

fn first(parity: &Parity) -> Option<&str> {
    parity.layers.iter().find(|layer| layer.differs(EQUAL)).map(|layer| layer.name.as_str())
}

#[test]
fn a_changed_parameter_is_found_where_it_is() {
    let config = ModelConfig { num_sem_blocks: vec![1, 0, 2, 1], ..small_config(3) };
    let model = Model::new(&config).unwrap();
    model.parameters().initialise(&GPU, 3).unwrap();
    for (name, parameter) in model.parameters().iter() {
        if name.ends_with("gamma") {
            parameter.tensor.write(&GPU, &[0.5_f32]).unwrap();
        }
    }
    let reference = reference(&model, 45, 61);
    let same = compare(&model, &reference);
    assert!(same.layers.iter().all(|layer| layer.max == 0.0), "{same:?}");
    assert!(same.not_compared.is_empty() && same.unknown == 1, "{same:?}");
    // The encoder, its first part and four norms; a stage, a block, its two norms, and where it has them
    // the semantic layer, its norm and blocks, and what merges patches; the head and its parts.
    assert_eq!(same.layers.len(), 6 + 4 * 4 + (3 * 2 + 4) + 3 + 6);
    assert_eq!(same.layers[0].name, "backbone.patch_embed");
    assert_eq!(same.layers.last().unwrap().name, "decode_head");

    for (parameter, layer) in [
        ("backbone.patch_embed.proj.bias", "backbone.patch_embed"),
        ("backbone.layers.0.blocks.0.norm1.weight", "backbone.layers.0.blocks.0.norm1"),
        ("backbone.layers.1.blocks.0.attn.proj.weight", "backbone.layers.1.blocks.0.norm2"),
        ("backbone.layers.1.blocks.0.mlp.fc2.weight", "backbone.layers.1.blocks.0"),
        (
            "backbone.layers.2.semantic_layer.class_injection.1.mlp_v.bias",
            "backbone.layers.2.semantic_layer.class_injection.1",
        ),
        ("backbone.layers.2.downsample.reduction.weight", "backbone.layers.2.downsample"),
        ("backbone.norm0.bias", "backbone.norm0"),
        ("decode_head.scale_heads.2.2.bn.running_var", "decode_head.scale_heads.2"),
        ("decode_head.conv_seg.weight", "decode_head.conv_seg"),
    ] {
        let tensor = &model.parameters().get(parameter).unwrap().tensor;
        let before = tensor.read(&GPU).unwrap();
        let after: Vec<f32> = before.iter().map(|v| 1.5 * v + 0.25).collect();
        tensor.write(&GPU, &after).unwrap();
        assert_eq!(first(&compare(&model, &reference)), Some(layer), "{parameter}");
        tensor.write(&GPU, &before).unwrap();
    }
    let tensor = &model.parameters().get("backbone.norm1.bias").unwrap().tensor;
    tensor.write(&GPU, &[f32::NAN; 32]).unwrap();
    assert_eq!(first(&compare(&model, &reference)), Some("backbone.norm1"));
}

#[test]
fn pytorchs_features_and_logits_are_equal() {
    let Some(io) = Fixture::open("model.fpn_k19_pad.io") else { return };
    let Some(weights) = Fixture::open("model.fpn_k19_pad.w") else { return };
    let model = Model::new(&config(&io.config)).unwrap();
    for (name, parameter) in model.parameters().iter() {
        parameter.tensor.write(&GPU, weights.f32(name)).unwrap();
    }
    let mut file = Checkpoint::default();
    let mut copy = |name: &str, from: &str| {
        file.insert(name, Entry::from_f32(io.shape(from), io.f32(from)));
    };
    copy(INPUT, "in.img");
    copy("decode_head.conv_seg", "out.eval.logits");
    for i in 0..4 {
        copy(&format!("backbone.norm{i}"), &format!("out.feat.{i}"));
    }
    let found = compare(&model, &file);
    assert_eq!((found.layers.len(), first(&found)), (5, None), "{found:?}");
    let bias =
        &model.parameters().get("backbone.layers.3.semantic_layer.norm1.bias").unwrap().tensor;
    let moved: Vec<f32> = bias.read(&GPU).unwrap().iter().map(|v| v + 0.01).collect();
    bias.write(&GPU, &moved).unwrap();
    assert_eq!(first(&compare(&model, &file)), Some("backbone.norm3"));
}

#[test]
fn files_without_activations_are_refused() {
    let model = Model::new(&small_config(3)).unwrap();
    model.parameters().initialise(&GPU, 3).unwrap();
    let refused = |entries: &[(&str, Entry)], reason: &str| {
        let mut file = Checkpoint::default();
        entries.iter().for_each(|(name, entry)| file.insert(*name, entry.clone()));
        let error = parity(&GPU, &model, &file, Path::new("a")).unwrap_err().to_string();
        assert!(error.starts_with("a: ") && error.contains(reason), "{error}");
    };
    let input = (INPUT, Entry::from_f32([1, 3, 4, 4], &[0.0; 48]));
    refused(&[], "has no input");
    refused(&[(INPUT, Entry::from_f32([1, 4, 4, 3], &[0.0; 48]))], "not [B, 3, H, W]");
    refused(&[(INPUT, Entry::from_f32([1, 3, 0, 4], &[]))], "input is [1, 3, 0, 4]");
    refused(std::slice::from_ref(&input), "no results of the model's layers");
    let other = ("backbone.norm0", Entry::from_f32([1, 17, 1, 1], &[0.0; 17]));
    refused(&[input, other], "no results of the model's layers");
}
