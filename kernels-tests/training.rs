//! The whole loop: it learns, it is deterministic, and a run that was killed ends like one that was
//! not.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use semask_gpu::checkpoint::{Checkpoint, Entry, OPTIMIZER};
use semask_gpu::data::{Image, LabelMap};
use semask_gpu::gpu::{Family, Tuning};
use semask_gpu::random::Rng;
use semask_gpu::train::log;
use semask_gpu::train::recipe::Recipe;
use semask_gpu::train::trainer::{BEST, LATEST, Outcome, Resume, TrainOptions, train};

use crate::published::imagenet;
use crate::support::GPU;

/// A model that takes milliseconds, with every kind of block and all that is random switched on.
pub(crate) const RECIPE: &str = r#"
[model]
embed_dim = 8
depths = [2, 1, 1, 1]
num_heads = [1, 2, 2, 4]
window_size = 3
sem_window_size = 3
num_sem_blocks = [1, 0, 2, 1]
windowed = [true, true, false, false]
channels = 8
drop_path_rate = 0.2
[data]
batch_size = 2
workers = 2
[augment]
crop_size = [24, 32]
flip = 0.5
photometric = true
[optimizer]
lr = 3e-3
clip_norm = 1.0
[schedule]
iterations = 12
warmup = 2
[eval]
every = 4
[checkpoint]
every = 3
"#;

/// Pictures of bright squares on dark ground; the squares are class 1, some pixels are ignored.
fn data_set(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let description =
        r#"{"name": "squares", "classes": ["ground", "square"], "ignore_index": 255}"#;
    std::fs::write(folder.join("dataset.json"), description).unwrap();
    let mut rng = Rng::new(11, 0);
    for (split, count) in [("train", 6), ("val", 2)] {
        for part in ["images", "labels"] {
            std::fs::create_dir_all(folder.join(part).join(split)).unwrap();
        }
        for i in 0..count {
            let (width, height) = (36, 30);
            let (left, top) = (rng.below(20), rng.below(16));
            let inside =
                |x: usize, y: usize| (left..left + 14).contains(&x) && (top..top + 12).contains(&y);
            let mut image = Image::new(width, height, vec![0; 3 * width * height]);
            let mut labels = LabelMap::new(width, height, vec![0; width * height]);
            for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
                let at = y * width + x;
                let level = if inside(x, y) { 190.0 } else { 60.0 };
                for c in 0..3 {
                    image.pixels[3 * at + c] = (level + rng.between(-40.0, 40.0)) as u8;
                }
                labels.ids[at] = if x == 0 { 255 } else { u8::from(inside(x, y)) };
            }
            image.write_png(&folder.join(format!("images/{split}/{i}.png"))).unwrap();
            let palette = [[0, 0, 0], [255, 0, 0]];
            labels.write_png(&folder.join(format!("labels/{split}/{i}.png")), &palette).unwrap();
        }
    }
}

pub(crate) fn options(folder: &Path, run: &str, sets: &[&str]) -> TrainOptions {
    TrainOptions {
        recipe: Recipe::from_toml_with(RECIPE, "test", sets).unwrap(),
        data: folder.join("data"),
        run: folder.join(run),
        resume: Resume::Never,
        weights: None,
        stop: Arc::new(AtomicBool::new(false)),
    }
}

/// A folder with the data set in it.
pub(crate) fn workshop() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    data_set(&folder.path().join("data"));
    folder
}

pub(crate) fn bytes(folder: &Path, file: &str) -> Vec<u8> {
    std::fs::read(folder.join(file)).unwrap()
}

/// The log without what depends on the clock or tells of interruptions.
fn events(run: &Path) -> Vec<serde_json::Value> {
    let mut events = log::read(&run.join(log::FILE_NAME)).unwrap();
    events.retain(|e| !matches!(e["event"].as_str(), Some("resume" | "stop")));
    for event in &mut events {
        for key in log::TIMES {
            event.as_object_mut().unwrap().remove(*key);
        }
    }
    events
}

