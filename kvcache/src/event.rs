//! KV events: what a router or a lower tier must hear to know which pages are here.
//!
//! Events name pages by chain hash, so computing them is what switches SHA-256 on: with
//! `events_max = 0` no name is ever computed. With events on, a page is named when it is published
//! (0.4 µs per page of 64 tokens with SHA-NI, beside milliseconds of prefill) and the name is kept,
//! because a removal must repeat it.
//!
//! The log is bounded in page names. Past the bound nothing more is logged until the reader has
//! drained it, and then a `Lost` marker ends the batch: the reader has seen an unbroken beginning,
//! knows that it must ask for a snapshot, and never meets a child whose parent it was not told of.
//! Every event, also a lost one, takes a sequence number.

use base::{AdapterId, ChainHash, Generation, NamespaceId, TokenId};

/// One change of the cache, numbered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KvEvent {
    /// Counts from 1 without gaps; a gap is what `Lost` stands for.
    pub sequence: u64,
    pub change: KvChange,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KvChange {
    /// A run of pages became visible.
    Stored(Stored),
    /// Pages were evicted or dropped, deepest first.
    Removed { names: Vec<ChainHash> },
    /// Nothing is cached any more.
    Cleared,
    /// `events` events from this number on were not logged: take a snapshot.
    Lost { events: u64 },
}

/// A run of pages, each the child of the one before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stored {
    pub namespace: NamespaceId,
    pub generation: Generation,
    pub adapter: AdapterId,
    /// The page before the run; `None` at the beginning of a prompt.
    pub parent: Option<ChainHash>,
    pub names: Vec<ChainHash>,
    pub tokens: Vec<TokenId>,
    pub page_tokens: u32,
}

pub(crate) struct EventLog {
    waiting: Vec<KvEvent>,
    /// Names in `waiting`; an event without names counts as one.
    weight: usize,
    weight_max: usize,
    sequence: u64,
    /// Events not logged since the log was last drained.
    lost: u64,
    lost_total: u64,
}

impl EventLog {
    pub fn new(weight_max: usize) -> Self {
        Self { waiting: Vec::new(), weight: 0, weight_max, sequence: 0, lost: 0, lost_total: 0 }
    }

    pub fn push(&mut self, change: KvChange) {
        self.sequence += 1;
        let weight = change.weight();
        if self.lost > 0 || self.weight + weight > self.weight_max {
            self.lost += 1;
            self.lost_total += 1;
            return;
        }
        self.weight += weight;
        self.waiting.push(KvEvent { sequence: self.sequence, change });
    }

    pub fn drain(&mut self) -> Vec<KvEvent> {
        let mut events = std::mem::take(&mut self.waiting);
        self.weight = 0;
        let lost = std::mem::take(&mut self.lost);
        if lost > 0 {
            let sequence = self.sequence - lost + 1;
            events.push(KvEvent { sequence, change: KvChange::Lost { events: lost } });
        }
        events
    }

    pub fn lost_total(&self) -> u64 {
        self.lost_total
    }
}

impl KvChange {
    pub(crate) fn weight(&self) -> usize {
        match self {
            KvChange::Stored(stored) => stored.names.len(),
            KvChange::Removed { names } => names.len(),
            KvChange::Cleared | KvChange::Lost { .. } => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removed(n: usize) -> KvChange {
        KvChange::Removed { names: vec![ChainHash([0; 32]); n] }
    }

    fn numbers(events: &[KvEvent]) -> Vec<u64> {
        events.iter().map(|e| e.sequence).collect()
    }

    #[test]
    fn past_the_bound_events_are_counted_and_marked() {
        let mut log = EventLog::new(4);
        log.push(removed(3));
        log.push(removed(2));
        log.push(removed(1)); // would fit, but nothing may follow a hole
        let events = log.drain();
        assert_eq!(numbers(&events), [1, 2]);
        assert_eq!(events[1].change, KvChange::Lost { events: 2 });
        log.push(KvChange::Cleared);
        assert_eq!(numbers(&log.drain()), [4]);
        assert_eq!((log.drain(), log.lost_total()), (vec![], 2));
    }
}
