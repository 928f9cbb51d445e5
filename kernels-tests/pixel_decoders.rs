//! Pixel decoders against the reference, with the weights and the encoder's maps of whole models, and
//! the parameters that two of their layers share.

use std::collections::BTreeMap;
use std::path::Path;

use semask_gpu::checkpoint::Checkpoint;
use semask_gpu::model::{DeformEncoderConfig, DeformPixelDecoder, FpnPixelDecoder, PixelFeatures};
use semask_gpu::nn::{ParameterScope, Parameters};
use semask_gpu::{Error, Gpu, Tape, Tensor};

use crate::fixtures::Fixture;
use crate::support::{GPU, OTHER, random, run};

const PREFIX: &str = "sem_seg_head.pixel_decoder.";

enum Decoder {
    Fpn(Box<FpnPixelDecoder>),
    Deform(Box<DeformPixelDecoder>),
}

impl Decoder {
    fn new(scope: ParameterScope<'_>, io: &Fixture) -> Self {
        let number = |key: &str| io.config[key].as_u64().unwrap() as usize;
        let in_channels = [0, 1, 2, 3].map(|i| io.shape(&format!("out.feat.{i}"))[1]);
        let (dim, mask_dim) = (number("dim"), number("mask_dim"));
        let encoder = || DeformEncoderConfig {
            dim,
            heads: number("heads"),
            ffn: number("enc_ffn"),
            layers: number("enc_layers"),
        };
        match io.config["kind"].as_str().unwrap() {
            kind @ ("maskformer" | "fapn") => {
                let align = kind == "fapn";
                let decoder = FpnPixelDecoder::new(scope, in_channels, dim, mask_dim, align);
                Self::Fpn(decoder.into())
            }
            kind => {
                let align = kind == "msfapn";
                let decoder =
                    DeformPixelDecoder::new(scope, in_channels, encoder(), mask_dim, align);
                Self::Deform(decoder.into())
            }
        }
    }

    fn forward(&self, tape: &mut Tape, maps: &[Tensor]) -> PixelFeatures {
        match self {
            Self::Fpn(decoder) => decoder.forward(tape, maps),
            Self::Deform(decoder) => decoder.forward(tape, maps),
        }
    }
}

/// The decoder of a model's fixtures, on a device.
struct Replay {
    io: Fixture,
    parameters: Parameters,
    decoder: Decoder,
    maps: Vec<Tensor>,
    gpu: &'static Gpu,
}

impl Replay {
    fn open(name: &str, gpu: &'static Gpu) -> Option<Self> {
        let part = |kind: &str| Fixture::open(&format!("model.{name}.{kind}"));
        let (io, weights) = (part("io")?, part("w")?);
        let mut parameters = Parameters::new();
        let mut root = parameters.root();
        let decoder = Decoder::new(root.at("sem_seg_head").at("pixel_decoder"), &io);
        let mut names = BTreeMap::new();
        for (name, parameter) in parameters.iter() {
            assert_eq!(parameter.tensor.dims(), weights.shape(name), "{name}");
            parameter.tensor.write(gpu, weights.f32(name)).unwrap();
            names.insert(name.to_owned(), name.to_owned());
        }
        for (alias, name) in parameters.aliases() {
            assert_eq!(weights.f32(alias), weights.f32(name), "{alias}");
            names.insert(alias.to_owned(), name.to_owned());
        }
        let expected = weights.names(PREFIX);
        assert_eq!(expected, names.keys().map(String::as_str).collect::<Vec<_>>());
        let maps = (0..4).map(|i| io.image(gpu, &format!("out.feat.{i}"))).collect();
        Some(Self { io, parameters, decoder, maps, gpu })
    }

    /// Mask features and memory.
    fn forward(&self) -> Vec<Vec<f32>> {
        let mut tape = Tape::inference(self.gpu.profile());
        let PixelFeatures { mask_features, memory } = self.decoder.forward(&mut tape, &self.maps);
        let kept: Vec<Tensor> = std::iter::once(&mask_features)
            .chain(&memory)
            .map(|t| tape.recorder().keep(t, "features"))
            .collect();
        run(self.gpu, &tape.finish());
        kept.iter().map(|t| t.read(self.gpu).unwrap()).collect()
    }

    fn parameter(&self, name: &str) -> &Tensor {
        &self.parameters.get(&format!("{PREFIX}{name}")).unwrap().tensor
    }
}

fn equals_the_reference(name: &str) {
    for gpu in [&*GPU, &*OTHER] {
        let Some(replay) = Replay::open(name, gpu) else { return };
        let got = replay.forward();
        replay.io.check_image("out.mask_features", &got[0]);
        for (i, level) in got[1..].iter().enumerate() {
            replay.io.check_image(&format!("out.level.{i}"), level);
        }
    }
}

#[test]
fn maskformers_equals_the_reference() {
    equals_the_reference("maskformer");
}

#[test]
fn mask2formers_equals_the_reference() {
    equals_the_reference("mask2former");
    equals_the_reference("mask2former_k150");
}

#[test]
fn fapns_equals_the_reference() {
    equals_the_reference("fapn");
}

#[test]
fn msfapns_equals_the_reference() {
    equals_the_reference("msfapn");
}

