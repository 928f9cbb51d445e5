//! A folder of pictures and label maps: the crate's own, described by a `dataset.json`, or one of
//! the published data sets that [`layout`](super::layout) knows.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::layout::{self, Format, Ids, Layout};
use super::raster::read_bounded;
use super::{IGNORE, Image, LabelMap};
use crate::{Error, Result};

/// Endings of picture files, in any case.
const ENDINGS: &[&str] = &[".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"];
/// What `dataset.json` can say; other keys are left alone.
const KEYS: &[&str] = &["name", "classes", "palette", "ignore_index", "reduce_zero_label"];

/// A data set: where it is, which classes it has, how its files number them.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// What it is called; the folder's name if `dataset.json` does not say.
    pub name: String,
    /// Names of the classes, by id.
    pub classes: Vec<String>,
    /// Colours of the classes, for pictures.
    pub palette: Vec<[u8; 3]>,
    /// The value in label files that means "no class". In memory that is always [`IGNORE`].
    pub ignore_index: u8,
    /// Whether label files count classes from 1 and 0 means "no class".
    pub reduce_zero_label: bool,
    /// The folder.
    pub root: PathBuf,
    /// How the data set lies in it; never [`Format::Auto`].
    pub format: Format,
    /// Of a published data set.
    layout: Option<&'static Layout>,
}

/// A picture and its label map on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The picture's path within the split, without its ending; parts are joined by `/`.
    pub name: String,
    /// The picture.
    pub image: PathBuf,
    /// The label map.
    pub label: PathBuf,
    /// What its values mean.
    pub(super) ids: Ids,
}

/// A picture and its labels in memory, of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// [`Item::name`].
    pub name: String,
    /// The picture.
    pub image: Image,
    /// A class or [`IGNORE`] for each of its pixels.
    pub labels: LabelMap,
}

impl Dataset {
    /// Finds out which data set is at `root`: the crate's own format where there is a
    /// `dataset.json`, else one of the published [`Format`]s, in `root` or in the folder that its
    /// archives unpack to.
    ///
    /// # Errors
    ///
    /// As [`Dataset::open_as`].
    pub fn open(root: &Path) -> Result<Self> {
        Self::open_as(root, Format::Auto)
    }

    /// Opens the data set at `root`, which is of this format.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] that says what was looked for and what was found, or what is wrong with
    /// `dataset.json`; [`Error::File`] when that or the folder cannot be read.
    pub fn open_as(root: &Path, format: Format) -> Result<Self> {
        match layout::detect(root, format)? {
            Some((layout, root)) => Ok(Self::of(layout, &root)),
            None => Self::described(root),
        }
    }

    /// A published data set.
    pub(super) fn of(layout: &'static Layout, root: &Path) -> Self {
        let json = serde_json::from_str(layout.description).expect("embedded and tested");
        let dataset = Self::from_json(root, &json).expect("embedded and tested");
        Self { format: layout.format, layout: Some(layout), ..dataset }
    }

    /// Reads `root/dataset.json`.
    ///
    /// `classes` is a list of 2 to 255 names. Optional: `name`, `palette` (a colour `[r, g, b]` for
    /// each class; distinct ones are made up if absent), `ignore_index` (255 if absent),
    /// `reduce_zero_label` (false if absent). Other keys are allowed unless they look like an absent
    /// one of these misspelled.
    ///
    /// # Errors
    ///
    /// [`Error::File`] when there is no such file, [`Error::Invalid`] when its contents are wrong.
    fn described(root: &Path) -> Result<Self> {
        let path = root.join("dataset.json");
        let bytes = read_bounded(&path)?;
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
        let json: Value = serde_json::from_slice(bytes)
            .map_err(|error| Error::invalid_file(&path, format!("not JSON: {error}")))?;
        let Value::Object(json) = json else {
            return Err(Error::invalid_file(&path, "must be an object with the key `classes`"));
        };
        Self::from_json(root, &json).map_err(|reason| Error::invalid_file(&path, reason))
    }

