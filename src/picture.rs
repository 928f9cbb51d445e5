//! Pictures for people: overlays, legends, comparison sheets, curves.
//!
//! Type is set in the bitmap fonts of `embedded-graphics`, so no font file is needed; they have the
//! characters of ISO 8859-1 and show others as `?`.

use std::{borrow::Cow, fs::File, io::BufWriter, path::Path};

use embedded_graphics::{
    Pixel,
    mono_font::{
        MonoFont, MonoTextStyle,
        iso_8859_1::{FONT_9X15, FONT_9X15_BOLD, FONT_10X20},
    },
    pixelcolor::Rgb888,
    prelude::*,
    text::{Baseline, Text},
};

use crate::{Error, Result};

/// The label of pixels that belong to no class.
const IGNORE_INDEX: u8 = 255;

const PAPER: [u8; 3] = [255, 255, 255];
const INK: [u8; 3] = [32, 34, 40];
/// What explains: captions, ticks.
const PALE_INK: [u8; 3] = [92, 96, 106];
const GRID: [u8; 3] = [228, 230, 234];
/// Around what may itself be as bright as the paper.
const FRAME: [u8; 3] = [150, 154, 162];

const TITLE: &MonoFont = &FONT_10X20;
const HEADING: &MonoFont = &FONT_9X15_BOLD;
const BODY: &MonoFont = &FONT_9X15;

/// An RGB image of 8 bits per channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Pixels per row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width, 3]`
    pub rgb: Vec<u8>,
}

impl Picture {
    /// A picture of one colour.
    pub fn new(width: usize, height: usize, colour: [u8; 3]) -> Self {
        Self { width, height, rgb: colour.repeat(width * height) }
    }

    /// Takes `rgb`, `[height, width, 3]`.
    ///
    /// # Panics
    ///
    /// If `rgb` has another size.
    pub fn from_rgb(width: usize, height: usize, rgb: Vec<u8>) -> Self {
        assert_eq!(rgb.len(), width * height * 3, "picture of {width}×{height}");
        Self { width, height, rgb }
    }

    /// Writes the picture as a PNG file.
    ///
    /// # Errors
    ///
    /// [`Error::File`] when the file cannot be written or the picture has no pixels.
    pub fn write_png(&self, path: &Path) -> Result<()> {
        let write = || -> std::io::Result<()> {
            let file = BufWriter::new(File::create(path)?);
            let mut encoder = png::Encoder::new(file, self.width as u32, self.height as u32);
            encoder.set_color(png::ColorType::Rgb);
            encoder.set_depth(png::BitDepth::Eight);
            let mut writer = encoder.write_header()?;
            writer.write_image_data(&self.rgb)?;
            // Dropping the writer would hide that the disk is full.
            Ok(writer.finish()?)
        };
        write().map_err(Error::file("write", path))
    }

    /// Draws `other` with its upper left corner at (`x`, `y`); what lies outside is cut off.
    pub fn paste(&mut self, other: &Self, x: usize, y: usize) {
        let width = other.width.min(self.width.saturating_sub(x));
        let height = other.height.min(self.height.saturating_sub(y));
        for row in 0..height {
            let to = ((y + row) * self.width + x) * 3;
            let from = row * other.width * 3;
            self.rgb[to..to + width * 3].copy_from_slice(&other.rgb[from..from + width * 3]);
        }
    }

    /// Mixes `colour` into a pixel: 0 leaves the pixel, 1 replaces it. Outside is nothing.
    fn mix(&mut self, x: i32, y: i32, colour: [u8; 3], amount: f64) {
        let (Ok(x), Ok(y)) = (usize::try_from(x), usize::try_from(y)) else { return };
        if x >= self.width || y >= self.height {
            return;
        }
        let base = (y * self.width + x) * 3;
        for (old, new) in self.rgb[base..base + 3].iter_mut().zip(colour) {
            *old = (f64::from(*old) * (1.0 - amount) + f64::from(new) * amount).round() as u8;
        }
    }

    fn fill(&mut self, x: i32, y: i32, width: usize, height: usize, colour: [u8; 3]) {
        for row in 0..height as i32 {
            for column in 0..width as i32 {
                self.mix(x + column, y + row, colour, 1.0);
            }
        }
    }

    /// A line one pixel wide just around the given area.
    fn frame(&mut self, x: i32, y: i32, width: usize, height: usize) {
        self.fill(x - 1, y - 1, width + 2, 1, FRAME);
        self.fill(x - 1, y + height as i32, width + 2, 1, FRAME);
        self.fill(x - 1, y, 1, height, FRAME);
        self.fill(x + width as i32, y, 1, height, FRAME);
    }

    /// Writes `text` with its upper edge at `y`; `x` is where `align` says.
    fn text(&mut self, text: &str, x: i32, y: i32, align: Align, font: &MonoFont, ink: [u8; 3]) {
        let width = text_width(text, font) as i32;
        let x = match align {
            Align::Left => x,
            Align::Middle => x - width / 2,
            Align::Right => x - width,
        };
        let style = MonoTextStyle::new(font, Rgb888::new(ink[0], ink[1], ink[2]));
        let text = Text::with_baseline(text, Point::new(x, y), style, Baseline::Top);
        text.draw(&mut Canvas(self)).unwrap_or_else(|never| match never {});
    }

