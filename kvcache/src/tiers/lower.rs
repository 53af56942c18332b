//! One tier below the device: a tree over its places, and which of them can be read.

use std::collections::HashSet;

use base::{ChainHash, FrameId, Generation, NamespaceId, PageId, SlotId, Tier, TokenId};

use super::{LowerConfig, Seal, SlotRecord, WritePolicy};
use crate::{Cache, CacheConfig, Departures, IntegrityError, Naming, Stored, TreeKey};

/// Whose bytes may lie in a place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Residue {
    Nobody,
    Of(NamespaceId, Generation),
    Several,
}

pub(super) struct Lower {
    pub tier: Tier,
    pub index: Cache,
    pub write: WritePolicy,
    pub watermark: f32,
    /// By place: its copy has arrived.
    ready: Vec<bool>,
    /// By place: it can be read, the run that brought it is over, and all before it is whole. What is told.
    whole: Vec<bool>,
    /// Runs that are over and stand below pages that are not whole: runs may finish out of order.
    unwhole: Vec<Arrival>,
    /// By place, in cold tiers.
    seals: Vec<Seal>,
    /// By place: whose bytes may lie there, readable or not.
    residue: Vec<Residue>,
    /// The journal knows pages of an earlier run: free slots may hold more than is known here.
    pub has_past: bool,
    /// By place, in cold tiers: the journal has been told of it.
    noted: Vec<bool>,
    /// Records whose parent it has not been told of: runs may finish out of order.
    unnoted: Vec<SlotRecord>,
    /// Paths cut while others held them, with the first page that is wrong.
    doomed: Vec<(TreeKey, Vec<TokenId>, usize)>,
}

/// Pages that a run has brought, below a page of the same tree.
struct Arrival {
    key: TreeKey,
    parent: Option<PageId>,
    places: Vec<PageId>,
}

/// What left a tier or cannot be read any more, deepest first.
#[derive(Default)]
#[must_use = "followers and the journal must hear of it"]
pub(super) struct Gone {
    /// Names of pages that were told of.
    pub names: Vec<ChainHash>,
    /// Slots that the journal was told of.
    pub noted: Vec<SlotId>,
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
            whole: vec![false; places],
            unwhole: Vec::new(),
            seals: if is_cold { vec![[0; 28]; places] } else { Vec::new() },
            residue: vec![Residue::Nobody; places],
            has_past: config.has_past,
            noted: if is_cold { vec![false; places] } else { Vec::new() },
            unnoted: Vec::new(),
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

    /// A copy to `place` is ordered: from now on it may hold bytes of `key`'s generation, and until the copy has
    /// arrived also those of whoever was there before.
    pub fn soil(&mut self, place: PageId, key: &TreeKey) {
        let residue = &mut self.residue[place.0 as usize];
        let now = Residue::Of(key.namespace, key.generation);
        *residue = if *residue == Residue::Nobody || *residue == now { now } else { Residue::Several };
    }

    /// The place was erased and looked at.
    pub fn clean(&mut self, place: PageId) {
        self.residue[place.0 as usize] = Residue::Nobody;
    }

    /// Whether a place may hold bytes of a namespace up to a generation.
    pub fn is_soiled(&self, place: PageId, namespace: NamespaceId, up_to: Generation) -> bool {
        match self.residue[place.0 as usize] {
            Residue::Nobody => false,
            Residue::Of(other, generation) => other == namespace && generation <= up_to,
            Residue::Several => true,
        }
    }

    pub fn soiled(&self, namespace: NamespaceId, up_to: Generation) -> Vec<PageId> {
        let all = (0..self.residue.len() as u32).map(PageId);
        all.filter(|&place| self.is_soiled(place, namespace, up_to)).collect()
    }

    /// Records of stored pages for the journal, parents first; those whose parent is unknown to it wait.
    pub fn note(&mut self, records: Vec<SlotRecord>) -> Vec<SlotRecord> {
        self.unnoted.extend(records);
        let mut due = Vec::new();
        loop {
            let waiting = std::mem::take(&mut self.unnoted);
            let before = due.len();
            for record in waiting {
                if record.parent.is_none_or(|parent| self.noted[parent.0 as usize]) {
                    self.noted[record.slot.0 as usize] = true;
                    due.push(record);
                } else {
                    self.unnoted.push(record);
                }
            }
            if due.len() == before {
                return due;
            }
        }
    }

