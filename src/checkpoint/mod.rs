//! [`Checkpoint`]: named arrays and a few words about them, in a safetensors file or a PyTorch file.
//!
//! What a file is shows in its first bytes; its name does not matter. Of PyTorch's files only the
//! data are read: a file that wants anything to run is refused.
//!
//! Parameters have the names that the published checkpoints give them (`backbone.…`,
//! `decode_head.…`). A training run's checkpoint also has the optimiser's moments, under
//! [`FIRST_MOMENT`] and [`SECOND_MOMENT`] and the parameter's name, and its own state as metadata.

mod names;
mod pickle;
mod torch;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use half::{bf16, f16};
use safetensors::tensor::{Metadata, TensorInfo};

pub use names::Official;
pub(crate) use names::{encoder_alone, is_needless};
pub use safetensors::Dtype;

use crate::{Error, Result, Shape};

/// What the name of everything that belongs to the optimiser starts with.
pub const OPTIMIZER: &str = "optimizer.";
/// What the names of AdamW's first moments start with.
pub const FIRST_MOMENT: &str = "optimizer.m.";
/// What the names of AdamW's second moments start with.
pub const SECOND_MOMENT: &str = "optimizer.v.";

/// The longest header that is read or written. The largest published model needs half a megabyte;
/// the bound keeps a hostile file from making the parser ask for memory without end.
const MAX_HEADER_BYTES: u64 = 16 << 20;

/// An array of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    dtype: Dtype,
    shape: Shape,
    bytes: Vec<u8>,
}

impl Entry {
    /// An array of little-endian `bytes`, the last axis fastest.
    ///
    /// # Panics
    ///
    /// If the number of bytes is not what `dtype` and `shape` say.
    #[track_caller]
    pub fn new(dtype: Dtype, shape: impl Into<Shape>, bytes: Vec<u8>) -> Self {
        let shape = shape.into();
        assert_eq!(
            bytes.len() * 8,
            shape.len() * dtype.bitsize(),
            "entry: bits for {dtype} {shape:?}"
        );
        Self { dtype, shape, bytes }
    }

    /// An array of `f32`.
    ///
    /// # Panics
    ///
    /// If the number of values is not what `shape` says.
    #[track_caller]
    pub fn from_f32(shape: impl Into<Shape>, values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::new(Dtype::F32, shape, bytes)
    }

    /// The type of the elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The extents; in a file that someone else wrote the rank may be 0.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The elements, little-endian.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The elements as `f32`; from F16 and BF16 exactly, from F64 rounded.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when the elements are of another type; it does not know the entry's name.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        fn each<const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> f32) -> Vec<f32> {
            let (values, rest) = bytes.as_chunks();
            debug_assert!(rest.is_empty());
            values.iter().map(|&v| f(v)).collect()
        }
        Ok(match self.dtype {
            Dtype::F32 => each(&self.bytes, f32::from_le_bytes),
            Dtype::F16 => each(&self.bytes, |v| f16::from_le_bytes(v).to_f32()),
            Dtype::BF16 => each(&self.bytes, |v| bf16::from_le_bytes(v).to_f32()),
            Dtype::F64 => each(&self.bytes, |v| f64::from_le_bytes(v) as f32),
            other => {
                return Err(Error::invalid(
                    format!("array of {other}"),
                    "only F32, F16, BF16 and F64 can be parameters",
                ));
            }
        })
    }
}

