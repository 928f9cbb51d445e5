//! PyTorch's files: what `torch.save` writes (a zip archive; before PyTorch 1.6 pickles followed by
//! the elements), and plain pickles of tensors or NumPy arrays as detectron2 has them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use safetensors::Dtype;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::pickle::{self, Array, Fault, Pickle, Shared, Source, Storage, Storages, Value, quote};
use super::{Checkpoint, Entry};
use crate::{Error, Result, Shape};

/// The number that files of the old format start with.
const MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;
/// The old format's version.
const PROTOCOL: i128 = 1001;

/// How deep dictionaries and lists may be in each other.
const MAX_DEPTH: usize = 64;

/// What kind of PyTorch file one is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Format {
    /// A zip archive, of PyTorch 1.6 and later.
    Zip,
    /// Pickles, then elements.
    Legacy,
    /// A pickle.
    Pickle,
}

impl Format {
    /// The format of a file that starts with `head`, if it can be PyTorch's.
    pub(super) fn detect(head: &[u8]) -> Option<Self> {
        // 10 bytes of a LONG1, and the same number in pickle protocols 0 and 1.
        const BINARY: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
        const DECIMAL: &[u8] = b"L119547037146038801333356L\n.";
        match head {
            // The length of safetensors' header, in eight bytes, may start like any of these.
            [_, _, _, _, 0, 0, 0, 0, b'{', ..] => None,
            [b'P', b'K', 3, 4, ..] => Some(Self::Zip),
            [0x80, _, rest @ ..] if rest.starts_with(BINARY) => Some(Self::Legacy),
            // Protocol 4 has a frame first.
            [0x80, _, 0x95, _, _, _, _, _, _, _, _, rest @ ..] if rest.starts_with(BINARY) => {
                Some(Self::Legacy)
            }
            _ if head.starts_with(DECIMAL) => Some(Self::Legacy),
            // With a version, or at once with the opcodes that a dictionary begins with.
            [0x80, 2..=5, ..] | [b'(', b'd' | b'l', ..] | [b'}', b'q' | b'(', ..] => {
                Some(Self::Pickle)
            }
            _ => None,
        }
    }
}

/// Reads a file of `size` bytes that is called `path` in errors.
pub(super) fn read(
    file: &mut (impl Read + Seek),
    size: u64,
    format: Format,
    path: &Path,
    keep: impl Fn(&str) -> bool,
) -> Result<Checkpoint> {
    let invalid = |reason: String| Error::invalid_file(path, reason);
    let mut budget = Budget::new(size);
    if format == Format::Zip {
        let mut archive = Archive::open(file, size, path)?;
        let program = archive.read("data.pkl")?;
        let made = pickle::read(&program, Storages::Beside, 0)
            .map_err(|fault| invalid(format!("data.pkl, {}", at(&fault, 0))))?;
        return checkpoint(&made, keep, &mut budget, path, |storage| match &storage.source {
            Source::Key(key) => archive.read(&format!("data/{key}")).map(Cow::Owned),
            Source::Bytes(bytes, range) => Ok(Cow::Borrowed(&bytes[range.clone()])),
        });
    }

    let mut data = Vec::new();
    let wanted = usize::try_from(size).unwrap_or(usize::MAX);
    data.try_reserve_exact(wanted).map_err(|_| Error::Limit {
        what: path.display().to_string(),
        needed: format!("{size} bytes"),
        allowed: "less memory".into(),
    })?;
    file.seek(SeekFrom::Start(0))
        .and_then(|_| file.take(size).read_to_end(&mut data))
        .map_err(Error::file("read", path))?;
    let made = match format {
        Format::Legacy => legacy(&data, Storages::Beside, 0),
        _ => pickle::read(&data, Storages::Inside, 0).map_err(|fault| at(&fault, 0)),
    };
    checkpoint(&made.map_err(invalid)?, keep, &mut budget, path, |storage| match &storage.source {
        Source::Bytes(bytes, range) => Ok(Cow::Borrowed(&bytes[range.clone()])),
        Source::Key(key) => Err(Error::invalid_file(path, no_storage(key))),
    })
}

