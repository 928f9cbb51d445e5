//! What is in a data set and what is wrong with it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde::Serialize;

use super::dataset::{folders, shown, size_mismatch};
use super::layout::{Format, Ids};
use super::raster::guarded;
use super::{Dataset, IGNORE, Image, Item, LabelMap};
use crate::{Error, Result};

/// How bad a [`Problem`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Training or evaluation would stop at it.
    Error,
    /// Nothing stops, but it is rarely meant.
    Warning,
}

/// Something that a person should look at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// What it is, beginning with the file, the split or the key.
    pub text: String,
}

/// Pictures of one size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SizeCount {
    /// Pixels per row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// How many.
    pub images: usize,
}

/// How often a class or an id occurs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Its pixels.
    pub pixels: u64,
    /// Label files that have it.
    pub images: usize,
}

/// What one split holds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SplitReport {
    /// Its name.
    pub name: String,
    /// Pictures that have a label and the other way round.
    pub pairs: usize,
    /// Sizes of the pictures, the commonest first.
    pub sizes: Vec<SizeCount>,
    /// By class.
    pub classes: Vec<Count>,
    /// Pixels without a class.
    pub ignored: Count,
    /// Ids in the files that mean nothing, with how often they occur.
    pub unknown: BTreeMap<u8, Count>,
}

/// The result of [`check`]; its `Display` is for people, its serde form for programs.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// [`Dataset::name`].
    pub name: String,
    /// The folder.
    pub root: PathBuf,
    /// [`Dataset::format`].
    pub format: Format,
    /// Names of the classes.
    pub classes: Vec<String>,
    /// [`Dataset::ignore_index`].
    pub ignore_index: u8,
    /// [`Dataset::reduce_zero_label`].
    pub reduce_zero_label: bool,
    /// Each split, sorted by name.
    pub splits: Vec<SplitReport>,
    problems: Vec<Problem>,
}

impl Report {
    /// What a person should look at, errors first.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Whether training or evaluation would stop.
    pub fn has_errors(&self) -> bool {
        self.problems.iter().any(|problem| problem.severity == Severity::Error)
    }

    fn error(&mut self, text: impl Into<String>) {
        self.problems.push(Problem { severity: Severity::Error, text: text.into() });
    }

    fn warning(&mut self, text: impl Into<String>) {
        self.problems.push(Problem { severity: Severity::Warning, text: text.into() });
    }
}

/// Reads every file of the data set at `root` and reports what is there.
///
/// # Errors
///
/// As [`Dataset::open`]. What is wrong with pictures and labels is in [`Report::problems`].
pub fn check(root: &Path) -> Result<Report> {
    check_as(root, Format::Auto)
}

/// [`check`] of a data set of this format.
///
/// # Errors
///
/// As [`Dataset::open_as`].
pub fn check_as(root: &Path, format: Format) -> Result<Report> {
    let dataset = Dataset::open_as(root, format)?;
    let mut report = Report {
        name: dataset.name.clone(),
        root: dataset.root.clone(),
        format: dataset.format,
        classes: dataset.classes.clone(),
        ignore_index: dataset.ignore_index,
        reduce_zero_label: dataset.reduce_zero_label,
        splits: Vec::new(),
        problems: Vec::new(),
    };
    // The official colours are not all distinct.
    let own = dataset.format == Format::Folder;
    if own {
        same_colours(&dataset, &mut report);
    }

    let known = dataset.splits();
    if let Err(error) = &known {
        report.error(error.to_string());
    }
    let splits: BTreeSet<String> = match known {
        Ok(known) if !own => known.into_iter().collect(),
        // A split may have only one of its two folders.
        _ => (["images", "labels"].iter())
            .flat_map(|kind| folders(&dataset.root.join(kind)).unwrap_or_default())
            .collect(),
    };
    let mut ids = [0; 256];
    let mut pictures = HashMap::new();
    for name in &splits {
        check_split(&dataset, name, &mut report, &mut ids, &mut pictures);
    }

    for (i, class) in dataset.classes.iter().enumerate() {
        let absent = |split: &&SplitReport| {
            matches!(&*split.name, "train" | "training") && split.classes[i].pixels == 0
        };
        if let Some(split) = report.splits.iter().find(absent) {
            let text = format!("{}: class {i} `{}` never occurs", split.name, shown(class));
            report.warning(text);
        }
    }
    if own {
        for text in common_mistakes(&dataset, &ids) {
            report.warning(text);
        }
    }
    report.problems.sort_by_key(|problem| problem.severity);
    Ok(report)
}

