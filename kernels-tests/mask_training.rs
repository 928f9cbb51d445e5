//! Training of whole models that find masks. Against the reference: assignments, every loss term, the gradient of
//! every parameter, and every parameter after three steps of AdamW with a clipped gradient. And whether they
//! learn a few pictures by heart.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use semask_gpu::model::{GivenPoints, MaskSettings, PointSettings, set_losses};
use semask_gpu::ops::PointSource;
use semask_gpu::optim::AdamWSettings;
use semask_gpu::train::log;
use semask_gpu::train::recipe::{OptimizerTable, Recipe};
use semask_gpu::train::trainer::{Resume, TrainOptions, train};
use semask_gpu::{Gpu, Tape, Tensor};

use crate::cross_entropy::on_device;
use crate::fixtures::Fixture;
use crate::mask_loss::given_points;
use crate::mask_models::{open, pictures};
use crate::models::Replay;
use crate::support::{GPU, OTHER};

/// How the fixtures call layer `i` of `layers`.
fn layer_name(i: usize, layers: usize) -> String {
    if i + 1 == layers { "final".into() } else { i.to_string() }
}

/// The points of each layer.
fn points(
    gpu: &Gpu,
    io: &Fixture,
    layers: usize,
    batch: usize,
    capacity: usize,
) -> Vec<GivenPoints> {
    let of_layer = |i: usize| {
        let layer = layer_name(i, layers);
        let all: Vec<f32> = (0..batch)
            .flat_map(|image| io.f32(&format!("points.match.{layer}.{image}")))
            .copied()
            .collect();
        let matching = Tensor::from_slice(gpu, [batch, all.len() / 2 / batch, 2], &all);
        let PointSource::Given(loss) = given_points(gpu, io, &layer, capacity).source else {
            unreachable!("given")
        };
        GivenPoints { matching, loss }
    };
    (0..layers).map(of_layer).collect()
}

fn training_equals_the_reference(name: &str) {
    for gpu in [&*GPU, &*OTHER] {
        let part = |kind: &str| Fixture::open(&format!("model.{name}.{kind}"));
        let (Some((model, io)), Some(gradients), Some(after)) =
            (open(name, gpu), part("g"), part("p3"))
        else {
            return;
        };
        let replay = Replay { io, gradients, after, model, gpu };
        let (io, model) = (&replay.io, &replay.model);
        let number = |key: &str| io.config[key].as_f64().unwrap();
        let size: [usize; 3] = io.shape("in.seg").try_into().unwrap();
        let seg = io.labels("in.seg");
        let labels = on_device(gpu, &seg);
        let config = model.config();
        let layers = io.names("out.logits.").len();
        let capacity = size[0] * config.num_queries.min(config.num_classes);
        let (settings, given) = if name == "maskformer" {
            (MaskSettings::dense(), None)
        } else {
            let count = number("num_points") as usize;
            let settings = MaskSettings {
                points: Some(PointSettings { count, oversample: 3.0, importance: 0.75 }),
                ..MaskSettings::default()
            };
            (settings, Some(points(gpu, io, layers, size[0], capacity)))
        };

        let mut tape = Tape::training(gpu.profile());
        let image = pictures(io, model, gpu);
        let predictions = model.forward_masks(&mut tape, &image);
        let losses =
            set_losses(&mut tape, &predictions, &labels, size, settings, 0.4, given.as_deref());
        let mut keep = |t: &Tensor| tape.recorder().keep(t, "loss");
        let total = keep(&losses.total);
        let cate = keep(losses.cate.as_ref().unwrap());
        let terms: Vec<[Tensor; 3]> = (losses.layers.iter())
            .map(|layer| [&layer.class, &layer.masks, &layer.goals].map(&mut keep))
            .collect();

        // The parameter groups of the published recipes.
        let table = OptimizerTable {
            backbone_lr: number("backbone_lr_mult"),
            weight_decay: number("weight_decay"),
            ..OptimizerTable::of(config.head)
        };
        let rule = |name: &str, rank| {
            (table.lr_factor_of(name) as f32, table.weight_decay_of(name, rank) as f32)
        };
        let max_norm = Some(number("clip_norm") as f32);
        let adamw = AdamWSettings { max_norm, ..AdamWSettings::default() };
        let first = || {
            io.check("out.term.loss_cate", &cate.read(gpu).unwrap());
            for (i, [class, masks, goals]) in terms.iter().enumerate() {
                let suffix = if i + 1 == layers { String::new() } else { format!("_{i}") };
                let masks = masks.read(gpu).unwrap();
                io.check(&format!("out.term.loss_ce{suffix}"), &class.read(gpu).unwrap());
                io.check(&format!("out.term.loss_mask{suffix}"), &masks[..1]);
                io.check(&format!("out.term.loss_dice{suffix}"), &masks[1..]);
                let goals: Vec<u32> = goals.read_as(gpu).unwrap();
                assert_eq!(goals, expected_goals(io, &seg, &layer_name(i, layers), config));
            }
        };
        // The gradient's norm is the less exact one: its largest part comes from few weights.
        let watched = [("out.loss_total", total)];
        replay.check_steps(tape, &losses.total, adamw, rule, (&watched, 2e-5), first);
    }
}

