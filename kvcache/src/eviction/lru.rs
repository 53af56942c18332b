//! Least recently used leaf: the yardstick that no other policy may fall below.
//!
//! "Used" is the match or publication by a request, not the end of its lease: a page that a long
//! answer has kept leased for a minute was wanted a minute ago.

use super::{Eviction, Rank, Usage};

pub(super) struct Lru;

impl Eviction for Lru {
    fn rank(&mut self, usage: Usage) -> Rank {
        Rank { value: 0, tick: usage.tick }
    }

    fn ghosts_per_page(&self) -> usize {
        0
    }

    fn dump(&self) -> String {
        "lru".into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::EvictionKind;
    use super::super::testing::run;
    use expect_test::expect;

    #[test]
    fn the_longest_unused_goes_first_however_often_it_was_used() {
        expect!["victims bc | left d:0x1 a:0x4 | lru"].assert_eq(&run(EvictionKind::Lru, "aaa b c d a !!"));
    }
}