impl Entry {
    /// The elements as `dtype`, rounded to the nearest, of two that are as near to the even one.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] unless both types are among F64, F32, F16 and BF16.
    pub fn to_dtype(&self, dtype: Dtype) -> Result<Self> {
        fn each<const N: usize>(values: &[f64], f: impl Fn(f64) -> [u8; N]) -> Vec<u8> {
            values.iter().flat_map(|&v| f(v)).collect()
        }
        if dtype == self.dtype {
            return Ok(self.clone());
        }
        /// Of two neighbours the one whose last bit is set, so that rounding once more, to a type with
        /// two bits less or fewer, is as if there had been one rounding.
        fn to_odd(v: f64) -> f32 {
            let near = v as f32;
            if v.is_nan() || f64::from(near) == v {
                return near;
            }
            let beyond = f64::from(near).abs() > v.abs();
            f32::from_bits((near.to_bits() - u32::from(beyond)) | 1)
        }
        let values: Vec<f64> = match self.dtype {
            Dtype::F64 => self.bytes.as_chunks().0.iter().map(|&v| f64::from_le_bytes(v)).collect(),
            _ => self.to_f32()?.into_iter().map(f64::from).collect(),
        };
        let bytes = match dtype {
            Dtype::F64 => each(&values, f64::to_le_bytes),
            Dtype::F32 => each(&values, |v| (v as f32).to_le_bytes()),
            Dtype::F16 => each(&values, |v| f16::from_f32(to_odd(v)).to_le_bytes()),
            Dtype::BF16 => each(&values, |v| bf16::from_f32(to_odd(v)).to_le_bytes()),
            other => {
                let reason = "only F64, F32, F16 and BF16 are converted to";
                return Err(Error::invalid(format!("array of {other}"), reason));
            }
        };
        Ok(Self { dtype, shape: self.shape.clone(), bytes })
    }
}

