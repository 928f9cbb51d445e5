//! Costs, matching and losses of masks: against loops over `f64`, and against the reference.

use semask_gpu::gpu::{Plan, Recorder};
use semask_gpu::ops::{self, MaskPoints, MaskWeights, Matching, PointSource};
use semask_gpu::random::Rng;
use semask_gpu::{Error, Gpu, Tape, Tensor};

use crate::fixtures::Fixture;
use crate::mask_targets::targets_of;
use crate::point_sample::samples;
use crate::resize;
use crate::support::{F32, GPU, OTHER, assert_close, check_op_at, device, random, run};

const WEIGHTS: MaskWeights = MaskWeights { class: 2.0, mask: 5.0, dice: 3.0 };

fn sigmoid(z: f64) -> f64 {
    1.0 / (1.0 + (-z).exp())
}

/// −log sigmoid(z) and −log(1 − sigmoid(z)), each times its focal factor if `focal`.
fn costs_of(z: f64, focal: bool) -> [f64; 2] {
    let p = sigmoid(z);
    let (yes, no) = (z.neg_exp_log(), (-z).neg_exp_log());
    if focal { [0.25 * (1.0 - p).powi(2) * yes, 0.75 * p.powi(2) * no] } else { [yes, no] }
}

trait NegExpLog {
    /// log(1 + e⁻ᶻ)
    fn neg_exp_log(self) -> f64;
}

impl NegExpLog for f64 {
    fn neg_exp_log(self) -> f64 {
        (-self).exp().ln_1p()
    }
}

/// The mask's and the overlap's loss of logits `z` against samples `t`.
fn losses_of(z: &[f64], t: &[f64], focal: bool) -> [f64; 2] {
    let pixel = |(&z, &t): (&f64, &f64)| {
        let [yes, no] = costs_of(z, focal);
        t * yes + (1.0 - t) * no
    };
    let mask = z.iter().zip(t).map(pixel).sum::<f64>() / z.len() as f64;
    let both: f64 = z.iter().zip(t).map(|(&z, t)| sigmoid(z) * t).sum();
    let area = z.iter().map(|&z| sigmoid(z)).sum::<f64>() + t.iter().sum::<f64>();
    [mask, 1.0 - (2.0 * both + 1.0) / (area + 1.0)]
}

/// The mask of a class.
fn mask_of(labels: &[u8], class: usize) -> Vec<f64> {
    labels.iter().map(|&l| f64::from(u8::from(usize::from(l) == class))).collect()
}

/// A batch: sizes, logits of classes and masks, and labels in patches, some of them ignored.
struct Batch {
    size: [usize; 3],
    queries: usize,
    classes: usize,
    mask: [usize; 2],
    logits: Vec<f32>,
    masks: Vec<f32>,
    labels: Vec<u8>,
}

impl Batch {
    fn new(size: [usize; 3], queries: usize, classes: usize, mask: [usize; 2]) -> Self {
        let [batch, height, width] = size;
        let mut rng = Rng::new(0xba7c4, (queries * 1000 + height) as u64);
        let logits = random(&mut rng, batch * queries * (classes + 1));
        let masks = random(&mut rng, batch * queries * mask[0] * mask[1]);
        let mut labels = vec![255; batch * height * width];
        for image in labels.chunks_mut(height * width) {
            for patch in 0..9 {
                let label = if patch == 8 { 255 } else { rng.below(classes) as u8 };
                let (top, left) = (rng.below(height), rng.below(width));
                for y in top..(top + height / 2 + 1).min(height) {
                    for x in left..(left + width / 2 + 1).min(width) {
                        image[y * width + x] = label;
                    }
                }
            }
        }
        Self { size, queries, classes, mask, logits, masks, labels }
    }

    fn label_map(&self, image: usize) -> &[u8] {
        let pixels = self.size[1] * self.size[2];
        &self.labels[image * pixels..][..pixels]
    }

    /// Classes of an image, in order.
    fn present(&self, image: usize) -> Vec<usize> {
        (0..self.classes).filter(|&k| self.label_map(image).contains(&(k as u8))).collect()
    }

    fn mask_logits(&self, row: usize) -> Vec<f64> {
        let size = self.mask[0] * self.mask[1];
        self.masks[row * size..][..size].iter().map(|&v| v.into()).collect()
    }

