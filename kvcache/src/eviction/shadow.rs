//! What LRU would have done with the same requests: its hits, and how far our pool is from its.
//!
//! LRU over leaves is a stack: a pool of n pages holds exactly the n pages used last. So it need not
//! be simulated. Pages are counted by the time of their last use, those in the pool and those evicted
//! but remembered, and one floor moves: what was used since is what LRU would hold. A hit below the
//! floor is ours alone; a page that comes back from eviction with a use above it is LRU's alone.
//!
//! Times are gathered into spans of a thousandth of the pool, so that the memory is bounded and the
//! floor is at most one span too low, which flatters LRU. Evicted pages that were forgotten too soon
//! are missed, which does not.

use std::collections::VecDeque;

/// Spans per pool; four times as many are kept at most before neighbours are joined.
const SPANS: usize = 1_024;

/// A policy that was wrong once may try again: one lost hit is forgiven per so many evictions.
const EVICTIONS_PER_PARDON: u64 = 1_000;

#[derive(Clone, Copy)]
struct Span {
    from: u64,
    /// Pages last used in the span, and those of them that are in the pool.
    pages: u64,
    ours: u64,
}

pub(super) struct Shadow {
    spans: VecDeque<Span>,
    /// Pages that join a span before the next begins.
    grain: u64,
    /// When the last span was added to; the uses of one moment stay together.
    latest: u64,
    /// Over all spans.
    pages: u64,
    ours: u64,
    /// Pages in the pool, also those below the floor.
    pool: u64,
    /// Our hits less LRU's, at most `lead_max`.
    lead: i64,
    lead_max: i64,
    /// Evictions since the last pardon.
    behind: u64,
}

impl Shadow {
    pub fn new(pool: usize) -> Self {
        Self {
            spans: VecDeque::new(),
            grain: (pool / SPANS).max(1) as u64,
            latest: 0,
            pages: 0,
            ours: 0,
            pool: 0,
            lead: 0,
            lead_max: (pool / 4) as i64,
            behind: 0,
        }
    }

    /// Our hits less LRU's, but for pardons: what may be lost again without falling behind.
    pub fn lead(&self) -> i64 {
        self.lead
    }

    /// Pages that LRU would hold and we do not: what can be lost from here.
    pub fn missing(&self) -> u64 {
        self.pages - self.ours
    }

    /// `n` pages last used at `before` are hit.
    pub fn hit(&mut self, before: u64, now: u64, n: u64) {
        if self.shift(before, now, n) {
            self.lead = (self.lead + n as i64).min(self.lead_max);
        }
    }

    /// `n` pages last used at `before` count as used now; whether LRU had lost them.
    pub fn shift(&mut self, before: u64, now: u64, n: u64) -> bool {
        let lost = match self.find(before) {
            Some(span) => {
                let (pages, ours) = (n.min(span.pages), n.min(span.ours));
                span.pages -= pages;
                span.ours -= ours;
                self.pages -= pages;
                self.ours -= ours;
                false
            }
            None => true,
        };
        self.put(now, n);
        lost
    }

    /// `n` pages are new in the pool.
    pub fn add(&mut self, now: u64, n: u64) {
        self.pool += n;
        self.put(now, n);
    }

    /// A page that we evicted, last used at `before`, is wanted; [`Shadow::add`] follows.
    pub fn wanted(&mut self, before: u64) {
        if let Some(span) = self.find(before).filter(|span| span.pages > span.ours) {
            span.pages -= 1;
            self.pages -= 1;
            self.lead -= 1;
        }
    }

    /// `n` pages last used at `before` leave the pool; LRU may keep them.
    pub fn evict(&mut self, before: u64, n: u64) {
        self.remove(before, n);
        self.behind = if self.lead < 0 { self.behind + n } else { 0 };
        self.lead += (self.behind / EVICTIONS_PER_PARDON) as i64;
        self.behind %= EVICTIONS_PER_PARDON;
    }

    /// `n` pages last used at `before` leave the pool, not by choice.
    pub fn remove(&mut self, before: u64, n: u64) {
        self.pool = self.pool.saturating_sub(n);
        if let Some(span) = self.find(before) {
            let ours = n.min(span.ours);
            span.ours -= ours;
            self.ours -= ours;
        }
    }

    /// Forgets every page that is not in the pool.
    pub fn forget_evicted(&mut self) {
        self.spans.iter_mut().for_each(|span| span.pages = span.ours);
        self.pages = self.ours;
    }

