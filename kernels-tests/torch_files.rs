//! Files that PyTorch and NumPy wrote (`tools/torch_files.py fixtures`), and what damage does to them.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use semask_gpu::checkpoint::{Checkpoint, Dtype, Entry};
use semask_gpu::{Error, Result};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels-tests/fixtures/torch")
}

/// The files by name.
fn files() -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.filter(|path| path.extension() != Some("safetensors".as_ref()));
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    files.map(|path| (name(&path), std::fs::read(path).unwrap())).collect()
}

fn read(name: &str, bytes: &[u8]) -> Result<Checkpoint> {
    Checkpoint::read_from(&mut Cursor::new(bytes), Path::new(name), |_| true)
}

#[test]
fn every_format_and_protocol_reads_equal() {
    let files = files();
    assert_eq!(files.len(), 17);
    for (name, bytes) in files {
        let found = read(&name, &bytes).unwrap_or_else(|error| panic!("{error}"));
        let stem = name.split('.').next().unwrap().trim_end_matches(|c: char| c.is_ascii_digit());
        let wanted = Checkpoint::read(&folder().join(format!("{stem}.safetensors"))).unwrap();
        assert!(!wanted.entries.is_empty());
        assert_eq!(found.entries, wanted.entries, "{name}");
    }
}

#[test]
fn an_mmseg_file_brings_its_classes_and_words() {
    let found = Checkpoint::read(&folder().join("mmseg.pth")).unwrap();
    let word = |key: &str| found.metadata[key].as_str();
    assert_eq!(word("iter"), "80000");
    assert_eq!(word("config"), "norm_cfg = dict(type='SyncBN')\n");
    assert_eq!(word("classes"), r#"["wall","sky"]"#);
    assert_eq!(word("palette"), "[[120,120,120],[6,230,230]]");
    assert!(found.get("0.weight").is_some() && found.get("module.0.weight").is_none());
}

#[test]
fn only_what_is_wanted_is_read() {
    let path = folder().join("kinds.zip2.pth");
    let found = Checkpoint::read_where(&path, |name| name == "row").unwrap();
    assert_eq!(found.entries.keys().collect::<Vec<_>>(), ["row"]);
}

#[test]
fn what_is_written_for_pytorch_reads_back_equal() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pth");
    let mut wanted = read("kinds", &files()["kinds.zip2.pth"]).unwrap();
    wanted.entries.extend(read("recent", &files()["recent.zip.pth"]).unwrap().entries);
    wanted.metadata.insert("recipe".into(), "name = \"ü\"\n".into());
    wanted.write_torch(&path).unwrap();
    let first = std::fs::read(&path).unwrap();
    assert_eq!(Checkpoint::read(&path).unwrap(), wanted);
    // Also under the key that detectron2 wants.
    wanted.insert("sem_seg_head.x", Entry::from_f32([1], &[1.0]));
    wanted.write_torch(&path).unwrap();
    assert_eq!(Checkpoint::read(&path).unwrap(), wanted);
    wanted.entries.remove("sem_seg_head.x");
    wanted.write_torch(&path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), first);

    wanted.insert("odd", Entry::new(Dtype::F8_E8M0, [1], vec![0]));
    let error = wanted.write_torch(&path).unwrap_err().to_string();
    assert!(error.contains("odd") && error.contains("F8_E8M0"), "{error}");
}

