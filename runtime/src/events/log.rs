//! The bounded log of records, numbered without gaps.

use std::collections::VecDeque;
use std::sync::Arc;

use base::{Generation, NamespaceId};

use super::record::{Change, Record};

/// Memory of all records, about. The number of records is bounded too, but one may tell of the whole cache.
const BYTES_MAX: usize = 256 << 20;

/// What the log has for a reader.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// From where the reader is, some or all that follows.
    Records(Vec<Arc<Record>>),
    /// The log has moved past the reader and begins here.
    Missed { oldest: u64 },
    /// The reader has everything.
    Nothing,
}

pub(super) struct Log {
    records: VecDeque<Arc<Record>>,
    next: u64,
    bytes: usize,
    records_max: usize,
    bytes_max: usize,
}

impl Log {
    pub fn new(records_max: usize) -> Self {
        let records = VecDeque::new();
        Self { records, next: 0, bytes: 0, records_max: records_max.max(1), bytes_max: BYTES_MAX }
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
            let gone = self.records.pop_front();
            self.bytes -= gone.map_or(0, |gone| gone.bytes());
        }
        record
    }

    /// At most `most` records from `sequence` on.
    pub fn read(&self, sequence: u64, most: usize) -> Read {
        let oldest = self.oldest();
        if sequence < oldest {
            return Read::Missed { oldest };
        }
        let records: Vec<_> =
            self.records.iter().skip((sequence - oldest) as usize).take(most).cloned().collect();
        if records.is_empty() { Read::Nothing } else { Read::Records(records) }
    }

    /// Drops the tokens of a namespace up to a generation; that it was told of stays.
    pub fn drop_tokens_of(&mut self, namespace: NamespaceId, up_to: Generation) {
        for record in self.records.iter_mut().filter(|record| record.has_tokens_of(namespace, up_to)) {
            let before = record.bytes();
            // A reader in the midst of sending it keeps the old one until it is sent.
            let own = Arc::make_mut(record);
            own.drop_tokens_of(namespace, up_to);
            self.bytes -= before - own.bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequences(read: Read) -> Vec<u64> {
        let Read::Records(records) = read else { panic!("{read:?}") };
        records.iter().map(|record| record.sequence).collect()
    }

    #[test]
    fn it_keeps_the_newest_in_number_and_size() {
        let mut log = Log::new(3);
        assert_eq!((log.read(0, 9), log.oldest()), (Read::Nothing, 0));
        (0..5).for_each(|_| drop(log.append(0, vec![Change::Cleared])));
        assert_eq!(log.read(1, 9), Read::Missed { oldest: 2 });
        assert_eq!(sequences(log.read(2, 2)), [2, 3]);
        assert_eq!(sequences(log.read(4, 9)), [4]);
        assert_eq!(log.read(5, 9), Read::Nothing);
        log.bytes_max = 1;
        log.append(0, vec![Change::Cleared]);
        assert_eq!(sequences(log.read(5, 9)), [5]);
        assert_eq!(log.bytes, log.records[0].bytes());
    }
}
