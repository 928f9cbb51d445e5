//! Pictures and label maps in memory, and their files.

use std::fs;
use std::io::{Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use ::image::{DynamicImage, ImageDecoder, ImageReader};

use crate::{Error, Result};

/// Longer files are refused before they are read.
const MAX_FILE_BYTES: u64 = 1 << 30;
/// What a decoder may allocate; a small file can claim to hold a huge picture.
const MAX_DECODED_BYTES: u64 = 1 << 30;
/// Longest side of a picture.
const MAX_SIDE: u32 = 1 << 16;

/// A picture: 8-bit red, green, blue, row by row from the top left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Pixels per row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width, 3]`
    pub pixels: Vec<u8>,
}

impl Image {
    /// A picture of `pixels`, `[height, width, 3]`.
    ///
    /// # Panics
    ///
    /// If there are not `height · width · 3` of them.
    pub fn new(width: usize, height: usize, pixels: Vec<u8>) -> Self {
        assert_eq!(pixels.len(), width * height * 3, "Image::new: bytes for {width}x{height}");
        Self { width, height, pixels }
    }

    /// Reads a PNG, JPEG, BMP, TIFF or WebP file, turned upright by its EXIF orientation.
    ///
    /// The format is told from the contents, not the name. Grey becomes RGB, alpha is dropped and
    /// 16 bits are rounded to 8. A file that ends too early is an error, also where decoders would
    /// fill the rest with grey.
    ///
    /// # Errors
    ///
    /// [`Error::File`] when the file cannot be read, [`Error::Invalid`] when it is no such picture
    /// or takes more than 1 GiB; both name it.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = read_bounded(path)?;
        guarded(path, || Self::decode(path, &bytes))
    }

    fn decode(path: &Path, bytes: &[u8]) -> Result<Self> {
        let invalid = |error: ::image::ImageError| Error::invalid_file(path, words(&error));
        if bytes.starts_with(&[0xff, 0xd8]) && !jpeg_is_complete(bytes) {
            return Err(Error::invalid_file(path, "the JPEG ends before its end marker"));
        }

        let mut limits = ::image::Limits::default();
        limits.max_image_width = Some(MAX_SIDE);
        limits.max_image_height = Some(MAX_SIDE);
        limits.max_alloc = Some(MAX_DECODED_BYTES);
        let mut reader = ImageReader::new(Cursor::new(bytes))
            .with_guessed_format()
            .map_err(Error::file("read", path))?;
        if reader.format().is_none() {
            return Err(Error::invalid_file(path, "not a PNG, JPEG, BMP, TIFF or WebP picture"));
        }
        reader.limits(limits);
        let mut decoder = reader.into_decoder().map_err(invalid)?;
        let ((width, height), size_bytes) = (decoder.dimensions(), decoder.total_bytes());
        if size_bytes > MAX_DECODED_BYTES || width == 0 || height == 0 {
            let reason = format!("a picture of {width}x{height} pixels is not supported");
            return Err(Error::invalid_file(path, reason));
        }
        let orientation = decoder.orientation().map_err(invalid)?;
        let mut picture = DynamicImage::from_decoder(decoder).map_err(invalid)?;
        picture.apply_orientation(orientation);
        let rgb = picture.into_rgb8();
        Ok(Self::new(rgb.width() as usize, rgb.height() as usize, rgb.into_raw()))
    }

    /// Writes an 8-bit RGB PNG.
    ///
    /// # Errors
    ///
    /// [`Error::File`] when the file cannot be written.
    pub fn write_png(&self, path: &Path) -> Result<()> {
        write_png(path, self.width, self.height, &self.pixels, None)
    }

    /// The colour at column `x` of row `y`.
    ///
    /// # Panics
    ///
    /// If that is outside.
    pub fn pixel(&self, x: usize, y: usize) -> [u8; 3] {
        assert!(x < self.width, "pixel: x {x} in a row of {}", self.width);
        let i = (y * self.width + x) * 3;
        [self.pixels[i], self.pixels[i + 1], self.pixels[i + 2]]
    }
}

/// A class id for each pixel, row by row from the top left.
///
/// As [`LabelMap::read`] gives it the ids are those of the file; in a
/// [`Sample`](super::Sample) they are classes or [`IGNORE`](super::IGNORE).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelMap {
    /// Pixels per row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width]`
    pub ids: Vec<u8>,
}

impl LabelMap {
    /// A label map of `ids`, `[height, width]`.
    ///
    /// # Panics
    ///
    /// If there are not `height · width` of them.
    pub fn new(width: usize, height: usize, ids: Vec<u8>) -> Self {
        assert_eq!(ids.len(), width * height, "LabelMap::new: ids for {width}x{height}");
        Self { width, height, ids }
    }

