//! The bounded log of records, numbered without gaps.
//!
//! Readers share records instead of copying them. What a purge takes out of a record, a reader that has it in hand
//! still has: the log knows those readers by the records that it replaced and says whether any is left.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use base::{Generation, NamespaceId};

use super::record::{Change, Record};

/// Memory of all records, about. The number of records is bounded too, but one may tell of the whole cache.
const BYTES_MAX: usize = 256 << 20;

/// What the log has for a reader.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// The one that the reader asked for.
    Record(Arc<Record>),
    /// The log has moved past the reader and begins here.
    Missed { oldest: u64 },
    /// The reader has everything.
    Nothing,
    /// The reader has everything, and nothing will ever follow.
    Ended,
}

pub(super) struct Log {
    records: VecDeque<Arc<Record>>,
    next: u64,
    bytes: usize,
    records_max: usize,
    bytes_max: usize,
    /// Records that the log has no more, for as long as a reader has them in hand.
    in_hand: Vec<Weak<Record>>,
}

impl Log {
    pub fn new(records_max: usize) -> Self {
        let records = VecDeque::new();
        Self {
            records,
            next: 0,
            bytes: 0,
            records_max: records_max.max(1),
            bytes_max: BYTES_MAX,
            in_hand: Vec::new(),
        }
    }

    pub fn next(&self) -> u64 {
        self.next
    }

    /// The first record that is kept; the next if there is none.
    pub fn oldest(&self) -> u64 {
        self.records.front().map_or(self.next, |record| record.sequence)
    }

    pub fn append(&mut self, unix_ms: u64, changes: Vec<Change>) -> Arc<Record> {
        let record = Arc::new(Record { sequence: self.next, unix_ms, changes });
        self.next += 1;
        self.bytes += record.bytes();
        self.records.push_back(Arc::clone(&record));
        while self.records.len() > self.records_max || (self.bytes > self.bytes_max && self.records.len() > 1)
        {
            let Some(gone) = self.records.pop_front() else { break };
            self.bytes -= gone.bytes();
            self.let_go(gone);
        }
        record
    }

    /// The record of this number.
    pub fn read(&self, sequence: u64) -> Read {
        let oldest = self.oldest();
        if sequence < oldest {
            return Read::Missed { oldest };
        }
        self.records
            .get((sequence - oldest) as usize)
            .map_or(Read::Nothing, |found| Read::Record(Arc::clone(found)))
    }

    /// Drops the tokens of a namespace up to a generation; that it was told of stays.
    pub fn drop_tokens_of(&mut self, namespace: NamespaceId, up_to: Generation) {
        for at in 0..self.records.len() {
            let record = &mut self.records[at];
            if !record.has_tokens_of(namespace, up_to) {
                continue;
            }
            let before = record.bytes();
            let mut own = Record::clone(record);
            own.drop_tokens_of(namespace, up_to);
            self.bytes -= before - own.bytes();
            let old = std::mem::replace(record, Arc::new(own));
            self.let_go(old);
        }
    }

    /// Whether a reader has tokens in hand that a purge of this namespace has dropped here.
    pub fn has_outdated_reader(&mut self, namespace: NamespaceId, up_to: Generation) -> bool {
        self.in_hand.retain(|record| record.strong_count() > 0);
        let is_outdated = |record: Arc<Record>| record.has_tokens_of(namespace, up_to);
        self.in_hand.iter().filter_map(Weak::upgrade).any(is_outdated)
    }

    fn let_go(&mut self, record: Arc<Record>) {
        let weak = Arc::downgrade(&record);
        drop(record);
        if weak.strong_count() > 0 {
            self.in_hand.retain(|record| record.strong_count() > 0);
            self.in_hand.push(weak);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use base::{AdapterId, Tier};

    use super::super::record::{Owner, Run, TierSet};

    fn sequence(read: Read) -> u64 {
        let Read::Record(record) = read else { panic!("{read:?}") };
        record.sequence
    }

    #[test]
    fn it_keeps_the_newest_in_number_and_size() {
        let mut log = Log::new(3);
        assert_eq!((log.read(0), log.oldest()), (Read::Nothing, 0));
        (0..5).for_each(|_| drop(log.append(0, vec![Change::Cleared])));
        assert_eq!(log.read(1), Read::Missed { oldest: 2 });
        assert_eq!(sequence(log.read(2)), 2);
        assert_eq!(sequence(log.read(4)), 4);
        assert_eq!(log.read(5), Read::Nothing);
        log.bytes_max = 1;
        log.append(0, vec![Change::Cleared]);
        assert_eq!(sequence(log.read(5)), 5);
        assert_eq!(log.bytes, log.records[0].bytes());
    }

    #[test]
    fn tokens_in_a_readers_hand_are_known_until_they_are_let_go() {
        let (namespace, generation) = (NamespaceId(1), Generation(0));
        let owner = Owner { namespace, generation, adapter: AdapterId(0) };
        let tiers = TierSet::of(Tier::Device);
        let run = Run { owner, tiers, parent: None, hashes: vec![1], tokens: vec![7], page_tokens: 1 };
        let mut log = Log::new(3);
        log.append(0, vec![Change::Stored(run.clone())]);
        log.append(0, vec![Change::Stored(run)]);
        let Read::Record(in_hand) = log.read(1) else { panic!() };
        log.drop_tokens_of(namespace, generation);
        assert!(log.has_outdated_reader(namespace, generation));
        assert!(!log.has_outdated_reader(NamespaceId(2), generation));
        assert!(in_hand.has_tokens_of(namespace, generation));
        let Read::Record(now) = log.read(1) else { panic!() };
        assert!(!now.has_tokens_of(namespace, generation));
        // Also one that the log has moved past.
        (0..3).for_each(|_| drop(log.append(0, vec![Change::Cleared])));
        assert!(log.has_outdated_reader(namespace, generation));
        drop(in_hand);
        assert!(!log.has_outdated_reader(namespace, generation));
    }
}