    /// `text`, shortened where it would be wider than `width` pixels.
    fn text_within(
        &mut self,
        text: &str,
        width: usize,
        at: (i32, i32),
        align: Align,
        font: &MonoFont,
        ink: [u8; 3],
    ) {
        self.text(&shortened(text, width / advance(font)), at.0, at.1, align, font, ink);
    }
}

/// Lets `embedded-graphics` draw its type on a picture.
struct Canvas<'a>(&'a mut Picture);

impl OriginDimensions for Canvas<'_> {
    fn size(&self) -> Size {
        Size::new(self.0.width as u32, self.0.height as u32)
    }
}

impl DrawTarget for Canvas<'_> {
    type Color = Rgb888;
    type Error = std::convert::Infallible;

    fn draw_iter<I>(&mut self, pixels: I) -> Result<(), Self::Error>
    where
        I: IntoIterator<Item = Pixel<Rgb888>>,
    {
        for Pixel(at, colour) in pixels {
            self.0.mix(at.x, at.y, [colour.r(), colour.g(), colour.b()], 1.0);
        }
        Ok(())
    }
}

/// Which part of a text is at the given place.
#[derive(Clone, Copy)]
enum Align {
    Left,
    Middle,
    Right,
}

/// Pixels per character.
fn advance(font: &MonoFont) -> usize {
    (font.character_size.width + font.character_spacing) as usize
}

fn line_height(font: &MonoFont) -> usize {
    font.character_size.height as usize
}

fn text_width(text: &str, font: &MonoFont) -> usize {
    text.chars().count() * advance(font)
}

/// The first `characters` of `text`, the last two of them dots where something was left out.
fn shortened(text: &str, characters: usize) -> Cow<'_, str> {
    if text.chars().count() <= characters {
        return text.into();
    }
    let kept = text.chars().take(characters.saturating_sub(2)).collect::<String>();
    (kept + &".."[..characters.min(2)]).into()
}

/// The colour of each pixel's class, black where `ids` is 255: `[N]` → `[N, 3]`.
///
/// # Panics
///
/// If an id has no colour in `palette`.
pub fn colours(ids: &[u8], palette: &[[u8; 3]]) -> Vec<u8> {
    ids.iter().flat_map(|&id| colour(id, palette).unwrap_or([0; 3])).collect()
}

/// The colour of a class; none for the ignored one.
fn colour(id: u8, palette: &[[u8; 3]]) -> Option<[u8; 3]> {
    if id == IGNORE_INDEX {
        return None;
    }
    let colour = palette.get(usize::from(id));
    Some(*colour.unwrap_or_else(|| panic!("class {id} with a palette of {}", palette.len())))
}

/// Blends an image with the colours of its classes: `rgb · (1 − opacity) + colour · opacity`, truncated.
///
/// - `rgb`: `[height, width, 3]`
/// - `ids`: `[height, width]`, the class of each pixel; where it is 255 the image stays as it is
/// - `palette`: the colour of each class
/// - returns `[height, width, 3]`
///
/// Equals the blend of the SeMask demo, bit for bit, but for the ignored pixels, which that darkens.
///
/// # Panics
///
/// If a size is wrong, or an id has no colour in `palette`.
pub fn overlay(
    rgb: &[u8],
    width: usize,
    height: usize,
    ids: &[u8],
    palette: &[[u8; 3]],
    opacity: f32,
) -> Vec<u8> {
    assert_eq!(rgb.len(), width * height * 3, "overlay: image of {width}×{height}");
    assert_eq!(ids.len(), width * height, "overlay: classes of an image of {width}×{height}");
    // Truncation makes the last digit visible: 0.3 must be the f64 that is written 0.3, as in the demo,
    // not the f32 beside it.
    let opacity = opacity.to_string().parse::<f64>().expect("a number just printed");
    let mut blended = rgb.to_vec();
    for (pixel, &id) in blended.chunks_exact_mut(3).zip(ids) {
        let Some(colour) = colour(id, palette) else { continue };
        for (value, channel) in pixel.iter_mut().zip(colour) {
            *value = (f64::from(*value) * (1.0 - opacity) + f64::from(channel) * opacity) as u8;
        }
    }
    blended
}

/// Side of a colour swatch in a legend.
const SWATCH: usize = 14;
const LEGEND_LINE: usize = 22;
const LEGEND_NAME: usize = 28;