    /// Reads the ids of a PNG as they stand in it: the palette index of an indexed PNG, the grey
    /// value of a grey one of 1, 2, 4, 8 or 16 bits, neither of them scaled. Of a file that ends in
    /// `.mat`, those of its matrix `S`.
    ///
    /// # Errors
    ///
    /// [`Error::File`] when the file cannot be read; [`Error::Invalid`] when it is no such PNG, has
    /// colours or alpha, or an id above 255.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = read_bounded(path)?;
        let is_mat = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("mat"));
        guarded(path, || match is_mat {
            true => super::mat::decode(path, &bytes),
            false => Self::decode(path, &bytes),
        })
    }

    fn decode(path: &Path, bytes: &[u8]) -> Result<Self> {
        use png::ColorType::{Grayscale, GrayscaleAlpha, Indexed, Rgb, Rgba};

        let invalid = |error: png::DecodingError| Error::invalid_file(path, words(&error));
        let mut decoder = png::Decoder::new(Cursor::new(bytes));
        decoder.set_limits(png::Limits { bytes: MAX_DECODED_BYTES as usize });
        decoder.set_transformations(png::Transformations::IDENTITY);
        let mut reader = decoder.read_info().map_err(invalid)?;

        let (width, height) = reader.info().size();
        let kind = match reader.info().color_type {
            Indexed | Grayscale => None,
            Rgb => Some("colours"),
            Rgba => Some("colours and alpha"),
            GrayscaleAlpha => Some("alpha"),
        };
        if let Some(kind) = kind {
            let reason = format!(
                "the label PNG has {kind}, but colour-coded labels are not class ids: convert it \
                 to an indexed or grey PNG whose values are the ids"
            );
            return Err(Error::invalid_file(path, reason));
        }
        let size_bytes = reader.output_buffer_size().filter(|n| *n as u64 <= MAX_DECODED_BYTES);
        let (Some(size_bytes), true) = (size_bytes, width.max(height) <= MAX_SIDE) else {
            let reason = format!("a label map of {width}x{height} pixels is not supported");
            return Err(Error::invalid_file(path, reason));
        };

        let mut packed = vec![0; size_bytes];
        let frame = reader.next_frame(&mut packed).map_err(invalid)?;
        reader.finish().map_err(invalid)?;
        if (frame.width, frame.height) != (width, height) {
            return Err(Error::invalid_file(path, "the first frame does not fill the picture"));
        }

        let (width, height) = (width as usize, height as usize);
        let rows = packed.chunks_exact(frame.line_size).take(height);
        let mut ids = Vec::with_capacity(width * height);
        match frame.bit_depth {
            png::BitDepth::Eight => rows.for_each(|row| ids.extend_from_slice(row)),
            png::BitDepth::Sixteen => {
                for (y, row) in rows.enumerate() {
                    for (x, value) in row.chunks_exact(2).enumerate() {
                        let value = u16::from_be_bytes([value[0], value[1]]);
                        ids.push(u8::try_from(value).map_err(|_| {
                            let reason = format!(
                                "id {value} at pixel ({x}, {y}) is above 255: this may be a map \
                                 of instances, not of classes"
                            );
                            Error::invalid_file(path, reason)
                        })?);
                    }
                }
            }
            depth => {
                let bits = depth as usize;
                for row in rows {
                    ids.extend((0..width).map(|x| {
                        let shift = 8 - bits - x * bits % 8;
                        row[x * bits / 8] >> shift & ((1 << bits) - 1)
                    }));
                }
            }
        }
        Ok(Self::new(width, height, ids))
    }

    /// Writes an indexed PNG, which viewers show in the colours of `palette` and
    /// [`LabelMap::read`] gives back unchanged. Ids beyond the palette are black.
    ///
    /// # Errors
    ///
    /// [`Error::File`] when the file cannot be written; [`Error::Invalid`] when the palette is
    /// empty or has more than 256 colours.
    pub fn write_png(&self, path: &Path, palette: &[[u8; 3]]) -> Result<()> {
        if palette.is_empty() || palette.len() > 256 {
            let reason = format!("a palette has 1 to 256 colours, not {}", palette.len());
            return Err(Error::invalid_file(path, reason));
        }
        // An index without an entry would make the file invalid.
        let largest = self.ids.iter().copied().max().unwrap_or(0);
        let mut palette = palette.to_vec();
        palette.resize(palette.len().max(usize::from(largest) + 1), [0; 3]);
        write_png(path, self.width, self.height, &self.ids, Some(palette.as_flattened()))
    }

    /// The id at column `x` of row `y`.
    ///
    /// # Panics
    ///
    /// If that is outside.
    pub fn id(&self, x: usize, y: usize) -> u8 {
        assert!(x < self.width, "id: x {x} in a row of {}", self.width);
        self.ids[y * self.width + x]
    }
}

