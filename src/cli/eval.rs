//! `semask-gpu eval`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use crate::data::{Dataset, Format, LabelMap, Sample};
use crate::infer::{Segmenter, Slide};
use crate::picture::{Picture, Sheet, SheetRow, overlay};
use crate::train::evaluate::{EvalOptions, evaluate};
use crate::train::metrics::Confusion;
use crate::train::recipe::Recipe;
use crate::{Error, Gpu, Result};
use serde_json::json;

use super::load::{ModelArgs, load_model};
use super::{bar, complain, print};

const EXAMPLES: &str = "\
EXAMPLES:
  semask-gpu eval --checkpoint runs/first/best.safetensors --data data/streets
  semask-gpu eval --checkpoint runs/first/best.safetensors --data data/streets --split test --tta --json
  semask-gpu eval --recipe semask-t.toml --weights semask-t.safetensors --data data/ade20k --out pictures

Scores are those of mmsegmentation: mIoU over the classes that are labelled or predicted, mAcc over those \
that are labelled, aAcc over all labelled pixels. Pictures are scaled as the recipe's eval.resize says and \
scored at their own size.";

/// Pictures on the sheet that `--out` gets.
const SHOWN: usize = 8;

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// The data set's folder
    #[arg(long, value_name = "DIR")]
    data: PathBuf,

    /// The part of the data set
    #[arg(long, default_value = "val")]
    split: String,

    /// Look at overlapping windows instead of whole pictures: those of the recipe's eval.slide, else
    /// of the size of its crops
    #[arg(long)]
    slide: bool,

    /// Look at six scales, straight and mirrored, and average
    #[arg(long)]
    tta: bool,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    /// Write each prediction, and a sheet of some beside their labels, into this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// The windows of `--slide`.
pub(super) fn slide_of(recipe: &Recipe) -> Slide {
    let crop = recipe.augment.crop_size.unwrap_or([512; 2]);
    let default = Slide { crop, stride: crop.map(|side| (2 * side / 3).max(1)) };
    recipe.eval.slide.clone().unwrap_or(default)
}

pub(crate) fn run(args: &Args, open: impl FnOnce() -> Result<Gpu>) -> Result<ExitCode> {
    // What is wrong with the data should not have to wait for the model.
    let mut dataset = Dataset::open(&args.data)?;
    let mut items = dataset.split(&args.split)?;
    let loaded = load_model(&args.model, open)?;
    let format = loaded.recipe.data.format;
    if format != Format::Auto && format != dataset.format {
        dataset = Dataset::open_as(&args.data, format)?;
        items = dataset.split(&args.split)?;
    }
    check_classes(&dataset, loaded.classes.as_deref())?;
    let mut options = EvalOptions::of(&loaded.recipe);
    if args.slide {
        options.slide = Some(slide_of(&loaded.recipe));
    }
    if args.tta {
        options = options.with_tta();
    }
    let augmentation = loaded.recipe.augment.clone();
    if let Some(out) = &args.out {
        std::fs::create_dir_all(out).map_err(Error::file("create", out))?;
    }

    let mut segmenter = Segmenter::new(&loaded.gpu, loaded.model);
    let bar = bar(items.len());
    let start = Instant::now();
    let mut shown: Vec<(Sample, Vec<u8>)> = Vec::new();
    let mut failure = None;
    let apart = items.len().div_ceil(SHOWN).max(1);
    let confusion = evaluate(&mut segmenter, &dataset, &items, &augmentation, &options, |at| {
        bar.set_position(at.done as u64);
        bar.set_message(at.sample.name.clone());
        let Some(out) = &args.out else { return };
        if let Err(error) = write_prediction(out, &dataset, at.sample, at.prediction) {
            failure.get_or_insert(error);
        }
        if (at.done - 1) % apart == 0 && shown.len() < SHOWN {
            shown.push((at.sample.clone(), at.prediction.to_vec()));
        }
    })?;
    bar.finish_and_clear();
    if let Some(error) = failure {
        return Err(error);
    }
    let seconds = start.elapsed().as_secs_f64();

    let scores = confusion.scores();
    if let Some(out) = &args.out {
        let title = format!("{}, {}: mIoU {:.2}", dataset.name, args.split, 100.0 * scores.miou);
        draw_sheet(&dataset, &title, &shown).write_png(&out.join("comparison.png"))?;
    }
    if args.json {
        let mut object = serde_json::to_value(&scores).expect("plain values");
        object["classes"] = json!(dataset.classes);
        object["data"] = json!(dataset.name);
        object["split"] = json!(args.split);
        object["images"] = json!(items.len());
        object["seconds"] = json!(seconds);
        object["device"] = json!(loaded.gpu.name());
        object["slide"] = json!(options.slide);
        object["tta"] = json!(args.tta);
        print(object)?;
    } else {
        print(scores.table(&dataset.classes))?;
        let [miou, macc, aacc] = [scores.miou, scores.macc, scores.aacc].map(|s| 100.0 * s);
        print(format!("\nmIoU {miou:.2}  mAcc {macc:.2}  aAcc {aacc:.2}"))?;
        let speed = items.len() as f64 / seconds.max(1e-9);
        print(format!("{} pictures in {seconds:.1} s, {speed:.2} per second", items.len()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A model of other classes would be scored all the same, wrongly.
fn check_classes(dataset: &Dataset, trained: Option<&[String]>) -> Result<()> {
    let Some(trained) = trained else { return Ok(()) };
    if trained.len() == dataset.classes.len() && trained != dataset.classes {
        let pairs = trained.iter().zip(&dataset.classes).enumerate();
        let (i, (ours, theirs)) =
            pairs.into_iter().find(|(_, (a, b))| a != b).expect("they differ");
        complain(format!(
            "semask-gpu: class {i} is called {ours:?} in the checkpoint but {theirs:?} in the data set"
        ));
    }
    Ok(())
}

/// `NAME.png` and `NAME_overlay.png`.
fn write_prediction(out: &Path, dataset: &Dataset, sample: &Sample, ids: &[u8]) -> Result<()> {
    let path = out.join(format!("{}.png", sample.name));
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
    }
    let (width, height) = (sample.image.width, sample.image.height);
    LabelMap::new(width, height, ids.to_vec()).write_png(&path, &dataset.palette)?;
    let blended = overlay(&sample.image.pixels, width, height, ids, &dataset.palette, 0.5);
    let path = out.join(format!("{}_overlay.png", sample.name));
    Picture::from_rgb(width, height, blended).write_png(&path)
}

/// Some pictures beside their labels and predictions.
fn draw_sheet(dataset: &Dataset, title: &str, shown: &[(Sample, Vec<u8>)]) -> Picture {
    let mut rows = Vec::new();
    for (Sample { name, image, labels }, prediction) in shown {
        let mut confusion = Confusion::new(dataset.classes.len());
        let caption = match confusion.add(prediction, &labels.ids) {
            Ok(()) => format!("{name}, mIoU {:.1}", 100.0 * confusion.scores().miou),
            Err(_) => name.clone(),
        };
        rows.push(SheetRow {
            caption,
            width: image.width,
            height: image.height,
            rgb: &image.pixels,
            labels: &labels.ids,
            prediction,
        });
    }
    Sheet { title, classes: &dataset.classes, palette: &dataset.palette, rows }.draw()
}
