//! SeMask on the Mix Transformer against a PyTorch model of its own (tools/mit_reference.py).

use std::path::Path;

use semask_gpu::checkpoint::{Checkpoint, Entry};
use semask_gpu::gpu::Plan;
use semask_gpu::model::{Encoder, LossSettings, Model, ModelConfig};
use semask_gpu::{Tape, Tensor};

use crate::support::{GPU, OTHER, run};

/// The reference's small model.
fn config() -> ModelConfig {
    ModelConfig {
        encoder: Encoder::Mit,
        embed_dim: 8,
        depths: vec![1, 2, 1, 1],
        num_heads: vec![1, 1, 2, 2],
        sr_ratios: vec![8, 2, 2, 1],
        sem_window_size: 4,
        windowed: Some(vec![true, true, false, false]),
        num_classes: 5,
        mlp_ratio: 2,
        channels: 4,
        drop_path_rate: 0.0,
        dropout: 0.0,
        sem_dropout: 0.0,
        ..ModelConfig::default()
    }
}

const SIZE: [usize; 2] = [62, 83];

/// The model with the reference's numbers: those of a generator (Knuth's MMIX).
fn model(gpu: &semask_gpu::Gpu) -> Model {
    let model = Model::new(&config()).unwrap();
    model.parameters().initialise(gpu, 0).unwrap();
    let mut state: u64 = 1;
    for (name, parameter) in model.parameters().trained() {
        let dims = parameter.tensor.dims();
        let len = parameter.tensor.shape().len();
        let scale = if dims.len() > 1 { len / dims[0] } else { 16 } as f32;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as i64 - (1 << 23)) as f32 / 8_388_608.0 / scale.sqrt()
        };
        let mut values: Vec<f32> = (0..len).map(|_| next()).collect();
        if name.ends_with("gamma") {
            values.fill(0.5);
        } else if dims.len() == 1 && name.ends_with("weight") {
            values.iter_mut().for_each(|v| *v += 1.0);
        }
        parameter.tensor.write(gpu, &values).unwrap();
    }
    model
}

/// The picture, `[1, H, W, 3]`.
fn image(gpu: &semask_gpu::Gpu) -> Tensor {
    let [height, width] = SIZE;
    let places = height * width;
    let value = |i: usize| {
        // The reference's layout is [3, H, W].
        let i = (i % 3 * places + i / 3) as i64;
        ((i * i * 31 + i * 7919) % 1009 - 504) as f32 / 504.0
    };
    let values: Vec<f32> = (0..3 * places).map(value).collect();
    Tensor::from_slice(gpu, [1, height, width, 3], &values)
}

fn labels(gpu: &semask_gpu::Gpu) -> Tensor {
    let [height, width] = SIZE;
    let label = |j: usize| match j / width / 9 % 2 * 3 + j % width / 11 % 3 {
        5 => 255,
        id => id as u8,
    };
    let mut ids: Vec<u8> = (0..height * width).map(label).collect();
    ids.resize(ids.len().next_multiple_of(4), 255);
    let words: Vec<u32> =
        ids.as_chunks().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect();
    Tensor::from_slice(gpu, [words.len()], &words)
}

fn reference() -> Option<Checkpoint> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels-tests/fixtures/mit.safetensors");
    if !path.exists() {
        println!("skipped: no fixture mit");
        return None;
    }
    Some(Checkpoint::read(&path).unwrap())
}

/// Asserts that no element is off by more than `tolerance` of the largest, or `least`.
#[track_caller]
fn check(name: &str, got: &[f32], wanted: &Entry, tolerance: f32, least: f32) {
    let wanted_values = wanted.to_f32().unwrap();
    // The reference's maps have channels first.
    let wanted: Vec<f32> = match *wanted.shape().dims() {
        [1, channels, height, width] if !name.starts_with("gradient.") => {
            let places = height * width;
            let at = |i: usize| wanted_values[i % channels * places + i / channels];
            (0..channels * places).map(at).collect()
        }
        _ => wanted_values,
    };
    assert_eq!(got.len(), wanted.len(), "{name}");
    let scale = wanted.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
    for (i, (got, wanted)) in got.iter().zip(&wanted).enumerate() {
        let error = (got - wanted).abs();
        assert!(error <= tolerance * scale + least, "{name}[{i}]: {got}, not {wanted}, of {scale}");
    }
}

