//! Label maps in MATLAB files: COCO-Stuff-10k comes as `.mat` files whose matrix `S` has the ids.
//!
//! Level 5 MAT-files: elements of a tag (type and size) and data padded to 8 bytes, each matrix
//! usually in a zlib stream of its own. Only numeric matrices of two axes are read.

use std::io::Read;
use std::path::Path;

use flate2::read::ZlibDecoder;

use super::LabelMap;
use crate::{Error, Result};

/// The matrix of the labels.
const NAME: &[u8] = b"S";
/// What a compressed element may inflate to; a small file can claim a huge matrix.
const MAX_BYTES: u64 = 1 << 28;

const INT32: u32 = 5;
const UINT32: u32 = 6;
const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;

/// The ids that the matrix `S` of a MAT-file has.
pub(super) fn decode(path: &Path, bytes: &[u8]) -> Result<LabelMap> {
    labels(bytes).map_err(|reason| Error::invalid_file(path, reason))
}

fn labels(bytes: &[u8]) -> Result<LabelMap, String> {
    if bytes.starts_with(b"MATLAB 7.3") {
        return Err(
            "a MAT-file of version 7.3 (HDF5) is not supported; save it as version 7".into()
        );
    }
    // 116 bytes of text, an offset that nobody uses, the version, the byte order.
    let (head, mut rest) = bytes.split_at_checked(128).ok_or("not a MAT-file: too short")?;
    match &head[124..] {
        [0, 1, b'I', b'M'] => {}
        [1, 0, b'M', b'I'] => return Err("a big-endian MAT-file is not supported".into()),
        _ => return Err("not a MAT-file of version 5 to 7".into()),
    }
    while !rest.is_empty() {
        let (kind, data) = element(&mut rest)?;
        let inflated;
        let (kind, data) = if kind == COMPRESSED {
            let mut bytes = Vec::new();
            let inflate = ZlibDecoder::new(data).take(MAX_BYTES + 1).read_to_end(&mut bytes);
            inflate.map_err(|error| format!("a compressed element is damaged: {error}"))?;
            if bytes.len() as u64 > MAX_BYTES {
                return Err(format!("an element inflates to more than {MAX_BYTES} bytes"));
            }
            inflated = bytes;
            element(&mut inflated.as_slice())?
        } else {
            (kind, data)
        };
        if kind == MATRIX
            && let Some(labels) = matrix(data)?
        {
            return Ok(labels);
        }
    }
    Err("the MAT-file has no matrix `S`".into())
}

/// Takes an element off the front of `bytes`: its type and its data.
fn element<'a>(bytes: &mut &'a [u8]) -> Result<(u32, &'a [u8]), String> {
    let cut = || "the MAT-file ends within an element".to_owned();
    let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes"));
    let (tag, rest) = bytes.split_at_checked(8).ok_or_else(cut)?;
    let (first, size) = (word(&tag[..4]), word(&tag[4..]));
    // Up to four bytes of data stand in the tag, their number above the type.
    if first >> 16 != 0 {
        let size = (first >> 16) as usize;
        *bytes = rest;
        return Ok((first & 0xffff, tag.get(4..4 + size).ok_or_else(cut)?));
    }
    let (data, rest) = rest.split_at_checked(size as usize).ok_or_else(cut)?;
    // Compressed elements are not padded.
    let padding = if first == COMPRESSED { 0 } else { size.wrapping_neg() as usize % 8 };
    *bytes = rest.get(padding..).unwrap_or_default();
    Ok((first, data))
}

/// The labels that a matrix element has; none if it is not called `S`.
fn matrix(mut data: &[u8]) -> Result<Option<LabelMap>, String> {
    let (_, flags) = element(&mut data)?;
    let (kind, extents) = element(&mut data)?;
    let (_, name) = element(&mut data)?;
    if name != NAME {
        return Ok(None);
    }
    // Classes 6 to 15 are numbers; the complex bit says that an imaginary part follows.
    if !matches!(flags, [6..=15, bits, ..] if bits & 8 == 0) {
        return Err("the matrix `S` is not of real numbers".into());
    }
    let extents: Vec<u32> = extents.as_chunks().0.iter().map(|v| u32::from_le_bytes(*v)).collect();
    let (INT32 | UINT32, &[height, width]) = (kind, extents.as_slice()) else {
        return Err("the matrix `S` does not have two axes".into());
    };
    let (height, width) = (height as usize, width as usize);
    let (kind, values) = element(&mut data)?;
    let ids = numbers(kind, values).ok_or("the matrix `S` is of an unknown type")?;
    if height.checked_mul(width) != Some(ids.len()) || ids.is_empty() {
        return Err(format!("the matrix `S` is {height}x{width} but has {} values", ids.len()));
    }
    let mut labels = LabelMap::new(width, height, vec![0; ids.len()]);
    // MATLAB goes down the columns.
    for (i, value) in ids.into_iter().enumerate() {
        let (x, y) = (i / height, i % height);
        if value.fract() != 0.0 || !(0.0..256.0).contains(&value) {
            return Err(format!("id {value} at pixel ({x}, {y}) is none of 0..=255"));
        }
        labels.ids[y * width + x] = value as u8;
    }
    Ok(Some(labels))
}