fn same_colours(dataset: &Dataset, report: &mut Report) {
    let mut by_colour: BTreeMap<[u8; 3], Vec<String>> = BTreeMap::new();
    for (class, colour) in dataset.classes.iter().zip(&dataset.palette) {
        by_colour.entry(*colour).or_default().push(format!("`{}`", shown(class)));
    }
    for (colour, classes) in by_colour.iter().filter(|(_, classes)| classes.len() > 1) {
        let classes = classes.join(", ");
        report.warning(format!("`palette`: {classes} have the same colour, {colour:?}"));
    }
}

/// Looks at all pairs of a split. `ids` counts the values in the files over all splits;
/// `pictures` knows pictures by their contents, with the split and the path of the first.
fn check_split(
    dataset: &Dataset,
    name: &str,
    report: &mut Report,
    ids: &mut [u64; 256],
    pictures: &mut HashMap<u64, (String, PathBuf)>,
) {
    let place = dataset.place(name);
    let scan = match dataset.scan(name) {
        Ok(scan) => scan,
        Err(error) => return report.error(error.to_string()),
    };
    for problem in &scan.problems {
        report.error(problem.to_string());
    }
    if scan.unlisted > 0 {
        let list = place.list.as_deref().unwrap_or(&place.images).display();
        let unlisted = scan.unlisted;
        report.warning(format!("{list}: leaves out {unlisted} pictures of the folder"));
    }
    if scan.items.is_empty() && scan.problems.is_empty() {
        report.error(format!("{}: no pairs", place.images.display()));
    }

    let mut split = SplitReport {
        name: name.to_owned(),
        pairs: scan.items.len(),
        classes: vec![Count::default(); dataset.classes.len()],
        ..SplitReport::default()
    };
    let mut sizes: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    let mut first_unknown = BTreeMap::new();
    let mut shared: BTreeMap<String, (usize, String)> = BTreeMap::new();
    for (item, look) in scan.items.iter().zip(look_at_all(&scan.items)) {
        for text in look.errors {
            report.error(text);
        }
        if let Some(size) = look.size {
            *sizes.entry(size).or_default() += 1;
        }
        if let Some(print) = look.print {
            let known =
                pictures.entry(print).or_insert_with(|| (name.to_owned(), item.image.clone()));
            if known.0 != name {
                let example = format!("{} and {}", known.1.display(), item.image.display());
                shared.entry(known.0.clone()).or_insert((0, example)).0 += 1;
            }
        }
        let Some(counts) = look.counts else { continue };
        let table = dataset.class_table(item.ids);
        let mut labelled = 0;
        let mut image_classes = BTreeMap::<Option<u8>, u64>::new();
        for (id, &pixels) in counts.iter().enumerate().filter(|(_, pixels)| **pixels > 0) {
            ids[id] += pixels;
            *image_classes.entry(table[id]).or_default() += pixels;
            if table[id].is_none() {
                let unknown = split.unknown.entry(id as u8).or_default();
                unknown.pixels += pixels;
                unknown.images += 1;
                first_unknown.entry(id as u8).or_insert(item);
            }
        }
        for (class, pixels) in image_classes {
            let count = match class {
                None => continue,
                Some(IGNORE) => &mut split.ignored,
                Some(class) => &mut split.classes[usize::from(class)],
            };
            count.pixels += pixels;
            count.images += 1;
            labelled += u64::from(class != Some(IGNORE));
        }
        if labelled == 0 && counts.iter().zip(&table).all(|(n, class)| *n == 0 || class.is_some()) {
            report.warning(format!("{}: every pixel is ignored", item.label.display()));
        }
    }

    for (id, count) in &split.unknown {
        let Count { pixels, images } = count;
        let first: &Item = first_unknown[id];
        let why = dataset.why_unknown(*id, first.ids);
        let first = first.label.display();
        report.error(format!(
            "{first}: id {id} {why}; {name} has it in {pixels} pixels of {images} labels"
        ));
    }
    for (other, (count, example)) in shared {
        report.warning(format!("{name}: {count} pictures are in {other} too, such as {example}"));
    }
    let counted = || split.classes.iter().map(|count| count.pixels).sum::<u64>();
    let percent = percent(split.ignored.pixels, counted() + split.ignored.pixels);
    if percent > 50.0 {
        report.warning(format!("{name}: {percent:.1} % of the pixels are ignored"));
    }

    let size = |((width, height), images)| SizeCount { width, height, images };
    split.sizes = sizes.into_iter().map(size).collect();
    split.sizes.sort_by_key(|size| std::cmp::Reverse(size.images));
    report.splits.push(split);
}