/// Named arrays and metadata.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Checkpoint {
    /// The arrays by name.
    pub entries: BTreeMap<String, Entry>,
    /// Words about them, such as `iteration` and `recipe`.
    pub metadata: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Adds an array; one that had the name is replaced.
    pub fn insert(&mut self, name: impl Into<String>, entry: Entry) {
        self.entries.insert(name.into(), entry);
    }

    /// The array called `name`.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// The arrays whose names start with `prefix`, with the rest of their names, in order.
    pub fn with_prefix<'a>(
        &'a self,
        prefix: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a Entry)> {
        let from = self
            .entries
            .range::<str, _>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded));
        from.map_while(move |(name, entry)| Some((name.strip_prefix(prefix)?, entry)))
    }

    /// The arrays that are not the optimiser's, in order of their names.
    pub fn parameters(&self) -> impl Iterator<Item = (&str, &Entry)> {
        let all = self.entries.iter().map(|(name, entry)| (name.as_str(), entry));
        all.filter(|(name, _)| !name.starts_with(OPTIMIZER))
    }

    /// Reads the file `path`: safetensors, or one of PyTorch's.
    ///
    /// Of a PyTorch file the state dict is read: `state_dict` (mmseg) or `model` (detectron2, Swin)
    /// where there is such a dictionary, without the prefix `module.`; texts and numbers under `meta`
    /// become metadata.
    ///
    /// # Errors
    ///
    /// [`Error::File`] when it cannot be read, [`Error::Invalid`] when it is something else, or cut
    /// short.
    pub fn read(path: &Path) -> Result<Self> {
        Self::read_where(path, |_| true)
    }

    /// Reads those arrays of `path` whose names `keep` accepts, and all metadata. The others are
    /// skipped: inference need not hold the optimiser's moments.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::read`].
    pub fn read_where(path: &Path, keep: impl Fn(&str) -> bool) -> Result<Self> {
        // Before it is opened: opening a named pipe would wait for a writer.
        let kind = fs::metadata(path).map_err(Error::file("read", path))?;
        if kind.is_dir() {
            return Err(Error::invalid_file(path, "is a folder, not a file of weights"));
        }
        if !kind.is_file() {
            return Err(Error::invalid_file(path, "is not a regular file"));
        }
        let mut file = File::open(path).map_err(Error::file("read", path))?;
        Self::read_from(&mut file, path, keep)
    }

    /// [`read_where`](Self::read_where) of an open file, or of bytes in memory
    /// ([`std::io::Cursor`]), that is called `path` in errors.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::read`].
    pub fn read_from(
        file: &mut (impl Read + Seek),
        path: &Path,
        keep: impl Fn(&str) -> bool,
    ) -> Result<Self> {
        let mut head = Vec::new();
        let size = file
            .seek(SeekFrom::End(0))
            .and_then(|size| file.rewind().map(|()| size))
            .and_then(|size| file.take(512).read_to_end(&mut head).map(|_| size))
            .and_then(|size| file.rewind().map(|()| size))
            .map_err(Error::file("read", path))?;
        if let Some(format) = torch::Format::detect(&head) {
            return torch::read(file, size, format, path, keep);
        }
        if let Some(other) = known_otherwise(&head) {
            let reason = format!("is {other}, not a safetensors or PyTorch file");
            return Err(Error::invalid_file(path, reason));
        }
        let (header, header_end) = read_header(file, size, path)?;
        let found = size - header_end;
        if header.data_len() as u64 != found {
            return Err(Error::invalid_file(
                path,
                format!(
                    "its header announces {} bytes of arrays but {found} follow; it was cut short \
                     or damaged",
                    header.data_len()
                ),
            ));
        }
        let mut entries = BTreeMap::new();
        for name in header.offset_keys() {
            let TensorInfo { dtype, shape, data_offsets: (start, end) } =
                header.info(&name).expect("its name comes from the header");
            if !keep(&name) {
                continue;
            }
            let mut bytes = Vec::new();
            // A file may have holes that take no room on disk; its size alone promises nothing.
            bytes.try_reserve_exact(end - start).map_err(|_| Error::Limit {
                what: format!("array {name} of {}", path.display()),
                needed: format!("{} bytes", end - start),
                allowed: "less memory".into(),
            })?;
            bytes.resize(end - start, 0);
            file.seek(SeekFrom::Start(header_end + *start as u64))
                .and_then(|_| file.read_exact(&mut bytes))
                .map_err(Error::file("read", path))?;
            let shape = Shape::from(shape.as_slice());
            entries.insert(name, Entry { dtype: *dtype, shape, bytes });
        }
        let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
        Ok(Self { entries, metadata })
    }

    /// Writes a safetensors file so that at every instant `path` is either what it was or complete:
    /// into another file beside it, which then takes its place. What interrupted writes have left
    /// behind is removed first. Equal checkpoints give equal bytes.
    ///
    /// Only one writer at a time may write to `path`; two disturb each other, and one gets an error.
    ///
    /// # Errors
    ///
    /// [`Error::File`]; on a full disk it says how many bytes are needed.
    ///
    /// # Panics
    ///
    /// If an entry is called `__metadata__`, which the format keeps for itself.
    pub fn write_atomic(&self, path: &Path) -> Result<()> {
        self.write_with(&RealDisk, path)
    }

    /// Writes a PyTorch file, which `torch.load` reads with `weights_only=True`, in the way of
    /// [`write_atomic`](Self::write_atomic). The arrays are in the dictionary `state_dict`, or `model`
    /// if there is a head of detectron2's (`sem_seg_head.`), the metadata in `meta`.
    ///
    /// # Errors
    ///
    /// As [`write_atomic`](Self::write_atomic); also when PyTorch has no such elements.
    pub fn write_torch(&self, path: &Path) -> Result<()> {
        let data: usize = self.entries.values().map(|entry| entry.bytes.len()).sum();
        // Beside the elements: a pickle and two headers per array, padding.
        let about = data + 1024 * (self.entries.len() + 4);
        replace_file(&RealDisk, path, about as u64, |out| torch::write(self, out))
    }

    /// Writes a pickle of NumPy arrays in a dictionary `model`, which detectron2 reads as a `.pkl`, in the
    /// way of [`write_atomic`](Self::write_atomic). NumPy lacks BF16, which becomes F32; metadata is left
    /// out.
    ///
    /// # Errors
    ///
    /// As [`write_atomic`](Self::write_atomic); also when NumPy has no such elements.
    pub fn write_numpy(&self, path: &Path) -> Result<()> {
        let data: usize = self.entries.values().map(|entry| 2 * entry.bytes.len()).sum();
        let about = data + 256 * (self.entries.len() + 4);
        replace_file(&RealDisk, path, about as u64, |out| torch::write_numpy(self, out))
    }

    fn write_with(&self, disk: &dyn Disk, path: &Path) -> Result<()> {
        let (header, entries) = self.header();
        if header.len() as u64 > MAX_HEADER_BYTES {
            return Err(Error::Limit {
                what: format!("header of {}", path.display()),
                needed: format!("{} bytes", header.len()),
                allowed: format!("{MAX_HEADER_BYTES} bytes"),
            });
        }
        let data: usize = entries.iter().map(|entry| entry.bytes.len()).sum();
        replace_file(disk, path, (8 + header.len() + data) as u64, |out| {
            out.write_all(&(header.len() as u64).to_le_bytes())?;
            out.write_all(header.as_bytes())?;
            entries.iter().try_for_each(|entry| out.write_all(&entry.bytes))
        })
    }

    /// The header, and the entries in the order in which their bytes follow it.
    ///
    /// The widest elements come first, so that every array starts at a multiple of its element's
    /// size. The safetensors crate does the same, but writes metadata in a random order.
    fn header(&self) -> (String, Vec<&Entry>) {
        let json = |text: &str| serde_json::Value::from(text).to_string();
        let mut order: Vec<_> = self.entries.iter().collect();
        order.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.dtype.bitsize()));

        let mut parts = Vec::with_capacity(order.len() + 1);
        if !self.metadata.is_empty() {
            let pairs: Vec<_> =
                self.metadata.iter().map(|(key, text)| json(key) + ":" + &json(text)).collect();
            parts.push(format!("\"__metadata__\":{{{}}}", pairs.join(",")));
        }
        let mut start = 0;
        for (name, Entry { dtype, shape, bytes }) in &order {
            assert_ne!(*name, "__metadata__", "a checkpoint's entry");
            let (dims, end) = (shape.dims(), start + bytes.len());
            parts.push(format!(
                "{}:{{\"dtype\":\"{dtype}\",\"shape\":{},\"data_offsets\":[{start},{end}]}}",
                json(name),
                format!("{dims:?}").replace(' ', ""),
            ));
            start = end;
        }
        let mut header = format!("{{{}}}", parts.join(","));
        header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
        (header, order.into_iter().map(|(_, entry)| entry).collect())
    }
}