/// Class names beside swatches of their colours, in as many columns as fit into `width`, read downwards.
///
/// The picture is `width` wide, or wider where not even one column fits; names of more than 28
/// characters are shortened.
///
/// # Panics
///
/// If there is not one colour per class.
pub fn legend<S: AsRef<str>>(classes: &[S], palette: &[[u8; 3]], width: usize) -> Picture {
    assert_eq!(classes.len(), palette.len(), "legend: classes and colours");
    let names = classes.iter().map(|name| shortened(name.as_ref(), LEGEND_NAME));
    let names = names.collect::<Vec<_>>();
    let widest = names.iter().map(|name| text_width(name, BODY)).max().unwrap_or(0);
    let entry = SWATCH + 8 + widest;
    const GAP: usize = 20;

    let columns = ((width + GAP) / (entry + GAP)).clamp(1, names.len().max(1));
    let lines = names.len().div_ceil(columns).max(1);
    let mut picture = Picture::new(width.max(entry + 2), lines * LEGEND_LINE, PAPER);
    for (i, (name, &colour)) in names.iter().zip(palette).enumerate() {
        let x = (1 + i / lines * (entry + GAP)) as i32;
        let y = (i % lines * LEGEND_LINE) as i32;
        let inset = (LEGEND_LINE - SWATCH) as i32 / 2;
        picture.fill(x, y + inset, SWATCH, SWATCH, colour);
        picture.frame(x, y + inset, SWATCH, SWATCH);
        let inset = (LEGEND_LINE - line_height(BODY)) as i32 / 2;
        picture.text(name, x + SWATCH as i32 + 8, y + inset, Align::Left, BODY, INK);
    }
    picture
}

/// Images beside their labels and predictions, with the classes' names and colours below.
#[derive(Debug, Clone)]
pub struct Sheet<'a> {
    /// Above everything: the model, the data set, the headline number.
    pub title: &'a str,
    /// The classes' names.
    pub classes: &'a [String],
    /// The classes' colours.
    pub palette: &'a [[u8; 3]],
    /// One per image, downwards.
    pub rows: Vec<SheetRow<'a>>,
}

/// An image of a [`Sheet`].
#[derive(Debug, Clone)]
pub struct SheetRow<'a> {
    /// Below the row: the image's name, its IoU.
    pub caption: String,
    /// Pixels per row of the image.
    pub width: usize,
    /// Rows of the image.
    pub height: usize,
    /// The image, `[height, width, 3]`.
    pub rgb: &'a [u8],
    /// The class of each pixel, `[height, width]`, 255 where there is none.
    pub labels: &'a [u8],
    /// The class that the model gives each pixel, `[height, width]`.
    pub prediction: &'a [u8],
}

impl Sheet<'_> {
    /// Draws the sheet. Small images are enlarged and large ones reduced by a whole factor, so that
    /// their longer side has between 240 and 480 pixels where that can be.
    ///
    /// # Panics
    ///
    /// If the size of an image or the number of colours is wrong, or a class has no colour.
    pub fn draw(&self) -> Picture {
        const MARGIN: usize = 24;
        const GAP: usize = 12;
        const COLUMNS: [&str; 3] = ["image", "ground truth", "prediction"];
        const OPACITY: f32 = 0.6;
        let caption_height = 6 + line_height(BODY) + 16;

        let scaled = |row: &SheetRow| {
            let (width, height) = (row.width, row.height);
            let blend = |ids| overlay(row.rgb, width, height, ids, self.palette, OPACITY);
            [row.rgb.to_vec(), blend(row.labels), blend(row.prediction)]
                .map(|rgb| scaled_to_cell(&Picture::from_rgb(width, height, rgb)))
        };
        let rows = self.rows.iter().map(scaled).collect::<Vec<_>>();
        // Headings need some room even above narrow images.
        let narrowest = text_width(COLUMNS[1], HEADING);
        let cell = rows.iter().map(|[image, ..]| image.width).fold(narrowest, usize::max);
        let inner = (COLUMNS.len() * (cell + GAP) - GAP).max(480);
        let legend = self.legend(inner);
        let inner = inner.max(legend.width);

        let rows_top = MARGIN + line_height(TITLE) + 16 + line_height(HEADING) + 8;
        let rows_height =
            rows.iter().map(|[image, ..]| image.height + caption_height).sum::<usize>();
        let height = rows_top + rows_height + legend.height + MARGIN;
        let mut sheet = Picture::new(inner + 2 * MARGIN, height, PAPER);

        let at = (MARGIN as i32, MARGIN as i32);
        sheet.text_within(self.title, inner, at, Align::Left, TITLE, INK);
        let left = |column: usize| MARGIN + column * (cell + GAP);
        for (column, name) in COLUMNS.iter().enumerate() {
            let y = rows_top - line_height(HEADING) - 8;
            sheet.text(name, left(column) as i32, y as i32, Align::Left, HEADING, INK);
        }
        let mut y = rows_top;
        for (row, cells) in self.rows.iter().zip(&rows) {
            for (column, picture) in cells.iter().enumerate() {
                sheet.paste(picture, left(column), y);
                sheet.frame(left(column) as i32, y as i32, picture.width, picture.height);
            }
            y += cells[0].height;
            let at = (MARGIN as i32, y as i32 + 6);
            sheet.text_within(&row.caption, inner, at, Align::Left, BODY, PALE_INK);
            y += caption_height;
        }
        sheet.paste(&legend, MARGIN, y);
        sheet
    }

    /// The legend: of all classes while they are few, otherwise of those that the images have.
    fn legend(&self, width: usize) -> Picture {
        const FEW: usize = 30;
        assert_eq!(self.classes.len(), self.palette.len(), "sheet: classes and colours");
        let mut shown = [self.classes.len() <= FEW; 256];
        for row in &self.rows {
            for &id in row.labels.iter().chain(row.prediction) {
                shown[usize::from(id)] = true;
            }
        }
        let entries = self.classes.iter().zip(self.palette).zip(shown);
        let (classes, palette): (Vec<_>, Vec<_>) =
            entries.filter_map(|(entry, shown)| shown.then_some(entry)).unzip();
        legend(&classes, &palette, width)
    }
}

