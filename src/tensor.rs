//! [`Tensor`]: an identity, a shape and, only where it must outlive a step, memory of its own.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::gpu::{Gpu, Memory};
use crate::{Error, Result};

/// Extents of a tensor, outermost first.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Shape(Vec<usize>);

impl Shape {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.0.iter().product()
    }

    /// Whether some extent is zero.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Extents, outermost first.
    pub fn dims(&self) -> &[usize] {
        &self.0
    }

    /// The last extent: channels in this crate's channels-last layouts.
    pub fn last(&self) -> usize {
        *self.0.last().expect("rank of at least 1")
    }

    /// Product of all extents but the last.
    pub fn rows(&self) -> usize {
        self.0[..self.0.len() - 1].iter().product()
    }

    /// The same shape with another last extent.
    pub fn with_last(&self, last: usize) -> Self {
        let mut dims = self.0.clone();
        *dims.last_mut().expect("rank of at least 1") = last;
        Self(dims)
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(dims: [usize; N]) -> Self {
        Self(dims.to_vec())
    }
}

impl From<&[usize]> for Shape {
    fn from(dims: &[usize]) -> Self {
        Self(dims.to_vec())
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// Identifies a tensor in a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorId(u64);

impl TensorId {
    fn next() -> Self {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        Self(COUNTER.fetch_add(1, Ordering::Relaxed))
    }
}

/// A contiguous, row-major array of 4-byte elements (`f32`, or `u32` for labels and indices). In mixed
/// precision there are some of 2 bytes (`f16`) within a step, which only kernels see.
///
/// Clones and [`reshape`](Self::reshape)d views are the same tensor: they share identity, elements
/// and gradient.
#[derive(Clone, Debug)]
pub struct Tensor {
    id: TensorId,
    shape: Shape,
    place: Place,
    tracked: bool,
    half: bool,
}

/// Where a tensor's elements are.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// In memory that a plan shares out among the tensors of a step.
    Planned,
    /// `offset` bytes into memory that outlives the step.
    Pinned { memory: Memory, offset: u64 },
    /// In an application's texture.
    Texture(wgpu::TextureView),
}

impl Tensor {
    /// A tensor that lives within one replay of a plan, made by [`Recorder::empty`].
    ///
    /// [`Recorder::empty`]: crate::gpu::Recorder::empty
    pub(crate) fn planned(shape: Shape) -> Self {
        Self { id: TensorId::next(), shape, place: Place::Planned, tracked: false, half: false }
    }

    /// A tensor with memory of its own: an input, a result, a state. Nothing is allocated before
    /// the first upload or plan.
    pub fn pinned(label: &str, shape: impl Into<Shape>) -> Self {
        let shape = shape.into();
        let memory = Memory::new(label);
        Self::within(&memory, shape)
    }

    /// An application's 2-D texture, for the kernels that read or write one; `view` is of its first
    /// level. A plan stays bound to this very texture.
    pub fn texture(view: &wgpu::TextureView) -> Self {
        let (height, width) = (view.texture().height(), view.texture().width());
        let shape = Shape::from([height as usize, width as usize]);
        let place = Place::Texture(view.clone());
        Self { id: TensorId::next(), shape, place, tracked: false, half: false }
    }

    /// Whether the elements are the pixels of a texture.
    pub(crate) fn is_texture(&self) -> bool {
        matches!(self.place, Place::Texture(_))
    }

    /// A tensor in the next free place of `memory`.
    pub(crate) fn within(memory: &Memory, shape: Shape) -> Self {
        let offset = memory.reserve(4 * shape.len() as u64);
        let place = Place::Pinned { memory: memory.clone(), offset };
        Self { id: TensorId::next(), shape, place, tracked: false, half: false }
    }

    /// The first `len` elements of `memory`, across all tensors in it.
    pub(crate) fn all_of(memory: &Memory, len: usize) -> Self {
        let place = Place::Pinned { memory: memory.clone(), offset: 0 };
        Self { id: TensorId::next(), shape: [len].into(), place, tracked: false, half: false }
    }

    /// A tensor at the same offset of another memory: a parameter's gradient, a moment.
    ///
    /// # Panics
    ///
    /// If `self` is not pinned.
    pub(crate) fn twin(&self, memory: &Memory) -> Self {
        let Place::Pinned { offset, .. } = self.place else {
            panic!("only pinned tensors have twins")
        };
        let place = Place::Pinned { memory: memory.clone(), offset };
        Self { id: TensorId::next(), shape: self.shape.clone(), place, tracked: false, half: false }
    }

