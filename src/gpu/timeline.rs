//! [`Timeline`]: what a replay of a plan took, dispatch by dispatch, as totals and as a trace.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Value, json};

/// Time of one dispatch.
#[derive(Clone, Debug)]
pub struct DispatchTime {
    /// `file.entry`
    pub kernel: String,
    /// Part of the model that recorded it, such as `forward/layers.0/blocks.1`.
    pub scope: Arc<str>,
    /// Family and sizes, where [`tune`](super::tune) can choose a variant.
    pub class: Option<Arc<str>>,
    /// Since the start of the replay, in milliseconds.
    pub start_ms: f64,
    /// Milliseconds.
    pub ms: f64,
    /// Multiplications and additions.
    pub flops: u64,
    /// Bytes of all bound tensors.
    pub bytes: u64,
    /// Bytes that planned tensors take while it runs.
    pub alive: u64,
}

/// What measured a [`Timeline`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The device: a pass per dispatch, with a timestamp before and after.
    Device,
    /// The host, from submission to completion of every dispatch by itself: short ones are mostly the
    /// cost of submitting.
    Host,
}

/// One replay, dispatch by dispatch; from [`Plan::profile`](super::Plan::profile).
#[derive(Clone, Debug)]
pub struct Timeline {
    /// What measured it.
    pub clock: Clock,
    /// In the order of the recording.
    pub dispatches: Vec<DispatchTime>,
}

/// All dispatches of a kernel together.
#[derive(Clone, Debug, Default)]
pub struct KernelTime {
    /// `file.entry`
    pub kernel: String,
    /// Dispatches.
    pub calls: u64,
    /// Milliseconds.
    pub ms: f64,
    /// Multiplications and additions.
    pub flops: u64,
    /// Bytes of all bound tensors.
    pub bytes: u64,
}

impl Timeline {
    /// Milliseconds of all dispatches together.
    pub fn ms(&self) -> f64 {
        self.dispatches.iter().map(|d| d.ms).sum()
    }

    /// Totals per kernel, the longest first.
    pub fn kernels(&self) -> Vec<KernelTime> {
        let mut kernels: HashMap<&str, KernelTime> = HashMap::new();
        for dispatch in &self.dispatches {
            let total = kernels.entry(&dispatch.kernel).or_default();
            total.calls += 1;
            total.ms += dispatch.ms;
            total.flops += dispatch.flops;
            total.bytes += dispatch.bytes;
        }
        let named =
            |(kernel, time): (&str, KernelTime)| KernelTime { kernel: kernel.into(), ..time };
        let mut kernels: Vec<_> = kernels.into_iter().map(named).collect();
        kernels.sort_by(|a, b| b.ms.total_cmp(&a.ms).then_with(|| a.kernel.cmp(&b.kernel)));
        kernels
    }

    /// The median of every dispatch over several replays of one plan. They follow each other without
    /// the gaps between them.
    ///
    /// # Panics
    ///
    /// If there are none, or of different plans.
    pub fn median(mut replays: Vec<Self>) -> Self {
        let mut median = replays.pop().expect("one replay at least");
        let mut start_ms = 0.0;
        for (i, dispatch) in median.dispatches.iter_mut().enumerate() {
            let others = replays.iter().map(|replay| {
                assert_eq!(replay.dispatches[i].kernel, dispatch.kernel, "replays of one plan");
                replay.dispatches[i].ms
            });
            let mut times: Vec<f64> = others.chain([dispatch.ms]).collect();
            times.sort_by(f64::total_cmp);
            dispatch.ms = times[times.len() / 2];
            dispatch.start_ms = start_ms;
            start_ms += dispatch.ms;
        }
        median
    }