/// What `torch.load(…, weights_only=True)` of PyTorch 2.15 has read, `_metadata` included.
#[test]
fn what_is_written_is_what_pytorch_was_seen_to_read() {
    let int = |value: u8| [b"\x8a\x09", &[value, 0, 0, 0, 0, 0, 0, 0, 0][..]].concat();
    let text = |text: &str| [b"X", &[text.len() as u8, 0, 0, 0][..], text.as_bytes()].concat();
    let dict = b"ccollections\nOrderedDict\n)R".to_vec();
    let (raw, tensor) = (|bytes: &[u8]| bytes.to_vec(), text("sem_seg_head.predictor.x"));
    let storage = [text("storage"), raw(b"ctorch\nFloatStorage\n"), text("0"), text("cpu"), int(6)];
    let version = |module| [text(module), raw(b"}("), text("version"), int(2), raw(b"u")].concat();
    let wanted = [
        [raw(b"\x80\x02}("), text("model"), dict.clone(), raw(b"("), tensor].concat(),
        [raw(b"ctorch._utils\n_rebuild_tensor_v2\n(("), storage.concat(), raw(b"tQ")].concat(),
        [int(0), raw(b"("), int(2), int(3), raw(b"t("), int(3), int(1), raw(b"t\x89")].concat(),
        [dict.clone(), raw(b"tRu}("), text("_metadata"), dict, raw(b"(")].concat(),
        [version("sem_seg_head"), version("sem_seg_head.predictor"), raw(b"uub")].concat(),
        [text("meta"), raw(b"}("), text("CLASSES"), raw(b"]("), text("a"), raw(b"e")].concat(),
        [text("PALETTE"), raw(b"](]("), int(1), int(2), int(255), raw(b"eeuu.")].concat(),
    ]
    .concat();

    let mut checkpoint = Checkpoint::default();
    checkpoint.insert("sem_seg_head.predictor.x", Entry::from_f32([2, 3], &[0.5; 6]));
    checkpoint.metadata.insert("classes".into(), r#"["a"]"#.into());
    checkpoint.metadata.insert("palette".into(), "[[1,2,255]]".into());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pth");
    checkpoint.write_torch(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let start = bytes.windows(4).position(|bytes| bytes == b"\x80\x02}(").unwrap();
    assert_eq!(&bytes[start..start + wanted.len()], wanted);
    assert_eq!(Checkpoint::read(&path).unwrap(), checkpoint);
}

#[test]
fn what_is_written_for_detectron2_reads_back_equal() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pkl");
    let mut wanted = read("kinds", &files()["kinds.zip2.pth"]).unwrap();
    let unsigned = Entry::new(Dtype::U16, [2], vec![1, 2, 3, 4]);
    wanted.insert("uint16", unsigned);
    wanted.write_numpy(&path).unwrap();
    // NumPy has no such type; F32 holds the same numbers.
    let brain = wanted.entries.get_mut("bfloat16").unwrap();
    *brain = brain.to_dtype(Dtype::F32).unwrap();
    assert_eq!(Checkpoint::read(&path).unwrap(), wanted);
    wanted.insert("odd", Entry::new(Dtype::F8_E5M2, [1], vec![0]));
    let error = wanted.write_numpy(&path).unwrap_err().to_string();
    assert!(error.contains("odd: NumPy has no arrays of F8_E5M2"), "{error}");
}

#[test]
fn elements_written_for_pytorch_are_aligned() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pth");
    let mut checkpoint = Checkpoint::default();
    let values = [1.25, 2.5, -3.75, 1e9];
    checkpoint.insert("a", Entry::new(Dtype::U8, [3], vec![1, 2, 3]));
    checkpoint.insert("b", Entry::from_f32([4], &values));
    checkpoint.write_torch(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let wanted: Vec<u8> = values.iter().flat_map(|v: &f32| v.to_le_bytes()).collect();
    let at = bytes.windows(16).position(|window| window == wanted).unwrap();
    assert_eq!(at % 64, 0);
}

#[test]
fn a_file_cut_anywhere_is_an_error_that_names_it() {
    for (name, bytes) in files() {
        for len in 0..bytes.len() {
            let error = read(&name, &bytes[..len]).expect_err(&format!("{name}: {len} bytes"));
            assert!(error.to_string().contains(&name), "{error}");
        }
    }
}

/// What reading takes: of this thread's own time where the system tells that, since a test must not fail
/// because the machine is busy with something else.
fn timed(name: &str, bytes: &[u8]) -> (Result<Checkpoint>, Duration) {
    let own = || {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
        text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
    };
    let (own_start, start) = (own(), Instant::now());
    let result = read(name, bytes);
    let took = own().zip(own_start).map_or(start.elapsed(), |(end, start)| end - start);
    (result, took)
}

/// A generator of numbers (Knuth's MMIX), of which the high bits are random enough.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % bound
    }
}

