//! How published data sets lie on disk: their folders, the endings of their files, what the values
//! in their label files mean, and which of them a folder holds.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::dataset::folders;
use super::{Dataset, IGNORE};
use crate::{Error, Result};

/// How a data set lies on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Format {
    /// What is there decides.
    #[default]
    #[serde(rename = "auto")]
    Auto,
    /// `dataset.json`, `images/SPLIT`, `labels/SPLIT`.
    #[serde(rename = "folder")]
    Folder,
    /// ADE20K as in the scene parsing challenge (SceneParse150): 150 classes, files count from 1.
    #[serde(rename = "ade20k")]
    Ade20k,
    /// Cityscapes, fine annotations: 19 classes, from `labelIds` or `labelTrainIds`.
    #[serde(rename = "cityscapes")]
    Cityscapes,
    /// COCO-Stuff-10k: 171 of 182 ids are used; as distributed, or converted to PNG.
    #[serde(rename = "coco-stuff-10k")]
    CocoStuff10k,
    /// COCO-Stuff-164k: the same classes on the pictures of COCO 2017.
    #[serde(rename = "coco-stuff-164k")]
    CocoStuff164k,
    /// Pascal VOC 2012: 21 classes, background among them.
    #[serde(rename = "voc2012")]
    Voc2012,
}

impl Format {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::Auto,
        Self::Folder,
        Self::Ade20k,
        Self::Cityscapes,
        Self::CocoStuff10k,
        Self::CocoStuff164k,
        Self::Voc2012,
    ];

    /// Its name in recipes and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Folder => "folder",
            Self::Ade20k => "ade20k",
            Self::Cityscapes => "cityscapes",
            Self::CocoStuff10k => "coco-stuff-10k",
            Self::CocoStuff164k => "coco-stuff-164k",
            Self::Voc2012 => "voc2012",
        }
    }
}

impl Format {
    /// Names and colours of the classes of a published data set.
    pub fn classes(self) -> Option<(Vec<String>, Vec<[u8; 3]>)> {
        let layout = LAYOUTS.iter().find(|layout| layout.format == self)?;
        let dataset = Dataset::of(layout, Path::new(""));
        Some((dataset.classes, dataset.palette))
    }
}

/// What the values of a label file mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ids {
    /// What `dataset.json` says.
    Described,
    /// Classes; 255 is ignored.
    Classes,
    /// Classes counted from 1; 0 and 255 are ignored.
    FromOne,
    /// The 34 ids of Cityscapes, of which 19 are classes.
    Cityscapes,
    /// The 182 ids of COCO-Stuff, of which 171 are classes. `first` is the value of id 1: below it
    /// and at 255 is what is unlabelled.
    Coco { first: u8 },
}

/// The ids of Cityscapes that are classes, in the order of the classes.
const CITYSCAPES_IDS: [u8; 19] =
    [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33];
/// The ids of COCO-Stuff, 1 to 182, that nothing has.
const COCO_GAPS: [u8; 11] = [12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91];

impl Ids {
    /// What each value means: a class, [`IGNORE`], or `None` for nothing. Not for
    /// [`Ids::Described`].
    pub(super) fn table(self, classes: usize) -> [Option<u8>; 256] {
        let mut table = [None; 256];
        table[255] = Some(IGNORE);
        let mut class = |value: usize, class: usize| table[value] = Some(class as u8);
        match self {
            Self::Described => unreachable!("the data set has the table"),
            Self::Classes => (0..classes).for_each(|c| class(c, c)),
            Self::FromOne => {
                class(0, usize::from(IGNORE));
                (0..classes).for_each(|c| class(c + 1, c));
            }
            Self::Cityscapes => {
                (0..34).for_each(|id| class(id, usize::from(IGNORE)));
                CITYSCAPES_IDS.iter().enumerate().for_each(|(c, id)| class(usize::from(*id), c));
            }
            Self::Coco { first } => {
                (0..usize::from(first)).for_each(|value| class(value, usize::from(IGNORE)));
                let used = (1..=182).filter(|id| !COCO_GAPS.contains(id));
                used.enumerate().for_each(|(c, id)| class(usize::from(id - 1 + first), c));
            }
        }
        table
    }

