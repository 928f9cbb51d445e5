//! The gradient of sampled maps, for deformable attention and deformable convolution:
//! `shaders/deform_scatter.wgsl`.

use super::elementwise;
use crate::Tensor;
use crate::gpu::{Grid, Kernel, Params as _, Recorder, Source, params, source};

const SOURCES: &[Source] = &[source!("deform_scatter"), source!("lib/deform")];

static BOUND: Kernel = kernel("bound", &["g", "largest_out"]);
static GATHER: Kernel = kernel("gather", &["g", "links", "first", "largest", "dmaps"]);
pub(super) const KERNELS: &[&Kernel] = &[&BOUND, &GATHER];

const fn kernel(entry: &'static str, bindings: &'static [&'static str]) -> Kernel {
    Kernel::new("deform_scatter", entry, SOURCES, Params::FIELDS, bindings)
}

params! {
    struct Params {
        widths: [u32; 4],
        heights: [u32; 4],
        len: u32,
        g_offset: u32,
        offset: u32,
        tokens: u32,
        cells: u32,
        heads: u32,
        vectors: u32,
        samples_per_row: u32,
        bits: u32,
        accumulate: u32,
        first_group: u32,
    }
}

/// Extents of the maps that samples are taken of, one after the other in a row of tokens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Maps {
    pub(super) widths: [u32; 4],
    pub(super) heights: [u32; 4],
}

impl Maps {
    /// Maps of these heights and widths.
    #[track_caller]
    pub(super) fn new(sizes: &[[usize; 2]]) -> Self {
        assert!((1..=4).contains(&sizes.len()), "one to four maps, not {sizes:?}");
        let mut maps = Self { widths: [0; 4], heights: [0; 4] };
        for (level, &[height, width]) in sizes.iter().enumerate() {
            assert!(height > 0 && width > 0, "an empty map among {sizes:?}");
            (maps.widths[level], maps.heights[level]) = (width as u32, height as u32);
        }
        maps
    }

    /// Pixels of all maps.
    pub(super) fn tokens(&self) -> usize {
        self.sum(|width, height| width * height)
    }

    /// Cells of all maps: samples between the same four pixels are in one, also at the border.
    pub(super) fn cells(&self) -> usize {
        self.sum(|width, height| (width + 1) * (height + 1))
    }

    fn sum(&self, of: impl Fn(usize, usize) -> usize) -> usize {
        let sizes = self.widths.iter().zip(&self.heights).filter(|(width, _)| **width > 0);
        sizes.map(|(&width, &height)| of(width as usize, height as usize)).sum()
    }
}

/// The samples of some images, listed by cell for [`scatter`]; an op's `link` kernel fills them.
pub(super) struct Lists {
    /// `[samples, 4]` of `u32`
    pub(super) links: Tensor,
    /// `[images, heads, cells]` of `u32`
    pub(super) first: Tensor,
    /// `[1]` of `u32`
    pub(super) largest: Tensor,
}

/// Bytes of [`Lists::links`] per sample.
pub(super) const LINK_BYTES: usize = 16;

impl Lists {
    /// Empty lists.
    pub(super) fn new(recorder: &mut Recorder, samples: usize, cells: usize) -> Self {
        let links = recorder.empty([samples, LINK_BYTES / 4]);
        // Zero bits are 0, of both types.
        let first = elementwise::fill(recorder, [cells], 0.0);
        let largest = elementwise::fill(recorder, [1], 0.0);
        Self { links, first, largest }
    }
}

/// Which samples, and which part of the maps' gradient they add to.
#[derive(Clone, Debug)]
pub(super) struct Scatter {
    pub(super) maps: Maps,
    pub(super) images: std::ops::Range<usize>,
    pub(super) heads: usize,
    /// Channels of a head.
    pub(super) channels: usize,
    /// Where the samples' rows start in `g`.
    pub(super) first_row: usize,
    pub(super) rows: usize,
    pub(super) samples_per_row: usize,
    pub(super) accumulate: bool,
}

/// `dmaps[pixel] = Σ weight[n] · share[n, pixel] · g[row of n]` over the samples `n` that meet a pixel,
/// the same bit for bit each time.
///
/// - `g`: `[.., channels]`, a row for each `samples_per_row` samples
/// - `dmaps`: `[B, tokens, heads, channels]`, of which `images` are written
///
/// Costs an atomic exchange and 16 bytes per sample for the lists, and reads each row of `g` four times
/// per sample.
pub(super) fn scatter(
    recorder: &mut Recorder,
    g: &Tensor,
    lists: &Lists,
    dmaps: &Tensor,
    scatter: Scatter,
) {
    const PER_GROUP: usize = 1024;
    let Scatter { maps, images, heads, channels, .. } = scatter;
    let vectors = channels / 4;
    let image = maps.tokens() * heads * vectors;
    let samples = scatter.rows * scatter.samples_per_row / (images.len() * heads);
    let params = Params {
        widths: maps.widths,
        heights: maps.heights,
        len: (scatter.rows * vectors) as u32,
        g_offset: (scatter.first_row * vectors) as u32,
        offset: (images.start * image) as u32,
        tokens: maps.tokens() as u32,
        cells: maps.cells() as u32,
        heads: heads as u32,
        vectors: vectors as u32,
        samples_per_row: scatter.samples_per_row as u32,
        bits: samples.max(1).next_power_of_two().ilog2(),
        accumulate: u32::from(scatter.accumulate),
        first_group: 0,
    };
    let grid = Grid::rows((scatter.rows * vectors).div_ceil(PER_GROUP));
    recorder.run(&BOUND, params, &[g, &lists.largest], grid);
    let len = images.len() * image;
    let params = Params { len: len as u32, ..params };
    let bound = [g, &lists.links, &lists.first, &lists.largest, dmaps];
    recorder
        .run(&GATHER, params, &bound, Grid::elements(len))
        .flops(4 * 20 * scatter.rows * scatter.samples_per_row * channels);
}