    fn from_json(root: &Path, json: &Map<String, Value>) -> Result<Self, String> {
        for key in json.keys().filter(|key| !KEYS.contains(&key.as_str())) {
            let close = |known: &&&str| {
                !json.contains_key(**known)
                    && strsim::normalized_damerau_levenshtein(key, known) > 0.7
            };
            if let Some(known) = KEYS.iter().find(close) {
                return Err(format!("unknown key `{}`; is it meant to be `{known}`?", shown(key)));
            }
        }
        let value = |key: &str| json.get(key).filter(|value| !value.is_null());

        let classes = match value("classes") {
            None => return Err("the key `classes`, a list of names, is missing".into()),
            Some(classes) => names(classes).ok_or("`classes` must be a list of names")?,
        };
        if !(2..=255).contains(&classes.len()) {
            return Err(format!("2 to 255 classes are supported, not {}", classes.len()));
        }
        if let Some(i) = classes.iter().position(|class| class.trim().is_empty()) {
            return Err(format!("class {i} has an empty name"));
        }

        let palette = match value("palette") {
            None => voc_palette(classes.len()),
            Some(palette) => {
                let palette = palette.as_array().ok_or("`palette` must be a list of [r, g, b]")?;
                if palette.len() != classes.len() {
                    let (colours, classes) = (palette.len(), classes.len());
                    return Err(format!("`palette` has {colours} colours for {classes} classes"));
                }
                let colour = |(i, value)| {
                    colour(value).ok_or_else(|| {
                        format!("colour {i} of `palette` must be [r, g, b] of 0..=255")
                    })
                };
                palette.iter().enumerate().map(colour).collect::<Result<_, _>>()?
            }
        };

        let reduce_zero_label = match value("reduce_zero_label") {
            None => false,
            Some(value) => value.as_bool().ok_or("`reduce_zero_label` must be true or false")?,
        };
        let ignore_index = match value("ignore_index") {
            None => IGNORE,
            Some(value) => (value.as_u64().and_then(|v| u8::try_from(v).ok()))
                .ok_or_else(|| format!("`ignore_index` is {value} but ids in files are 0..=255"))?,
        };
        let name = match value("name") {
            None => root.file_name().unwrap_or(root.as_os_str()).to_string_lossy().into_owned(),
            Some(name) => name.as_str().ok_or("`name` must be a string")?.to_owned(),
        };

        if reduce_zero_label && classes.len() == 255 {
            return Err("with `reduce_zero_label` 254 classes are supported, not 255".into());
        }
        let first = usize::from(reduce_zero_label);
        let class = usize::from(ignore_index).checked_sub(first).and_then(|i| classes.get(i));
        if let Some(class) = class {
            return Err(format!(
                "`ignore_index` {ignore_index} is also the id of class `{}`; to ignore the first \
                 class, drop it from `classes` and set `reduce_zero_label`",
                shown(class)
            ));
        }
        Ok(Self {
            name,
            classes,
            palette,
            ignore_index,
            reduce_zero_label,
            root: root.to_owned(),
            format: Format::Folder,
            layout: None,
        })
    }

    /// Names of the parts: those of a published data set that are there, else the folders in
    /// `images`, sorted.
    ///
    /// # Errors
    ///
    /// [`Error::File`] when the folder cannot be listed, [`Error::Invalid`] when it has no folders.
    pub fn splits(&self) -> Result<Vec<String>> {
        if let Some(layout) = self.layout {
            let there = layout.splits.iter().filter(|split| split.is_in(&self.root));
            return Ok(there.map(|split| split.names[0].to_owned()).collect());
        }
        let images = self.root.join("images");
        let splits = folders(&images)?;
        if splits.is_empty() {
            let reason = "has no folders; pictures belong into images/train, images/val, …";
            return Err(Error::invalid_file(&images, reason));
        }
        Ok(splits)
    }

