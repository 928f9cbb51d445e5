use std::collections::BTreeSet;

use semask_gpu::gpu::Recorder;
use semask_gpu::ops::MaskTargets;
use semask_gpu::random::Rng;
use semask_gpu::{Gpu, Tensor};

use crate::cross_entropy::on_device;
use crate::support::{GPU, OTHER, run};

/// The targets of `labels` and their list on the device.
pub(crate) fn targets_of(
    gpu: &Gpu,
    recorder: &mut Recorder,
    labels: &[u8],
    size: [usize; 3],
    classes: usize,
) -> MaskTargets {
    MaskTargets::new(recorder, &on_device(gpu, labels), size, classes)
}

fn list_on(gpu: &Gpu, labels: &[u8], size: [usize; 3], classes: usize) -> Vec<u32> {
    let mut recorder = Recorder::new(gpu.profile());
    let targets = targets_of(gpu, &mut recorder, labels, size, classes);
    let list: Tensor = recorder.keep(&targets.list, "list");
    run(gpu, &recorder);
    list.read_as(gpu).unwrap()
}

fn check(labels: &[u8], size: [usize; 3], classes: usize) {
    for gpu in [&*GPU, &*OTHER] {
        let got = list_on(gpu, labels, size, classes);
        for (image, list) in labels.chunks(size[1] * size[2]).zip(got.chunks(1 + classes)) {
            let present: BTreeSet<u32> = image.iter().map(|&l| u32::from(l)).collect();
            let expected: Vec<u32> = present.into_iter().filter(|&l| l < classes as u32).collect();
            assert_eq!(list[0] as usize, expected.len(), "{size:?}");
            assert_eq!(list[1..1 + expected.len()], expected, "{size:?}");
        }
    }
}

#[test]
fn each_class_that_a_picture_has_is_listed_once() {
    check(&[3], [1, 1, 1], 4);
    // Nothing but what is ignored, or no class.
    check(&[255; 15], [1, 3, 5], 19);
    check(&[19, 254, 255, 19], [1, 2, 2], 19);
    let mut rng = Rng::new(7, 0);
    for (size, classes, of) in [
        ([3, 3, 5], 150, 12),
        ([2, 64, 64], 19, 25),
        // Around a workgroup's 4 096 pixels; every label there is.
        ([1, 4095, 1], 32, 33),
        ([2, 4097, 1], 33, 40),
        ([1, 100, 130], 255, 256),
    ] {
        let labels: Vec<u8> =
            (0..size.iter().product()).map(|_| (rng.below(of) * 7 % 256) as u8).collect();
        check(&labels, size, classes);
    }
}

#[test]
fn a_single_pixel_makes_a_target() {
    let size = [2, 300, 301];
    let mut labels = vec![255u8; 2 * 300 * 301];
    labels[300 * 301 - 1] = 17;
    *labels.last_mut().unwrap() = 0;
    check(&labels, size, 150);
}
