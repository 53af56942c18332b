//! The device tier of the KV cache: what the scheduler talks to.
//!
//! One thread owns it, so there is no lock, and no call blocks, waits or reads a clock. A sequence's
//! life against it:
//!
//! ```text
//! lease(prompt) ─► reserve(rest) ─► compute ─► publish ─► reserve ─► … ─► release(lease) + free(rest)
//!   whole pages      all or none     fill       whole pages only                behind a fence
//! ```
//!
//! Questions (`peek`, `available`, `stats`, `check`) never change anything. A page is visible to
//! others only once it is published, hence whole and computed; sequences that computed the same page
//! at the same time learn at `publish` whose page stays.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use base::{ChainHash, ChainRoot, NamespaceId, NamespaceKey, PageId, StepId, TokenId};

use crate::config::Departures;
use crate::event::{EventLog, KvChange, KvEvent, Stored};
use crate::eviction::Evictor;
use crate::fence::Fences;
use crate::fingerprint::Fingerprint;
use crate::forest::Forest;
use crate::lease::{Lease, LeaseId, LeaseTable};
use crate::node::NodeId;
use crate::pool::PagePool;
use crate::prune::Dropped;
use crate::quota::Quotas;
use crate::stats::{CacheCounters, CacheStats};
use crate::store::{Names, PageStore};
use crate::{CacheConfig, TreeKey};

/// The page pool, its radix trees, and who holds what. See the module's header.
pub struct Cache {
    pub(crate) config: CacheConfig,
    pub(crate) pool: PagePool,
    pub(crate) forest: Forest,
    pub(crate) leases: LeaseTable,
    pub(crate) fences: Fences,
    namespaces: HashMap<NamespaceId, NamespaceKey>,
    pub(crate) quotas: Quotas,
    events: EventLog,
    /// Pages that became free since the last `drain_gone`, and the names they had.
    pub(crate) gone: Vec<(PageId, Option<ChainHash>)>,
    pub(crate) counters: CacheCounters,
}

/// There are not enough pages, even after eviction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("out of pages: {needed} needed, {free} free and {evictable} evictable")]
pub struct OutOfPages {
    pub needed: usize,
    pub free: usize,
    pub evictable: usize,
}

/// What became of published pages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Published {
    /// One page for each page given, in order: the same, or the tree's own where it had one.
    pub pages: Vec<PageId>,
    /// How many of the leading `pages` are the tree's own; those given in their place are fenced.
    pub duplicates: usize,
}

impl Cache {
    pub fn new(config: CacheConfig) -> Self {
        let hasher = Fingerprint::new(config.seed);
        Self::with_fingerprint(config, hasher)
    }

    pub(crate) fn with_fingerprint(config: CacheConfig, hasher: Fingerprint) -> Self {
        config.assert_sound();
        let names = if config.names_pages() { Names::Kept } else { Names::Off };
        let pages = config.pages as usize;
        let store = PageStore::new(pages, config.page_tokens as usize, hasher, names);
        Self {
            pool: PagePool::new(config.pages),
            forest: Forest::new(store, Evictor::new(config.policy, pages)),
            leases: LeaseTable::new(config.page_tokens),
            fences: Fences::default(),
            namespaces: HashMap::new(),
            quotas: Quotas::default(),
            events: EventLog::new(config.events_max),
            gone: Vec::new(),
            counters: CacheCounters::default(),
            config,
        }
    }

    pub fn config(&self) -> &CacheConfig {
        &self.config
    }

    /// The key that names a namespace's pages. Without one its pages are cached all the same, but
    /// have no names, so no event tells of them. A tree keeps the key it was planted with.
    pub fn register_namespace(&mut self, id: NamespaceId, key: NamespaceKey) {
        self.namespaces.insert(id, key);
    }

    /// Tokens of the longest cached prefix of `tokens`, in whole pages. Takes no lease, so it is an
    /// estimate for planning.
    pub fn peek(&self, key: &TreeKey, tokens: &[TokenId]) -> u32 {
        let mut pages = 0;
        if let Some(root) = self.forest.root(key) {
            self.forest.walk(root, tokens, |met| pages += met.len() as u32);
        }
        pages * self.config.page_tokens
    }

    /// Leases the longest cached prefix of `tokens`, in whole pages; maybe none. A caller that needs
    /// the logits of the last token passes all tokens but that one.
    pub fn lease(&mut self, key: &TreeKey, tokens: &[TokenId]) -> Lease {
        let lease = self.hold(key, tokens);
        self.count_use(&lease, tokens.len());
        lease
    }

