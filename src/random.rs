//! Counter-based random numbers, the same on the host and in `shaders/lib/philox.wgsl`.
//!
//! A counter-based generator has no state to save: number `i` of stream `s` under seed `k` is a
//! function of `(k, s, i)`. Resuming a run, or asking from another thread, gives the same numbers.

/// Philox 4x32 with 10 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
pub fn philox(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    let ([mut k0, mut k1], [mut x0, mut x1, mut x2, mut x3]) = (key, counter);
    for _ in 0..10 {
        let p0 = u64::from(x0) * 0xD251_1F53;
        let p1 = u64::from(x2) * 0xCD9E_8D57;
        (x0, x1, x2, x3) =
            ((p1 >> 32) as u32 ^ x1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ x3 ^ k1, p0 as u32);
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    [x0, x1, x2, x3]
}

/// The numbers of one stream, in order.
#[derive(Clone, Debug)]
pub struct Rng {
    seed: u64,
    stream: u64,
    block: u64,
    left: Vec<u32>,
}

impl Rng {
    /// Stream `stream` under `seed`. Streams are independent: use one per sample, parameter, ….
    pub fn new(seed: u64, stream: u64) -> Self {
        Self { seed, stream, block: 0, left: Vec::new() }
    }

    /// 32 uniform bits.
    pub fn bits(&mut self) -> u32 {
        if self.left.is_empty() {
            let split = |v: u64| [v as u32, (v >> 32) as u32];
            let ([b0, b1], [s0, s1]) = (split(self.block), split(self.stream));
            self.left = philox(split(self.seed), [b0, b1, s0, s1]).into();
            self.left.reverse();
            self.block += 1;
        }
        self.left.pop().expect("refilled above")
    }

    /// Uniform in `0.0..1.0`, a multiple of 2⁻²⁴.
    pub fn uniform(&mut self) -> f32 {
        (self.bits() >> 8) as f32 / (1 << 24) as f32
    }

    /// Uniform in `low..high`.
    pub fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.uniform()
    }

    /// Uniform in `0..n`; the bias is below `n / 2³²`.
    ///
    /// # Panics
    ///
    /// If `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "no number is below 0");
        ((u64::from(self.bits()) * n as u64) >> 32) as usize
    }

    /// Heads or tails.
    pub fn coin(&mut self) -> bool {
        self.bits() >> 31 == 1
    }

    /// Normal with mean 0 and deviation 1 (Box & Muller 1958).
    pub fn normal(&mut self) -> f32 {
        let radius = (-2.0 * (1.0 - f64::from(self.uniform())).ln()).sqrt();
        (radius * (std::f64::consts::TAU * f64::from(self.uniform())).cos()) as f32
    }

    /// A random order of `0..n` (Fisher & Yates).
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known-answer vectors that come with the authors' Random123.
    #[test]
    fn philox_gives_the_published_answers() {
        let known = |k, c, x: [u32; 4]| assert_eq!(philox(k, c), x);
        known([0; 2], [0; 4], [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        known([!0; 2], [!0; 4], [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        known(
            [0xa4093822, 0x299f31d0],
            [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
        );
    }

    #[test]
    fn normals_have_mean_0_and_deviation_1() {
        let mut rng = Rng::new(1, 2);
        let values: Vec<f64> = (0..20_000).map(|_| rng.normal().into()).collect();
        let mean = values.iter().sum::<f64>() / 20_000.0;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 20_000.0;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
    }

    #[test]
    fn a_permutation_has_every_index_once() {
        let mut order = Rng::new(3, 4).permutation(100);
        assert_ne!(order[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        order.sort_unstable();
        assert!(order.iter().copied().eq(0..100));
    }
}
