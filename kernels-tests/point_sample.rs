use semask_gpu::random::Rng;
use semask_gpu::{Tape, Tensor, ops};

use crate::fixtures::Fixture;
use crate::support::{CHECKED, F32, GPU, OTHER, check_op, device, random, run};

/// Four taps of a point and their weights; those outside the map are left out.
pub(crate) fn corners(point: [f64; 2], height: usize, width: usize) -> Vec<(usize, f64)> {
    let (x, y) = (point[0] * width as f64 - 0.5, point[1] * height as f64 - 0.5);
    let mut taps = Vec::new();
    for (row, v) in [(y.floor(), 1.0 - y.fract_up()), (y.floor() + 1.0, y.fract_up())] {
        for (column, u) in [(x.floor(), 1.0 - x.fract_up()), (x.floor() + 1.0, x.fract_up())] {
            let inside = |at: f64, size: usize| at >= 0.0 && at < size as f64;
            if inside(row, height) && inside(column, width) {
                taps.push((row as usize * width + column as usize, u * v));
            }
        }
    }
    taps
}

trait FractUp {
    /// What is above the floor, also below 0.
    fn fract_up(self) -> f64;
}

impl FractUp for f64 {
    fn fract_up(self) -> f64 {
        self - self.floor()
    }
}

/// The samples of one map.
pub(crate) fn samples(map: &[f64], points: &[f32], height: usize, width: usize) -> Vec<f64> {
    let sample = |p: &[f32]| {
        let taps = corners([p[0].into(), p[1].into()], height, width);
        taps.iter().map(|(at, weight)| weight * map[*at]).sum()
    };
    points.chunks(2).map(sample).collect()
}

fn some_points(len: usize) -> Vec<f32> {
    let mut rng = Rng::new(0x901d, len as u64);
    (0..2 * len).map(|_| rng.uniform()).collect()
}

fn check(rows: usize, height: usize, width: usize, count: usize, points: &[f32]) {
    check_op(
        &[&[rows, height, width]],
        F32,
        |tape, x| {
            let points = Tensor::from_slice(device(), [rows, count, 2], points);
            ops::point_sample(tape, &x[0], &points)
        },
        |x| {
            let maps = x[0].chunks(height * width).zip(points.chunks(2 * count));
            maps.flat_map(|(map, points)| samples(map, points, height, width)).collect()
        },
    );
}

#[test]
fn a_sample_lies_between_four_pixels() {
    for (rows, height, width, count) in
        [(1, 1, 1, 1), (2, 1, 1, 9), (3, 4, 5, 63), (1, 7, 3, 65), (2, 40, 40, 300)]
    {
        check(rows, height, width, count, &some_points(rows * count));
    }
    // Many samples of few pixels, more than 65 535 workgroups of them.
    check(1, 2, 3, 70_000, &some_points(70_000));
}

#[test]
fn corners_and_centres_of_pixels_and_what_is_outside() {
    let places = [0.0, 0.125, 0.25, 0.875, 1.0, -0.125, -0.5, 1.125, 1.3];
    let points: Vec<f32> = places.iter().flat_map(|&y| places.map(|x| [x, y])).flatten().collect();
    check(1, 4, 4, points.len() / 2, &points);
}

/// Gradients of very different sizes meet in one pixel, and the sum is the same bit for bit on devices
/// that add in another order.
#[test]
fn a_gradient_is_exact_and_repeatable() {
    let count = 4096;
    let points = some_points(count);
    let mut rng = Rng::new(5, 0);
    let dy: Vec<f32> = random(&mut rng, count)
        .into_iter()
        .enumerate()
        .map(|(i, v)| v * 10f32.powi(-((i % 9) as i32)))
        .collect();
    let gradient = |gpu| {
        let maps = Tensor::from_slice(gpu, [1, 3, 3], &[0f32; 9]).tracked();
        let points = Tensor::from_slice(gpu, [1, count, 2], &points);
        let mut tape = Tape::training(semask_gpu::Gpu::profile(gpu));
        let y = ops::point_sample(&mut tape, &maps, &points);
        let dy = Tensor::from_slice(gpu, [1, count], &dy);
        let (mut recorder, grads) = tape.backward_from(&[(&y, dy)]);
        let gradient = recorder.keep(grads.get(&maps).unwrap(), "gradient");
        run(gpu, &recorder);
        gradient.read(gpu).unwrap()
    };
    let expected = (0..9).map(|pixel| -> f64 {
        let weight = |p: &[f32]| -> f64 {
            let taps = corners([p[0].into(), p[1].into()], 3, 3);
            taps.iter().filter(|(at, _)| *at == pixel).map(|(_, weight)| weight).sum()
        };
        points.chunks(2).zip(&dy).map(|(p, &dy)| weight(p) * f64::from(dy)).sum()
    });
    let got = gradient(&GPU);
    for (got, expected) in got.iter().zip(expected) {
        assert!((f64::from(*got) - expected).abs() <= 2e-5, "{got} {expected}");
    }
    for gpu in [&*GPU, &*CHECKED, &*OTHER] {
        assert_eq!(gradient(gpu), got);
    }
}

#[test]
fn what_is_not_finite_shows_in_the_whole_map_and_only_there() {
    for wrong in [f32::NAN, f32::INFINITY] {
        let maps = Tensor::from_slice(&GPU, [2, 2, 2], &[0f32; 8]).tracked();
        let points = Tensor::from_slice(&GPU, [2, 2, 2], &[0.3f32; 8]);
        let mut tape = Tape::training(GPU.profile());
        let y = ops::point_sample(&mut tape, &maps, &points);
        let dy = Tensor::from_slice(&GPU, [2, 2], &[1.0, wrong, 1.0, -2.0]);
        let (mut recorder, grads) = tape.backward_from(&[(&y, dy)]);
        let gradient = recorder.keep(grads.get(&maps).unwrap(), "gradient");
        run(&GPU, &recorder);
        let gradient = gradient.read(&GPU).unwrap();
        assert!(gradient[..4].iter().all(|g| g.is_nan()), "{gradient:?}");
        assert!(gradient[4..].iter().all(|g| g.is_finite()), "{gradient:?}");
    }
}

#[test]
fn samples_equal_torch() {
    let Some(fx) = Fixture::open("block.point_sample") else { return };
    for gpu in [&*GPU, &*OTHER] {
        let [maps, points, dy] = ["in.maps", "in.points", "gout.y"].map(|n| fx.tensor(gpu, n));
        let maps = maps.tracked();
        let mut tape = Tape::training(gpu.profile());
        let y = ops::point_sample(&mut tape, &maps, &points);
        let kept = tape.recorder().keep(&y, "y");
        let (mut recorder, grads) = tape.backward_from(&[(&y, dy)]);
        let gradient = recorder.keep(grads.get(&maps).unwrap(), "gradient");
        run(gpu, &recorder);
        fx.check("out.y", &kept.read(gpu).unwrap());
        fx.check("gin.maps", &gradient.read(gpu).unwrap());
    }
}
