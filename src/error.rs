//! The crate's error type.

use std::path::{Path, PathBuf};

use crate::Shape;

/// `Result` with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong at the crate's edges: devices, files, configurations, user input.
///
/// Shape mistakes inside a model are bugs, not errors: ops panic on them and say which op and
/// which shapes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No adapter on this machine offers what the engine needs.
    #[error("no usable GPU: {0}")]
    NoGpu(String),

    /// The GPU ran out of memory or was lost while work was in flight.
    #[error("GPU failed while {doing}: {reason}")]
    Device {
        /// What the engine was doing, such as "reading a tensor back".
        doing: &'static str,
        /// The driver's or wgpu's words.
        reason: String,
    },

    /// The device cannot hold or run what was asked for.
    #[error("{what} needs {needed} but the device allows {allowed}")]
    Limit {
        /// What was asked for, such as "tensor `decode_head.logits`".
        what: String,
        /// How much it takes, with its unit.
        needed: String,
        /// How much there is, with its unit.
        allowed: String,
    },

    /// A file could not be read or written.
    #[error("cannot {doing} {}: {source}", .path.display())]
    File {
        /// "read", "write", "create".
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// The operating system's words.
        source: std::io::Error,
    },

    /// Something the user gave is wrong: a file's contents, a configuration, an option.
    #[error("{subject}: {reason}")]
    Invalid {
        /// The culprit: a file, a key of a recipe, an option.
        subject: String,
        /// What is wrong with it and, where that is known, what would be right.
        reason: String,
    },

    /// A checkpoint does not fit the model.
    #[error("{}: parameter {name} is {found:?} but the model wants {wanted:?}", .path.display())]
    ParameterShape {
        /// The checkpoint.
        path: PathBuf,
        /// The parameter's name in it.
        name: String,
        /// Its shape there.
        found: Shape,
        /// The model's shape.
        wanted: Shape,
    },

    /// A checkpoint lacks parameters of the model.
    #[error("{}: missing {}", .path.display(), list(.names))]
    MissingParameters {
        /// The checkpoint.
        path: PathBuf,
        /// What is missing.
        names: Vec<String>,
    },
}

impl Error {
    /// [`Error::Invalid`] about `subject`.
    pub fn invalid(subject: impl ToString, reason: impl Into<String>) -> Self {
        Self::Invalid { subject: subject.to_string(), reason: reason.into() }
    }

    /// [`Error::Invalid`] about the contents of the file `path`.
    pub fn invalid_file(path: &Path, reason: impl Into<String>) -> Self {
        Self::invalid(path.display(), reason)
    }

    /// For `map_err`: [`Error::File`] about `path`.
    pub fn file(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { doing, path, source }
    }
}

/// The first few names, and how many more there are.
pub(crate) fn list(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
