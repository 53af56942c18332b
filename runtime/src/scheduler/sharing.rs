//! Which prefixes are being computed right now, and by whom, so that simultaneous requests for one cold
//! prefix compute it once.
//!
//! A page is named here by a fast 64-bit hash of (tree key, tokens up to its end). A collision makes a
//! request wait for a page it does not share and then compute its own: slower, never wrong; what is
//! reused is decided by the radix tree, which compares tokens.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use base::{SeqId, TokenId};
use kvcache::{PrefetchId, TreeKey};

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct PrefixHash(u64);

/// The hashes of all whole pages of `tokens`, first page first.
pub(crate) fn page_hashes(key: &TreeKey, tokens: &[TokenId], page_tokens: u32) -> Vec<PrefixHash> {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    let pages = tokens.chunks_exact(page_tokens as usize);
    pages
        .map(|page| {
            page.hash(&mut hasher);
            PrefixHash(hasher.finish())
        })
        .collect()
}

/// Who brings a page: a sequence that computes it, or a promotion from a cold tier.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Owner {
    Sequence(SeqId),
    Promotion(PrefetchId),
}

#[derive(Default)]
pub(crate) struct Computing {
    owners: HashMap<PrefixHash, Owner>,
}

impl Computing {
    /// Claims every page of `pages` that nobody else computes.
    pub fn claim(&mut self, owner: Owner, pages: &[PrefixHash]) {
        for &page in pages {
            self.owners.entry(page).or_insert(owner);
        }
    }

    /// The last page of the run of `pages` that others compute, starting at the first.
    pub fn shared_run(&self, pages: &[PrefixHash]) -> Option<PrefixHash> {
        pages.iter().copied().take_while(|page| self.has(*page)).last()
    }

    /// Gives up `owner`'s claims on `pages`; answers with those it held.
    pub fn release(&mut self, owner: Owner, pages: &[PrefixHash]) -> Vec<PrefixHash> {
        let held = |page: &&PrefixHash| self.owners.get(page) == Some(&owner);
        let held: Vec<PrefixHash> = pages.iter().filter(held).copied().collect();
        for page in &held {
            self.owners.remove(page);
        }
        held
    }

    pub fn clear(&mut self) {
        self.owners.clear();
    }

    pub fn has(&self, page: PrefixHash) -> bool {
        self.owners.contains_key(&page)
    }

    pub fn check(&self, is_alive: impl Fn(Owner) -> bool) {
        assert!(self.owners.values().all(|&owner| is_alive(owner)), "a claim outlived its owner");
    }
}
