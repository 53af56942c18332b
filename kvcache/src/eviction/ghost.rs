//! The frequencies of evicted pages, by fingerprint: bounded, and forgetful at the bound.
//!
//! A page that comes back shortly after its eviction is not new. Eight-way buckets in a flat array:
//! a full bucket forgets its oldest entry. No list to keep in order, no allocation after the start.
//! Two pages with one fingerprint share a frequency, which costs a worse eviction at most.

const WAYS: usize = 8;

#[derive(Clone, Copy, Default)]
struct Ghost {
    print: u64,
    /// 0: the slot is free.
    frequency: u32,
    /// When it was put, to find the oldest.
    put: u32,
}

pub(crate) struct Ghosts {
    slots: Vec<Ghost>,
    puts: u32,
    /// Slots in use, so that a pool that never evicted is not searched.
    len: usize,
}

impl Ghosts {
    /// Remembers `capacity` pages, rounded up to whole buckets; 0 remembers none.
    pub fn new(capacity: usize) -> Self {
        let slots = capacity.next_multiple_of(WAYS);
        Self { slots: vec![Ghost::default(); slots], puts: 0, len: 0 }
    }

    pub fn put(&mut self, print: u64, frequency: u32) {
        self.puts = self.puts.wrapping_add(1);
        let put = self.puts;
        let Some(bucket) = self.bucket(print) else { return };
        let age = |g: &Ghost| if g.frequency == 0 { u32::MAX } else { put.wrapping_sub(g.put) };
        let slot = match bucket.iter().position(|g| g.print == print && g.frequency > 0) {
            Some(i) => &mut bucket[i],
            None => bucket.iter_mut().max_by_key(|g| age(g)).expect("a bucket has slots"),
        };
        let before = std::mem::replace(slot, Ghost { print, frequency, put });
        self.len += usize::from(before.frequency == 0);
    }

    /// The remembered frequency, which is forgotten; 0 if there is none.
    pub fn take(&mut self, print: u64) -> u32 {
        if self.len == 0 {
            return 0;
        }
        let Some(bucket) = self.bucket(print) else { return 0 };
        let ghost = bucket.iter_mut().find(|g| g.print == print && g.frequency > 0);
        let frequency = ghost.map_or(0, |g| std::mem::take(&mut g.frequency));
        self.len -= usize::from(frequency > 0);
        frequency
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
        let first = (print as usize).checked_rem(buckets)? * WAYS;
        Some(&mut self.slots[first..first + WAYS])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frequency_is_given_back_once() {
        let mut ghosts = Ghosts::new(16);
        ghosts.put(5, 3);
        assert_eq!((ghosts.take(5), ghosts.take(5), ghosts.take(6)), (3, 0, 0));
    }

    #[test]
    fn a_full_bucket_forgets_its_oldest() {
        let mut ghosts = Ghosts::new(8);
        (1..=9).for_each(|print| ghosts.put(print, 1));
        assert_eq!((1..=9).map(|print| ghosts.take(print)).collect::<Vec<_>>(), [0, 1, 1, 1, 1, 1, 1, 1, 1]);
    }

    #[test]
    fn putting_again_replaces_and_clearing_forgets_all() {
        let mut ghosts = Ghosts::new(8);
        ghosts.put(5, 3);
        ghosts.put(5, 4);
        assert_eq!((ghosts.take(5), ghosts.take(5)), (4, 0));
        ghosts.put(5, 4);
        ghosts.clear();
        assert_eq!(ghosts.take(5), 0);
    }

    #[test]
    fn no_capacity_remembers_nothing() {
        let mut ghosts = Ghosts::new(0);
        ghosts.put(5, 3);
        assert_eq!(ghosts.take(5), 0);
    }
}