    fn find(&mut self, tick: u64) -> Option<&mut Span> {
        let after = self.spans.partition_point(|span| span.from <= tick);
        self.spans.get_mut(after.checked_sub(1)?)
    }

    fn put(&mut self, now: u64, n: u64) {
        match self.spans.back_mut() {
            Some(span) if self.latest == now || span.pages < self.grain => {
                span.pages += n;
                span.ours += n;
            }
            _ => self.spans.push_back(Span { from: now, pages: n, ours: n }),
        }
        self.latest = now;
        self.pages += n;
        self.ours += n;
        self.raise_floor();
        if self.spans.len() > 4 * SPANS {
            self.join_spans();
        }
    }

    /// LRU's pool is as large as ours is now.
    fn raise_floor(&mut self) {
        while let Some(first) = self.spans.front().copied() {
            if self.pages - first.pages < self.pool || self.spans.len() == 1 {
                return;
            }
            self.pages -= first.pages;
            self.ours -= first.ours;
            self.spans.pop_front();
        }
    }

    /// Spans that uses have emptied since join their neighbours.
    fn join_spans(&mut self) {
        let mut joined: VecDeque<Span> = VecDeque::with_capacity(self.spans.len());
        for span in self.spans.drain(..) {
            match joined.back_mut() {
                Some(last) if last.pages + span.pages <= self.grain => {
                    last.pages += span.pages;
                    last.ours += span.ours;
                }
                _ => joined.push_back(span),
            }
        }
        self.spans = joined;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Shadow {
        let mut shadow = Shadow::new(3);
        (0..3).for_each(|tick| shadow.add(tick, 1));
        shadow
    }

    #[test]
    fn without_evictions_nothing_is_ours_alone() {
        let mut shadow = full();
        shadow.hit(0, 3, 1);
        shadow.hit(1, 4, 1);
        assert_eq!((shadow.lead(), shadow.missing()), (0, 0));
    }

    #[test]
    fn what_lru_evicts_too_is_not_missing() {
        let mut shadow = full();
        shadow.evict(0, 1);
        shadow.add(3, 1);
        assert_eq!((shadow.lead(), shadow.missing()), (0, 0));
        shadow.wanted(0);
        assert_eq!(shadow.lead(), 0, "a miss for both");
    }

    #[test]
    fn a_page_kept_against_lru_is_a_lead_when_hit() {
        let mut shadow = full();
        shadow.evict(2, 1);
        shadow.add(3, 1);
        assert_eq!((shadow.lead(), shadow.missing()), (0, 1));
        shadow.hit(0, 4, 1);
        assert_eq!(shadow.lead(), 0, "at most a quarter of the pool, which is none of three pages");
        shadow.lead_max = 9;
        shadow.hit(1, 5, 1);
        assert_eq!(shadow.lead(), 1);
    }

    #[test]
    fn a_page_evicted_against_lru_is_a_loss_when_wanted() {
        let mut shadow = full();
        shadow.evict(2, 1);
        shadow.add(3, 1);
        shadow.wanted(2);
        assert_eq!((shadow.lead(), shadow.missing()), (-1, 0));
    }

    #[test]
    fn a_loss_is_forgiven_after_many_evictions() {
        let mut shadow = full();
        shadow.evict(2, 1);
        shadow.add(3, 1);
        shadow.wanted(2);
        let evictions = (1..).take_while(|_| {
            shadow.evict(0, 1);
            shadow.lead() < 0
        });
        assert_eq!(evictions.count() as u64 + 1, EVICTIONS_PER_PARDON);
    }

    #[test]
    fn the_pages_of_one_moment_stay_in_one_span() {
        let mut shadow = Shadow::new(10 * SPANS);
        (0..1_000).for_each(|tick| (0..3).for_each(|_| shadow.add(tick, 4)));
        (0..1_000).for_each(|tick| shadow.hit(tick, 1_000 + tick, 12));
        assert_eq!((shadow.pages, shadow.ours, shadow.pool, shadow.lead()), (12_000, 12_000, 12_000, 0));
    }

    #[test]
    fn endless_hits_on_one_page_take_no_memory() {
        let mut shadow = Shadow::new(100);
        (0..100).for_each(|tick| shadow.add(tick, 1));
        (100..100_000).for_each(|tick| shadow.hit(tick - 1, tick, 1));
        assert!(shadow.spans.len() <= 4 * SPANS, "{}", shadow.spans.len());
        assert_eq!((shadow.pages, shadow.ours, shadow.lead()), (100, 100, 0));
    }
}
