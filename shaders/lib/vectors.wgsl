
// Element by element over tensors bound as vectors of four: which vectors an invocation has. The kernels'
// Params have `len`, the number of elements.
//
// WORKGROUP lanes take EACH vectors each, which lie WORKGROUP apart. On a CPU driver every pass of a loop
// costs as much as several loads, so a whole span is a loop of constant length, which compilers unroll.
// With a workgroup of one lane all addresses are uniform there: no gathers, but arithmetic on scalars.

override WORKGROUP: u32 = 64u;
override EACH: u32 = 4u;

struct Span {
    start: u32,   // the workgroup's first vector
    lane: u32,    // which of the first WORKGROUP vectors is this lane's first
    end: u32,     // before which the workgroup's last vector lies
    whole: bool,  // whether the workgroup has all of its vectors, and each has four elements
}

fn span_of(id: u32, lane: u32) -> Span {
    let start = id * WORKGROUP * EACH;
    let end = start + WORKGROUP * EACH;
    // Compilers do not know that the only lane is number 0.
    let only = select(lane, 0u, WORKGROUP == 1u);
    return Span(start, only, min(end, (params.len + 3u) / 4u), end <= params.len / 4u);
}

// How many elements of a vector there are.
fn elements_of(vector: u32) -> u32 {
    return min(params.len - 4u * vector, 4u);
}
