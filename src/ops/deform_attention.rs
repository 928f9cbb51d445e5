//! Multi-scale deformable attention: `shaders/deform_attention.wgsl`, and for the gradient of the
//! values `shaders/deform_scatter.wgsl`.

use super::deform_scatter::{LINK_BYTES, Lists, Maps, Scatter, scatter};
use crate::gpu::{Grid, Kernel, Params as _, Source, params, source};
use crate::{Tape, Tensor};

const SOURCES: &[Source] = &[source!("deform_attention"), source!("lib/deform")];

static FORWARD: Kernel = kernel("forward", &["value", "offsets", "logits", "y"]);
static BACKWARD_SAMPLES: Kernel =
    kernel("backward_samples", &["value", "offsets", "logits", "dy", "doffsets", "dlogits"]);
static LINK: Kernel = kernel("link", &["offsets", "logits", "links", "first", "largest"]);
pub(super) const KERNELS: &[&Kernel] = &[&FORWARD, &BACKWARD_SAMPLES, &LINK];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("deform_attention", entry, SOURCES, Params::FIELDS, bindings)
}

params! {
    struct Params {
        widths: [u32; 4],
        heights: [u32; 4],
        rows: u32,
        first_image: u32,
        tokens: u32,
        cells: u32,
        heads: u32,
        vectors: u32,
        levels: u32,
        points: u32,
        first_group: u32,
    }
}

/// Multi-scale deformable attention within a pyramid of maps: every pixel of every map is a query that
/// reads a few places of each map, `y = Σ softmax(logits) · sample(value)`.
///
/// - `value`: `[B, S, C]`, the pixels of the maps, one map after the other
/// - `offsets`: `[B, S, heads, levels, points, 2]`, (x, y) in pixels of the level that is sampled, from
///   where the query's pixel is in that level
/// - `logits`: `[B, S, heads, levels · points]`
/// - `sizes`: height and width of each map; `S` is the sum of their areas
/// - returns `[B, S, C]`
///
/// The query in row r and column c of an h × w map looks at ((c + ½) / w, (r + ½) / h) of each map. Samples
/// are bilinear between centres of pixels, with zeros around the maps. Equals the attention of Deformable
/// DETR (Zhu et al. 2020, <https://arxiv.org/abs/2010.04159>) between its projections, or
/// `torch.nn.functional.grid_sample(padding_mode="zeros", align_corners=False)` of each level. An offset
/// that is NaN or infinite leads outside: such a sample is 0 and has no gradients.
///
/// Keeps its inputs. The backward pass lists the samples by place and lets pixels gather from the lists,
/// 16 bytes per sample and 32 MiB at most, or what one image takes; sums over samples are of whole
/// numbers, so that gradients are the same bit for bit in whatever order samples are listed.
///
/// # Panics
///
/// If the shapes do not fit together, there are more than four maps, or the channels of a head are no
/// multiple of four.
#[track_caller]
pub fn deform_attention(
    tape: &mut Tape,
    value: &Tensor,
    offsets: &Tensor,
    logits: &Tensor,
    sizes: &[[usize; 2]],
) -> Tensor {
    let [batch, tokens, channels] = *value.dims() else {
        panic!("deform_attention: value {:?}", value.shape())
    };
    let [.., heads, levels, points, 2] = *offsets.dims() else {
        panic!("deform_attention: offsets {:?}", offsets.shape())
    };
    let maps = Maps::new(sizes);
    assert_eq!((levels, tokens), (sizes.len(), maps.tokens()), "deform_attention: {sizes:?}");
    assert_eq!(offsets.dims()[..2], [batch, tokens], "deform_attention: offsets");
    assert_eq!(logits.dims(), [batch, tokens, heads, levels * points], "deform_attention: logits");
    assert!(batch * heads * points > 0, "deform_attention: offsets {:?}", offsets.shape());
    assert_eq!(channels % (4 * heads), 0, "deform_attention: {channels} channels, {heads} heads");

    let rows = batch * tokens * heads;
    let samples = rows * levels * points;
    let head_channels = channels / heads;
    let params = Params {
        widths: maps.widths,
        heights: maps.heights,
        rows: rows as u32,
        first_image: 0,
        tokens: tokens as u32,
        cells: maps.cells() as u32,
        heads: heads as u32,
        vectors: (head_channels / 4) as u32,
        levels: levels as u32,
        points: points as u32,
        first_group: 0,
    };
    let recorder = tape.recorder();
    let y = recorder.empty(value.shape().clone());
    recorder
        .run(&FORWARD, params, &[value, offsets, logits, &y], Grid::elements(y.shape().len() / 4))
        .flops(8 * samples * head_channels);

    let saved = (value.clone(), offsets.clone(), logits.clone());
    tape.record([value, offsets, logits], y, move |recorder, dy| {
        let (value, offsets, logits) = &saved;
        let wanted = offsets.is_tracked() || logits.is_tracked();
        let dsamples = wanted.then(|| {
            let doffsets = recorder.empty(offsets.shape().clone());
            let dlogits = recorder.empty(logits.shape().clone());
            let bound = [value, offsets, logits, dy, &doffsets, &dlogits];
            recorder
                .run(&BACKWARD_SAMPLES, params, &bound, Grid::elements(rows))
                .flops(8 * samples * head_channels);
            (doffsets, dlogits)
        });
        let dvalue = value.is_tracked().then(|| {
            let dvalue = recorder.empty(value.shape().clone());
            let image_rows = tokens * heads;
            let at_once = LISTS_BYTES / (image_rows * levels * points * LINK_BYTES);
            for start in (0..batch).step_by(at_once.clamp(1, batch)) {
                let images = start..(start + at_once.max(1)).min(batch);
                let rows = images.len() * image_rows;
                let lists = Lists::new(
                    recorder,
                    rows * levels * points,
                    images.len() * heads * maps.cells(),
                );
                let params = Params { rows: rows as u32, first_image: start as u32, ..params };
                let bound = [offsets, logits, &lists.links, &lists.first, &lists.largest];
                recorder.run(&LINK, params, &bound, Grid::elements(rows));
                let of = Scatter {
                    maps,
                    images,
                    heads,
                    channels: head_channels,
                    first_row: start * image_rows,
                    rows,
                    samples_per_row: levels * points,
                    accumulate: false,
                };
                scatter(recorder, dy, &lists, &dvalue, of);
            }
            dvalue
        });
        let (doffsets, dlogits) = dsamples.unzip();
        [dvalue, doffsets, dlogits]
    })
}

/// Bytes of the lists of samples that are in memory at one time, if one image needs no more.
const LISTS_BYTES: usize = 32 << 20;