/// The class of each query of a layer's assignment.
fn expected_goals(
    io: &Fixture,
    seg: &[u8],
    layer: &str,
    config: &semask_gpu::model::ModelConfig,
) -> Vec<u32> {
    let [batch, height, width] = *io.shape("in.seg") else { unreachable!() };
    let mut goals = vec![config.num_classes as u32; batch * config.num_queries];
    for image in 0..batch {
        let labels = &seg[image * height * width..][..height * width];
        let present: BTreeSet<u8> = labels.iter().copied().filter(|&l| l != 255).collect();
        let present: Vec<u8> = present.into_iter().collect();
        let queries = io.integers(&format!("out.pair_query.{layer}.{image}"));
        let targets = io.integers(&format!("out.pair_target.{layer}.{image}"));
        for (query, target) in queries.into_iter().zip(targets) {
            goals[image * config.num_queries + query as usize] = present[target as usize].into();
        }
    }
    goals
}

#[test]
fn maskformer() {
    training_equals_the_reference("maskformer");
}

#[test]
fn mask2former() {
    training_equals_the_reference("mask2former");
}

#[test]
fn mask2former_of_150_classes() {
    training_equals_the_reference("mask2former_k150");
}

#[test]
fn fapn() {
    training_equals_the_reference("fapn");
}

#[test]
fn msfapn() {
    training_equals_the_reference("msfapn");
}

const SMALL: &str = r#"
[model]
embed_dim = 16
depths = [2, 2, 2, 2]
num_heads = [1, 2, 4, 8]
channels = 32
nheads = 4
num_queries = 10
dim_feedforward = 64
dec_layers = 3
enc_layers = 2
enc_dim_feedforward = 64
drop_path_rate = 0.0
dropout = 0.0
sem_dropout = 0.0
[data]
batch_size = 4
order = "sequential"
[augment]
downscale = 2
[optimizer]
lr = 2e-3
weight_decay = 0.01
clip_norm = 1.0
[schedule]
warmup = 10
warmup_kind = "additive"
power = 0.9
[loss]
num_points = 512
[eval]
split = "train"
"#;

/// Pictures of cells at 96 × 96; their borders, a pixel wide, are left out.
fn four_pictures(folder: &Path) -> Option<()> {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/quickstart_nuclei");
    for name in ["57bd029b19c1b382", "a0afead3b4fe393f", "1023509cf8d4c155", "ac8169a0debed115"] {
        for (part, ending) in [("images", "jpg"), ("labels", "png")] {
            let file = format!("{part}/train/{name}.{ending}");
            std::fs::create_dir_all(folder.join(part).join("train")).unwrap();
            let copied = std::fs::copy(from.join(&file), folder.join(&file));
            if copied.is_err() {
                println!("skipped: no {file} in data/quickstart_nuclei");
                return None;
            }
        }
    }
    let description = r#"{"classes": ["background", "nucleus"], "ignore_index": 2}"#;
    std::fs::write(folder.join("dataset.json"), description).unwrap();
    Some(())
}

fn learns_four_pictures(head: &str, iterations: usize, sets: &[&str]) {
    if GPU.name().contains("SwiftShader") {
        println!(
            "skipped: the same kernels are checked one by one on SwiftShader, which takes minutes"
        );
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    if four_pictures(&data).is_none() {
        return;
    }
    let own = [
        format!("model.head={head}"),
        format!("schedule.iterations={iterations}"),
        format!("eval.every={iterations}"),
    ];
    let sets: Vec<&str> = own.iter().map(String::as_str).chain(sets.iter().copied()).collect();
    let run = folder.path().join("run");
    let options = TrainOptions {
        recipe: Recipe::from_toml_with(SMALL, "test", &sets).unwrap(),
        data,
        run: run.clone(),
        resume: Resume::Never,
        weights: None,
        stop: Arc::new(AtomicBool::new(false)),
    };
    train(&GPU, options).unwrap();
    let events = log::read(&run.join(log::FILE_NAME)).unwrap();
    let last = events.iter().rfind(|event| event["event"] == "eval").unwrap();
    assert!(last["miou"].as_f64().unwrap() > 0.95, "{head}: {last}");
}

#[test]
fn maskformer_learns_four_pictures() {
    learns_four_pictures("maskformer", 200, &["loss.num_points=none"]);
}

#[test]
fn mask2former_learns_four_pictures() {
    learns_four_pictures("mask2former", 60, &[]);
}

#[test]
fn fapn_learns_four_pictures() {
    learns_four_pictures("fapn", 60, &[]);
}

#[test]
fn msfapn_learns_four_pictures() {
    learns_four_pictures("msfapn", 60, &[]);
}