    /// `[B, Q, h, w]`
    fn mask_shape(&self) -> [usize; 4] {
        [self.size[0], self.queries, self.mask[0], self.mask[1]]
    }

    fn expected_cost(
        &self,
        image: usize,
        query: usize,
        class: usize,
        points: Option<&[f32]>,
    ) -> f64 {
        let row = image * self.queries + query;
        let x: Vec<f64> = (self.logits[row * (self.classes + 1)..][..self.classes + 1].iter())
            .map(|&v| v.into())
            .collect();
        let probability = x[class].exp() / x.iter().map(|v| v.exp()).sum::<f64>();
        let ([height, width], [h, w]) = ([self.size[1], self.size[2]], self.mask);
        let target = mask_of(self.label_map(image), class);
        let (z, t) = match points {
            Some(points) => (
                samples(&self.mask_logits(row), points, h, w),
                samples(&target, points, height, width),
            ),
            None => {
                let near =
                    (0..h * w).map(|i| target[(i / w * height / h) * width + i % w * width / w]);
                (self.mask_logits(row), near.collect())
            }
        };
        let [mask, dice] = losses_of(&z, &t, points.is_none());
        f64::from(WEIGHTS.mask) * mask - f64::from(WEIGHTS.class) * probability
            + f64::from(WEIGHTS.dice) * dice
    }

    fn check_costs(&self, count: Option<usize>) {
        let batch = self.size[0];
        let mut rng = Rng::new(0x90127, 0);
        let points: Option<Vec<f32>> =
            count.map(|count| (0..2 * batch * count).map(|_| rng.uniform()).collect());
        for gpu in [&*GPU, &*OTHER] {
            let logits =
                Tensor::from_slice(gpu, [batch, self.queries, self.classes + 1], &self.logits);
            let masks = Tensor::from_slice(gpu, self.mask_shape(), &self.masks);
            let given = points.as_ref().map(|points| {
                Tensor::from_slice(gpu, [batch, points.len() / 2 / batch, 2], points)
            });
            let mut recorder = Recorder::new(gpu.profile());
            let targets = targets_of(gpu, &mut recorder, &self.labels, self.size, self.classes);
            let costs =
                ops::mask_costs(&mut recorder, &logits, &masks, &targets, given.as_ref(), WEIGHTS);
            let costs = recorder.keep(&costs, "costs");
            run(gpu, &recorder);
            let costs = costs.read(gpu).unwrap();
            let (mut got, mut expected) = (Vec::new(), Vec::new());
            for image in 0..batch {
                let points =
                    points.as_ref().map(|p| &p[p.len() / batch * image..][..p.len() / batch]);
                for query in 0..self.queries {
                    let row = &costs[(image * self.queries + query) * self.classes..];
                    for (column, class) in self.present(image).into_iter().enumerate() {
                        got.push(row[column]);
                        expected.push(self.expected_cost(image, query, class, points));
                    }
                }
            }
            assert_close("costs", &got, &expected, F32.forward);
        }
    }
}

#[test]
fn costs_of_classes_masks_and_overlap() {
    for (size, queries, classes, mask) in [
        ([1, 1, 1], 1, 2, [1, 1]),
        ([2, 8, 12], 5, 4, [2, 3]),
        // More than eight targets, and more than a workgroup's samples.
        ([2, 48, 40], 3, 40, [12, 10]),
        ([1, 33, 27], 2, 3, [9, 7]),
    ] {
        let batch = Batch::new(size, queries, classes, mask);
        batch.check_costs(None);
        batch.check_costs(Some(1));
        batch.check_costs(Some(150));
    }
    let empty = Batch { labels: vec![255; 32], ..Batch::new([1, 4, 8], 3, 5, [2, 4]) };
    empty.check_costs(None);
}

/// A matching as the host would write it: (mask row, class) of each pair.
fn given_matching(gpu: &Gpu, pairs: &[(usize, usize)], batch: &Batch, targets: usize) -> Matching {
    let capacity = batch.size[0] * batch.queries.min(batch.classes);
    let mut words = vec![0u32; 2 + 2 * capacity];
    let mut goals = vec![batch.classes as u32; batch.size[0] * batch.queries];
    words[0] = pairs.len() as u32;
    words[1] = (1.0 / targets.max(1) as f32).to_bits();
    for (i, &(mask, class)) in pairs.iter().enumerate() {
        words[2 + i] = mask as u32;
        words[2 + capacity + i] = class as u32;
        goals[mask] = class as u32;
    }
    Matching {
        pairs: Tensor::from_slice(gpu, [words.len()], &words),
        goals: Tensor::from_slice(gpu, [batch.size[0], batch.queries], &goals),
    }
}

