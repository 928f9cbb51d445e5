//! Deformable convolution: `shaders/deform_conv.wgsl`, for the gradient of the input
//! `shaders/deform_scatter.wgsl`, and for the products [`matmul`](super::matmul()).

use std::ops::Range;

use super::deform_scatter::{Lists, Maps, Scatter, scatter};
use super::matmul::{Epilogue, Extents, Matrices, PLAIN, product};
use super::reduce;
use crate::gpu::{Grid, Kernel, Params as _, Recorder, Source, params, source};
use crate::{Tape, Tensor};

const SOURCES: &[Source] = &[source!("deform_conv"), source!("lib/deform")];

static COLUMNS: Kernel = kernel("columns", &["x", "offset_mask", "columns_out"]);
static BACKWARD_SAMPLES: Kernel =
    kernel("backward_samples", &["x", "offset_mask", "dcolumns", "doffset_mask"]);
static LINK: Kernel = kernel("link", &["offset_mask", "links", "first", "largest"]);
static PACK_WEIGHT: Kernel = kernel("pack_weight", &["weight", "packed"]);
static UNPACK_WEIGHT: Kernel = kernel("unpack_weight", &["dpacked", "dweight"]);
pub(super) const KERNELS: &[&Kernel] =
    &[&COLUMNS, &BACKWARD_SAMPLES, &LINK, &PACK_WEIGHT, &UNPACK_WEIGHT];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("deform_conv", entry, SOURCES, Params::FIELDS, bindings)
}

params! {
    struct Params {
        height: u32,
        width: u32,
        groups: u32,
        vectors: u32,
        cells: u32,
        first_place: u32,
        places: u32,
        outputs: u32,
        first_group: u32,
    }
}

/// Bytes of the columns that are in memory at one time.
const COLUMNS_BYTES: usize = 32 << 20;

/// Extents of a deformable convolution.
#[derive(Clone, Copy, Debug)]
struct Extents3x3 {
    batch: usize,
    height: usize,
    width: usize,
    inputs: usize,
    outputs: usize,
    groups: usize,
}

impl Extents3x3 {
    #[track_caller]
    fn new(x: &Tensor, offset_mask: &Tensor, weight: &Tensor, bias: &Tensor) -> Self {
        let [batch, height, width, inputs] = *x.dims() else {
            panic!("deform_conv of {:?}", x.shape())
        };
        let groups = offset_mask.shape().last() / 27;
        let outputs = bias.shape().len();
        assert!(!x.shape().is_empty() && groups * outputs > 0, "deform_conv of {:?}", x.shape());
        assert_eq!(
            offset_mask.dims(),
            [batch, height, width, 27 * groups],
            "deform_conv: offsets and masks for x {:?}",
            x.shape()
        );
        assert_eq!(inputs % (4 * groups), 0, "deform_conv: {inputs} channels, {groups} groups");
        assert_eq!(weight.dims(), [outputs, inputs, 3, 3], "deform_conv: weight");
        assert_eq!(bias.dims(), [outputs], "deform_conv: bias");
        Self { batch, height, width, inputs, outputs, groups }
    }

    fn maps(self) -> Maps {
        Maps::new(&[[self.height, self.width]])
    }

    fn params(self) -> Params {
        Params {
            height: self.height as u32,
            width: self.width as u32,
            groups: self.groups as u32,
            vectors: (self.inputs / self.groups / 4) as u32,
            cells: self.maps().cells() as u32,
            first_place: 0,
            places: 0,
            outputs: self.outputs as u32,
            first_group: 0,
        }
    }

    /// Pixels whose columns are in memory together: of whole images as long as one fits, else some
    /// of one image.
    fn chunks(self) -> Vec<Range<usize>> {
        let image = self.height * self.width;
        let at_once = (COLUMNS_BYTES / (4 * 9 * self.inputs)).max(1);
        let (stretch, step) = match at_once / image {
            0 => (image, at_once),
            images => (self.batch * image, images * image),
        };
        let mut chunks = Vec::new();
        for start in (0..self.batch * image).step_by(stretch) {
            let end = start + stretch;
            chunks.extend((start..end).step_by(step).map(|first| first..(first + step).min(end)));
        }
        chunks
    }

    /// The columns of a chunk, `[places, 9 · inputs]`.
    fn columns(
        self,
        recorder: &mut Recorder,
        x: &Tensor,
        offset_mask: &Tensor,
        chunk: &Range<usize>,
    ) -> Tensor {
        let columns = recorder.empty([chunk.len(), 9 * self.inputs]);
        let len = columns.shape().len();
        recorder
            .run(
                &COLUMNS,
                self.params().of(chunk),
                &[x, offset_mask, &columns],
                Grid::elements(len / 4),
            )
            .flops(8 * len);
        columns
    }
}

impl Params {
    fn of(self, chunk: &Range<usize>) -> Self {
        Self { first_place: chunk.start as u32, places: chunk.len() as u32, ..self }
    }
}

