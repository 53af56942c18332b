//! The cache beside a naive model of itself: maps from whole prefixes to pages, vectors of holds.
//!
//! The model does not predict which leaf a policy evicts. It follows the cache's own events and holds
//! every eviction against the rules: the page was cached, nothing cached lies below it, and no lease
//! or running step needs it. Everything else — matches, canonical pages, refusals, counts — it
//! predicts exactly, after every operation. Used by the property test, by the crate's own test with
//! colliding fingerprints, and by `benches/soak.rs`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use base::{
    AdapterId, ChainHash, Generation, ModelDigest, NamespaceId, NamespaceKey, PageId, StepId, TokenId,
};
use quire_kvcache::{Cache, CacheConfig, EvictionKind, KvChange, Lease, TreeKey};

const SIZE: usize = 16;
const KEYS: usize = 4;
const SEQUENCES_MAX: usize = 12;

/// One operation; numbers are taken modulo what there is to choose from.
#[derive(Clone, Debug)]
pub enum Op {
    /// A sequence arrives: its key and its prompt, a page per number.
    Start {
        key: usize,
        prompt: Vec<u32>,
    },
    /// It decodes: more tokens to come.
    Extend {
        sequence: usize,
        pages: Vec<u32>,
    },
    /// It looks again for what others have published.
    Rematch {
        sequence: usize,
    },
    Reserve {
        sequence: usize,
        n: usize,
    },
    Publish {
        sequence: usize,
        n: usize,
    },
    Free {
        sequence: usize,
        n: usize,
    },
    Finish {
        sequence: usize,
    },
    Drop {
        sequence: usize,
    },
    BeginStep,
    Complete {
        back: u64,
    },
    Evict {
        n: usize,
    },
    Clear {
        key: usize,
    },
}

type Prefix = (usize, Vec<u32>);

struct Sequence {
    key: usize,
    prompt: Vec<u32>,
    lease: Lease,
    private: Vec<PageId>,
}

impl Sequence {
    fn leased(&self) -> Prefix {
        (self.key, self.prompt[..self.lease.pages().len()].to_vec())
    }
}

pub struct World {
    cache: Cache,
    total: usize,
    sequences: Vec<Sequence>,
    /// Every visible page, by everything before and in it.
    cached: BTreeMap<Prefix, PageId>,
    names: HashMap<ChainHash, Prefix>,
    /// Leases that are gone but whose step may run.
    ending: Vec<(StepId, Prefix)>,
    fenced: Vec<(StepId, PageId)>,
    begun: StepId,
    completed: StepId,
    sequence_number: u64,
}

pub fn config(pages: u32, policy: EvictionKind) -> CacheConfig {
    CacheConfig { policy, events_max: 1 << 20, ..CacheConfig::new(pages, SIZE as u32) }
}

/// Keys that differ in one part each.
fn key(index: usize) -> TreeKey {
    let base = TreeKey::new(NamespaceId(1), ModelDigest([1; 32]));
    match index % KEYS {
        0 => base,
        1 => TreeKey { generation: Generation(1), ..base },
        2 => TreeKey { adapter: AdapterId(1), ..base },
        _ => TreeKey { salt: vec![1], ..base },
    }
}

/// Pages differ in their last token only.
fn tokens(pages: &[u32]) -> Vec<TokenId> {
    pages.iter().flat_map(|&p| std::iter::repeat_n(9, SIZE - 1).chain([p])).collect()
}

