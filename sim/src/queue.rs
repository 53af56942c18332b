//! The events that are still to come, in one order that nothing but the events decides.
//!
//! Ties in time are broken by the order of scheduling, so a run is a function of its seed. A heap and no
//! timer wheel: a fleet has some thousands of events ahead of it, and a heap has no resolution to choose.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use base::Nanos;

/// Virtual time and what it holds.
pub struct Queue<E> {
    ahead: BinaryHeap<Reverse<Entry<E>>>,
    scheduled: u64,
    now: Nanos,
}

struct Entry<E> {
    at: Nanos,
    order: u64,
    event: E,
}

impl<E> Queue<E> {
    pub fn new() -> Self {
        Self { ahead: BinaryHeap::new(), scheduled: 0, now: Nanos(0) }
    }

    pub fn now(&self) -> Nanos {
        self.now
    }

    /// Schedules `event`; one that lies in the past happens now.
    pub fn at(&mut self, at: Nanos, event: E) {
        self.scheduled += 1;
        self.ahead.push(Reverse(Entry { at: at.max(self.now), order: self.scheduled, event }));
    }

    pub fn after(&mut self, delay: Duration, event: E) {
        self.at(self.now.plus(delay), event);
    }

    /// The next event; the clock moves to it.
    pub fn pop(&mut self) -> Option<E> {
        let Reverse(entry) = self.ahead.pop()?;
        self.now = entry.at;
        Some(entry.event)
    }

    pub fn len(&self) -> usize {
        self.ahead.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ahead.is_empty()
    }
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<E> Eq for Entry<E> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_come_in_the_order_of_scheduling_and_time_never_goes_back() {
        let mut queue = Queue::new();
        queue.at(Nanos(5), 'b');
        queue.at(Nanos(5), 'c');
        queue.at(Nanos(1), 'a');
        assert_eq!((queue.pop(), queue.pop()), (Some('a'), Some('b')));
        queue.at(Nanos(2), 'd'); // in the past by now
        assert_eq!((queue.pop(), queue.pop(), queue.pop()), (Some('c'), Some('d'), None));
        assert_eq!(queue.now(), Nanos(5));
    }
}