/// What a pair of files shows.
#[derive(Debug, Default)]
struct Look {
    errors: Vec<String>,
    /// Width and height of the picture.
    size: Option<(usize, usize)>,
    /// A hash of the picture's pixels.
    print: Option<u64>,
    /// Pixels by value in the label file.
    counts: Option<Box<[u64; 256]>>,
}

impl Look {
    fn at(item: &Item) -> Self {
        let mut look = Self::default();
        let mut note = |error: Error| look.errors.push(error.to_string());
        let image = Image::read(&item.image).map_err(&mut note).ok();
        let labels = LabelMap::read(&item.label).map_err(&mut note).ok();
        if let (Some(image), Some(labels)) = (&image, &labels)
            && let Some(reason) = size_mismatch(image, labels, item)
        {
            note(Error::invalid_file(&item.label, reason));
        }
        if let Some(image) = image {
            let mut hasher = DefaultHasher::new();
            (image.width, image.height, &image.pixels).hash(&mut hasher);
            look.print = Some(hasher.finish());
            look.size = Some((image.width, image.height));
        }
        look.counts = labels.map(|labels| {
            let mut counts = Box::new([0; 256]);
            for id in labels.ids {
                counts[usize::from(id)] += 1;
            }
            counts
        });
        look
    }
}

/// One [`Look`] per item, by as many threads as there are processors.
fn look_at_all(items: &[Item]) -> Vec<Look> {
    let looks = Mutex::new((0..items.len()).map(|_| Look::default()).collect::<Vec<_>>());
    let next = AtomicUsize::new(0);
    let threads = thread::available_parallelism().map_or(1, |n| n.get()).min(items.len());
    let work = || {
        while let Some((i, item)) = {
            let i = next.fetch_add(1, Ordering::Relaxed);
            items.get(i).map(|item| (i, item))
        } {
            let look = guarded(&item.image, || Ok(Look::at(item))).unwrap_or_else(|error| Look {
                errors: vec![error.to_string()],
                ..Look::default()
            });
            looks.lock().expect("no holder panics")[i] = look;
        }
    };
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    looks.into_inner().expect("no holder panics")
}

/// Guesses from the values in all label files together what may be set wrongly.
fn common_mistakes(dataset: &Dataset, counts: &[u64; 256]) -> Vec<String> {
    let seen: Vec<u8> = (0..=255).filter(|&id| counts[usize::from(id)] > 0).collect();
    let has = |id: usize| counts.get(id).is_some_and(|n| *n > 0);
    let n = dataset.classes.len();
    let table = dataset.class_table(Ids::Described);
    let unknown: Vec<u8> =
        seen.iter().copied().filter(|&id| table[usize::from(id)].is_none()).collect();
    let mut mistakes = Vec::new();

    if seen == [0, 255] {
        mistakes.push(
            "labels: the only ids are 0 and 255; a mask with 255 as its foreground must be \
             rewritten with 1, since 255 is no class"
                .to_owned(),
        );
    } else if !dataset.reduce_zero_label && unknown == [n as u8] {
        let first = if has(0) { "0 may mean unlabelled" } else { "0 never occurs" };
        mistakes.push(format!(
            "`reduce_zero_label`: ids reach {n}, one more than the last class, and {first}: they \
             seem to count from 1; set it to true"
        ));
    } else if dataset.reduce_zero_label && has(0) && !has(n) && seen.len() > 1 {
        mistakes.push(format!(
            "`reduce_zero_label`: id {n} never occurs, but 0, which it takes for unlabelled, does: \
             ids may count from 0; remove it then"
        ));
    } else if unknown == [255] {
        mistakes.push(format!(
            "`ignore_index`: it is {}, but the only id that is no class is 255",
            dataset.ignore_index
        ));
    } else if unknown.len() > 1 && seen.len() <= n + 1 {
        let ids: Vec<String> = seen.iter().take(6).map(u8::to_string).collect();
        mistakes.push(format!(
            "labels: the ids {}{} look like grey levels of a picture, not like classes 0..={}",
            ids.join(", "),
            if seen.len() > 6 { ", …" } else { "" },
            n - 1
        ));
    }
    if let [only] = seen[..] {
        mistakes.push(format!("labels: {only} is the only id in all of them"));
    }
    mistakes
}