    /// The values that the table knows, for messages.
    pub(super) fn known(self) -> &'static str {
        match self {
            Self::Described | Self::Classes => "classes, and 255 for what is ignored",
            Self::FromOne => "classes counted from 1, and 0 for what is ignored",
            Self::Cityscapes => "the labelIds of Cityscapes, 0..=33",
            Self::Coco { first: 0 } => "the ids of COCO-Stuff less 1, 0..=181, and 255",
            Self::Coco { .. } => "the ids of COCO-Stuff, 1..=182, and 0",
        }
    }
}

/// A part of a published data set.
#[derive(Debug)]
pub(super) struct Split {
    /// What it may be called, the crate's name first.
    pub(super) names: &'static [&'static str],
    pub(super) images: &'static str,
    pub(super) labels: &'static str,
    /// The file that says which pictures of a folder shared by several parts are in this one.
    pub(super) list: Option<&'static str>,
}

/// One way in which a published data set lies on disk.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) format: Format,
    /// The folder that its archives unpack to; `--data` may name that or what it is in.
    folder: &'static str,
    /// Names, colours and classes: what a `dataset.json` would say.
    pub(super) description: &'static str,
    pub(super) splits: &'static [Split],
    /// What follows a picture's name, in any case.
    pub(super) image_suffixes: &'static [&'static str],
    /// What follows its label's name and what values mean then; earlier ones are preferred.
    pub(super) label_suffixes: &'static [(&'static str, Ids)],
}

const fn split(
    names: &'static [&'static str],
    images: &'static str,
    labels: &'static str,
    list: Option<&'static str>,
) -> Split {
    Split { names, images, labels, list }
}

const TRAIN: &[&str] = &["train", "training", "train2014", "train2017"];
const VAL: &[&str] = &["val", "validation", "val2017"];
const COCO_SUFFIXES: &[(&str, Ids)] =
    &[("_labelTrainIds.png", Ids::Classes), (".png", Ids::Coco { first: 0 })];

const ADE20K: Layout = Layout {
    format: Format::Ade20k,
    folder: "ADEChallengeData2016",
    description: include_str!("known/ade20k.json"),
    splits: &[
        split(TRAIN, "images/training", "annotations/training", None),
        split(VAL, "images/validation", "annotations/validation", None),
    ],
    image_suffixes: &[".jpg"],
    label_suffixes: &[(".png", Ids::FromOne)],
};

const COCO_STUFF_10K: Layout = Layout {
    format: Format::CocoStuff10k,
    folder: "coco_stuff10k",
    description: include_str!("known/coco_stuff.json"),
    splits: &[
        split(TRAIN, "images/train2014", "annotations/train2014", None),
        // The published results are those of the test part, which official recipes validate on.
        split(&["val", "test", "test2014"], "images/test2014", "annotations/test2014", None),
    ],
    image_suffixes: &[".jpg"],
    label_suffixes: &[("_labelTrainIds.png", Ids::FromOne)],
};

