// Windows of a map that is padded to whole windows and rolled: what is where. For kernels whose Params have
// `height`, `width`, `windows_y`, `windows_x`, `window_size` and `shift`.

const MASKED: f32 = -100.0;
const LOWEST: f32 = -3.4028235e38;

struct Window {
    batch: u32,
    y: u32,  // of its first token in the rolled and padded map
    x: u32,
}

fn window_of(index: u32) -> Window {
    let per_image = params.windows_y * params.windows_x;
    let within = index % per_image;
    var window: Window;
    window.batch = index / per_image;
    window.y = within / params.windows_x * params.window_size;
    window.x = within % params.windows_x * params.window_size;
    return window;
}

fn padded_height() -> u32 {
    return params.windows_y * params.window_size;
}

fn padded_width() -> u32 {
    return params.windows_x * params.window_size;
}

// Where what is at `position` of the rolled map comes from, along an axis of `size`.
fn unrolled(position: u32, size: u32) -> u32 {
    let rolled = position + params.shift;
    return select(rolled, rolled - size, rolled >= size);
}

// Tokens of different regions are not neighbours in the picture.
fn region_of(window: Window, ty: u32, tx: u32) -> u32 {
    return band(window.y + ty, padded_height()) * 3u + band(window.x + tx, padded_width());
}

// 0, 1 or 2: before the last window, in it, and what the shift moved in from the other side.
fn band(position: u32, size: u32) -> u32 {
    return u32(position + params.window_size >= size) + u32(position + params.shift >= size);
}

// Which of the tokens of padding this is: those to the right of the picture first, then the rows below it.
fn padding_row(window: Window, ty: u32, tx: u32) -> u32 {
    let y = unrolled(window.y + ty, padded_height());
    let x = unrolled(window.x + tx, padded_width());
    let beside = padded_width() - params.width;
    let right = y * beside + x - params.width;
    let below = params.height * beside + (y - params.height) * padded_width() + x;
    let per_image = padded_height() * padded_width() - params.height * params.width;
    return window.batch * per_image + select(below, right, y < params.height);
}
