//! What a tier is asked and what it answers: messages, so that the engine's threads never wait for a
//! disk.
//!
//! A tier takes a batch or gives it back whole; every job taken is answered exactly once through the
//! sink, failures included. Jobs of one batch may finish in any order: what depends on a store waits
//! for its answer.

use base::{FrameId, SlotId, Tier};

use crate::error::TierError;
use crate::seal::{PageLabel, PageSeal};

/// One piece of work.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Job {
    /// Seal a frame into the label's slot.
    Store { ticket: u64, frame: FrameId, label: PageLabel },
    /// Open the label's slot into a frame.
    Load { ticket: u64, frame: FrameId, label: PageLabel, seal: PageSeal },
    /// Make what the slots hold unreadable, and look.
    Erase { ticket: u64, slots: Vec<SlotId> },
}

impl Job {
    pub fn ticket(&self) -> u64 {
        match self {
            Job::Store { ticket, .. } | Job::Load { ticket, .. } | Job::Erase { ticket, .. } => *ticket,
        }
    }
}

/// The answer to one job.
#[derive(Debug)]
pub struct Done {
    pub ticket: u64,
    pub outcome: Result<Finished, TierError>,
    /// Plaintext bytes moved; erased bytes for an erase; 0 on failure.
    pub bytes: u64,
    /// From `submit` to this answer, time in the queue included.
    pub took_ns: u64,
}

/// What was achieved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Finished {
    Stored(PageSeal),
    Loaded,
    Erased {
        method: EraseMethod,
        /// Slots read back and found gone.
        probed: u32,
    },
}

/// How erased slots were erased; the weakest way that any of them needed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum EraseMethod {
    /// The object was deleted and is not found any more.
    Deleted,
    /// The file system took the blocks back; reading gives zeros.
    Punched,
    /// Zeros were written over them and synced.
    Overwritten,
}

impl EraseMethod {
    pub fn name(self) -> &'static str {
        match self {
            EraseMethod::Deleted => "deleted",
            EraseMethod::Punched => "punched",
            EraseMethod::Overwritten => "overwritten",
        }
    }
}

/// Where answers go. Called on the tier's threads: it must not block.
pub type DoneSink = Box<dyn Fn(Done) + Send + Sync>;

/// A tier below host memory. Dropping it stops its threads and answers what was queued with `Stopped`.
pub trait PageTier: Send + Sync {
    /// Takes all jobs or, at the bound of the queue, gives all back. Never blocks.
    fn submit(&self, jobs: Vec<Job>) -> Result<(), Vec<Job>>;
    fn tier(&self) -> Tier;
    fn stats(&self) -> TierIoStats;
}

/// Counters since start, and how it stands now.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TierIoStats {
    pub stores: u64,
    pub loads: u64,
    pub erased_slots: u64,
    pub store_bytes: u64,
    pub load_bytes: u64,
    /// Failures by [`TierError::kind`], those that happened only.
    pub failures: Vec<(&'static str, u64)>,
    /// Jobs waiting.
    pub queued: usize,
    /// Jobs being worked on.
    pub in_flight: usize,
    /// Operations given up on that the kernel has not finished.
    pub stuck: usize,
    /// Batches given back because the queue was full.
    pub refused: u64,
    /// Reads and writes pass the page cache by.
    pub direct: bool,
    /// Driven by io_uring, not by blocking threads.
    pub uring: bool,
    /// The staging buffers are registered with the kernel.
    pub registered: bool,
}
