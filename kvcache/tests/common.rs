//! A cache with small pages of tokens that tests can name: page `3` holds sixteen threes.

use base::{ModelDigest, NamespaceId, NamespaceKey, PageId, StepId, TokenId};
use quire_kvcache::{Cache, CacheConfig, EvictionKind, Lease, Published, TreeKey};

pub const SIZE: usize = 16;
pub const STEP: StepId = StepId(0);

pub fn key() -> TreeKey {
    TreeKey::new(NamespaceId(1), ModelDigest([1; 32]))
}

pub fn cache(pages: u32) -> Cache {
    with(CacheConfig { policy: EvictionKind::Lru, ..CacheConfig::new(pages, SIZE as u32) })
}

pub fn with(config: CacheConfig) -> Cache {
    let mut cache = Cache::new(config);
    cache.register_namespace(NamespaceId(1), NamespaceKey([7; 32]));
    cache
}

/// The tokens of whole pages, one number each.
pub fn tokens(pages: &[u32]) -> Vec<TokenId> {
    pages.iter().flat_map(|&p| [p; SIZE]).collect()
}

pub fn ids(pages: &[u32]) -> Vec<PageId> {
    pages.iter().copied().map(PageId).collect()
}

/// Leases what is cached of `prompt` and publishes the rest.
pub fn serve(cache: &mut Cache, prompt: &[u32]) -> Lease {
    serve_as(cache, &key(), prompt)
}

pub fn serve_as(cache: &mut Cache, key: &TreeKey, prompt: &[u32]) -> Lease {
    let tokens = tokens(prompt);
    let mut lease = cache.lease(key, &tokens);
    let rest = cache.reserve(prompt.len() - lease.pages().len()).unwrap();
    cache.publish(&mut lease, &tokens, &rest, STEP);
    sound(cache, &[&lease]);
    lease
}

/// Serves and lets go: the prompt is cached, unleased.
pub fn warm(cache: &mut Cache, prompt: &[u32]) {
    let lease = serve(cache, prompt);
    cache.release(lease, STEP);
}

/// Publishes pages filled after the lease, as a sequence does that has computed `prompt`.
pub fn publish(cache: &mut Cache, lease: &mut Lease, prompt: &[u32], pages: &[PageId]) -> Published {
    let published = cache.publish(lease, &tokens(prompt), pages, STEP);
    sound(cache, &[lease]);
    published
}

pub fn cached(cache: &Cache, prompt: &[u32]) -> usize {
    cache.peek(&key(), &tokens(prompt)) as usize / SIZE
}

pub fn sound(cache: &Cache, leases: &[&Lease]) {
    cache.check().unwrap();
    for lease in leases {
        cache.check_lease(lease).unwrap();
    }
}
