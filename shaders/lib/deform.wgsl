
// ==== lib/deform.wgsl: bilinear samples at places that a network chose ==============================
//
// Whole numbers are centres of pixels. A sample at (X, Y) of a map of w × h is
//
//   s = (1 - ly) ((1 - lx) v00 + lx v01) + ly ((1 - lx) v10 + lx v11),   lx = X - floor(X), ly likewise
//
// with zeros around the map, and it is 0 with all its derivatives unless -1 < X < w and -1 < Y < h. Where
// that does not hold, also because a place is no number, no pixel is met: addresses are clamped as whole
// numbers, so nothing outside of the map is ever read.

const NOT_A_NUMBER: u32 = 0x7fc00000u;

// By its bits: comparisons of NaN are not the same on all drivers.
fn is_finite(v: f32) -> bool {
    return (bitcast<u32>(v) & 0x7f800000u) != 0x7f800000u;
}

struct Axis {
    // The pixel at or before the place: -1 .. size - 1, or -2 outside.
    near: i32,
    fraction: f32,
}

fn along(place: f32, size: u32) -> Axis {
    let inside = is_finite(place) && place > -1.0 && place < f32(size);
    let p = select(-2.0, place, inside);
    let near = floor(p);
    return Axis(i32(near), p - near);
}

struct Corners {
    // Pixels 00, 01, 10, 11 of the map, row by row; some pixel of the map in place of one outside.
    at: vec4<u32>,
    // 1 for pixels of the map, else 0.
    there: vec4<f32>,
    // (lx, ly)
    fraction: vec2<f32>,
}

fn corners_at(place: vec2<f32>, width: u32, height: u32) -> Corners {
    let x = along(place.x, width);
    let y = along(place.y, height);
    let columns = vec2(x.near, x.near + 1);
    let rows = vec2(y.near, y.near + 1);
    let column_there = (columns >= vec2(0)) & (columns < vec2(i32(width)));
    let row_there = (rows >= vec2(0)) & (rows < vec2(i32(height)));
    let column = vec2<u32>(clamp(columns, vec2(0), vec2(i32(width) - 1)));
    let row = vec2<u32>(clamp(rows, vec2(0), vec2(i32(height) - 1)));
    return Corners(
        row.xxyy * width + column.xyxy,
        vec4<f32>(row_there.xxyy & column_there.xyxy),
        vec2(x.fraction, y.fraction),
    );
}

fn corner_weights(c: Corners) -> vec4<f32> {
    let x = vec2(1.0 - c.fraction.x, c.fraction.x);
    let y = vec2(1.0 - c.fraction.y, c.fraction.y);
    return c.there * y.xxyy * x.xyxy;
}

// The derivatives of a sample by its place (x, y); v: its pixels, 0 outside.
fn slope(c: Corners, v: vec4<f32>) -> vec2<f32> {
    let across = v.yw - v.xz;
    let down = v.zw - v.xy;
    return vec2(
        (1.0 - c.fraction.y) * across.x + c.fraction.y * across.y,
        (1.0 - c.fraction.x) * down.x + c.fraction.x * down.y,
    );
}

// ---- Maps of several sizes, one after the other ---------------------------------------------------
// Tokens are the pixels of all maps. Samples between the same four pixels are in the same cell; a map of
// w × h has (w + 1) × (h + 1) of them, since a cell may reach over the border.

struct Token {
    level: u32,
    row: u32,
    column: u32,
    // The first cell of its map.
    first_cell: u32,
}

fn locate_token(token: u32, widths: vec4<u32>, heights: vec4<u32>) -> Token {
    var rest = token;
    var level = 0u;
    var first_cell = 0u;
    while level < 3u && rest >= widths[level] * heights[level] {
        rest -= widths[level] * heights[level];
        first_cell += (widths[level] + 1u) * (heights[level] + 1u);
        level += 1u;
    }
    return Token(level, rest / widths[level], rest % widths[level], first_cell);
}

// The cell of a sample within its map, of which there is one only if `meets_map`.
fn cell_of(x: Axis, y: Axis, width: u32) -> u32 {
    return u32(y.near + 1) * (width + 1u) + u32(x.near + 1);
}

fn meets_map(x: Axis, y: Axis) -> bool {
    return x.near > -2 && y.near > -2;
}

// ---- Lists of samples -----------------------------------------------------------------------------
// Each cell has a list of the samples in it: `first[cell]` and then `links[n].x`, which are n + 1 of the
// next sample n, or 0 at the end.

fn make_link(next: u32, weight: f32, x: Axis, y: Axis) -> vec4<u32> {
    return vec4(next, bitcast<vec3<u32>>(vec3(weight, x.fraction, y.fraction)));
}
