//! The naive index: a set of (scope, name) with tiers, of one replica.

use std::collections::BTreeMap;
use std::sync::Mutex;

use base::{Generation, Tier};
use quire_router::Seat;
use quire_router::source::{Scope, Tiers, Told};

/// What a replica holds: bits of tiers by (scope, name).
pub type Set = BTreeMap<(Scope, u64), u8>;

#[derive(Default)]
pub struct Held {
    set: Mutex<Set>,
    purged: Mutex<Vec<(String, u64, u64, u64)>>,
}

impl Held {
    pub fn set(&self) -> Set {
        self.set.lock().unwrap().clone()
    }

    /// Namespace, generation, blocks as the replica counted them and as were found here.
    pub fn purged(&self) -> Vec<(String, u64, u64, u64)> {
        self.purged.lock().unwrap().clone()
    }
}

impl Told for Held {
    fn stored(&self, _: Seat, scope: &Scope, tiers: Tiers, _: Option<u64>, names: &[u64]) {
        let mut set = self.set.lock().unwrap();
        for name in names {
            *set.entry((scope.clone(), *name)).or_default() |= tiers.bits();
        }
    }

    fn removed(&self, _: Seat, scope: &Scope, tier: Tier, names: &[u64]) {
        let mut set = self.set.lock().unwrap();
        for name in names {
            let key = (scope.clone(), *name);
            if let Some(tiers) = set.get_mut(&key) {
                *tiers &= !Tiers::of(tier).bits();
                if *tiers == 0 {
                    set.remove(&key);
                }
            }
        }
    }

    fn cleared(&self, _: Seat) {
        self.set.lock().unwrap().clear();
    }

    fn purged(&self, _: Seat, namespace: &str, up_to: Generation, blocks: u64) {
        let mut set = self.set.lock().unwrap();
        let before = set.len();
        set.retain(|(scope, _), _| *scope.namespace != *namespace || scope.generation > up_to);
        let found = (before - set.len()) as u64;
        self.purged.lock().unwrap().push((namespace.to_owned(), up_to.0, blocks, found));
    }
}