/// A fault of a pickle that starts at `start`.
fn at(fault: &Fault, start: usize) -> String {
    format!("byte {}: {}", start + fault.at, fault.reason)
}

fn no_storage(key: &str) -> String {
    format!("storage {} is not in the file", quote(key))
}

/// What the reading of a file may still cost, in bytes: a small multiple of the file's size, however
/// often the file refers to the same elements or names.
struct Budget(u64);

impl Budget {
    fn new(size: u64) -> Self {
        Self(size.saturating_mul(4).saturating_add(1 << 20))
    }

    fn charge(&mut self, bytes: usize) -> Result<(), String> {
        self.0 = self.0.checked_sub(bytes as u64).ok_or(
            "its arrays are many times larger than the file, which refers to the same elements \
             over and over",
        )?;
        Ok(())
    }
}

/// The zip archive of `torch.save`.
struct Archive<'a, R> {
    zip: ZipArchive<&'a mut R>,
    /// The folder that everything is in.
    root: String,
    size: u64,
    path: &'a Path,
}

impl<'a, R: Read + Seek> Archive<'a, R> {
    fn open(file: &'a mut R, size: u64, path: &'a Path) -> Result<Self> {
        let damaged = |error: zip::result::ZipError| {
            Error::invalid_file(path, format!("was cut short or damaged: {error}"))
        };
        let mut zip = ZipArchive::new(file).map_err(damaged)?;
        if zip.has_overlapping_files().map_err(damaged)? {
            return Err(Error::invalid_file(path, "has archive members that overlap"));
        }
        let roots: Vec<String> = zip
            .file_names()
            .filter_map(|name| Some(name.ok()?.strip_suffix("/data.pkl")?.to_owned()))
            .filter(|root| !root.contains('/'))
            .collect();
        let [root] = <[String; 1]>::try_from(roots).map_err(|roots| {
            let reason = match roots.len() {
                0 => "is a zip archive without data.pkl, so torch.save has not written it".into(),
                many => format!("is a zip archive with {many} data.pkl"),
            };
            Error::invalid_file(path, reason)
        })?;
        let mut archive = Self { zip, root, size, path };
        let byteorder = format!("{}/byteorder", archive.root);
        if archive.zip.index_for_name(&byteorder).is_some()
            && archive.read("byteorder")? != b"little"
        {
            return Err(Error::invalid_file(path, "was written by a big-endian machine"));
        }
        Ok(archive)
    }

    /// The contents of a member; the archive's checksum is compared.
    fn read(&mut self, name: &str) -> Result<Vec<u8>> {
        let shown = quote(name);
        let invalid = |reason: String| Error::invalid_file(self.path, format!("{shown}: {reason}"));
        let full = format!("{}/{name}", self.root);
        let Some(index) = self.zip.index_for_name(&full) else {
            return Err(invalid("is not in the archive".into()));
        };
        let member = self.zip.by_index(index).map_err(|error| invalid(error.to_string()))?;
        if member.compression() != CompressionMethod::Stored {
            return Err(invalid("is compressed, which torch.save does not do".into()));
        }
        let len = member.size();
        if len > self.size {
            return Err(invalid(format!("has {len} bytes, more than the file")));
        }
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len as usize).map_err(|_| Error::Limit {
            what: format!("{shown} of {}", self.path.display()),
            needed: format!("{len} bytes"),
            allowed: "less memory".into(),
        })?;
        member.take(len).read_to_end(&mut bytes).map_err(|error| invalid(error.to_string()))?;
        if bytes.len() as u64 != len {
            return Err(invalid(format!("has {} bytes instead of {len}", bytes.len())));
        }
        Ok(bytes)
    }
}