    /// Makes a use of a [`Cache::hold`] of so many tokens: for whoever first sees whether there is room.
    pub fn count_use(&mut self, lease: &Lease, asked: usize) {
        let tip = self.leases.tip(lease.id);
        let root = self.forest.tree_of(tip).root;
        self.forest.touch(tip, root);
        self.counters.queries += 1;
        self.counters.hits += u64::from(lease.tokens() > 0);
        self.counters.queried_tokens += asked as u64;
        self.counters.hit_tokens += u64::from(lease.tokens());
    }

    /// As [`Cache::lease`], but counts as no use: for whoever copies pages and does not read them.
    pub fn hold(&mut self, key: &TreeKey, tokens: &[TokenId]) -> Lease {
        self.settle();
        let root = self.forest.root(key).unwrap_or_else(|| self.plant(key));
        let mut pages = Vec::with_capacity(tokens.len() / self.config.page_tokens as usize);
        let reach = self.forest.walk(root, tokens, |met| pages.extend_from_slice(met));
        let tip = reach.map_or(root, |reach| self.forest.settle(reach));
        self.forest.hold(tip);
        self.leases.open(tip, pages)
    }

    /// Extends a lease over pages of `tokens`, the whole sequence, that others have published since,
    /// and returns the tokens won: for a sequence that waited for pages which another computed.
    pub fn extend(&mut self, lease: &mut Lease, tokens: &[TokenId]) -> u32 {
        self.settle();
        let before = lease.tokens();
        self.adopt(lease, tokens.get(before as usize..).unwrap_or_default());
        let won = lease.tokens() - before;
        self.counters.hits += u64::from(before == 0 && won > 0);
        self.counters.hit_tokens += u64::from(won);
        won
    }

    fn plant(&mut self, key: &TreeKey) -> NodeId {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let name = if self.config.names_pages() { self.root_name(key) } else { None };
        self.forest.plant(key.clone(), hasher.finish(), name)
    }

    fn root_name(&self, key: &TreeKey) -> Option<ChainHash> {
        let secret = self.namespaces.get(&key.namespace)?;
        let root = ChainRoot {
            generation: key.generation,
            model: key.model,
            layout: self.config.layout,
            adapter: key.adapter,
            salt: key.salt.clone(),
        };
        Some(root.hash(secret))
    }

    /// Names of the whole pages of `tokens`, cached or not; `None` if the namespace has no key.
    pub fn names(&self, key: &TreeKey, tokens: &[TokenId]) -> Option<Vec<ChainHash>> {
        let mut name = self.root_name(key)?;
        let next = |page| {
            name = name.next(page);
            name
        };
        Some(tokens.chunks_exact(self.config.page_tokens as usize).map(next).collect())
    }

    /// Takes `n` free pages for a sequence to fill, evicting as many as that needs; all or none.
    pub fn reserve(&mut self, n: usize) -> Result<Vec<PageId>, OutOfPages> {
        self.settle();
        let (free, evictable) = (self.pool.free(), self.forest.evictable());
        if n > free + evictable {
            return Err(OutOfPages { needed: n, free, evictable });
        }
        if n > free {
            self.drop_leaves(n - free);
        }
        Ok(self.pool.take(n))
    }

    /// How many pages `reserve` could give now.
    pub fn available(&self) -> usize {
        self.pool.free() + self.forest.evictable()
    }

    /// Makes filled private `pages` visible: they follow the lease's pages and hold the tokens that
    /// follow the lease's tokens in `tokens`, the whole sequence so far. The lease then covers them.
    ///
    /// Where another sequence has published the same tokens meanwhile, the tree's page stays, the
    /// lease covers that one, and the given one is freed once step `fence` is complete.
    ///
    /// # Panics
    /// If a page is not private, or `tokens` do not fill the pages.
    pub fn publish(
        &mut self,
        lease: &mut Lease,
        tokens: &[TokenId],
        pages: &[PageId],
        fence: StepId,
    ) -> Published {
        self.settle();
        let size = self.config.page_tokens as usize;
        let (from, to) = (lease.pages.len() * size, (lease.pages.len() + pages.len()) * size);
        assert!(tokens.len() >= to, "{} tokens do not fill pages up to token {to}", tokens.len());
        let tokens = &tokens[from..to];
        let covered = lease.pages.len();
        self.adopt(lease, tokens);
        let duplicates = lease.pages.len() - covered;
        let (doubled, fresh) = pages.split_at(duplicates);
        self.fence_pages(doubled, fence);
        let namespace = self.forest.tree_of(self.leases.tip(lease.id)).key.namespace;
        let room = self.make_room(namespace, fresh.len());
        let fresh = &fresh[..room];
        self.insert(lease, &tokens[duplicates * size..(duplicates + room) * size], fresh);
        self.counters.published_pages += (duplicates + room) as u64;
        self.counters.duplicate_pages += duplicates as u64;
        Published { pages: lease.pages[covered..].to_vec(), duplicates }
    }

