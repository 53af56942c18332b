//! Events of all tiers in one numbered stream.
//!
//! The device's own log is the first half; below it a page is told of when the run that brought it is over
//! and all before it has been told, not when its copy was ordered or has arrived: a run takes back what
//! follows a failure. Its removal is told as soon as it cannot be read any more, though others may hold it
//! for a while. Each half is bounded, and a half that lost events says so.

use base::{ChainHash, Tier};

#[cfg(debug_assertions)]
use super::Follower;
use super::Tiers;
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
        let all = self.take_told();
        let events: Vec<TierEvent> =
            all.into_iter().map(|(tier, change)| self.numbered(tier, change)).collect();
        self.follow(&events);
        events
    }

    /// That all is cleared, then all that is there, as numbered events; what was not drained yet is in it.
    pub fn retell(&mut self) -> Vec<TierEvent> {
        self.take_told();
        let stored = self.snapshot().into_iter().map(|(tier, stored)| (tier, KvChange::Stored(stored)));
        let all: Vec<_> = std::iter::once((Tier::Device, KvChange::Cleared)).chain(stored).collect();
        let events: Vec<TierEvent> =
            all.into_iter().map(|(tier, change)| self.numbered(tier, change)).collect();
        self.follow(&events);
        events
    }

    fn take_told(&mut self) -> Vec<(Tier, KvChange)> {
        let device = self.device.drain_events().into_iter().map(|event| (Tier::Device, event.change));
        self.told_weight = 0;
        device.chain(std::mem::take(&mut self.told)).collect()
    }

    #[cfg(debug_assertions)]
    fn follow(&mut self, events: &[TierEvent]) {
        if self.device.config().events_max == 0 {
            return;
        }
        for event in events {
            assert_eq!(self.follower.hear(event), Ok(()), "an event follows from those before it");
        }
        if !self.follower.is_lost() {
            let truth = Follower::of(&self.snapshot());
            assert_eq!(truth.as_ref(), Ok(&self.follower), "who hears every event knows what is there");
        }
    }

    #[cfg(not(debug_assertions))]
    #[expect(clippy::unused_self, reason = "looks at what was told in debug builds")]
    fn follow(&self, _: &[TierEvent]) {}

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

    /// All that is told of now, in every tier, parents first: what can be read under a name.
    pub fn snapshot(&self) -> Vec<(Tier, Stored)> {
        let device = self.device.snapshot().into_iter().map(|stored| (Tier::Device, stored));
        let below = self.lower.values().flat_map(|lower| {
            let whole = lower.index.snapshot_of(|place| lower.is_whole(place));
            whole.into_iter().map(|stored| (lower.tier, stored))
        });
        device.chain(below).collect()
    }

    pub(super) fn tell_stored(&mut self, tier: Tier, stored: Vec<Stored>) {
        for stored in stored {
            self.tell(tier, KvChange::Stored(stored));
        }
    }

    pub(super) fn tell_removed(&mut self, tier: Tier, names: Vec<ChainHash>) {
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
