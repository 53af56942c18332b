//! What a cache is made with, and the key that separates its trees.

use base::{AdapterId, Generation, ModelDigest, NamespaceId};

use crate::EvictionKind;

/// Fixed for the life of a [`Cache`](crate::Cache).
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// Pages of the device pool.
    pub pages: u32,
    /// Tokens per page: 16, 32 or 64.
    pub page_tokens: u32,
    pub policy: EvictionKind,
    /// Digest of page size, KV dtype and memory layout; part of every page's name.
    pub layout: [u8; 32],
    /// Page names that may wait for `drain_events`; 0 turns events off.
    pub events_max: usize,
    /// Whether pages are named even without events: a tier whose pages are sealed needs it.
    pub naming: Naming,
    /// Whether evicted and cut pages are told by `drain_gone`.
    pub departures: Departures,
    /// Keys the fingerprints behind child lookup. Any value is right, for tokens decide; one that
    /// clients cannot know keeps them from crafting prompts whose lookups all collide.
    pub seed: u64,
}

impl CacheConfig {
    /// Leaf-GDSF, no events.
    pub fn new(pages: u32, page_tokens: u32) -> Self {
        Self {
            pages,
            page_tokens,
            policy: EvictionKind::default(),
            layout: [0; 32],
            events_max: 0,
            naming: Naming::WithEvents,
            departures: Departures::Untold,
            seed: 0,
        }
    }

    pub(crate) fn names_pages(&self) -> bool {
        self.events_max > 0 || self.naming == Naming::Always
    }

    pub(crate) fn assert_sound(&self) {
        assert!(matches!(self.page_tokens, 16 | 32 | 64), "pages hold 16, 32 or 64 tokens");
        assert!(self.pages > 0, "a pool has at least one page");
    }
}

/// When chain hashes are computed: 0.4 us per page of 64 tokens that nobody should pay for nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Naming {
    WithEvents,
    Always,
}

/// Whether someone keeps a record of its own of what lies where, as the journal of a disk does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Departures {
    Untold,
    Told,
}

/// Everything that separates one tree from another: two requests that differ in any part share no page.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreeKey {
    pub namespace: NamespaceId,
    pub generation: Generation,
    pub model: ModelDigest,
    pub adapter: AdapterId,
    /// `cache_salt` of the request.
    pub salt: Vec<u8>,
}

impl TreeKey {
    /// The base model, unsalted, in the namespace's first generation.
    pub fn new(namespace: NamespaceId, model: ModelDigest) -> Self {
        Self { namespace, generation: Generation(0), model, adapter: AdapterId(0), salt: Vec::new() }
    }
}
