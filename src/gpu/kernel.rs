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
    /// What tells it from others of that name, which are made of other [`sources`](Self::sources); mostly empty.
    pub variant: &'static str,
    /// WGSL: the kernel's own file first, shared functions of `shaders/lib/` after it, so that
    /// line numbers in compiler messages are those of the file.
    pub sources: &'static [Source],
    /// Fields of the host's `Params`, which the shader has as `params`.
    pub params: &'static [Field],
    /// Variables of the shader that the host binds, in the order in which it passes them.
    pub bindings: &'static [&'static str],
    /// Whether it is for devices that have [`Profile::lanes`](super::Profile::lanes) only.
    pub lanes: bool,
    /// Whether it is for devices that have [`Profile::matrix`](super::Profile::matrix) only, and has but the
    /// dialect with numbers of 16 bits.
    pub matrices: bool,
}

/// One file of WGSL, and the file that takes its place in another [`Dialect`].
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// The text for any device.
    pub text: &'static str,
    /// The same functions made of subgroup operations.
    pub subgroup: Option<&'static str>,
    /// The same names for numbers of 16 bits.
    pub half: Option<&'static str>,
}

/// `source!("file")`, `source!("file", subgroup "file")` or `source!("file", half "file")`: files under
/// `shaders/`.
macro_rules! source {
    (text $file:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $file, ".wgsl"))
    };
    ($file:literal $(, $dialect:ident $other:literal)?) => {{
        #[allow(unused_mut, reason = "most files have one dialect")]
        let mut source = $crate::gpu::Source {
            text: $crate::gpu::source!(text $file),
            subgroup: None,
            half: None,
        };
        $(source.$dialect = Some($crate::gpu::source!(text $other));)?
        source
    }};
}
pub(crate) use source;

/// What a kernel's WGSL makes use of, beyond what every device has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Dialect {
    /// Subgroup operations.
    pub subgroup: bool,
    /// Floating-point numbers of 16 bits: bindings declared as arrays of `Real` have them, others do not.
    pub half: bool,
    /// `params` as immediates, which come with a dispatch, in place of a uniform buffer.
    pub immediates: bool,
}

/// How every kernel declares its `Params`, and how it does with immediates.
const PARAMS: [&str; 2] = ["@group(0) @binding(0) var<uniform> params:", "var<immediate> params:"];

/// A field of a `Params` struct: its name and byte offset.
pub type Field = (&'static str, usize);

/// A variable of a shader that the host binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// `@binding(…)`
    pub number: u32,
    /// What the kernel does with it.
    pub access: Access,
    /// Whether its elements are of 16 bits in the [`Dialect`] that has them.
    pub real: bool,
}

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
        let variant = "";
        Self { file, entry, variant, sources, params, bindings, lanes: false, matrices: false }
    }

    /// The same for devices that have [`Profile::lanes`](super::Profile::lanes) only.
    pub const fn on_lanes(self) -> Self {
        Self { lanes: true, ..self }
    }

    /// `file.entry`, and the variant if it has a name.
    pub fn label(&self) -> String {
        let Self { file, entry, variant, .. } = self;
        let space = if variant.is_empty() { "" } else { " " };
        format!("{file}.{entry}{space}{variant}")
    }

    /// The dialects that there are of it.
    pub fn dialects(&self) -> Vec<Dialect> {
        let subgroups = self.sources.iter().any(|s| s.subgroup.is_some());
        let halves = self.sources.iter().any(|s| s.half.is_some());
        let all = (0..8).map(|bits| Dialect {
            subgroup: bits & 1 != 0,
            half: bits & 2 != 0,
            immediates: bits & 4 != 0,
        });
        all.filter(|d| (subgroups || !d.subgroup) && (halves || !d.half))
            .filter(|d| d.half || !self.matrices)
            .collect()
    }

    /// The whole WGSL module.
    pub fn wgsl(&self, dialect: Dialect) -> String {
        let pick = |source: &Source| match source {
            Source { half: Some(half), .. } if dialect.half => *half,
            Source { subgroup: Some(subgroup), .. } if dialect.subgroup => *subgroup,
            Source { text, .. } => *text,
        };
        // Before the comment that every file begins with, so that line numbers stay.
        let half = if dialect.half { "enable f16; " } else { "" };
        let matrices = if self.matrices { "enable wgpu_cooperative_matrix; " } else { "" };
        let text: String =
            [half, matrices].into_iter().chain(self.sources.iter().map(pick)).collect();
        let [uniform, immediate] = PARAMS;
        if dialect.immediates { text.replacen(uniform, immediate, 1) } else { text }
    }

    /// `params` and then [`bindings`](Self::bindings), as the shader declares them.
    ///
    /// Read off the declarations, each of which is one line of the form
    /// `@group(0) @binding(3) var<storage, read> dy: array<f32>;`, or of a texture, without `<…>`. Those of
    /// `params` are of the [`Dialect`] that has it in a uniform buffer.
    ///
    /// # Panics
    ///
    /// If the shader does not declare one of them.
    pub fn declarations(&self) -> &'static [Binding] {
        // A plan asks for every dispatch, so each is read once. Equal addresses are equal lists.
        type Known = RwLock<HashMap<[usize; 4], &'static [Binding]>>;
        static KNOWN: LazyLock<Known> = LazyLock::new(Known::default);
        let Self { sources, bindings, .. } = self;
        let key =
            [sources.as_ptr().addr(), sources.len(), bindings.as_ptr().addr(), bindings.len()];
        if let Some(known) = KNOWN.read().expect("no panic while held").get(&key) {
            return known;
        }
        let declared: &'static [Binding] = self.read_declarations().leak();
        KNOWN.write().expect("no panic while held").insert(key, declared);
        declared
    }

    fn read_declarations(&self) -> Vec<Binding> {
        let lines = self.sources.iter().flat_map(|s| s.text.lines());
        let declared: Vec<_> = lines.filter_map(declaration).collect();
        let find = |name: &str| {
            let found = declared.iter().find(|(declared, _)| *declared == name);
            found.unwrap_or_else(|| panic!("{}.wgsl declares no {name}", self.file)).1
        };
        std::iter::once("params").chain(self.bindings.iter().copied()).map(find).collect()
    }
}

/// The name and binding that `line` declares.
fn declaration(line: &str) -> Option<(&str, Binding)> {
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
    Some((name, Binding { number: number.parse().ok()?, access, real: ty.contains("Real") }))
}

/// Small constants of one dispatch, which the shader has as `params`: immediates or a uniform buffer.
pub trait Params: bytemuck::Pod {
    /// Fields in order of declaration.
    const FIELDS: &'static [Field];
}

/// Declares the host twin of a WGSL `Params` struct.
macro_rules! params {
    ($(#[$doc:meta])* $vis:vis struct $name:ident { $($field:ident: $ty:ty),+ $(,)? }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
        $vis struct $name { $($field: $ty),+ }

        impl $crate::gpu::Params for $name {
            const FIELDS: &'static [$crate::gpu::Field] =
                &[$((stringify!($field), std::mem::offset_of!($name, $field))),+];
        }
    };
}
pub(crate) use params;
