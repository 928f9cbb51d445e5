use semask_gpu::ops;

use crate::fixtures::{Fixture, nhwc_to_nchw};
use crate::support::{CHECKED, GPU, OTHER, assert_close, forward};

#[test]
fn codes_of_any_map() {
    for [height, width, channels] in
        [[1, 1, 4], [3, 5, 8], [1, 97, 68], [40, 30, 256], [2, 1, 1024]]
    {
        let half = channels / 2;
        let code = |i: usize, n: usize, c: usize| {
            let frequency = 10_000f64.powf(-((c / 2 * 2) as f64) / half as f64);
            let angle = (i + 1) as f64 / (n as f64 + 1e-6) * std::f64::consts::TAU * frequency;
            if c.is_multiple_of(2) { angle.sin() } else { angle.cos() }
        };
        let mut expected = Vec::new();
        for pixel in 0..height * width {
            expected.extend((0..half).map(|c| code(pixel / width, height, c)));
            expected.extend((0..half).map(|c| code(pixel % width, width, c)));
        }
        for gpu in [&*GPU, &*CHECKED, &*OTHER] {
            let got =
                forward(gpu, |tape| ops::sine_position(tape.recorder(), height, width, channels));
            assert_close("code", &got, &expected, 2e-6);
        }
    }
}

#[test]
fn codes_equal_the_reference() {
    let Some(fx) = Fixture::open("block.sine_position") else { return };
    for (name, [height, width, channels]) in
        [("out.p5x7", [5, 7, 32]), ("out.p1x1", [1, 1, 32]), ("out.p20x20", [20, 20, 64])]
    {
        for gpu in [&*GPU, &*OTHER] {
            let got =
                forward(gpu, |tape| ops::sine_position(tape.recorder(), height, width, channels));
            fx.check(name, &nhwc_to_nchw(&got, [1, channels, height, width]));
        }
    }
}
