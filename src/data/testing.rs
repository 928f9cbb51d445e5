//! What the tests of this module share: pictures of noise, folders of them, and the real data
//! that lies beside some checkouts.

use std::fs;
use std::path::{Path, PathBuf};

use ::image::ImageEncoder;

use super::{Image, LabelMap};
use crate::random::Rng;

/// `../shared/PATH` where there is one; else says that the test `name` is skipped.
pub(super) fn shared(name: &str, path: &str) -> Option<PathBuf> {
    let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared").join(path);
    if !found.exists() {
        println!("skipped: {name}, ../shared/{path} is absent");
        return None;
    }
    Some(found)
}

pub(super) fn image(width: usize, height: usize, seed: u64) -> Image {
    let mut rng = Rng::new(seed, 0);
    Image::new(width, height, (0..width * height * 3).map(|_| rng.bits() as u8).collect())
}

pub(super) fn labels(width: usize, height: usize, classes: usize, seed: u64) -> LabelMap {
    let mut rng = Rng::new(seed, 1);
    LabelMap::new(width, height, (0..width * height).map(|_| rng.below(classes) as u8).collect())
}

pub(super) fn jpeg(image: &Image) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (width, height) = (image.width as u32, image.height as u32);
    ::image::codecs::jpeg::JpegEncoder::new(&mut bytes)
        .write_image(&image.pixels, width, height, ::image::ExtendedColorType::Rgb8)
        .unwrap();
    bytes
}

/// A folder with a `dataset.json` and pairs of noise.
pub(super) struct Folder(pub(super) tempfile::TempDir);

impl Folder {
    pub(super) fn new(json: &str) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        folder.write("dataset.json", json.as_bytes());
        folder
    }

    /// Three classes, `n` training pairs `p00`, `p01`, … of the given size.
    pub(super) fn of_pairs(n: usize, width: usize, height: usize) -> Self {
        let folder = Self::new(r#"{"classes": ["a", "b", "c"]}"#);
        for i in 0..n {
            folder.pair("train", &format!("p{i:02}"), width, height, i as u64);
        }
        folder
    }

    pub(super) fn root(&self) -> &Path {
        self.0.path()
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    pub(super) fn write(&self, path: &str, bytes: &[u8]) {
        fs::write(self.path(path), bytes).unwrap();
    }

    pub(super) fn pair(&self, split: &str, name: &str, width: usize, height: usize, seed: u64) {
        let path = self.path(&format!("images/{split}/{name}.png"));
        image(width, height, seed).write_png(&path).unwrap();
        self.labels(split, name, &labels(width, height, 3, seed));
    }

    pub(super) fn labels(&self, split: &str, name: &str, labels: &LabelMap) {
        let path = self.path(&format!("labels/{split}/{name}.png"));
        labels.write_png(&path, &[[0; 3], [80; 3], [160; 3]]).unwrap();
    }
}
