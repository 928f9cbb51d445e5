
// Gaussian error linear unit, the exact form with the error function.

fn gelu(v: f32) -> f32 {
    return v * normal_cdf(v);
}

fn gelu_slope(v: f32) -> f32 {
    return normal_cdf(v) + v * 0.3989422804 * exp(-0.5 * v * v);
}

// Cumulative distribution of the standard normal. WGSL has no erf; this is formula 7.1.26 of
// Abramowitz & Stegun with z = |v| / √2, whose error stays below 1.5e-7.
fn normal_cdf(v: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.2316418882 * abs(v));
    let series = t * (0.127414796 + t * (-0.142248368 + t * (0.7107068705 + t * (-0.7265760135 + t * 0.5307027145))));
    let tail = series * exp(-0.5 * v * v);
    return select(tail, 1.0 - tail, v >= 0.0);
}
