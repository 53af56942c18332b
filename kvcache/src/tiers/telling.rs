//! Events of all tiers in one numbered stream.
//!
//! The device's own log is the first half; below it a page is told of when it can be read, not when its
//! copy was ordered, and its removal when it could be read until then. Each half is bounded, and a half
//! that lost events says so.

use base::{ChainHash, PageId, Tier};

use super::Tiers;
use super::run::Run;
use crate::{KvChange, Stored};

/// One change of one tier.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TierEvent {
    /// Counts from 1 without gaps, over all tiers.
    pub sequence: u64,
    pub tier: Tier,
    pub change: KvChange,
}

impl Tiers {
    /// Events since the last call, numbered over all tiers.
    pub fn drain_events(&mut self) -> Vec<TierEvent> {
        let device = self.device.drain_events().into_iter().map(|event| (Tier::Device, event.change));
        let below = std::mem::take(&mut self.told);
        let all: Vec<_> = device.chain(below).collect();
        self.told_weight = 0;
        all.into_iter().map(|(tier, change)| self.numbered(tier, change)).collect()
    }

    /// That all is cleared, then all that is there, as numbered events.
    pub fn retell(&mut self) -> Vec<TierEvent> {
        self.drain_events();
        let stored = self.snapshot().into_iter().map(|(tier, stored)| (tier, KvChange::Stored(stored)));
        let all: Vec<_> = std::iter::once((Tier::Device, KvChange::Cleared)).chain(stored).collect();
        all.into_iter().map(|(tier, change)| self.numbered(tier, change)).collect()
    }

    /// What was drained has not been heard: the next drain begins with `Lost`.
    pub fn lose_events(&mut self) {
        if self.device.config().events_max > 0 {
            self.told.insert(0, (Tier::Device, KvChange::Lost { events: 1 }));
        }
    }

    fn numbered(&mut self, tier: Tier, change: KvChange) -> TierEvent {
        self.sequence += 1;
        TierEvent { sequence: self.sequence, tier, change }
    }

    /// All that can be read under a name now, in every tier, parents first.
    pub fn snapshot(&self) -> Vec<(Tier, Stored)> {
        let device = self.device.snapshot().into_iter().map(|stored| (Tier::Device, stored));
        let below = self.lower.values().flat_map(|lower| {
            lower
                .index
                .snapshot_of(|place| lower.is_ready(place))
                .into_iter()
                .map(|stored| (lower.tier, stored))
        });
        device.chain(below).collect()
    }

    pub(super) fn tell_stored(&mut self, run: &Run, arrived: usize) {
        if arrived == 0 {
            return;
        }
        let lower = &self.lower[&run.target];
        let places = &run.places[..arrived];
        let names: Vec<ChainHash> = places.iter().filter_map(|&place| lower.name(place)).collect();
        let size = self.device.config().page_tokens;
        let at = |page: usize| page * size as usize;
        let parent = run.first.checked_sub(1).and_then(|before| lower.name(run.to.pages()[before]));
        let stored = Stored {
            namespace: run.key.namespace,
            generation: run.key.generation,
            adapter: run.key.adapter,
            parent,
            names,
            tokens: run.tokens[at(run.first)..at(run.first + arrived)].to_vec(),
            page_tokens: size,
        };
        self.tell(run.target, KvChange::Stored(stored));
    }

    pub(super) fn tell_removed(&mut self, tier: Tier, gone: &[(PageId, Option<ChainHash>)]) {
        let names: Vec<ChainHash> = gone.iter().filter_map(|(_, name)| *name).collect();
        if !names.is_empty() {
            self.tell(tier, KvChange::Removed { names });
        }
    }

    fn tell(&mut self, tier: Tier, change: KvChange) {
        let bound = self.device.config().events_max;
        if bound == 0 {
            return;
        }
        let weight = change.weight();
        match self.told.last_mut() {
            Some((_, KvChange::Lost { events })) => *events += 1,
            _ if self.told_weight + weight > bound => self.told.push((tier, KvChange::Lost { events: 1 })),
            _ => {
                self.told_weight += weight;
                self.told.push((tier, change));
            }
        }
    }
}
