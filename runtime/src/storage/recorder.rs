//! What the index is told, and what is done when it cannot be written.
//!
//! A page that is not recorded is computed again after a restart, which costs time and nothing else: what a
//! stale record names does not open under its seal. A purge that is not recorded would leave names of what
//! is gone, so it is told again until the index has taken it without a failure. An index that fails is a disk
//! that fails: no page is stored in a cold tier meanwhile, but for one now and then, whose record shows whether
//! it writes again. What lies there can be loaded all the same.
//!
//! Limits: trees whose records were lost are not entered again before they have left the tiers whole.

use std::collections::BTreeMap;

use base::{Generation, NamespaceId};
use kvcache::{ColdOrder, ColdWork, JournalNote, Ticket};
use transfer::{Entry, JournalStats};

use super::index::Index;

/// Of so many stores, one is tried though the index fails.
const PROBE_EVERY: u64 = 64;

pub(super) struct Recorder {
    index: Index,
    /// Entries given back by a full journal: the index then knows less than there is.
    unrecorded: u64,
    /// Purges that the journal has not taken yet.
    forgets: Vec<Entry>,
    /// All purges of this run: a failed write does not say what was lost by it.
    purged: BTreeMap<NamespaceId, Generation>,
    seen: JournalStats,
    is_failing: bool,
    /// Stores not made because the index could not be written.
    refused: u64,
}

impl Recorder {
    pub fn new(index: Index) -> Self {
        Self {
            index,
            unrecorded: 0,
            forgets: Vec::new(),
            purged: BTreeMap::new(),
            seen: JournalStats::default(),
            is_failing: false,
            refused: 0,
        }
    }

    /// Looks at how the journal fares; to be called before `sift` and `record`.
    pub fn look(&mut self, now: JournalStats) {
        if now.failures > self.seen.failures {
            if !self.is_failing {
                tracing::warn!("the index of the cold tiers cannot be written: nothing is stored there");
            }
            self.is_failing = true;
            let forget = |(&namespace, &up_to)| Entry::DropNamespace { namespace, up_to };
            self.forgets = self.purged.iter().map(forget).collect();
        } else if now.written > self.seen.written && now.queued == 0 && self.is_failing {
            tracing::info!("the index of the cold tiers is written again");
            self.is_failing = false;
        }
        self.seen = now;
    }

    /// Takes stores out of `orders` while the index fails; answers with their tickets.
    pub fn sift(&mut self, orders: &mut Vec<ColdOrder>) -> Vec<Ticket> {
        if !self.is_failing {
            return Vec::new();
        }
        let is_refused = |order: &mut ColdOrder| {
            let is_store = matches!(order.work, ColdWork::Store { .. });
            self.refused += u64::from(is_store);
            is_store && !self.refused.is_multiple_of(PROBE_EVERY)
        };
        orders.extract_if(.., is_refused).map(|order| order.ticket).collect()
    }

    /// Records what the index must know after a restart; `submit` gives back what it has no room for.
    pub fn record(
        &mut self,
        notes: Vec<JournalNote>,
        submit: impl FnOnce(Vec<Entry>) -> Result<(), Vec<Entry>>,
    ) {
        for note in &notes {
            if let &JournalNote::Forget { namespace, up_to } = note {
                let newest = self.purged.entry(namespace).or_insert(up_to);
                *newest = up_to.max(*newest);
            }
        }
        let mut entries = std::mem::take(&mut self.forgets);
        entries.extend(self.index.entries(notes));
        if entries.is_empty() {
            return;
        }
        if let Err(refused) = submit(entries) {
            self.unrecorded += refused.len() as u64;
            // A page that is not recorded is computed again; a namespace that is not forgotten comes back.
            let is_forget = |entry: &Entry| matches!(entry, Entry::DropNamespace { .. });
            self.forgets = refused.into_iter().filter(is_forget).collect();
        }
    }

    /// Whether the journal has taken every purge.
    pub fn has_told_all(&self) -> bool {
        self.forgets.is_empty()
    }

    pub fn unrecorded(&self) -> u64 {
        self.unrecorded
    }

    pub fn refused(&self) -> u64 {
        self.refused
    }

    pub fn is_failing(&self) -> bool {
        self.is_failing
    }
}

#[cfg(test)]
mod tests {
    use base::{ChainHash, FrameId, SlotId, Tier};
    use kvcache::Label;

    use super::*;

    const FORGET: JournalNote = JournalNote::Forget { namespace: NamespaceId(3), up_to: Generation(1) };

    fn stats(written: u64, failures: u64) -> JournalStats {
        JournalStats { written, failures, ..JournalStats::default() }
    }

    fn orders(n: u64) -> Vec<ColdOrder> {
        let (name, tier, slot) = (ChainHash([1; 32]), Tier::Nvme, SlotId(0));
        let label = Label { namespace: NamespaceId(0), generation: Generation(0), name, tier, slot };
        let work = |n| match n % 2 {
            0 => ColdWork::Store { frame: FrameId(0), label },
            _ => ColdWork::Load { frame: FrameId(0), label, seal: [0; 28] },
        };
        (0..n).map(|n| ColdOrder { ticket: Ticket(n), tier, work: work(n) }).collect()
    }

    #[test]
    fn while_the_index_fails_pages_are_loaded_and_not_stored() {
        let mut recorder = Recorder::new(Index::default());
        recorder.look(stats(5, 0));
        assert_eq!(recorder.sift(&mut orders(4)), []);
        recorder.look(stats(6, 1));
        let mut left = orders(4);
        assert_eq!(recorder.sift(&mut left), [Ticket(0), Ticket(2)]);
        assert!(left.iter().all(|order| matches!(order.work, ColdWork::Load { .. })));
        assert_eq!((left.len(), recorder.refused(), recorder.is_failing()), (2, 2, true));
        // A store now and then is what shows that the index writes again.
        assert_eq!(recorder.sift(&mut orders(2 * PROBE_EVERY)).len() as u64, PROBE_EVERY - 1);
        recorder.look(stats(7, 1));
        assert_eq!((recorder.sift(&mut orders(4)), recorder.is_failing()), (vec![], false));
    }

    #[test]
    fn a_purge_lost_by_a_failed_write_or_a_full_queue_is_told_again() {
        let mut recorder = Recorder::new(Index::default());
        let mut told = Vec::new();
        recorder.record(vec![FORGET], Err);
        assert!(!recorder.has_told_all());
        let mut take = |recorder: &mut Recorder| {
            recorder.record(Vec::new(), |entries| {
                told.extend(entries);
                Ok(())
            });
        };
        take(&mut recorder);
        assert!(recorder.has_told_all());
        recorder.look(stats(1, 1));
        assert!(!recorder.has_told_all(), "nobody knows what the failed write was of");
        take(&mut recorder);
        recorder.look(stats(2, 1));
        take(&mut recorder);
        assert!(recorder.has_told_all());
        let (namespace, up_to) = (NamespaceId(3), Generation(1));
        assert!(told == vec![Entry::DropNamespace { namespace, up_to }; 2], "{told:?}");
        assert_eq!(recorder.unrecorded(), 1);
    }
}