/// Reads the old format: the magic number, the version, the machine, the object, the names of the
/// storages, each in a pickle; then the storages' lengths and elements.
fn legacy(data: &[u8], place: Storages, spent: usize) -> Result<Pickle<'_>, String> {
    let mut end = 0;
    let mut spent = spent;
    let mut next = |place| {
        let start = end;
        let made = pickle::read(&data[start..], place, spent).map_err(|f| at(&f, start))?;
        end += made.end;
        spent = made.values;
        Ok::<_, String>((made, end))
    };
    let magic = next(Storages::Inside)?.0;
    let version = next(Storages::Inside)?.0;
    if !matches!((&magic.root, &version.root), (Value::Int(MAGIC), Value::Int(PROTOCOL))) {
        return Err("is no PyTorch file of a known version".into());
    }
    let machine = next(Storages::Inside)?.0;
    if let Value::Dict(index) = machine.root
        && let Some(Value::Bool(false)) = machine.get(index, "little_endian")
    {
        return Err("was written by a big-endian machine".into());
    }
    let mut made = next(place)?.0;
    let (keys, mut at) = next(Storages::Inside)?;
    made.values = keys.values;

    let mut places = BTreeMap::new();
    for (i, storage) in made.storages.iter().enumerate() {
        if let Source::Key(key) = &storage.source {
            places.insert(key.clone(), i);
        }
    }
    let keys = match keys.root {
        Value::List(index) => &keys.lists[index],
        _ => return Err(format!("byte {at}: the names of the storages are no list")),
    };
    for key in keys {
        let key = key.text().ok_or_else(|| format!("byte {at}: a storage without name"))?;
        let index = places.remove(key).ok_or_else(|| {
            format!("byte {at}: storage {} is there twice, or unused", quote(key))
        })?;
        let storage = &mut made.storages[index];
        let width = storage.dtype.bitsize() / 8;
        let rest = &data[at..];
        let len = rest.first_chunk().map(|len| u64::from_le_bytes(*len));
        if len != Some((storage.size / width) as u64) {
            return Err(match len {
                Some(len) => format!(
                    "byte {at}: storage {} has {len} elements instead of {}",
                    quote(key),
                    storage.size / width
                ),
                None => format!("byte {at}: the file ends before storage {}", quote(key)),
            });
        }
        if rest.len() - 8 < storage.size {
            return Err(format!(
                "byte {at}: storage {} has {} bytes but {} are left; it was cut short",
                quote(key),
                storage.size,
                rest.len() - 8
            ));
        }
        let start = at + 8;
        at = start + storage.size;
        storage.source = Source::Bytes(Shared::Borrowed(data), start..at);
    }
    match places.keys().next() {
        Some(key) => Err(no_storage(key)),
        None => Ok(made),
    }
}

/// The storage that `bytes` are a file of, in the old format: so a pickle holds the elements of a
/// tensor. Also how many values were read by then.
pub(super) fn embedded_storage<'a>(
    bytes: &Shared<'a, [u8]>,
    spent: usize,
) -> Result<(Storage<'a>, usize), String> {
    let inner = legacy(bytes, Storages::Embedded, spent).map_err(|e| format!("storage: {e}"))?;
    let Value::Storage(index) = inner.root else { return Err("a storage that is none".into()) };
    let Storage { source, dtype, size } = &inner.storages[index];
    let Source::Bytes(_, range) = source else { return Err("a storage without elements".into()) };
    let source = Source::Bytes(bytes.clone(), range.clone());
    Ok((Storage { source, dtype: *dtype, size: *size }, inner.values))
}