/// Every layout that is looked for, in this order.
pub(super) static LAYOUTS: &[Layout] = &[
    ADE20K,
    // As detectron2 prepares it: one less, so that 0 has become 255.
    Layout {
        splits: &[
            split(TRAIN, "images/training", "annotations_detectron2/training", None),
            split(VAL, "images/validation", "annotations_detectron2/validation", None),
        ],
        label_suffixes: &[(".png", Ids::Classes)],
        ..ADE20K
    },
    Layout {
        format: Format::Cityscapes,
        folder: "cityscapes",
        description: include_str!("known/cityscapes.json"),
        splits: &[
            split(TRAIN, "leftImg8bit/train", "gtFine/train", None),
            split(VAL, "leftImg8bit/val", "gtFine/val", None),
            split(&["test"], "leftImg8bit/test", "gtFine/test", None),
        ],
        image_suffixes: &["_leftImg8bit.png"],
        label_suffixes: &[
            ("_gtFine_labelTrainIds.png", Ids::Classes),
            ("_gtFine_labelIds.png", Ids::Cityscapes),
        ],
    },
    COCO_STUFF_10K,
    Layout {
        splits: &[
            split(TRAIN, "images", "annotations", Some("imageLists/train.txt")),
            split(&["val", "test"], "images", "annotations", Some("imageLists/test.txt")),
        ],
        label_suffixes: &[(".mat", Ids::Coco { first: 1 })],
        ..COCO_STUFF_10K
    },
    Layout {
        format: Format::CocoStuff164k,
        folder: "coco_stuff164k",
        description: include_str!("known/coco_stuff.json"),
        splits: &[
            split(TRAIN, "images/train2017", "annotations/train2017", None),
            split(VAL, "images/val2017", "annotations/val2017", None),
        ],
        image_suffixes: &[".jpg"],
        label_suffixes: COCO_SUFFIXES,
    },
    // As it is distributed: `train2017.zip`, `val2017.zip`, `stuffthingmaps_trainval2017.zip`.
    Layout {
        format: Format::CocoStuff164k,
        folder: "coco",
        description: include_str!("known/coco_stuff.json"),
        splits: &[
            split(TRAIN, "train2017", "stuffthingmaps/train2017", None),
            split(VAL, "val2017", "stuffthingmaps/val2017", None),
        ],
        image_suffixes: &[".jpg"],
        label_suffixes: COCO_SUFFIXES,
    },
    Layout {
        format: Format::Voc2012,
        folder: "VOCdevkit/VOC2012",
        description: include_str!("known/voc2012.json"),
        splits: &[
            split(TRAIN, "JPEGImages", "SegmentationClass", Some(VOC_TRAIN)),
            split(VAL, "JPEGImages", "SegmentationClass", Some(VOC_VAL)),
            split(&["trainval"], "JPEGImages", "SegmentationClass", Some(VOC_TRAINVAL)),
        ],
        image_suffixes: &[".jpg"],
        label_suffixes: &[(".png", Ids::Classes)],
    },
];

const VOC_TRAIN: &str = "ImageSets/Segmentation/train.txt";
const VOC_VAL: &str = "ImageSets/Segmentation/val.txt";
const VOC_TRAINVAL: &str = "ImageSets/Segmentation/trainval.txt";

impl Split {
    /// Whether its pictures and labels are in `root`.
    pub(super) fn is_in(&self, root: &Path) -> bool {
        root.join(self.images).is_dir()
            && root.join(self.labels).is_dir()
            && self.list.is_none_or(|list| root.join(list).is_file())
    }
}

impl Layout {
    /// The folder, `root` or within, that has at least one part of the data set.
    fn find(&self, root: &Path) -> Option<PathBuf> {
        let inner = Path::new(self.folder);
        // VOCdevkit/VOC2012 is two folders deep.
        let last = inner.file_name().map_or(inner, Path::new);
        let places = [root.to_owned(), root.join(inner), root.join(last)];
        places.into_iter().find(|root| self.splits.iter().any(|split| split.is_in(root)))
    }

    /// What it was looked for by.
    fn signs(&self) -> String {
        let Split { images, labels, list, .. } = &self.splits[0];
        let list = list.map(|list| format!(" + {list}")).unwrap_or_default();
        format!("{images} + {labels}{list} ({})", self.format.name())
    }
}

/// Which data set is at `root`, and in which folder. `Ok(None)` is the crate's own format.
pub(super) fn detect(root: &Path, format: Format) -> Result<Option<(&'static Layout, PathBuf)>> {
    let described = root.join("dataset.json");
    if format == Format::Folder || format == Format::Auto && described.exists() {
        return Ok(None);
    }
    let wanted = |layout: &&Layout| format == Format::Auto || layout.format == format;
    for layout in LAYOUTS.iter().filter(wanted) {
        if let Some(root) = layout.find(root) {
            return Ok(Some((layout, root)));
        }
    }
    // Says first that the folder itself cannot be read.
    let mut found: Vec<String> = std::fs::read_dir(root)
        .map_err(Error::file("list", root))?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .filter(|name| !name.starts_with('.'))
        .collect();
    found.sort_unstable();
    Err(Error::invalid_file(root, explain(root, format, &found)))
}

