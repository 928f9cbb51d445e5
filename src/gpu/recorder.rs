//! [`Recorder`]: the list of dispatches that ops append to.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use super::host::HostStep;
use super::{Access, Dialect, Kernel, Memory, Params, Profile};
use crate::tensor::{Place, TensorId};
use crate::{Shape, Tensor};

/// WebGPU's limit on workgroups per dimension.
pub(super) const MAX_GROUPS: usize = 65_535;

/// How many workgroups a dispatch launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid(pub [u32; 3]);

impl Grid {
    /// `rows` workgroups in a line, which continues in `y` beyond 65 535. A kernel finds its own
    /// as `group.x + group.y * groups.x`, and returns where that is beyond the last. If its `Params`
    /// have a field `first_group`, plans may cut the dispatch into shorter ones, and the kernel adds it.
    pub fn rows(rows: usize) -> Self {
        Self::rows_of(rows, 1)
    }

    /// [`rows`](Self::rows), `batch` times in `z`.
    ///
    /// # Panics
    ///
    /// If that is more than a device can launch.
    pub fn rows_of(rows: usize, batch: usize) -> Self {
        let x = rows.clamp(1, MAX_GROUPS);
        let y = rows.div_ceil(x).max(1);
        assert!(y <= MAX_GROUPS && batch <= MAX_GROUPS, "{rows} × {batch} workgroups");
        Self([x as u32, y as u32, batch.max(1) as u32])
    }

    /// One invocation per element, 64 to a workgroup.
    pub fn elements(len: usize) -> Self {
        Self::rows(len.div_ceil(64))
    }
}

/// One dispatch over virtual tensors.
#[derive(Clone, Debug)]
pub struct Dispatch {
    pub(super) kernel: &'static Kernel,
    pub(super) constants: Vec<(&'static str, f64)>,
    pub(super) dialect: Dialect,
    pub(super) params: Vec<u8>,
    pub(super) tensors: Vec<Tensor>,
    pub(super) grid: Grid,
    pub(super) flops: u64,
    pub(super) spare: bool,
    pub(super) scope: Arc<str>,
    /// Shapes that a variant was chosen for; see `decide`.
    pub(super) class: Option<Arc<str>>,
}

impl Dispatch {
    /// Sets an `override` constant of the shader.
    pub fn constant(&mut self, name: &'static str, value: impl Into<f64>) -> &mut Self {
        self.constants.push((name, value.into()));
        self
    }

    /// Chooses the variant made of subgroup operations.
    pub fn subgroup(&mut self, yes: bool) -> &mut Self {
        self.dialect.subgroup = yes && self.kernel.sources.iter().any(|s| s.subgroup.is_some());
        self
    }

    /// Chooses the variant in which the elements of bindings of the type `Real` have 16 bits.
    pub fn half(&mut self, yes: bool) -> &mut Self {
        self.dialect.half = yes && self.kernel.sources.iter().any(|s| s.half.is_some());
        self
    }

    /// States the arithmetic, for estimates: a multiply-add is 2.
    pub fn flops(&mut self, flops: usize) -> &mut Self {
        self.flops = flops as u64;
        self
    }

    /// Says that it need not run if nothing reads what it writes: the tape then leaves it out.
    pub(crate) fn spare(&mut self) -> &mut Self {
        self.spare = true;
        self
    }

    /// Where `Params` say which workgroup is the first, in kernels that can be cut along their grid.
    pub(super) fn first_group(&self) -> Option<usize> {
        self.kernel.params.iter().find(|(name, _)| *name == "first_group").map(|(_, at)| *at)
    }

    /// Whether `tensor` is bound to be written.
    pub(super) fn writes(&self, tensor: &Tensor) -> bool {
        let mut bound = self.tensors.iter().zip(&self.kernel.declarations()[1..]);
        bound.any(|(t, binding)| t.id() == tensor.id() && binding.access == Access::Write)
    }

    /// Bytes of all bound tensors: what a kernel moves that touches each element once.
    pub(super) fn bytes(&self) -> u64 {
        self.tensors.iter().map(Tensor::bytes).sum()
    }
}

/// A kernel with its constants: what a pipeline is compiled of.
#[derive(Clone, Debug)]
pub struct Program {
    /// The entry point.
    pub kernel: &'static Kernel,
    /// What its WGSL makes use of.
    pub dialect: Dialect,
    /// `override` constants of the shader.
    pub constants: Vec<(&'static str, f64)>,
}

impl PartialEq for Program {
    fn eq(&self, other: &Self) -> bool {
        // Sources may differ where names do not.
        std::ptr::eq(self.kernel, other.kernel)
            && (self.dialect, &self.constants) == (other.dialect, &other.constants)
    }
}

/// An ordered list of dispatches over virtual tensors, with host steps between them. Makes no use of the GPU.
#[derive(Clone, Debug)]
pub struct Recorder {
    profile: Profile,
    scope: Arc<str>,
    pub(super) class: Option<Arc<str>>,
    pub(super) dispatches: Vec<Dispatch>,
    pub(super) host_steps: Vec<HostStep>,
    /// Planned tensors whose elements shall be at a pinned place.
    pub(super) aliases: HashMap<TensorId, Tensor>,
}

impl Recorder {
    /// An empty recording for devices like `profile`.
    pub fn new(profile: &Profile) -> Self {
        Self {
            profile: profile.clone(),
            scope: "".into(),
            class: None,
            dispatches: Vec::new(),
            host_steps: Vec::new(),
            aliases: HashMap::new(),
        }
    }