/// Damages `bytes` in one to four places.
fn mutate(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    const OPCODES: &[u8] =
        b".(012NIJKMLFGSTUVXBC])}ltdaesupqrghjcibRoQP\x80\x81\x82\x85\x86\x87\x88\x89\
        \x8a\x8b\x8c\x8d\x8e\x8f\x90\x91\x92\x93\x94\x95\x96\x97\x98";
    for _ in 0..=random.below(4) {
        if bytes.is_empty() {
            return;
        }
        let at = random.below(bytes.len());
        match random.below(9) {
            0 => bytes[at] = random.below(256) as u8,
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes[at] = OPCODES[random.below(OPCODES.len())],
            3 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            4 => bytes.insert(at, OPCODES[random.below(OPCODES.len())]),
            5 => drop(bytes.drain(at..(at + 1 + random.below(8)).min(bytes.len()))),
            6 => {
                // A piece again, elsewhere.
                let piece = bytes[at..(at + 1 + random.below(32)).min(bytes.len())].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, piece);
            }
            7 => {
                // A piece of another file.
                let from = random.below(other.len());
                let piece = &other[from..(from + 1 + random.below(64)).min(other.len())];
                bytes.splice(at..at, piece.iter().copied());
            }
            _ => {
                // A length.
                let value =
                    [0, 1, u32::MAX, 1 << 31, random.below(1 << 20) as u32][random.below(5)];
                let end = (at + 4).min(bytes.len());
                bytes[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
            }
        }
    }
}

