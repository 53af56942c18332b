//! What a followed replica tells, put where decisions find it.
//!
//! The sources speak of scopes and names; here they meet the pool: blocks go into its index, purges end the roots
//! under which prompts were named, load records and states go to its desk.

use std::sync::{Arc, Weak};
use std::time::Duration;

use base::{Generation, Tier};
use proto::v1::LoadRecord;

use crate::Seat;
use crate::events::Heard;
use crate::index::{Evicts, Family, Scope};
use crate::pool::Pool;
use crate::source::{Scope as ToldScope, State, Tiers, Told};

/// A pool as its sources see it. It does not keep the pool alive: a follower outlives nobody.
pub struct Followed(Weak<Pool>);

impl Followed {
    pub fn new(pool: &Arc<Pool>) -> Arc<Self> {
        Arc::new(Self(Arc::downgrade(pool)))
    }
}

/// The index's name of what a source tells of.
pub fn scope_of(told: &ToldScope) -> Scope {
    Scope { family: Family::Namespace(Arc::clone(&told.namespace)), generation: told.generation }
}

impl Told for Followed {
    fn stored(&self, seat: Seat, scope: &ToldScope, tiers: Tiers, parent: Option<u64>, names: &[u64]) {
        let Some(pool) = self.0.upgrade() else { return };
        let tiers: Vec<Tier> = tiers.iter().collect();
        // What has no room is counted there, and lowers a score.
        let _ = pool.index().stored(seat, &scope_of(scope), &tiers, parent, names);
    }

    fn removed(&self, seat: Seat, scope: &ToldScope, tier: Tier, names: &[u64]) {
        let Some(pool) = self.0.upgrade() else { return };
        pool.index().removed(seat, Some(&scope_of(scope).family), tier, names);
    }

    fn cleared(&self, seat: Seat) {
        let Some(pool) = self.0.upgrade() else { return };
        let _ = pool.index().replace(seat, Evicts::LeafFirst);
    }

    fn purged(&self, seat: Seat, namespace: &str, up_to: Generation, blocks: u64) {
        let Some(pool) = self.0.upgrade() else { return };
        let dropped = pool.index().purge(seat, namespace, up_to);
        pool.purged(namespace, up_to);
        tracing::info!(%seat, namespace, generation = up_to.0, told = blocks, dropped = dropped.blocks, "purged");
    }
}

impl Heard for Followed {
    fn load(&self, seat: Seat, load: &LoadRecord) {
        if let Some(pool) = self.0.upgrade() {
            pool.told_load(seat, *load);
        }
    }

    fn state(&self, seat: Seat, state: State) {
        if let Some(pool) = self.0.upgrade() {
            pool.source_is(seat, state);
        }
    }

    fn failed(&self, seat: Seat, why: &str, rest: Duration) {
        tracing::debug!(%seat, why, ?rest, "its events were interrupted");
    }
}