/// Repeats pixels of a small picture, averages those of a large one.
fn scaled_to_cell(picture: &Picture) -> Picture {
    const CELL: usize = 480;
    let side = picture.width.max(picture.height).max(1);
    if side > CELL { reduced(picture, side.div_ceil(CELL)) } else { enlarged(picture, CELL / side) }
}

fn enlarged(picture: &Picture, factor: usize) -> Picture {
    let (width, height) = (picture.width * factor, picture.height * factor);
    let mut rgb = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            let base = (y / factor * picture.width + x / factor) * 3;
            rgb.extend_from_slice(&picture.rgb[base..base + 3]);
        }
    }
    Picture { width, height, rgb }
}

/// The mean of each square of `factor`² pixels, less at the right and lower edges.
fn reduced(picture: &Picture, factor: usize) -> Picture {
    let (width, height) = (picture.width.div_ceil(factor), picture.height.div_ceil(factor));
    let mut rgb = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        let rows = y * factor..((y + 1) * factor).min(picture.height);
        for x in 0..width {
            let columns = x * factor..((x + 1) * factor).min(picture.width);
            let count = rows.len() * columns.len();
            for channel in 0..3 {
                let sum = rows.clone().flat_map(|y| columns.clone().map(move |x| (x, y)));
                let sum = sum.map(|(x, y)| picture.rgb[(y * picture.width + x) * 3 + channel]);
                let sum = sum.map(usize::from).sum::<usize>();
                rgb.push(((sum + count / 2) / count) as u8);
            }
        }
    }
    Picture { width, height, rgb }
}

/// A line of a [`curve`].
#[derive(Debug, Clone, Default)]
pub struct Series {
    /// What it shows, for the legend.
    pub name: String,
    /// The line's colour.
    pub colour: [u8; 3],
    /// (x, y) in the order of the line; a point that is not finite interrupts it.
    pub points: Vec<(f64, f64)>,
    /// Whether it has the scale at the right, for values of another unit.
    pub right: bool,
}