/// What a file that starts with `head` is, if that is often mistaken for a file of weights.
fn known_otherwise(head: &[u8]) -> Option<&'static str> {
    let text = head.trim_ascii_start().to_ascii_lowercase();
    match head {
        [0x1f, 0x8b, ..] => Some("compressed with gzip"),
        _ if head.starts_with(b"version https://git-lfs") => {
            Some("a Git LFS pointer (the file itself was not fetched)")
        }
        _ if text.starts_with(b"<!doctype") || text.starts_with(b"<html") => {
            Some("a web page (the download failed)")
        }
        _ if head.get(257..262) == Some(b"ustar") => {
            Some("a tar archive, PyTorch's format before version 0.1.10")
        }
        _ => None,
    }
}

/// The parsed header, and where the arrays start.
fn read_header(file: &mut impl Read, size: u64, path: &Path) -> Result<(Metadata, u64)> {
    let mut len = [0; 8];
    let given = size.min(8) as usize;
    file.read_exact(&mut len[..given]).map_err(Error::file("read", path))?;
    let not = |reason: String| {
        Error::invalid_file(path, format!("is neither a PyTorch file nor safetensors: {reason}"))
    };
    if size < 8 {
        return Err(not(format!("it has {size} bytes")));
    }
    let len = u64::from_le_bytes(len);
    if len > MAX_HEADER_BYTES {
        return Err(not(format!(
            "its header has {len} bytes, at most {MAX_HEADER_BYTES} are read"
        )));
    }
    if len > size - 8 {
        return Err(not(format!("its header has {len} bytes but {} follow", size - 8)));
    }
    let mut header = vec![0; len as usize];
    file.read_exact(&mut header).map_err(Error::file("read", path))?;
    let header =
        serde_json::from_slice(&header).map_err(|error| not(format!("header: {error}")))?;
    Ok((header, 8 + len))
}

/// The steps of replacing a file, one method each, so that a test can make any of them fail.
pub(crate) trait Disk {
    /// The names of what is in a folder.
    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        // Names that are not UTF-8 are not ours.
        let names = fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
        names.filter_map(io::Result::transpose).collect()
    }

    /// A new file for writing.
    fn create(&self, path: &Path) -> io::Result<File> {
        File::create_new(path)
    }

    /// Writes some of `bytes`; returns how many.
    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<usize> {
        file.write(bytes)
    }

    /// Waits until what was written is on the disk.
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    /// Gives a file another name, whose bearer goes.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    /// Waits until the names in a folder are on the disk.
    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        // Elsewhere a folder cannot be opened, and renaming is as safe as it gets.
        if cfg!(unix) {
            match File::open(folder)?.sync_all() {
                // Some network file systems cannot.
                Err(error) if error.kind() == ErrorKind::InvalidInput => {}
                result => result?,
            }
        }
        Ok(())
    }

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
}

