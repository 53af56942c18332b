//! What the cache answers to those who keep its tiers: where a path lies, what is coldest, what to drop
//! because its bytes are wrong or its tenant is gone, and what to put back after a restart.
//!
//! Apart from [`Cache`]'s own file because a scheduler over one device needs none of it.

use base::{ChainHash, NamespaceId, PageId, StepId, TokenId};

use crate::node::NodeId;
use crate::pool::PageState;
use crate::spans::Spans;
use crate::{Cache, TreeKey};

/// An unleased leaf with all that comes before it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ColdPath {
    pub key: TreeKey,
    pub tokens: Vec<TokenId>,
    pub pages: Vec<PageId>,
}

impl Cache {
    /// Tokens that the page store holds: those of pages in trees, and of no other.
    pub fn tokens_kept(&self) -> usize {
        self.forest.store.tokens_kept()
    }

    /// The pages of the longest cached prefix of `tokens`; no lease, so they may go at the next call.
    pub fn find(&self, key: &TreeKey, tokens: &[TokenId]) -> Vec<PageId> {
        let mut pages = Vec::new();
        if let Some(root) = self.forest.root(key) {
            self.forest.walk(root, tokens, |met| pages.extend_from_slice(met));
        }
        pages
    }

    /// The name of a page in the tree; `None` if its namespace has no key or names are not kept.
    pub fn name(&self, page: PageId) -> Option<ChainHash> {
        (self.pool.state(page) == PageState::Cached).then(|| self.forest.store.name(page)).flatten()
    }

    /// How many of `n` pages of a tree the namespace may still add, after its own coldest leaves have
    /// gone; to be asked before places are taken from others.
    pub fn admit(&mut self, namespace: NamespaceId, n: usize) -> usize {
        self.settle();
        self.make_room(namespace, n)
    }

    /// Takes over what outlives the contents of `old`: quotas, and which steps have answered.
    pub fn succeed(&mut self, old: &Cache) {
        for (namespace, _, limit) in old.quotas.iter() {
            self.quotas.set(namespace, limit);
        }
        self.fences.complete(old.fences.completed());
    }

    /// Limits the pages that `namespace` keeps here; `None` lifts the limit.
    pub fn set_quota(&mut self, namespace: NamespaceId, pages: Option<usize>) {
        self.quotas.set(namespace, pages);
    }

    /// Pages of `namespace` in the trees.
    pub fn used(&self, namespace: NamespaceId) -> usize {
        self.quotas.used(namespace)
    }

    /// Drops page `at` of the path of `tokens` and all that lies below it, as far as no lease holds it:
    /// for a page whose bytes turned out to be wrong. What is held stays, and the caller asks again.
    pub fn cut(&mut self, key: &TreeKey, tokens: &[TokenId], at: usize) -> Vec<PageId> {
        self.settle();
        let Some(root) = self.forest.root(key) else { return Vec::new() };
        let dropped = self.forest.cut(root, tokens, at);
        self.counters.cleared_pages += dropped.len() as u64;
        self.let_go(&dropped);
        dropped.iter().map(|gone| gone.page).collect()
    }

    /// Page `at` of the path of `tokens` and all that lies below it.
    pub fn below(&self, key: &TreeKey, tokens: &[TokenId], at: usize) -> Vec<PageId> {
        self.forest.root(key).map_or_else(Vec::new, |root| self.forest.pages_below(root, tokens, at))
    }

    /// The unleased leaves that would be evicted next, with their whole paths: what a write-back copies
    /// before it is lost.
    pub fn coldest(&self, leaves: usize) -> Vec<ColdPath> {
        self.forest.evictor.candidates().take(leaves).map(|(_, id)| self.path_of(id)).collect()
    }

    fn path_of(&self, id: NodeId) -> ColdPath {
        let mut runs: Vec<&[PageId]> = Vec::new();
        let mut at = Some(id);
        while let Some(node) = at.map(|id| self.forest.node(id)) {
            runs.push(&node.pages);
            at = node.parent;
        }
        let pages: Vec<PageId> = runs.into_iter().rev().flatten().copied().collect();
        let tokens = pages.iter().flat_map(|&page| self.forest.store.tokens(page)).copied().collect();
        ColdPath { key: self.forest.tree_of(id).key.clone(), tokens, pages }
    }

    /// Takes just these pages, known from before a restart, to be put back by [`Cache::reinstate`]. All
    /// or none: false if one is not free.
    pub fn claim(&mut self, pages: &[PageId]) -> bool {
        self.pool.take_exactly(pages)
    }

    /// Puts claimed `pages` back where they lay before a restart: from page `first` on of the path of
    /// `tokens`. False, and the pages stay claimed, if what comes before them is not there.
    pub fn reinstate(&mut self, key: &TreeKey, tokens: &[TokenId], first: usize, pages: &[PageId]) -> bool {
        let size = self.config.page_tokens as usize;
        let mut lease = self.hold(key, tokens);
        let fits = lease.pages.len() == first && tokens.len() == (first + pages.len()) * size;
        if fits {
            self.insert(&mut lease, &tokens[first * size..], pages);
        }
        self.release(lease, StepId(0));
        fits
    }

    /// How often the last page of `tokens` has been used; 0 if it is not here.
    pub fn frequency(&self, key: &TreeKey, tokens: &[TokenId]) -> u32 {
        let Some(root) = self.forest.root(key) else { return 0 };
        let mut met = 0;
        let reach = self.forest.walk(root, tokens, |pages| met += pages.len());
        let whole = tokens.len() / self.config.page_tokens as usize;
        reach.filter(|_| met == whole).map_or(0, |reach| self.forest.node(reach.node).frequency)
    }

    /// Pages that became free since the last call, in order, with the names they had in the tree; only if
    /// the configuration asks for it. They may have been reserved again since.
    pub fn drain_gone(&mut self) -> Vec<(PageId, Option<ChainHash>)> {
        std::mem::take(&mut self.gone)
    }

    /// As [`Cache::clear`], at most so many pages and answering with them. What is remembered of evicted
    /// pages stays: fingerprints under a key of this process, which others' evictions go by, too.
    pub fn clear_pages(&mut self, of: impl Fn(&TreeKey) -> bool, most: usize) -> Vec<PageId> {
        self.settle();
        let dropped = self.forest.clear(of, most);
        self.counters.cleared_pages += dropped.len() as u64;
        self.let_go(&dropped);
        dropped.iter().map(|gone| gone.page).collect()
    }

    /// Pages in the trees that `of` picks.
    pub fn pages_of(&self, of: impl Fn(&TreeKey) -> bool) -> usize {
        self.forest.trees().iter().filter(|(_, tree)| of(&tree.key)).map(|(_, tree)| tree.pages).sum()
    }

    pub fn is_free(&self, page: PageId) -> bool {
        self.pool.state(page) == PageState::Free
    }

    /// Whether `step` has answered.
    pub fn has_completed(&self, step: StepId) -> bool {
        self.fences.is_complete(step)
    }

    /// The time, in hundredths of a second since any moment: how long pages live is counted in it.
    pub fn tell_time(&mut self, hundredths: u32) {
        self.forest.now = hundredths;
    }

    /// How long pages lived, lay idle and waited for their next use.
    pub fn spans(&self) -> &Spans {
        &self.forest.spans
    }
}