/// The arrays in what a pickle made, by name, and what it says about them.
///
/// The state dict is `state_dict` (mmseg) or `model` (detectron2, Swin) of the file's dictionary, or
/// all of it. The prefix `module.`, which wrappers for several GPUs leave behind, goes.
fn checkpoint<'p, 'a>(
    made: &'p Pickle<'a>,
    keep: impl Fn(&str) -> bool,
    budget: &mut Budget,
    path: &Path,
    mut load: impl FnMut(&'p Storage<'a>) -> Result<Cow<'p, [u8]>>,
) -> Result<Checkpoint> {
    let invalid = |reason: String| Error::invalid_file(path, reason);
    let wrapped = |key| match made.root {
        Value::Dict(index) => made.get(index, key).filter(|v| matches!(v, Value::Dict(_))),
        _ => None,
    };
    let state_dict = wrapped("state_dict").or_else(|| wrapped("model")).unwrap_or(&made.root);

    let mut found = Vec::new();
    arrays(made, state_dict, "", 0, budget, &mut found).map_err(invalid)?;
    for (name, _) in &mut found {
        if let Some(rest) = name.strip_prefix("module.") {
            *name = rest.to_owned();
        }
    }
    found.retain(|(name, _)| keep(name));
    // Each storage is loaded once.
    found.sort_by_key(|(_, array)| made.arrays[*array].storage);

    let mut checkpoint = Checkpoint::default();
    for group in found.chunk_by(|(_, a), (_, b)| made.arrays[*a].storage == made.arrays[*b].storage)
    {
        let storage = &made.storages[made.arrays[group[0].1].storage];
        budget.charge(storage.size).map_err(invalid)?;
        let mut bytes = load(storage)?;
        if bytes.len() != storage.size {
            let reason = format!(
                "{}: has a storage of {} bytes instead of {}",
                group[0].0,
                bytes.len(),
                storage.size
            );
            return Err(invalid(reason));
        }
        for (name, array) in group {
            let array = &made.arrays[*array];
            let named = |reason: String| invalid(format!("{}: {reason}", quote(name)));
            let len = array_size(array, bytes.len()).map_err(named)?;
            budget.charge(len).map_err(named)?;
            let alone = group.len() == 1 && len == bytes.len() && is_contiguous(array);
            let elements = match alone {
                true => std::mem::take(&mut bytes).into_owned(),
                false => gather(array, &bytes),
            };
            let shape = Shape::from(array.shape.as_slice());
            let entry = Entry { dtype: array.dtype, shape, bytes: elements };
            if checkpoint.entries.insert(name.clone(), entry).is_some() {
                return Err(invalid(format!("has two arrays called {}", quote(name))));
            }
        }
    }
    if let Some(Value::Dict(index)) = wrapped("meta") {
        checkpoint.metadata = words(made, *index, budget).map_err(invalid)?;
    }
    Ok(checkpoint)
}