/// Some pairs: query 2 j of each image has target j.
fn some_pairs(batch: &Batch) -> Vec<(usize, usize)> {
    let mut pairs = Vec::new();
    for image in 0..batch.size[0] {
        let queries = (0..batch.queries).step_by(2).map(|q| image * batch.queries + q);
        pairs.extend(queries.zip(batch.present(image)));
    }
    pairs
}

/// Candidates, hard ones, further ones.
type Points = [usize; 3];

fn check_loss(batch: &Batch, points: Option<Points>) {
    let pairs = some_pairs(batch);
    let targets: usize = (0..batch.size[0]).map(|image| batch.present(image).len()).sum();
    let capacity = batch.size[0] * batch.queries.min(batch.classes);
    let count = points.map_or(0, |[candidates, _, extra]| candidates + extra);
    let mut rng = Rng::new(0x10c5, 0);
    let places: Vec<f32> = (0..2 * capacity * count).map(|_| rng.uniform()).collect();
    let ([height, width], [h, w]) = ([batch.size[1], batch.size[2]], batch.mask);
    // The choice of points has no gradient: it is that of the values as they are.
    let chosen: Vec<Vec<f32>> = (pairs.iter().zip(places.chunks((2 * count).max(1))))
        .map(|(&(row, _), places)| {
            let [candidates, hard, _] = points.unwrap();
            let z = samples(&batch.mask_logits(row), places, h, w);
            let mut order: Vec<usize> = (0..candidates).collect();
            order.sort_by(|&a, &b| z[a].abs().total_cmp(&z[b].abs()));
            order.truncate(hard);
            let all = order.into_iter().chain(candidates..count);
            all.flat_map(|i| [places[2 * i], places[2 * i + 1]]).collect()
        })
        .collect();
    check_op_at(
        &[&batch.mask_shape()],
        std::slice::from_ref(&batch.masks),
        F32,
        |tape, x| {
            let gpu = device();
            let targets_ =
                targets_of(gpu, tape.recorder(), &batch.labels, batch.size, batch.classes);
            let matching = given_matching(gpu, &pairs, batch, targets);
            let points = points.map(|[candidates, hard, extra]| MaskPoints {
                candidates,
                hard,
                extra,
                source: PointSource::Given(Tensor::from_slice(gpu, [capacity, count, 2], &places)),
            });
            ops::mask_loss(tape, &x[0], &targets_, &matching, points, WEIGHTS).loss
        },
        |x| {
            let mut sum = 0.0;
            for (i, &(row, class)) in pairs.iter().enumerate() {
                let logits = &x[0][row * h * w..][..h * w];
                let target = mask_of(batch.label_map(row / batch.queries), class);
                let (z, t) = match points {
                    Some(_) => (
                        samples(logits, &chosen[i], h, w),
                        samples(&target, &chosen[i], height, width),
                    ),
                    None => (resize::reference(logits, [1, h, w, 1], height, width), target),
                };
                let [mask, dice] = losses_of(&z, &t, points.is_none());
                sum += f64::from(WEIGHTS.mask) * mask + f64::from(WEIGHTS.dice) * dice;
            }
            vec![sum / targets.max(1) as f64]
        },
    );
}

#[test]
fn losses_on_the_whole_picture() {
    for (size, queries, classes, mask) in [
        ([1, 1, 1], 1, 2, [1, 1]),
        ([2, 8, 12], 9, 4, [2, 3]),
        ([2, 48, 40], 5, 40, [12, 10]),
        // More than a workgroup's 16 384 pixels, and odd sizes.
        ([1, 150, 131], 8, 6, [38, 33]),
        ([1, 33, 27], 6, 3, [9, 7]),
    ] {
        check_loss(&Batch::new(size, queries, classes, mask), None);
    }
}