    /// The kind of device that the recording is for.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// The part of the model that dispatches belong to from now on, such as `forward/layers.0`; answers
    /// what it was. Only for [`Timeline`](super::Timeline)s.
    pub fn enter(&mut self, scope: impl Into<Arc<str>>) -> Arc<str> {
        std::mem::replace(&mut self.scope, scope.into())
    }

    /// The part of the model that dispatches belong to.
    pub fn scope(&self) -> &Arc<str> {
        &self.scope
    }

    /// A tensor for a kernel to write to.
    pub fn empty(&self, shape: impl Into<Shape>) -> Tensor {
        Tensor::planned(shape.into())
    }

    /// The same, with elements of 16 bits if `half`.
    pub(crate) fn empty_as(&self, shape: impl Into<Shape>, half: bool) -> Tensor {
        let tensor = self.empty(shape);
        if half { tensor.half() } else { tensor }
    }

    /// Appends one dispatch. `tensors` are in the order of [`Kernel::bindings`].
    ///
    /// # Panics
    ///
    /// If the number of tensors is not that of the bindings.
    #[track_caller]
    pub fn run<P: Params>(
        &mut self,
        kernel: &'static Kernel,
        params: P,
        tensors: &[&Tensor],
        grid: Grid,
    ) -> &mut Dispatch {
        assert_eq!(tensors.len(), kernel.bindings.len(), "{}: bindings", kernel.label());
        let params = bytemuck::bytes_of(&params).to_vec();
        let immediates = params.len() <= self.profile.max_immediates as usize;
        self.dispatches.push(Dispatch {
            kernel,
            constants: Vec::new(),
            dialect: Dialect { immediates, ..Dialect::default() },
            params,
            tensors: tensors.iter().copied().cloned().collect(),
            grid,
            flops: 0,
            spare: false,
            scope: self.scope.clone(),
            class: self.class.clone(),
        });
        self.dispatches.last_mut().expect("pushed above")
    }

    /// Makes `tensor`'s elements readable after a replay, and returns the tensor to read.
    pub fn keep(&mut self, tensor: &Tensor, label: &str) -> Tensor {
        assert!(!tensor.is_half(), "{label}: only tensors of 32 bits are kept");
        if !matches!(tensor.place(), Place::Planned) {
            return tensor.clone();
        }
        if let Some(kept) = self.aliases.get(&tensor.id()) {
            return kept.reshape(tensor.shape().clone());
        }
        let kept = Tensor::within(&Memory::new(label), tensor.shape().clone());
        self.aliases.insert(tensor.id(), kept.clone());
        kept
    }

    /// Puts the elements of `tensor` at the place of the pinned tensor `at`. Answers whether that
    /// was possible: a tensor that already has a place must be copied instead.
    #[must_use]
    pub(crate) fn place(&mut self, tensor: &Tensor, at: &Tensor) -> bool {
        let free =
            matches!(tensor.place(), Place::Planned) && !self.aliases.contains_key(&tensor.id());
        if free {
            self.aliases.insert(tensor.id(), at.clone());
        }
        free
    }

    /// Drops those of some dispatches whose results no later dispatch reads.
    pub(crate) fn drop_unread(&mut self, range: Range<usize>) {
        self.drop_unread_of(|at, _| range.contains(&at));
    }

    /// Drops those [`spare`](Dispatch::spare) dispatches whose results no later dispatch reads.
    pub(crate) fn drop_spare(&mut self) {
        self.drop_unread_of(|_, dispatch| dispatch.spare);
    }

    fn drop_unread_of(&mut self, may_go: impl Fn(usize, &Dispatch) -> bool) {
        let on_host = self.host_steps.iter().flat_map(|step| &step.reads);
        let mut read: HashSet<TensorId> = on_host.map(Tensor::id).collect();
        let mut stays = vec![true; self.len()];
        for (i, dispatch) in self.dispatches.iter().enumerate().rev() {
            let bindings = &dispatch.kernel.declarations()[1..];
            let bound = || dispatch.tensors.iter().zip(bindings);
            let needed = |tensor: &Tensor| {
                let planned = matches!(tensor.place(), Place::Planned);
                !planned || self.aliases.contains_key(&tensor.id()) || read.contains(&tensor.id())
            };
            let mut written = bound().filter(|(_, binding)| binding.access == Access::Write);
            if may_go(i, dispatch) && !written.any(|(tensor, _)| needed(tensor)) {
                stays[i] = false;
                continue;
            }
            // What is written may be read, too: a kernel can add to it.
            read.extend(bound().map(|(tensor, _)| tensor.id()));
        }
        for step in &mut self.host_steps {
            step.at = stays[..step.at].iter().filter(|stays| **stays).count();
        }
        let mut stays = stays.into_iter();
        self.dispatches.retain(|_| stays.next().expect("one for each"));
    }

    /// What a plan compiles, each once.
    pub fn programs(&self) -> Vec<Program> {
        let mut programs: Vec<Program> = Vec::new();
        for Dispatch { kernel, dialect, constants, .. } in &self.dispatches {
            let (dialect, constants) = (*dialect, constants.clone());
            let program = Program { kernel, dialect, constants };
            if !programs.contains(&program) {
                programs.push(program);
            }
        }
        programs
    }

    /// How many dispatches were recorded.
    pub fn len(&self) -> usize {
        self.dispatches.len()
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.dispatches.is_empty()
    }

    /// Appends all of `other`.
    pub fn append(&mut self, other: Recorder) {
        let before = self.len();
        for mut step in other.host_steps {
            step.at += before;
            self.host_steps.push(step);
        }
        self.dispatches.extend(other.dispatches);
        self.aliases.extend(other.aliases);
    }
}