/// Deformable convolution v2 with a 3 × 3 kernel, padding 1, stride 1: each of the nine taps reads, for
/// each group of channels, where its offset leads it, times its mask.
///
/// - `x`: `[B, H, W, I]`
/// - `offset_mask`: `[B, H, W, 27 · groups]`; first (dy, dx) in pixels for each group and tap, then the
///   logit of the mask for each group and tap, of which the sigmoid is taken
/// - `weight`: `[O, I, 3, 3]`
/// - `bias`: `[O]`
/// - returns `[B, H, W, O]`
///
/// Samples are bilinear between centres of pixels. One at (Y, X) counts if −1 < Y < H and −1 < X < W, with
/// zeros around the map; else it is 0 and has no gradients. That is the operator of Zhu et al. 2018
/// (<https://arxiv.org/abs/1811.11168>) as its authors' code has it; `torchvision.ops.deform_conv2d` has
/// gradients of offsets at Y = −1, where zero offsets put the taps at the border.
///
/// A matrix product whose left side, the samples, is in memory for as many pixels at a time as fit
/// 32 MiB. Keeps `x` and `offset_mask`; the backward pass samples again. The gradient of `x` is
/// gathered from lists of samples, by sums of whole numbers: the same bit for bit each time.
///
/// # Panics
///
/// If the shapes do not fit together, something is empty, or the channels of a group are no multiple
/// of four.
#[track_caller]
pub fn deform_conv(
    tape: &mut Tape,
    x: &Tensor,
    offset_mask: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
) -> Tensor {
    let extents = Extents3x3::new(x, offset_mask, weight, bias);
    let Extents3x3 { batch, height, width, inputs, outputs, groups } = extents;
    let (params, pixels, inner) = (extents.params(), batch * height * width, 9 * inputs);

    let recorder = tape.recorder();
    let packed = recorder.empty([outputs, inner]);
    recorder.run(&PACK_WEIGHT, params, &[weight, &packed], Grid::elements(outputs * inner));
    let y = recorder.empty([batch, height, width, outputs]);
    for chunk in extents.chunks() {
        let columns = extents.columns(recorder, x, offset_mask, &chunk);
        let places = chunk.len();
        let (a, b) =
            (Matrices::new(&columns, places, inner), Matrices::new(&packed, outputs, inner));
        let to = Matrices::new(&y, pixels, outputs).at_row(chunk.start);
        let size = Extents { batch: 1, m: places, k: inner, n: outputs };
        product(recorder, a, b.transposed(), to, size, Epilogue::Bias(bias));
    }

    let saved = (x.clone(), offset_mask.clone());
    tape.record([x, offset_mask, weight, bias], y, move |recorder, dy| {
        let (x, offset_mask) = &saved;
        let dx = recorder.empty(x.shape().clone());
        let doffset_mask = recorder.empty(offset_mask.shape().clone());
        let dpacked = recorder.empty([outputs, inner]);
        for chunk in extents.chunks() {
            let places = chunk.len();
            let g = Matrices::new(dy, pixels, outputs).at_row(chunk.start);

            let columns = extents.columns(recorder, x, offset_mask, &chunk);
            let size = Extents { batch: 1, m: outputs, k: places, n: inner };
            let (b, to) =
                (Matrices::new(&columns, places, inner), Matrices::new(&dpacked, outputs, inner));
            let add = Epilogue::Plain { alpha: 1.0, accumulate: chunk.start > 0 };
            product(recorder, g.transposed(), b, to, size, add);

            let dcolumns = recorder.empty([places, inner]);
            let size = Extents { batch: 1, m: places, k: outputs, n: inner };
            let (b, to) =
                (Matrices::new(&packed, outputs, inner), Matrices::new(&dcolumns, places, inner));
            product(recorder, g, b, to, size, PLAIN);

            let (params, samples) = (params.of(&chunk), places * 9 * groups);
            let bound = [x, offset_mask, &dcolumns, &doffset_mask];
            recorder
                .run(&BACKWARD_SAMPLES, params, &bound, Grid::elements(samples))
                .flops(8 * places * inner);

            let image = height * width;
            let images = chunk.start / image..chunk.end.div_ceil(image);
            let lists =
                Lists::new(recorder, samples, images.len() * groups * extents.maps().cells());
            let bound = [offset_mask, &lists.links, &lists.first, &lists.largest];
            recorder.run(&LINK, params, &bound, Grid::elements(samples));
            let of = Scatter {
                maps: extents.maps(),
                images,
                heads: groups,
                channels: inputs / groups,
                first_row: 0,
                rows: samples,
                samples_per_row: 1,
                accumulate: chunk.start % image > 0,
            };
            scatter(recorder, &dcolumns, &lists, &dx, of);
        }
        let dweight = recorder.empty([outputs, inputs, 3, 3]);
        let grid = Grid::elements(outputs * inner);
        recorder.run(&UNPACK_WEIGHT, params, &[&dpacked, &dweight], grid);
        let dbias = reduce::sum_rows(recorder, dy, pixels, outputs);
        [Some(dx), Some(doffset_mask), Some(dweight), Some(dbias)]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_every_pixel_once_and_fit() {
        for (batch, height, width, inputs) in [
            (1, 1, 1, 4),
            (3, 20, 20, 256),
            (2, 160, 160, 256),
            (20, 33, 31, 256),
            (3, 61, 61, 256),
        ] {
            let extents = Extents3x3 { batch, height, width, inputs, outputs: 1, groups: 1 };
            let mut next = 0;
            for chunk in extents.chunks() {
                assert_eq!(chunk.start, next);
                assert!(4 * 9 * inputs * chunk.len() <= COLUMNS_BYTES);
                let image = height * width;
                let whole = chunk.start % image == 0 && chunk.end % image == 0;
                assert!(whole || chunk.start / image == (chunk.end - 1) / image, "{chunk:?}");
                next = chunk.end;
            }
            assert_eq!(next, batch * height * width);
        }
    }
}
