//! Steps that run on the host, between the dispatches of a recording.

use semask_gpu::gpu::{Plan, Recorder};
use semask_gpu::{Error, Tensor, ops};

use crate::support::{CHECKED, GPU};

fn floats(words: &[u32]) -> &[f32] {
    bytemuck::cast_slice(words)
}

/// Records `y = x + 1` on the host.
fn increment(recorder: &mut Recorder, x: &Tensor) -> Tensor {
    let y = recorder.empty(x.shape().clone());
    recorder.host("increment", &[x], &[&y], |reads, writes| {
        let y: &mut [f32] = bytemuck::cast_slice_mut(writes[0]);
        y.iter_mut().zip(floats(reads[0])).for_each(|(y, x)| *y = x + 1.0);
        Ok(())
    });
    y
}

fn doubled(recorder: &mut Recorder, x: &Tensor) -> Tensor {
    ops::sum_of(recorder, x, x)
}

#[test]
fn a_host_step_sees_what_came_before_and_is_seen_by_what_comes_after() {
    for gpu in [&*GPU, &*CHECKED] {
        let x = Tensor::from_slice(gpu, [3], &[1f32, 2.0, 3.0]);
        let mut recorder = Recorder::new(gpu.profile());
        let twice = doubled(&mut recorder, &x);
        let more = increment(&mut recorder, &twice);
        let y = doubled(&mut recorder, &more);
        let y = recorder.keep(&y, "y");
        assert_eq!(Plan::describe(&recorder).host_steps, 1);
        let plan = Plan::new(gpu, &recorder).unwrap();
        plan.run().unwrap();
        assert_eq!(y.read(gpu).unwrap(), [6.0, 10.0, 14.0]);
        x.write(gpu, &[-1f32, 0.0, 0.5]).unwrap();
        plan.replay().unwrap();
        assert_eq!(y.read(gpu).unwrap(), [-2.0, 2.0, 4.0]);
        assert_eq!(plan.profile().unwrap().dispatches.len(), 2);
        assert_eq!(y.read(gpu).unwrap(), [-2.0, 2.0, 4.0]);
    }
}

/// The step comes first, comes last, follows another one, reads what was uploaded, and reads one
/// tensor of two names.
#[test]
fn host_steps_may_stand_anywhere() {
    let gpu = &*GPU;
    let x = Tensor::from_slice(gpu, [1, 2], &[1f32, 2.0]);
    let mut recorder = Recorder::new(gpu.profile());
    let first = increment(&mut recorder, &x);
    let second = increment(&mut recorder, &first.reshape([2]));
    let third = doubled(&mut recorder, &second);
    let fourth = increment(&mut recorder, &third);
    let fifth = increment(&mut recorder, &fourth);
    let kept = recorder.keep(&fifth, "last");
    let mut all = Recorder::new(gpu.profile());
    let zero = ops::fill(&mut all, [1], 0.0);
    let zero = all.keep(&zero, "zero");
    all.append(recorder);
    for _ in 0..2 {
        Plan::new(gpu, &all).unwrap().run().unwrap();
        assert_eq!(kept.read(gpu).unwrap(), [8.0, 10.0]);
        assert_eq!(zero.read(gpu).unwrap(), [0.0]);
    }
}

/// What a step reads may lose its memory to others between its computation and the step's turn.
#[test]
fn sharing_memory_changes_nothing_around_host_steps() {
    let gpu = &*GPU;
    let x = Tensor::from_slice(gpu, [64], &[1f32; 64]);
    let results = [true, false].map(|share| {
        let mut recorder = Recorder::new(gpu.profile());
        let early = doubled(&mut recorder, &x);
        let mut meanwhile = doubled(&mut recorder, &x);
        for _ in 0..5 {
            meanwhile = doubled(&mut recorder, &meanwhile);
        }
        let late = increment(&mut recorder, &early);
        let other = increment(&mut recorder, &meanwhile);
        let y = ops::sum_of(&mut recorder, &late, &other);
        let y = recorder.keep(&y, "y");
        let make = if share { Plan::new } else { Plan::without_sharing };
        let plan = make(gpu, &recorder).unwrap();
        // Shared, two are alive at a time: of `early` only the copy is.
        assert_eq!(plan.description().slots.len(), if share { 2 } else { 9 });
        plan.run().unwrap();
        let result = y.read(gpu).unwrap();
        plan.profile().unwrap();
        assert_eq!(y.read(gpu).unwrap(), result);
        result
    });
    assert_eq!(results[0], [3.0 + 65.0; 64]);
    assert_eq!(results[0], results[1]);
}

#[test]
fn an_error_of_a_host_step_ends_the_replay_and_the_next_one_works() {
    let gpu = &*GPU;
    let x = Tensor::from_slice(gpu, [1], &[f32::NAN]);
    let mut recorder = Recorder::new(gpu.profile());
    let before = increment(&mut recorder, &x);
    let before = recorder.keep(&before, "before");
    let checked = recorder.empty([1]);
    recorder.host("check", &[&before], &[&checked], |reads, writes| {
        writes[0].copy_from_slice(reads[0]);
        let value = floats(reads[0])[0];
        if value.is_nan() { Err(Error::invalid("check", "is NaN")) } else { Ok(()) }
    });
    let after = doubled(&mut recorder, &checked);
    let after = recorder.keep(&after, "after");
    let plan = Plan::new(gpu, &recorder).unwrap();
    after.write(gpu, &[7f32]).unwrap();
    for result in [plan.run(), plan.replay(), plan.profile().map(|_| ())] {
        assert_eq!(result.unwrap_err().to_string(), "check: is NaN");
    }
    assert!(before.read(gpu).unwrap()[0].is_nan());
    assert_eq!(after.read(gpu).unwrap(), [7.0]);
    x.write(gpu, &[2f32]).unwrap();
    plan.run().unwrap();
    assert_eq!(after.read(gpu).unwrap(), [6.0]);
}

#[test]
fn a_plan_with_host_steps_cannot_be_encoded() {
    let gpu = &*GPU;
    let x = Tensor::from_slice(gpu, [1], &[1f32]);
    let mut recorder = Recorder::new(gpu.profile());
    increment(&mut recorder, &x);
    let plan = Plan::new(gpu, &recorder).unwrap();
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    let error = plan.encode(&mut encoder).unwrap_err().to_string();
    assert!(error.contains("host step `increment`"), "{error}");
}

#[test]
#[should_panic(expected = "increment reads a tensor that nothing wrote")]
fn a_host_step_cannot_read_what_nothing_wrote() {
    let mut recorder = Recorder::new(GPU.profile());
    let x = recorder.empty([1]);
    increment(&mut recorder, &x);
    Plan::describe(&recorder);
}
