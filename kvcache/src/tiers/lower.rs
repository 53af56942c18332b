//! One tier below the device: a tree over its places, and which of them can be read.

use base::{ChainHash, FrameId, PageId, SlotId, Tier, TokenId};

use super::{LowerConfig, Seal, WritePolicy};
use crate::{Cache, CacheConfig, Departures, IntegrityError, Naming, TreeKey};

pub(super) struct Lower {
    pub tier: Tier,
    pub index: Cache,
    pub write: WritePolicy,
    pub watermark: f32,
    /// By place: its copy has arrived.
    ready: Vec<bool>,
    /// By place, in cold tiers.
    seals: Vec<Seal>,
    /// Paths cut while others held them, with the first page that is wrong.
    doomed: Vec<(TreeKey, Vec<TokenId>, usize)>,
}

impl Lower {
    pub fn new(config: &LowerConfig, device: &CacheConfig) -> Self {
        let is_cold = config.tier > Tier::Host;
        let index = CacheConfig {
            pages: config.pages,
            policy: config.policy,
            naming: Naming::Always,
            departures: Departures::Told,
            events_max: 0, // told by `Tiers`, once a page can be read
            ..device.clone()
        };
        let places = config.pages as usize;
        Self {
            tier: config.tier,
            index: Cache::new(index),
            write: config.write,
            watermark: config.watermark,
            ready: vec![false; places],
            seals: if is_cold { vec![[0; 28]; places] } else { Vec::new() },
            doomed: Vec::new(),
        }
    }

    pub fn is_ready(&self, place: PageId) -> bool {
        self.ready[place.0 as usize]
    }

    /// How many of the leading `places` can be read.
    pub fn ready_prefix(&self, places: &[PageId]) -> usize {
        places.iter().take_while(|&&place| self.is_ready(place)).count()
    }

    /// These places cannot be read after all.
    pub fn withdraw(&mut self, places: &[PageId]) {
        places.iter().for_each(|place| self.ready[place.0 as usize] = false);
    }

    pub fn arrived(&mut self, place: PageId, seal: Option<Seal>) {
        self.ready[place.0 as usize] = true;
        if let Some(seal) = seal {
            self.seals[place.0 as usize] = seal;
        }
    }

    pub fn seal(&self, place: PageId) -> Seal {
        self.seals[place.0 as usize]
    }

    pub fn name(&self, place: PageId) -> Option<ChainHash> {
        self.index.name(place)
    }

    /// Takes note of the places that became free; answers with those that could be read.
    pub fn note_gone(&mut self) -> Vec<(PageId, Option<ChainHash>)> {
        let mut gone = self.index.drain_gone();
        for (place, _) in &gone {
            if let Some(seal) = self.seals.get_mut(place.0 as usize) {
                *seal = [0; 28];
            }
        }
        gone.retain(|(place, _)| std::mem::take(&mut self.ready[place.0 as usize]));
        gone
    }

    /// Page `at` of a path and all below it must not be read: as many of them as others hold stay in
    /// the tree until those let go, and are then cut.
    pub fn doom(&mut self, key: &TreeKey, tokens: &[TokenId], at: usize) {
        let below = self.index.below(key, tokens, at);
        if below.is_empty() {
            return;
        }
        below.iter().for_each(|place| self.ready[place.0 as usize] = false);
        self.doomed.push((key.clone(), tokens.to_vec(), at));
    }

    /// Cuts again what was held when it was doomed.
    pub fn cut_doomed(&mut self) {
        for (key, tokens, at) in std::mem::take(&mut self.doomed) {
            self.index.cut(&key, &tokens, at);
            if self.index.find(&key, &tokens).len() > at {
                self.doomed.push((key, tokens, at));
            }
        }
    }

    /// Share of places that are free.
    pub fn free_share(&self) -> f32 {
        let stats = self.index.stats();
        stats.pages_free as f32 / stats.pages_total as f32
    }

    /// The law of its tree, and that only places of the tree can be read.
    pub fn check(&self) -> Result<(), IntegrityError> {
        self.index.check()?;
        let stats = self.index.stats();
        let ready = self.ready.iter().filter(|ready| **ready).count();
        let cached = stats.pages_leased + stats.pages_cached;
        if ready > cached {
            return Err(IntegrityError::Tally { what: "readable places", book: cached, counted: ready });
        }
        Ok(())
    }
}

/// A place of the host tier's tree is a frame.
pub(super) fn frame(place: PageId) -> FrameId {
    FrameId(place.0)
}

/// A place of a cold tier's tree is a slot.
pub(super) fn slot(place: PageId) -> SlotId {
    SlotId(place.0)
}