#[test]
fn losses_at_points() {
    for (size, queries, classes, mask, points) in [
        ([1, 1, 1], 1, 2, [1, 1], [3, 1, 1]),
        ([2, 8, 12], 9, 4, [2, 3], [30, 7, 3]),
        // Nothing but candidates, nothing but others, and all candidates.
        ([2, 48, 40], 5, 40, [12, 10], [300, 90, 0]),
        ([2, 48, 40], 5, 40, [12, 10], [0, 0, 65]),
        ([1, 33, 27], 6, 3, [9, 7], [64, 64, 5]),
        ([1, 64, 64], 12, 6, [16, 16], [1000, 250, 83]),
    ] {
        check_loss(&Batch::new(size, queries, classes, mask), Some(points));
    }
}

#[test]
fn a_batch_without_targets_loses_nothing() {
    let batch = Batch { labels: vec![255; 2 * 32], ..Batch::new([2, 4, 8], 3, 5, [2, 4]) };
    check_loss(&batch, None);
    check_loss(&batch, Some([12, 3, 2]));
}

/// With all logits equal every candidate is as uncertain as any other.
#[test]
fn of_equally_uncertain_points_the_first_are_chosen() {
    let batch = Batch::new([1, 16, 16], 1, 2, [4, 4]);
    let class = batch.present(0)[0];
    let (candidates, hard) = (700, 301);
    let mut rng = Rng::new(3, 3);
    let places: Vec<f32> = (0..2 * candidates).map(|_| rng.uniform()).collect();
    for gpu in [&*GPU, &*OTHER] {
        let masks = Tensor::from_slice(gpu, [1, 1, 4, 4], &[0f32; 16]).tracked();
        let mut tape = Tape::training(gpu.profile());
        let targets = targets_of(gpu, tape.recorder(), &batch.labels, batch.size, 2);
        let matching = given_matching(gpu, &[(0, class)], &batch, 1);
        let source = PointSource::Given(Tensor::from_slice(gpu, [1, candidates, 2], &places));
        let points = MaskPoints { candidates, hard, extra: 0, source };
        let weights = MaskWeights { class: 0.0, mask: 0.0, dice: 1.0 };
        let y = ops::mask_loss(&mut tape, &masks, &targets, &matching, Some(points), weights);
        let loss = tape.recorder().keep(&y.loss, "loss");
        run(gpu, &tape.finish());
        let target = mask_of(&batch.labels, class);
        let t = samples(&target, &places[..2 * hard], 16, 16);
        let [_, expected] = losses_of(&vec![0.0; hard], &t, false);
        assert_close("loss", &loss.read(gpu).unwrap(), &[expected], F32.forward);
    }
}

/// Points that are drawn on the device: uniform, different for each pair, the same in a replay of the same
/// step and others in the next, and the loss is that of a mean over many.
#[test]
fn drawn_points_are_uniform() {
    let batch = Batch::new([1, 64, 64], 4, 3, [16, 16]);
    let pairs = some_pairs(&batch);
    let gpu = &*GPU;
    let state = Tensor::from_slice(gpu, [4], &[5u32, 0, 0, 0]);
    let masks = Tensor::from_slice(gpu, batch.mask_shape(), &batch.masks).tracked();
    let mut tape = Tape::training(gpu.profile()).randomised(&state);
    let targets = targets_of(gpu, tape.recorder(), &batch.labels, batch.size, 3);
    let matching = given_matching(gpu, &pairs, &batch, 1);
    let source = PointSource::Random(tape.stream().unwrap());
    let points = MaskPoints { candidates: 0, hard: 0, extra: 40_001, source };
    let y = ops::mask_loss(&mut tape, &masks, &targets, &matching, Some(points), WEIGHTS);
    let terms = tape.recorder().keep(&y.terms, "terms");
    let (mut recorder, grads) = tape.backward(&y.loss);
    let gradient = recorder.keep(grads.get(&masks).unwrap(), "gradient");
    let plan = Plan::new(gpu, &recorder).unwrap();
    let once = || {
        plan.run().unwrap();
        (terms.read(gpu).unwrap(), gradient.read(gpu).unwrap())
    };
    let first = once();
    assert!(once() == first, "the same step draws the same");
    state.write(gpu, &[5u32, 0, 1, 0]).unwrap();
    let second = once();
    assert!(second.0 != first.0, "another step draws other points");
    // Against a fine grid; of 40 000 points the mean is off by about 1 / 200.
    let side = 400;
    let centre = |i: usize| (i as f32 + 0.5) / side as f32;
    let grid: Vec<f32> =
        (0..side * side).flat_map(|i| [centre(i % side), centre(i / side)]).collect();
    let mut expected = [0.0; 2];
    for &(row, class) in &pairs {
        let z = samples(&batch.mask_logits(row), &grid, 16, 16);
        let t = samples(&mask_of(batch.label_map(0), class), &grid, 64, 64);
        let of = losses_of(&z, &t, false);
        expected[0] += f64::from(WEIGHTS.mask) * of[0];
        expected[1] += f64::from(WEIGHTS.dice) * of[1];
    }
    for (got, _) in [first, second] {
        assert_close("terms", &got, &expected, 0.015);
    }
}

