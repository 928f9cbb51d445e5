//! Whole models that find masks against the reference: features, priors, the predictions of every layer,
//! class scores and labels.

use std::collections::BTreeMap;

use semask_gpu::infer::{Frame, LiveInput, Segmenter, Slide, View};
use semask_gpu::model::{Head, Model, ModelConfig};
use semask_gpu::ops::predict::{self, Resizing};
use semask_gpu::{Gpu, Tape, Tensor, ops};
use serde_json::Value;

use crate::fixtures::Fixture;
use crate::support::{GPU, OTHER, run};

/// The models that there are numbers of.
const MODELS: [&str; 5] = ["maskformer", "mask2former", "mask2former_k150", "fapn", "msfapn"];

/// The model of a fixture.
pub(crate) fn config(config: &Value) -> ModelConfig {
    let swin = &config["swin"];
    let number = |value: &Value| value.as_u64().unwrap() as usize;
    let list =
        |key: &str| -> Vec<usize> { swin[key].as_array().unwrap().iter().map(number).collect() };
    let head = match config["kind"].as_str().unwrap() {
        "maskformer" => Head::Maskformer,
        "mask2former" => Head::Mask2former,
        "fapn" => Head::Fapn,
        "msfapn" => Head::Msfapn,
        other => panic!("{other}"),
    };
    assert_eq!(config["dim"], config["mask_dim"]);
    // The reference counts the prediction before the first layer, as detectron2 does.
    let before = usize::from(head != Head::Maskformer);
    let windowed = swin["windowed"].as_array().unwrap();
    ModelConfig {
        head,
        embed_dim: number(&swin["embed_dim"]),
        depths: list("depths"),
        num_heads: list("num_heads"),
        window_size: number(&swin["window_size"]),
        sem_window_size: number(&swin["sem_window_size"]),
        num_sem_blocks: vec![swin["num_sem_blocks"].as_u64().unwrap_or(1) as usize; 4],
        windowed: Some(windowed.iter().map(|v| v.as_bool().unwrap()).collect()),
        num_classes: number(&config["classes"]),
        channels: number(&config["dim"]),
        num_queries: number(&config["queries"]),
        nheads: number(&config["heads"]),
        dim_feedforward: number(&config["ffn"]),
        dec_layers: number(&config["dec_layers"]) - before,
        enc_layers: number(&config["enc_layers"]),
        enc_dim_feedforward: number(&config["enc_ffn"]),
        drop_path_rate: 0.0,
        dropout: 0.0,
        sem_dropout: 0.0,
        ..ModelConfig::default()
    }
}

/// A model with the weights of its fixture, and the fixture of its inputs and outputs.
pub(crate) fn open(name: &str, gpu: &Gpu) -> Option<(Model, Fixture)> {
    let part = |kind: &str| Fixture::open(&format!("model.{name}.{kind}"));
    let (io, weights) = (part("io")?, part("w")?);
    let model = Model::new(&config(&io.config)).unwrap();
    let mut names: BTreeMap<&str, &str> = model.parameters().aliases().collect();
    for (name, parameter) in model.parameters().iter() {
        assert_eq!(parameter.tensor.dims(), weights.shape(name), "{name}");
        parameter.tensor.write(gpu, weights.f32(name)).unwrap();
        names.insert(name, name);
    }
    assert_eq!(weights.names(""), names.into_keys().collect::<Vec<_>>());
    Some((model, io))
}

/// The pictures of a fixture, normalised, `[B, H, W, 3]`.
pub(crate) fn pictures(io: &Fixture, model: &Model, gpu: &Gpu) -> Tensor {
    let raw = io.image(gpu, "in.images");
    let ModelConfig { mean, std, .. } = *model.config();
    let values = raw.read(gpu).unwrap();
    let normal = |(i, v): (usize, &f32)| (v - mean[i % 3]) / std[i % 3];
    let values: Vec<f32> = values.iter().enumerate().map(normal).collect();
    Tensor::from_slice(gpu, raw.shape().clone(), &values)
}