    /// The pairs of a split: those that its list names, in its order, or where there is no list
    /// all of them, sorted by name. The list of the crate's own format is `SPLIT.txt`.
    ///
    /// Published data sets also know their own names of `train` and `val`, such as `training`.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when there is no such split (the message lists those that exist), when it
    /// is empty, or when a picture or a label lacks its partner; [`Error::File`] when a folder or
    /// the list cannot be read.
    pub fn split(&self, name: &str) -> Result<Vec<Item>> {
        let splits = self.splits()?;
        let place = self.place(name);
        if !splits.contains(&place.name) {
            let reason = format!("no split `{}`; there are {}", shown(name), splits.join(", "));
            return Err(Error::invalid_file(&self.root, reason));
        }
        let scan = self.scan(name)?;
        match scan.problems.into_iter().next() {
            Some(problem) => Err(problem),
            None if scan.items.is_empty() => {
                Err(Error::invalid_file(&place.images, "no pictures of a supported kind"))
            }
            None => Ok(scan.items),
        }
    }

    /// Where the files of a split lie.
    pub(super) fn place(&self, split: &str) -> Place {
        if let Some(layout) = self.layout
            && let Some(known) = layout.splits.iter().find(|known| known.names.contains(&split))
        {
            return Place {
                name: known.names[0].to_owned(),
                images: self.root.join(known.images),
                image_suffixes: layout.image_suffixes,
                labels: self.root.join(known.labels),
                label_suffixes: layout.label_suffixes,
                list: known.list.map(|list| self.root.join(list)),
                shared: known.list.is_some(),
            };
        }
        let list = self.root.join(format!("{split}.txt"));
        Place {
            name: split.to_owned(),
            images: self.root.join("images").join(split),
            image_suffixes: ENDINGS,
            labels: self.root.join("labels").join(split),
            label_suffixes: &[(".png", Ids::Described)],
            list: list.exists().then_some(list),
            shared: false,
        }
    }

    /// The pairs of a split and everything that does not pair up.
    pub(super) fn scan(&self, split: &str) -> Result<Scan> {
        let place = self.place(split);
        let mut scan = Scan::default();

        let mut by_name = BTreeMap::new();
        for (name, _, image) in files(&place.images, place.image_suffixes)? {
            if let Some(other) = by_name.insert(name.clone(), image.clone()) {
                let (other, label) = (other.display(), place.label_path(&name));
                let reason = format!("{other} would have the same label, {}", label.display());
                scan.problems.push(Error::invalid_file(&image, reason));
            }
        }
        let suffixes: Vec<&str> = place.label_suffixes.iter().map(|(suffix, _)| *suffix).collect();
        let mut labels: BTreeMap<String, (usize, PathBuf)> = BTreeMap::new();
        for (name, suffix, label) in files(&place.labels, &suffixes)? {
            if labels.get(&name).is_none_or(|(known, _)| suffix < *known) {
                labels.insert(name, (suffix, label));
            }
        }

        let listed = place.list.as_deref().map(|list| Ok((list, read_list(list)?))).transpose()?;
        let names: Vec<String> = match &listed {
            None => by_name.keys().cloned().collect(),
            Some((list, lines)) => {
                let mut seen = BTreeSet::new();
                let mut names = Vec::new();
                for (line, name) in lines {
                    // Some lists name the file, ending and all.
                    let stem = name.rsplit_once('.').map_or("", |(stem, _)| stem);
                    let found =
                        [name.as_str(), stem].into_iter().find(|n| by_name.contains_key(*n));
                    let problem = match found {
                        None => format!(
                            "line {line}: no picture `{}` in {}",
                            shown(name),
                            place.images.display()
                        ),
                        Some(name) if !seen.insert(name.to_owned()) => {
                            format!("line {line}: `{name}` is listed twice")
                        }
                        Some(name) => {
                            names.push(name.to_owned());
                            continue;
                        }
                    };
                    scan.problems.push(Error::invalid_file(list, problem));
                }
                if !place.shared {
                    scan.unlisted = by_name.len() - seen.len();
                }
                names
            }
        };

        for name in names {
            let image = by_name.remove(&name).expect("named above");
            match labels.remove(&name) {
                Some((suffix, label)) => {
                    let ids = place.label_suffixes[suffix].1;
                    scan.items.push(Item { name, image, label, ids });
                }
                None => {
                    let label = place.label_path(&name);
                    let reason = format!("the label {} is missing", label.display());
                    scan.problems.push(Error::invalid_file(&image, reason));
                }
            }
        }
        if listed.is_none() {
            for (name, (_, label)) in labels {
                let image = place.images.join(&name);
                let endings = match place.image_suffixes {
                    [one] => (*one).to_owned(),
                    several => format!(".{{{}}}", several.join(",").replace('.', "")),
                };
                let reason = format!("the picture {}{endings} is missing", image.display());
                scan.problems.push(Error::invalid_file(&label, reason));
            }
        }
        Ok(scan)
    }

