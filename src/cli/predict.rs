//! `semask-gpu predict`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::checkpoint::{Checkpoint, Entry};
use crate::data::{Image, LabelMap};
use crate::infer::{Frame, Logits, Segmenter};
use crate::picture::{Picture, legend, overlay};
use crate::train::evaluate::EvalOptions;
use crate::{Error, Gpu, Result};

use super::eval::slide_of;
use super::load::{ModelArgs, load_model};
use super::{bar, complain, explain, print};

const EXAMPLES: &str = "\
EXAMPLES:
  semask-gpu predict --checkpoint runs/first/best.safetensors photo.jpg
  semask-gpu predict --checkpoint runs/first/best.safetensors --out labelled photos more/photo.png
  semask-gpu predict --recipe semask-t.toml --weights semask-t.safetensors --logits out.safetensors a.png
  semask-gpu predict --checkpoint runs/first/best.safetensors --slide panorama.jpg

For each picture NAME.png has a class id per pixel, shown in the classes' colours, and NAME_overlay.png the \
colours over the picture, with the names of the classes that occur. Pictures are labelled at their own size.";

/// Endings of picture files within folders, in any case.
const ENDINGS: [&str; 7] = ["png", "jpg", "jpeg", "bmp", "tif", "tiff", "webp"];

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// Folder for what is written
    #[arg(long, value_name = "DIR", default_value = "predictions")]
    out: PathBuf,

    /// Also write what the model's head says, for a single picture, as the tensor `logits` [1, K, h, w]:
    /// before softmax, at a quarter of the picture's sides; of a head that finds masks the class scores, of
    /// its sides
    #[arg(long, value_name = "FILE.safetensors")]
    logits: Option<PathBuf>,

    /// Look at overlapping windows instead of whole pictures; without it only at those pictures that are
    /// too large for the GPU
    #[arg(long)]
    slide: bool,

    /// Look at six scales, straight and mirrored, and average
    #[arg(long)]
    tta: bool,

    /// Pictures, and folders that are searched for them
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<PathBuf>,
}

/// A picture and where its labels go, without ending.
#[derive(Debug, PartialEq, Eq)]
struct Job {
    image: PathBuf,
    name: PathBuf,
}