/// Adds the arrays in `value` to `found`, named by the way to them.
fn arrays(
    made: &Pickle<'_>,
    value: &Value<'_>,
    name: &str,
    depth: usize,
    budget: &mut Budget,
    found: &mut Vec<(String, usize)>,
) -> Result<(), String> {
    // What a visit costs, so that a file whose parts contain each other many times comes to an end.
    budget.charge(16 + name.len())?;
    if depth > MAX_DEPTH {
        return Err(format!("{} is nested more than {MAX_DEPTH} deep", quote(name)));
    }
    let items = match value {
        Value::List(index) | Value::Tuple(index) => made.lists[*index].len(),
        Value::Dict(index) => made.dicts[*index].len(),
        _ => 0,
    };
    budget.charge(items)?;
    let mut visit = |key: &str, value: &Value<'_>| {
        if !may_hold_arrays(value) {
            return Ok(());
        }
        let name = if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
        arrays(made, value, &name, depth + 1, budget, found)
    };
    match value {
        Value::Array(index) => {
            let name = if name.is_empty() { "tensor" } else { name };
            found.push((name.to_owned(), *index));
        }
        Value::List(index) | Value::Tuple(index) => {
            for (i, item) in made.lists[*index].iter().enumerate() {
                visit(&i.to_string(), item)?;
            }
        }
        Value::Dict(index) => {
            // The last value of a key counts.
            let mut latest = BTreeMap::new();
            for (key, value) in &made.dicts[*index] {
                let key: Cow<'_, str> = match key {
                    Value::Int(int) => int.to_string().into(),
                    key => match key.text() {
                        Some(text) => text.into(),
                        None if may_hold_arrays(value) => {
                            return Err(format!("{} has a key that is no text", quote(name)));
                        }
                        None => continue,
                    },
                };
                latest.insert(key, value);
            }
            for (key, value) in latest {
                visit(&key, value)?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn may_hold_arrays(value: &Value<'_>) -> bool {
    matches!(value, Value::Array(_) | Value::List(_) | Value::Tuple(_) | Value::Dict(_))
}

/// The texts and numbers of a dictionary. mmseg's `CLASSES` and `PALETTE` become `classes` and
/// `palette`, as our own checkpoints have them.
fn words(
    made: &Pickle<'_>,
    index: usize,
    budget: &mut Budget,
) -> Result<BTreeMap<String, String>, String> {
    fn list<'p, 'a>(made: &'p Pickle<'a>, value: &Value<'a>) -> Option<&'p [Value<'a>]> {
        match value {
            Value::List(index) | Value::Tuple(index) => Some(&made.lists[*index]),
            _ => None,
        }
    }
    let mut words = BTreeMap::new();
    for (key, value) in &made.dicts[index] {
        let Some(key) = key.text() else { continue };
        let json = match key {
            "CLASSES" => list(made, value).and_then(|names| {
                let names: Option<Vec<_>> = names.iter().map(Value::text).collect();
                Some(("classes", serde_json::to_string(&names?).ok()?))
            }),
            "PALETTE" => list(made, value).and_then(|colours| {
                let byte = |v: &Value<'_>| match v {
                    Value::Int(int) => u8::try_from(*int).ok(),
                    _ => None,
                };
                let colour = |c| list(made, c)?.iter().map(byte).collect::<Option<Vec<_>>>();
                let colours: Option<Vec<_>> = colours.iter().map(colour).collect();
                Some(("palette", serde_json::to_string(&colours?).ok()?))
            }),
            _ => None,
        };
        let (key, word) = match (json, value) {
            (Some((key, json)), _) => (key, json),
            (None, Value::Text(text)) => (key, text.to_string()),
            (None, Value::Int(int)) => (key, int.to_string()),
            (None, Value::Float(float)) => (key, float.to_string()),
            _ => continue,
        };
        budget.charge(64 + key.len() + word.len())?;
        words.insert(key.to_owned(), word);
    }
    Ok(words)
}

/// Bytes of an array that lies within a storage of `available` bytes.
fn array_size(array: &Array, available: usize) -> Result<usize, String> {
    let width = array.dtype.bitsize() / 8;
    // No product of extents may overflow, not even one that an extent of 0 would undo.
    let extents = array.shape.iter().map(|&n| n.max(1));
    let len = extents.clone().try_fold(width, usize::checked_mul);
    let last = extents
        .zip(&array.strides)
        .try_fold(array.offset, |at, (n, stride)| at.checked_add((n - 1).checked_mul(*stride)?));
    let end = last.and_then(|last| last.checked_add(1)?.checked_mul(width));
    let empty = array.shape.contains(&0);
    match (len, end) {
        (Some(_), _) if empty => Ok(0),
        (Some(len), Some(end)) if end <= available => Ok(len),
        _ => Err(format!(
            "an array of {:?} at {} with strides {:?} does not lie in its storage of {} elements",
            array.shape,
            array.offset,
            array.strides,
            available / width
        )),
    }
}

/// Whether the elements follow each other, the last axis fastest.
fn is_contiguous(array: &Array) -> bool {
    let mut step = 1_usize;
    array.shape.iter().zip(&array.strides).rev().all(|(&n, &stride)| {
        let fits = n == 1 || stride == step;
        step = step.saturating_mul(n.max(1));
        fits
    })
}

/// The elements of an array, which [`array_size`] has accepted, the last axis fastest.
fn gather(array: &Array, storage: &[u8]) -> Vec<u8> {
    let width = array.dtype.bitsize() / 8;
    let len: usize = array.shape.iter().product();
    let mut out = Vec::with_capacity(len * width);
    if len == 0 {
        return out;
    }
    if is_contiguous(array) {
        out.extend_from_slice(&storage[array.offset * width..][..len * width]);
        return out;
    }
    let mut index = vec![0; array.shape.len()];
    let mut at = array.offset;
    for _ in 0..len {
        out.extend_from_slice(&storage[at * width..][..width]);
        for axis in (0..index.len()).rev() {
            index[axis] += 1;
            at += array.strides[axis];
            if index[axis] < array.shape[axis] {
                break;
            }
            at -= array.strides[axis] * index[axis];
            index[axis] = 0;
        }
    }
    out
}

/// Writes what `torch.load(…, weights_only=True)` reads: the arrays under `model` (detectron2) if
/// there is a `sem_seg_head.`, otherwise under `state_dict` (mmseg), the metadata under `meta`.
///
/// # Errors
///
/// Those of `out`, and [`io::ErrorKind::Unsupported`] for a type that PyTorch lacks.
pub(super) fn write(checkpoint: &Checkpoint, out: &mut dyn Write) -> io::Result<()> {
    let program = program(checkpoint)?;
    let mut zip = ZipWriter::new_stream(out);
    // As PyTorch does, so that it can map the elements into memory.
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .with_alignment(64);
    let mut member = |name: &str, bytes: &[u8]| {
        zip.start_file(format!("archive/{name}"), options.large_file(bytes.len() >> 31 > 0))?;
        zip.write_all(bytes)
    };
    member("data.pkl", &program)?;
    member("byteorder", b"little")?;
    for (i, entry) in checkpoint.entries.values().enumerate() {
        member(&format!("data/{i}"), &entry.bytes)?;
    }
    member("version", b"3\n")?;
    zip.finish()?;
    Ok(())
}

/// Opcodes of a pickle.
struct Opcodes(Vec<u8>);

impl Opcodes {
    fn raw(&mut self, opcodes: &[u8]) {
        self.0.extend(opcodes);
    }

    fn global(&mut self, module: &str, name: &str) {
        self.raw(format!("c{module}\n{name}\n").as_bytes());
    }

    fn text(&mut self, text: &str) {
        self.raw(b"X");
        self.raw(&(text.len() as u32).to_le_bytes());
        self.raw(text.as_bytes());
    }

    fn int(&mut self, value: usize) {
        self.raw(&[0x8a, 9]);
        self.raw(&(value as u64).to_le_bytes());
        // A ninth byte, for the sign.
        self.raw(&[0]);
    }

    fn tuple(&mut self, values: &[usize]) {
        self.raw(b"(");
        values.iter().for_each(|&value| self.int(value));
        self.raw(b"t");
    }

    fn ordered_dict(&mut self) {
        self.global("collections", "OrderedDict");
        self.raw(b")R");
    }

    /// A list of what `item` makes.
    fn list<T>(&mut self, items: &[T], mut item: impl FnMut(&mut Self, &T)) {
        self.raw(b"](");
        items.iter().for_each(|x| item(self, x));
        self.raw(b"e");
    }
}

/// The pickle of [`write`], in protocol 2.
fn program(checkpoint: &Checkpoint) -> io::Result<Vec<u8>> {
    let detectron2 = checkpoint.entries.keys().any(|name| name.starts_with("sem_seg_head."));
    let mut out = Opcodes(vec![0x80, 2, b'}', b'(']);
    out.text(if detectron2 { "model" } else { "state_dict" });
    out.ordered_dict();
    out.raw(b"(");
    for (i, (name, entry)) in checkpoint.entries.iter().enumerate() {
        let (class, dtype) = torch_names(entry.dtype).ok_or_else(|| {
            let reason = format!("{name}: PyTorch has no arrays of {}", entry.dtype);
            io::Error::new(io::ErrorKind::Unsupported, reason)
        })?;
        let dims = entry.shape.dims();
        let mut strides = vec![1; dims.len()];
        for axis in (1..dims.len()).rev() {
            strides[axis - 1] = strides[axis] * dims[axis].max(1);
        }
        out.text(name);
        // Types without a storage class of their own came with the third version.
        let version = if dtype.is_some() { 3 } else { 2 };
        out.global("torch._utils", &format!("_rebuild_tensor_v{version}"));
        out.raw(b"((");
        out.text("storage");
        out.raw(format!("c{class}\n").as_bytes());
        out.text(&i.to_string());
        out.text("cpu");
        let width = if dtype.is_some() { 1 } else { entry.dtype.bitsize() / 8 };
        out.int(entry.bytes.len() / width);
        out.raw(b"tQ");
        out.int(0);
        out.tuple(dims);
        out.tuple(&strides);
        // requires_grad, and hooks for the backward pass.
        out.raw(&[0x89]);
        out.ordered_dict();
        if let Some(dtype) = dtype {
            out.global("torch", dtype);
        }
        out.raw(b"tR");
    }
    out.raw(b"u");
    if detectron2 {
        // Without it detectron2 takes the names for those of its first version, and changes them.
        out.raw(b"}(");
        out.text("_metadata");
        out.ordered_dict();
        out.raw(b"(");
        for module in ["sem_seg_head", "sem_seg_head.predictor"] {
            out.text(module);
            out.raw(b"}(");
            out.text("version");
            out.int(2);
            out.raw(b"u");
        }
        out.raw(b"uub");
    }
    out.text("meta");
    out.raw(b"}(");
    for (key, word) in &checkpoint.metadata {
        let classes = (key == "classes").then(|| serde_json::from_str::<Vec<String>>(word).ok());
        let palette = (key == "palette").then(|| serde_json::from_str::<Vec<Vec<u8>>>(word).ok());
        if let Some(classes) = classes.flatten() {
            out.text("CLASSES");
            out.list(&classes, |out, class| out.text(class));
        } else if let Some(palette) = palette.flatten() {
            out.text("PALETTE");
            let byte = |out: &mut Opcodes, &byte: &u8| out.int(byte.into());
            out.list(&palette, |out, colour| out.list(colour, byte));
        } else {
            out.text(key);
            out.text(word);
        }
    }
    out.raw(b"uu.");
    Ok(out.0)
}

/// Writes what detectron2 takes for a file of its own: a pickle, in protocol 4, of the arrays as
/// NumPy's under `model`.
///
/// # Errors
///
/// Those of `out`, and [`io::ErrorKind::Unsupported`] for a type that NumPy lacks.
pub(super) fn write_numpy(checkpoint: &Checkpoint, out: &mut dyn Write) -> io::Result<()> {
    let mut head = Opcodes(vec![0x80, 4, b'}', b'(']);
    head.text("model");
    head.raw(b"}(");
    for (name, entry) in &checkpoint.entries {
        let entry = match entry.dtype {
            Dtype::BF16 => &entry.to_dtype(Dtype::F32).map_err(io::Error::other)?,
            _ => entry,
        };
        let code = pickle::numpy_code(entry.dtype).ok_or_else(|| {
            let reason = format!("{name}: NumPy has no arrays of {}", entry.dtype);
            io::Error::new(io::ErrorKind::Unsupported, reason)
        })?;
        head.text(name);
        head.global("numpy.core.multiarray", "_reconstruct");
        head.raw(b"(");
        head.global("numpy", "ndarray");
        head.tuple(&[0]);
        head.raw(b"C\x01btR(");
        head.int(1);
        head.tuple(entry.shape.dims());
        head.global("numpy", "dtype");
        head.raw(b"(");
        head.text(&format!("<{code}"));
        head.raw(b"\x89\x88tR\x89\x8e");
        head.raw(&(entry.bytes.len() as u64).to_le_bytes());
        out.write_all(&std::mem::take(&mut head.0))?;
        out.write_all(&entry.bytes)?;
        head.raw(b"tb");
    }
    head.raw(b"u");
    head.text("__author__");
    head.text("semask-gpu");
    head.raw(b"u.");
    out.write_all(&head.0)
}

/// PyTorch's storage class, and its name for the elements where the class does not tell.
fn torch_names(dtype: Dtype) -> Option<(&'static str, Option<&'static str>)> {
    const UNTYPED: &str = "torch.storage\nUntypedStorage";
    Some(match dtype {
        Dtype::F64 => ("torch\nDoubleStorage", None),
        Dtype::F32 => ("torch\nFloatStorage", None),
        Dtype::F16 => ("torch\nHalfStorage", None),
        Dtype::BF16 => ("torch\nBFloat16Storage", None),
        Dtype::I64 => ("torch\nLongStorage", None),
        Dtype::I32 => ("torch\nIntStorage", None),
        Dtype::I16 => ("torch\nShortStorage", None),
        Dtype::I8 => ("torch\nCharStorage", None),
        Dtype::U8 => ("torch\nByteStorage", None),
        Dtype::BOOL => ("torch\nBoolStorage", None),
        Dtype::C64 => ("torch\nComplexFloatStorage", None),
        Dtype::U64 => (UNTYPED, Some("uint64")),
        Dtype::U32 => (UNTYPED, Some("uint32")),
        Dtype::U16 => (UNTYPED, Some("uint16")),
        Dtype::F8_E4M3 => (UNTYPED, Some("float8_e4m3fn")),
        Dtype::F8_E5M2 => (UNTYPED, Some("float8_e5m2")),
        _ => return None,
    })
}
