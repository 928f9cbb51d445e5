use semask_gpu::ops::{self, CrossEntropy};
use semask_gpu::random::Rng;
use semask_gpu::{Gpu, Tape, Tensor};

use crate::fixtures::Fixture;
use crate::resize;
use crate::support::{F32, GPU, OTHER, assert_close, check_op, device, random, run};

const IGNORED: u8 = 255;

/// Labels four to a word.
pub(crate) fn pack(labels: &[u8]) -> Vec<u32> {
    let word = |four: &[u8]| four.iter().rev().fold(0, |word, &l| word << 8 | u32::from(l));
    labels.chunks(4).map(word).collect()
}

pub(crate) fn on_device(gpu: &Gpu, labels: &[u8]) -> Tensor {
    let words = pack(labels);
    Tensor::from_slice(gpu, [words.len()], &words)
}

/// Labels of which about one in eight is ignored.
fn some_labels(len: usize, classes: usize) -> Vec<u8> {
    let mut rng = Rng::new(0x1abe1, classes as u64);
    (0..len).map(|_| if rng.below(8) == 0 { IGNORED } else { rng.below(classes) as u8 }).collect()
}

/// Loss of every pixel: log Σ exp − the label's logit, 0 where ignored.
fn losses(logits: &[f64], classes: usize, labels: &[u8]) -> Vec<f64> {
    let pixel = |(v, &label): (&[f64], &u8)| {
        if label == IGNORED {
            return 0.0;
        }
        let largest = v.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = v.iter().map(|v| (v - largest).exp()).sum();
        largest + sum.ln() - v[usize::from(label)]
    };
    logits.chunks(classes).zip(labels).map(pixel).collect()
}

/// The sum of the `kept` largest losses, over the number of all pixels.
fn mean(mut losses: Vec<f64>, kept: usize) -> f64 {
    let count = losses.len() as f64;
    losses.sort_by(|a, b| b.total_cmp(a));
    losses.iter().take(kept).sum::<f64>() / count
}

fn check_labelled(from: [usize; 4], goal: [usize; 2], labels: &[u8], kept: Option<usize>) {
    let [batch, _, _, classes] = from;
    let [height, width] = goal;
    check_op(
        &[&from],
        F32,
        |tape, x| {
            let labels = on_device(device(), labels);
            let options = CrossEntropy { height, width, weight: 0.4, ohem_min_kept: kept };
            ops::cross_entropy(tape, &x[0], &labels, options).loss
        },
        |x| {
            let logits = resize::reference(&x[0], from, height, width);
            let kept = kept.map_or(usize::MAX, |kept| batch * kept);
            vec![0.4 * mean(losses(&logits, classes, labels), kept)]
        },
    );
}

fn check(from: [usize; 4], height: usize, width: usize) {
    let labels = some_labels(from[0] * height * width, from[3]);
    check_labelled(from, [height, width], &labels, None);
}

#[test]
fn the_loss_is_that_of_resized_logits() {
    check([1, 1, 1, 2], 1, 1);
    check([2, 1, 1, 3], 3, 5);
    // Four times as large, as in training; widths around a workgroup's 64 pixels and 32 cells.
    check([2, 4, 4, 19], 16, 16);
    check([1, 3, 16, 19], 7, 63);
    check([1, 3, 16, 31], 7, 64);
    check([1, 2, 33, 33], 5, 65);
    // Odd on the way up, on the way down, both at once.
    check([1, 5, 9, 150], 18, 35);
    check([2, 9, 20, 3], 4, 7);
    check([1, 12, 3, 4], 5, 10);
    check([1, 3, 3, 255], 4, 4);
}

#[test]
fn the_loss_of_labels_as_large_as_the_logits() {
    check([1, 1, 1, 1], 1, 1);
    check([2, 3, 5, 2], 3, 5);
    check([1, 2, 65, 19], 2, 65);
    check([1, 7, 6, 150], 7, 6);
}

#[test]
fn more_than_65_535_pixels_and_workgroups() {
    check([1, 130, 130, 2], 260, 260);
    check([1, 270, 260, 3], 270, 260);
    // Rows of one pixel: a workgroup each.
    check([3, 11_000, 1, 2], 22_000, 1);
    check([3, 22_000, 1, 2], 22_000, 1);
}

#[test]
fn hard_examples_are_those_of_largest_loss() {
    for (from, goal, kept) in [
        ([2, 4, 5, 3], [16, 20], 37),
        ([1, 6, 6, 19], [6, 6], 1),
        // Several blocks of 4 096 pixels; more than there are; none at all.
        ([2, 20, 20, 4], [80, 80], 1_000),
        ([2, 4, 5, 3], [16, 20], 5_000),
        ([1, 4, 5, 3], [16, 20], 0),
    ] {
        let labels = some_labels(from[0] * goal[0] * goal[1], from[3]);
        check_labelled(from, goal, &labels, Some(kept));
    }
}

