//! What a kernel is: an entry point of a WGSL file and how the host fills its bindings.

use std::collections::HashMap;
use std::sync::{LazyLock, RwLock};

/// One compute entry point of a file under `shaders/`.
#[derive(Debug)]
pub struct Kernel {
    /// The file under `shaders/`, without its extension.
    pub file: &'static str,
    /// The entry point's name.
    pub entry: &'static str,
    /// WGSL: the kernel's own file first, shared functions of `shaders/lib/` after it, so that
    /// line numbers in compiler messages are those of the file.
    pub sources: &'static [Source],
    /// Fields of the host's `Params`, bound to `params`.
    pub params: &'static [Field],
    /// Variables of the shader that the host binds, in the order in which it passes them.
    pub bindings: &'static [&'static str],
    /// Whether it is for devices that have [`Profile::lanes`](super::Profile::lanes) only.
    pub lanes: bool,
}

/// One file of WGSL, and the file that takes its place where the device has subgroups.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// The text for any device.
    pub text: &'static str,
    /// The same functions made of subgroup operations.
    pub subgroup: Option<&'static str>,
}

/// `source!("file")` or `source!("file", subgroup "file")`: files under `shaders/`.
macro_rules! source {
    ($file:literal) => {
        $crate::gpu::Source {
            text: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $file, ".wgsl")),
            subgroup: None,
        }
    };
    ($file:literal, subgroup $other:literal) => {
        $crate::gpu::Source {
            text: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $file, ".wgsl")),
            subgroup: Some(include_str!(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/shaders/",
                $other,
                ".wgsl"
            ))),
        }
    };
}
pub(crate) use source;

/// A field of a `Params` struct: its name and byte offset.
pub type Field = (&'static str, usize);

/// What a kernel does with a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `var<storage, read>`, or a texture
    Read,
    /// `var<storage, read_write>`, or a storage texture
    Write,
    /// `var<uniform>`
    Uniform,
}

impl Kernel {
    /// The entry point `entry` of `shaders/{file}.wgsl`.
    pub const fn new(
        file: &'static str,
        entry: &'static str,
        sources: &'static [Source],
        params: &'static [Field],
        bindings: &'static [&'static str],
    ) -> Self {
        Self { file, entry, sources, params, bindings, lanes: false }
    }

    /// The same for devices that have [`Profile::lanes`](super::Profile::lanes) only.
    pub const fn on_lanes(self) -> Self {
        Self { lanes: true, ..self }
    }

    /// `file.entry`.
    pub fn label(&self) -> String {
        format!("{}.{}", self.file, self.entry)
    }

    /// Whether there is a variant made of subgroup operations.
    pub fn has_subgroup_variant(&self) -> bool {
        self.sources.iter().any(|s| s.subgroup.is_some())
    }

    /// The whole WGSL module; `subgroup` chooses the variant made of subgroup operations.
    pub fn wgsl(&self, subgroup: bool) -> String {
        let pick = |s: &Source| if subgroup { s.subgroup.unwrap_or(s.text) } else { s.text };
        let parts: Vec<_> = self.sources.iter().map(pick).collect();
        parts.concat()
    }

    /// The binding number and access of `params` and then of [`bindings`](Self::bindings).
    ///
    /// Read off the declarations, each of which is one line of the form
    /// `@group(0) @binding(3) var<storage, read> dy: array<f32>;`, or of a texture, without `<…>`.
    ///
    /// # Panics
    ///
    /// If the shader does not declare one of them.
    pub fn binding_numbers(&self) -> &'static [(u32, Access)] {
        // A plan asks for every dispatch, so each is read once. Equal addresses are equal lists.
        type Known = RwLock<HashMap<[usize; 4], &'static [(u32, Access)]>>;
        static KNOWN: LazyLock<Known> = LazyLock::new(Known::default);
        let Self { sources, bindings, .. } = self;
        let key =
            [sources.as_ptr().addr(), sources.len(), bindings.as_ptr().addr(), bindings.len()];
        if let Some(known) = KNOWN.read().expect("no panic while held").get(&key) {
            return known;
        }
        let numbers: &'static [(u32, Access)] = self.read_binding_numbers().leak();
        KNOWN.write().expect("no panic while held").insert(key, numbers);
        numbers
    }

    fn read_binding_numbers(&self) -> Vec<(u32, Access)> {
        let lines = self.sources.iter().flat_map(|s| s.text.lines());
        let declared: Vec<_> = lines.filter_map(declaration).collect();
        let find = |name: &str| {
            let found = declared.iter().find(|(declared, ..)| *declared == name);
            let (_, number, access) =
                found.unwrap_or_else(|| panic!("{}.wgsl declares no {name}", self.file));
            (*number, *access)
        };
        std::iter::once("params").chain(self.bindings.iter().copied()).map(find).collect()
    }
}

/// The name, binding number and access that `line` declares.
fn declaration(line: &str) -> Option<(&str, u32, Access)> {
    let (number, rest) = line.strip_prefix("@group(0) @binding(")?.split_once(") var")?;
    let (space, rest) = match rest.strip_prefix('<') {
        Some(rest) => rest.split_once('>')?,
        None => ("", rest),
    };
    let (name, ty) = rest.split_once(':')?;
    let name = name.trim();
    let access = match space {
        "" if !ty.trim().starts_with("texture_storage") => Access::Read,
        "uniform" => Access::Uniform,
        "storage, read" => Access::Read,
        _ => Access::Write,
    };
    Some((name, number.parse().ok()?, access))
}

/// Small constants of one dispatch, bound as the uniform `params`.
pub trait Params: bytemuck::Pod {
    /// Fields in order of declaration.
    const FIELDS: &'static [Field];
}

/// Declares the host twin of a WGSL `Params` struct.
macro_rules! params {
    ($(#[$doc:meta])* struct $name:ident { $($field:ident: $ty:ty),+ $(,)? }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
        struct $name { $($field: $ty),+ }

        impl $crate::gpu::Params for $name {
            const FIELDS: &'static [$crate::gpu::Field] =
                &[$((stringify!($field), std::mem::offset_of!($name, $field))),+];
        }
    };
}
pub(crate) use params;
