//! Memory that outlives a step ([`Memory`]), and how the tensors of a step share buffers
//! ([`assign_slots`]).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::Gpu;
use crate::Result;

/// Every tensor in a [`Memory`] starts at a multiple of this, WebGPU's largest offset alignment.
pub(super) const ALIGNMENT: u64 = 256;

/// A buffer that is allocated when a device first needs it. Clones share it.
#[derive(Clone, Debug)]
pub struct Memory {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    label: String,
    size: AtomicU64,
    buffer: OnceLock<wgpu::Buffer>,
}

impl Memory {
    /// Memory without any tensors yet.
    pub fn new(label: &str) -> Self {
        let inner =
            Inner { label: label.to_owned(), size: AtomicU64::new(0), buffer: OnceLock::new() };
        Self { inner: Arc::new(inner) }
    }

    /// Sets `size` bytes apart and returns their offset.
    ///
    /// # Panics
    ///
    /// If the memory was already allocated.
    pub(crate) fn reserve(&self, size: u64) -> u64 {
        assert!(self.inner.buffer.get().is_none(), "{}: allocated already", self.inner.label);
        self.inner.size.fetch_add(size.max(4).next_multiple_of(ALIGNMENT), Ordering::Relaxed)
    }

    /// Memory of the same size, for gradients or moments of the tensors in this one.
    pub(crate) fn twin(&self, label: &str) -> Self {
        let twin = Self::new(label);
        twin.inner.size.store(self.size(), Ordering::Relaxed);
        twin
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.inner.size.load(Ordering::Relaxed)
    }

    /// What it is for.
    pub fn label(&self) -> &str {
        &self.inner.label
    }

    /// Whether both are the same memory.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// The buffer; allocated, and zero, on first use.
    ///
    /// # Errors
    ///
    /// [`Error::Limit`](crate::Error::Limit) or [`Error::Device`](crate::Error::Device) when the
    /// device has no room for it.
    pub(crate) fn buffer(&self, gpu: &Gpu) -> Result<&wgpu::Buffer> {
        if let Some(buffer) = self.inner.buffer.get() {
            return Ok(buffer);
        }
        let buffer = gpu.allocate(&self.inner.label, self.size().max(ALIGNMENT))?;
        Ok(self.inner.buffer.get_or_init(|| buffer))
    }
}

/// From the first to the last dispatch that touches a tensor, and its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// Index of the first dispatch.
    pub first: usize,
    /// Index of the last dispatch.
    pub last: usize,
    /// Bytes.
    pub size: u64,
}

/// Where a tensor of a step lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    /// Index of the buffer.
    pub slot: usize,
    /// Bytes from its start.
    pub offset: u64,
}

/// Shares buffers among the tensors of a step: the spot of each tensor, and the size of each buffer.
/// Tensors that live at the same time do not overlap; `apart[i]`, those that a dispatch reads where it
/// writes tensor `i`, or writes where it reads it, have other buffers, because wgpu refuses one buffer that is
/// read and written in one dispatch, even in disjoint ranges.
///
/// One after the other, tensors choose the lowest gap that is free during their life ("greedy by size",
/// Pisarchyk & Lee 2020, <https://arxiv.org/abs/2001.03288>). Of several orders and sizes that buffers may grow
/// to, those that take least win: within 1 % of the lower bound on our models.
///
/// No buffer that several tensors share is larger than `most` bytes.
pub fn assign_slots(
    lifetimes: &[Lifetime],
    apart: &[Vec<usize>],
    most: u64,
) -> (Vec<Spot>, Vec<u64>) {
    /// Of how much a long life counts beside the size: the power of its length.
    const WEIGHTS: [f64; 3] = [0.0, 0.05, 0.1];
    /// What a buffer may grow to for several tensors, in sixths of the largest tensor. Larger ones would leave
    /// less choice to those that have to be apart.
    const SIXTHS: [u64; 3] = [6, 7, 9];
    let largest = lifetimes.iter().map(|life| life.size).max().unwrap_or(0);
    let orders = WEIGHTS.map(|weight| {
        let rank = |i: &usize| {
            let Lifetime { first, last, size } = lifetimes[*i];
            let length = (last - first + 1) as f64;
            (size as f64 * length.powf(weight), length)
        };
        let mut order: Vec<usize> = (0..lifetimes.len()).collect();
        order.sort_by(|i, j| rank(j).partial_cmp(&rank(i)).expect("no NaN"));
        order
    });
    let tries = orders
        .iter()
        .flat_map(|order| SIXTHS.map(|sixths| (order, most.min(sixths * largest / 6))));
    let assignments = tries.map(|(order, limit)| assign_in_order(lifetimes, apart, order, limit));
    assignments.min_by_key(|(_, sizes)| sizes.iter().sum::<u64>()).expect("several")
}

