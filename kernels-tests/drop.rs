use semask_gpu::random::philox;
use semask_gpu::{Gpu, Tape, Tensor, ops};

use crate::support::{GPU, OTHER, run};

const SEED: [u32; 4] = [7, 0, 3, 0];

/// Output and gradient of `op` for an input of ones, with random numbers on.
fn both(gpu: &Gpu, shape: &[usize], op: impl Fn(&mut Tape, &Tensor) -> Tensor) -> [Vec<f32>; 2] {
    let state = Tensor::from_slice(gpu, [4], &SEED);
    let ones = vec![1f32; shape.iter().product()];
    let x = Tensor::from_slice(gpu, shape, &ones).tracked();
    let mut tape = Tape::training(gpu.profile()).randomised(&state);
    let y = op(&mut tape, &x);
    let kept = tape.recorder().keep(&y, "y");
    let seed = Tensor::from_slice(gpu, shape, &ones);
    let (mut recorder, grads) = tape.backward_from(&[(&y, seed)]);
    let dx = recorder.keep(grads.get(&x).unwrap(), "dx");
    run(gpu, &recorder);
    [kept.read(gpu).unwrap(), dx.read(gpu).unwrap()]
}

#[test]
fn dropout_draws_the_host_s_numbers_and_the_same_ones_backward() {
    for gpu in [&*GPU, &*OTHER] {
        let [y, dx] = both(gpu, &[1003], |tape, x| ops::dropout(tape, x, 0.25));
        let expected = |i: usize| {
            let bits = philox([7, 0], [i as u32 / 4, 1, 3, 0])[i % 4];
            let unit = (bits >> 8) as f32 / (1 << 24) as f32;
            if unit >= 0.25 { 1.0 / 0.75 } else { 0.0 }
        };
        assert!(y.iter().enumerate().all(|(i, &y)| y == expected(i)));
        assert_eq!(y, dx);
        let kept = y.iter().filter(|&&v| v > 0.0).count();
        assert!((700..800).contains(&kept), "{kept} of 1003 kept at rate 0.25");
    }
}

#[test]
fn dropout2d_drops_whole_channels() {
    // Beyond what a workgroup has, along both.
    let (batch, pixels, channels) = (3, 35, 70);
    let [y, dx] = both(&GPU, &[batch, pixels, channels], |t, x| ops::dropout2d(t, x, 0.5));
    assert_eq!(y, dx);
    for b in 0..batch {
        let pixel = |p: usize| &y[(b * pixels + p) * channels..][..channels];
        assert!((1..pixels).all(|p| pixel(p) == pixel(0)), "a channel lives or dies as one");
    }
    let kept = y.iter().filter(|&&v| v == 2.0).count();
    assert!(kept > 0 && kept < y.len() && y.iter().all(|&v| v == 0.0 || v == 2.0));
}

#[test]
fn without_random_state_nothing_is_dropped() {
    let x = Tensor::from_slice(&GPU, [5], &[1f32; 5]);
    let mut tape = Tape::training(GPU.profile());
    assert_eq!(ops::dropout(&mut tape, &x, 0.5).id(), x.id());
    assert!(ops::drop_path(&mut tape, 2, 0.5).is_none());
}
