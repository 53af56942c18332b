//! What can go wrong between a frame and a slot, as data: every one of these is a miss with a reason.
//!
//! One enum for all tiers, because whoever asked does the same for each: forget the slot, count the
//! kind, recompute the page.

use std::io;

use base::{FrameId, SlotId};

/// A job that did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum TierError {
    #[error("the bytes of slot {slot} are not those that were sealed for this page")]
    BadSeal { slot: SlotId },
    #[error("slot {slot}: {got} of {wanted} bytes could be read")]
    ShortRead { slot: SlotId, got: usize, wanted: usize },
    #[error("slot {slot}: {got} of {wanted} bytes could be written")]
    ShortWrite { slot: SlotId, got: usize, wanted: usize },
    #[error("slot {slot}: {source}")]
    Io { slot: SlotId, source: io::Error },
    #[error("no room left for slot {slot}")]
    Full { slot: SlotId },
    #[error("slot {slot} cannot be written: the store is read-only")]
    ReadOnly { slot: SlotId },
    #[error("no answer within {after_ms} ms")]
    TimedOut { after_ms: u64 },
    #[error("slot {slot} still has an operation in the kernel that was given up on")]
    SlotStuck { slot: SlotId },
    #[error("the data key of the page's namespace generation is gone")]
    KeyGone,
    #[error("the data key has sealed as many pages as it safely can")]
    KeySpent,
    #[error("the queue is full")]
    Overloaded,
    #[error("the tier has stopped")]
    Stopped,
    #[error("frame {frame} is held by somebody else")]
    FrameBusy { frame: FrameId },
    #[error("slot {slot} or its {bytes} bytes do not fit this tier")]
    BadJob { slot: SlotId, bytes: u32 },
    #[error("slot {slot} was erased and something is still there")]
    NotErased { slot: SlotId },
}

impl TierError {
    /// Every label that [`TierError::kind`] can give.
    pub const KINDS: [&'static str; 15] = [
        "bad_seal",
        "short_read",
        "short_write",
        "io",
        "full",
        "read_only",
        "timed_out",
        "slot_stuck",
        "key_gone",
        "key_spent",
        "overloaded",
        "stopped",
        "frame_busy",
        "bad_job",
        "not_erased",
    ];

    /// The label of metrics and logs.
    pub fn kind(&self) -> &'static str {
        Self::KINDS[self.index()]
    }

    pub(crate) fn index(&self) -> usize {
        match self {
            TierError::BadSeal { .. } => 0,
            TierError::ShortRead { .. } => 1,
            TierError::ShortWrite { .. } => 2,
            TierError::Io { .. } => 3,
            TierError::Full { .. } => 4,
            TierError::ReadOnly { .. } => 5,
            TierError::TimedOut { .. } => 6,
            TierError::SlotStuck { .. } => 7,
            TierError::KeyGone => 8,
            TierError::KeySpent => 9,
            TierError::Overloaded => 10,
            TierError::Stopped => 11,
            TierError::FrameBusy { .. } => 12,
            TierError::BadJob { .. } => 13,
            TierError::NotErased { .. } => 14,
        }
    }

    /// Sorts what the operating system said into what the tier distinguishes.
    pub(crate) fn from_io(slot: SlotId, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => TierError::Full { slot },
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                TierError::ReadOnly { slot }
            }
            _ => TierError::Io { slot, source },
        }
    }
}

/// Why a tier could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the tier's shape is impossible: {what}")]
    Shape { what: &'static str },
    #[error("{path}: another process uses this directory")]
    Locked { path: String },
    #[error("{path}: {source}")]
    Io { path: String, source: io::Error },
    #[error("io_uring is refused by this machine: {0}")]
    NoUring(io::Error),
}

impl OpenError {
    pub fn kind(&self) -> &'static str {
        match self {
            OpenError::Shape { .. } => "shape",
            OpenError::Locked { .. } => "locked",
            OpenError::Io { .. } => "io",
            OpenError::NoUring(_) => "no_uring",
        }
    }

    pub(crate) fn io(path: &std::path::Path, source: io::Error) -> Self {
        OpenError::Io { path: path.display().to_string(), source }
    }
}
