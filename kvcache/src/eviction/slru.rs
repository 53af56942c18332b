//! Segmented LRU: pages used once go before pages used again, each segment by recency.
//!
//! A one-off prompt cannot wash out a shared one. The protected segment has no bound of its own and
//! nothing is demoted, so what was popular long ago stays: on long runs over a large pool it falls
//! behind LRU. Kept as a point of comparison and for pools that are small against the traffic.

use super::{Eviction, Rank, Usage};

pub(super) struct Slru;

impl Eviction for Slru {
    fn rank(&mut self, usage: Usage) -> Rank {
        Rank { value: u64::from(usage.frequency > 1), tick: usage.tick }
    }

    fn ghosts_per_page(&self) -> usize {
        2
    }

    fn dump(&self) -> String {
        "slru".into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::EvictionKind;
    use super::super::testing::run;
    use expect_test::expect;

    #[test]
    fn pages_used_once_go_before_pages_used_again() {
        expect!["victims bda | left c:1x2 | slru"].assert_eq(&run(EvictionKind::Slru, "a c a b c d !!!"));
    }

    #[test]
    fn a_page_that_returns_after_eviction_is_protected_at_once() {
        expect!["victims ab | left a:1x2 | slru"].assert_eq(&run(EvictionKind::Slru, "a ! a b !"));
    }
}