    /// How many of `n` pages the quota of a namespace has room for, after its own unleased leaves have
    /// gone.
    pub(crate) fn make_room(&mut self, namespace: NamespaceId, n: usize) -> usize {
        let Some(room) = self.quotas.room(namespace) else { return n };
        if n > room {
            let dropped = self.forest.evict_of(n - room, |key| key.namespace == namespace);
            self.counters.evicted_pages += dropped.len() as u64;
            self.counters.quota_pages += dropped.len() as u64;
            self.let_go(&dropped);
        }
        n.min(self.quotas.room(namespace).unwrap_or(n))
    }

    /// Extends the lease over what the tree already holds of `tokens`.
    fn adopt(&mut self, lease: &mut Lease, tokens: &[TokenId]) {
        let old = self.leases.tip(lease.id);
        let Some(reach) = self.forest.walk(old, tokens, |met| lease.pages.extend_from_slice(met)) else {
            return;
        };
        let tip = self.forest.settle(reach);
        self.move_lease(lease.id, old, tip);
        self.forest.touch(tip, old);
    }

    /// Adds pages that the tree does not hold yet below the lease's end.
    pub(crate) fn insert(&mut self, lease: &mut Lease, tokens: &[TokenId], pages: &[PageId]) {
        if pages.is_empty() {
            return;
        }
        pages.iter().for_each(|&page| self.pool.publish(page));
        let old = self.leases.tip(lease.id);
        self.quotas.add(self.forest.tree_of(old).key.namespace, pages.len());
        let parent = self.forest.name_of(old);
        let told = self.config.events_max > 0 && self.forest.tree_of(old).name.is_some();
        let tip = self.forest.grow(old, pages, tokens);
        self.move_lease(lease.id, old, tip);
        lease.pages.extend_from_slice(pages);
        if told {
            let at_root = self.forest.node(old).is_root();
            let stored = self.stored(tip, parent.filter(|_| !at_root), pages);
            self.events.push(KvChange::Stored(stored));
        }
    }

    fn move_lease(&mut self, id: LeaseId, from: NodeId, to: NodeId) {
        if from != to {
            self.forest.hold(to);
            self.forest.unhold(from);
            self.leases.advance(id, to);
        }
    }

    /// Pages of the tree of `key`, one below the other and below `parent`, as an event; `None` if the tree
    /// has no name.
    pub(crate) fn stored_run(
        &self,
        key: &TreeKey,
        parent: Option<PageId>,
        pages: &[PageId],
    ) -> Option<Stored> {
        let root = self.forest.root(key)?;
        self.forest.tree_of(root).name?;
        Some(self.stored(root, parent.and_then(|page| self.forest.store.name(page)), pages))
    }

    fn stored(&self, node: NodeId, parent: Option<ChainHash>, pages: &[PageId]) -> Stored {
        let key = &self.forest.tree_of(node).key;
        let store = &self.forest.store;
        Stored {
            namespace: key.namespace,
            generation: key.generation,
            adapter: key.adapter,
            parent,
            names: pages.iter().filter_map(|&page| store.name(page)).collect(),
            tokens: pages.iter().flat_map(|&page| store.tokens(page)).copied().collect(),
            page_tokens: self.config.page_tokens,
        }
    }

    /// Gives private pages back: free once step `fence` is complete.
    ///
    /// # Panics
    /// If a page is not private: it was freed or published before.
    pub fn free(&mut self, pages: Vec<PageId>, fence: StepId) {
        self.settle();
        self.fence_pages(&pages, fence);
    }

    fn fence_pages(&mut self, pages: &[PageId], fence: StepId) {
        if pages.is_empty() {
            return;
        }
        pages.iter().for_each(|&page| self.pool.fence(page));
        match self.fences.behind(fence) {
            Some(waiting) => waiting.pages.extend_from_slice(pages),
            None => pages.iter().for_each(|&page| self.set_free(page)),
        }
    }

    fn set_free(&mut self, page: PageId) {
        self.pool.unfence(page);
        if self.config.departures == Departures::Told {
            self.gone.push((page, None));
        }
    }

    /// Ends a lease whose pages step `fence` is the last to read; its path stays held until then.
    pub fn release(&mut self, lease: Lease, fence: StepId) {
        self.settle();
        self.release_id(lease.disarm(), fence);
    }

    fn release_id(&mut self, id: LeaseId, fence: StepId) {
        match self.fences.behind(fence) {
            Some(waiting) => waiting.leases.push(id),
            None => self.close(id),
        }
    }

    fn close(&mut self, id: LeaseId) {
        let tip = self.leases.close(id);
        self.forest.unhold(tip);
    }

    /// A step is about to be handed to the executor: leases dropped from now on wait for it.
    pub fn begin_step(&mut self, step: StepId) {
        self.settle();
        self.fences.begin(step);
    }

