//! The tape: ops append a dispatch and, when training, the closure that records them backwards.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::Arc;

use crate::gpu::{Profile, Recorder};
use crate::ops::{self, Normed};
use crate::tensor::TensorId;
use crate::{Shape, Tensor};

/// Records the forward pass of one step.
///
/// [`Tape::training`] also keeps what the backward pass needs; [`Tape::inference`] keeps nothing,
/// so that a plan can reuse every activation at once.
pub struct Tape {
    recorder: Recorder,
    steps: Vec<Step>,
    training: bool,
    random: Option<Tensor>,
    streams: u32,
    checkpointing: bool,
    mixed: bool,
    /// Within a segment that will be recorded again.
    forgetting: bool,
    /// What scopes have made, if somebody wants to know.
    heard: Option<Vec<(String, Tensor)>>,
    /// What the scope's last op made.
    last: Option<Tensor>,
    /// Layer norms that linear layers can take while they read, by what they make.
    normed: HashMap<TensorId, Normed>,
}

/// Turns the gradients of an op's outputs into gradients of its inputs.
type BackwardFn = Box<dyn FnOnce(&mut Recorder, &mut Gradients)>;

/// One op that gradients flow through.
struct Step {
    scope: Arc<str>,
    backward: BackwardFn,
}

/// Where a gradient goes: an input of an op, without its memory.
struct Slot {
    id: TensorId,
    shape: Shape,
    tracked: bool,
}

/// Random numbers of one op of a training step: what they are a function of.
#[derive(Clone, Debug)]
pub struct Stream {
    /// `[4]` of `u32`: seed (low, high), step (low, high); written before each replay.
    pub state: Tensor,
    /// Which op.
    pub id: u32,
}

impl Tape {
    /// A tape for a training step, in which dropout and drop path are off until
    /// [`randomised`](Self::randomised).
    pub fn training(profile: &Profile) -> Self {
        let recorder = Recorder::new(profile);
        Self {
            recorder,
            steps: Vec::new(),
            training: true,
            random: None,
            streams: 0,
            checkpointing: false,
            mixed: false,
            forgetting: false,
            heard: None,
            last: None,
            normed: HashMap::new(),
        }
    }

    /// A tape that cannot be run backwards.
    pub fn inference(profile: &Profile) -> Self {
        Self { training: false, ..Self::training(profile) }
    }

    /// Turns dropout and drop path on. `state`: `[4]` of `u32`, seed and step, low word first.
    pub fn randomised(mut self, state: &Tensor) -> Self {
        self.random = Some(state.clone());
        self
    }

    /// Whether [`segment`](Self::segment)s are recorded again in the backward pass.
    pub fn checkpointing(mut self, yes: bool) -> Self {
        self.checkpointing = yes;
        self
    }

    /// Whether linear layers and convolutions read operands of 16 bits (mixed precision): inputs and weights are
    /// rounded, sums have 32 bits. Gradients of their outputs are rounded, too, so small ones vanish
    /// unless the loss is scaled: see [`LossScale`](crate::optim::LossScale).
    ///
    /// # Panics
    ///
    /// If the device has no such numbers: see [`Profile::half`].
    pub fn mixed(mut self, yes: bool) -> Self {
        assert!(!yes || self.recorder.profile().half, "mixed precision on a device without f16");
        self.mixed = yes;
        self
    }

    /// A tensor for a kernel to write to, of 16 bits in mixed precision.
    pub(crate) fn empty_operand(&self, shape: impl Into<Shape>) -> Tensor {
        self.recorder.empty_as(shape, self.mixed)
    }

    /// `x`, of 16 bits in mixed precision, for a kernel to read. Not recorded: `x` stays the input of the op.
    pub(crate) fn operand(&mut self, x: &Tensor) -> Tensor {
        if !self.mixed || x.is_half() {
            return x.clone();
        }
        let narrow = ops::narrowed(&mut self.recorder, x);
        if x.is_tracked() { narrow.tracked() } else { narrow }
    }

    /// Whether operands have 16 bits.
    pub(crate) fn is_mixed(&self) -> bool {
        self.mixed
    }

    /// Declares that `y` is the layer norm `norm`: who knows how need not read `y`.
    pub(crate) fn set_norm(&mut self, y: &Tensor, norm: Normed) {
        self.normed.insert(y.id(), norm);
    }