/// RGB, or with a palette indexed.
fn write_png(
    path: &Path,
    width: usize,
    height: usize,
    data: &[u8],
    palette: Option<&[u8]>,
) -> Result<()> {
    let mut bytes = Vec::new();
    let encode = |bytes: &mut Vec<u8>| {
        let mut encoder = png::Encoder::new(bytes, width as u32, height as u32);
        encoder.set_depth(png::BitDepth::Eight);
        match palette {
            Some(palette) => {
                encoder.set_color(png::ColorType::Indexed);
                encoder.set_palette(palette);
            }
            None => encoder.set_color(png::ColorType::Rgb),
        }
        let mut writer = encoder.write_header()?;
        writer.write_image_data(data)?;
        writer.finish()
    };
    encode(&mut bytes).map_err(|error| Error::file("write", path)(error.into()))?;
    fs::write(path, bytes).map_err(Error::file("write", path))
}

/// The bytes of a regular file of bearable length.
pub(super) fn read_bounded(path: &Path) -> Result<Vec<u8>> {
    let metadata = fs::metadata(path).map_err(Error::file("read", path))?;
    // A pipe or a device would block or never end.
    if !metadata.is_file() {
        return Err(Error::invalid_file(path, "not a regular file"));
    }
    if metadata.len() > MAX_FILE_BYTES {
        let reason = format!("the file has {} bytes, which is too long", metadata.len());
        return Err(Error::invalid_file(path, reason));
    }
    let file = fs::File::open(path).map_err(Error::file("read", path))?;
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(Error::file("read", path))?;
    Ok(bytes)
}

/// Turns a panic of a decoder into an error about the file that caused it.
pub(super) fn guarded<T>(path: &Path, work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
        let words = (payload.downcast_ref::<&str>().copied())
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        Err(Error::invalid_file(path, format!("reading it panicked: {words}")))
    })
}

/// A library's message without its full stop, for use inside our own.
fn words(error: &dyn std::error::Error) -> String {
    error.to_string().trim_end_matches(['.', '\n']).to_owned()
}