/// Loss, accuracy and the gradient of the logits.
fn run_once(
    gpu: &Gpu,
    shape: [usize; 4],
    logits: &[f32],
    labels: &[u8],
    options: CrossEntropy,
) -> (f32, f32, Vec<f32>) {
    let logits = Tensor::from_slice(gpu, shape, logits).tracked();
    let labels = on_device(gpu, labels);
    let mut tape = Tape::training(gpu.profile());
    let y = ops::cross_entropy(&mut tape, &logits, &labels, options);
    assert!(y.loss.is_tracked() && !y.accuracy.is_tracked());
    let loss = tape.recorder().keep(&y.loss, "loss");
    let accuracy = tape.recorder().keep(&y.accuracy, "accuracy");
    let (mut recorder, grads) = tape.backward(&y.loss);
    let dlogits = recorder.keep(grads.get(&logits).unwrap(), "dlogits");
    run(gpu, &recorder);
    let one = |t: &Tensor| t.read(gpu).unwrap()[0];
    (one(&loss), one(&accuracy), dlogits.read(gpu).unwrap())
}

fn options(height: usize, width: usize, ohem_min_kept: Option<usize>) -> CrossEntropy {
    CrossEntropy { height, width, weight: 1.0, ohem_min_kept }
}

#[test]
fn ignored_labels_have_no_loss_and_no_gradient() {
    let logits = random(&mut Rng::new(4, 0), 3 * 3 * 5);
    for (side, kept) in [(3, None), (12, None), (12, Some(10))] {
        // 255, and what is no class: it must not be read as one.
        for label in [IGNORED, 5, 254] {
            let labels = vec![label; side * side];
            let y = run_once(&GPU, [1, 3, 3, 5], &logits, &labels, options(side, side, kept));
            assert_eq!(y, (0.0, 0.0, vec![0.0; 45]), "label {label}");
        }
    }
}

/// Equal losses are kept from the first pixel on, and exactly as many as were asked for.
#[test]
fn of_equal_losses_the_first_are_kept() {
    let (batch, side, kept) = (2, 70, 100);
    let pixels = batch * side * side;
    for gpu in [&*GPU, &*OTHER] {
        let shape = [batch, side, side, 2];
        let options = options(side, side, Some(kept));
        // The second image is harder in 150 places, so 50 more come from the start.
        let mut logits = vec![0f32; pixels * 2];
        (0..150).for_each(|i| logits[2 * (side * side + 7 * i)] = -3.0);
        let (_, _, dlogits) = run_once(gpu, shape, &logits, &vec![0; pixels], options);
        let chosen: Vec<usize> = (0..pixels).filter(|&i| dlogits[2 * i] != 0.0).collect();
        let hard = (0..150).map(|i| side * side + 7 * i);
        assert_eq!(chosen, (0..50).chain(hard).collect::<Vec<_>>());
    }
}

#[test]
fn large_logits_do_not_overflow() {
    // Differences of 1e4 leave one class all of the probability.
    let logits = [1e4, -1e4, 0.0, -2e4, -3e4, -1e4];
    let (loss, accuracy, dlogits) =
        run_once(&GPU, [1, 1, 2, 3], &logits, &[1, 0], options(1, 2, None));
    assert_eq!((loss, accuracy), ((2e4 + 1e4) / 2.0, 0.0));
    assert_eq!(dlogits, [0.5, -0.5, 0.0, -0.5, 0.0, 0.5]);
}

#[test]
fn a_nan_shows_in_loss_and_gradient() {
    for (side, kept) in [(4, None), (4, Some(2)), (16, None), (16, Some(3))] {
        let mut logits = random(&mut Rng::new(4, 0), 4 * 4 * 6);
        logits[45] = f32::NAN;
        let labels = vec![1; side * side];
        let (loss, _, dlogits) =
            run_once(&GPU, [1, 4, 4, 6], &logits, &labels, options(side, side, kept));
        // SwiftShader's log(NaN) is infinite.
        assert!(!loss.is_finite(), "{side} {kept:?}: loss {loss}");
        assert!(dlogits.iter().any(|v| !v.is_finite()), "{side} {kept:?}: gradient");
    }
}

#[test]
fn accuracy_counts_the_first_of_equal_logits() {
    // Columns: the first class of two is the largest; both are; the second is.
    let logits = [1.0, 0.0, 0.5, 0.5, 0.0, 1.0, 2.0, 2.0];
    let accuracy =
        |labels: &[u8; 4]| run_once(&GPU, [1, 1, 4, 2], &logits, labels, options(1, 4, None)).1;
    assert_eq!(accuracy(&[0, 0, 1, 0]), 100.0);
    assert_eq!(accuracy(&[0, 1, 1, 1]), 50.0);
    assert_eq!(accuracy(&[0, 0, 1, IGNORED]), 75.0);
}

#[test]
fn the_same_bits_every_time() {
    let shape = [2, 20, 20, 19];
    let logits = random(&mut Rng::new(5, 0), 2 * 20 * 20 * 19);
    let labels = some_labels(2 * 80 * 80, 19);
    let once = || run_once(&GPU, shape, &logits, &labels, options(80, 80, Some(700)));
    assert!(once() == once());
}