impl World {
    pub fn new(mut cache: Cache) -> Self {
        cache.register_namespace(NamespaceId(1), NamespaceKey([3; 32]));
        Self {
            total: cache.stats().pages_total,
            cache,
            sequences: Vec::new(),
            cached: BTreeMap::new(),
            names: HashMap::new(),
            ending: Vec::new(),
            fenced: Vec::new(),
            begun: StepId(0),
            completed: StepId(0),
            sequence_number: 0,
        }
    }

    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Start { key, prompt } => self.start(key % KEYS, prompt),
            Op::Extend { sequence, pages } => {
                if let Some(s) = self.pick(*sequence) {
                    self.sequences[s].prompt.extend(pages.iter().take(2));
                }
            }
            Op::Rematch { sequence } => self.rematch(*sequence),
            Op::Reserve { sequence, n } => self.reserve(*sequence, *n),
            Op::Publish { sequence, n } => self.publish(*sequence, *n),
            Op::Free { sequence, n } => self.free(*sequence, *n),
            Op::Finish { sequence } => self.finish(*sequence),
            Op::Drop { sequence } => self.drop_sequence(*sequence),
            Op::BeginStep => {
                self.begun.0 += 1;
                self.cache.begin_step(self.begun);
            }
            Op::Complete { back } => self.complete(StepId(self.begun.0.saturating_sub(*back))),
            Op::Evict { n } => {
                let want = (*n).min(self.evictable());
                assert_eq!(self.cache.evict(*n), want, "evicts all that is asked for and may go");
            }
            Op::Clear { key: index } => self.clear(index % KEYS),
        }
        self.follow_events();
        self.compare();
    }

    fn start(&mut self, index: usize, prompt: &[u32]) {
        if self.sequences.len() == SEQUENCES_MAX {
            return;
        }
        let tokens = tokens(prompt);
        let expected = self.longest(index, prompt);
        assert_eq!(self.cache.peek(&key(index), &tokens) as usize, expected.len() * SIZE);
        let lease = self.cache.lease(&key(index), &tokens);
        assert_eq!(lease.pages(), expected, "the longest cached prefix, and only under this key");
        self.sequences.push(Sequence { key: index, prompt: prompt.to_vec(), lease, private: Vec::new() });
    }

    fn longest(&self, index: usize, prompt: &[u32]) -> Vec<PageId> {
        let page = |n| self.cached.get(&(index, prompt[..n].to_vec())).copied();
        (1..=prompt.len()).map_while(page).collect()
    }

    fn rematch(&mut self, sequence: usize) {
        let Some(s) = self.pick(sequence) else { return };
        let expected = self.longest(self.sequences[s].key, &self.sequences[s].prompt);
        let seq = &mut self.sequences[s];
        let before = seq.lease.pages().len();
        let won = self.cache.extend(&mut seq.lease, &tokens(&seq.prompt)) as usize;
        assert_eq!(seq.lease.pages(), expected, "the longest cached prefix again");
        assert_eq!(won, (expected.len() - before) * SIZE);
    }

    fn reserve(&mut self, sequence: usize, n: usize) {
        let Some(s) = self.pick(sequence) else { return };
        let available = self.available();
        match self.cache.reserve(n) {
            Ok(pages) => {
                assert!(n <= available && pages.len() == n);
                self.follow_events();
                for page in &pages {
                    assert!(!self.in_use().contains(page), "page {page} was handed out while in use");
                }
                self.sequences[s].private.extend(pages);
            }
            Err(out) => {
                assert_eq!((out.needed, out.free + out.evictable), (n, available));
                assert!(n > available, "a refusal although there are enough");
            }
        }
    }

    fn publish(&mut self, sequence: usize, n: usize) {
        let Some(s) = self.pick(sequence) else { return };
        let seq = &mut self.sequences[s];
        let covered = seq.lease.pages().len();
        let n = n.min(seq.private.len()).min(seq.prompt.len() - covered);
        let pages: Vec<PageId> = seq.private.drain(..n).collect();
        let tokens = tokens(&seq.prompt);
        let published = self.cache.publish(&mut seq.lease, &tokens, &pages, self.begun);
        let mut duplicates = 0;
        for (i, page) in pages.into_iter().enumerate() {
            let prefix = (seq.key, seq.prompt[..covered + i + 1].to_vec());
            let canonical = *self.cached.entry(prefix.clone()).or_insert(page);
            let name = *self.cache.names(&key(seq.key), &tokens).unwrap().get(covered + i).unwrap();
            self.names.insert(name, prefix);
            assert_eq!(published.pages[i], canonical, "the tree's page wins");
            assert_eq!(seq.lease.pages()[covered + i], canonical);
            if canonical != page {
                duplicates += 1;
                self.fenced.push((self.begun, page));
            }
        }
        assert_eq!(published.duplicates, duplicates);
        self.pass_fences();
    }

    fn free(&mut self, sequence: usize, n: usize) {
        let Some(s) = self.pick(sequence) else { return };
        let private = &mut self.sequences[s].private;
        let pages = private.split_off(private.len().saturating_sub(n));
        self.fenced.extend(pages.iter().map(|&page| (self.begun, page)));
        self.cache.free(pages, self.begun);
        self.pass_fences();
    }

    fn finish(&mut self, sequence: usize) {
        let Some(s) = self.pick(sequence) else { return };
        let seq = self.sequences.swap_remove(s);
        self.ending.push((self.begun, seq.leased()));
        self.fenced.extend(seq.private.iter().map(|&page| (self.begun, page)));
        self.cache.free(seq.private, self.begun);
        self.cache.release(seq.lease, self.begun);
        self.pass_fences();
    }

    fn drop_sequence(&mut self, sequence: usize) {
        let Some(s) = self.pick(sequence) else { return };
        let seq = self.sequences.swap_remove(s);
        self.ending.push((self.begun, seq.leased()));
        self.fenced.extend(seq.private.iter().map(|&page| (self.begun, page)));
        drop(seq.lease);
        self.cache.free(seq.private, self.begun);
        self.pass_fences();
    }

    fn complete(&mut self, step: StepId) {
        self.cache.complete(step);
        self.completed = self.completed.max(step);
        self.pass_fences();
    }

    fn pass_fences(&mut self) {
        let completed = self.completed;
        self.ending.retain(|(fence, _)| *fence > completed);
        self.fenced.retain(|(fence, _)| *fence > completed);
    }

    fn clear(&mut self, index: usize) {
        let held = self.held();
        let (of_key, kept): (Vec<&Prefix>, _) =
            self.cached.keys().filter(|p| p.0 == index).partition(|p| !held.contains(*p));
        let (want, kept) = (of_key.len(), kept.len());
        assert_eq!(self.cache.clear(|k| *k == key(index)), want);
        self.follow_events();
        assert_eq!(self.cached.keys().filter(|p| p.0 == index).count(), kept);
    }

    fn pick(&self, sequence: usize) -> Option<usize> {
        sequence.checked_rem(self.sequences.len())
    }

    /// Every prefix that a lease or a running step needs.
    fn held(&self) -> BTreeSet<Prefix> {
        let leased = self.sequences.iter().map(Sequence::leased);
        let ending = self.ending.iter().map(|(_, prefix)| prefix.clone());
        leased.chain(ending).flat_map(|(k, p)| (1..=p.len()).map(move |n| (k, p[..n].to_vec()))).collect()
    }

    fn evictable(&self) -> usize {
        self.cached.len() - self.held().len()
    }

    fn private(&self) -> usize {
        self.sequences.iter().map(|s| s.private.len()).sum()
    }

    fn available(&self) -> usize {
        self.total - self.private() - self.fenced.len() - self.held().len()
    }

    fn in_use(&self) -> BTreeSet<PageId> {
        let private = self.sequences.iter().flat_map(|s| s.private.iter().copied());
        let fenced = self.fenced.iter().map(|(_, page)| *page);
        self.cached.values().copied().chain(private).chain(fenced).collect()
    }

    fn follow_events(&mut self) {
        let held = self.held();
        for event in self.cache.drain_events() {
            self.sequence_number += 1;
            assert_eq!(event.sequence, self.sequence_number);
            match event.change {
                KvChange::Stored(stored) => {
                    let parent = stored.parent.map(|name| self.names[&name].1.clone()).unwrap_or_default();
                    let (_, first) = &self.names[&stored.names[0]];
                    assert_eq!(first[..first.len() - 1], parent);
                }
                KvChange::Removed { names } => {
                    for name in names {
                        let prefix = self.names[&name].clone();
                        self.remove(&prefix, &held);
                    }
                }
                KvChange::Cleared => {
                    assert!(held.is_empty());
                    self.cached.clear();
                }
                KvChange::Lost { .. } => panic!("the bound is far away"),
            }
        }
    }

    fn remove(&mut self, prefix: &Prefix, held: &BTreeSet<Prefix>) {
        assert!(!held.contains(prefix), "evicted under a lease: {prefix:?}");
        assert!(self.cached.remove(prefix).is_some(), "evicted what was not cached: {prefix:?}");
        // Prefixes are in order, so whatever lies below a prefix comes right after it.
        let next = self.cached.range(prefix.clone()..).next();
        let below = next.is_some_and(|(p, _)| p.0 == prefix.0 && p.1.starts_with(&prefix.1));
        assert!(!below, "evicted a trunk before its leaf: {prefix:?}");
    }

    fn compare(&self) {
        self.cache.check().unwrap();
        for s in &self.sequences {
            self.cache.check_lease(&s.lease).unwrap();
        }
        let stats = self.cache.stats();
        let held = self.held().len();
        assert_eq!(stats.pages_private, self.private());
        assert_eq!(stats.pages_fenced, self.fenced.len());
        assert_eq!(stats.pages_leased, held);
        assert_eq!(stats.pages_cached, self.cached.len() - held);
        assert_eq!(self.cache.available(), self.available());
    }

    /// Lets everything end: no page may be missing.
    pub fn finish_all(mut self) {
        while !self.sequences.is_empty() {
            self.finish(0);
        }
        self.complete(self.begun);
        self.compare();
        assert_eq!(self.cache.available(), self.total);
        self.cache.clear(|_| true);
        assert_eq!(self.cache.stats().pages_free, self.total);
        assert_eq!((self.cache.stats().trees, self.cache.stats().nodes), (0, 0));
    }
}
