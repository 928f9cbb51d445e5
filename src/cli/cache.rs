//! What the program keeps on disk from one start to the next: pipelines, as the driver compiled them, and
//! the variants of kernels that `tune` has chosen.
//!
//! A cache may vanish at any time, and may be of any age: what is not whole, or of another adapter or
//! driver, counts as absent and is written anew. Pipelines that cannot be written are nobody's loss.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::checkpoint::{RealDisk, replace_file};
use crate::gpu::Tuning;
use crate::{Error, Gpu, Result};
use etcetera::BaseStrategy as _;
use serde::{Deserialize, Serialize};

/// Names another folder, or says `off`.
const VARIABLE: &str = "SEMASK_GPU_CACHE";

/// Where caches are; none if there shall be none.
fn folder() -> Option<PathBuf> {
    match std::env::var_os(VARIABLE) {
        Some(off) if off == "off" || off.is_empty() => None,
        Some(folder) => Some(folder.into()),
        None => Some(etcetera::choose_base_strategy().ok()?.cache_dir().join("semask-gpu")),
    }
}

/// The first line of a file: whose it is, and whether it is whole.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    /// [`Gpu::identity`]
    device: String,
    /// The program's: its kernels may be others.
    version: String,
    crc32: u32,
}

/// A device whose pipelines are to be saved, and those that there were.
static OPEN: Mutex<Option<(Gpu, Option<Vec<u8>>)>> = Mutex::new(None);

/// Gives `gpu` the pipelines of earlier starts, and has [`save`] keep its own.
pub(super) fn restore(gpu: &Gpu) {
    let Some(folder) = folder() else { return };
    let found = read(&path(&folder, &gpu.identity(), PIPELINES), &gpu.identity());
    gpu.restore(found.as_deref());
    *OPEN.lock().expect("no panic while held") = Some((gpu.clone(), found));
}

/// Keeps the pipelines of the device that [`restore`] was last called with.
pub(super) fn save() {
    let Some((gpu, before)) = OPEN.lock().expect("no panic while held").take() else { return };
    let (Some(folder), Some(now)) = (folder(), gpu.compiled()) else { return };
    if before.as_deref() != Some(&now) {
        let _ = write(&path(&folder, &gpu.identity(), PIPELINES), &gpu.identity(), &now);
    }
}

/// What [`keep_tuning`] kept for `gpu`.
pub(super) fn tuning(gpu: &Gpu) -> Tuning {
    let found =
        folder().and_then(|folder| read(&path(&folder, &gpu.identity(), TUNING), &gpu.identity()));
    found.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// Keeps `tuning` for later starts on `gpu`, and answers where.
pub(super) fn keep_tuning(gpu: &Gpu, tuning: &Tuning) -> Result<PathBuf> {
    let folder = folder().ok_or_else(|| {
        let reason = "names no folder, so that choices cannot be kept";
        Error::invalid(VARIABLE, reason)
    })?;
    let path = path(&folder, &gpu.identity(), TUNING);
    let json = serde_json::to_string_pretty(tuning).expect("plain values");
    write(&path, &gpu.identity(), json.as_bytes())?;
    Ok(path)
}

const PIPELINES: &str = "pipelines";
const TUNING: &str = "tuning";

/// One file per device and kind.
fn path(folder: &Path, device: &str, kind: &str) -> PathBuf {
    folder.join(format!("{:08x}.{kind}", crc32fast::hash(device.as_bytes())))
}

fn header(device: &str, bytes: &[u8]) -> Header {
    Header {
        device: device.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        crc32: crc32fast::hash(bytes),
    }
}

fn read(path: &Path, device: &str) -> Option<Vec<u8>> {
    let mut bytes = std::fs::read(path).ok()?;
    let end = bytes.iter().position(|&byte| byte == b'\n')?;
    let found: Header = serde_json::from_slice(&bytes[..end]).ok()?;
    bytes.drain(..=end);
    (found == header(device, &bytes)).then_some(bytes)
}

fn write(path: &Path, device: &str, bytes: &[u8]) -> Result<()> {
    let mut head = serde_json::to_string(&header(device, bytes)).expect("plain values");
    head.push('\n');
    let folder = path.parent().expect("files are in a folder");
    std::fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
    replace_file(&RealDisk, path, (head.len() + bytes.len()) as u64, |out| {
        out.write_all(head.as_bytes())?;
        out.write_all(bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_damaged_or_of_another_device_counts_as_absent() {
        let folder = tempfile::tempdir().unwrap();
        let file = path(&folder.path().join("new"), "a", TUNING);
        assert_eq!(read(&file, "a"), None);
        let bytes = b"line\nline\xff".to_vec();
        write(&file, "a", &bytes).unwrap();
        assert_eq!(read(&file, "a").as_ref(), Some(&bytes));
        assert_eq!(read(&file, "b"), None);
        assert_ne!(path(folder.path(), "a", TUNING), path(folder.path(), "b", TUNING));

        let whole = std::fs::read(&file).unwrap();
        for at in 0..whole.len() {
            std::fs::write(&file, &whole[..at]).unwrap();
            assert_eq!(read(&file, "a"), None, "cut at {at}");
            let mut changed = whole.clone();
            changed[at] ^= 1;
            std::fs::write(&file, changed).unwrap();
            assert_eq!(read(&file, "a"), None, "changed at {at}");
        }
        write(&file, "a", &bytes).unwrap();
        assert_eq!(read(&file, "a"), Some(bytes));
    }
}
