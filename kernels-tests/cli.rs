//! The program as a user runs it.
//!
//! `SEMASK_GPU_RUN`, if set, is a command that starts the program, for drivers that need one.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use semask_gpu::Tensor;
use semask_gpu::checkpoint::{Checkpoint, Entry};
use semask_gpu::data::{Image, LabelMap};
use semask_gpu::infer::{Frame, Segmenter, activations};
use semask_gpu::random::Rng;
use semask_gpu::train::recipe::Recipe;
use serde_json::Value;

use crate::published::imagenet;
use crate::segmenter::{small_config, small_model};
use crate::support::GPU;

fn command(args: &[&str]) -> Command {
    let program = env!("CARGO_BIN_EXE_semask-gpu");
    let mut command = match std::env::var("SEMASK_GPU_RUN") {
        Ok(runner) => {
            let mut words = runner.split_whitespace();
            let mut command = Command::new(words.next().expect("a command"));
            command.args(words).arg(program);
            command
        }
        Err(_) => Command::new(program),
    };
    if let Ok(device) = std::env::var("SEMASK_GPU_DEVICE") {
        command.args(["--device", &device]);
    }
    // What an earlier start has left must not decide what a test sees.
    command.env("SEMASK_GPU_CACHE", "off");
    command.args(args).stdin(Stdio::null());
    command
}

struct Run {
    code: Option<i32>,
    out: String,
    err: String,
}