#[test]
fn an_encoder_of_imagenet_is_what_training_starts_from() {
    let folder = workshop();
    // A step that is too short to be seen.
    let (still, short) = ("optimizer.lr=1e-30", "schedule.iterations=1");
    let same = |name: &str, a: &Entry, b: &Entry| {
        let (a, b) = (a.to_f32().unwrap(), b.to_f32().unwrap());
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-25), "{name}");
    };
    let latest = |run: &str| {
        Checkpoint::read_where(&folder.path().join(run).join("latest.safetensors"), |name| {
            !name.starts_with(OPTIMIZER)
        })
        .unwrap()
    };
    train(&GPU, options(folder.path(), "first", &[still, short, "seed=1"])).unwrap();
    let file = imagenet(&latest("first"));
    let path = folder.path().join("swin.pth");
    file.write_torch(&path).unwrap();
    for (run, weights) in [("with", Some(path)), ("without", None)] {
        let options = options(folder.path(), run, &[still, short, "seed=2"]);
        train(&GPU, TrainOptions { weights, ..options }).unwrap();
    }
    let (mut taken, without) = (0, latest("without"));
    for (name, entry) in latest("with").entries {
        match name.strip_prefix("backbone.").and_then(|name| file.get(name)) {
            Some(wanted) => {
                same(&name, &entry, wanted);
                taken += 1;
            }
            None if name.contains("running_") => {}
            None => same(&name, &entry, &without.entries[&name]),
        }
    }
    // Nothing else is in the file but the classifier, its norm, a mask and an index.
    assert_eq!(taken, file.entries.len() - 6);
}

#[test]
fn it_learns_two_classes() {
    let folder = workshop();
    let sets = [
        "schedule.iterations=300",
        "optimizer.lr=5e-3",
        "model.drop_path_rate=0",
        "augment.photometric=false",
        "eval.split=train",
        "eval.every=300",
        "checkpoint.every=300",
    ];
    let outcome = train(&GPU, options(folder.path(), "run", &sets)).unwrap();
    assert_eq!(outcome, Outcome::Finished);
    let run = folder.path().join("run");
    let events = events(&run);
    let score = |e: &&serde_json::Value| e["event"] == "eval";
    let last = events.iter().rfind(score).unwrap();
    // Ground alone has 0.42.
    assert!(last["miou"].as_f64().unwrap() > 0.65, "{last}");
    for picture in ["curve.png", "comparison.png"] {
        assert!(run.join(picture).exists(), "{picture}");
    }
}

#[test]
fn the_number_of_workers_changes_nothing() {
    let folder = workshop();
    for (run, workers) in [("a", "data.workers=1"), ("b", "data.workers=3")] {
        train(&GPU, options(folder.path(), run, &[workers, "schedule.iterations=6"])).unwrap();
    }
    let read = |run: &str| {
        let path = folder.path().join(run).join(LATEST);
        let checkpoint = semask_gpu::checkpoint::Checkpoint::read(&path).unwrap();
        let entries = checkpoint.entries.into_iter();
        entries.map(|(name, e)| (name, e.bytes().to_vec())).collect::<Vec<_>>()
    };
    assert!(read("a") == read("b"));
}

#[test]
fn a_stop_between_updates_of_accumulated_gradients_changes_nothing() {
    let folder = workshop();
    let sets = ["optimizer.accumulate=3", "schedule.iterations=4", "checkpoint.every=2"];
    train(&GPU, options(folder.path(), "whole", &sets)).unwrap();
    stop_and_resume(folder.path(), "parts", &sets);
    let read = |run: &str| bytes(&folder.path().join(run), LATEST);
    assert!(read("whole") == read("parts"));
}

/// A run that stops after its first iteration and is continued to its end.
pub(crate) fn stop_and_resume(folder: &Path, run: &str, sets: &[&str]) {
    let stopped = options(folder, run, sets);
    stopped.stop.store(true, Ordering::Relaxed);
    assert_eq!(train(&GPU, stopped).unwrap(), Outcome::Stopped(1));
    let mut resumed = options(folder, run, sets);
    resumed.resume = Resume::Auto;
    assert_eq!(train(&GPU, resumed).unwrap(), Outcome::Finished);
}

/// A head that finds masks in place of the recipe's, small.
pub(crate) const MASKS: [&str; 9] = [
    "model.channels=32",
    "model.nheads=4",
    "model.num_queries=6",
    "model.dim_feedforward=32",
    "model.dec_layers=2",
    "model.enc_layers=1",
    "model.enc_dim_feedforward=32",
    "schedule.iterations=4",
    "checkpoint.every=2",
];

#[test]
fn heads_that_find_masks_stop_and_resume_with_the_same_bits() {
    let folder = workshop();
    for (head, points) in [("maskformer", "none"), ("mask2former", "64")] {
        let own = [format!("model.head={head}"), format!("loss.num_points={points}")];
        let sets: Vec<&str> = own.iter().map(String::as_str).chain(MASKS).collect();
        let [whole, parts] = ["whole", "parts"].map(|run| format!("{head}-{run}"));
        train(&GPU, options(folder.path(), &whole, &sets)).unwrap();
        stop_and_resume(folder.path(), &parts, &sets);
        let read = |run: &str| bytes(&folder.path().join(run), LATEST);
        assert!(read(&whole) == read(&parts), "{head}");

        // Each term is in the log, and they add up to the loss.
        let steps = events(&folder.path().join(&whole));
        for step in steps.iter().filter(|event| event["event"] == "step") {
            let terms = step.as_object().unwrap().iter();
            let terms: Vec<(&String, f64)> = terms
                .filter(|(name, _)| name.starts_with("loss_"))
                .map(|(name, value)| (name, value.as_f64().unwrap()))
                .collect();
            let layers = if head == "maskformer" { 2 } else { 3 };
            assert_eq!(terms.len(), 3 * layers + 1, "{terms:?}");
            let sum: f64 = terms.iter().map(|(_, value)| value).sum();
            let loss = step["loss"].as_f64().unwrap();
            assert!((sum - loss).abs() < 1e-4 * loss, "{sum} {step}");
        }
    }
}