#[test]
fn pairs_beyond_the_first_chunk_are_like_the_others() {
    // 16 bytes for each point: 32 MiB hold four of these pairs.
    let batch = Batch::new([1, 32, 32], 12, 12, [8, 8]);
    let pairs = some_pairs(&batch);
    assert_eq!(pairs.len(), 5);
    let gpu = &*GPU;
    let state = Tensor::from_slice(gpu, [4], &[5u32, 0, 0, 0]);
    let losses = [&pairs[..], &pairs[4..]].map(|pairs| {
        let masks = Tensor::from_slice(gpu, batch.mask_shape(), &batch.masks).tracked();
        let mut tape = Tape::training(gpu.profile()).randomised(&state);
        let targets = targets_of(gpu, tape.recorder(), &batch.labels, batch.size, 12);
        let matching = given_matching(gpu, pairs, &batch, 1);
        let source = PointSource::Random(tape.stream().unwrap());
        let points = MaskPoints { candidates: 400_000, hard: 75_000, extra: 25_000, source };
        let y = ops::mask_loss(&mut tape, &masks, &targets, &matching, Some(points), WEIGHTS);
        let terms = tape.recorder().keep(&y.terms, "terms");
        let (mut recorder, grads) = tape.backward(&y.loss);
        let gradient = recorder.keep(grads.get(&masks).unwrap(), "gradient");
        run(gpu, &recorder);
        let row = pairs.last().unwrap().0;
        let gradient = gradient.read(gpu).unwrap()[64 * row..][..64].to_vec();
        assert!(gradient.iter().any(|&g| g != 0.0));
        (terms.read(gpu).unwrap(), gradient)
    });
    // The last pair, alone and after four others: other points, but of the same kind.
    let [(all, last), (alone, first)] = losses;
    assert!(all[0] > 3.0 * alone[0], "{all:?} {alone:?}");
    let scale = first.iter().fold(0f32, |m, g| m.max(g.abs()));
    for (a, b) in last.iter().zip(&first) {
        assert!((a - b).abs() <= 0.1 * scale, "{a} {b}");
    }
}

#[test]
fn costs_that_are_no_numbers_end_the_step_with_an_error() {
    let batch = Batch::new([2, 8, 8], 3, 4, [2, 2]);
    let mut values = batch.masks.clone();
    values[4 * 4 + 1] = f32::NAN;
    let masks = Tensor::from_slice(&GPU, batch.mask_shape(), &values);
    let logits = Tensor::from_slice(&GPU, [2, 3, 5], &batch.logits);
    let mut recorder = Recorder::new(GPU.profile());
    let targets = targets_of(&GPU, &mut recorder, &batch.labels, batch.size, 4);
    let costs = ops::mask_costs(&mut recorder, &logits, &masks, &targets, None, WEIGHTS);
    let matching = ops::match_masks(&mut recorder, &costs, &targets, "layer 3");
    let goals = recorder.keep(&matching.goals, "goals");
    let error = Plan::new(&GPU, &recorder).unwrap().run().unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
    let text = error.to_string();
    assert!(text.starts_with("matching of layer 3, picture 1 of the batch: query 1"), "{text}");
    drop(goals);
}