fn run(args: &[&str]) -> Run {
    let Output { status, stdout, stderr } = command(args).output().unwrap();
    let [out, err] = [stdout, stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    Run { code: status.code(), out, err }
}

#[track_caller]
fn run_well(args: &[&str]) -> String {
    let Run { code, out, err } = run(args);
    assert_eq!(code, Some(0), "{args:?}\n{out}\n{err}");
    out
}

#[track_caller]
fn run_badly(args: &[&str], words: &[&str]) {
    let Run { code, err, .. } = run(args);
    assert_eq!(code, Some(1), "{args:?}\n{err}");
    for word in words {
        assert!(err.contains(word), "{word:?} is not in {err}");
    }
    assert!(!err.contains("panicked"), "{err}");
}

/// A folder with a checkpoint, its parts, and a data set of pictures of odd sizes.
struct World {
    folder: tempfile::TempDir,
}

const SIZES: &[(&str, usize, usize)] =
    &[("a", 40, 30), ("b", 40, 30), ("deep/c", 33, 57), ("d", 5, 3), ("e", 1, 1)];

fn picture(width: usize, height: usize) -> Image {
    let mut rng = Rng::new((width * height) as u64, 0);
    Image::new(width, height, (0..width * height * 3).map(|_| rng.bits() as u8).collect())
}

impl World {
    fn new() -> Self {
        let world = Self { folder: tempfile::tempdir().unwrap() };
        let recipe = Recipe { model: small_config(3), ..Recipe::default() };
        std::fs::write(world.path("recipe.toml"), recipe.to_toml()).unwrap();
        let model = small_model(&GPU, 3);
        let mut checkpoint = Checkpoint::default();
        model.parameters().save(&GPU, &mut checkpoint).unwrap();
        checkpoint.write_atomic(&world.path("weights.safetensors")).unwrap();
        checkpoint.metadata.insert("recipe".into(), recipe.to_toml());
        checkpoint.metadata.insert("classes".into(), r#"["sky","road","tree"]"#.into());
        checkpoint
            .metadata
            .insert("palette".into(), "[[70,130,180],[128,64,128],[107,142,35]]".into());
        checkpoint.write_atomic(&world.path("model.safetensors")).unwrap();

        let classes = r#"{"name": "noise", "classes": ["sky", "road", "tree"]}"#;
        world.write("data/dataset.json", classes.as_bytes());
        for &(name, width, height) in SIZES {
            let path = world.folders(&format!("data/images/val/{name}.png"));
            picture(width, height).write_png(&path).unwrap();
            let mut rng = Rng::new(7, 7);
            let ids = (0..width * height).map(|_| rng.below(3) as u8).collect();
            let path = world.folders(&format!("data/labels/val/{name}.png"));
            LabelMap::new(width, height, ids).write_png(&path, &[[0; 3]; 3]).unwrap();
        }
        world
    }

    fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    fn folders(&self, below: &str) -> PathBuf {
        let path = self.path(below);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    fn write(&self, below: &str, bytes: &[u8]) {
        std::fs::write(self.folders(below), bytes).unwrap();
    }

    fn text(&self, below: &str) -> String {
        self.path(below).to_str().unwrap().to_owned()
    }
}

#[test]
fn devices_are_listed() {
    let out = run_well(&["devices"]);
    assert!(out.contains("(used)") && out.contains("largest binding"), "{out}");
    let list: Value = serde_json::from_str(&run_well(&["devices", "--json"])).unwrap();
    assert!(list.as_array().unwrap().iter().any(|device| device["used"] == true), "{list}");
}

#[test]
fn a_device_that_is_not_there_is_an_error() {
    if std::env::var("SEMASK_GPU_DEVICE").is_ok() {
        return println!("skipped: a device is chosen already");
    }
    run_badly(&["--device", "no such thing", "devices"], &["no adapter is called"]);
}

#[test]
fn wrong_usage_exits_with_2() {
    for args in [&["nonsense"][..], &["eval"], &["describe"]] {
        assert_eq!(run(args).code, Some(2), "{args:?}");
    }
    let help = run_well(&["--help"]);
    assert!(help.contains("EXAMPLES"), "{help}");
}

#[test]
fn models_are_described_without_a_gpu() {
    let out = run_well(&["describe", "--preset", "quickstart", "--size", "64x96", "--batch", "2"]);
    for words in [
        "backbone.layers.3.blocks",
        "2 × 3 × 256",
        "GFLOPs",
        "first moments",
        "training step, 2 pictures",
        "optim.adamw",
    ] {
        assert!(out.contains(words), "{words} is not in\n{out}");
    }
    assert!(!out.contains("warning"), "{out}");
    let out = run_well(&["describe", "--preset", "semask-t", "--batch", "16"]);
    assert!(out.contains("warning: ") && out.contains("150 classes"), "{out}");
    run_badly(&["describe", "--preset", "semask-x"], &["semask-x", "semask-t"]);
    run_badly(&["describe", "none.toml"], &["none.toml"]);
    let out = run_well(&["describe", "semask-t-cityscapes", "--size", "64x64", "--batch", "1"]);
    assert!(out.contains("34.24 M") && out.contains("semask-t-cityscapes: 19 classes"), "{out}");
}

#[test]
fn recipes_are_listed_printed_and_planned() {
    let out = run_well(&["recipes"]);
    let line = out.lines().find(|line| line.starts_with("semask-l-cityscapes ")).unwrap();
    for words in ["cityscapes", "78.53", "80.39", "210.00 M", "768×768", "472.08 G"] {
        assert!(line.contains(words), "{words} is not in {line}");
    }
    let text = run_well(&["recipes", "semask-t-coco-stuff-10k"]);
    assert!(text.contains("ohem_min_kept = 100000") && text.contains("37.53"), "{text}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.toml");
    std::fs::write(&path, text).unwrap();
    let out = run_well(&["describe", path.to_str().unwrap(), "--size", "32x32", "--batch", "1"]);
    assert!(out.contains("171 classes"), "{out}");

    let out = run_well(&["recipes", "quickstart", "--plan", "--json"]);
    assert_eq!(out, run_well(&["recipes", "--plan", "--only", "quickstart", "--json"]));
    let row: serde_json::Value = serde_json::from_str(out.trim()).unwrap();
    assert_eq!((&row["name"], &row["data_set"]), (&"quickstart".into(), &"any".into()));
    let bytes = |key: &str| row["bytes"][key].as_u64().unwrap();
    assert!(bytes("prediction") < bytes("step_of_1"), "{row}");
    assert!(bytes("step_of_1") < bytes("step_of_batch"), "{row}");
    run_badly(&["recipes", "semask-l-cityscape"], &["did you mean semask-l-cityscapes?"]);
    run_badly(&["recipes", "--only", "zzz"], &["no recipe"]);
}

#[test]
fn a_step_is_profiled() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace.json");
    let out = run_well(&[
        "profile",
        "--preset",
        "quickstart",
        "--size",
        "32x40",
        "--batch",
        "1",
        "--runs",
        "1",
        "--set",
        "model.num_classes=3",
        "--trace",
        trace.to_str().unwrap(),
    ]);
    for part in ["share", ".adamw", "\nall ", "replay ", "ui.perfetto.dev"] {
        assert!(out.contains(part), "{part:?} is not in {out}");
    }
    let trace: Value = serde_json::from_slice(&std::fs::read(trace).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    for part in ["backbone", "layers.3", "semantic_layer", "backward", "update", "activations"] {
        assert!(events.iter().any(|e| e["name"] == part), "{part} is not in the trace");
    }
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    use std::io::Read;
    let mut command = command(&["describe", "--preset", "quickstart"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!((child.wait().unwrap().code(), &*err), (Some(0), ""));
}

#[test]
fn data_is_checked() {
    let world = World::new();
    let out = run_well(&["data", "check", &world.text("data")]);
    assert!(out.contains("noise: 3 classes") && out.contains("val: 5 pairs"), "{out}");
    let json = run_well(&["data", "check", "--json", &world.text("data")]);
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["splits"][0]["pairs"], 5);
    std::fs::remove_file(world.path("data/labels/val/a.png")).unwrap();
    assert_eq!(run(&["data", "check", &world.text("data")]).code, Some(1));
    run_badly(&["data", "check", &world.text("none")], &["cannot list", "none"]);
}

#[test]
fn pictures_are_labelled() {
    let world = World::new();
    let checkpoint = world.text("model.safetensors");
    let (images, out) = (world.text("data/images"), world.text("out"));
    let said = run_well(&["predict", "--checkpoint", &checkpoint, "--out", &out, &images]);
    assert!(said.contains("5 of 5 pictures"), "{said}");
    let mut segmenter = Segmenter::new(&GPU, small_model(&GPU, 3));
    for &(name, width, height) in SIZES {
        let path = world.path(&format!("out/val/{name}.png"));
        let labels = LabelMap::read(&path).unwrap();
        assert_eq!((labels.width, labels.height), (width, height));
        let image = picture(width, height);
        let frame = Frame::from_rgb(height, width, &image.pixels).unwrap();
        assert_eq!(segmenter.batch(&[&frame], height, width).unwrap(), [labels.ids]);
        let overlay = Image::read(&world.path(&format!("out/val/{name}_overlay.png"))).unwrap();
        assert!(overlay.height > height && overlay.width >= width);
    }

    // From recipe and weights, and with windows and scales: the same files.
    let (recipe, weights) = (world.text("recipe.toml"), world.text("weights.safetensors"));
    let (one, again) = (world.text("data/images/val/deep/c.png"), world.text("again"));
    let parts = ["predict", "--recipe", &recipe, "--weights", &weights, "--out", &again, &one];
    run_well(&parts);
    let read = |path: &str| LabelMap::read(&world.path(path)).unwrap();
    assert_eq!(read("again/c.png"), read("out/val/deep/c.png"));
    run_well(&[&parts[..], &["--slide", "--tta"]].concat());
    assert_eq!(read("again/c.png").height, 57);
}

#[test]
fn logits_are_written_for_one_picture() {
    let world = World::new();
    let checkpoint = world.text("model.safetensors");
    let (out, file) = (world.text("out"), world.text("logits.safetensors"));
    let (c, d) = (world.text("data/images/val/deep/c.png"), world.text("data/images/val/d.png"));
    let start = ["predict", "--checkpoint", &checkpoint, "--out", &out, "--logits", &file];
    run_well(&[&start[..], &[&*c]].concat());
    let written = Checkpoint::read(Path::new(&file)).unwrap();
    let entry = written.get("logits").unwrap();
    assert_eq!(entry.shape().dims(), [1, 3, 15, 9]);
    let frame = Frame::from_rgb(57, 33, &picture(33, 57).pixels).unwrap();
    let expected = Segmenter::new(&GPU, small_model(&GPU, 3)).logits(&frame).unwrap();
    let values = entry.to_f32().unwrap();
    for (i, v) in expected.values.iter().enumerate() {
        assert_eq!(values[i % 3 * 135 + i / 3], *v);
    }
    run_badly(&[&start[..], &[&*c, &*d]].concat(), &["--logits", "single"]);
}

#[test]
fn one_bad_picture_does_not_stop_the_others() {
    let world = World::new();
    world.write("mixed/bad.png", b"\x89PNG\r\n\x1a\nnothing");
    world.write("mixed/text.jpg", b"hello");
    picture(9, 8).write_png(&world.path("mixed/good.png")).unwrap();
    let checkpoint = world.text("model.safetensors");
    let (mixed, out) = (world.text("mixed"), world.text("out"));
    let args = ["predict", "--checkpoint", &checkpoint, "--out", &out, &mixed, "missing.png"];
    let Run { code, out, err } = run(&args);
    assert_eq!(code, Some(1));
    for name in ["bad.png", "text.jpg", "missing.png"] {
        assert!(err.contains(name), "{err}");
    }
    assert!(out.contains("1 of 3 pictures"), "{out}");
    assert!(world.path("out/good.png").exists());
}

#[test]
fn a_data_set_is_scored() {
    let world = World::new();
    let (checkpoint, data) = (world.text("model.safetensors"), world.text("data"));
    let start = ["eval", "--checkpoint", &checkpoint, "--data", &data];
    let table = run_well(&start);
    assert!(table.contains("sky") && table.contains("mIoU"), "{table}");
    let object: Value =
        serde_json::from_str(&run_well(&[&start[..], &["--json"]].concat())).unwrap();
    assert_eq!(object["images"], 5);
    assert_eq!(object["per_class"].as_array().unwrap().len(), 3);
    let pixels: u64 = SIZES.iter().map(|(_, w, h)| (w * h) as u64).sum();
    let counted: u64 =
        object["per_class"].as_array().unwrap().iter().map(|c| c["pixels"].as_u64().unwrap()).sum();
    assert_eq!(counted, pixels);
    let chance = object["aacc"].as_f64().unwrap();
    assert!((0.2..0.5).contains(&chance), "noise is guessed: {chance}");

    let out = world.text("out");
    run_well(&[&start[..], &["--slide", "--tta", "--out", &out]].concat());
    for file in ["comparison.png", "a.png", "a_overlay.png", "deep/c.png"] {
        assert!(world.path("out").join(file).exists(), "{file}");
    }
    run_badly(&[&start[..], &["--split", "test"]].concat(), &["no split `test`", "val"]);
}

#[test]
fn weights_travel_to_pytorch_and_back() {
    let world = World::new();
    let (model, recipe, data) =
        (world.text("model.safetensors"), world.text("recipe.toml"), world.text("data"));
    let eval = |args: &[&str]| {
        let all = [&["eval", "--data", &data, "--json"], args].concat();
        let mut scores: Value = serde_json::from_str(&run_well(&all)).unwrap();
        scores.as_object_mut().unwrap().remove("seconds");
        scores
    };
    let wanted = eval(&["--checkpoint", &model]);
    let original = Checkpoint::read(&world.path("model.safetensors")).unwrap();
    let mut for_pytorch = original.clone();
    for_pytorch.add_buffers();
    assert_ne!(for_pytorch, original);
    for (name, wanted_there) in
        [("x.pth", &for_pytorch), ("x.pkl", &for_pytorch), ("x.safetensors", &original)]
    {
        let out = world.text(name);
        assert!(run_well(&["convert", &model, &out]).contains("arrays"));
        let back = Checkpoint::read(&world.path(name)).unwrap();
        assert_eq!(back.entries, wanted_there.entries, "{name}");
        assert_eq!(eval(&["--recipe", &recipe, "--weights", &out]), wanted, "{name}");
        run_well(&["inspect", &out, &recipe]);
    }
    // The recipe and the classes have come along.
    assert_eq!(eval(&["--checkpoint", &world.text("x.pth")]), wanted);
    let half = world.text("half.pth");
    run_well(&["convert", &model, &half, "--dtype", "f16"]);
    let listing = run_well(&["inspect", &half]);
    assert!(listing.contains("decode_head.conv_seg.bias") && listing.contains("F16"), "{listing}");
    run_badly(&["convert", &model, &world.text("x.txt")], &["x.txt", ".safetensors, .pth or .pkl"]);
    run_badly(&["convert", &world.text("recipe.toml"), &half], &["recipe.toml"]);
}

#[test]
fn what_does_not_fit_a_model_is_listed() {
    let world = World::new();
    let recipe = world.text("recipe.toml");
    let mut file = Checkpoint::read(&world.path("model.safetensors")).unwrap();
    let bias = file.entries.remove("decode_head.conv_seg.bias").unwrap();
    file.insert("auxiliary_head.bias", bias.clone());
    file.insert("backbone.norm1.bias", bias);
    file.write_torch(&world.path("odd.pth")).unwrap();
    let odd = world.text("odd.pth");
    run_well(&["inspect", &odd]);
    let Run { code, out, .. } = run(&["inspect", &odd, &recipe]);
    assert_eq!(code, Some(1));
    for words in [
        "missing, 1:\n  decode_head.conv_seg.bias",
        "of another shape, 1:\n  backbone.norm1.bias: [3], the model wants [32]",
        "unexpected, 1:\n  auxiliary_head.bias",
    ] {
        assert!(out.contains(words), "{words:?} is not in {out}");
    }
    let Run { code, out, .. } = run(&["inspect", &odd, &recipe, "--json"]);
    assert_eq!(code, Some(1));
    let object: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(object["model"]["unexpected"][0], "auxiliary_head.bias");
    assert_eq!(object["model"]["mismatched"][0]["wanted"][0], 32);

    let original = Checkpoint::read(&world.path("model.safetensors")).unwrap();
    imagenet(&original).write_torch(&world.path("encoder.pth")).unwrap();
    let encoder = world.text("encoder.pth");
    let Run { code, out, .. } = run(&["inspect", &encoder, &recipe]);
    assert!(code == Some(1) && out.contains("for train --init"), "{out}");
    let data = world.text("data");
    let args = ["eval", "--recipe", &recipe, "--weights", &encoder, "--data", &data];
    run_badly(&args, &["encoder.pth", "an encoder alone", "train --init"]);
    let args = ["eval", "--recipe", "semask-t", "--weights", &encoder, "--data", &data];
    run_badly(&args, &["encoder.pth", "an encoder alone", "train --init"]);
}

#[test]
fn layers_are_compared_with_pytorchs() {
    let world = World::new();
    let model = small_model(&GPU, 3);
    let image = Tensor::pinned("input", [1, 8, 12, 3]);
    image.write(&GPU, &[0.5_f32; 8 * 12 * 3]).unwrap();
    let mut file = Checkpoint::default();
    file.insert("input", Entry::from_f32([1, 3, 8, 12], &[0.5; 8 * 12 * 3]));
    for (name, tensor) in activations(&GPU, &model, &image).unwrap() {
        let values = tensor.read(&GPU).unwrap();
        file.insert(name, Entry::from_f32(tensor.shape().clone(), &values));
    }
    file.write_atomic(&world.path("reference.safetensors")).unwrap();
    let (recipe, reference) = (world.text("recipe.toml"), world.text("reference.safetensors"));
    let args = |weights| ["parity", "--reference", &reference, "--weights", weights];
    let own = world.text("model.safetensors");
    assert!(run_well(&args(&own)).contains("all are equal"));
    let bias = "backbone.layers.1.blocks.0.mlp.fc2.bias";
    let mut weights = Checkpoint::read(&world.path("weights.safetensors")).unwrap();
    weights.insert(bias, Entry::from_f32([32], &[1.0; 32]));
    weights.write_torch(&world.path("other.pth")).unwrap();
    let other = world.text("other.pth");
    let Run { code, out, .. } = run(&[&args(&other)[..], &[&recipe]].concat());
    assert_eq!(code, Some(1));
    assert!(out.contains("the first that differs is backbone.layers.1.blocks.0:"), "{out}");
    let Run { code, out, .. } = run(&[&args(&other)[..], &[&recipe, "--json"]].concat());
    let object: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, Some(1));
    assert_eq!(object["first_difference"], "backbone.layers.1.blocks.0");
    run_badly(&args(&other), &["other.pth", "has no recipe"]);
}

#[test]
fn wrong_weights_are_refused_by_name() {
    let world = World::new();
    let data = world.text("data");
    let checkpoint = |name: &str, change: &dyn Fn(&mut Checkpoint)| {
        let mut checkpoint = Checkpoint::read(&world.path("model.safetensors")).unwrap();
        change(&mut checkpoint);
        checkpoint.write_atomic(&world.path(name)).unwrap();
        world.text(name)
    };
    let bias = "decode_head.conv_seg.bias";
    let missing = checkpoint("missing", &|c| drop(c.entries.remove(bias)));
    run_badly(&["eval", "--checkpoint", &missing, "--data", &data], &["missing", bias]);
    let no_recipe = checkpoint("no_recipe", &|c| drop(c.metadata.remove("recipe")));
    run_badly(&["eval", "--checkpoint", &no_recipe, "--data", &data], &["--recipe"]);
    let shape = checkpoint("shape", &|c| {
        let entry = c.get("backbone.norm0.bias").unwrap().clone();
        c.insert(bias, entry);
    });
    run_badly(&["eval", "--checkpoint", &shape, "--data", &data], &[bias, "[16]", "[3]"]);
    world.write("text.safetensors", b"hello");
    let text = world.text("text.safetensors");
    run_badly(&["eval", "--checkpoint", &text, "--data", &data], &["text.safetensors"]);
    // What belongs to no parameter is no error.
    let more = checkpoint("more", &|c| {
        let entry = c.get(bias).unwrap().clone();
        c.insert("optimizer.m.x", entry.clone());
        c.insert("backbone.norm0.num_batches_tracked", entry.clone());
        c.insert("auxiliary_head.bias", entry);
    });
    let Run { code, err, .. } = run(&["eval", "--checkpoint", &more, "--data", &data]);
    assert_eq!(code, Some(0), "{err}");
    assert!(err.contains("auxiliary_head.bias") && !err.contains("tracked"), "{err}");

    world.write("two/dataset.json", br#"{"classes": ["a", "b"]}"#);
    std::fs::rename(world.path("data/images"), world.path("two/images")).unwrap();
    std::fs::rename(world.path("data/labels"), world.path("two/labels")).unwrap();
    let (two, model) = (world.text("two"), world.text("model.safetensors"));
    run_badly(&["eval", "--checkpoint", &model, "--data", &two], &["2 classes", "3"]);
}
