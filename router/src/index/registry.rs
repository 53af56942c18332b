//! Which scopes there are. Found by readers without a lock, made and ended by writers.
//!
//! The map is copied whenever a scope comes or goes, which is rare, and in shards, so that thousands of
//! tenants cost thousands of small copies. A concurrent map would let readers in as well, but holds a lock or
//! a guard of its own around every look.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, Guard};
use hashbrown::HashTable;

use super::budget::Budget;
use super::holdings::Holdings;
use super::scope::{Family, Scope};

const SHARDS: usize = 64;

pub(super) struct Registry {
    shards: Box<[Shard]>,
    hasher: RandomState,
    scopes: AtomicUsize,
    scopes_max: usize,
}

#[derive(Default)]
struct Shard {
    map: ArcSwap<Map>,
    writer: Mutex<()>,
}

/// Of each family its generations.
pub(super) type Map = HashTable<Arc<[Arc<Holdings>]>>;

/// A family's place, to be found once.
pub(super) struct Found {
    map: Guard<Arc<Map>>,
    hash: u64,
}

impl Found {
    /// The family's scopes.
    pub fn generations(&self, family: &Family) -> &[Arc<Holdings>] {
        self.map.find(self.hash, |of| of[0].scope.family == *family).map_or(&[], |of| of)
    }

    pub fn scope(&self, scope: &Scope) -> Option<&Arc<Holdings>> {
        self.generations(&scope.family).iter().find(|of| of.scope.generation == scope.generation)
    }
}

impl Registry {
    pub fn new(scopes_max: usize) -> Self {
        let shards = (0..SHARDS).map(|_| Shard::default()).collect();
        Self { shards, hasher: RandomState::new(), scopes: AtomicUsize::new(0), scopes_max }
    }

    pub fn len(&self) -> usize {
        self.scopes.load(Relaxed)
    }

    pub fn find(&self, family: &Family) -> Found {
        let hash = self.hasher.hash_one(family);
        Found { map: self.shard(hash).map.load(), hash }
    }

    fn shard(&self, hash: u64) -> &Shard {
        &self.shards[(hash >> 32) as usize % SHARDS]
    }

    pub fn all(&self) -> Vec<Arc<Holdings>> {
        let of =
            |shard: &Shard| shard.map.load().iter().flat_map(|of| of.iter().cloned()).collect::<Vec<_>>();
        self.shards.iter().flat_map(of).collect()
    }

    /// Makes the scope, unless it is there. `None`: there is no room for it.
    pub fn open(&self, scope: &Scope, budget: &Arc<Budget>) -> Option<()> {
        let hash = self.hasher.hash_one(&scope.family);
        let shard = self.shard(hash);
        let _writer = shard.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let found = self.find(&scope.family);
        if found.scope(scope).is_some() {
            return Some(());
        }
        if self.len() >= self.scopes_max {
            return None;
        }
        let holdings = Arc::new(Holdings::new(scope.clone(), budget).ok()?);
        let mut generations = found.generations(&scope.family).to_vec();
        generations.push(holdings);
        self.scopes.fetch_add(1, Relaxed);
        self.put(shard, hash, &scope.family, generations);
        Some(())
    }

    /// Ends a scope that is over.
    pub fn close(&self, over: &Arc<Holdings>) {
        let family = &over.scope.family;
        let hash = self.hasher.hash_one(family);
        let shard = self.shard(hash);
        let _writer = shard.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut generations = self.find(family).generations(family).to_vec();
        let before = generations.len();
        generations.retain(|of| !Arc::ptr_eq(of, over));
        if generations.len() < before {
            self.scopes.fetch_sub(1, Relaxed);
            self.put(shard, hash, family, generations);
        }
    }

    fn put(&self, shard: &Shard, hash: u64, family: &Family, generations: Vec<Arc<Holdings>>) {
        let mut map = Map::clone(&shard.map.load());
        if let Ok(old) = map.find_entry(hash, |of| of[0].scope.family == *family) {
            old.remove();
        }
        if !generations.is_empty() {
            let rehash = |of: &Arc<[Arc<Holdings>]>| self.hasher.hash_one(&of[0].scope.family);
            map.insert_unique(hash, generations.into(), rehash);
        }
        shard.map.store(Arc::new(map));
    }
}