    /// A page of an earlier run, put back below whole ones: the journal knew of it before we did.
    pub fn was_there(&mut self, place: PageId) {
        self.noted[place.0 as usize] = true;
        self.whole[place.0 as usize] = true;
    }

    pub fn is_whole(&self, place: PageId) -> bool {
        self.whole[place.0 as usize]
    }

    /// A run is over and has brought `places`, which follow `parent`: what has become whole by that, parents
    /// first, as it is told.
    pub fn settled(&mut self, key: &TreeKey, parent: Option<PageId>, places: &[PageId]) -> Vec<Stored> {
        let mut due = Vec::new();
        if places.is_empty() {
            return due;
        }
        self.unwhole.push(Arrival { key: key.clone(), parent, places: places.to_vec() });
        loop {
            let waiting = std::mem::take(&mut self.unwhole).into_iter();
            let (now, later): (Vec<_>, Vec<_>) =
                waiting.partition(|of| of.parent.is_none_or(|parent| self.is_whole(parent)));
            self.unwhole = later;
            if now.is_empty() {
                return due;
            }
            for Arrival { key, parent, places } in now {
                places.iter().for_each(|place| self.whole[place.0 as usize] = true);
                due.extend(self.index.stored_run(&key, parent, &places));
            }
        }
    }

    pub fn arrived(&mut self, place: PageId, key: &TreeKey, seal: Option<Seal>) {
        self.ready[place.0 as usize] = true;
        self.residue[place.0 as usize] = Residue::Of(key.namespace, key.generation);
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

    /// Takes note of the places that became free.
    pub fn note_gone(&mut self) -> Gone {
        let left = self.index.drain_gone();
        let gone = self.close(&left);
        for (place, _) in left {
            if let Some(seal) = self.seals.get_mut(place.0 as usize) {
                *seal = [0; 28];
            }
        }
        gone
    }

    /// These places, deepest first, cannot be read any more.
    fn close(&mut self, places: &[(PageId, Option<ChainHash>)]) -> Gone {
        let mut gone = Gone::default();
        for &(place, name) in places {
            let at = place.0 as usize;
            self.ready[at] = false;
            if std::mem::take(&mut self.whole[at]) {
                gone.names.extend(name);
            }
            if self.noted.get_mut(at).is_some_and(std::mem::take) {
                gone.noted.push(slot(place));
            }
        }
        self.close_waiting(places);
        gone
    }

    fn close_waiting(&mut self, places: &[(PageId, Option<ChainHash>)]) {
        let waits = !self.unnoted.is_empty() || !self.unwhole.is_empty();
        if waits && !places.is_empty() {
            let closed: HashSet<PageId> = places.iter().map(|(place, _)| *place).collect();
            self.unnoted.retain(|record| !closed.contains(&PageId(record.slot.0)));
            for of in &mut self.unwhole {
                let stay = of.places.iter().take_while(|place| !closed.contains(place)).count();
                of.places.truncate(stay);
            }
            self.unwhole.retain(|of| !of.places.is_empty());
        }
    }

    /// Page `at` of a path and all below it must not be read: as many of them as others hold stay in
    /// the tree until those let go, and are then cut. Nobody is told of them any more from now on.
    pub fn doom(&mut self, key: &TreeKey, tokens: &[TokenId], at: usize) -> Gone {
        let mut below = self.index.below(key, tokens, at);
        if below.is_empty() {
            return Gone::default();
        }
        below.reverse();
        let named: Vec<_> = below.into_iter().map(|place| (place, self.name(place))).collect();
        self.doomed.push((key.clone(), tokens.to_vec(), at));
        self.close(&named)
    }

    /// Whether pages wait for others to let go of them.
    pub fn has_doomed(&self) -> bool {
        !self.doomed.is_empty()
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
        let told = self.whole.iter().filter(|whole| **whole).count();
        let readable = self.whole.iter().zip(&self.ready).filter(|(whole, ready)| **whole && **ready).count();
        if told != readable {
            return Err(IntegrityError::Tally { what: "told places", book: told, counted: readable });
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