/// The numbers in the data of an element of this type.
fn numbers(kind: u32, data: &[u8]) -> Option<Vec<f64>> {
    macro_rules! of {
        ($number:ty) => {
            data.as_chunks().0.iter().map(|v| <$number>::from_le_bytes(*v) as f64).collect()
        };
    }
    Some(match kind {
        1 => of!(i8),
        2 => of!(u8),
        3 => of!(i16),
        4 => of!(u16),
        INT32 => of!(i32),
        UINT32 => of!(u32),
        7 => of!(f32),
        9 => of!(f64),
        _ => return None,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write;

    use super::*;

    fn tagged(kind: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = [kind.to_le_bytes(), (data.len() as u32).to_le_bytes()].concat();
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    fn named(name: &[u8], kind: u32, values: &[u8], height: u32, width: u32) -> Vec<u8> {
        let small = [&((name.len() as u32) << 16 | 1).to_le_bytes(), name].concat();
        let mut body = tagged(UINT32, &[11, 0, 0, 0, 0, 0, 0, 0]);
        body.extend(tagged(INT32, &[height.to_le_bytes(), width.to_le_bytes()].concat()));
        body.extend(small.iter().copied().chain([0; 8]).take(8));
        body.extend(tagged(kind, values));
        tagged(MATRIX, &body)
    }

    fn file(elements: &[Vec<u8>], compress: bool) -> Vec<u8> {
        let mut bytes = vec![b' '; 124];
        bytes[..10].copy_from_slice(b"MATLAB 5.0");
        bytes.extend([0, 1, b'I', b'M']);
        for element in elements {
            if compress {
                let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), Default::default());
                encoder.write_all(element).unwrap();
                let packed = encoder.finish().unwrap();
                bytes.extend(COMPRESSED.to_le_bytes());
                bytes.extend((packed.len() as u32).to_le_bytes());
                bytes.extend(packed);
            } else {
                bytes.extend(element);
            }
        }
        bytes
    }

    /// A MAT-file as COCO-Stuff-10k has them: other variables, and `S` of 16 bits.
    pub(in super::super) fn labels_file(labels: &LabelMap) -> Vec<u8> {
        let (height, width) = (labels.height, labels.width);
        let columns = (0..width).flat_map(|x| (0..height).map(move |y| labels.id(x, y)));
        let values: Vec<u8> = columns.flat_map(|id| u16::from(id).to_le_bytes()).collect();
        let names = named(b"nm", 2, &[1, 2, 3], 1, 3);
        file(&[names, named(b"S", 4, &values, height as u32, width as u32)], true)
    }

    #[test]
    fn ids_are_read_column_by_column() {
        let wanted = LabelMap::new(3, 2, vec![0, 2, 4, 1, 3, 182]);
        assert_eq!(labels(&labels_file(&wanted)).unwrap(), wanted);
        let bytes = file(&[named(b"S", 2, &[0, 1, 2, 3, 4, 182], 2, 3)], false);
        assert_eq!(labels(&bytes).unwrap(), wanted);
        let doubles: Vec<u8> =
            [0.0f64, 1.0, 2.0, 3.0, 4.0, 182.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(labels(&file(&[named(b"S", 9, &doubles, 2, 3)], true)).unwrap(), wanted);
    }

    #[test]
    fn what_is_no_label_map_is_refused_with_a_reason() {
        let message = |bytes: &[u8]| labels(bytes).unwrap_err();
        assert!(message(b"").contains("too short"));
        assert!(message(&[b'x'; 200]).contains("not a MAT-file"));
        assert!(message(b"MATLAB 7.3 MAT-file").contains("HDF5"));
        assert!(message(&file(&[named(b"T", 2, &[1], 1, 1)], true)).contains("no matrix `S`"));
        assert!(message(&file(&[named(b"S", 2, &[1], 2, 3)], true)).contains("2x3"));
        let large = file(&[named(b"S", 4, &[1, 0, 44, 1], 2, 1)], true);
        assert!(message(&large).contains("id 300 at pixel (0, 1)"));
        let whole = file(&[named(b"S", 2, &[0, 1, 2, 3, 4, 182], 2, 3)], true);
        for n in 0..whole.len() {
            assert!(labels(&whole[..n]).is_err(), "{n} bytes");
        }
    }

    #[test]
    fn damaged_files_never_panic() {
        let mut rng = crate::random::Rng::new(3, 0);
        for compress in [false, true] {
            let whole = file(&[named(b"S", 2, &[0, 1, 2, 3, 4, 182], 2, 3)], compress);
            for _ in 0..2000 {
                let mut bytes = whole.clone();
                for _ in 0..1 + rng.below(3) {
                    let at = 128 + rng.below(bytes.len() - 128);
                    bytes[at] = rng.bits() as u8;
                }
                let _ = labels(&bytes);
            }
        }
    }
}