    /// Reads a pair; ids become classes or [`IGNORE`].
    ///
    /// # Errors
    ///
    /// As [`Image::read`] and [`LabelMap::read`]; [`Error::Invalid`] when the sizes differ or an id
    /// is no class, with the first pixel that has it.
    pub fn load(&self, item: &Item) -> Result<Sample> {
        let image = Image::read(&item.image)?;
        let mut labels = LabelMap::read(&item.label)?;
        if let Some(reason) = size_mismatch(&image, &labels, item) {
            return Err(Error::invalid_file(&item.label, reason));
        }
        self.map_ids(&mut labels, item)?;
        Ok(Sample { name: item.name.clone(), image, labels })
    }

    /// Turns the ids of a file into classes and [`IGNORE`].
    fn map_ids(&self, labels: &mut LabelMap, item: &Item) -> Result<()> {
        let table = self.class_table(item.ids);
        for (i, id) in labels.ids.iter_mut().enumerate() {
            let Some(class) = table[usize::from(*id)] else {
                let (x, y) = (i % labels.width, i / labels.width);
                let why = self.why_unknown(*id, item.ids);
                let reason = format!("id {id} at pixel ({x}, {y}) {why}");
                return Err(Error::invalid_file(&item.label, reason));
            };
            *id = class;
        }
        Ok(())
    }

    /// What each value of a label file means: a class, [`IGNORE`], or `None` for nothing.
    pub(super) fn class_table(&self, ids: Ids) -> [Option<u8>; 256] {
        if ids != Ids::Described {
            return ids.table(self.classes.len());
        }
        std::array::from_fn(|id| {
            if id == usize::from(self.ignore_index) {
                return Some(IGNORE);
            }
            let class = match (self.reduce_zero_label, id) {
                (false, _) => id,
                (true, 0 | 255) => return Some(IGNORE),
                (true, _) => id - 1,
            };
            (class < self.classes.len()).then_some(class as u8)
        })
    }

    /// Says of an id that [`Dataset::class_table`] does not know which ones are known.
    pub(super) fn why_unknown(&self, id: u8, ids: Ids) -> String {
        if ids != Ids::Described {
            return format!("is none of {}", ids.known());
        }
        let n = self.classes.len();
        let first = usize::from(self.reduce_zero_label);
        let known = format!("is no class ({first}..={})", n - 1 + first);
        let hint = match id {
            255 => "; if 255 means unlabelled, set `ignore_index` to 255",
            _ if usize::from(id) == n => {
                "; if ids count from 1 and 0 means unlabelled, set `reduce_zero_label`"
            }
            _ => "; should it be the `ignore_index`?",
        };
        format!("{known} and not the `ignore_index` {}{hint}", self.ignore_index)
    }
}

