//! [`Slide`]: windows that together cover a picture.

use serde::{Deserialize, Serialize};

/// Windows that together cover a picture; where they overlap, logits are averaged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slide {
    /// Height and width of a window.
    pub crop: [usize; 2],
    /// From one window to the next, down and right.
    pub stride: [usize; 2],
}

/// Where a window lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// Row and column of its upper left pixel.
    pub(super) at: [usize; 2],
    /// Height and width.
    pub(super) size: [usize; 2],
}

impl Slide {
    /// Square windows of `side`, each a third over the one before.
    pub fn square(side: usize) -> Self {
        Self { crop: [side; 2], stride: [(2 * side / 3).max(1); 2] }
    }

    /// The windows over a picture of `height` × `width`, row by row: those of mmsegmentation's
    /// `slide_inference`. The last of a row or column lies back so far that it ends with the picture.
    pub(super) fn windows(&self, height: usize, width: usize) -> Vec<Window> {
        let along = |size: usize, crop: usize, stride: usize| {
            let count = (size + stride - 1).saturating_sub(crop) / stride + 1;
            let place = move |i: usize| {
                let end = (i * stride + crop).min(size);
                (end.saturating_sub(crop), end - end.saturating_sub(crop))
            };
            (0..count).map(place).collect::<Vec<_>>()
        };
        let columns = along(width, self.crop[1], self.stride[1]);
        let mut windows = Vec::new();
        for (top, rows) in along(height, self.crop[0], self.stride[0]) {
            for &(left, across) in &columns {
                windows.push(Window { at: [top, left], size: [rows, across] });
            }
        }
        windows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_every_pixel_and_stay_inside() {
        for (height, width) in [(1, 1), (5, 40), (16, 16), (17, 33), (50, 21)] {
            for slide in [Slide::square(16), Slide { crop: [7, 9], stride: [7, 2] }] {
                let mut hits = vec![0; height * width];
                let windows = slide.windows(height, width);
                for Window { at: [top, left], size: [rows, columns] } in windows {
                    assert!(top + rows <= height && left + columns <= width);
                    assert_eq!(
                        [rows, columns],
                        [slide.crop[0].min(height), slide.crop[1].min(width)]
                    );
                    for row in top..top + rows {
                        hits[row * width + left..][..columns].iter_mut().for_each(|n| *n += 1);
                    }
                }
                assert!(hits.iter().all(|&n| n > 0), "{height} × {width}, {slide:?}");
            }
        }
    }

    #[test]
    fn the_last_window_lies_back() {
        let slide = Slide { crop: [4, 4], stride: [3, 3] };
        let lefts: Vec<_> = slide.windows(4, 9).iter().map(|w| w.at[1]).collect();
        assert_eq!(lefts, [0, 3, 5]);
        // As many as max(W − crop + stride − 1, 0) / stride + 1.
        assert_eq!(slide.windows(4, 10).len(), 3);
        assert_eq!(slide.windows(4, 3).len(), 1);
    }
}
