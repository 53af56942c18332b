//! Randomness without state: a draw is a function of (seed, position, lane).
//!
//! Sampling must give the same token for the same seed and position whatever else ran in the batch,
//! after a preemption, and on another replica. A stateful generator cannot promise that, a counter
//! can; Philox-4x32-10 is the counter generator that GPU kernels use as well, so the CUDA backend
//! can draw the same numbers.

/// Philox-4x32-10 keyed by a seed.
#[derive(Clone, Copy, Debug)]
pub struct CounterRng {
    key: [u32; 2],
}

impl CounterRng {
    pub fn new(seed: u64) -> Self {
        Self { key: [seed as u32, (seed >> 32) as u32] }
    }

    /// Four independent words for `(position, lane)`.
    pub fn words(&self, position: u64, lane: u64) -> [u32; 4] {
        let mut ctr = [position as u32, (position >> 32) as u32, lane as u32, (lane >> 32) as u32];
        let mut key = self.key;
        for _ in 0..10 {
            ctr = round(ctr, key);
            key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        }
        ctr
    }

    /// Uniform in `[0, 1)` with 53 bits.
    pub fn uniform(&self, position: u64, lane: u64) -> f64 {
        let w = self.words(position, lane);
        let bits = (u64::from(w[0]) << 32 | u64::from(w[1])) >> 11;
        bits as f64 / (1u64 << 53) as f64
    }
}

fn round(c: [u32; 4], k: [u32; 2]) -> [u32; 4] {
    let p0 = u64::from(c[0]) * 0xD251_1F53;
    let p1 = u64::from(c[2]) * 0xCD9E_8D57;
    [(p1 >> 32) as u32 ^ c[1] ^ k[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k[1], p0 as u32]
}

/// A small sequential generator for workloads and tests; never for sampling tokens.
#[derive(Clone, Debug)]
pub struct SplitMix {
    state: u64,
}

impl SplitMix {
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    /// Uniform in `0..bound` (`bound` > 0); the bias of the multiply is below 2⁻³² for small bounds.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
    /// Standard normal by Box–Muller.
    pub fn normal(&mut self) -> f64 {
        let u = (1.0 - self.unit()).ln();
        (-2.0 * u).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known-answer vectors published with Random123 (philox4x32, 10 rounds).
    #[test]
    fn philox_matches_the_published_vectors() {
        assert_eq!(CounterRng::new(0).words(0, 0), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            CounterRng::new(u64::MAX).words(u64::MAX, u64::MAX),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }

    #[test]
    fn uniform_stays_in_range_and_differs_by_position() {
        let rng = CounterRng::new(7);
        let draws: Vec<f64> = (0..1000).map(|p| rng.uniform(p, 0)).collect();
        assert!(draws.iter().all(|u| (0.0..1.0).contains(u)));
        let mean = draws.iter().sum::<f64>() / 1000.0;
        assert!((mean - 0.5).abs() < 0.05, "mean {mean}");
    }
}