fn percent(part: u64, whole: u64) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

/// As many problems as fit a screen.
const SHOWN_PROBLEMS: usize = 30;
const SHOWN_SIZES: usize = 5;
/// Length of the longest bar.
const BAR: f64 = 30.0;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ignore_index, classes, .. } = self;
        let (name, format) = (shown(&self.name), self.format.name());
        write!(f, "{name}: {} classes, layout {format}", classes.len())?;
        match (self.format, self.reduce_zero_label) {
            (Format::Folder, reduced) => {
                let reduced = if reduced { ", reduce_zero_label" } else { "" };
                writeln!(f, ", ignore_index {ignore_index}{reduced}")?;
            }
            _ => writeln!(f, " in {}", self.root.display())?,
        }
        for split in &self.splits {
            writeln!(f)?;
            self.write_split(f, split)?;
        }

        writeln!(f)?;
        let errors = self.problems.iter().filter(|p| p.severity == Severity::Error).count();
        let warnings = self.problems.len() - errors;
        if self.problems.is_empty() {
            return writeln!(f, "no problems");
        }
        writeln!(f, "{}, {}", counted(errors, "error"), counted(warnings, "warning"))?;
        for problem in self.problems.iter().take(SHOWN_PROBLEMS) {
            let kind = match problem.severity {
                Severity::Error => "error  ",
                Severity::Warning => "warning",
            };
            let text = problem.text.replace(char::is_control, "?");
            writeln!(f, "  {kind}  {text}")?;
        }
        match self.problems.len().saturating_sub(SHOWN_PROBLEMS) {
            0 => Ok(()),
            more => writeln!(f, "  … and {more} more"),
        }
    }
}

impl Report {
    fn write_split(&self, f: &mut fmt::Formatter<'_>, split: &SplitReport) -> fmt::Result {
        write!(f, "{}: {}", shown(&split.name), counted(split.pairs, "pair"))?;
        for (i, size) in split.sizes.iter().take(SHOWN_SIZES).enumerate() {
            let SizeCount { width, height, images } = size;
            write!(f, "{} {width}x{height} ({images})", if i == 0 { ";" } else { "," })?;
        }
        match split.sizes.len().saturating_sub(SHOWN_SIZES) {
            0 => writeln!(f)?,
            more => writeln!(f, " and {more} other sizes")?,
        }

        let labelled: u64 = split.classes.iter().map(|count| count.pixels).sum();
        let largest = split.classes.iter().map(|count| count.pixels).max().unwrap_or(0).max(1);
        let names: Vec<String> = self.classes.iter().map(|class| shown(class)).collect();
        let wide = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max(9);
        writeln!(
            f,
            "  {:>3}  {:wide$}  {:>12}  {:>6}  {:>6}",
            "id", "class", "pixels", "%", "images"
        )?;
        for (i, (name, Count { pixels, images })) in names.iter().zip(&split.classes).enumerate() {
            let percent = percent(*pixels, labelled);
            let length = (BAR * *pixels as f64 / largest as f64).round() as usize;
            let bar = if length == 0 && *pixels > 0 { "▏".into() } else { "█".repeat(length) };
            let row =
                format!("  {i:>3}  {name:wide$}  {pixels:>12}  {percent:>6.2}  {images:>6}  {bar}");
            writeln!(f, "{}", row.trim_end())?;
        }
        let Count { pixels, images } = split.ignored;
        if pixels > 0 {
            let percent = percent(pixels, labelled + pixels);
            let all = "of all pixels";
            writeln!(
                f,
                "  {:>3}  {:wide$}  {pixels:>12}  {percent:>6.2}  {images:>6}  {all}",
                "-", "(ignored)"
            )?;
        }
        for (id, Count { pixels, images }) in &split.unknown {
            writeln!(f, "  {id:>3}  {:wide$}  {pixels:>12}  {:>6}  {images:>6}", "(unknown)", "")?;
        }
        Ok(())
    }
}

fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Folder};
    use super::*;

    /// Texts of the problems of this severity, with `/` between folders.
    fn texts(report: &Report, severity: Severity) -> Vec<String> {
        let some = report.problems().iter().filter(|problem| problem.severity == severity);
        some.map(|problem| problem.text.replace('\\', "/")).collect()
    }

    fn filled(width: usize, height: usize, id: u8) -> LabelMap {
        LabelMap::new(width, height, vec![id; width * height])
    }

    #[test]
    fn a_clean_folder_has_no_problems() {
        let folder = Folder::of_pairs(3, 8, 6);
        folder.pair("val", "v", 5, 4, 77);
        let report = check(folder.root()).unwrap();
        assert_eq!(report.problems(), []);
        assert!(!report.has_errors());
        let train = &report.splits[0];
        assert_eq!((train.pairs, report.splits[1].pairs), (3, 1));
        assert_eq!(train.sizes, [SizeCount { width: 8, height: 6, images: 3 }]);
        assert_eq!(train.classes.iter().map(|c| c.pixels).sum::<u64>(), 3 * 48);
        assert!(train.classes.iter().all(|count| count.images == 3));
        let text = report.to_string();
        assert!(text.contains("train: 3 pairs; 8x6 (3)") && text.contains("no problems"), "{text}");
        assert!(text.contains('█'), "{text}");
    }

    #[test]
    fn everything_wrong_is_found_at_once() {
        let folder = Folder::of_pairs(9, 8, 6);
        folder.write("images/train/p01.png", b"no picture");
        folder.write("labels/train/p02.png", b"");
        std::fs::remove_file(folder.path("labels/train/p03.png")).unwrap();
        std::fs::remove_file(folder.path("images/train/p04.png")).unwrap();
        folder.labels("train", "p05", &testing::labels(8, 5, 3, 0));
        folder.labels("train", "p06", &filled(8, 6, IGNORE));
        let mut odd = filled(8, 6, 1);
        odd.ids[..5].fill(90);
        folder.labels("train", "p07", &odd);
        testing::image(8, 6, 8).write_png(&folder.path("labels/train/p08.png")).unwrap();
        std::fs::create_dir_all(folder.root().join("labels/test")).unwrap();

        let report = check(folder.root()).unwrap();
        let errors = texts(&report, Severity::Error);
        for expected in [
            "images/train/p01.png: not a PNG",
            "labels/train/p02.png: ",
            "labels/train/p03.png is missing",
            "labels/train/p04.png: the picture",
            "labels/train/p05.png: the label is 8x5 but",
            "labels/train/p07.png: id 90 is no class (0..=2)",
            "in 5 pixels of 1 labels",
            "labels/train/p08.png: the label PNG has colours",
            "images/test: no pairs",
        ] {
            assert!(errors.iter().any(|text| text.contains(expected)), "{expected}: {errors:#?}");
        }
        assert_eq!(errors.len(), 8, "{errors:#?}");
        assert!(report.problems().is_sorted_by_key(|problem| problem.severity));
        let warnings = texts(&report, Severity::Warning);
        assert!(warnings.iter().any(|t| t.ends_with("p06.png: every pixel is ignored")));
        assert_eq!(report.splits[1].unknown[&90], Count { pixels: 5, images: 1 });
        let text = report.to_string();
        assert!(text.contains("8 errors, 1 warning") && text.contains("(unknown)"), "{text}");
        assert!(report.has_errors());
    }

    #[test]
    fn classes_absent_from_training_and_shared_pictures_are_warnings() {
        let folder = Folder::new(r#"{"classes": ["a", "b"], "palette": [[1, 1, 1], [1, 1, 1]]}"#);
        for split in ["train", "val"] {
            testing::image(4, 4, 0)
                .write_png(&folder.path(&format!("images/{split}/x.png")))
                .unwrap();
            folder.labels(split, "x", &filled(4, 4, 0));
        }
        let warnings = texts(&check(folder.root()).unwrap(), Severity::Warning);
        assert!(warnings[0].contains("`a`, `b` have the same colour"), "{warnings:#?}");
        assert!(warnings[1].contains("val: 1 pictures are in train too"), "{warnings:#?}");
        assert!(warnings[2].contains("train: class 1 `b` never occurs"), "{warnings:#?}");
        assert!(warnings[3].contains("0 is the only id"), "{warnings:#?}");
    }

    #[test]
    fn common_mistakes_are_guessed() {
        let guess = |json: &str, ids: &[u8]| {
            let folder = Folder::new(json);
            let dataset = Dataset::open(folder.root()).unwrap();
            let mut counts = [0; 256];
            ids.iter().for_each(|id| counts[usize::from(*id)] = 5);
            common_mistakes(&dataset, &counts).join("\n")
        };
        let plain = r#"{"classes": ["a", "b", "c"]}"#;
        let reduced = r#"{"classes": ["a", "b", "c"], "reduce_zero_label": true}"#;
        let eleven = r#"{"classes": ["a", "b", "c"], "ignore_index": 11}"#;
        assert!(guess(plain, &[1, 2, 3]).contains("0 never occurs: they seem to count from 1"));
        assert!(guess(plain, &[0, 1, 2, 3]).contains("0 may mean unlabelled"));
        assert!(guess(reduced, &[0, 1, 2]).contains("ids may count from 0"));
        assert!(guess(plain, &[0, 255]).contains("mask with 255 as its foreground"));
        assert!(guess(eleven, &[0, 1, 255]).contains("the only id that is no class is 255"));
        assert!(guess(plain, &[0, 100, 200]).contains("0, 100, 200 look like grey levels"));
        assert!(guess(plain, &[2]).contains("2 is the only id"));
        assert_eq!(guess(plain, &[0, 1, 255]), "");
        assert_eq!(guess(reduced, &[0, 1, 3]), "");
        assert_eq!(guess(eleven, &[0, 1, 2, 11]), "");
        assert_eq!(guess(plain, &[]), "");
    }

    #[test]
    fn hostile_folders_are_reported_not_fatal() {
        assert!(check(Path::new("no/such/folder")).is_err());
        let folder = Folder::new("{\"classes\": [\"a\\u001b[31m\", \"b\"]}");
        let report = check(folder.root()).unwrap();
        assert!(texts(&report, Severity::Error)[0].contains("images"), "{report}");
        assert!(!report.to_string().contains('\u{1b}'));

        std::fs::create_dir_all(folder.root().join("images/train/x.png")).unwrap();
        folder.write(
            "labels/train/x.png",
            b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff\xff\xff\xff\xff\xff\xff\xff",
        );
        folder.write("train.txt", b"x\0\n../../x\n\xff");
        let report = check(folder.root()).unwrap();
        assert!(report.has_errors());
        folder.write("train.txt", b"x\0\n../../x\n");
        let report = check(folder.root()).unwrap();
        assert_eq!(texts(&report, Severity::Error).len(), 2, "{report}");
    }

    #[test]
    fn a_report_serializes() {
        let folder = Folder::of_pairs(2, 4, 4);
        std::fs::remove_file(folder.path("labels/train/p00.png")).unwrap();
        let json = serde_json::to_value(check(folder.root()).unwrap()).unwrap();
        assert_eq!(json["splits"][0]["pairs"], 1);
        assert_eq!(json["problems"][0]["severity"], "error");
    }

    #[test]
    fn real_folders_are_clean() {
        let name = "data::check::tests::real_folders_are_clean";
        let known = [
            ("data/quickstart_nuclei", "train", 136, [4_133_367, 737_438, 142_699], 0),
            ("data/camvid", "train", 367, [2_655_759, 3_682_975, 156_038], 628_476),
        ];
        for (folder, split, pairs, pixels, ignored) in known {
            let Some(root) = testing::shared(name, folder) else { continue };
            let report = check(&root).unwrap();
            assert!(!report.has_errors(), "{report}");
            println!("{report}");
            let split = report.splits.iter().find(|s| s.name == split).unwrap();
            assert_eq!(split.pairs, pairs);
            let counts: Vec<u64> = split.classes.iter().take(3).map(|c| c.pixels).collect();
            assert_eq!((counts, split.ignored.pixels), (pixels.to_vec(), ignored));
        }
    }
}