#[test]
fn matching_and_losses_equal_torch() {
    for (name, points) in [("block.set_loss.points", true), ("block.set_loss.dense", false)] {
        let Some(fx) = Fixture::open(name) else { return };
        let number = |key: &str| fx.config["weights"][key].as_f64().unwrap() as f32;
        let weights =
            MaskWeights { class: number("class"), mask: number("mask"), dice: number("dice") };
        let [batch, queries, classes] = *fx.shape("in.logits") else { unreachable!() };
        let classes = classes - 1;
        let size: [usize; 3] = fx.shape("in.seg").try_into().unwrap();
        for gpu in [&*GPU, &*OTHER] {
            let [logits, masks] = ["in.logits", "in.masks"].map(|n| fx.tensor(gpu, n).tracked());
            let mut tape = Tape::training(gpu.profile());
            let targets = targets_of(gpu, tape.recorder(), &fx.labels("in.seg"), size, classes);
            let match_points = points.then(|| {
                let of = |image: usize| fx.f32(&format!("points.match.final.{image}"));
                let all: Vec<f32> = (0..batch).flat_map(of).copied().collect();
                Tensor::from_slice(gpu, [batch, all.len() / 2 / batch, 2], &all)
            });
            let costs = ops::mask_costs(
                tape.recorder(),
                &logits,
                &masks,
                &targets,
                match_points.as_ref(),
                weights,
            );
            let costs_ = tape.recorder().keep(&costs, "costs");
            let matching = ops::match_masks(tape.recorder(), &costs, &targets, "a test");
            let goals = tape.recorder().keep(&matching.goals, "goals");
            let class = ops::class_loss(&mut tape, &logits, &matching.goals, 0.1, weights.class);
            let mask_points = points.then(|| given_points(gpu, &fx, "final", matching.capacity()));
            let y = ops::mask_loss(&mut tape, &masks, &targets, &matching, mask_points, weights);
            let total = ops::add(&mut tape, &class, &y.loss);
            let class = tape.recorder().keep(&class, "class");
            let terms = tape.recorder().keep(&y.terms, "terms");
            let (mut recorder, grads) = tape.backward(&total);
            let grads = [&logits, &masks].map(|t| recorder.keep(grads.get(t).unwrap(), "gradient"));
            run(gpu, &recorder);

            let costs = costs_.read(gpu).unwrap();
            let goals: Vec<u32> = goals.read_as(gpu).unwrap();
            for image in 0..batch {
                let suffix = if image == 0 { "" } else { "_1" };
                let labels = fx.integers(&format!("in.target_labels{suffix}"));
                let rows = costs[image * queries * classes..].chunks(classes).take(queries);
                let got: Vec<f32> = rows.flat_map(|row| &row[..labels.len()]).copied().collect();
                fx.check(&format!("out.cost.{image}"), &got);
                let mut expected = vec![classes as u32; queries];
                let pairs = fx.integers(&format!("out.pair_query.{image}"));
                for (q, k) in pairs.iter().zip(fx.integers(&format!("out.pair_target.{image}"))) {
                    expected[*q as usize] = labels[k as usize] as u32;
                }
                assert_eq!(goals[image * queries..][..queries], expected, "{name}");
            }
            fx.check("out.loss_ce", &[class.read(gpu).unwrap()[0] / weights.class]);
            let terms = terms.read(gpu).unwrap();
            fx.check("out.loss_mask", &[terms[0] / weights.mask]);
            fx.check("out.loss_dice", &[terms[1] / weights.dice]);
            for (name, grad) in ["gin.logits", "gin.masks"].iter().zip(&grads) {
                fx.check(name, &grad.read(gpu).unwrap());
            }
        }
    }
}

/// The points of a fixture for the loss of `layer`, filled up to `capacity` pairs.
pub(crate) fn given_points(gpu: &Gpu, fx: &Fixture, layer: &str, capacity: usize) -> MaskPoints {
    let parts = [format!("points.over.{layer}"), format!("points.extra.{layer}")];
    let [candidates, extra] = parts.each_ref().map(|name| fx.shape(name)[1]);
    let mut all = vec![0f32; 2 * capacity * (candidates + extra)];
    let [over, more] = parts.each_ref().map(|name| fx.f32(name));
    let rows = over.chunks(2 * candidates).zip(more.chunks(2 * extra));
    for (row, (over, more)) in all.chunks_mut(2 * (candidates + extra)).zip(rows) {
        row[..over.len()].copy_from_slice(over);
        row[over.len()..].copy_from_slice(more);
    }
    let source =
        PointSource::Given(Tensor::from_slice(gpu, [capacity, candidates + extra, 2], &all));
    // A quarter of the points is drawn afresh.
    MaskPoints { candidates, hard: 3 * extra, extra, source }
}
