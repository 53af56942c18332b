//! A histogram in atomics: no lock, no allocation, one addition to one bucket per observation.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Fixed upper bounds; cumulated only when read.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One more than `bounds`: the last is +Inf.
    counts: Vec<AtomicU64>,
    /// In units of [`Histogram::UNIT`].
    sum: AtomicU64,
}

impl Histogram {
    /// Sums are kept in billionths: nanoseconds for times, exact for counts up to 18 billion.
    const UNIT: f64 = 1e9;

    pub fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum: AtomicU64::new(0) }
    }

    /// `times` observations of the same duration.
    pub fn observe(&self, value: Duration, times: u64) {
        let nanos = value.as_nanos().min(u128::from(u64::MAX)) as u64;
        self.add(value.as_secs_f64(), nanos.saturating_mul(times), times);
    }

    pub fn observe_count(&self, value: u64) {
        self.add(value as f64, value.saturating_mul(Self::UNIT as u64), 1);
    }

    fn add(&self, value: f64, sum: u64, times: u64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket].fetch_add(times, Ordering::Relaxed);
        self.sum.fetch_add(sum, Ordering::Relaxed);
    }

    /// `(upper bound, observations up to it)`, ending with +Inf.
    pub fn cumulated(&self) -> Vec<(f64, u64)> {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        let mut total = 0;
        let count = |bucket: &AtomicU64| {
            total += bucket.load(Ordering::Relaxed);
            total
        };
        bounds.zip(self.counts.iter().map(count)).collect()
    }

    pub fn sum(&self) -> f64 {
        self.sum.load(Ordering::Relaxed) as f64 / Self::UNIT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_on_a_bound_belongs_to_that_bucket() {
        let histogram = Histogram::new(&[0.1, 1.0]);
        histogram.observe(Duration::from_millis(100), 2);
        histogram.observe(Duration::from_millis(101), 1);
        histogram.observe(Duration::from_secs(2), 1);
        assert_eq!(histogram.cumulated(), [(0.1, 2), (1.0, 3), (f64::INFINITY, 4)]);
        assert!((histogram.sum() - 2.301).abs() < 1e-9);
    }
}
