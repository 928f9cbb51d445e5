use semask_gpu::ops::predict::{self, Part, Resizing};
use semask_gpu::ops::{self, mask_scores};
use semask_gpu::{Gpu, Tape, Tensor};

use crate::fixtures::Fixture;
use crate::support::{CHECKED, GPU, OTHER, assert_close, random, run};

/// Four times the sides, sigmoid, and the sum over queries: step by step.
fn reference(
    logits: &[f32],
    masks: &[f32],
    [batch, queries, height, width]: [usize; 4],
    classes: usize,
) -> Vec<f64> {
    let exact = |values: &[f32]| -> Vec<f64> { values.iter().map(|&v| v.into()).collect() };
    let mut scores = Vec::new();
    for b in 0..batch {
        let probability: Vec<Vec<f64>> = (0..queries)
            .map(|q| {
                let row = exact(&logits[(b * queries + q) * (classes + 1)..][..classes + 1]);
                let sum: f64 = row.iter().map(|v| v.exp()).sum();
                row.iter().map(|v| v.exp() / sum).collect()
            })
            .collect();
        let large: Vec<Vec<f64>> = (0..queries)
            .map(|q| {
                let mask = exact(&masks[(b * queries + q) * height * width..][..height * width]);
                crate::resize::reference(&mask, [1, height, width, 1], 4 * height, 4 * width)
            })
            .collect();
        let score = |pixel: usize, k: usize| -> f64 {
            let of_query = |q: usize| probability[q][k] / (1.0 + (-large[q][pixel]).exp());
            (0..queries).map(of_query).sum()
        };
        let places = (0..16 * height * width).flat_map(|p| (0..classes).map(move |k| (p, k)));
        scores.extend(places.map(|(pixel, k)| score(pixel, k)));
    }
    scores
}

/// The scores in bands of rows; `cuts`: where each begins, and where the last ends.
fn scores(gpu: &Gpu, logits: &Tensor, masks: &Tensor, cuts: &[usize]) -> Vec<f32> {
    let mut tape = Tape::inference(gpu.profile());
    let probability = ops::softmax(&mut tape, logits);
    let width = 4 * masks.dims()[3];
    let kept: Vec<Tensor> = (cuts.windows(2))
        .map(|cut| {
            let rows = cut[0]..cut[1];
            let part = mask_scores(tape.recorder(), &probability, masks, rows, width);
            tape.recorder().keep(&part, "scores")
        })
        .collect();
    run(gpu, &tape.finish());
    kept.iter().flat_map(|part| part.read(gpu).unwrap()).collect()
}

#[test]
fn scores_are_sums_over_queries_whole_and_row_by_row() {
    let mut rng = semask_gpu::random::Rng::new(8, 8);
    for (shape, classes) in
        [([1, 1, 1, 1], 1), ([2, 7, 8, 12], 5), ([1, 100, 3, 5], 150), ([1, 33, 2, 17], 31)]
    {
        let [batch, queries, height, width] = shape;
        let logits = random(&mut rng, batch * queries * (classes + 1));
        let masks = random(&mut rng, batch * queries * height * width);
        let expected = reference(&logits, &masks, shape, classes);
        for gpu in [&*GPU, &*CHECKED, &*OTHER] {
            let logits = Tensor::from_slice(gpu, [batch, queries, classes + 1], &logits);
            let masks = Tensor::from_slice(gpu, shape, &masks);
            let rows = 4 * height;
            assert_close("scores", &scores(gpu, &logits, &masks, &[0, rows]), &expected, 4e-6);
            if batch == 1 {
                let got = scores(gpu, &logits, &masks, &[0, 1, 3, rows]);
                assert_close("scores of rows", &got, &expected, 4e-6);
            }
        }
    }
}

#[test]
fn semantic_inference_equals_the_reference() {
    let Some(fx) = Fixture::open("block.semantic_inference") else { return };
    for gpu in [&*GPU, &*OTHER] {
        let (logits, masks) = (fx.tensor(gpu, "in.logits"), fx.tensor(gpu, "in.masks"));
        let size = 4 * masks.dims()[2];
        fx.check_image("out.scores", &scores(gpu, &logits, &masks, &[0, size]));

        // Cropped, and resized: the sum of one view.
        let mut tape = Tape::inference(gpu.profile());
        let probability = ops::softmax(&mut tape, &logits);
        let mut recorder = tape.finish();
        let cropped = mask_scores(&mut recorder, &probability, &masks, 0..27, 45);
        let [batch, _, _, classes] = *cropped.dims() else { unreachable!() };
        let sum = Tensor::pinned("sum", [batch, 40, 50, classes]);
        let (part, resizing) = (Part::from(&cropped), Resizing::to(40, 50));
        predict::scores_accumulate(&mut recorder, part, resizing, 0, false, &sum, true);
        run(gpu, &recorder);
        fx.check_image("out.cropped_resized", &sum.read(gpu).unwrap());
    }
}

/// Two views, one of them mirrored, in two bands of rows.
#[test]
fn scores_of_views_add_up() {
    let (height, width, classes) = (4, 6, 3);
    let values: Vec<f32> = (0..height * width * classes).map(|i| (i * i % 31) as f32).collect();
    let mut expected = vec![0.0; values.len()];
    for (i, sum) in expected.iter_mut().enumerate() {
        let (pixel, k) = (i / classes, i % classes);
        let mirrored = pixel / width * width + width - 1 - pixel % width;
        *sum = f64::from(values[i]) + f64::from(values[mirrored * classes + k]);
    }
    for gpu in [&*GPU, &*OTHER] {
        let scores = Tensor::from_slice(gpu, [1, height, width, classes], &values);
        let sums = [0..1, 1..height].map(|rows| {
            let sum = Tensor::pinned("sum", [1, rows.len(), width, classes]);
            for (mirror, first) in [(false, true), (true, false)] {
                let mut r = semask_gpu::gpu::Recorder::new(gpu.profile());
                let resizing = Resizing::to(height, width);
                predict::scores_accumulate(
                    &mut r, &scores, resizing, rows.start, mirror, &sum, first,
                );
                run(gpu, &r);
            }
            sum.read(gpu).unwrap()
        });
        assert_close("sum", &sums.concat(), &expected, 1e-7);
    }
}

/// Bands of labels in one tensor are the labels of the whole map.
#[test]
fn labels_of_rows_go_where_they_belong() {
    let (height, width, classes) = (9, 5, 4);
    let values: Vec<f32> = (0..height * width * classes).map(|i| (i * i % 37) as f32).collect();
    let scores = Tensor::from_slice(&GPU, [1, height, width, classes], &values);
    let mut r = semask_gpu::gpu::Recorder::new(GPU.profile());
    let resizing = Resizing::to(height, width);
    let whole = predict::argmax(&mut r, &scores, resizing);
    let whole = r.keep(&whole, "whole");
    let parts = r.empty(whole.shape().clone());
    for rows in [0..4, 4..8, 8..9] {
        predict::argmax_rows_into(&mut r, &scores, resizing, rows, &parts);
    }
    let parts = r.keep(&parts, "parts");
    run(&GPU, &r);
    let [whole, parts]: [Vec<u32>; 2] = [whole, parts].map(|t| t.read_as(&GPU).unwrap());
    assert_eq!(whole, parts);
}