/// A line chart, such as loss and mIoU over the steps of a training run.
///
/// `y_label` is the scale at the left; the one at the right, drawn when a series wants it, is labelled
/// with the names of its series.
pub fn curve(series: &[Series], title: &str, x_label: &str, y_label: &str) -> Picture {
    const WIDTH: usize = 960;
    const HEIGHT: usize = 540;
    const MARGIN: i32 = 24;
    const BOTTOM: i32 = HEIGHT as i32 - 66;
    let two_scales = series.iter().any(|series| series.right);

    let of = |right: bool| series.iter().filter(move |series| series.right == right);
    let points = |right: bool| of(right).flat_map(|series| &series.points).filter(|p| finite(p));
    let xs = points(false).chain(points(true)).map(|&(x, _)| x);
    let (x_low, x_high) = range(xs, false);
    let y_scale = |right: bool| Scale::around(range(points(right).map(|&(_, y)| y), true));
    let (left_scale, right_scale) = (y_scale(false), y_scale(true));

    let mut picture = Picture::new(WIDTH, HEIGHT, PAPER);
    let inner = WIDTH - 2 * MARGIN as usize;
    picture.text_within(title, inner, (MARGIN, MARGIN), Align::Left, TITLE, INK);

    // The names, on as many lines as they need.
    let mut y = MARGIN + line_height(TITLE) as i32 + 14;
    let mut x = MARGIN;
    for series in series {
        let name = shortened(&series.name, 60);
        let needed = 30 + text_width(&name, BODY) as i32;
        if x > MARGIN && x + needed > WIDTH as i32 - MARGIN {
            x = MARGIN;
            y += 20;
        }
        picture.fill(x, y + 5, 22, 3, series.colour);
        picture.text(&name, x + 30, y, Align::Left, BODY, INK);
        x += needed + 24;
    }
    let labels_y = y + if series.is_empty() { 0 } else { 30 };
    let top = labels_y + line_height(BODY) as i32 + 16;

    let label_width = |scale: &Scale| {
        scale.labels().map(|label| text_width(&label, BODY)).max().unwrap_or(0) as i32
    };
    let left = MARGIN + label_width(&left_scale) + 8;
    let right = WIDTH as i32 - MARGIN - if two_scales { label_width(&right_scale) + 8 } else { 12 };
    let (across, down) = (f64::from(right - left), f64::from(BOTTOM - top));
    let place_x = |x: f64| f64::from(left) + (x - x_low) / (x_high - x_low) * across;

    // Scales. Of two, the left has the grid.
    let half = line_height(BODY) as i32 / 2;
    for (value, label) in left_scale.ticks.iter().zip(left_scale.labels()) {
        let y = (f64::from(BOTTOM) - left_scale.fraction(*value) * down).round() as i32;
        picture.fill(left, y, (right - left) as usize, 1, GRID);
        picture.text(&label, left - 8, y - half, Align::Right, BODY, PALE_INK);
    }
    if two_scales {
        for (value, label) in right_scale.ticks.iter().zip(right_scale.labels()) {
            let y = (f64::from(BOTTOM) - right_scale.fraction(*value) * down).round() as i32;
            picture.fill(right, y, 4, 1, FRAME);
            picture.text(&label, right + 8, y - half, Align::Left, BODY, PALE_INK);
        }
        picture.fill(right, top, 1, (BOTTOM - top) as usize, FRAME);
        let names = of(true).map(|series| series.name.as_str()).collect::<Vec<_>>().join(", ");
        let at = (WIDTH as i32 - MARGIN, labels_y);
        picture.text_within(&names, inner / 2 - 16, at, Align::Right, BODY, PALE_INK);
    }
    picture.text_within(y_label, inner / 2, (MARGIN, labels_y), Align::Left, BODY, PALE_INK);
    let x_scale = Scale::within(x_low, x_high);
    for (value, label) in x_scale.ticks.iter().zip(x_scale.labels()) {
        let x = place_x(*value).round() as i32;
        picture.fill(x, top, 1, (BOTTOM - top) as usize, GRID);
        picture.fill(x, BOTTOM, 1, 5, FRAME);
        picture.text(&label, x, BOTTOM + 9, Align::Middle, BODY, PALE_INK);
    }
    picture.fill(left, BOTTOM, (right - left) as usize + 1, 1, FRAME);
    let at = (left + (right - left) / 2, BOTTOM + 30);
    picture.text_within(x_label, inner, at, Align::Middle, BODY, PALE_INK);

    for series in series {
        let scale = if series.right { &right_scale } else { &left_scale };
        let placed = series.points.iter().map(|point| {
            let (x, y) = *point;
            let place = (place_x(x), f64::from(BOTTOM) - scale.fraction(y) * down);
            finite(point).then_some(place)
        });
        stroke(&mut picture, &placed.collect::<Vec<_>>(), series.colour);
    }
    if points(false).chain(points(true)).next().is_none() {
        let at = (left + (right - left) / 2, (top + BOTTOM) / 2 - half);
        // The grid's lines would run through the words.
        let width = text_width("no points yet", BODY) as i32 + 16;
        picture.fill(at.0 - width / 2, at.1 - 4, width as usize, 2 * half as usize + 8, PAPER);
        picture.text("no points yet", at.0, at.1, Align::Middle, BODY, PALE_INK);
    }
    picture
}

/// A line of a chart of [`bars`].
#[derive(Debug, Clone)]
pub struct Bar {
    /// What it shows, at its left.
    pub name: String,
    /// What is written behind it.
    pub note: String,
    /// Its length; 1 is the mark of all.
    pub value: f64,
    /// Its colour.
    pub colour: [u8; 3],
}

/// A chart of shares: a bar below the other, from 0 to 1, with marks at the quarters. What is above 1.2 is
/// drawn to there.
pub fn bars(bars: &[Bar], title: &str) -> Picture {
    const WIDTH: usize = 1200;
    const MARGIN: i32 = 24;
    const NAMES: i32 = 600;
    const LINE: i32 = 20;
    const LONGEST: f64 = 1.2;
    let one = f64::from(WIDTH as i32 - NAMES - 2 * MARGIN - 130) / LONGEST;
    let top = MARGIN + line_height(TITLE) as i32 + 36;
    let bottom = top + LINE * bars.len() as i32;
    let mut picture = Picture::new(WIDTH, (bottom + MARGIN) as usize, PAPER);
    let inner = WIDTH - 2 * MARGIN as usize;
    picture.text_within(title, inner, (MARGIN, MARGIN), Align::Left, TITLE, INK);
    let left = MARGIN + NAMES;
    for quarter in 0..=4 {
        let x = left + (f64::from(quarter) / 4.0 * one).round() as i32;
        picture.fill(x, top, 1, (bottom - top) as usize, GRID);
        picture.text(&format!("{} %", 25 * quarter), x, top - 20, Align::Middle, BODY, PALE_INK);
    }
    for (i, bar) in bars.iter().enumerate() {
        let y = top + LINE * i as i32;
        let at = (left - 10, y + 2);
        picture.text_within(&bar.name, NAMES as usize - 10, at, Align::Right, BODY, INK);
        // NaN has no length: as an integer it is 0.
        let length = (bar.value.clamp(0.0, LONGEST) * one).round() as i32;
        picture.fill(left, y + 3, length as usize, LINE as usize - 6, bar.colour);
        picture.text(&bar.note, left + length + 8, y + 2, Align::Left, BODY, PALE_INK);
    }
    picture
}

fn finite(&(x, y): &(f64, f64)) -> bool {
    x.is_finite() && y.is_finite()
}

