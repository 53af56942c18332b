//! The merges of a BPE model by pair of ids, and the merging of one word.
//!
//! A pair of ids is one `u64`, looked up in an open table of 16-byte slots: one multiplication and usually
//! one cache line, where a general map hashes and compares more. Short words are merged by scanning for the
//! best pair, which beats any queue up to a few dozen symbols; long ones through a heap, so that a page
//! of letters without a space costs `n log n`. Both take the pair of the lowest rank, the leftmost of equals,
//! as the reference does.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use base::TokenId;

/// What a pair becomes, and how early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Merge {
    pub left: TokenId,
    pub right: TokenId,
    pub into: TokenId,
}

/// Rank in the upper half, id in the lower: the smallest is the next to merge.
type Ranked = u64;

const NONE: Ranked = u64::MAX;
const EMPTY: u64 = u64::MAX;

/// Symbols up to which a scan is faster than a heap.
const SCAN_MAX: usize = 48;

/// All merges of a model.
pub(crate) struct Merges {
    slots: Vec<(u64, Ranked)>,
    shift: u32,
}

/// Room for the merging of one word, kept between words.
#[derive(Default)]
pub(crate) struct Bench {
    pub symbols: Vec<TokenId>,
    ranked: Vec<Ranked>,
    heap: BinaryHeap<Reverse<(Ranked, u32)>>,
    /// Index of the neighbours of a symbol, or [`END`].
    before: Vec<u32>,
    after: Vec<u32>,
}

const END: u32 = u32::MAX;
/// A symbol that went into its left neighbour.
const GONE: TokenId = TokenId::MAX;

impl Merges {
    /// In the order of their ranks; of a pair given twice the later counts.
    pub fn new(list: &[Merge]) -> Self {
        let size = (list.len() * 2).next_power_of_two().max(16);
        let mut merges = Self { slots: vec![(EMPTY, NONE); size], shift: 64 - size.trailing_zeros() };
        for (rank, merge) in list.iter().enumerate() {
            let at = merges.slot(pair(merge.left, merge.right));
            merges.slots[at] = (pair(merge.left, merge.right), (rank as u64) << 32 | u64::from(merge.into));
        }
        merges
    }

    /// The slot that holds `key`, or the free one where it would be.
    #[inline(always)]
    fn slot(&self, key: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> self.shift) as usize;
        while self.slots[at & mask].0 != key && self.slots[at & mask].0 != EMPTY {
            at += 1;
        }
        at & mask
    }

    #[inline(always)]
    fn ranked(&self, left: TokenId, right: TokenId) -> Ranked {
        self.slots[self.slot(pair(left, right))].1
    }

    /// Merges `bench.symbols` in place until no pair is left.
    pub fn run(&self, bench: &mut Bench) {
        if bench.symbols.len() <= SCAN_MAX { self.scan(bench) } else { self.queue(bench) }
    }

    fn scan(&self, bench: &mut Bench) {
        let Bench { symbols, ranked, .. } = bench;
        ranked.clear();
        ranked.extend(symbols.windows(2).map(|two| self.ranked(two[0], two[1])));
        while let Some((at, best)) = least(ranked) {
            symbols[at] = best as u32;
            symbols.remove(at + 1);
            ranked.remove(at);
            if at < ranked.len() {
                ranked[at] = self.ranked(symbols[at], symbols[at + 1]);
            }
            if at > 0 {
                ranked[at - 1] = self.ranked(symbols[at - 1], symbols[at]);
            }
        }
    }

    fn queue(&self, bench: &mut Bench) {
        bench.link();
        for at in 0..bench.symbols.len() as u32 {
            self.offer(bench, at);
        }
        while let Some(Reverse((best, at))) = bench.heap.pop() {
            // What was queued may have changed since.
            let right = bench.after[at as usize];
            let stale = bench.symbols[at as usize] == GONE
                || right == END
                || self.ranked(bench.symbols[at as usize], bench.symbols[right as usize]) != best;
            if stale {
                continue;
            }
            bench.join(at, right, best as u32);
            self.offer(bench, at);
            let before = bench.before[at as usize];
            if before != END {
                self.offer(bench, before);
            }
        }
        bench.symbols.retain(|symbol| *symbol != GONE);
    }

    /// Queues the pair that starts at `at`, if it merges.
    fn offer(&self, bench: &mut Bench, at: u32) {
        let right = bench.after[at as usize];
        if right == END {
            return;
        }
        let ranked = self.ranked(bench.symbols[at as usize], bench.symbols[right as usize]);
        if ranked != NONE {
            bench.heap.push(Reverse((ranked, at)));
        }
    }
}

impl Bench {
    fn link(&mut self) {
        let count = self.symbols.len() as u32;
        self.heap.clear();
        self.before.clear();
        self.before.extend((0..count).map(|at| at.checked_sub(1).unwrap_or(END)));
        self.after.clear();
        self.after.extend((1..=count).map(|at| if at == count { END } else { at }));
    }

    fn join(&mut self, at: u32, right: u32, into: TokenId) {
        let next = self.after[right as usize];
        self.symbols[at as usize] = into;
        self.symbols[right as usize] = GONE;
        self.after[at as usize] = next;
        if next != END {
            self.before[next as usize] = at;
        }
    }
}

#[inline(always)]
fn pair(left: TokenId, right: TokenId) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// Place and value of the first smallest, if any pair merges.
#[inline(always)]
fn least(ranked: &[Ranked]) -> Option<(usize, Ranked)> {
    let (mut place, mut best) = (0, NONE);
    for (at, value) in ranked.iter().enumerate() {
        if *value < best {
            (place, best) = (at, *value);
        }
    }
    (best != NONE).then_some((place, best))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Merges over ids 0..4 and what they become, in any order.
    fn merges() -> impl Strategy<Value = Vec<Merge>> {
        prop::collection::vec((0u32..12, 0u32..12), 0..24).prop_map(|pairs| {
            let merge = |(at, (left, right))| Merge { left, right, into: 4 + at as u32 % 8 };
            pairs.into_iter().enumerate().map(merge).collect()
        })
    }

    /// The definition: the lowest rank first, the leftmost of equals, one at a time.
    fn model(list: &[Merge], mut symbols: Vec<u32>) -> Vec<u32> {
        let find = |l: u32, r: u32| list.iter().rposition(|m| (m.left, m.right) == (l, r));
        loop {
            let ranks = symbols.windows(2).enumerate().filter_map(|(at, w)| Some((find(w[0], w[1])?, at)));
            let Some((rank, at)) = ranks.min() else { return symbols };
            symbols.splice(at..at + 2, [list[rank].into]);
        }
    }

    proptest! {
        #[test]
        fn scan_and_heap_merge_as_defined(list in merges(), symbols in prop::collection::vec(0u32..4, 0..60)) {
            let merges = Merges::new(&list);
            let want = model(&list, symbols.clone());
            let mut bench = Bench { symbols: symbols.clone(), ..Bench::default() };
            merges.scan(&mut bench);
            prop_assert_eq!(&bench.symbols, &want);
            bench.symbols = symbols;
            merges.queue(&mut bench);
            prop_assert_eq!(&bench.symbols, &want);
        }
    }
}
