//! Latencies in bounded memory: logarithmic buckets, 256 to each doubling, so a percentile is within 0.4 %
//! of the value that was recorded, however many there were.

use std::time::Duration;

use serde::Serialize;

/// Linear part: below 2^SUB nanoseconds every value has its own bucket.
const SUB: u32 = 8;
const BUCKETS: usize = ((64 - SUB as usize) + 1) << SUB;

/// Counts of durations.
#[derive(Clone)]
pub struct Histogram {
    counts: Box<[u64]>,
    total: u64,
    sum_ns: u128,
    max_ns: u64,
}

/// What is reported of a histogram, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

impl Histogram {
    pub fn new() -> Self {
        Self { counts: vec![0; BUCKETS].into(), total: 0, sum_ns: 0, max_ns: 0 }
    }

    pub fn record(&mut self, duration: Duration) {
        self.record_many(duration, 1);
    }

    pub fn record_many(&mut self, duration: Duration, count: u64) {
        let ns = duration.as_nanos().min(u128::from(u64::MAX)) as u64;
        self.counts[bucket(ns)] += count;
        self.total += count;
        self.sum_ns += u128::from(ns) * u128::from(count);
        self.max_ns = self.max_ns.max(ns);
    }

    /// The value below or at which `percent` of the records lie; zero if there are none.
    pub fn percentile_ms(&self, percent: f64) -> f64 {
        let rank = ((self.total as f64 * percent / 100.0).ceil() as u64).clamp(1, self.total.max(1));
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return highest(index).min(self.max_ns) as f64 / 1e6;
            }
        }
        0.0
    }

    pub fn summary(&self) -> Summary {
        let mean = if self.total == 0 { 0.0 } else { self.sum_ns as f64 / self.total as f64 / 1e6 };
        let [p50, p90, p99] = [50.0, 90.0, 99.0].map(|p| self.percentile_ms(p));
        Summary { mean, p50, p90, p99, max: self.max_ns as f64 / 1e6 }
    }
}

fn bucket(ns: u64) -> usize {
    let exponent = (63 - (ns | 1).leading_zeros()).saturating_sub(SUB);
    let mantissa = (ns >> exponent) as usize;
    ((exponent as usize) << SUB) + mantissa
}

/// The largest value of a bucket.
fn highest(index: usize) -> u64 {
    let exponent = (index >> SUB).saturating_sub(1) as u32;
    let mantissa = (index - ((exponent as usize) << SUB)) as u64;
    ((mantissa + 1) << exponent).wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::SplitMix;

    #[test]
    fn percentiles_stay_within_half_a_percent_of_the_sorted_values() {
        let mut rng = SplitMix::new(7);
        let mut values: Vec<u64> = (0..20_000).map(|_| (rng.normal() * 2.0 + 14.0).exp() as u64).collect();
        let mut histogram = Histogram::new();
        values.iter().for_each(|&v| histogram.record(Duration::from_nanos(v)));
        values.sort_unstable();
        for percent in [1.0, 50.0, 90.0, 99.0, 100.0] {
            let exact = values[((values.len() as f64 * percent / 100.0).ceil() as usize) - 1] as f64 / 1e6;
            let got = histogram.percentile_ms(percent);
            assert!((got - exact).abs() <= exact * 0.005, "p{percent}: {got} against {exact}");
        }
    }

    #[test]
    fn every_value_lies_in_its_bucket() {
        for ns in
            (0..5000).chain((0..64).flat_map(|s| [(1u64 << s) - 1, 1 << s, (1 << s) + 1])).chain([u64::MAX])
        {
            let index = bucket(ns);
            assert!(ns <= highest(index), "{ns}");
            assert!(index == 0 || ns > highest(index - 1), "{ns}");
        }
    }

    #[test]
    fn nothing_recorded_is_zero() {
        assert_eq!(Histogram::new().summary(), Summary { mean: 0.0, p50: 0.0, p90: 0.0, p99: 0.0, max: 0.0 });
    }
}
