//! Counters and gauges of a cache at one moment.

/// `free + private + leased + cached + fenced = total`: each page is in exactly one of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CacheStats {
    pub pages_total: usize,
    pub pages_free: usize,
    /// Reserved and not yet published or freed.
    pub pages_private: usize,
    /// In the tree and on the path of a lease, also of one that waits behind a fence.
    pub pages_leased: usize,
    /// In the tree and evictable.
    pub pages_cached: usize,
    /// Private pages given back, waiting for a step.
    pub pages_fenced: usize,

    pub trees: usize,
    pub nodes: usize,
    pub leases: usize,
    /// Host memory that the cache itself takes.
    pub metadata_bytes: usize,

    pub counters: CacheCounters,
}

/// Only ever grow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CacheCounters {
    /// Leases asked for, and those that found at least a page.
    pub queries: u64,
    pub hits: u64,
    pub queried_tokens: u64,
    pub hit_tokens: u64,
    pub published_pages: u64,
    /// Published pages that another sequence had published before.
    pub duplicate_pages: u64,
    pub evicted_pages: u64,
    /// Those of them that went because their namespace was at its quota.
    pub quota_pages: u64,
    /// Pages dropped by `clear`.
    pub cleared_pages: u64,
    pub events_lost: u64,
}
