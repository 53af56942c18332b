//! Durations in bounded memory: 64 buckets to each doubling, so a percentile is within 1.6 % of a value that
//! was recorded, however many there were.
//!
//! Apart from the one of `quire bench`, which is in the binary and counts finer than a model is right.

use std::time::Duration;

/// Buckets of one doubling, as a power of two.
const SUB: u32 = 6;
const BUCKETS: usize = ((64 - SUB as usize) + 1) << SUB;

/// Counts of durations.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    sum_ns: u128,
    max_ns: u64,
}

impl Histogram {
    pub fn new() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, sum_ns: 0, max_ns: 0 }
    }

    pub fn record(&mut self, duration: Duration) {
        let ns = duration.as_nanos().min(u128::from(u64::MAX)) as u64;
        self.counts[bucket(ns)] += 1;
        self.total += 1;
        self.sum_ns += u128::from(ns);
        self.max_ns = self.max_ns.max(ns);
    }

    pub fn len(&self) -> u64 {
        self.total
    }

    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    pub fn mean_ms(&self) -> f64 {
        if self.total == 0 { 0.0 } else { self.sum_ns as f64 / self.total as f64 / 1e6 }
    }

    pub fn max_ms(&self) -> f64 {
        self.max_ns as f64 / 1e6
    }

    /// The value at or below which `percent` of the records lie; zero if there are none.
    pub fn percentile_ms(&self, percent: f64) -> f64 {
        let rank = ((self.total as f64 * percent / 100.0).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return highest(index).min(self.max_ns) as f64 / 1e6;
            }
        }
        0.0
    }

    /// Points of the cumulative distribution for drawing: (milliseconds, share at or below).
    pub fn curve(&self) -> Vec<(f64, f64)> {
        let mut seen = 0;
        let filled = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        filled
            .map(|(index, count)| {
                seen += count;
                (highest(index).min(self.max_ns) as f64 / 1e6, seen as f64 / self.total as f64)
            })
            .collect()
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

fn bucket(ns: u64) -> usize {
    let shift = (u64::BITS - ns.leading_zeros()).saturating_sub(SUB + 1);
    ((shift as usize) << SUB) + (ns >> shift) as usize
}

/// The greatest value of a bucket.
fn highest(index: usize) -> u64 {
    let linear = 1 << (SUB + 1);
    if index < linear {
        return index as u64;
    }
    let shift = (index >> SUB) as u32 - 1;
    let base = (index - ((shift as usize) << SUB)) as u128;
    (((base + 1) << shift) - 1).min(u128::from(u64::MAX)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket() {
        for ns in (0..2000).chain([1 << 20, (1 << 20) + 12_345, u64::MAX / 3, u64::MAX]) {
            let index = bucket(ns);
            assert!(highest(index) >= ns, "{ns} above its bucket");
            assert!(index == 0 || highest(index - 1) < ns, "{ns} belongs before {index}");
        }
    }

    #[test]
    fn percentiles_are_close_and_the_curve_ends_at_one() {
        let mut histogram = Histogram::new();
        (1..=1000).for_each(|ms| histogram.record(Duration::from_millis(ms)));
        for percent in [1.0, 50.0, 99.0] {
            let shown = histogram.percentile_ms(percent);
            assert!((shown / (percent * 10.0) - 1.0).abs() < 0.016, "p{percent} is {shown}");
        }
        assert_eq!(histogram.curve().last().unwrap().1, 1.0);
        assert_eq!((histogram.mean_ms(), histogram.max_ms()), (500.5, 1000.0));
    }
}
