
// ==== lib/doubled.wgsl: where an invocation is while images become twice as large ======================
//
// Kernels declare `params`, and how many rows and columns of dx an invocation has: BLOCK_ROWS, BLOCK_COLUMNS. A pixel has
// `count` places, channels or pairs of them, along which `lanes` lanes run.

const SPAN: u32 = 16u;

// Between two rows of x: where they are, as pixels of all images, and where the two rows of y.
struct Gap {
    exists: bool,
    above: u32,
    below: u32,
    has_upper: bool,
    has_lower: bool,
    upper: u32,
    lower: u32,
    // The first column of x.
    start: u32,
    place: u32,
}

fn locate_gap(id: u32, lane: u32, lanes: u32, count: u32) -> Gap {
    let slices = (count + lanes - 1u) / lanes;
    let spans = (params.width + SPAN - 1u) / SPAN;
    let row = id / slices / spans;
    let image = row / (params.height + 1u);
    let i = row - image * (params.height + 1u);
    let top = image * params.height;
    let place = id % slices * lanes + lane;
    let lower = 2u * (top + i) * params.goal_width;
    let exists = row < params.rows && place < count;
    return Gap(
        exists,
        (top + max(i, 1u) - 1u) * params.width,
        (top + min(i, params.height - 1u)) * params.width,
        (i > 0u),
        (i < params.height),
        lower - params.goal_width,
        lower,
        id / slices % spans * SPAN,
        place,
    );
}

// A block of dx.
struct Block {
    exists: bool,
    image: u32,
    row: u32,
    column: u32,
    place: u32,
}

fn locate_block(id: u32, lane: u32, lanes: u32, count: u32) -> Block {
    let slices = (count + lanes - 1u) / lanes;
    let wide = (params.width + BLOCK_COLUMNS - 1u) / BLOCK_COLUMNS;
    let high = (params.height + BLOCK_ROWS - 1u) / BLOCK_ROWS;
    let block = id / slices / wide;
    let image = block / high;
    let place = id % slices * lanes + lane;
    let exists = block < params.rows && place < count;
    return Block(
        exists,
        image,
        (block - image * high) * BLOCK_ROWS,
        id / slices % wide * BLOCK_COLUMNS,
        place,
    );
}
