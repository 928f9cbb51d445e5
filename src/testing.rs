//! What unit tests share.

use std::path::{Path, PathBuf};

/// A file of reference numbers: from `kernels-tests/fixtures`, or from `shared/fixtures` beside the
/// checkout. Says so where it is in neither: the published crate comes without them.
pub(crate) fn fixture(name: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = [root.join("kernels-tests/fixtures"), root.join("../shared/fixtures")];
    let found = folders.iter().map(|folder| folder.join(name)).find(|path| path.exists());
    if found.is_none() {
        println!("skipped: no fixture {name}");
    }
    found
}
