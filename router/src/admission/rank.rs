//! The key of every ordered set in admission: one number, so that an order is one comparison.
//!
//! Tests count the comparisons. A decision's cost is a claim (`O(log n)`), a clock would measure the
//! machine, and the comparisons are what grows.

use std::cmp::Ordering;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Rank(pub u128);

impl Rank {
    /// Two numbers as one: `major` decides, `minor` breaks ties.
    pub fn of(major: u64, minor: u64) -> Self {
        Self(u128::from(major) << 64 | u128::from(minor))
    }
    pub fn major(self) -> u64 {
        (self.0 >> 64) as u64
    }
}

impl Ord for Rank {
    fn cmp(&self, other: &Self) -> Ordering {
        #[cfg(test)]
        COMPARISONS.with(|c| c.set(c.get() + 1));
        self.0.cmp(&other.0)
    }
}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
thread_local! {
    pub(super) static COMPARISONS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}