/// Why there is no data set of this format among the names `found` in `root`.
fn explain(root: &Path, format: Format, found: &[String]) -> String {
    const SHOWN: usize = 12;
    let wanted = |layout: &&Layout| format == Format::Auto || layout.format == format;
    let mut signs: Vec<String> = LAYOUTS.iter().filter(wanted).map(Layout::signs).collect();
    if format == Format::Auto {
        signs.insert(0, "dataset.json (folder)".into());
    }
    let found = match found {
        [] => "the folder is empty".into(),
        names => {
            let more = if names.len() > SHOWN { ", …" } else { "" };
            let names: Vec<String> =
                names.iter().take(SHOWN).map(|name| super::dataset::shown(name)).collect();
            format!("found {}{more}", names.join(", "))
        }
    };
    let mut text = match format {
        Format::Auto => "no data set of a known layout".to_owned(),
        format => format!("no {} data set", format.name()),
    };
    if let Some(hint) = hint(root, format) {
        text += &format!("; {hint}");
    }
    format!("{text}: looked for {}; {found}", signs.join(", "))
}

/// What `root` looks like, where that is not what is wanted.
fn hint(root: &Path, format: Format) -> Option<String> {
    let has = |path: &str| root.join(path).exists();
    if has("images/ADE") || has("ADE20K_2021_17_01") || has("index_ade20k.pkl") {
        let text = "this is the full ADE20K, whose labels are colours; the 150 classes of the \
                    scene parsing challenge are in ADEChallengeData2016";
        return Some(text.into());
    }
    if has("leftImg8bit") && has("gtCoarse") && !has("gtFine") {
        return Some("these are Cityscapes' coarse annotations; gtFine is wanted".into());
    }
    let panoptic = folders(root).unwrap_or_default().into_iter();
    if let Some(name) = panoptic.into_iter().find(|name| name.starts_with("panoptic_")) {
        return Some(format!(
            "{name} has panoptic labels, whose colours are segments, not classes; the stuffthingmaps \
             of COCO-Stuff are wanted"
        ));
    }
    // Pictures without labels, or the other way round.
    let wanted = |layout: &&Layout| format == Format::Auto || layout.format == format;
    LAYOUTS.iter().filter(wanted).find_map(|layout| {
        layout.splits.iter().find_map(|split| {
            let all = [Some(split.images), Some(split.labels), split.list];
            let (there, missing): (Vec<&str>, Vec<&str>) =
                all.into_iter().flatten().partition(|path| has(path));
            // `images` alone says too little.
            let telling = there.iter().any(|path| *path != "images" && *path != "annotations");
            (telling && !missing.is_empty()).then(|| {
                let (name, missing) = (layout.format.name(), missing.join(", "));
                format!("it has {} of {name} but not {missing}", there.join(", "))
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::testing::{self, Folder};
    use super::super::{LabelMap, Report, Severity, check};
    use super::*;

    fn empty() -> Folder {
        let folder = Folder::new("{}");
        std::fs::remove_file(folder.root().join("dataset.json")).unwrap();
        folder
    }

    /// A picture and its label of 4 by 2 pixels with these ids.
    fn pair(folder: &Folder, image: &str, label: &str, ids: [u8; 8]) {
        let picture = testing::image(4, 2, image.len() as u64);
        match image.ends_with(".jpg") {
            true => folder.write(image, &testing::jpeg(&picture)),
            false => picture.write_png(&folder.path(image)).unwrap(),
        }
        let labels = LabelMap::new(4, 2, ids.to_vec());
        match label.ends_with(".mat") {
            true => folder.write(label, &super::super::mat::tests::labels_file(&labels)),
            false => labels.write_png(&folder.path(label), &[[1; 3]; 256]).unwrap(),
        }
    }

    /// The classes of the first pair of a split.
    fn first(dataset: &Dataset, split: &str) -> Vec<u8> {
        let items = dataset.split(split).unwrap();
        dataset.load(&items[0]).unwrap().labels.ids
    }

    fn errors(report: &Report) -> Vec<&str> {
        let errors = report.problems().iter().filter(|p| p.severity == Severity::Error);
        errors.map(|p| p.text.as_str()).collect()
    }

    #[test]
    fn ade20k_counts_from_1() {
        let folder = empty();
        let root = "ADEChallengeData2016";
        for (split, n) in [("training", 1), ("validation", 2)] {
            let image = format!("{root}/images/{split}/ADE_{n}.jpg");
            let label = format!("{root}/annotations/{split}/ADE_{n}.png");
            pair(&folder, &image, &label, [0, 1, 2, 150, 255, 3, 4, 5]);
        }
        // The folder itself, and what it is in.
        for path in [folder.root().to_owned(), folder.root().join(root)] {
            let dataset = Dataset::open(&path).unwrap();
            assert_eq!((dataset.format, dataset.classes.len()), (Format::Ade20k, 150));
            assert_eq!(dataset.splits().unwrap(), ["train", "val"]);
            assert_eq!(first(&dataset, "train"), [255, 0, 1, 149, 255, 2, 3, 4]);
            assert_eq!(dataset.split("validation").unwrap(), dataset.split("val").unwrap());
            assert!(errors(&check(&path).unwrap()).is_empty());
        }
        let label = format!("{root}/annotations/training/ADE_1.png");
        LabelMap::new(4, 2, vec![151; 8]).write_png(&folder.path(&label), &[[1; 3]]).unwrap();
        let report = check(folder.root()).unwrap();
        let [error] = errors(&report)[..] else { panic!("{report}") };
        assert!(error.contains("id 151 is none of classes counted from 1"), "{error}");

        // detectron2's copy is one less already.
        let root = folder.root().join(root);
        std::fs::rename(root.join("annotations"), root.join("annotations_detectron2")).unwrap();
        pair(
            &folder,
            "ADEChallengeData2016/images/validation/ADE_2.jpg",
            "ADEChallengeData2016/annotations_detectron2/validation/ADE_2.png",
            [0, 1, 149, 255, 2, 3, 4, 5],
        );
        let dataset = Dataset::open(&root).unwrap();
        assert_eq!(first(&dataset, "val"), [0, 1, 149, 255, 2, 3, 4, 5]);
    }

    #[test]
    fn cityscapes_has_19_of_34_ids() {
        let folder = empty();
        let place = |split: &str, name: &str, kind: &str| {
            (
                format!("leftImg8bit/{split}/bonn/{name}_leftImg8bit.png"),
                format!("gtFine/{split}/bonn/{name}_gtFine_{kind}.png"),
            )
        };
        let (image, label) = place("train", "a", "labelIds");
        pair(&folder, &image, &label, [0, 6, 7, 8, 9, 11, 29, 33]);
        // What else the annotations come with.
        folder.write("gtFine/train/bonn/a_gtFine_instanceIds.png", b"not read");
        folder.write("gtFine/train/bonn/a_gtFine_polygons.json", b"{}");
        let (image, label) = place("val", "b", "labelTrainIds");
        pair(&folder, &image, &label, [0, 1, 18, 255, 0, 0, 0, 0]);
        let dataset = Dataset::open(folder.root()).unwrap();
        assert_eq!(dataset.format, Format::Cityscapes);
        assert_eq!(dataset.splits().unwrap(), ["train", "val"]);
        assert_eq!(dataset.split("train").unwrap()[0].name, "bonn/a");
        assert_eq!(first(&dataset, "train"), [255, 255, 0, 1, 255, 2, 255, 18]);
        assert_eq!(first(&dataset, "val"), [0, 1, 18, 255, 0, 0, 0, 0]);
        assert!(errors(&check(folder.root()).unwrap()).is_empty());

        // Where both are there, the ids for training are taken.
        let (image, label) = place("train", "a", "labelTrainIds");
        pair(&folder, &image, &label, [5; 8]);
        assert_eq!(first(&dataset, "train"), [5; 8]);
        let (image, label) = place("train", "c", "labelIds");
        pair(&folder, &image, &label, [34; 8]);
        let error = dataset.load(&dataset.split("train").unwrap()[1]).unwrap_err().to_string();
        assert!(error.contains("c_gtFine_labelIds.png: id 34 at pixel (0, 0)"), "{error}");
        assert!(error.ends_with("is none of the labelIds of Cityscapes, 0..=33"), "{error}");
    }

    #[test]
    fn a_map_of_instances_is_refused_by_name() {
        let folder = empty();
        let label = "gtFine/train/bonn/a_gtFine_labelIds.png";
        pair(&folder, "leftImg8bit/train/bonn/a_leftImg8bit.png", label, [0; 8]);
        let file = std::fs::File::create(folder.path(label)).unwrap();
        let mut encoder = png::Encoder::new(file, 4, 2);
        encoder.set_depth(png::BitDepth::Sixteen);
        encoder.set_color(png::ColorType::Grayscale);
        let values: Vec<u8> = [7u16, 7, 26001, 26002, 8, 8, 8, 8].map(u16::to_be_bytes).concat();
        encoder.write_header().unwrap().write_image_data(&values).unwrap();
        let dataset = Dataset::open(folder.root()).unwrap();
        let error = dataset.load(&dataset.split("train").unwrap()[0]).unwrap_err().to_string();
        assert!(error.contains("labelIds.png: id 26001 at pixel (2, 0)"), "{error}");
        assert!(error.contains("instances"), "{error}");
    }

    #[test]
    fn coco_stuff_closes_the_gaps_between_ids() {
        let ids = [0, 1, 13, 27, 92, 182, 255, 11];
        let classes = [255, 0, 11, 24, 80, 170, 255, 10];
        let original = empty();
        pair(&original, "images/p.jpg", "annotations/p.mat", ids);
        pair(&original, "images/q.jpg", "annotations/q.mat", [12; 8]);
        original.write("imageLists/train.txt", b"p\n");
        original.write("imageLists/test.txt", b"q\n");
        let dataset = Dataset::open(original.root()).unwrap();
        assert_eq!((dataset.format, dataset.classes.len()), (Format::CocoStuff10k, 171));
        assert_eq!(first(&dataset, "train"), classes);
        let report = check(original.root()).unwrap();
        let [error] = errors(&report)[..] else { panic!("{report}") };
        assert!(error.contains("q.mat: id 12 is none of the ids of COCO-Stuff"), "{error}");

        let converted = empty();
        let label = "annotations/train2014/p_labelTrainIds.png";
        pair(&converted, "images/train2014/p.jpg", label, [0, 1, 12, 25, 81, 171, 255, 11]);
        let dataset = Dataset::open(converted.root()).unwrap();
        assert_eq!(
            (dataset.format, first(&dataset, "train")),
            (Format::CocoStuff10k, classes.into())
        );

        let full = empty();
        let less = ids.map(|id| if id == 0 { 255 } else { id.saturating_sub(1) });
        let less = less.map(|id| if id == 254 { 255 } else { id });
        pair(&full, "train2017/p.jpg", "stuffthingmaps/train2017/p.png", less);
        let dataset = Dataset::open(full.root()).unwrap();
        assert_eq!(
            (dataset.format, first(&dataset, "train")),
            (Format::CocoStuff164k, classes.into())
        );
        assert_eq!(dataset.splits().unwrap(), ["train"]);
    }

    #[test]
    fn the_gaps_are_those_of_the_published_map() {
        let name = "data::layout::tests::the_gaps_are_those_of_the_published_map";
        let Some(path) = testing::shared(name, "spec/data/coco_stuff10k_label_map.json") else {
            return;
        };
        let json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let table = Ids::Coco { first: 1 }.table(171);
        let mut known = BTreeSet::new();
        for entry in json["map"].as_array().unwrap() {
            let (id, converted) = (entry[0].as_u64().unwrap(), entry[1].as_u64().unwrap());
            let class = if converted == 0 { IGNORE } else { converted as u8 - 1 };
            assert_eq!(table[id as usize], Some(class), "id {id}");
            known.insert(id as usize);
        }
        let unknown: Vec<usize> = (0..255).filter(|id| !known.contains(id)).collect();
        assert!(unknown.iter().all(|id| table[*id].is_none()));
    }

    #[test]
    fn voc_shares_a_folder_among_lists() {
        let folder = empty();
        for (name, id) in [("2007_1", 0), ("2007_2", 20), ("2007_3", 15)] {
            let image = format!("VOCdevkit/VOC2012/JPEGImages/{name}.jpg");
            let label = format!("VOCdevkit/VOC2012/SegmentationClass/{name}.png");
            pair(&folder, &image, &label, [id, id, id, id, 255, 255, 0, 0]);
        }
        let picture = testing::jpeg(&testing::image(3, 3, 1));
        folder.write("VOCdevkit/VOC2012/JPEGImages/2007_4.jpg", &picture);
        for (list, names) in [("train", "2007_3\n2007_1\n"), ("val", "2007_2\n")] {
            let path = format!("VOCdevkit/VOC2012/ImageSets/Segmentation/{list}.txt");
            folder.write(&path, names.as_bytes());
        }
        for path in ["", "VOCdevkit", "VOCdevkit/VOC2012"] {
            let dataset = Dataset::open(&folder.root().join(path)).unwrap();
            assert_eq!((dataset.format, dataset.classes.len()), (Format::Voc2012, 21));
            assert_eq!(dataset.splits().unwrap(), ["train", "val"]);
            assert_eq!(first(&dataset, "train"), [15, 15, 15, 15, 255, 255, 0, 0]);
            assert_eq!(dataset.split("val").unwrap().len(), 1);
        }
        let report = check(folder.root()).unwrap();
        assert!(errors(&report).is_empty(), "{report}");
        assert!(!report.to_string().contains("leaves out"), "{report}");
    }

    #[test]
    fn a_described_folder_is_that_and_a_wanted_format_is_held_to() {
        let folder = Folder::of_pairs(1, 4, 2);
        pair(&folder, "images/training/a.jpg", "annotations/training/a.png", [1; 8]);
        assert_eq!(Dataset::open(folder.root()).unwrap().format, Format::Folder);
        let dataset = Dataset::open_as(folder.root(), Format::Ade20k).unwrap();
        assert_eq!(dataset.format, Format::Ade20k);
        let error = Dataset::open_as(folder.root(), Format::Cityscapes).unwrap_err().to_string();
        assert!(error.contains("no cityscapes data set: looked for leftImg8bit/train"), "{error}");
        assert!(error.contains("found annotations, dataset.json, images, labels"), "{error}");
    }

    #[test]
    fn an_unknown_folder_says_what_was_looked_for_and_what_was_found() {
        let message = |files: &[&str]| {
            let folder = empty();
            files.iter().for_each(|file| folder.write(file, b""));
            Dataset::open(folder.root()).unwrap_err().to_string()
        };
        let text = message(&[]);
        for wanted in
            ["dataset.json (folder)", "images/training + annotations/training (ade20k)", "empty"]
        {
            assert!(text.contains(wanted), "{text}");
        }
        assert!(message(&["notes.txt", "x/y"]).contains("found notes.txt, x"));
        let text = message(&["leftImg8bit/train/a/b_leftImg8bit.png"]);
        assert!(text.contains("it has leftImg8bit/train of cityscapes but not gtFine/train"));
        assert!(message(&["leftImg8bit/x", "gtCoarse/x"]).contains("coarse"));
        assert!(message(&["ADE20K_2021_17_01/images/ADE/x"]).contains("full ADE20K"));
        assert!(message(&["panoptic_val2017/x.png", "val2017/x.jpg"]).contains("panoptic labels"));
        assert!(message(&["JPEGImages/a.jpg"]).contains("but not SegmentationClass, ImageSets"));
    }

    #[test]
    fn descriptions_have_the_classes_and_colours_that_were_published() {
        for layout in LAYOUTS {
            let json: serde_json::Value = serde_json::from_str(layout.description).unwrap();
            let classes = json["classes"].as_array().unwrap().len();
            let wanted = match layout.format {
                Format::Ade20k => 150,
                Format::Cityscapes => 19,
                Format::Voc2012 => 21,
                _ => 171,
            };
            assert_eq!((classes, json["palette"].as_array().unwrap().len()), (wanted, wanted));
            for (_, ids) in layout.label_suffixes {
                let table = ids.table(classes);
                let found: BTreeSet<u8> = table.into_iter().flatten().collect();
                assert_eq!(found.len(), classes + 1, "{:?}: every class has a value", ids);
            }
        }
    }

    #[test]
    fn real_samples_are_recognised_and_clean() {
        let name = "data::layout::tests::real_samples_are_recognised_and_clean";
        let known = [
            ("ade20k", Format::Ade20k, 3),
            ("ade20k/ADEChallengeData2016", Format::Ade20k, 3),
            ("cityscapes", Format::Cityscapes, 1),
            ("cocostuff10k_layout", Format::CocoStuff10k, 2),
            ("cocostuff164k", Format::CocoStuff164k, 21),
            ("voc", Format::Voc2012, 1),
        ];
        for (folder, format, pairs) in known {
            let Some(root) = testing::shared(name, &format!("data/samples/{folder}")) else {
                continue;
            };
            let report = check(&root).unwrap();
            assert_eq!(report.format, format, "{folder}");
            assert!(errors(&report).is_empty(), "{report}");
            assert_eq!(report.splits.iter().map(|split| split.pairs).sum::<usize>(), pairs);
            let labelled: u64 =
                report.splits.iter().flat_map(|split| &split.classes).map(|c| c.pixels).sum();
            assert!(labelled > 1000, "{report}");
        }
        for (folder, wanted) in [
            ("ade20k_full", "full ADE20K"),
            ("coco_panoptic", "panoptic labels"),
            ("mmseg_palette", "found gts, imgs"),
        ] {
            let Some(root) = testing::shared(name, &format!("data/samples/{folder}")) else {
                continue;
            };
            let error = Dataset::open(&root).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn raw_ids_of_real_samples_give_the_classes_of_their_converted_files() {
        let name = "data::layout::tests::raw_ids_of_real_samples_give_the_classes_of_their_converted_files";
        for (folder, raw, converted, most) in [
            // Both files were made smaller one by one, so borders differ a little.
            ("cityscapes/gtFine/val/frankfurt", "labelIds.png", "labelTrainIds.png", 77),
            ("cocostuff164k/annotations/val2017", ".png", "_labelTrainIds.png", 0),
        ] {
            let Some(root) = testing::shared(name, &format!("data/samples/{folder}")) else {
                continue;
            };
            let (ids, classes) = match folder.starts_with("city") {
                true => (Ids::Cityscapes, 19),
                false => (Ids::Coco { first: 0 }, 171),
            };
            let table = ids.table(classes);
            let mut compared = 0;
            for entry in std::fs::read_dir(&root).unwrap() {
                let path = entry.unwrap().path();
                let file = path.file_name().unwrap().to_string_lossy().into_owned();
                let Some(stem) = file.strip_suffix(converted) else { continue };
                let wanted = LabelMap::read(&path).unwrap();
                let found = LabelMap::read(&root.join(format!("{stem}{raw}"))).unwrap();
                let pairs = found.ids.iter().zip(&wanted.ids);
                let differing =
                    pairs.filter(|(id, class)| table[usize::from(**id)] != Some(**class)).count();
                assert!(differing <= most, "{file}: {differing} differ");
                compared += 1;
            }
            assert!(compared > 0);
        }
    }
}