#[test]
fn a_resumed_run_keeps_the_variants_that_it_began_with() {
    let folder = workshop();
    let [usual, unusual] = Family::Product.variants(GPU.profile())[..2] else { unreachable!() };
    let tuned = GPU.with_tuning(Tuning::default().with(Family::Product, unusual));
    let retuned = GPU.with_tuning(Tuning::default().with(Family::Product, usual));
    let sets = ["schedule.iterations=2"];
    train(&tuned, options(folder.path(), "whole", &sets)).unwrap();

    let stopped = options(folder.path(), "parts", &sets);
    stopped.stop.store(true, Ordering::Relaxed);
    assert_eq!(train(&tuned, stopped).unwrap(), Outcome::Stopped(1));
    // Meanwhile the device was tuned again.
    let mut resumed = options(folder.path(), "parts", &sets);
    resumed.resume = Resume::Auto;
    assert_eq!(train(&retuned, resumed).unwrap(), Outcome::Finished);
    // On so few numbers variants may round alike, but the file says what the run's device was told.
    let read = |run: &str| bytes(&folder.path().join(run), LATEST);
    assert!(read("whole") == read("parts"));
    let checkpoint = Checkpoint::read(&folder.path().join("parts").join(LATEST)).unwrap();
    assert_eq!(checkpoint.metadata["tuning"], format!(r#"{{"product":"{unusual}"}}"#));
}

/// The command line on the driver that the tests run on.
fn semask_gpu(arguments: &[&str]) -> Command {
    let binary = env!("CARGO_BIN_EXE_semask-gpu");
    let mut command = match std::env::var_os("SEMASK_GPU_RUN") {
        Some(launcher) => {
            let mut command = Command::new(launcher);
            command.arg(binary);
            command
        }
        None => Command::new(binary),
    };
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Kills the child after `after`, if it still runs; whether it had finished.
fn kill_after(mut child: Child, after: Duration) -> bool {
    let end = Instant::now() + after;
    while Instant::now() < end {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "the run fails: {status}");
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    false
}

#[test]
fn a_run_killed_at_ten_random_instants_ends_with_the_same_bits() {
    let folder = workshop();
    let recipe = folder.path().join("recipe.toml");
    // Long enough that ten kills fall into it, one checkpoint after every iteration or two.
    let text =
        RECIPE.replace("iterations = 12", "iterations = 120").replace("every = 3", "every = 2");
    std::fs::write(&recipe, text).unwrap();
    let path = |p: &PathBuf| p.to_str().unwrap().to_owned();
    let (recipe, data) = (path(&recipe), path(&folder.path().join("data")));
    let start = |run: &Path| {
        let run = path(&run.to_owned());
        let arguments = ["train", &recipe, "--data", &data, "--run", &run, "--resume", "auto"];
        semask_gpu(&arguments).spawn().unwrap()
    };

    let alone = folder.path().join("alone");
    let begin = Instant::now();
    assert!(kill_after(start(&alone), Duration::from_secs(300)), "120 iterations take minutes");
    let whole = begin.elapsed();

    let killed = folder.path().join("killed");
    let mut rng = Rng::new(u64::from(std::process::id()), 7);
    let (mut kills, mut finished) = (0, false);
    while !finished {
        // The start of the program is a large part of so short a run.
        let after = whole.mul_f32(if kills < 10 { rng.between(0.02, 0.16) } else { 10.0 });
        finished = kill_after(start(&killed), after);
        kills += usize::from(!finished);
        assert!(kills < 200, "no progress");
    }
    for file in [LATEST, BEST] {
        assert!(bytes(&alone, file) == bytes(&killed, file), "{file} after {kills} kills");
    }
    let (expected, got) = (events(&alone), events(&killed));
    for (expected, got) in expected.iter().zip(&got) {
        assert_eq!(expected, got, "after {kills} kills");
    }
    assert_eq!(expected.len(), got.len(), "after {kills} kills");
    assert!(kills >= 10, "only {kills} kills fell into the run");
}