/// Least and greatest value, apart from each other whatever the values are. With `from_zero`, the least
/// is zero if all are positive and the greatest is well above the least.
fn range(values: impl Iterator<Item = f64>, from_zero: bool) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    if low > high {
        return (0.0, 1.0);
    }
    let low = if from_zero && low > 0.0 && low < 0.5 * high { 0.0 } else { low };
    // Below that difference ticks would fall on the same number.
    let least = 1e-9 * low.abs().max(high.abs());
    if high - low > least {
        return (low, high);
    }
    let pad = if high == 0.0 { 1.0 } else { 0.5 * high.abs() };
    (low - pad, high + pad)
}

/// A scale of a chart with round numbers on it.
#[derive(Debug)]
struct Scale {
    low: f64,
    high: f64,
    ticks: Vec<f64>,
}

impl Scale {
    /// A scale from `low` to `high`, with ticks where round numbers happen to be.
    fn within(low: f64, high: f64) -> Self {
        let ticks = ticks(low, high).into_iter().filter(|tick| (low..=high).contains(tick));
        Self { low, high, ticks: ticks.collect() }
    }

    /// A scale from the round number below to the one above.
    fn around((low, high): (f64, f64)) -> Self {
        let ticks = ticks(low, high);
        Self { low: ticks[0], high: ticks[ticks.len() - 1], ticks }
    }

    /// Where `value` is on the scale: 0 at its low end, 1 at the high one.
    fn fraction(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }

    fn labels(&self) -> impl Iterator<Item = String> {
        // As many places as the longest needs: 0.0, 0.5, 1.0.
        let printed = |tick: &f64| tick.to_string();
        let places = |text: &String| text.split_once('.').map_or(0, |(_, places)| places.len());
        let places = self.ticks.iter().map(|tick| places(&printed(tick))).max().unwrap_or(0);
        let greatest = self.ticks.iter().fold(0.0_f64, |greatest, tick| greatest.max(tick.abs()));
        self.ticks.iter().map(move |&tick| {
            if tick == 0.0 && (places > 4 || greatest >= 1e7) {
                "0".to_owned()
            } else if places > 4 || greatest >= 1e7 {
                format!("{tick:e}")
            } else {
                format!("{tick:.places$}")
            }
        })
    }
}

/// Round numbers at equal distances, four to ten of them: the first at or below `low`, the last at or
/// above `high`.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    assert!(low < high, "ticks from {low} to {high}");
    let rough = (high - low) / 6.0;
    let mut exponent = rough.log10().floor() as i32;
    let step = rough / 10_f64.powi(exponent);
    let mut digit =
        *[1, 2, 5, 10].iter().find(|&&digit| step <= f64::from(digit) + 1e-9).unwrap_or(&10);
    if digit == 10 {
        (digit, exponent) = (1, exponent + 1);
    }
    let step = f64::from(digit) * 10_f64.powi(exponent);
    // A low end that is a tick but for rounding is a tick.
    let first = (low / step + 1e-9).floor() as i64;
    let last = (high / step - 1e-9).ceil() as i64;
    // By way of decimals: 3 · 0.1 would be 0.30000000000000004.
    let tick = |i: i64| format!("{}e{exponent}", i * i64::from(digit)).parse();
    (first..=last).map(|i| tick(i).expect("an integer and an exponent")).collect()
}

