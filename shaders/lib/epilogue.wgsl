
// What happens to a product before it is stored, for both kernels of matrix products: they declare
// `params` and the bindings that these functions name.

// Alone: c = alpha a b, or added to what is there. With splits, each writes its own matrix.
fn finish_plain(row: u32, col: u32, batch: u32, value: f32) {
    let at = params.c_offset + batch * params.c_batch + row * params.c_row + col;
    if params.accumulate != 0u {
        c[at] += params.alpha * value;
    } else {
        c[at] = params.alpha * value;
    }
}

fn finish_bias(row: u32, col: u32, batch: u32, value: f32) {
    c[params.c_offset + batch * params.c_batch + row * params.c_row + col] = value + bias[col];
}

fn finish_operand(row: u32, col: u32, value: f32) {
    activation[row * params.c_row + col] = Real(value + bias[col]);
}

fn finish_gelu(row: u32, col: u32, value: f32) {
    let at = row * params.c_row + col;
    let v = value + bias[col];
    preactivation[at] = Real(v);
    activation[at] = Real(gelu(v));
}

fn finish_residual(row: u32, col: u32, value: f32) {
    let at = row * params.c_row + col;
    c[at] = residual[at] + keep[row / params.rows_per_sample] * (value + bias[col]);
}