/// Whether a JPEG's markers lead to its end-of-image marker. Decoders, this one included, show
/// what is there and fill the rest with grey: right for a browser, silently wrong for training.
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    let mut at = 2;
    loop {
        // Entropy-coded data: up to a marker, but FF 00 is a literal FF and D0..D7 are restarts.
        let marker = loop {
            match bytes.get(at..at + 2) {
                None => return false,
                Some(&[0xff, 0x00 | 0xd0..=0xd7]) => at += 2,
                Some(&[0xff, 0xff]) => at += 1,
                Some(&[0xff, marker]) => break marker,
                Some(_) => at += 1,
            }
        };
        match (marker, bytes.get(at + 2..at + 4)) {
            (0xd9, _) => return true,
            (0xd8 | 0x01, _) => at += 2,
            (_, Some(&[high, low])) => at += 2 + usize::from(u16::from_be_bytes([high, low])),
            (_, _) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    /// A grey or indexed PNG of 5x2 pixels with the rows `packed` at this depth.
    fn label_png(depth: png::BitDepth, color: png::ColorType, packed: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 5, 2);
        encoder.set_depth(depth);
        encoder.set_color(color);
        if color == png::ColorType::Indexed {
            encoder.set_palette(vec![200; 3 * (1 << (depth as usize).min(8))]);
        }
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(packed).unwrap();
        writer.finish().unwrap();
        bytes
    }

    #[test]
    fn ids_are_kept_at_every_depth_of_grey_and_indexed_png() {
        use png::BitDepth::{Eight, Four, One, Sixteen, Two};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("label.png");
        let cases: &[(png::BitDepth, &[u8], [u8; 10])] = &[
            (One, &[0b1011_0000, 0b0000_1000], [1, 0, 1, 1, 0, 0, 0, 0, 0, 1]),
            (Two, &[0b11_10_01_00, 0b10_000000, 0, 0b11_000000], [3, 2, 1, 0, 2, 0, 0, 0, 0, 3]),
            (Four, &[0xfe, 0x10, 0x70, 0, 0, 0x90], [15, 14, 1, 0, 7, 0, 0, 0, 0, 9]),
            (Eight, &[0, 1, 11, 254, 255, 9, 8, 7, 6, 5], [0, 1, 11, 254, 255, 9, 8, 7, 6, 5]),
        ];
        for (depth, packed, ids) in cases {
            for color in [png::ColorType::Grayscale, png::ColorType::Indexed] {
                fs::write(&path, label_png(*depth, color, packed)).unwrap();
                let labels = LabelMap::read(&path).unwrap();
                assert_eq!(labels, LabelMap::new(5, 2, ids.to_vec()), "{depth:?} {color:?}");
            }
        }

        let mut wide: Vec<u8> = (0..10).flat_map(|id| [0, id * 25]).collect();
        fs::write(&path, label_png(Sixteen, png::ColorType::Grayscale, &wide)).unwrap();
        assert_eq!(LabelMap::read(&path).unwrap().ids[9], 225);
        wide[14] = 1;
        fs::write(&path, label_png(Sixteen, png::ColorType::Grayscale, &wide)).unwrap();
        let message = LabelMap::read(&path).unwrap_err().to_string();
        assert!(message.contains("id 431 at pixel (2, 1) is above 255"), "{message}");
    }

    #[test]
    fn coloured_label_pngs_are_refused_with_a_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("label.png");
        Image::new(2, 1, vec![7; 6]).write_png(&path).unwrap();
        let message = LabelMap::read(&path).unwrap_err().to_string();
        assert!(message.contains("colour-coded labels are not class ids"), "{message}");
        assert!(message.contains("label.png"), "{message}");
    }

    #[test]
    fn written_files_read_back_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        let labels = LabelMap::new(3, 2, vec![0, 1, 2, 255, 2, 1]);
        labels.write_png(&path, &[[1, 2, 3], [4, 5, 6], [7, 8, 9]]).unwrap();
        assert_eq!(LabelMap::read(&path).unwrap(), labels);
        let file = fs::read(&path).unwrap();
        let info = png::Decoder::new(Cursor::new(&file)).read_info().unwrap();
        assert_eq!(info.info().palette.as_ref().unwrap().len(), 3 * 256, "an entry for each id");
        // The same file as a picture has the palette's colours.
        let shown = Image::read(&path).unwrap();
        assert_eq!((shown.pixel(1, 0), shown.pixel(0, 1)), ([4, 5, 6], [0, 0, 0]));

        let image = Image::new(2, 2, (0..12).collect());
        image.write_png(&path).unwrap();
        assert_eq!(Image::read(&path).unwrap(), image);
        assert!(labels.write_png(&path, &[]).is_err());
    }

    #[test]
    fn grey_alpha_and_16_bit_pictures_become_rgb() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        let grey = ::image::GrayImage::from_raw(2, 1, vec![10, 200]).unwrap();
        let rgba = ::image::RgbaImage::from_raw(1, 1, vec![1, 2, 3, 0]).unwrap();
        let wide =
            ::image::ImageBuffer::<::image::Rgb<u16>, _>::from_raw(1, 1, vec![0u16, 257, 65535]);
        let cases = [
            (DynamicImage::ImageLuma8(grey), vec![10, 10, 10, 200, 200, 200]),
            (DynamicImage::ImageRgba8(rgba), vec![1, 2, 3]),
            (DynamicImage::ImageRgb16(wide.unwrap()), vec![0, 1, 255]),
        ];
        for (picture, pixels) in cases {
            picture.save(&path).unwrap();
            assert_eq!(Image::read(&path).unwrap().pixels, pixels);
        }
    }

    #[test]
    fn exif_orientation_turns_the_picture_upright() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jpg");
        // Left half black, right half white, 32x16; orientation 6 turns it clockwise.
        let pixels = (0..16 * 32).flat_map(|i| [if i % 32 < 16 { 0 } else { 255 }; 3]).collect();
        let jpeg = testing::jpeg(&Image::new(32, 16, pixels));
        let mut turned = jpeg[..2].to_vec();
        turned.extend_from_slice(b"\xff\xe1\x00\x22Exif\0\0II*\0\x08\0\0\0\x01\0");
        turned.extend_from_slice(b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0");
        turned.extend_from_slice(&jpeg[2..]);
        fs::write(&path, turned).unwrap();

        let image = Image::read(&path).unwrap();
        assert_eq!((image.width, image.height), (16, 32));
        assert!(image.pixel(8, 4)[0] < 30 && image.pixel(8, 28)[0] > 225);
    }

    #[test]
    fn files_cut_short_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cut");
        let noise = testing::image(40, 30, 7);
        let jpeg = testing::jpeg(&noise);
        noise.write_png(&path).unwrap();
        let picture = fs::read(&path).unwrap();
        testing::labels(40, 30, 5, 8).write_png(&path, &[[0; 3]; 5]).unwrap();
        let label = fs::read(&path).unwrap();

        let cuts = |n: usize| (0..n).step_by(n / 60 + 1).chain([n - 1]);
        for n in cuts(jpeg.len()) {
            fs::write(&path, &jpeg[..n]).unwrap();
            let message = Image::read(&path).unwrap_err().to_string();
            assert!(message.contains("cut"), "{n} bytes: {message}");
        }
        // The last 12 bytes of a PNG are an empty end chunk; pixels are complete without.
        for n in cuts(picture.len() - 12) {
            fs::write(&path, &picture[..n]).unwrap();
            assert!(Image::read(&path).is_err(), "{n} of {} bytes", picture.len());
        }
        for n in cuts(label.len()) {
            fs::write(&path, &label[..n]).unwrap();
            assert!(LabelMap::read(&path).is_err(), "{n} of {} bytes", label.len());
        }
    }

    #[test]
    fn damaged_bytes_never_panic() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("damaged");
        let noise = testing::image(24, 20, 3);
        noise.write_png(&path).unwrap();
        let files = [testing::jpeg(&noise), fs::read(&path).unwrap()];
        let mut rng = crate::random::Rng::new(5, 0);
        for file in files {
            for _ in 0..60 {
                let mut file = file.clone();
                for _ in 0..1 + rng.below(4) {
                    let at = rng.below(file.len());
                    file[at] = rng.bits() as u8;
                }
                fs::write(&path, &file).unwrap();
                // Called for not panicking; `guarded` would hide it, so decode directly.
                let _ = Image::decode(&path, &file);
                let _ = LabelMap::decode(&path, &file);
            }
        }
    }

    #[test]
    fn a_small_file_that_claims_a_huge_picture_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bomb.png");
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 60_000, 60_000);
        encoder.set_color(png::ColorType::Grayscale);
        let mut writer = encoder.write_header().unwrap();
        writer.write_chunk(png::chunk::IDAT, &[0x78, 1]).unwrap();
        drop(writer);
        fs::write(&path, bytes).unwrap();
        assert!(Image::read(&path).is_err());
        let message = LabelMap::read(&path).unwrap_err().to_string();
        assert!(message.contains("60000x60000"), "{message}");
    }

    #[test]
    fn real_samples_read_as_pillow_reads_them() {
        let name = "data::raster::tests::real_samples_read_as_pillow_reads_them";
        let Some(root) = testing::shared(name, "data/samples") else { return };
        let manifest = fs::read(root.join("manifest.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        let (mut pictures, mut label_maps) = (0, 0);
        for (path, known) in manifest.as_object().unwrap() {
            let size = |n: usize| known["size"][n].as_u64().unwrap_or(0) as usize;
            if let Some(means) = known["mean_rgb"].as_array() {
                let image = Image::read(&root.join(path)).unwrap();
                assert_eq!((image.width, image.height), (size(0), size(1)), "{path}");
                for (c, mean) in means.iter().enumerate() {
                    let values = image.pixels.iter().skip(c).step_by(3);
                    let sum: u64 = values.map(|&v| u64::from(v)).sum();
                    let found = sum as f64 / (image.width * image.height) as f64;
                    // JPEG decoders round differently.
                    assert!((found - mean.as_f64().unwrap()).abs() < 0.5, "{path}: {found}");
                }
                pictures += 1;
            } else if matches!(known["mode"].as_str(), Some("L" | "P")) {
                let labels = LabelMap::read(&root.join(path)).unwrap();
                assert_eq!((labels.width, labels.height), (size(0), size(1)), "{path}");
                for id in 0..=255u8 {
                    let found = labels.ids.iter().filter(|&&other| other == id).count() as u64;
                    let known = known["hist"][id.to_string()].as_u64().unwrap_or(0);
                    assert_eq!(found, known, "{path}: id {id}");
                }
                label_maps += 1;
            }
        }
        assert!(pictures > 20 && label_maps > 20, "{pictures} pictures, {label_maps} label maps");
    }

    #[test]
    fn folders_and_missing_files_are_errors_that_name_them() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Image::read(dir.path()).unwrap_err().to_string().contains("not a regular file"));
        let message = LabelMap::read(&dir.path().join("none.png")).unwrap_err().to_string();
        assert!(message.contains("cannot read") && message.contains("none.png"), "{message}");
    }

    #[test]
    fn a_panic_becomes_an_error_about_the_file() {
        let error = guarded(Path::new("a.jpg"), || -> Result<()> { panic!("index 7") });
        assert_eq!(error.unwrap_err().to_string(), "a.jpg: reading it panicked: index 7");
    }
}
