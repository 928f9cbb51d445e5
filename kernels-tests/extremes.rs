//! The extremes of what a data set may hold, for every head: pictures of a single pixel, of odd sides and of twelve
//! million pixels; labels of one class, of none, and in a batch with others.

use semask_gpu::infer::{Segmenter, Slide, View};
use semask_gpu::model::{Head, LossSettings, MaskSettings, PointSettings};
use semask_gpu::ops::{self, Normalize};
use semask_gpu::optim::{AdamW, AdamWSettings};
use semask_gpu::random::Rng;
use semask_gpu::{Error, Tape, Tensor};

use crate::cross_entropy::on_device;
use crate::mask_models::{picture, small};
use crate::support::{GPU, run};

const HEADS: [Head; 5] = [Head::Fpn, Head::Maskformer, Head::Mask2former, Head::Fapn, Head::Msfapn];

const IGNORED: u8 = 255;

fn settings(head: Head) -> LossSettings {
    let at_points = PointSettings { count: 40, oversample: 3.0, importance: 0.75 };
    let masks = match head {
        Head::Maskformer => MaskSettings::dense(),
        _ => MaskSettings { points: Some(at_points), ..MaskSettings::default() },
    };
    LossSettings { cate_w: 0.4, ohem_min_kept: Some(30), masks }
}

/// A step on pictures of `size`, padded as the loader does, with `labels` for the pixels of each. Loss, gradients
/// and what the step leaves of parameters and running statistics must be numbers.
fn step(head: Head, [height, width]: [usize; 2], labels: &[Vec<u8>]) {
    let case = format!("{head:?}, {height} × {width}");
    let model = small(head, &GPU);
    let batch = labels.len();
    let [rows, cols] = [height, width].map(|n| n.next_multiple_of(model.config().size_divisor()));
    let mut rng = Rng::new(8, (height * width) as u64);
    let pictures: Vec<u32> =
        (0..batch * rows * cols).map(|_| rng.below(1 << 24) as u32 | 0xff << 24).collect();
    let pictures = Tensor::from_slice(&GPU, [batch, rows, cols], &pictures);
    let padded = labels.iter().flat_map(|labels| {
        (0..rows).flat_map(move |y| {
            (0..cols).map(
                move |x| {
                    if y < height && x < width { labels[y * width + x] } else { IGNORED }
                },
            )
        })
    });
    let labels = on_device(&GPU, &padded.collect::<Vec<u8>>());
    let state = Tensor::from_slice(&GPU, [4], &[1_u32, 0, 2, 0]);
    let mut tape = Tape::training(GPU.profile()).randomised(&state);
    let (mean, std) = (model.config().mean, model.config().std);
    let image = ops::normalize(tape.recorder(), &pictures, Normalize { mean, std, flip: false });
    let losses = model.losses(&mut tape, &image, &labels, settings(head));
    let total = tape.recorder().keep(&losses.total, "loss");
    let (mut recorder, gradients) = tape.backward(&losses.total);
    let parameters = model.parameters();
    let mut adamw = AdamW::new(parameters, AdamWSettings::default());
    adamw.set_groups(&GPU, parameters, |_, _| (1.0, 0.01)).unwrap();
    adamw.record_gradients(&mut recorder, parameters, &gradients).unwrap();
    adamw.record_update(&mut recorder);
    adamw.prepare(&GPU, 1e-3).unwrap();
    run(&GPU, &recorder);
    let loss = total.read(&GPU).unwrap()[0];
    assert!(loss.is_finite() && loss >= 0.0, "{case}: {loss}");
    // A gradient that is no number leaves none.
    for (name, parameter) in parameters.iter() {
        let values = parameter.tensor.read(&GPU).unwrap();
        assert!(values.iter().all(|v| v.is_finite()), "{case}: {name}");
    }
}

#[test]
fn a_crop_of_one_pixel_trains() {
    for head in HEADS {
        step(head, [1, 1], &[vec![3]]);
        step(head, [1, 1], &[vec![IGNORED], vec![0]]);
    }
}

#[test]
fn pictures_without_labels_or_of_one_class_train_at_odd_sizes() {
    let (height, width) = (33, 47);
    let some = (0..height * width).map(|i| if i % 7 == 0 { IGNORED } else { (i % 5) as u8 });
    let [none, one, some] =
        [vec![IGNORED; height * width], vec![2; height * width], some.collect()];
    for head in HEADS {
        step(head, [height, width], std::slice::from_ref(&none));
        step(head, [height, width], &[one.clone(), none.clone(), some.clone()]);
    }
}

/// At once where the device has room, else refused in words; through windows always.
#[test]
fn a_photograph_of_twelve_million_pixels_is_labelled_or_refused() {
    if GPU.name().contains("SwiftShader") {
        return println!("skipped: it takes SwiftShader minutes");
    }
    let frame = picture(3000, 4000);
    let views = [View { frame, mirror: false }];
    for head in HEADS {
        let mut segmenter = Segmenter::new(&GPU, small(head, &GPU));
        match segmenter.labels(&views, 3000, 4000, None) {
            Ok(labels) => assert!(labels.iter().all(|&label| label < 5)),
            Err(error @ Error::Limit { .. }) => {
                assert!(error.to_string().contains("sliding window"), "{head:?}: {error}");
            }
            Err(error) => panic!("{head:?}: {error}"),
        }
        let slide = Slide { crop: [512, 1024], stride: [512, 1024] };
        let labels = segmenter.labels(&views, 3000, 4000, Some(&slide)).unwrap();
        assert!(labels.len() == 12_000_000 && labels.iter().all(|&label| label < 5), "{head:?}");
    }
}
