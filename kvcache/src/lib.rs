//! The KV cache: which tokens lie in which page of which tier. Per tier, a pool of pages, radix trees that say which tokens each page
//! holds, leases that keep pages in place, and policies that choose what goes.
//!
//! ```text
//!            Cache                        one thread owns it
//!   ┌──────────┼──────────┬─────────┐
//! PagePool   Forest    LeaseTable  Fences, EventLog
//! states     │  │  └ Evictor ─ gdsf | lru | slru, Ghosts
//! of pages   │  └─── PageStore: tokens, fingerprints, names by page
//!            └────── nodes: runs of pages; one hash table of children
//! ```
//!
//! What is absent: I/O, a clock, threads, locks, `unsafe`, and any notion of a page's contents. Bytes
//! are the executor's; this crate only knows which page is whose.
//!
//! **Invariant:** `free + private + leased + cached + fenced = total`, and [`Cache::check`] proves it.
//! **Invariant:** a page of the tree is evicted only when no lease and no step in flight needs it.
//! **Invariant:** a hit compares real tokens under a key of (namespace, generation, model, adapter, salt).

mod cache;
mod config;
mod dump;
mod event;
mod eviction;
mod fence;
mod fingerprint;
mod forest;
mod integrity;
mod lease;
mod node;
mod pool;
mod prune;
mod quota;
mod slab;
mod spans;
mod stats;
mod store;
mod tiers;
mod upkeep;

#[cfg(test)]
extern crate self as quire_kvcache;
#[cfg(test)]
#[path = "../tests/naive.rs"]
mod naive;
#[cfg(test)]
#[path = "../tests/soak.rs"]
mod soak;

pub use cache::{Cache, OutOfPages, Published};
pub use config::{CacheConfig, Departures, Naming, TreeKey};
pub use event::{KvChange, KvEvent, Stored};
pub use eviction::{EvictionKind, UnknownEviction};
pub use integrity::IntegrityError;
pub use lease::Lease;
pub use spans::{SPAN_BUCKETS, Span, Spans};
pub use stats::{CacheCounters, CacheStats};
pub use tiers::{
    ColdOrder, ColdOutcome, ColdWork, Erasure, Fault, Fetch, Follower, JournalNote, Label, LowerConfig,
    Misheard, PageMove, PrefetchEnd, PrefetchId, PurgeId, PurgeState, Reach, Scrubbed, Seal, SlotRecord,
    Ticket, TierCounters, TierErasure, TierEvent, TierStats, Tiers, TiersConfig, UnknownWritePolicy,
    WritePolicy,
};
pub use upkeep::ColdPath;