/// Gradients of all that is computed, along the direction of some parameters: the shared norm's have two
/// sources, the level embedding's come by way of positions.
#[test]
fn gradients_are_slopes() {
    for (name, parameters) in [
        ("msfapn", &["align_1.offset.norm.weight", "align_1.offset.norm.bias"][..]),
        ("msfapn", &["transformer.level_embed"]),
        ("msfapn", &["input_proj.0.0.weight", "adapter_1.weight", "mask_features.bias"]),
        ("fapn", &["align_2.offset.norm.weight", "layer_4.norm.bias"]),
        ("fapn", &["align_1.dcpack_L2.weight", "align_3.dcpack_L2.conv_offset_mask.bias"]),
        ("fapn", &["mask_features.bias", "layer_3.weight", "adapter_2.weight"]),
    ] {
        let Some(replay) = Replay::open(name, &GPU) else { return };
        let mut rng = semask_gpu::random::Rng::new(5, 5);
        let mut tape = Tape::training(GPU.profile());
        let features = replay.decoder.forward(&mut tape, &replay.maps);
        let outputs: Vec<&Tensor> =
            std::iter::once(&features.mask_features).chain(&features.memory).collect();
        let seeds: Vec<Vec<f32>> =
            outputs.iter().map(|t| random(&mut rng, t.shape().len())).collect();
        let seeded: Vec<(&Tensor, Tensor)> = (outputs.into_iter().zip(&seeds))
            .map(|(t, seed)| (t, Tensor::from_slice(&GPU, t.shape().clone(), seed)))
            .collect();
        let (mut recorder, gradients) = tape.backward_from(&seeded);
        for (name, parameter) in replay.parameters.trained() {
            assert!(gradients.get(&parameter.tensor).is_some(), "no gradient for {name}");
        }
        let kept: Vec<Tensor> = (parameters.iter())
            .map(|name| recorder.keep(gradients.get(replay.parameter(name)).unwrap(), "gradient"))
            .collect();
        run(&GPU, &recorder);

        let loss = || -> f64 {
            let outputs = replay.forward();
            let all = outputs.iter().flatten().zip(seeds.iter().flatten());
            all.map(|(y, seed)| f64::from(*y) * f64::from(*seed)).sum()
        };
        // Steps along the gradient itself, where the slope is largest.
        let steps: Vec<Vec<f32>> = kept.iter().map(|g| g.read(&GPU).unwrap()).collect();
        let squares: f64 = steps.iter().flatten().map(|g| f64::from(*g).powi(2)).sum();
        let values: Vec<Vec<f32>> =
            parameters.iter().map(|name| replay.parameter(name).read(&GPU).unwrap()).collect();
        let at = |by: f64| {
            for ((name, values), steps) in parameters.iter().zip(&values).zip(&steps) {
                let moved: Vec<f32> = (values.iter().zip(steps))
                    .map(|(v, g)| (f64::from(*v) + by / squares.sqrt() * f64::from(*g)) as f32)
                    .collect();
                replay.parameter(name).write(&GPU, &moved).unwrap();
            }
            loss()
        };
        const STEP: f64 = 2e-3;
        let slope = (at(STEP) - at(-STEP)) / (2.0 * STEP);
        let error = (slope / squares.sqrt() - 1.0).abs();
        assert!(
            error <= 0.01,
            "{name}: {parameters:?}: slope {slope}, gradient {}",
            squares.sqrt()
        );
    }
}

#[test]
fn shared_parameters_have_two_names_in_checkpoints() {
    let Some(replay) = Replay::open("msfapn", &GPU) else { return };
    let name = |which: &str| format!("{PREFIX}{which}.norm.weight");
    let (own, alias) = (name("align_1.offset"), name("layer_1"));
    assert!(replay.parameters.get(&alias).is_none(), "one parameter, not two");
    let parameter = replay.parameter("align_1.offset.norm.weight");
    let values = parameter.read(&GPU).unwrap();

    let mut saved = Checkpoint::default();
    replay.parameters.save(&GPU, &mut saved).unwrap();
    for name in [&own, &alias] {
        assert_eq!(saved.get(name).unwrap().to_f32().unwrap(), values, "{name}");
    }
    let path = Path::new("weights");
    let load = |missing: &[&str], changed: Option<&str>| {
        parameter.write(&GPU, &vec![0f32; values.len()]).unwrap();
        let mut checkpoint = Checkpoint::default();
        for (name, entry) in saved.parameters().filter(|(name, _)| !missing.contains(name)) {
            let mut entry = entry.clone();
            if changed == Some(name) {
                let ones = vec![1f32; values.len()];
                entry = semask_gpu::checkpoint::Entry::from_f32(entry.shape().clone(), &ones);
            }
            checkpoint.insert(name, entry);
        }
        replay.parameters.load(&GPU, &checkpoint, path)
    };
    for missing in [&[][..], &[own.as_str()], &[alias.as_str()]] {
        assert_eq!(load(missing, None).unwrap(), Vec::<String>::new());
        assert_eq!(parameter.read(&GPU).unwrap(), values);
    }
    match load(&[&own, &alias], None) {
        Err(Error::MissingParameters { names, .. }) => {
            assert_eq!(names, std::slice::from_ref(&own))
        }
        other => panic!("{other:?}"),
    }
    let error = load(&[], Some(&alias)).unwrap_err().to_string();
    assert!(error.contains(&own) && error.contains(&alias), "{error}");
}

#[test]
fn offsets_start_in_a_ring() {
    let Some(fx) = Fixture::open("block.msdeform_offset_init") else { return };
    let mut parameters = Parameters::new();
    semask_gpu::model::MsDeformAttention::new(parameters.root(), 64, 8);
    parameters.initialise(&GPU, 1).unwrap();
    let bias = parameters.get("sampling_offsets.bias").unwrap().tensor.read(&GPU).unwrap();
    for (got, expected) in bias.iter().zip(fx.f32("heads8_levels3_points4")) {
        // The reference has angles in f32.
        assert!((got - expected).abs() <= 4e-6, "{got} but expected {expected}");
    }
}