pub(crate) fn run(args: &Args, open: impl FnOnce() -> Result<Gpu>) -> Result<ExitCode> {
    let mut failed = 0;
    let mut report = |error: &Error| {
        complain(explain(error));
        failed += 1;
    };
    let mut jobs = Vec::new();
    for path in &args.images {
        match find(path) {
            Ok(found) => jobs.extend(found),
            Err(error) => report(&error),
        }
    }
    if args.logits.is_some() && jobs.len() != 1 {
        let reason = format!("takes a single picture, not {}", jobs.len());
        return Err(Error::invalid("--logits", reason));
    }
    if jobs.is_empty() {
        return Ok(ExitCode::FAILURE);
    }
    check_names(&jobs)?;

    let loaded = load_model(&args.model, open)?;
    let (names, palette) = loaded.names_and_colours();
    let slide = slide_of(&loaded.recipe);
    let options = EvalOptions::default();
    let options = if args.tta { options.with_tta() } else { options };
    let mut segmenter = Segmenter::new(&loaded.gpu, loaded.model);

    let bar = bar(jobs.len());
    let total = jobs.len();
    let mut written = 0;
    for job in &jobs {
        bar.set_message(job.image.display().to_string());
        let mut work = || -> Result<()> {
            let image = Image::read(&job.image)?;
            if let Some(path) = &args.logits {
                let frame = Frame::from_rgb(image.height, image.width, &image.pixels)?;
                write_logits(&segmenter.logits(&frame)?, path)?;
            }
            let views = options.views(&image)?;
            let (width, height) = (image.width, image.height);
            let whole = segmenter.labels(&views, height, width, args.slide.then_some(&slide));
            let ids = match whole {
                Err(Error::Limit { .. }) if !args.slide => {
                    let [rows, columns] = slide.crop;
                    let path = job.image.display();
                    bar.suspend(|| {
                        complain(format!(
                            "{path}: {width} × {height} pixels are too many for this GPU at once; \
                             labelled through overlapping windows of {columns} × {rows} (as --slide)"
                        ));
                    });
                    segmenter.labels(&views, height, width, Some(&slide))?
                }
                whole => whole?,
            };
            write(&args.out.join(&job.name), &image, ids, &names, &palette)
        };
        match work() {
            Ok(()) => written += 1,
            // Work on other pictures would fail the same way.
            Err(error @ Error::Device { .. }) => return Err(about(&job.image, error)),
            Err(error) => bar.suspend(|| report(&about(&job.image, error))),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    print(format!("{written} of {total} pictures labelled in {}", args.out.display()))?;
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `error`, with the name of the picture where it lacks that.
fn about(image: &Path, error: Error) -> Error {
    let name = image.display().to_string();
    match error {
        Error::Limit { what, needed, allowed } => {
            let allowed = allowed.replace("a sliding window", "a sliding window (--slide)");
            Error::Limit { what: format!("{name}: {what}"), needed, allowed }
        }
        Error::Device { doing, reason } => {
            Error::Device { doing, reason: format!("{reason} ({name})") }
        }
        Error::Invalid { subject, reason } if !subject.contains(&name) => {
            Error::Invalid { subject: format!("{name}: {subject}"), reason }
        }
        other => other,
    }
}

/// The picture `path`, or those in the folder `path`, sorted.
fn find(path: &Path) -> Result<Vec<Job>> {
    let kind = std::fs::metadata(path).map_err(Error::file("read", path))?;
    if !kind.is_dir() {
        let name = path.file_stem().unwrap_or(path.as_os_str()).into();
        return Ok(vec![Job { image: path.to_owned(), name }]);
    }
    let mut jobs = Vec::new();
    search(path, Path::new(""), &mut jobs)?;
    jobs.sort_by(|a, b| a.image.cmp(&b.image));
    if jobs.is_empty() {
        return Err(Error::invalid_file(path, "has no pictures"));
    }
    Ok(jobs)
}

fn search(root: &Path, below: &Path, jobs: &mut Vec<Job>) -> Result<()> {
    let folder = root.join(below);
    let entries = std::fs::read_dir(&folder).map_err(Error::file("read", &folder))?;
    for entry in entries {
        let entry = entry.map_err(Error::file("read", &folder))?;
        let below = below.join(entry.file_name());
        let kind = entry.file_type().map_err(Error::file("read", &folder))?;
        // Links to folders are left alone: they may lead in circles.
        if kind.is_dir() {
            search(root, &below, jobs)?;
            continue;
        }
        let ending = below.extension().map(|e| e.to_string_lossy().to_lowercase());
        if ending.is_some_and(|ending| ENDINGS.contains(&&*ending)) {
            jobs.push(Job { image: root.join(&below), name: below.with_extension("") });
        }
    }
    Ok(())
}

/// Refuses pictures that would overwrite each other's labels.
fn check_names(jobs: &[Job]) -> Result<()> {
    let mut seen: BTreeMap<&Path, &Path> = BTreeMap::new();
    for Job { image, name } in jobs {
        if let Some(other) = seen.insert(name, image) {
            let reason = format!("would have the same label file as {}", other.display());
            return Err(Error::invalid_file(image, reason));
        }
    }
    Ok(())
}

/// Writes `NAME.png` and `NAME_overlay.png`.
fn write(
    name: &Path,
    image: &Image,
    ids: Vec<u8>,
    classes: &[String],
    palette: &[[u8; 3]],
) -> Result<()> {
    if let Some(folder) = name.parent() {
        std::fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
    }
    let with_end = |end: &str| {
        let mut path = name.as_os_str().to_owned();
        path.push(end);
        PathBuf::from(path)
    };
    if ids.iter().any(|&id| usize::from(id) >= classes.len()) {
        return Err(Error::invalid("model", "its answer is not a number"));
    }
    let (width, height) = (image.width, image.height);
    let blended = overlay(&image.pixels, width, height, &ids, palette, 0.5);
    let present: Vec<usize> =
        (0..classes.len()).filter(|&class| ids.contains(&(class as u8))).collect();
    let label_path = with_end(".png");
    LabelMap::new(width, height, ids).write_png(&label_path, palette)?;
    let names: Vec<&str> = present.iter().map(|&class| classes[class].as_str()).collect();
    let colours: Vec<[u8; 3]> = present.iter().map(|&class| palette[class]).collect();
    with_legend(width, height, blended, &names, &colours).write_png(&with_end("_overlay.png"))
}

/// A picture above the names of its classes.
fn with_legend(
    width: usize,
    height: usize,
    rgb: Vec<u8>,
    names: &[&str],
    colours: &[[u8; 3]],
) -> Picture {
    const GAP: usize = 6;
    let legend = legend(names, colours, width);
    let size = (legend.width.max(width), height + GAP + legend.height);
    let mut sheet = Picture::new(size.0, size.1, [255; 3]);
    sheet.paste(&Picture::from_rgb(width, height, rgb), 0, 0);
    sheet.paste(&legend, 0, height + GAP);
    sheet
}

/// Writes `logits`, `[1, K, h, w]`.
fn write_logits(logits: &Logits, path: &Path) -> Result<()> {
    let Logits { height, width, classes, values } = logits;
    let mut planes = Vec::with_capacity(values.len());
    for class in 0..*classes {
        planes.extend(values.iter().skip(class).step_by(*classes));
    }
    let mut file = Checkpoint::default();
    file.insert("logits", Entry::from_f32([1, *classes, *height, *width], &planes));
    file.write_atomic(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_searched_and_sorted() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        std::fs::create_dir_all(root.join("b/c")).unwrap();
        for name in ["z.png", "b/c/a.JPG", "b/x.txt", "a.webp"] {
            std::fs::write(root.join(name), "").unwrap();
        }
        let names: Vec<_> = find(root).unwrap().into_iter().map(|job| job.name).collect();
        assert_eq!(names, ["a", "b/c/a", "z"].map(PathBuf::from));
        let one = find(&root.join("z.png")).unwrap();
        assert_eq!(one, [Job { image: root.join("z.png"), name: "z".into() }]);
        assert!(find(&root.join("none")).is_err());
        let empty = tempfile::tempdir().unwrap();
        assert!(find(empty.path()).unwrap_err().to_string().contains("no pictures"));
    }

    #[test]
    fn pictures_that_would_collide_are_refused() {
        let job = |image: &str| find_name(image);
        fn find_name(image: &str) -> Job {
            Job { image: image.into(), name: Path::new(image).file_stem().unwrap().into() }
        }
        check_names(&[job("a/x.png"), job("a/y.png")]).unwrap();
        let error = check_names(&[job("a/x.png"), job("b/x.jpg")]).unwrap_err().to_string();
        assert!(error.contains("b/x.jpg") && error.contains("a/x.png"), "{error}");
    }
}
