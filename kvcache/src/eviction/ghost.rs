//! What is remembered of evicted pages, by fingerprint: bounded, and forgetful at the bound.
//!
//! A page that comes back shortly after its eviction is not new. Eight-way buckets in a flat array:
//! a full bucket forgets its longest unused entry. No list to keep in order, no allocation after the
//! start. Two pages with one fingerprint share a memory, which costs a worse eviction at most.

const WAYS: usize = 8;
const FREQUENCY_BITS: u32 = 24;
const FREQUENCY_MAX: u32 = (1 << FREQUENCY_BITS) - 1;

#[derive(Clone, Copy, Default)]
struct Ghost {
    print: u64,
    /// Of the last use, to find the oldest; the lower half of the clock.
    tick: u32,
    /// The queue above, the frequency below; 0: the slot is free.
    seen: u32,
}

/// An evicted page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Memory {
    pub frequency: u32,
    /// The queue that it was evicted from.
    pub queue: u8,
    /// When it was last used.
    pub tick: u64,
}

pub(crate) struct Ghosts {
    slots: Vec<Ghost>,
    /// Slots in use, so that a pool that never evicted is not searched.
    len: usize,
}

impl Ghosts {
    /// Remembers `capacity` pages, rounded up to whole buckets; 0 remembers none.
    pub fn new(capacity: usize) -> Self {
        let slots = capacity.next_multiple_of(WAYS);
        Self { slots: vec![Ghost::default(); slots], len: 0 }
    }

    pub fn put(&mut self, print: u64, memory: Memory) {
        let Some(bucket) = self.bucket(print) else { return };
        let tick = memory.tick as u32;
        // The same page, or a free slot, or the longest unused.
        let rank = |g: &Ghost| match g {
            g if g.seen == 0 => u64::MAX - 1,
            g if g.print == print => u64::MAX,
            g => u64::from(tick.wrapping_sub(g.tick) ^ (1 << 31)),
        };
        let slot = bucket.iter_mut().max_by_key(|g| rank(g)).expect("a bucket has slots");
        let seen = memory.frequency.clamp(1, FREQUENCY_MAX) | u32::from(memory.queue) << FREQUENCY_BITS;
        let before = std::mem::replace(slot, Ghost { print, tick, seen });
        self.len += usize::from(before.seen == 0);
    }

    /// What is remembered, which is forgotten; `now` tells which turn of the clock it was.
    pub fn take(&mut self, print: u64, now: u64) -> Option<Memory> {
        if self.len == 0 {
            return None;
        }
        let ghost = self.bucket(print)?.iter_mut().find(|g| g.print == print && g.seen > 0)?;
        let age = (now as u32).wrapping_sub(ghost.tick);
        let seen = std::mem::take(&mut ghost.seen);
        let tick = now.saturating_sub(u64::from(age));
        self.len -= 1;
        Some(Memory { frequency: seen & FREQUENCY_MAX, queue: (seen >> FREQUENCY_BITS) as u8, tick })
    }

    pub fn clear(&mut self) {
        self.slots.fill(Ghost::default());
        self.len = 0;
    }

    pub fn bytes(&self) -> usize {
        self.slots.len() * size_of::<Ghost>()
    }

    fn bucket(&mut self, print: u64) -> Option<&mut [Ghost]> {
        let buckets = self.slots.len() / WAYS;
        // The upper half of a product instead of a remainder, which would take a division per page.
        let spread = print.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let first = ((u128::from(spread) * buckets as u128) >> 64) as usize * WAYS;
        self.slots.get_mut(first..first + WAYS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(frequency: u32, tick: u64) -> Memory {
        Memory { frequency, queue: 7, tick }
    }

    #[test]
    fn a_memory_is_given_back_once() {
        let mut ghosts = Ghosts::new(16);
        ghosts.put(5, used(3, 2));
        assert_eq!([5, 5, 6].map(|print| ghosts.take(print, 9)), [Some(used(3, 2)), None, None]);
    }

    #[test]
    fn a_full_bucket_forgets_its_longest_unused() {
        let mut ghosts = Ghosts::new(8);
        (1..=9).for_each(|print| ghosts.put(print, used(1, 10 - print)));
        let left: Vec<u64> = (1..=9).filter(|&print| ghosts.take(print, 10).is_some()).collect();
        assert_eq!(left, [1, 2, 3, 4, 5, 6, 7, 9], "8 was the oldest when 9 came");
    }

    #[test]
    fn the_clock_may_outgrow_what_a_ghost_stores() {
        let mut ghosts = Ghosts::new(8);
        let tick = (5 << 32) - 3;
        ghosts.put(5, used(1, tick));
        assert_eq!(ghosts.take(5, tick + 10), Some(used(1, tick)));
    }

    #[test]
    fn putting_again_replaces_and_clearing_forgets_all() {
        let mut ghosts = Ghosts::new(8);
        ghosts.put(5, used(3, 1));
        ghosts.put(5, used(4, 2));
        assert_eq!((ghosts.take(5, 2), ghosts.take(5, 2)), (Some(used(4, 2)), None));
        ghosts.put(5, used(4, 2));
        ghosts.clear();
        assert_eq!(ghosts.take(5, 2), None);
    }

    #[test]
    fn no_capacity_remembers_nothing() {
        let mut ghosts = Ghosts::new(0);
        ghosts.put(5, used(3, 1));
        assert_eq!(ghosts.take(5, 1), None);
    }
}