/// Files of random contents in each of the formats that are written: all types, also without elements
/// or axes, names in any script.
#[test]
fn three_hundred_files_of_our_own_read_back_equal() {
    const TYPES: &[Dtype] = &[
        Dtype::F64,
        Dtype::F32,
        Dtype::F16,
        Dtype::BF16,
        Dtype::C64,
        Dtype::I64,
        Dtype::I32,
        Dtype::I16,
        Dtype::I8,
        Dtype::U64,
        Dtype::U32,
        Dtype::U16,
        Dtype::U8,
        Dtype::BOOL,
        Dtype::F8_E4M3,
        Dtype::F8_E5M2,
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    let mut random = Random(300);
    for file in 0..300 {
        let form = file % 3;
        let mut wanted = Checkpoint::default();
        for i in 0..random.below(9) {
            // NumPy has no floats of eight bits.
            let types = if form == 2 { TYPES.len() - 2 } else { TYPES.len() };
            let dtype = TYPES[random.below(types)];
            let shape: Vec<usize> = (0..random.below(6)).map(|_| random.below(5)).collect();
            let len = shape.iter().product::<usize>() * dtype.bitsize() / 8;
            let below = if dtype == Dtype::BOOL { 2 } else { 256 };
            let bytes = (0..len).map(|_| random.below(below) as u8).collect();
            let head = ["", "sem_seg_head.", "backbone.", "ü🦀.", "a b\n\"'."][random.below(5)];
            wanted.insert(format!("{head}{i}"), Entry::new(dtype, &shape[..], bytes));
        }
        if form < 2 {
            wanted.metadata.insert("config".into(), "a = 1\n".repeat(random.below(50)));
            wanted.metadata.insert("palette".into(), "[[1,2,3],[0,128,255]]".into());
        }
        match form {
            0 => wanted.write_atomic(&path).unwrap(),
            1 => wanted.write_torch(&path).unwrap(),
            _ => wanted.write_numpy(&path).unwrap(),
        }
        let found = Checkpoint::read(&path).unwrap();
        if form == 2 {
            // NumPy lacks it, too; F32 holds the same numbers.
            for entry in wanted.entries.values_mut().filter(|e| e.dtype() == Dtype::BF16) {
                *entry = entry.to_dtype(Dtype::F32).unwrap();
            }
        }
        assert_eq!(found, wanted, "file {file}");
    }
}

/// No damage may cause a panic, a long wait, or arrays that are larger than the file can tell.
///
/// `SEMASK_GPU_MUTATIONS` is how many files are tried; a million take half a minute.
#[test]
fn damaged_files_are_errors_or_consistent() {
    let rounds = std::env::var("SEMASK_GPU_MUTATIONS").map_or(200_000, |n| n.parse().unwrap());
    let files: Vec<_> = files().into_iter().collect();
    let mut random = Random(1);
    let (mut refused, mut slowest) = (0, Duration::ZERO);
    for round in 0..rounds {
        let (name, bytes) = &files[random.below(files.len())];
        let mut bytes = bytes.clone();
        mutate(&mut bytes, &files[random.below(files.len())].1, &mut random);
        let (result, took) = timed(name, &bytes);
        slowest = slowest.max(took);
        assert!(took < Duration::from_secs(1), "round {round}, {name}");
        match result {
            Ok(found) => {
                let mut total = 0;
                for (array, entry) in &found.entries {
                    let bits = entry.shape().len() * entry.dtype().bitsize();
                    assert_eq!(entry.bytes().len() * 8, bits, "round {round}, {name}: {array}");
                    total += entry.bytes().len();
                }
                assert!(total <= 4 * bytes.len() + (1 << 20), "round {round}, {name}: {total}");
            }
            Err(error @ Error::Invalid { .. }) => {
                refused += 1;
                let words = error.to_string();
                assert!(words.contains(name.as_str()) && words.len() < 600, "{words}");
            }
            Err(error) => panic!("round {round}, {name}: {error:?}"),
        }
    }
    println!("{rounds} files, {refused} refused, slowest {slowest:?}");
    assert!((rounds / 2..rounds).contains(&refused), "{refused}");
}

/// A NumPy array `[1]` of F32 on the stack.
const ARRAY: &[u8] =
    b"cnumpy.core.numeric\n_frombuffer\n(C\x04\0\0\x80\x3fcnumpy\ndtype\n(X\x02\0\0\0f4\x89\x88tR\
    (K\x01tX\x01\0\0\0CtR";

/// A pickle in protocol 2 of the given opcodes.
fn program(opcodes: &[u8]) -> Vec<u8> {
    [b"\x80\x02", opcodes, b"."].concat()
}

/// A file in the old format whose object is made by `opcodes`, with a storage `s` of four F32.
fn legacy(opcodes: &[u8]) -> Vec<u8> {
    let magic = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
    let parts = [&magic[..], b"M\xe9\x03", b"}", opcodes, b"]X\x01\0\0\0sa"].map(program);
    [&parts.concat()[..], &4_u64.to_le_bytes(), &[0; 16]].concat()
}

/// The storage `s` on the stack.
const STORAGE: &[u8] =
    b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0sX\x03\0\0\0cpuK\x04tQ";

/// A view of `s` on the stack.
fn view(offset: u32, shape: &[u32], strides: &[u32]) -> Vec<u8> {
    let int = |v: &u32| [b"\x8a\x05", &v.to_le_bytes()[..], b"\0"].concat();
    let tuple =
        |vs: &[u32]| [b"(".to_vec(), vs.iter().flat_map(int).collect(), b"t".to_vec()].concat();
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n(",
        STORAGE,
        &int(&offset),
        &tuple(shape),
        &tuple(strides),
        b"\x89}tR",
    ]
    .concat()
}

#[track_caller]
fn refused(bytes: &[u8], reason: &str) {
    let (result, took) = timed("x.pth", bytes);
    let error = result.unwrap_err().to_string();
    assert!(error.starts_with("x.pth: ") && error.contains(reason), "{error}");
    assert!(error.len() < 600, "{error}");
    assert!(took < Duration::from_secs(1), "{error}: {took:?}");
}

#[test]
fn whatever_wants_to_run_is_refused_by_its_name() {
    for (module, name) in [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("torch", "load"),
        ("torch.serialization", "load"),
        ("numpy", "load"),
        ("torch._utils", "_rebuild_qtensor"),
        ("torch", "ComplexDoubleStorage"),
        ("collections", "OrderedDict.fromkeys"),
        ("__torch__.model", "Net"),
    ] {
        let reason = format!("the file wants to run {module}.{name}, which is not read");
        let text = |t: &str| [b"X", &(t.len() as u32).to_le_bytes()[..], t.as_bytes()].concat();
        let lines = format!("{module}\n{name}\n").into_bytes();
        let global = [b"c", &lines[..]].concat();
        let stack_global = [text(module), text(name), b"\x93".to_vec()].concat();
        let call = b"(X\x04\0\0\0trueetR";
        for opcodes in [
            [&global[..], b"(X\x04\0\0\0truetR"].concat(),
            [&stack_global[..], call].concat(),
            [b"(", &b"i"[..], &lines].concat(),
            // Also where nothing would come of it.
            [b"}(K\x01", &global[..], b"u0N"].concat(),
        ] {
            refused(&program(&opcodes), &reason);
            refused(&legacy(&opcodes), &reason);
        }
    }
    refused(&program(b"cos\n\x1b[31m\n"), "the file wants to run os.\\u{1b}[31m, which");
}

#[test]
fn views_stay_within_their_storage() {
    let good = read("x", &legacy(&view(1, &[2, 2], &[0, 2]))).unwrap();
    assert_eq!(good.get("tensor").unwrap().shape().dims(), [2, 2]);
    let no_elements = read("x", &legacy(&view(9, &[0, 2], &[2, 1]))).unwrap();
    assert_eq!(no_elements.get("tensor").unwrap().shape().dims(), [0, 2]);
    const MOST: u32 = u32::MAX;
    for (offset, shape, strides) in [
        (1, &[4][..], &[1][..]),
        (0, &[2, 2], &[3, 1]),
        (4, &[1], &[1]),
        (MOST, &[1], &[1]),
        (0, &[MOST; 4], &[MOST; 4]),
        (0, &[MOST; 3], &[0; 3]),
        (0, &[MOST, MOST, MOST, 0], &[1; 4]),
    ] {
        refused(&legacy(&view(offset, shape, strides)), "does not lie in its storage");
    }
    refused(&legacy(&view(0, &[1], &[])), "strides");
    refused(&legacy(&view(0, &[1; 65], &[1; 65])), "65 axes");
    // It lies within, but would take four gigabytes.
    refused(&legacy(&view(0, &[1 << 30], &[0])), "many times larger than the file");
}

#[test]
fn lengths_that_lie_allocate_nothing() {
    for opcodes in [
        &b"X\xff\xff\xff\xff"[..],
        b"B\xff\xff\xff\xff",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x96\0\0\0\0\0\0\0\x7f",
        b"\x8b\xff\xff\xff\x7f",
        b"\x95\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        refused(&program(opcodes), "was cut short or damaged");
    }
}

#[test]
fn what_contains_itself_comes_to_an_end() {
    refused(&program(b"]q\0h\0a"), "nested more than");
    refused(&program(b"}q\0(X\x01\0\0\0ah\0u"), "nested more than");
    // A list of the list before, twice; at the bottom an array.
    let mut bomb = [b"]", ARRAY, b"aq\0"].concat();
    for _ in 0..60 {
        bomb.extend(b"0](h\0h\0eq\0");
    }
    refused(&program(&bomb), "many times larger than the file");
    let deep = [vec![b']'; 100_000], vec![b'a'; 99_999]].concat();
    refused(&program(&deep), "nested more than");
    refused(&program(&vec![b'('; 1 << 20]), "takes a value where there is none");
    refused(&program(&vec![b'N'; 1 << 22]), "values");
}

#[test]
fn small_files_stay_cheap() {
    // An array of a wide stack's size must not be set aside for each of many tuples.
    let wide = [b"(", &vec![b'N'; 500_000][..], b"t0"].concat();
    let tuples = [wide, b"(t0".repeat(400_000), b"N".to_vec()].concat();
    assert!(read("x", &program(&tuples)).unwrap().entries.is_empty());
    // The same text decoded again and again.
    let text = [b"X\xa0\x86\x01\0", &vec![b'a'; 100_000][..], b"q\x010"].concat();
    let again = b"c_codecs\nencode\n(h\x01X\x06\0\0\0latin1tR0".repeat(1000);
    refused(&program(&[text, again].concat()), "over and over");
    // A long tuple as arguments, again and again.
    let long = [b"(", &vec![b'N'; 100_000][..], b"tq\x010"].concat();
    let again = b"ccollections\nOrderedDict\nh\x01R0".repeat(1000);
    refused(&program(&[long, again].concat()), "unexpected arguments");
}

#[test]
fn other_kinds_of_files_are_named() {
    let tar = [&[b'x'; 257][..], b"ustar", &[0; 250]].concat();
    for (bytes, reason) in [
        (&b"<!DOCTYPE html><html></html>"[..], "a web page"),
        (b"\n<html>", "a web page"),
        (b"\x1f\x8b\x08\0 and so on", "gzip"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (&tar, "a tar archive"),
        (b"PK\x03\x04 and so on", "cut short or damaged"),
        (
            b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            "neither a PyTorch file nor safetensors",
        ),
        (b"", "it has 0 bytes"),
    ] {
        refused(bytes, reason);
    }
    // A pickle of something else has no arrays.
    assert!(read("x", &program(b"K\x01")).unwrap().entries.is_empty());
}
