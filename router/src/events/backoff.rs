//! How long to rest between attempts: longer each time, and never the same for all who wait.

use std::time::Duration;

use base::SplitMix;

/// Doubles from `first` to `most`; each rest is drawn from the upper half of its bound, so that routers which lost the
/// same replica do not come back at once.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    bound: Duration,
    rng: SplitMix,
}

impl Backoff {
    pub fn new(first: Duration, most: Duration, seed: u64) -> Self {
        Self { first, most, bound: first, rng: SplitMix::new(seed) }
    }

    /// It went well: the next rest is a short one.
    pub fn reset(&mut self) {
        self.bound = self.first;
    }

    /// The next rest; not less than what the other side asked for, as far as that is bearable.
    pub fn rest(&mut self, asked: Option<Duration>) -> Duration {
        let drawn = self.bound.mul_f64(0.5 + 0.5 * self.rng.unit());
        self.bound = (self.bound * 2).min(self.most);
        drawn.max(asked.unwrap_or_default().min(self.most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_grow_to_the_bound_differ_by_seed_and_heed_what_is_asked() {
        let (first, most) = (Duration::from_millis(100), Duration::from_secs(5));
        let rests = |seed| {
            let mut backoff = Backoff::new(first, most, seed);
            (0..10).map(|_| backoff.rest(None)).collect::<Vec<_>>()
        };
        let one = rests(1);
        assert!(one[0] >= first / 2 && one[0] <= first && one[9] >= most / 2 && one[9] <= most);
        assert_ne!(one, rests(2));
        let mut backoff = Backoff::new(first, most, 1);
        assert_eq!(backoff.rest(Some(Duration::from_secs(2))), Duration::from_secs(2));
        assert_eq!(backoff.rest(Some(Duration::from_secs(3600))), most);
        backoff.reset();
        assert!(backoff.rest(None) <= first);
    }
}