    /// What `y` is the layer norm of, if it was [declared](Self::set_norm).
    pub(crate) fn norm_of(&self, y: &Tensor) -> Option<Normed> {
        self.normed.get(&y.id()).cloned()
    }

    /// Keeps what each [`scope`](Self::scope) makes, for [`heard`](Self::heard).
    pub fn listening(mut self) -> Self {
        self.heard = Some(Vec::new());
        self
    }

    /// What each scope has made since [`listening`](Self::listening): the result of its last op, to be read
    /// after a replay. Names are those of PyTorch's modules, `backbone.layers.0.blocks.1`; a scope comes
    /// after those within it.
    pub fn heard(&mut self) -> Vec<(String, Tensor)> {
        self.heard.take().unwrap_or_default()
    }

    /// Where ops put their dispatches.
    pub fn recorder(&mut self) -> &mut Recorder {
        &mut self.recorder
    }

    /// Whether the step can be run backwards.
    pub fn is_training(&self) -> bool {
        self.training
    }

    /// Records what `ops` does as the part `name` of the part of the model that is being recorded,
    /// for [`Timeline`](crate::gpu::Timeline)s. Their backward pass belongs to it, too.
    pub fn scope<T>(&mut self, name: impl Display, ops: impl FnOnce(&mut Self) -> T) -> T {
        let inner = match &**self.recorder.scope() {
            "" => name.to_string(),
            outer => format!("{outer}/{name}"),
        };
        let outer = self.recorder.enter(inner);
        let before = self.last.take();
        let result = ops(self);
        let inner = self.recorder.enter(outer);
        if let (Some(heard), Some(last)) = (&mut self.heard, &self.last) {
            let name = inner.replace('/', ".");
            // A copy: an op after the scope may add to it.
            let kept = Tensor::pinned(&name, last.shape().clone());
            ops::copy(&mut self.recorder, last, &kept);
            heard.push((name, kept));
        }
        self.last = self.last.take().or(before);
        result
    }

    /// Random numbers for the next op, if the step has any.
    pub fn stream(&mut self) -> Option<Stream> {
        let state = self.random.clone().filter(|_| self.training)?;
        self.streams += 1;
        Some(Stream { state, id: self.streams })
    }

    /// Declares that `output` came from `inputs`, and how the gradient of `output` becomes one
    /// gradient per input. Every differentiable op ends with this call.
    ///
    /// `backward` answers `None` for an input that has no gradient, such as a mask. It owns what
    /// it needs: when nothing among `inputs` is tracked, or the tape is for inference, it is
    /// dropped here, and no activation lives longer for its sake.
    pub fn record<const N: usize>(
        &mut self,
        inputs: [&Tensor; N],
        output: Tensor,
        backward: impl FnOnce(&mut Recorder, &Tensor) -> [Option<Tensor>; N] + 'static,
    ) -> Tensor {
        if self.heard.is_some() {
            self.last = Some(output.clone());
        }
        if !self.training || !inputs.iter().any(|t| t.is_tracked()) {
            return output;
        }
        let output = output.tracked();
        if self.forgetting {
            return output;
        }
        let slots =
            inputs.map(|t| Slot { id: t.id(), shape: t.shape().clone(), tracked: t.is_tracked() });
        let id = output.id();
        self.push(move |recorder, grads| {
            // An output that nothing used has no gradient, and neither has what led to it.
            let Some(grad) = grads.by_id.remove(&id) else { return };
            for (slot, grad) in slots.into_iter().zip(backward(recorder, &grad)) {
                grads.accumulate(recorder, slot, grad);
            }
        });
        output
    }

    fn push(&mut self, backward: impl FnOnce(&mut Recorder, &mut Gradients) + 'static) {
        let (scope, backward) = (self.recorder.scope().clone(), Box::new(backward));
        self.steps.push(Step { scope, backward });
    }