/// Where the files of a split lie and what they are called.
pub(super) struct Place {
    /// The split's name in this crate.
    pub(super) name: String,
    pub(super) images: PathBuf,
    image_suffixes: &'static [&'static str],
    pub(super) labels: PathBuf,
    label_suffixes: &'static [(&'static str, Ids)],
    pub(super) list: Option<PathBuf>,
    /// Whether other splits have pictures in the same folder.
    shared: bool,
}

impl Place {
    /// The label that the picture `name` is to have, of the preferred kind.
    fn label_path(&self, name: &str) -> PathBuf {
        self.labels.join(format!("{name}{}", self.label_suffixes[0].0))
    }
}

/// What [`Dataset::scan`] found.
#[derive(Debug, Default)]
pub(super) struct Scan {
    pub(super) items: Vec<Item>,
    /// Missing partners, doubtful names, bad lines of the list.
    pub(super) problems: Vec<Error>,
    /// Pictures that the list leaves out.
    pub(super) unlisted: usize,
}

/// Says how the sizes of a pair differ, if they do.
pub(super) fn size_mismatch(image: &Image, labels: &LabelMap, item: &Item) -> Option<String> {
    let (image_size, label_size) = ((image.width, image.height), (labels.width, labels.height));
    if image_size == label_size {
        return None;
    }
    let hint = if image_size == (label_size.1, label_size.0) {
        "; sides are swapped: was the label drawn before the EXIF orientation was applied?"
    } else {
        ""
    };
    Some(format!(
        "the label is {}x{} but its picture {} is {}x{}{hint}",
        label_size.0,
        label_size.1,
        item.image.display(),
        image_size.0,
        image_size.1
    ))
}

/// A text from outside, without control characters and not too long, for messages.
pub(super) fn shown(text: &str) -> String {
    const LONGEST: usize = 60;
    let clean = text.chars().map(|c| if c.is_control() { '?' } else { c });
    let mut short: String = clean.take(LONGEST).collect();
    if text.chars().nth(LONGEST).is_some() {
        short.push('…');
    }
    short
}

fn names(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|name| Some(name.as_str()?.to_owned())).collect()
}

fn colour(value: &Value) -> Option<[u8; 3]> {
    let parts = value.as_array()?.iter().map(|v| u8::try_from(v.as_u64()?).ok());
    parts.collect::<Option<Vec<u8>>>()?.try_into().ok()
}

/// The colours of PASCAL VOC: the bits of the id, spread over the high bits of red, green and blue.
pub fn voc_palette(classes: usize) -> Vec<[u8; 3]> {
    let colour = |class: usize| {
        let mut colour = [0; 3];
        for bit in 0..8 {
            colour[bit % 3] |= ((class >> bit & 1) << (7 - bit / 3)) as u8;
        }
        colour
    };
    (0..classes).map(colour).collect()
}