fn predictions_equal_the_reference(name: &str) {
    for gpu in [&*GPU, &*OTHER] {
        let Some((model, io)) = open(name, gpu) else { return };
        let image = pictures(&io, &model, gpu);
        let (height, width) = (image.dims()[1], image.dims()[2]);
        let mut tape = Tape::inference(gpu.profile());
        let features = model.backbone().forward(&mut tape, &image);
        let predictions = model.forward_masks(&mut tape, &image);
        let prior = predictions.prior.as_ref().expect("a SeMask");
        let prior = ops::resize_corners(&mut tape, prior, height, width);

        let (mut images, mut others) = (Vec::new(), Vec::new());
        let mut keep = |tensor: &Tensor| tape.recorder().keep(tensor, "result");
        for (i, (map, prior)) in features.maps.iter().zip(&features.priors).enumerate() {
            images.push((format!("out.feat.{i}"), keep(map)));
            images.push((format!("out.prior.{i}"), keep(prior.as_ref().expect("a SeMask"))));
        }
        assert_eq!(predictions.layers.len(), io.names("out.logits.").len());
        for (j, layer) in predictions.layers.iter().enumerate() {
            others.push((format!("out.logits.{j}"), keep(&layer.class_logits)));
            others.push((format!("out.masks.{j}"), keep(&layer.mask_logits)));
        }
        let prior = keep(&prior);
        run(gpu, &tape.finish());
        for (name, tensor) in images {
            io.check_image(&name, &tensor.read(gpu).unwrap());
        }
        for (name, tensor) in others {
            io.check(&name, &tensor.read(gpu).unwrap());
        }
        let [batch, height, width, classes] = *prior.dims() else { unreachable!() };
        let values = prior.read(gpu).unwrap();
        let sample = sampled(&values, [batch, height, width, classes], [5, 7]);
        io.check("out.prior_sum_sample", &sample);
    }
}

/// Every so many rows and columns of `[B, H, W, K]`, as `[B, K, h, w]`.
fn sampled(values: &[f32], shape: [usize; 4], [down, across]: [usize; 2]) -> Vec<f32> {
    let [batch, height, width, classes] = shape;
    (0..batch)
        .flat_map(|b| (0..classes).map(move |k| (b, k)))
        .flat_map(|(b, k)| (0..height).step_by(down).map(move |y| (b, k, y)))
        .flat_map(|(b, k, y)| (0..width).step_by(across).map(move |x| (b, k, y, x)))
        .map(|(b, k, y, x)| values[((b * height + y) * width + x) * classes + k])
        .collect()
}

#[test]
fn maskformers_predictions_equal_the_reference() {
    predictions_equal_the_reference("maskformer");
}

#[test]
fn mask2formers_predictions_equal_the_reference() {
    predictions_equal_the_reference("mask2former");
    predictions_equal_the_reference("mask2former_k150");
}

#[test]
fn fapns_predictions_equal_the_reference() {
    predictions_equal_the_reference("fapn");
}

#[test]
fn msfapns_predictions_equal_the_reference() {
    predictions_equal_the_reference("msfapn");
}

/// Pictures of a size that needs padding, and labels of another size.
#[test]
fn scores_and_labels_equal_the_reference() {
    for name in MODELS {
        for gpu in [&*GPU, &*OTHER] {
            let Some((model, io)) = open(name, gpu) else { return };
            let classes = model.config().num_classes;
            let images = pictures(&io, &model, gpu);
            let [batch, full_height, full_width, _] = *images.dims() else { unreachable!() };
            let [height, width] = [full_height - 5, full_width - 9];
            let goal = [full_height + 6, full_width - 2];
            let values = images.read(gpu).unwrap();
            let rows = (0..batch).flat_map(|b| (0..height).map(move |y| b * full_height + y));
            let cropped: Vec<f32> = rows
                .flat_map(|row| &values[3 * row * full_width..][..3 * width])
                .copied()
                .collect();
            let image = Tensor::from_slice(gpu, [batch, height, width, 3], &cropped);

            let mut tape = Tape::inference(gpu.profile());
            let predictions = model.forward_masks(&mut tape, &image).layers;
            let last = predictions.last().unwrap();
            let probability = ops::softmax(&mut tape, &last.class_logits);
            let (masks, recorder) = (&last.mask_logits, tape.recorder());
            let scores = ops::mask_scores(recorder, &probability, masks, 0..height, width);
            let labels = predict::argmax(recorder, &scores, Resizing::to(goal[0], goal[1]));
            let labels = recorder.keep(&labels, "labels");
            let resized = ops::resize(&mut tape, &scores, goal[0], goal[1]);
            let resized = tape.recorder().keep(&resized, "scores");
            run(gpu, &tape.finish());
            let values = resized.read(gpu).unwrap();
            let sample = sampled(&values, [batch, goal[0], goal[1], classes], [6, 5]);
            io.check("out.infer_score_sample", &sample);
            let words: Vec<u32> = labels.read_as(gpu).unwrap();
            let labels: &[u8] = bytemuck::cast_slice(&words);
            io.check_integers("out.infer_argmax", &labels[..batch * goal[0] * goal[1]]);
        }
    }
}