    /// Records `ops`, a part of the model that reads `x`. On a tape that is
    /// [`checkpointing`](Self::checkpointing) only `x` is kept for the backward pass, where `ops` is
    /// recorded once more: less memory for more time (Chen et al. 2016,
    /// <https://arxiv.org/abs/1604.06174>). Gradients have the same bits either way.
    ///
    /// `ops` must record the same each time it is called, and must not change a state such as the
    /// running mean of a batch norm.
    pub fn segment<const N: usize>(
        &mut self,
        x: &Tensor,
        ops: impl Fn(&mut Self, &Tensor) -> [Tensor; N] + 'static,
    ) -> [Tensor; N] {
        if !self.training || !self.checkpointing || self.forgetting {
            return ops(self, x);
        }
        let (random, streams, mixed) = (self.random.clone(), self.streams, self.mixed);
        self.forgetting = true;
        let outputs = ops(self, x);
        self.forgetting = false;
        if !outputs.iter().any(Tensor::is_tracked) {
            return outputs;
        }
        let (x, ids) = (x.clone(), outputs.each_ref().map(Tensor::id));
        self.push(move |recorder, grads| {
            if !ids.iter().any(|id| grads.by_id.contains_key(id)) {
                return;
            }
            let profile = recorder.profile().clone();
            let mut tape = Self { random, streams, mixed, ..Self::training(&profile) };
            std::mem::swap(&mut tape.recorder, recorder);
            let start = tape.recorder.len();
            for (id, output) in ids.iter().zip(ops(&mut tape, &x)) {
                if let Some(grad) = grads.by_id.remove(id) {
                    grads.by_id.insert(output.id(), grad);
                }
            }
            std::mem::swap(&mut tape.recorder, recorder);
            let end = recorder.len();
            run_backwards(tape.steps, recorder, grads);
            // The last product, for one, is not needed again.
            recorder.drop_unread(start..end);
        });
        outputs
    }

    /// Ends the tape without running it backwards.
    pub fn finish(mut self) -> Recorder {
        self.recorder.drop_spare();
        self.recorder
    }

    /// Runs the tape backwards from a loss of shape `[1]`.
    pub fn backward(mut self, loss: &Tensor) -> (Recorder, Gradients) {
        let seed = ops::fill(&mut self.recorder, loss.shape().clone(), 1.0);
        self.backward_from(&[(loss, seed)])
    }

    /// Runs the tape backwards from several outputs, each with its gradient.
    pub fn backward_from(mut self, outputs: &[(&Tensor, Tensor)]) -> (Recorder, Gradients) {
        let mut grads = Gradients { by_id: HashMap::new() };
        for (output, seed) in outputs {
            let (id, shape) = (output.id(), output.shape().clone());
            let slot = Slot { id, shape, tracked: output.is_tracked() };
            grads.accumulate(&mut self.recorder, slot, Some(seed.clone()));
        }
        run_backwards(self.steps, &mut self.recorder, &mut grads);
        self.recorder.drop_spare();
        (self.recorder, grads)
    }
}

fn run_backwards(steps: Vec<Step>, recorder: &mut Recorder, grads: &mut Gradients) {
    let outer = recorder.scope().clone();
    for step in steps.into_iter().rev() {
        if step.scope.starts_with(BACKWARD) {
            recorder.enter(step.scope);
        } else {
            recorder.enter(format!("{BACKWARD}{}", step.scope));
        }
        (step.backward)(recorder, grads);
    }
    recorder.enter(outer);
}

/// The scope of the backward pass.
const BACKWARD: &str = "backward/";

/// Gradients of the leaves of a tape.
#[derive(Debug)]
pub struct Gradients {
    by_id: HashMap<TensorId, Tensor>,
}

impl Gradients {
    /// The gradient of `tensor`, if any flowed to it.
    pub fn get(&self, tensor: &Tensor) -> Option<&Tensor> {
        self.by_id.get(&tensor.id())
    }

    /// Adds `grad` to what has flowed to `slot` so far. The first gradient is kept as it is, so
    /// a tensor that is used once costs no addition.
    fn accumulate(&mut self, recorder: &mut Recorder, slot: Slot, grad: Option<Tensor>) {
        let Some(grad) = grad.filter(|_| slot.tracked) else { return };
        assert_eq!(grad.shape().len(), slot.shape.len(), "a gradient fills its tensor");
        let grad = grad.reshape(slot.shape);
        let sum = match self.by_id.remove(&slot.id) {
            None => grad,
            Some(earlier) => {
                ops::sum_of(recorder, &earlier, &grad.reshape(earlier.shape().clone()))
            }
        };
        self.by_id.insert(slot.id, sum);
    }
}