/// Names of the folders in `path`, sorted.
pub(super) fn folders(path: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(Error::file("list", path))? {
        let entry = entry.map_err(Error::file("list", path))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && entry.path().is_dir() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// The files below `root`, if it is there, that end in one of `suffixes`, in any case, as (name without the longest such suffix, its number, path) in no order. Hidden ones are
/// passed over, and folders that are links, which could lead in circles.
fn files(root: &Path, suffixes: &[&str]) -> Result<Vec<(String, usize, PathBuf)>> {
    let mut found = Vec::new();
    let mut left = Vec::new();
    if root.exists() {
        left.push((String::new(), root.to_owned()));
    }
    while let Some((prefix, folder)) = left.pop() {
        for entry in fs::read_dir(&folder).map_err(Error::file("list", &folder))? {
            let entry = entry.map_err(Error::file("list", &folder))?;
            let path = entry.path();
            let file_name = entry.file_name().to_string_lossy().into_owned();
            if file_name.starts_with('.') {
                continue;
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                left.push((format!("{prefix}{file_name}/"), path));
                continue;
            }
            let lower = file_name.to_ascii_lowercase();
            let fits = |(_, suffix): &(usize, &&str)| lower.ends_with(&suffix.to_ascii_lowercase());
            let fitting = suffixes.iter().enumerate().filter(fits);
            if let Some((i, suffix)) = fitting.max_by_key(|(_, suffix)| suffix.len()) {
                let stem = &file_name[..file_name.len() - suffix.len()];
                found.push((format!("{prefix}{stem}"), i, path));
            }
        }
    }
    Ok(found)
}

/// The names in a list with their line numbers.
fn read_list(path: &Path) -> Result<Vec<(usize, String)>> {
    let bytes = read_bounded(path)?;
    let text = String::from_utf8(bytes)
        .map_err(|_| Error::invalid_file(path, "the list is not UTF-8 text"))?;
    let lines = text.trim_start_matches('\u{feff}').lines().enumerate();
    let names = lines.map(|(i, line)| (i + 1, line.trim().to_owned()));
    Ok(names.filter(|(_, name)| !name.is_empty()).collect())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Folder};
    use super::*;

    fn open(json: &str) -> Result<Dataset> {
        Dataset::open(Folder::new(json).root())
    }

    #[test]
    fn absent_keys_have_defaults() {
        let folder = Folder::new(r#"{"classes": ["a", "b"], "stats": {"n": [1, {}]}}"#);
        let dataset = Dataset::open(folder.root()).unwrap();
        assert_eq!(dataset.name, folder.root().file_name().unwrap().to_str().unwrap());
        assert_eq!((dataset.ignore_index, dataset.reduce_zero_label), (255, false));
        assert_eq!(dataset.palette, [[0, 0, 0], [128, 0, 0]]);

        let distinct: BTreeSet<_> = voc_palette(255).into_iter().collect();
        assert_eq!(distinct.len(), 255);
    }

    #[test]
    fn a_hostile_description_is_an_error_that_names_the_key() {
        let wrong = [
            ("", "not JSON"),
            ("[1", "not JSON"),
            ("[]", "must be an object"),
            ("{}", "`classes`"),
            (r#"{"classes": 7}"#, "`classes` must be a list of names"),
            (r#"{"classes": ["a", 7]}"#, "`classes` must be a list of names"),
            (r#"{"classes": ["a"]}"#, "2 to 255 classes are supported, not 1"),
            (r#"{"classes": ["a", " "]}"#, "class 1 has an empty name"),
            (r#"{"classes": ["a", "b"], "palette": [[1, 2, 3]]}"#, "1 colours for 2 classes"),
            (r#"{"classes": ["a", "b"], "palette": [[1, 2, 3], [1, 2]]}"#, "colour 1"),
            (r#"{"classes": ["a", "b"], "palette": [[1, 2, 256], [1, 2, 3]]}"#, "colour 0"),
            (r#"{"classes": ["a", "b"], "palette": "red"}"#, "`palette`"),
            (r#"{"classes": ["a", "b"], "ignore_index": -100}"#, "`ignore_index` is -100"),
            (r#"{"classes": ["a", "b"], "ignore_index": 256}"#, "`ignore_index` is 256"),
            (r#"{"classes": ["a", "b"], "ignore_index": 1}"#, "also the id of class `b`"),
            (
                r#"{"classes": ["a", "b"], "ignore_index": 2, "reduce_zero_label": true}"#,
                "also the id of class `b`",
            ),
            (r#"{"classes": ["a", "b"], "reduce_zero_label": "yes"}"#, "`reduce_zero_label`"),
            (r#"{"classes": ["a", "b"], "name": 3}"#, "`name`"),
            (r#"{"classes": ["a", "b"], "ignore_idx": 3}"#, "meant to be `ignore_index`"),
            (r#"{"classes": ["a", "b"], "pallete": []}"#, "meant to be `palette`"),
        ];
        for (json, expected) in wrong {
            let message = open(json).unwrap_err().to_string();
            assert!(message.contains(expected), "{json}: {message}");
            assert!(message.contains("dataset.json"), "{message}");
        }
        let many = vec!["c"; 256];
        assert!(open(&serde_json::json!({ "classes": many }).to_string()).is_err());
        let many = vec!["c"; 255];
        assert!(open(&serde_json::json!({ "classes": many }).to_string()).is_ok());
        let json = serde_json::json!({ "classes": many, "reduce_zero_label": true });
        assert!(open(&json.to_string()).is_err());
        assert!(open(&"[".repeat(100_000)).is_err());
    }

    #[test]
    fn a_missing_description_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let message = Dataset::open_as(folder.path(), Format::Folder).unwrap_err().to_string();
        assert!(message.contains("cannot read") && message.contains("dataset.json"), "{message}");
    }

    #[test]
    fn files_are_paired_by_name_in_sorted_order() {
        let folder = Folder::of_pairs(2, 4, 3);
        folder.pair("train", "city/a.b", 4, 3, 9);
        folder.write("images/train/.hidden.png", b"");
        folder.write("images/train/notes.txt", b"");
        let jpeg = testing::jpeg(&testing::image(4, 3, 5));
        folder.write("images/train/Q.JPG", &jpeg);
        folder.labels("train", "Q", &testing::labels(4, 3, 3, 5));
        let dataset = Dataset::open(folder.root()).unwrap();
        let items = dataset.split("train").unwrap();
        let names: Vec<&str> = items.iter().map(|item| item.name.as_str()).collect();
        assert_eq!(names, ["Q", "city/a.b", "p00", "p01"]);
        let sample = dataset.load(&items[1]).unwrap();
        assert_eq!(sample.image, testing::image(4, 3, 9));
        assert_eq!(sample.labels, testing::labels(4, 3, 3, 9));
    }

    #[test]
    fn a_list_gives_order_and_membership() {
        let folder = Folder::of_pairs(4, 4, 3);
        folder.write("train.txt", b"p03\n\n  p00.png \r\n");
        let dataset = Dataset::open(folder.root()).unwrap();
        let names = |items: Vec<Item>| items.into_iter().map(|i| i.name).collect::<Vec<_>>();
        assert_eq!(names(dataset.split("train").unwrap()), ["p03", "p00"]);
        assert_eq!(dataset.scan("train").unwrap().unlisted, 2);

        folder.write("train.txt", b"p03\np99\n");
        let message = dataset.split("train").unwrap_err().to_string();
        assert!(message.contains("train.txt: line 2: no picture `p99` in"), "{message}");
        folder.write("train.txt", b"p03\np00\np03");
        let message = dataset.split("train").unwrap_err().to_string();
        assert!(message.contains("line 3: `p03` is listed twice"), "{message}");
        folder.write("train.txt", b"\xff\xfe");
        assert!(dataset.split("train").is_err());
    }

    #[test]
    fn missing_partners_and_splits_are_named() {
        let folder = Folder::of_pairs(2, 4, 3);
        folder.pair("val", "v", 4, 3, 0);
        let dataset = Dataset::open(folder.root()).unwrap();
        let message = |split| dataset.split(split).unwrap_err().to_string();
        assert!(message("test").contains("no split `test`; there are train, val"));
        assert!(message("..").contains("there are train, val"));

        fs::remove_file(folder.path("labels/train/p01.png")).unwrap();
        let text = message("train").replace('\\', "/");
        assert!(text.contains("images/train/p01.png: the label "), "{text}");
        assert!(text.contains("labels/train/p01.png is missing"), "{text}");

        fs::remove_file(folder.path("images/val/v.png")).unwrap();
        let text = message("val").replace('\\', "/");
        assert!(text.contains("labels/val/v.png: the picture "), "{text}");
        assert!(text.contains("images/val/v.{png,jpg"), "{text}");

        folder.write("images/train/p00.jpg", b"");
        let text = message("train");
        assert!(text.contains("would have the same label"), "{text}");
        fs::create_dir_all(folder.root().join("images/empty")).unwrap();
        assert!(message("empty").contains("no pictures"));
    }

    #[test]
    fn ids_become_classes_or_the_ignored_label() {
        let json = r#"{"classes": ["a", "b", "c"], "ignore_index": 11}"#;
        let table = open(json).unwrap().class_table(Ids::Described);
        assert_eq!(table[..4], [Some(0), Some(1), Some(2), None]);
        assert_eq!((table[11], table[255]), (Some(IGNORE), None));

        let json = r#"{"classes": ["a", "b", "c"], "reduce_zero_label": true}"#;
        let table = open(json).unwrap().class_table(Ids::Described);
        assert_eq!(table[..5], [Some(IGNORE), Some(0), Some(1), Some(2), None]);
        assert_eq!((table[254], table[255]), (None, Some(IGNORE)));
    }

    #[test]
    fn an_unknown_id_is_reported_with_its_first_pixel_and_a_hint() {
        let folder = Folder::of_pairs(1, 4, 3);
        let dataset = Dataset::open(folder.root()).unwrap();
        let item = &dataset.split("train").unwrap()[0];
        let message = |id: u8| {
            let mut labels = LabelMap::new(4, 3, vec![1; 12]);
            (labels.ids[6], labels.ids[9]) = (id, id);
            folder.labels("train", "p00", &labels);
            dataset.load(item).unwrap_err().to_string()
        };
        let text = message(3);
        assert!(text.contains("p00.png: id 3 at pixel (2, 1) is no class (0..=2)"), "{text}");
        assert!(text.contains("`reduce_zero_label`"), "{text}");
        assert!(message(77).contains("`ignore_index`"));
    }

    #[test]
    fn differing_sizes_name_both_files_and_sizes() {
        let folder = Folder::of_pairs(1, 4, 3);
        let dataset = Dataset::open(folder.root()).unwrap();
        let item = &dataset.split("train").unwrap()[0];
        let message = |width, height| {
            folder.labels("train", "p00", &testing::labels(width, height, 3, 0));
            dataset.load(item).unwrap_err().to_string().replace('\\', "/")
        };
        let text = message(4, 2);
        assert!(text.contains("labels/train/p00.png: the label is 4x2 but its picture"), "{text}");
        assert!(text.contains("images/train/p00.png is 4x3"), "{text}");
        assert!(!text.contains("EXIF") && message(3, 4).contains("EXIF"), "{text}");
    }

    #[test]
    fn real_folders_have_the_pixels_they_are_known_for() {
        let name = "data::dataset::tests::real_folders_have_the_pixels_they_are_known_for";
        let Some(root) = testing::shared(name, "data/quickstart_nuclei") else { return };
        let dataset = Dataset::open(&root).unwrap();
        let items = dataset.split("val").unwrap();
        assert_eq!(items.len(), 36);
        let mut counts = [0; 256];
        for item in &items {
            for id in dataset.load(item).unwrap().labels.ids {
                counts[usize::from(id)] += 1;
            }
        }
        // The set's own record; together they are all pixels.
        assert_eq!(counts[..3], [1_106_790, 182_844, 37_470]);

        let Some(root) = testing::shared(name, "data/camvid") else { return };
        let dataset = Dataset::open(&root).unwrap();
        assert_eq!((dataset.classes.len(), dataset.ignore_index), (11, 11));
        let items = dataset.split("train").unwrap();
        assert_eq!((items.len(), items[0].name.as_str()), (367, "0001TP_006690"));
        let sample = dataset.load(&items[0]).unwrap();
        assert_eq!((sample.image.width, sample.image.height), (240, 180));
        assert!(sample.labels.ids.contains(&IGNORE));
    }
}
