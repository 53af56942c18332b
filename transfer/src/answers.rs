//! The end of every job: one answer, counted. Shared by the tiers, so that a failure has one label
//! whatever the medium.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base::{Clock, Nanos};

use crate::error::TierError;
use crate::job::{Done, DoneSink, Finished, TierIoStats};

pub(crate) struct Answers {
    clock: Arc<dyn Clock>,
    sink: DoneSink,
    stores: AtomicU64,
    loads: AtomicU64,
    erased: AtomicU64,
    store_bytes: AtomicU64,
    load_bytes: AtomicU64,
    refused: AtomicU64,
    failures: [AtomicU64; TierError::KINDS.len()],
}

impl Answers {
    pub fn new(clock: Arc<dyn Clock>, sink: DoneSink) -> Self {
        Self {
            clock,
            sink,
            stores: AtomicU64::new(0),
            loads: AtomicU64::new(0),
            erased: AtomicU64::new(0),
            store_bytes: AtomicU64::new(0),
            load_bytes: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            failures: Default::default(),
        }
    }

    /// Answers a job; `bytes` is what it moved if it went well.
    pub fn give(&self, ticket: u64, since: Nanos, outcome: Result<Finished, TierError>, bytes: u64) {
        match &outcome {
            Ok(Finished::Stored(_)) => {
                self.stores.fetch_add(1, Ordering::Relaxed);
                self.store_bytes.fetch_add(bytes, Ordering::Relaxed);
            }
            Ok(Finished::Loaded) => {
                self.loads.fetch_add(1, Ordering::Relaxed);
                self.load_bytes.fetch_add(bytes, Ordering::Relaxed);
            }
            Ok(Finished::Erased { probed, .. }) => {
                self.erased.fetch_add(u64::from(*probed), Ordering::Relaxed);
            }
            Err(error) => {
                self.failures[error.index()].fetch_add(1, Ordering::Relaxed);
            }
        }
        let took_ns = self.clock.now().since(since).as_nanos() as u64;
        let bytes = if outcome.is_ok() { bytes } else { 0 };
        (self.sink)(Done { ticket, outcome, bytes, took_ns });
    }

    pub fn fail(&self, ticket: u64, since: Nanos, error: TierError) {
        self.give(ticket, since, Err(error), 0);
    }

    /// A batch was given back.
    pub fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// The counters; how it stands now is the tier's to add.
    pub fn stats(&self) -> TierIoStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let failures = TierError::KINDS.iter().zip(&self.failures);
        TierIoStats {
            stores: read(&self.stores),
            loads: read(&self.loads),
            erased_slots: read(&self.erased),
            store_bytes: read(&self.store_bytes),
            load_bytes: read(&self.load_bytes),
            failures: failures.map(|(kind, n)| (*kind, read(n))).filter(|(_, n)| *n > 0).collect(),
            refused: read(&self.refused),
            ..TierIoStats::default()
        }
    }
}