    /// Uploads `data` into a new pinned tensor.
    ///
    /// # Panics
    ///
    /// If `data` does not fill `shape`, or the device has no room for it.
    #[track_caller]
    pub fn from_slice<T: bytemuck::Pod>(gpu: &Gpu, shape: impl Into<Shape>, data: &[T]) -> Self {
        let tensor = Self::pinned("from_slice", shape);
        tensor.write(gpu, data).expect("the device holds a small tensor");
        tensor
    }

    /// Replaces the elements; takes effect before all work submitted from now on.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] when the memory cannot be allocated.
    ///
    /// # Panics
    ///
    /// If the tensor is not pinned or `data` does not fill it.
    #[track_caller]
    pub fn write<T: bytemuck::Pod>(&self, gpu: &Gpu, data: &[T]) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        assert_eq!(bytes.len(), 4 * self.shape.len(), "data does not fill {:?}", self.shape);
        let Place::Pinned { memory, offset } = &self.place else {
            panic!("only pinned tensors are written")
        };
        gpu.queue().write_buffer(memory.buffer(gpu)?, *offset, bytes);
        Ok(())
    }

    /// Downloads the elements; waits for all work submitted so far.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] when the device was lost.
    ///
    /// # Panics
    ///
    /// If the tensor is not pinned: see [`Recorder::keep`](crate::gpu::Recorder::keep).
    #[track_caller]
    pub fn read(&self, gpu: &Gpu) -> Result<Vec<f32>> {
        self.read_as(gpu)
    }

    /// [`read`](Self::read) for elements of another 4-byte type.
    #[track_caller]
    pub fn read_as<T: bytemuck::Pod>(&self, gpu: &Gpu) -> Result<Vec<T>> {
        let Place::Pinned { memory, offset } = &self.place else {
            panic!("only pinned tensors are read")
        };
        let size = 4 * self.shape.len() as u64;
        if size == 0 {
            return Ok(Vec::new());
        }
        let bytes = gpu.download(memory.buffer(gpu)?, *offset, size)?;
        Ok(bytemuck::pod_collect_to_vec(&bytes))
    }

    /// The same tensor with elements of 2 bytes.
    pub(crate) fn half(mut self) -> Self {
        assert!(
            matches!(self.place, Place::Planned),
            "only tensors of a step have 2-byte elements"
        );
        self.half = true;
        self
    }

    /// Whether elements have 2 bytes.
    pub(crate) fn is_half(&self) -> bool {
        self.half
    }

    /// Bytes of all elements.
    pub(crate) fn bytes(&self) -> u64 {
        (if self.half { 2 } else { 4 }) * self.shape.len() as u64
    }

    /// Marks the tensor as a leaf that gradients are wanted for.
    pub fn tracked(mut self) -> Self {
        self.tracked = true;
        self
    }

    /// The same elements without gradient: what is computed from it leaves the tape here.
    pub fn detached(mut self) -> Self {
        self.tracked = false;
        self
    }

    /// Whether gradients flow to this tensor.
    pub fn is_tracked(&self) -> bool {
        self.tracked
    }

    /// The same tensor seen with other extents; moves nothing.
    ///
    /// # Panics
    ///
    /// If the number of elements differs.
    #[track_caller]
    pub fn reshape(&self, shape: impl Into<Shape>) -> Self {
        let shape = shape.into();
        assert_eq!(shape.len(), self.shape.len(), "reshape of {:?} to {shape:?}", self.shape);
        Self { shape, ..self.clone() }
    }

    /// The tensor's identity in a recording.
    pub fn id(&self) -> TensorId {
        self.id
    }

    /// Extents.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Extents as a slice, for pattern matching.
    pub fn dims(&self) -> &[usize] {
        self.shape.dims()
    }

    /// Where the elements are.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// The wgpu buffer and byte offset of a pinned tensor, for sharing with other wgpu code.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a tensor that has no memory of its own.
    pub fn buffer(&self, gpu: &Gpu) -> Result<(wgpu::Buffer, u64)> {
        match &self.place {
            Place::Pinned { memory, offset } => Ok((memory.buffer(gpu)?.clone(), *offset)),
            Place::Planned => {
                Err(Error::invalid("tensor", "has no memory of its own; keep it first"))
            }
            Place::Texture(_) => Err(Error::invalid("tensor", "is a texture, not a buffer")),
        }
    }
}
