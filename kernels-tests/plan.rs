//! How a recording is planned changes no bit of what it computes.

use semask_gpu::gpu::{GpuOptions, Plan, Recorder};
use semask_gpu::model::{LossSettings, Model};
use semask_gpu::random::Rng;
use semask_gpu::train::recipe::Recipe;
use semask_gpu::{Gpu, Tape, Tensor};

use crate::support::{GPU, open, random};

/// A training step of a small model, and its gradients.
fn step(gpu: &Gpu, checkpointing: bool) -> (Recorder, Vec<Tensor>) {
    let mut recipe = Recipe::from_toml(crate::training::RECIPE, "test").unwrap();
    recipe.set_num_classes(2).unwrap();
    let model = Model::new(&recipe.model).unwrap();
    model.parameters().initialise(gpu, 3).unwrap();
    let image = random(&mut Rng::new(8, 0), 2 * 25 * 31 * 3);
    let image = Tensor::from_slice(gpu, [2, 25, 31, 3], &image);
    let labels = Tensor::from_slice(gpu, [(2 * 25 * 31usize).div_ceil(4)], &[0x0100_0100u32; 388]);
    let state = Tensor::from_slice(gpu, [4], &[1u32, 0, 5, 0]);
    let mut tape = Tape::training(gpu.profile()).randomised(&state).checkpointing(checkpointing);
    let losses = model.losses(&mut tape, &image, &labels, LossSettings::default());
    let (mut recorder, gradients) = tape.backward(&losses.total);
    let kept: Vec<Tensor> = (model.parameters().trained())
        .map(|(name, p)| recorder.keep(gradients.get(&p.tensor).unwrap(), name))
        .collect();
    (recorder, kept)
}

fn bits(gpu: &Gpu, plan: &Plan, kept: &[Tensor]) -> Vec<Vec<u32>> {
    plan.run().unwrap();
    kept.iter().map(|t| t.read_as(gpu).unwrap()).collect()
}

#[test]
fn memory_that_tensors_share_changes_no_bit() {
    let (recorder, kept) = step(&GPU, false);
    let shared = Plan::new(&GPU, &recorder).unwrap();
    let apart = Plan::without_sharing(&GPU, &recorder).unwrap();
    assert!(shared.description().planned_bytes() < apart.description().planned_bytes() / 2);
    let expected = bits(&GPU, &apart, &kept);
    for _ in 0..3 {
        // Again and again: what a replay leaves in memory must not reach the next.
        assert!(bits(&GPU, &shared, &kept) == expected);
    }
}

#[test]
fn dispatches_that_are_cut_change_no_bit() {
    for cpu_kernels in [true, false] {
        let compute = |dispatch_ms| {
            let options = GpuOptions { cpu_kernels: Some(cpu_kernels), ..GpuOptions::default() };
            let gpu = open(&GpuOptions { dispatch_ms: Some(dispatch_ms), ..options });
            let (recorder, kept) = step(&gpu, false);
            let plan = Plan::new(&gpu, &recorder).unwrap();
            (plan.calls(), bits(&gpu, &plan, &kept))
        };
        let (calls, expected) = compute(1e9);
        let (some, few) = compute(1e-3);
        let (most, many) = compute(1e-9);
        assert!(calls < some && some < most, "{calls}, {some}, {most}");
        assert!(few == expected && many == expected);
    }
}

#[test]
fn params_that_come_with_a_dispatch_change_no_bit() {
    let compute = |no_immediates, dispatch_ms| {
        let gpu = open(&GpuOptions {
            no_immediates,
            dispatch_ms: Some(dispatch_ms),
            ..GpuOptions::default()
        });
        assert_eq!(gpu.profile().max_immediates == 0, no_immediates);
        let (recorder, kept) = step(&gpu, false);
        let programs = recorder.programs();
        assert!(programs.iter().all(|program| program.dialect.immediates != no_immediates));
        let plan = Plan::new(&gpu, &recorder).unwrap();
        (plan.calls(), bits(&gpu, &plan, &kept))
    };
    let (calls, expected) = compute(true, 1e9);
    let (cut, parts) = compute(false, 1e-9);
    assert!(calls < cut && parts == expected);
    assert!(compute(false, 1e9) == (calls, expected));
    assert!(compute(true, 1e-9) == (cut, parts));
}

#[test]
fn activations_that_are_computed_again_change_no_bit_of_a_gradient() {
    let (recorder, kept) = step(&GPU, false);
    let plan = Plan::new(&GPU, &recorder).unwrap();
    let (again, kept_again) = step(&GPU, true);
    let plan_again = Plan::new(&GPU, &again).unwrap();
    let [all, some] = [&plan, &plan_again].map(|plan| plan.description().planned_bytes());
    assert!(some < all, "{some} bytes with checkpoints, {all} without");
    assert!(bits(&GPU, &plan_again, &kept_again) == bits(&GPU, &plan, &kept));
}

#[test]
fn a_profile_accounts_for_every_dispatch() {
    let (recorder, _) = step(&GPU, false);
    let plan = Plan::new(&GPU, &recorder).unwrap();
    plan.run().unwrap();
    let timeline = plan.profile().unwrap();
    assert_eq!(timeline.dispatches.len(), recorder.len());
    let flops: u64 = timeline.kernels().iter().map(|k| k.flops).sum();
    assert_eq!(flops, plan.description().flops());
    let most = timeline.dispatches.iter().map(|d| d.alive).max().unwrap();
    assert_eq!(most, plan.description().lower_bound);
    assert!(timeline.dispatches.iter().all(|d| d.ms >= 0.0) && timeline.ms() > 0.0);
    let scopes: Vec<&str> = timeline.dispatches.iter().map(|d| &*d.scope).collect();
    for scope in ["backbone/layers.0/blocks.0", "decode_head", "backward/backbone/patch_embed"] {
        assert!(scopes.contains(&scope), "{scope} is not in {scopes:?}");
    }
}
