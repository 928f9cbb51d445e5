//! [`Shape`].

use std::fmt;

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