/// The four heads.
const HEADS: [Head; 4] = [Head::Maskformer, Head::Mask2former, Head::Fapn, Head::Msfapn];

/// A small model with weights as they start out.
pub(crate) fn small(head: Head, gpu: &Gpu) -> Model {
    let model = Model::new(&ModelConfig {
        head,
        embed_dim: 8,
        depths: vec![1, 1, 2, 1],
        num_heads: vec![1, 2, 2, 4],
        window_size: 4,
        sem_window_size: 4,
        num_classes: 5,
        channels: 32,
        num_queries: 7,
        nheads: 4,
        dim_feedforward: 48,
        dec_layers: 4,
        enc_layers: 1,
        enc_dim_feedforward: 64,
        ..ModelConfig::default()
    });
    let model = model.unwrap();
    model.parameters().initialise(gpu, 3).unwrap();
    model
}

pub(crate) fn picture(height: usize, width: usize) -> Frame {
    let mut rng = semask_gpu::random::Rng::new(6, height as u64);
    let rgb: Vec<u8> = (0..3 * height * width).map(|_| rng.below(256) as u8).collect();
    Frame::from_rgb(height, width, &rgb).unwrap()
}

/// The class of the largest score of each pixel.
fn best(scores: &[f64], classes: usize) -> Vec<u8> {
    let of_pixel = |row: &[f64]| {
        let mut order: Vec<usize> = (0..classes).collect();
        order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
        let gap = row[order[0]] - row[order[1]];
        assert!(gap > 1e-6, "rounding decides between classes: {gap:e}");
        order[0] as u8
    };
    scores.chunks(classes).map(of_pixel).collect()
}

fn exact(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| v.into()).collect()
}

#[test]
fn scores_of_scaled_and_mirrored_views_are_averaged() {
    for head in HEADS {
        let model = small(head, &GPU);
        let classes = model.config().num_classes;
        let mut segmenter = Segmenter::new(&GPU, model);
        let goal = [19, 23];
        let mut sum = vec![0.0; goal[0] * goal[1] * classes];
        let mut views = Vec::new();
        for (height, width, mirror) in [(33, 40, false), (33, 40, true), (20, 24, true)] {
            let frame = picture(height, width);
            let seen = if mirror { frame.mirrored() } else { frame.clone() };
            let scores = exact(&segmenter.logits(&seen).unwrap().values);
            let from = [1, height, width, classes];
            let resized = crate::resize::reference(&scores, from, goal[0], goal[1]);
            for (i, sum) in sum.iter_mut().enumerate() {
                let (pixel, k) = (i / classes, i % classes);
                let x = pixel % goal[1];
                let at = if mirror { pixel - x + goal[1] - 1 - x } else { pixel };
                *sum += resized[at * classes + k];
            }
            views.push(View { frame, mirror });
        }
        let labels = segmenter.labels(&views, goal[0], goal[1], None).unwrap();
        assert_eq!(labels, best(&sum, classes), "{head:?}");
    }
}

