//! How long pages live, lie idle before they are evicted, and wait for their next use.
//!
//! Three histograms with powers of two as bounds, in hundredths of a second: an operator who reads that
//! pages were idle for an hour before they went can shrink the tier, one who reads seconds should grow
//! it. The cache has no clock; it is told the time between steps, which is exact enough.

/// Buckets: up to 10 ms, 20 ms, … 2^23 hundredths (a day), and beyond.
pub const SPAN_BUCKETS: usize = 25;

/// Pages by how long something took; bucket `i` counts those of at most `2^i` hundredths of a second.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    pub counts: [u64; SPAN_BUCKETS],
    pub sum_hundredths: u64,
}

impl Default for Span {
    fn default() -> Self {
        Self { counts: [0; SPAN_BUCKETS], sum_hundredths: 0 }
    }
}

impl Span {
    pub(crate) fn note(&mut self, hundredths: u32, pages: usize) {
        let bucket = (u32::BITS - hundredths.saturating_sub(1).leading_zeros()) as usize;
        self.counts[bucket.min(SPAN_BUCKETS - 1)] += pages as u64;
        self.sum_hundredths += u64::from(hundredths) * pages as u64;
    }

    /// The upper bound of bucket `i` in seconds; the last has none.
    pub fn bound_seconds(i: usize) -> Option<f64> {
        (i + 1 < SPAN_BUCKETS).then(|| (1u64 << i) as f64 / 100.0)
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The bound below which a share of the pages lies, in seconds; `None` of nothing.
    pub fn quantile_seconds(&self, share: f64) -> Option<f64> {
        let wanted = (self.count() as f64 * share).ceil() as u64;
        let mut seen = 0;
        let at = self.counts.iter().position(|count| {
            seen += count;
            seen >= wanted.max(1)
        });
        at.map(|i| Self::bound_seconds(i).unwrap_or(f64::INFINITY))
    }
}

/// The three histograms of one tier.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Spans {
    /// From a page's entry to its eviction.
    pub lifetime: Span,
    /// From its last use to its eviction.
    pub idle: Span,
    /// Between two uses.
    pub reuse: Span,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_powers_of_two_hundredths() {
        let mut span = Span::default();
        for (hundredths, pages) in [(0, 1), (1, 1), (2, 3), (100, 4), (u32::MAX, 1)] {
            span.note(hundredths, pages);
        }
        assert_eq!((span.counts[0], span.counts[1], span.counts[7], span.counts[24]), (2, 3, 4, 1));
        assert_eq!(span.count(), 10);
        assert_eq!(span.quantile_seconds(0.5), Some(0.02));
        assert_eq!(span.quantile_seconds(0.9), Some(1.28));
        assert_eq!(Span::default().quantile_seconds(0.5), None);
    }
}