/// Draws a smooth line two pixels wide through `points`, interrupted where there is none; a point
/// without neighbours becomes a dot.
fn stroke(picture: &mut Picture, points: &[Option<(f64, f64)>], colour: [u8; 3]) {
    const RADIUS: f64 = 1.1;
    // How much of each pixel the line covers, so that places where pieces meet are drawn once.
    let mut cover = vec![0.0; picture.width * picture.height];
    let mut piece = |(ax, ay): (f64, f64), (bx, by): (f64, f64), radius: f64| {
        let reach = radius + 1.0;
        let rows = (ay.min(by) - reach).max(0.0) as usize..=(ay.max(by) + reach).max(0.0) as usize;
        for y in rows.start().to_owned()..(rows.end() + 1).min(picture.height) {
            let columns = (ax.min(bx) - reach).max(0.0)..(ax.max(bx) + reach).max(0.0);
            for x in columns.start as usize..(columns.end as usize + 1).min(picture.width) {
                let (px, py) = (x as f64 - ax, y as f64 - ay);
                let (dx, dy) = (bx - ax, by - ay);
                let along = (px * dx + py * dy) / (dx * dx + dy * dy).max(f64::MIN_POSITIVE);
                let along = along.clamp(0.0, 1.0);
                let distance = (px - along * dx).hypot(py - along * dy);
                let covered = (radius + 0.5 - distance).clamp(0.0, 1.0);
                let old: &mut f64 = &mut cover[y * picture.width + x];
                *old = old.max(covered);
            }
        }
    };
    for pair in points.windows(2) {
        if let [Some(a), Some(b)] = *pair {
            piece(a, b, RADIUS);
        }
    }
    let at = |i: Option<usize>| i.and_then(|i| points.get(i).copied().flatten());
    for (i, point) in points.iter().enumerate() {
        if let (None, Some(a), None) = (at(i.checked_sub(1)), *point, at(Some(i + 1))) {
            piece(a, a, 2.0 * RADIUS);
        }
    }
    for (i, &covered) in cover.iter().enumerate().filter(|&(_, &covered)| covered > 0.0) {
        picture.mix((i % picture.width) as i32, (i / picture.width) as i32, colour, covered);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PALETTE: [[u8; 3]; 3] = [[0, 0, 0], [0, 200, 80], [255, 160, 0]];

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|i| format!("class {i}")).collect()
    }

    #[test]
    fn overlay_truncates_as_the_demo_does() {
        // 0.3 as an f32 is a little more than 0.3, and 10 · (1 − that) truncates to 6.
        let blended = overlay(&[10, 101, 255], 1, 1, &[1], &[[0; 3], [0, 200, 255]], 0.3);
        assert_eq!(blended, [7, 130, 255]);
        let blended = overlay(&[11, 11, 11], 1, 1, &[0], &[[0, 1, 2]], 0.5);
        assert_eq!(blended, [5, 6, 6]);
    }

    #[test]
    fn overlay_ends_are_exact() {
        let rgb = (0..=255).flat_map(|v| [v, 255 - v, 7]).collect::<Vec<u8>>();
        let ids = (0..=255).map(|v| v % 3).collect::<Vec<u8>>();
        assert_eq!(overlay(&rgb, 16, 16, &ids, &PALETTE, 0.0), rgb);
        assert_eq!(overlay(&rgb, 16, 16, &ids, &PALETTE, 1.0), colours(&ids, &PALETTE));
    }

    #[test]
    fn ignored_pixels_keep_the_image() {
        let blended = overlay(&[9, 8, 7, 100, 100, 100], 2, 1, &[255, 1], &PALETTE, 0.5);
        assert_eq!(blended, [9, 8, 7, 50, 150, 90]);
        // Even with a palette of 256 colours 255 is not a class.
        assert_eq!(overlay(&[9, 8, 7], 1, 1, &[255], &[[1; 3]; 256], 0.5), [9, 8, 7]);
        assert_eq!(colours(&[255, 2], &PALETTE), [0, 0, 0, 255, 160, 0]);
        assert_eq!(overlay(&[], 0, 0, &[], &[], 0.5), [0; 0]);
    }

    #[test]
    #[should_panic(expected = "class 3 with a palette of 3")]
    fn a_class_without_a_colour_is_a_bug() {
        overlay(&[0; 3], 1, 1, &[3], &PALETTE, 0.5);
    }

    #[test]
    fn legend_fills_the_width_in_columns() {
        let entry = SWATCH + 8 + 9 * "class 254".len();
        for (count, width, columns) in [(1, 600, 1), (3, 600, 3), (255, 1200, 9), (255, 20, 1)] {
            let picture = legend(&names(count), &vec![[9; 3]; count], width);
            assert_eq!(picture.width, if width == 20 { entry + 2 } else { width });
            assert_eq!(picture.height, count.div_ceil(columns) * LEGEND_LINE);
        }
        assert_eq!(legend::<String>(&[], &[], 100).width, 100);
    }

    #[test]
    fn long_names_are_shortened() {
        assert_eq!(shortened("abcdef", 6), "abcdef");
        assert_eq!(shortened("abcdef", 5), "abc..");
        assert_eq!(shortened("äöüäöü", 4), "äö..");
        assert_eq!(shortened("abcdef", 1), ".");
        assert_eq!(shortened("abcdef", 0), "");
        let picture = legend(&["x".repeat(500)], &[[0; 3]], 10);
        assert_eq!(picture.width, SWATCH + 8 + 9 * LEGEND_NAME + 2);
    }

    #[test]
    fn cells_are_scaled_by_whole_factors() {
        for (width, height, expected) in [
            (192, 192, (384, 384)),
            (120, 90, (480, 360)),
            (1, 1, (480, 480)),
            (480, 3, (480, 3)),
            (481, 3, (241, 2)),
            (2048, 1024, (410, 205)),
        ] {
            let picture = scaled_to_cell(&Picture::new(width, height, [1, 2, 3]));
            assert_eq!((picture.width, picture.height), expected);
            assert!(picture.rgb.chunks_exact(3).all(|pixel| pixel == [1, 2, 3]));
        }
        let stripes = Picture::from_rgb(3, 1, vec![0, 0, 0, 100, 100, 101, 7, 7, 7]);
        assert_eq!(reduced(&stripes, 2).rgb, [50, 50, 51, 7, 7, 7]);
        assert_eq!(enlarged(&Picture::new(1, 1, [4; 3]), 2).rgb, [4; 12]);
    }

    #[test]
    fn sheets_of_odd_contents_can_be_drawn() {
        let row = |side: usize, rgb, ids| SheetRow {
            caption: "a caption that is much longer than one tiny picture is wide".repeat(9),
            width: side,
            height: side,
            rgb,
            labels: ids,
            prediction: ids,
        };
        for classes in [1, 255] {
            let names = names(classes);
            let palette = vec![[90; 3]; classes];
            for rows in [
                vec![],
                vec![row(1, &[255; 3], &[0])],
                vec![row(1, &[255; 3], &[0]), row(2, &[0; 12], &[0, 255, 0, 0])],
            ] {
                let sheet =
                    Sheet { title: "title", classes: &names, palette: &palette, rows }.draw();
                assert_eq!(sheet.rgb.len(), sheet.width * sheet.height * 3);
                assert!(sheet.rgb.iter().any(|&value| value < 64), "nothing drawn");
            }
        }
    }

    #[test]
    fn ticks_are_round_and_enclose() {
        assert_eq!(ticks(0.0, 1.0), [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
        assert_eq!(ticks(0.0, 0.3), [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3]);
        assert_eq!(ticks(0.0, 6e-5), [0.0, 1e-5, 2e-5, 3e-5, 4e-5, 5e-5, 6e-5]);
        assert_eq!(ticks(1.0, 40_000.0), [0.0, 10_000.0, 20_000.0, 30_000.0, 40_000.0]);
        assert_eq!(ticks(-3.0, 4.0), [-4.0, -2.0, 0.0, 2.0, 4.0]);
        for exponent in -12..12 {
            for i in 1..100 {
                let high = f64::from(i) * 10_f64.powi(exponent);
                let ticks = ticks(0.37 * high, high);
                assert!((4..=10).contains(&ticks.len()), "{} up to {high}", ticks.len());
                let slack = 1e-9 * high;
                assert!(ticks[0] <= 0.37 * high + slack && ticks[ticks.len() - 1] >= high - slack);
            }
        }
    }

    #[test]
    fn labels_have_equally_many_places() {
        let labels = |low, high| Scale::around((low, high)).labels().collect::<Vec<_>>();
        assert_eq!(labels(0.0, 1.0), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(0.0, 3e-5), ["0", "5e-6", "1e-5", "1.5e-5", "2e-5", "2.5e-5", "3e-5"]);
        assert_eq!(labels(0.0, 500.0), ["0", "100", "200", "300", "400", "500"]);
    }

    #[test]
    fn ranges_never_collapse() {
        assert_eq!(range([].into_iter(), true), (0.0, 1.0));
        assert_eq!(range([3.0].into_iter(), true), (1.5, 4.5));
        assert_eq!(range([0.0, 0.0].into_iter(), false), (-1.0, 1.0));
        assert_eq!(range([2.0, 9.0].into_iter(), true), (0.0, 9.0));
        assert_eq!(range([8.0, 9.0].into_iter(), true), (8.0, 9.0));
        assert_eq!(range([-2.0, 9.0].into_iter(), true), (-2.0, 9.0));
        let (low, high) = range([1e12, 1e12 + 1e-4].into_iter(), true);
        assert!(ticks(low, high).len() < 12);
    }

    #[test]
    fn curves_of_odd_contents_can_be_drawn() {
        let series = |points: &[(f64, f64)], right| Series {
            name: "series".into(),
            colour: [200, 0, 0],
            points: points.to_vec(),
            right,
        };
        let drawn = |all: &[Series]| {
            let picture = curve(all, "title", "step", "loss");
            picture.rgb.chunks_exact(3).filter(|&pixel| pixel == [200, 0, 0]).count()
        };
        assert_eq!(drawn(&[]), 0);
        let swatch = drawn(&[series(&[], false)]);
        assert_eq!(swatch, drawn(&[series(&[(f64::NAN, 1.0), (1.0, f64::INFINITY)], true)]));
        assert!(drawn(&[series(&[(5.0, 5.0)], false)]) > swatch, "a single point is a dot");
        let gap = drawn(&[series(&[(0.0, 1.0), (1.0, f64::NAN), (2.0, 1.0)], false)]);
        let line = drawn(&[series(&[(0.0, 1.0), (1.0, 1.0), (2.0, 1.0)], false)]);
        assert!(gap + 100 < line, "no line across a point that is not a number");
        assert!(drawn(&[series(&[(0.0, 1e300), (1.0, -1e300)], true)]) > swatch);
        assert!(drawn(&vec![series(&[(0.0, 1e-300), (1.0, 2e-300)], false); 40]) > swatch);
    }

    #[test]
    fn png_files_hold_the_pixels() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("picture.png");
        let picture = Picture::from_rgb(2, 1, vec![1, 2, 3, 250, 251, 252]);
        picture.write_png(&path).expect("writable");
        let read = image::open(&path).expect("readable").into_rgb8();
        assert_eq!((read.width(), read.height(), read.into_raw()), (2, 1, picture.rgb.clone()));

        let missing = folder.path().join("missing/picture.png");
        let error = picture.write_png(&missing).expect_err("no such folder");
        assert!(error.to_string().starts_with("cannot write"), "{error}");
    }

    #[test]
    fn pasting_cuts_at_the_edges() {
        let mut picture = Picture::new(2, 2, [0; 3]);
        picture.paste(&Picture::new(5, 5, [9; 3]), 1, 1);
        picture.paste(&Picture::new(1, 1, [8; 3]), 2, 0);
        assert_eq!(picture.rgb, [0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 9, 9]);
    }
}
