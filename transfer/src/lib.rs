//! The bytes of the KV tiers below device memory, and what has to survive a restart with them.
//!
//! ```text
//! HostArena   frames of host memory, one atomic per frame
//! PageTier    store, load, erase between frames and slots, by message
//!   NvmeTier    sealed slots in files: O_DIRECT, io_uring
//! Journal     the index: which page lies in which slot, across a restart
//! KeyStore    namespaces and their wrapped keys, across a restart
//!   ObjectTier  sealed objects in a store; a directory for now
//! KeyRing     data keys by namespace generation; destroying one ends its pages everywhere
//! ```
//!
//! Which page lies where is the cache's business; this crate moves bytes, seals them, and says what
//! went wrong. Every failure is a typed miss.

mod answers;
mod arena;
mod error;
mod job;
mod journal;
mod keyring;
mod keystore;
mod nodekey;
mod nvme;
mod object;
mod seal;
mod signer;

pub use arena::{ALIGN, ArenaError, FrameBusy, FrameRead, FrameWrite, HostArena, OwnedRead, OwnedWrite};
pub use error::{OpenError, TierError};
pub use job::{Done, DoneSink, EraseMethod, Finished, Job, PageTier, TierIoStats};
pub use journal::{
    Dropped, Entry, Journal, JournalConfig, JournalError, JournalStats, Recovered, RecoveredPage,
    RecoveredTree,
};
pub use keyring::KeyRing;
pub use keystore::{KeyStore, KeyStoreError, NamespaceSecrets, StoredNamespace};
pub use nodekey::{ClusterKey, KeyWrap, NodeKey, NodeKeyError, WrapError};
pub use nvme::{Direction, DiskIo, IoChoice, NvmeConfig, NvmeTier, Place, StartWith, SystemDisk};
pub use object::{ObjectConfig, ObjectTier};
pub use seal::{DataKey, NONCE_BYTES, NoRandomness, PageLabel, PageSeal, TAG_BYTES};
pub use signer::{NodeSigner, PUBLIC_KEY_BYTES, SIGNATURE_BYTES, verify};
