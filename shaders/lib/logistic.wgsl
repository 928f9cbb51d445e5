
// ==== lib/logistic.wgsl ==============================================================================

fn sigmoid(z: f32) -> f32 {
    return 1.0 / (1.0 + exp(-z));
}

// log(1 + e^z), without overflow; -log sigmoid(-z).
fn softplus(z: f32) -> f32 {
    return max(z, 0.0) + log(1.0 + exp(-abs(z)));
}
