//! Host steps: what a recording leaves to the CPU between two dispatches.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::device::Download;
use super::{Gpu, Recorder};
use crate::{Result, Tensor};

/// What a host step computes: from the elements of the tensors that it reads, those of the tensors
/// that it writes. Elements are 32 bits; `bytemuck::cast_slice` makes numbers of them.
pub type HostFn = dyn Fn(&[&[u32]], &mut [&mut [u32]]) -> Result<()> + Send + Sync;

/// A step of a recording that runs on the host.
#[derive(Clone)]
pub(super) struct HostStep {
    pub(super) label: String,
    /// How many dispatches come before it.
    pub(super) at: usize,
    pub(super) reads: Vec<Tensor>,
    pub(super) writes: Vec<Tensor>,
    run: Arc<HostFn>,
}

impl fmt::Debug for HostStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { label, at, reads, writes, .. } = self;
        write!(f, "HostStep({label} before dispatch {at}: {reads:?} -> {writes:?})")
    }
}

impl Recorder {
    /// Appends a step that runs on the host: matching, or whatever else a device is bad at.
    ///
    /// A replay copies `reads` out as soon as the dispatch that wrote the last of them is done, and
    /// waits for that copy only when it is this step's turn: work that was recorded in between goes on
    /// meanwhile. It then calls `run` and uploads what that filled in; `writes` come zeroed. An
    /// error ends the replay: nothing that was recorded later is sent to the device.
    ///
    /// `run` must compute the same from the same elements, or a replay is not repeatable.
    ///
    /// # Panics
    ///
    /// If a tensor is a texture.
    #[track_caller]
    pub fn host(
        &mut self,
        label: &str,
        reads: &[&Tensor],
        writes: &[&Tensor],
        run: impl Fn(&[&[u32]], &mut [&mut [u32]]) -> Result<()> + Send + Sync + 'static,
    ) {
        let tensors = |list: &[&Tensor]| -> Vec<Tensor> {
            assert!(!list.iter().any(|t| t.is_texture()), "host step {label}: a texture");
            list.iter().copied().cloned().collect()
        };
        self.host_steps.push(HostStep {
            label: label.to_owned(),
            at: self.len(),
            reads: tensors(reads),
            writes: tensors(writes),
            run: Arc::new(run),
        });
    }

    /// How many host steps were recorded.
    pub fn host_steps(&self) -> usize {
        self.host_steps.len()
    }
}

/// What a plan does, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Dispatches from the first to before the second.
    Dispatches(usize, usize),
    /// What host step `.0` reads starts on its way.
    Download(usize),
    /// Host step `.0` runs.
    Host(usize),
}

/// The dispatches of `recorder` with the downloads and host steps between them.
pub(super) fn phases(recorder: &Recorder) -> Vec<Phase> {
    // How many dispatches come before a phase, and its rank among phases of the same place.
    let mut events: Vec<((usize, usize), Phase)> = Vec::new();
    for (i, step) in recorder.host_steps.iter().enumerate() {
        let ready = step.reads.iter().map(|tensor| written(recorder, i, tensor)).max();
        events.push((ready.unwrap_or((step.at, 2 * i)), Phase::Download(i)));
        events.push(((step.at, 2 * i + 1), Phase::Host(i)));
    }
    events.sort_by_key(|(key, _)| *key);
    let mut phases = Vec::new();
    let mut done = 0;
    let end = ((recorder.len(), usize::MAX), None);
    let events = events.into_iter().map(|(key, phase)| (key, Some(phase)));
    for ((at, _), phase) in events.chain([end]) {
        if at > done {
            phases.push(Phase::Dispatches(done, at));
            done = at;
        }
        phases.extend(phase);
    }
    phases
}

/// When `tensor` has the elements that host step `i` reads, as a key of [`phases`].
fn written(recorder: &Recorder, i: usize, tensor: &Tensor) -> (usize, usize) {
    let at = recorder.host_steps[i].at;
    let by_host = recorder.host_steps[..i].iter().enumerate().rev().find_map(|(j, step)| {
        let here = step.writes.iter().any(|t| t.id() == tensor.id());
        here.then_some((step.at, 2 * j + 2))
    });
    let by_dispatch = (0..at).rev().find(|&d| recorder.dispatches[d].writes(tensor));
    // Before the host steps of the same place, unless it is one of those that wrote it.
    let by_dispatch = by_dispatch.map(|d| (d + 1, 0));
    // What nothing wrote came from elsewhere; it may be known by other names, so not too early.
    by_host.max(by_dispatch).unwrap_or((at, 2 * i))
}

/// A host step and the buffers of its tensors.
#[derive(Debug)]
pub(super) struct BoundHostStep {
    pub(super) step: HostStep,
    pub(super) reads: Vec<(wgpu::Buffer, u64)>,
    pub(super) writes: Vec<(wgpu::Buffer, u64)>,
}

fn bytes(tensor: &Tensor) -> u64 {
    tensor.bytes()
}

impl BoundHostStep {
    /// Submits the copies of what the step reads.
    pub(super) fn download(&self, gpu: &Gpu) -> Download {
        let places = self.reads.iter().zip(&self.step.reads);
        let parts: Vec<_> =
            places.map(|((buffer, offset), t)| (buffer, *offset, bytes(t))).collect();
        gpu.start_download(&parts)
    }

    /// Waits for the copies, computes, and uploads what the step writes. Answers how long it computed.
    pub(super) fn run(&self, gpu: &Gpu, download: Download) -> Result<Duration> {
        let words: Vec<u32> = bytemuck::pod_collect_to_vec(&download.finish()?);
        let start = Instant::now();
        let mut rest = &words[..];
        let reads: Vec<&[u32]> = (self.step.reads.iter())
            .map(|t| rest.split_off(..t.shape().len()).expect("downloaded"))
            .collect();
        let mut written: Vec<Vec<u32>> =
            self.step.writes.iter().map(|t| vec![0; t.shape().len()]).collect();
        let mut slices: Vec<&mut [u32]> = written.iter_mut().map(Vec::as_mut_slice).collect();
        (self.step.run)(&reads, &mut slices)?;
        for ((buffer, offset), words) in self.writes.iter().zip(&written) {
            gpu.queue().write_buffer(buffer, *offset, bytemuck::cast_slice(words));
        }
        Ok(start.elapsed())
    }
}