#[test]
fn scores_of_windows_are_averaged() {
    let model = small(Head::Mask2former, &GPU);
    let classes = model.config().num_classes;
    let mut segmenter = Segmenter::new(&GPU, model);
    let frame = picture(37, 50);
    // Rows 0..32 and 5..37, columns 0..32 and 18..50.
    let slide = Slide { crop: [32, 32], stride: [24, 24] };
    let mut sum = vec![0.0; 37 * 50 * classes];
    for (top, left) in [(0, 0), (0, 18), (5, 0), (5, 18)] {
        let rows = (top..top + 32).flat_map(|y| &frame.rgba[4 * (y * 50 + left)..][..4 * 32]);
        let window = Frame::new(32, 32, rows.copied().collect()).unwrap();
        let scores = exact(&segmenter.logits(&window).unwrap().values);
        for (i, v) in scores.iter().enumerate() {
            let (pixel, k) = (i / classes, i % classes);
            sum[((top + pixel / 32) * 50 + left + pixel % 32) * classes + k] += v;
        }
    }
    let hits = |i: usize| {
        let (y, x) = (i / classes / 50, i / classes % 50);
        let along = |at: usize, second: usize| f64::from(at < 32) + f64::from(at >= second);
        along(y, 5) * along(x, 18)
    };
    for (i, sum) in sum.iter_mut().enumerate() {
        *sum /= hits(i);
    }
    let views = [View { frame, mirror: false }];
    let labels = segmenter.labels(&views, 37, 50, Some(&slide)).unwrap();
    assert_eq!(labels, best(&sum, classes));
    // To another size: the mean is resized.
    let resized = crate::resize::reference(&sum, [1, 37, 50, classes], 20, 61);
    let labels = segmenter.labels(&views, 20, 61, Some(&slide)).unwrap();
    assert_eq!(labels, best(&resized, classes));
}

#[test]
fn pictures_of_any_size_have_labels() {
    for head in HEADS {
        let mut segmenter = Segmenter::new(&GPU, small(head, &GPU));
        for (height, width) in [(1, 1), (1, 70), (65, 3), (32, 32)] {
            let frame = picture(height, width);
            let both = segmenter.batch(&[&frame, &frame], height, width).unwrap();
            assert_eq!(both[0].len(), height * width);
            assert_eq!(both[0], both[1]);
            let large = segmenter.batch(&[&frame], 33, 9).unwrap();
            assert_eq!(large[0].len(), 33 * 9);
            assert!(large[0].iter().all(|&label| label < 5), "{head:?}: {:?}", large[0]);
        }
    }
}

/// A map so wide that its labels are made in two bands, of which the first ends within a row of the masks.
#[test]
fn bands_of_labels_are_those_of_the_whole() {
    let mut segmenter = Segmenter::new(&GPU, small(Head::Fapn, &GPU));
    let (frame, goal) = (picture(30, 31), [120, 30_000]);
    let scores = segmenter.logits(&frame).unwrap();
    let scores = Tensor::from_slice(&GPU, [1, 30, 31, 5], &scores.values);
    let mut recorder = semask_gpu::gpu::Recorder::new(GPU.profile());
    let words = predict::argmax(&mut recorder, &scores, Resizing::to(goal[0], goal[1]));
    let words = recorder.keep(&words, "words");
    run(&GPU, &recorder);
    let words: Vec<u32> = words.read_as(&GPU).unwrap();
    let [labels] = &segmenter.batch(&[&frame], goal[0], goal[1]).unwrap()[..] else { panic!() };
    assert!(labels[..] == bytemuck::cast_slice::<u32, u8>(&words)[..goal[0] * goal[1]]);
}

#[test]
fn an_application_gets_the_same_labels_in_its_own_commands() {
    for head in HEADS {
        let mut segmenter = Segmenter::new(&GPU, small(head, &GPU));
        let (height, width) = (26, 64);
        let frame = picture(height, width);
        let expected = segmenter.batch(&[&frame], height, width).unwrap().remove(0);
        let live = segmenter.live(LiveInput::Buffer { height, width }, None).unwrap();
        live.input().unwrap().write(&GPU, &frame.rgba).unwrap();
        let mut encoder = GPU.device().create_command_encoder(&Default::default());
        live.encode(&mut encoder);
        GPU.queue().submit([encoder.finish()]);
        let words: Vec<u32> = live.labels().read_as(&GPU).unwrap();
        assert_eq!(bytemuck::cast_slice::<u32, u8>(&words), expected, "{head:?}");
    }
}