/// The operating system's disk.
pub(crate) struct RealDisk;

impl Disk for RealDisk {}

/// Puts a file of `size` bytes, which `fill` writes, in the place of `path`, or leaves `path` alone.
///
/// The new file gets the permissions of any new file. A symbolic link is replaced by the file.
pub(crate) fn replace_file(
    disk: &dyn Disk,
    path: &Path,
    size: u64,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    // A name of its own per write: two writers must not write into one file.
    static WRITES: AtomicU64 = AtomicU64::new(0);

    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        return Err(Error::invalid_file(path, "is not the name of a file that can be written"));
    };
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let failed = |source: io::Error| {
        let full = matches!(
            source.kind(),
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
        );
        let source = match full {
            true => io::Error::new(
                source.kind(),
                format!("{source}; {size} bytes are needed beside the file that is there"),
            ),
            false => source,
        };
        Error::File { doing: "write", path: path.to_owned(), source }
    };

    for stale in disk.list(folder).map_err(failed)?.iter().filter(|found| is_partial(found, name)) {
        match disk.remove(&folder.join(stale)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
    let write = WRITES.fetch_add(1, Ordering::Relaxed);
    let partial = folder.join(format!(".{name}.{}-{write}.partial", std::process::id()));
    let file = disk.create(&partial).map_err(failed)?;
    let mut partial = Partial { disk, path: Some(partial) };

    let mut out = BufWriter::with_capacity(1 << 20, Through { disk, file });
    fill(&mut out).map_err(failed)?;
    let through = out.into_inner().map_err(|error| failed(error.into_error()))?;
    disk.sync(&through.file).map_err(failed)?;
    drop(through);
    disk.rename(partial.path.as_deref().expect("not yet renamed"), path).map_err(failed)?;
    partial.path = None;
    disk.sync_folder(folder).map_err(failed)
}

/// Whether `found` is what an interrupted write of `name` left.
fn is_partial(found: &str, name: &str) -> bool {
    let inner = found
        .strip_prefix('.')
        .and_then(|rest| rest.strip_prefix(name))
        .and_then(|rest| rest.strip_prefix('.'))
        .and_then(|rest| rest.strip_suffix(".partial"));
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    inner.and_then(|inner| inner.split_once('-')).is_some_and(|(a, b)| number(a) && number(b))
}

/// A file that is removed unless it became the real one.
struct Partial<'a> {
    disk: &'a dyn Disk,
    path: Option<PathBuf>,
}

impl Drop for Partial<'_> {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // The error that led here is the one to report; the next write tries again.
            let _ = self.disk.remove(path);
        }
    }
}

/// Writes through [`Disk::write`].
struct Through<'a> {
    disk: &'a dyn Disk,
    file: File,
}