    /// Steps up to and including `step` are done: what waited for them moves.
    pub fn complete(&mut self, step: StepId) {
        self.settle();
        self.fences.complete(step);
        while let Some(due) = self.fences.next_due() {
            due.pages.into_iter().for_each(|page| self.set_free(page));
            due.leases.into_iter().for_each(|id| self.close(id));
        }
    }

    /// Takes in the leases dropped since the last call.
    pub(crate) fn settle(&mut self) {
        while let Some(id) = self.leases.next_dropped() {
            let fence = self.fences.begun();
            self.release_id(id, fence);
        }
    }

    /// Drops every page that no lease holds from the trees that `of` picks, and returns how many.
    pub fn clear(&mut self, of: impl Fn(&TreeKey) -> bool) -> usize {
        self.settle();
        let dropped = self.forest.clear(of, usize::MAX);
        self.forest.evictor.forget_evicted();
        self.counters.cleared_pages += dropped.len() as u64;
        self.take_back(&dropped);
        if self.forest.pages() == 0 && !dropped.is_empty() && self.config.events_max > 0 {
            self.events.push(KvChange::Cleared);
        } else {
            self.tell_removed(&dropped);
        }
        dropped.len()
    }

    /// Evicts up to `n` pages in the policy's order, and returns how many.
    pub fn evict(&mut self, n: usize) -> usize {
        self.settle();
        self.drop_leaves(n)
    }

    fn drop_leaves(&mut self, n: usize) -> usize {
        let dropped = self.forest.evict(n);
        self.counters.evicted_pages += dropped.len() as u64;
        self.let_go(&dropped);
        dropped.len()
    }

    pub(crate) fn let_go(&mut self, dropped: &[Dropped]) {
        self.take_back(dropped);
        self.tell_removed(dropped);
    }

    fn take_back(&mut self, dropped: &[Dropped]) {
        for gone in dropped {
            self.pool.evict(gone.page);
            self.forest.store.wipe(gone.page);
        }
        for run in dropped.chunk_by(|a, b| a.namespace == b.namespace) {
            self.quotas.remove(run[0].namespace, run.len());
        }
        if self.config.departures == Departures::Told {
            self.gone.extend(dropped.iter().map(|gone| (gone.page, gone.name)));
        }
    }

    fn tell_removed(&mut self, dropped: &[Dropped]) {
        if self.config.events_max == 0 {
            return;
        }
        let names: Vec<ChainHash> = dropped.iter().filter_map(|gone| gone.name).collect();
        if !names.is_empty() {
            self.events.push(KvChange::Removed { names });
        }
    }

    /// Events since the last call, in order; see [`crate::KvChange`] for what happens at the bound.
    pub fn drain_events(&mut self) -> Vec<KvEvent> {
        self.settle();
        self.events.drain()
    }

    /// All that is cached under a name now, parents first: where a reader that lost events restarts,
    /// after `drain_events`.
    pub fn snapshot(&self) -> Vec<Stored> {
        self.snapshot_of(|_| true)
    }

    /// As [`Cache::snapshot`], of each run of pages as many as `readable` says, in order.
    pub fn snapshot_of(&self, readable: impl Fn(PageId) -> bool) -> Vec<Stored> {
        let mut nodes: Vec<(u32, NodeId)> = self
            .forest
            .nodes()
            .iter()
            .filter(|(_, node)| !node.is_root() && self.forest.trees()[node.tree.0].name.is_some())
            .map(|(id, node)| (node.start, NodeId(id)))
            .collect();
        nodes.sort_unstable();
        let stored = |(start, id)| self.stored_node(start, id, &readable);
        nodes.into_iter().map(stored).filter(|stored: &Stored| !stored.names.is_empty()).collect()
    }

    fn stored_node(&self, start: u32, id: NodeId, readable: &impl Fn(PageId) -> bool) -> Stored {
        let node = self.forest.node(id);
        let pages = node.pages.iter().take_while(|&&page| readable(page)).count();
        let parent = node.parent.filter(|_| start > 0).and_then(|parent| self.forest.name_of(parent));
        self.stored(id, parent, &node.pages[..pages])
    }

    pub fn stats(&self) -> CacheStats {
        CacheStats {
            pages_total: self.pool.total(),
            pages_free: self.pool.free(),
            pages_private: self.pool.private(),
            pages_leased: self.forest.held(),
            pages_cached: self.forest.evictable(),
            pages_fenced: self.pool.fenced(),
            trees: self.forest.trees().len(),
            nodes: self.forest.nodes().len(),
            leases: self.leases.len(),
            metadata_bytes: self.pool.bytes() + self.forest.bytes() + self.forest.store.bytes(),
            counters: CacheCounters { events_lost: self.events.lost_total(), ..self.counters },
        }
    }
}