fn equals_the_reference(gpu: &semask_gpu::Gpu) {
    let Some(reference) = reference() else { return };
    let (model, image) = (model(gpu), image(gpu));
    let mut tape = Tape::inference(gpu.profile());
    let features = model.backbone().forward(&mut tape, &image);
    let mut kept = Vec::new();
    for (i, map) in features.maps.iter().enumerate() {
        kept.push((format!("map.{i}"), tape.recorder().keep(map, "map")));
    }
    for (i, prior) in features.priors.iter().enumerate() {
        let prior = prior.as_ref().unwrap();
        kept.push((format!("prior.{i}"), tape.recorder().keep(prior, "prior")));
    }
    run(gpu, &tape.finish());
    // PyTorch in single precision is off by up to 8e-7.
    for (name, tensor) in kept {
        check(&name, &tensor.read(gpu).unwrap(), &reference.entries[&name], 8e-6, 0.0);
    }

    let mut tape = Tape::training(gpu.profile());
    let logits = model.forward(&mut tape, &image);
    let logits = tape.recorder().keep(&logits, "logits");
    run(gpu, &tape.finish());
    check("logits", &logits.read(gpu).unwrap(), &reference.entries["logits"], 8e-6, 0.0);

    for checkpointing in [false, true] {
        let mut tape = Tape::training(gpu.profile()).checkpointing(checkpointing);
        let losses = model.losses(&mut tape, &image, &labels(gpu), LossSettings::default());
        let kept = [("ce", &losses.ce), ("cate", losses.cate.as_ref().unwrap())]
            .map(|(name, loss)| (name, tape.recorder().keep(loss, name)));
        let (mut recorder, gradients) = tape.backward(&losses.total);
        let found: Vec<_> = (model.parameters().trained())
            .map(|(name, parameter)| {
                let gradient = gradients.get(&parameter.tensor).expect(name);
                (format!("gradient.{name}"), recorder.keep(gradient, name))
            })
            .collect();
        Plan::new(gpu, &recorder).unwrap().run().unwrap();
        for (name, loss) in kept {
            check(name, &loss.read(gpu).unwrap(), &reference.entries[name], 2e-6, 0.0);
        }
        assert_eq!(found.len(), reference.with_prefix("gradient.").count());
        for (name, gradient) in found {
            // PyTorch is off by 2e-5 of a gate's gradient, 7e-6 of the others'; a bias that shifts all
            // scores of a row alike has none. The largest gradient of all is 0.8.
            let values = gradient.read(gpu).unwrap();
            check(&name, &values, &reference.entries[&name], 1e-4, 5e-7);
        }
    }
}

#[test]
fn mix_transformer_equals_pytorch() {
    equals_the_reference(&GPU);
}

#[test]
fn mix_transformer_equals_pytorch_with_the_other_kind_of_kernels() {
    equals_the_reference(&OTHER);
}

#[test]
fn pictures_of_any_size_are_seen() {
    let model = model(&GPU);
    for [height, width] in [[1, 1], [1, 70], [33, 2], [31, 32], [65, 64]] {
        let mut tape = Tape::inference(GPU.profile());
        let pixels = vec![0.25_f32; height * width * 3];
        let image = Tensor::from_slice(&GPU, [1, height, width, 3], &pixels);
        let logits = model.forward(&mut tape, &image);
        let logits = tape.recorder().keep(&logits, "logits");
        run(&GPU, &tape.finish());
        assert_eq!(logits.dims(), [1, height.div_ceil(4), width.div_ceil(4), 5]);
        assert!(logits.read(&GPU).unwrap().iter().all(|v| v.is_finite()), "{height} × {width}");
    }
}

/// A classifier that SegFormer's authors published (mit_b0.pth): its names and shapes, written down from
/// their code.
#[test]
fn segformers_encoder_is_a_start() {
    let (depths, channels, reductions) = ([2; 4], [32, 64, 160, 256], [8, 4, 2, 1]);
    let mut file = Checkpoint::default();
    let mut add = |name: String, shape: &[usize]| {
        let values = vec![0.5; shape.iter().product()];
        file.insert(name, Entry::from_f32(shape, &values));
    };
    for i in 0..4 {
        let (n, c) = (i + 1, channels[i]);
        let (inputs, side) = if i == 0 { (3, 7) } else { (channels[i - 1], 3) };
        add(format!("patch_embed{n}.proj.weight"), &[c, inputs, side, side]);
        let mut both = |name: String, shape: &[usize]| {
            add(format!("{name}.weight"), shape);
            add(format!("{name}.bias"), &shape[..1]);
        };
        both(format!("patch_embed{n}.norm"), &[c]);
        both(format!("norm{n}"), &[c]);
        for j in 0..depths[i] {
            let block = format!("block{n}.{j}");
            both(format!("{block}.norm1"), &[c]);
            both(format!("{block}.norm2"), &[c]);
            both(format!("{block}.attn.q"), &[c, c]);
            both(format!("{block}.attn.kv"), &[2 * c, c]);
            both(format!("{block}.attn.proj"), &[c, c]);
            if reductions[i] > 1 {
                both(format!("{block}.attn.sr"), &[c, c, reductions[i], reductions[i]]);
                both(format!("{block}.attn.norm"), &[c]);
            }
            both(format!("{block}.mlp.fc1"), &[4 * c, c]);
            both(format!("{block}.mlp.dwconv.dwconv"), &[4 * c, 1, 3, 3]);
            both(format!("{block}.mlp.fc2"), &[c, 4 * c]);
        }
        add(format!("patch_embed{n}.proj.bias"), &[c]);
    }
    add("head.weight".into(), &[1000, 256]);
    add("head.bias".into(), &[1000]);

    for (preset, new) in [("semask-mit-b0", 4 * (2 + 9)), ("mit-b0", 0)] {
        let config = ModelConfig { num_classes: 19, ..ModelConfig::preset(preset).unwrap() };
        let model = Model::new(&config).unwrap();
        model.parameters().initialise(&GPU, 1).unwrap();
        let fit = model.parameters().load_some(&GPU, &file, Path::new("mit_b0.pth")).unwrap();
        assert_eq!(fit.equal.len(), file.entries.len() - 2, "{preset}");
        assert!(fit.unexpected.is_empty() && fit.mismatched.is_empty() && fit.encoder_alone);
        let semantic = |name: &&String| name.contains("semantic_layer");
        assert_eq!(fit.missing.iter().filter(semantic).count(), new, "{preset}");
        let mut others = fit.missing.iter().filter(|name| !semantic(name));
        assert!(others.all(|name| name.starts_with("decode_head.")), "{:?}", fit.missing);
    }
}