impl Write for Through<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.disk.write(&mut self.file, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::Cursor;

    use safetensors::SafeTensors;

    use super::*;
    use crate::random::Rng;

    fn sample(iteration: usize) -> Checkpoint {
        let mut checkpoint = Checkpoint::default();
        checkpoint.insert("decode_head.conv_seg.bias", Entry::from_f32([3], &[1.5, -2.0, 0.25]));
        checkpoint.insert("a.byte", Entry::new(Dtype::U8, [1], vec![7]));
        checkpoint.insert("optimizer.m.x", Entry::from_f32([1, 2], &[1.0, 2.0]));
        checkpoint.insert("optimizer.v.x", Entry::from_f32([1, 2], &[3.0, 4.0]));
        checkpoint.insert("steps", Entry::new(Dtype::I64, [], 9_i64.to_le_bytes().to_vec()));
        checkpoint.insert("none", Entry::new(Dtype::F16, [0, 4], Vec::new()));
        for key in ["recipe", "best", "a \"quoted\"\nkey"] {
            checkpoint.metadata.insert(key.into(), "lr = 1e-4 # \\ \u{1F980} \u{7f}\0".into());
        }
        checkpoint.metadata.insert("iteration".into(), iteration.to_string());
        checkpoint
    }

    fn bytes_of(checkpoint: &Checkpoint) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        checkpoint.write_atomic(&path).unwrap();
        fs::read(path).unwrap()
    }

    fn parse(bytes: &[u8]) -> Result<Checkpoint> {
        Checkpoint::read_from(&mut Cursor::new(bytes), Path::new("x.safetensors"), |_| true)
    }

    #[test]
    fn what_is_written_reads_back_equal() {
        assert_eq!(parse(&bytes_of(&sample(3))).unwrap(), sample(3));
        let empty = Checkpoint::default();
        assert_eq!(parse(&bytes_of(&empty)).unwrap(), empty);
    }

    #[test]
    fn the_safetensors_crate_reads_it_and_finds_every_array_aligned() {
        let bytes = bytes_of(&sample(3));
        let theirs = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(theirs.len(), sample(3).entries.len());
        for (name, entry) in &sample(3).entries {
            let tensor = theirs.tensor(name).unwrap();
            assert_eq!(tensor.dtype(), entry.dtype);
            assert_eq!(tensor.shape(), entry.shape.dims());
            assert_eq!(tensor.data(), entry.bytes);
            let offset = tensor.data().as_ptr() as usize - bytes.as_ptr() as usize;
            assert_eq!(offset * 8 % entry.dtype.bitsize(), 0, "{name}");
        }
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata: BTreeMap<_, _> = header.metadata().clone().unwrap().into_iter().collect();
        assert_eq!(metadata, sample(3).metadata);
    }

    #[test]
    fn what_the_safetensors_crate_writes_reads_back() {
        let data = [1.0_f32.to_le_bytes(), 2.0_f32.to_le_bytes()].concat();
        let view = safetensors::tensor::TensorView::new(Dtype::F32, vec![2], &data).unwrap();
        let bytes = safetensors::serialize([("w", view)], None).unwrap();
        assert_eq!(parse(&bytes).unwrap().get("w").unwrap().to_f32().unwrap(), [1.0, 2.0]);
    }

    #[test]
    fn equal_checkpoints_give_equal_bytes() {
        assert_eq!(bytes_of(&sample(3)), bytes_of(&sample(3)));
        assert_ne!(bytes_of(&sample(3)), bytes_of(&sample(4)));
    }

    #[test]
    fn every_floating_point_type_becomes_f32() {
        let values = [1.0, -0.5, 65504.0];
        let f16s = values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
        let bf16s = values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
        let f64s = values.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect();
        let to_f32 = |dtype, bytes| Entry::new(dtype, [3], bytes).to_f32().unwrap();
        assert_eq!(Entry::from_f32([3], &values).to_f32().unwrap(), values);
        assert_eq!(to_f32(Dtype::F16, f16s), values);
        assert_eq!(to_f32(Dtype::BF16, bf16s), [1.0, -0.5, 65536.0]);
        assert_eq!(to_f32(Dtype::F64, f64s), values);
        let error = Entry::new(Dtype::U8, [1], vec![0]).to_f32().unwrap_err().to_string();
        assert!(error.contains("U8"), "{error}");
    }

    #[test]
    fn a_prefix_selects_and_is_stripped() {
        let checkpoint = sample(1);
        let names = |prefix| checkpoint.with_prefix(prefix).map(|(n, _)| n).collect::<Vec<_>>();
        assert_eq!(names(FIRST_MOMENT), ["x"]);
        assert_eq!(names(OPTIMIZER), ["m.x", "v.x"]);
        assert_eq!(names("zzz"), [""; 0]);
        let parameters: Vec<_> = checkpoint.parameters().map(|(name, _)| name).collect();
        assert_eq!(parameters, ["a.byte", "decode_head.conv_seg.bias", "none", "steps"]);
    }

    #[test]
    fn skipped_arrays_do_not_shift_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        sample(1).write_atomic(&path).unwrap();
        let read = Checkpoint::read_where(&path, |name| !name.starts_with(OPTIMIZER)).unwrap();
        let kept: Vec<_> = sample(1).parameters().map(|(n, e)| (n.to_owned(), e.clone())).collect();
        assert_eq!(read.entries.into_iter().collect::<Vec<_>>(), kept);
        assert_eq!(read.metadata, sample(1).metadata);
    }

    #[test]
    fn a_file_cut_anywhere_is_an_error_that_names_it() {
        let bytes = bytes_of(&sample(3));
        for len in 0..bytes.len() {
            let error = parse(&bytes[..len]).expect_err(&format!("{len} bytes")).to_string();
            assert!(error.contains("x.safetensors"), "{error}");
        }
        let longer = [bytes.as_slice(), b"!"].concat();
        assert!(parse(&longer).is_err());
    }

    #[test]
    fn damaged_files_are_errors_or_consistent() {
        let good = bytes_of(&sample(3));
        let header_end = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
        let mut rng = Rng::new(1, 2);
        let mut refused = 0;
        for round in 0..2000 {
            let mut bytes = good.clone();
            for _ in 0..=rng.below(3) {
                // Half of them within the header, where they hurt.
                let end = if rng.coin() { header_end } else { bytes.len() };
                let at = rng.below(end.min(bytes.len()));
                match rng.below(4) {
                    0 => bytes[at] = rng.bits() as u8,
                    1 => bytes[at] ^= 1 << rng.below(8),
                    2 => bytes[at] = b"0123456789[]{},:\"-eE."[rng.below(21)],
                    _ => drop(bytes.splice(at..at, [b'9'])),
                }
            }
            match parse(&bytes) {
                Ok(checkpoint) => {
                    for (name, Entry { dtype, shape, bytes }) in &checkpoint.entries {
                        let bits = shape.len() * dtype.bitsize();
                        assert_eq!(bytes.len() * 8, bits, "round {round}, {name}");
                    }
                }
                Err(error) => {
                    refused += 1;
                    assert!(error.to_string().contains("x.safetensors"), "{error}");
                }
            }
        }
        assert!((500..2000).contains(&refused), "{refused}");
    }

    /// A file with the given header and no data.
    fn with_header(header: &str) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()
    }

    #[test]
    fn hostile_headers_are_errors() {
        let entry = |shape: &str, offsets: &str| {
            with_header(&format!(
                r#"{{"x":{{"dtype":"U8","shape":{shape},"data_offsets":{offsets}}}}}"#
            ))
        };
        let huge = u64::MAX;
        for bytes in [
            entry(&format!("[{huge}]"), &format!("[0,{huge}]")),
            entry(&format!("[{huge},{huge}]"), "[0,0]"),
            entry("[1]", "[0,1]"),
            entry("[1]", "[1,0]"),
            entry("[-1]", "[0,0]"),
            entry("[0.5]", "[0,0]"),
            with_header(&"[".repeat(100_000)),
            with_header("{\"__metadata__\":{\"a\":1}}"),
            with_header("null"),
            with_header(""),
            huge.to_le_bytes().to_vec(),
            (MAX_HEADER_BYTES + 1).to_le_bytes().to_vec(),
            MAX_HEADER_BYTES.to_le_bytes().to_vec(),
            b"PK\x03\x04 and so on".to_vec(),
            b"version https://git-lfs.github.com/spec/v1".to_vec(),
        ] {
            let error = parse(&bytes).unwrap_err().to_string();
            assert!(error.starts_with("x.safetensors: ") && error.len() < 200, "{error}");
        }
    }

    #[test]
    fn what_is_not_a_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = Checkpoint::read(folder.path()).unwrap_err().to_string();
        assert!(error.contains("folder"), "{error}");
        let error = Checkpoint::read(&folder.path().join("none")).unwrap_err().to_string();
        assert!(error.contains("none"), "{error}");
    }

    /// How a step fails.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Fault {
        /// The step alone; what follows works.
        Error(ErrorKind),
        /// Half of the bytes are written, then the disk is full.
        Short,
        /// The step and all that follow, as if the process had been killed.
        Kill,
    }

    struct FaultyDisk {
        fault: Fault,
        /// Steps until it strikes.
        countdown: Cell<usize>,
        shortened: Cell<bool>,
    }

    impl FaultyDisk {
        fn new(steps: usize, fault: Fault) -> Self {
            Self { fault, countdown: Cell::new(steps), shortened: Cell::new(false) }
        }

        fn step(&self) -> io::Result<()> {
            if self.countdown.get() > 0 {
                self.countdown.set(self.countdown.get() - 1);
                return Ok(());
            }
            let kind = match self.fault {
                Fault::Kill => return Err(ErrorKind::Other.into()),
                Fault::Error(kind) => kind,
                Fault::Short => ErrorKind::StorageFull,
            };
            self.countdown.set(usize::MAX);
            Err(kind.into())
        }
    }

    impl Disk for FaultyDisk {
        fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
            self.step().and_then(|()| RealDisk.list(folder))
        }
        fn create(&self, path: &Path) -> io::Result<File> {
            self.step().and_then(|()| RealDisk.create(path))
        }
        fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<usize> {
            let strikes = self.fault == Fault::Short && self.countdown.get() == 0;
            if strikes && !self.shortened.replace(true) {
                return RealDisk.write(file, &bytes[..bytes.len() / 2]);
            }
            self.step().and_then(|()| RealDisk.write(file, bytes))
        }
        fn sync(&self, file: &File) -> io::Result<()> {
            self.step().and_then(|()| RealDisk.sync(file))
        }
        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            self.step().and_then(|()| RealDisk.rename(from, to))
        }
        fn sync_folder(&self, folder: &Path) -> io::Result<()> {
            self.step().and_then(|()| RealDisk.sync_folder(folder))
        }
        fn remove(&self, path: &Path) -> io::Result<()> {
            self.step().and_then(|()| RealDisk.remove(path))
        }
    }

    #[test]
    fn a_write_that_fails_at_any_step_leaves_a_loadable_checkpoint_and_no_litter() {
        let faults = [
            Fault::Error(ErrorKind::Other),
            Fault::Error(ErrorKind::StorageFull),
            Fault::Short,
            Fault::Kill,
        ];
        for fault in faults {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("last.safetensors");
            let names = || {
                let mut names = RealDisk.list(folder.path()).unwrap();
                names.sort();
                names
            };
            sample(0).write_atomic(&path).unwrap();
            // Not ours: it belongs to a target whose name begins like this one's.
            let foreign = ".last.safetensors.old.1-2.partial";
            fs::write(folder.path().join(foreign), "").unwrap();

            let mut failures = 0;
            for k in 0..100 {
                let before = Checkpoint::read(&path).unwrap();
                let disk = FaultyDisk::new(k, fault);
                let result = sample(k + 1).write_with(&disk, &path);
                let after = Checkpoint::read(&path).unwrap();
                let Err(error) = result else {
                    assert_eq!(after, sample(k + 1));
                    break;
                };
                failures += 1;
                assert!(after == before || after == sample(k + 1), "{fault:?} at step {k}");
                let error = error.to_string();
                assert!(error.contains("last.safetensors"), "{error}");
                if fault == Fault::Error(ErrorKind::StorageFull) {
                    let size = bytes_of(&sample(k + 1)).len();
                    assert!(error.contains(&format!("{size} bytes")), "{error}");
                }
                if fault != Fault::Kill {
                    assert_eq!(names(), [foreign, "last.safetensors"], "{fault:?} at step {k}");
                }
            }
            // Listing, creating, one write, two syncs, a rename.
            assert!((6..100).contains(&failures), "{fault:?}: {failures}");
            sample(99).write_atomic(&path).unwrap();
            assert_eq!(names(), [foreign, "last.safetensors"], "{fault:?}");
        }
    }

    #[test]
    fn what_a_killed_writer_left_goes_with_the_next_write() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("last.safetensors");
        let disk = FaultyDisk::new(3, Fault::Kill);
        sample(1).write_with(&disk, &path).unwrap_err();
        assert_eq!(RealDisk.list(folder.path()).unwrap().len(), 1);
        sample(2).write_atomic(&path).unwrap();
        assert_eq!(RealDisk.list(folder.path()).unwrap(), ["last.safetensors"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_checkpoint_has_the_permissions_of_any_new_file() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let mode = |name| fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
        sample(1).write_atomic(&folder.path().join("a")).unwrap();
        fs::write(folder.path().join("b"), "").unwrap();
        assert_eq!(mode("a"), mode("b"));
    }

    #[test]
    fn a_folder_in_the_way_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("last.safetensors");
        fs::create_dir(&path).unwrap();
        assert!(sample(1).write_atomic(&path).is_err());
        assert_eq!(RealDisk.list(folder.path()).unwrap(), ["last.safetensors"]);
        assert!(sample(1).write_atomic(Path::new("/")).is_err());
        assert!(sample(1).write_atomic(&folder.path().join("no/such")).is_err());
    }
}