#[test]
fn losses_equal_torch() {
    for name in ["block.fpn_loss.plain", "block.fpn_loss.ohem"] {
        let Some(fx) = Fixture::open(name) else { return };
        let labels = fx.labels("in.label");
        let [_, height, width] = *fx.shape("in.label") else { panic!("labels are [B, H, W]") };
        let weight = fx.config["cate_w"].as_f64().unwrap() as f32;
        let kept = fx.config["ohem_min_kept"].as_u64().map(|kept| kept as usize);
        for gpu in [&*GPU, &*OTHER] {
            let [logits, prior] = ["in.logits", "in.prior"].map(|n| fx.image(gpu, n).tracked());
            let labels = on_device(gpu, &labels);
            let mut tape = Tape::training(gpu.profile());
            let main = CrossEntropy { height, width, weight: 1.0, ohem_min_kept: kept };
            let aside = CrossEntropy { weight, ohem_min_kept: None, ..main };
            let main = ops::cross_entropy(&mut tape, &logits, &labels, main);
            let aside = ops::cross_entropy(&mut tape, &prior, &labels, aside);
            let total = ops::add(&mut tape, &main.loss, &aside.loss);
            let results = [&main.loss, &aside.loss, &main.accuracy];
            let results = results.map(|t| tape.recorder().keep(t, "result"));
            let (mut recorder, grads) = tape.backward(&total);
            let grads = [&logits, &prior].map(|t| recorder.keep(grads.get(t).unwrap(), "gradient"));
            run(gpu, &recorder);
            for (name, result) in ["loss_ce", "loss_cate", "acc_seg"].iter().zip(&results) {
                fx.check(&format!("out.{name}"), &result.read(gpu).unwrap());
            }
            for (name, grad) in ["gin.logits", "gin.prior"].iter().zip(&grads) {
                fx.check_image(name, &grad.read(gpu).unwrap());
            }
            // Gradients are small next to the rule's absolute 1e-7.
            let expected = crate::fixtures::nchw_to_nhwc(
                fx.f32("gin.logits"),
                fx.shape("gin.logits").try_into().unwrap(),
            );
            let expected: Vec<f64> = expected.into_iter().map(f64::from).collect();
            assert_close("gin.logits", &grads[0].read(gpu).unwrap(), &expected, 4e-6);
        }
    }
}

/// The mean over labelled pixels, of logits resized corner to corner.
fn check_labelled_mean(from: [usize; 4], goal: [usize; 2], labels: &[u8]) {
    let count = labels.iter().filter(|&&l| l != IGNORED).count().max(1) as f64;
    check_op(
        &[&from],
        F32,
        |tape, x| {
            let labels = on_device(device(), labels);
            ops::labelled_cross_entropy(tape, &x[0], &labels, goal, 0.4)
        },
        |x| {
            let [rows, columns] = [0, 1].map(|i| resize::corner_taps(from[1 + i], goal[i]));
            let logits = resize::reference_at(&x[0], from, &rows, &columns);
            vec![0.4 * losses(&logits, from[3], labels).iter().sum::<f64>() / count]
        },
    );
}

#[test]
fn the_mean_over_labelled_pixels() {
    for (from, goal) in [
        ([1, 1, 1, 2], [1, 1]),
        ([2, 1, 2, 3], [4, 8]),
        ([2, 4, 4, 19], [16, 16]),
        ([1, 3, 16, 31], [12, 64]),
        ([1, 3, 17, 33], [12, 68]),
        ([1, 5, 9, 150], [18, 35]),
        ([2, 3, 5, 2], [3, 5]),
        ([1, 9, 20, 3], [4, 7]),
        ([1, 3, 4, 2], [1, 2]),
    ] {
        let labels = some_labels(from[0] * goal[0] * goal[1], from[3]);
        check_labelled_mean(from, goal, &labels);
    }
    // Of no labels it is 0.
    check_labelled_mean([1, 2, 2, 3], [8, 8], &[IGNORED; 64]);
}

#[test]
fn the_mean_over_labelled_pixels_equals_torch() {
    let Some(fx) = Fixture::open("block.cate_loss_valid") else { return };
    let [_, height, width] = *fx.shape("in.seg") else { panic!("labels are [B, H, W]") };
    for gpu in [&*GPU, &*OTHER] {
        let prior = fx.image(gpu, "in.prior").tracked();
        let labels = on_device(gpu, &fx.labels("in.seg"));
        let mut tape = Tape::training(gpu.profile());
        let loss = ops::labelled_cross_entropy(&mut tape, &prior, &labels, [height, width], 1.0);
        let kept = tape.recorder().keep(&loss, "loss");
        let (mut recorder, grads) = tape.backward(&loss);
        let gradient = recorder.keep(grads.get(&prior).unwrap(), "gradient");
        run(gpu, &recorder);
        fx.check("out.loss_cate", &kept.read(gpu).unwrap());
        fx.check_image("gin.prior", &gradient.read(gpu).unwrap());
    }
}