fn assign_in_order(
    lifetimes: &[Lifetime],
    apart: &[Vec<usize>],
    order: &[usize],
    limit: u64,
) -> (Vec<Spot>, Vec<u64>) {
    /// A buffer, and the tensors in it by offset.
    struct Slot {
        size: u64,
        tenants: Vec<(u64, u64, Lifetime)>,
    }
    let mut slots: Vec<Slot> = Vec::new();
    let mut spots: Vec<Option<Spot>> = vec![None; lifetimes.len()];
    for &i in order {
        let life = lifetimes[i];
        let size = life.size.next_multiple_of(ALIGNMENT);
        let meets = |other: &Lifetime| other.first <= life.last && life.first <= other.last;
        let refused: Vec<usize> =
            apart[i].iter().filter_map(|&j| spots[j]).map(|s| s.slot).collect();
        // How much the buffer would grow, and where the tensor would lie.
        let mut best: Option<((u64, u64), Spot)> = None;
        for (slot, Slot { size: now, tenants }) in slots.iter().enumerate() {
            if refused.contains(&slot) {
                continue;
            }
            let mut consider = |offset: u64, gap: u64| {
                let end = offset + size;
                if size > gap || end > limit.max(*now) {
                    return;
                }
                let rank = (end.saturating_sub(*now), offset);
                if best.is_none_or(|(other, _)| rank < other) {
                    best = Some((rank, Spot { slot, offset }));
                }
            };
            let mut free = 0;
            for (offset, end, _) in tenants.iter().filter(|(.., other)| meets(other)) {
                consider(free, offset.saturating_sub(free));
                free = free.max(*end);
            }
            consider(free, u64::MAX);
        }
        let spot = best.map_or(Spot { slot: slots.len(), offset: 0 }, |(_, spot)| spot);
        if spot.slot == slots.len() {
            slots.push(Slot { size: 0, tenants: Vec::new() });
        }
        let Slot { size: now, tenants } = &mut slots[spot.slot];
        let end = spot.offset + size;
        *now = end.max(*now);
        let at = tenants.partition_point(|(offset, ..)| *offset <= spot.offset);
        tenants.insert(at, (spot.offset, end, life));
        spots[i] = Some(spot);
    }
    let spots = spots.into_iter().map(|spot| spot.expect("all are in order")).collect();
    (spots, slots.into_iter().map(|slot| slot.size).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Rng;

    #[test]
    fn tensors_that_live_together_never_overlap() {
        let mut rng = Rng::new(1, 1);
        for _ in 0..50 {
            let lives: Vec<_> = (0..60)
                .map(|_| {
                    let first = rng.below(40);
                    let size = 4 * rng.below(999) as u64;
                    Lifetime { first, last: first + rng.below(12), size }
                })
                .collect();
            let mut apart = vec![Vec::new(); lives.len()];
            for _ in 0..60 {
                let (i, j) = (rng.below(lives.len()), rng.below(lives.len()));
                if i != j {
                    apart[i].push(j);
                    apart[j].push(i);
                }
            }
            let most = [3000, u64::MAX][rng.below(2)];
            let (spots, sizes) = assign_slots(&lives, &apart, most);
            let aligned = |life: &Lifetime| life.size.next_multiple_of(ALIGNMENT);
            let largest = lives.iter().map(aligned).max().unwrap();
            assert!(sizes.iter().all(|size| *size <= most.max(largest)), "{sizes:?}, {most}");
            for (i, (a, at)) in lives.iter().zip(&spots).enumerate() {
                assert!(at.offset + a.size <= sizes[at.slot]);
                assert!(at.offset.is_multiple_of(ALIGNMENT));
                for (j, (b, other)) in lives.iter().zip(&spots).enumerate().skip(i + 1) {
                    let never_meet = a.last < b.first || b.last < a.first;
                    let beside =
                        at.offset + a.size <= other.offset || other.offset + b.size <= at.offset;
                    let elsewhere = at.slot != other.slot;
                    assert!(
                        elsewhere || never_meet || beside,
                        "{a:?} at {at:?}, {b:?} at {other:?}"
                    );
                    assert!(elsewhere || !apart[i].contains(&j), "{a:?} and {b:?} at {at:?}");
                }
            }
        }
    }

    #[test]
    fn a_chain_needs_two_slots() {
        let lives: Vec<_> = (0..9).map(|i| Lifetime { first: i, last: i + 1, size: 512 }).collect();
        let neighbours = |i: usize| [i.wrapping_sub(1), i + 1].into_iter().filter(|&j| j < 9);
        let apart: Vec<Vec<usize>> = (0..9).map(|i| neighbours(i).collect()).collect();
        assert_eq!(assign_slots(&lives, &apart, u64::MAX).1, [512, 512]);
    }

    #[test]
    fn a_large_buffer_is_shared_by_small_tensors_later() {
        let life = |first, last, size| Lifetime { first, last, size };
        let lives = [life(0, 1, 2048), life(2, 3, 1024), life(2, 4, 768), life(3, 4, 256)];
        let (spots, sizes) = assign_slots(&lives, &vec![Vec::new(); 4], u64::MAX);
        assert_eq!(sizes, [2048]);
        assert!(spots.iter().all(|spot| spot.slot == 0));
    }
}