    /// A trace in Chrome's format, which <https://ui.perfetto.dev> opens: parts of the model with the
    /// kernels within them, and a counter of the memory that planned tensors take. `name` is what
    /// the process is called.
    pub fn trace(&self, name: &str) -> Value {
        let us = |ms: f64| 1e3 * ms;
        let slice = |name: &str, from: f64, to: f64, args: Value| {
            json!({
                "name": name, "ph": "X", "pid": 1, "tid": 1,
                "ts": us(from), "dur": us(to - from), "args": args,
            })
        };
        let mut events = vec![
            json!({"name": "process_name", "ph": "M", "pid": 1, "args": {"name": name}}),
            json!({"name": "thread_name", "ph": "M", "pid": 1, "tid": 1, "args": {"name": "kernels"}}),
        ];
        // Parts of the model that are open, and since when.
        let mut open: Vec<(&str, f64)> = Vec::new();
        let mut end = 0.0;
        for dispatch in &self.dispatches {
            let parts: Vec<&str> = dispatch.scope.split('/').filter(|p| !p.is_empty()).collect();
            let common =
                open.iter().zip(&parts).take_while(|((name, _), part)| name == *part).count();
            for (name, since) in open.drain(common..).rev() {
                events.push(slice(name, since, end, json!({})));
            }
            open.extend(parts[common..].iter().map(|part| (*part, dispatch.start_ms)));
            end = dispatch.start_ms + dispatch.ms;
            let args = json!({
                "GFLOP": dispatch.flops as f64 / 1e9,
                "MB": dispatch.bytes as f64 / 1e6,
                "part": &*dispatch.scope,
            });
            events.push(slice(&dispatch.kernel, dispatch.start_ms, end, args));
            events.push(json!({
                "name": "activations", "ph": "C", "pid": 1, "ts": us(dispatch.start_ms),
                "args": {"MiB": dispatch.alive as f64 / f64::from(1 << 20)},
            }));
        }
        for (name, since) in open.into_iter().rev() {
            events.push(slice(name, since, end, json!({})));
        }
        json!({"traceEvents": events, "displayTimeUnit": "ms"})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline(times: &[(&str, &str, f64)]) -> Timeline {
        let mut start_ms = 0.0;
        let dispatch = |&(kernel, scope, ms): &(&str, &str, f64)| {
            let (kernel, scope) = (kernel.into(), scope.into());
            let dispatch = DispatchTime {
                kernel,
                scope,
                class: None,
                start_ms,
                ms,
                flops: 2,
                bytes: 4,
                alive: 1 << 20,
            };
            start_ms += ms;
            dispatch
        };
        Timeline { clock: Clock::Device, dispatches: times.iter().map(dispatch).collect() }
    }

    #[test]
    fn kernels_are_added_up_and_the_longest_comes_first() {
        let kernels = timeline(&[("a", "", 1.0), ("b", "", 5.0), ("a", "", 2.0)]).kernels();
        let found: Vec<_> = kernels.iter().map(|k| (&*k.kernel, k.calls, k.ms, k.flops)).collect();
        assert_eq!(found, [("b", 1, 5.0, 2), ("a", 2, 3.0, 4)]);
    }

    #[test]
    fn a_median_is_taken_per_dispatch() {
        let replays = [[1.0, 9.0], [2.0, 7.0], [50.0, 8.0]];
        let replays = replays.map(|[a, b]| timeline(&[("a", "", a), ("b", "", b)]));
        let median = Timeline::median(replays.into());
        let times: Vec<_> = median.dispatches.iter().map(|d| (d.start_ms, d.ms)).collect();
        assert_eq!(times, [(0.0, 2.0), (2.0, 8.0)]);
    }

    #[test]
    fn parts_of_the_model_nest_in_a_trace() {
        let trace = timeline(&[
            ("k", "forward/a/x", 1.0),
            ("l", "forward/a/y", 2.0),
            ("m", "forward", 4.0),
            ("n", "backward/a", 8.0),
        ])
        .trace("test");
        let slices: Vec<(String, f64, f64)> = (trace["traceEvents"].as_array().unwrap().iter())
            .filter(|e| e["ph"] == "X")
            .map(|e| {
                let time = |key: &str| e[key].as_f64().unwrap() / 1e3;
                (e["name"].as_str().unwrap().into(), time("ts"), time("dur"))
            })
            .collect();
        let find = |name: &str| -> Vec<(f64, f64)> {
            slices.iter().filter(|s| s.0 == name).map(|s| (s.1, s.2)).collect()
        };
        assert_eq!(find("forward"), [(0.0, 7.0)]);
        assert_eq!(find("a"), [(0.0, 3.0), (7.0, 8.0)]);
        assert_eq!(find("y"), [(1.0, 2.0)]);
        assert_eq!(find("m"), [(3.0, 4.0)]);
        assert_eq!(find("backward"), [(7.0, 8.0)]);
        // Four kernels, and six parts: `a` was entered twice.
        assert_eq!(slices.len(), 10);
    }
}
