//! A purge: nothing of a namespace up to a generation stays, in any tier, and each tier says what it did.
//!
//! ```text
//!   floor raised ─► trees cleared ─► places overwritten or erased ─► read back ─► done
//!                      ▲      │ still leased: a request runs, a copy is on its way
//!                      └──────┘ looked at again whenever something has ended
//! ```
//!
//! Raising the floor comes first: from then on nothing of an old generation can enter, so what is
//! cleared cannot come back. Device pages are overwritten by the next step, as all pages are that
//! become free. Host frames are always overwritten whole when they are used again, so the frames that
//! are free when the last of the namespace's have gone are swept, all of them: a frame evicted long
//! ago still holds its bytes. Slots of cold tiers are handed over to be erased; what was evicted from
//! them before is ciphertext whose key is gone.
//!
//! Nobody is made to wait: a purge advances between steps, a chunk at a time, and looks at the nodes of
//! its own trees only.

use std::collections::{BTreeMap, HashSet};

use base::{Generation, NamespaceId, PageId, StepId, Tier};

use super::lower::{frame, slot};
use super::order::{ColdOrder, ColdOutcome, ColdWork, JournalNote, Ticket};
use super::{RunId, Tiers};
use crate::{Cache, TreeKey};

/// Pages taken out of a tier at a time, and places erased by one order.
const CHUNK: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PurgeId(pub u32);

/// What one tier has done for a purge so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Erasure {
    /// Pages of the namespace taken out of the tree.
    pub pages: u64,
    /// Places overwritten or erased, and read back empty.
    pub verified: u64,
    /// Places whose erasure failed, or which did not read back empty.
    pub failed: u64,
    /// Pages that someone still holds, and places whose erasure has not been answered.
    pub outstanding: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TierErasure {
    pub tier: Tier,
    pub erasure: Erasure,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PurgeState {
    pub id: PurgeId,
    pub namespace: NamespaceId,
    pub up_to: Generation,
    pub tiers: Vec<TierErasure>,
    pub is_done: bool,
}

/// What a step found of the pages it overwrote.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Scrubbed {
    /// Pages that did not read back as zeros.
    pub unclean: Vec<PageId>,
}

/// How far the device is: its last scrub must come after the last step that could write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum DeviceStage {
    Clearing,
    /// Nobody holds anything; what was freed is free once this step has answered.
    Draining(StepId),
    /// The next step scrubs the last of it.
    Due,
    Scrubbing(StepId),
    Done,
}

struct Purge {
    namespace: NamespaceId,
    up_to: Generation,
    device: DeviceStage,
    /// Device pages in trees that went, by the step that scrubs them.
    scrubs: Vec<(Option<StepId>, u64)>,
    /// Host frames still to be swept; `None` until nobody holds any of the namespace's.
    sweep: Option<HashSet<PageId>>,
    tiers: BTreeMap<Tier, Erasure>,
    is_done: bool,
}

struct Order {
    purge: PurgeId,
    tier: Tier,
    places: Vec<PageId>,
}

#[derive(Default)]
pub(super) struct Purges {
    open: BTreeMap<PurgeId, Purge>,
    last: u32,
    orders: BTreeMap<RunId, Order>,
}

impl Purges {
    pub fn erasing(&self) -> usize {
        self.orders.values().map(|order| order.places.len()).sum()
    }

    /// Whether a step must come even if nothing is to be computed.
    pub fn needs_step(&self) -> bool {
        let waits = |purge: &Purge| {
            purge.device == DeviceStage::Due || purge.scrubs.iter().any(|(of, _)| of.is_none())
        };
        self.open.values().any(waits)
    }

    pub fn scrubs_go_with(&mut self, step: StepId) {
        for purge in self.open.values_mut() {
            purge.scrubs.iter_mut().for_each(|(of, _)| {
                of.get_or_insert(step);
            });
            if purge.device == DeviceStage::Due {
                purge.device = DeviceStage::Scrubbing(step);
            }
        }
    }

    /// The pool was made anew and holds nothing of anyone, but its bytes are what they were: the
    /// executor overwrites them as it restarts, and what it cannot vouch for counts as failed.
    pub fn device_was_reset(&mut self) {
        for purge in self.open.values_mut().filter(|purge| purge.device != DeviceStage::Done) {
            let erasure = purge.tiers.entry(Tier::Device).or_default();
            erasure.failed += purge.scrubs.drain(..).map(|(_, pages)| pages).sum::<u64>();
            purge.device = DeviceStage::Due;
        }
    }
}

impl Tiers {
    /// Begins to forget all of `namespace` up to generation `up_to`. From now on nothing of these
    /// generations enters a tier. `advance_purges` does the work.
    pub fn purge(&mut self, namespace: NamespaceId, up_to: Generation) -> PurgeId {
        let floor = self.floors.entry(namespace).or_default();
        *floor = (*floor).max(Generation(up_to.0 + 1));
        self.notes.push(JournalNote::Forget { namespace, up_to });
        self.purges.last += 1;
        let id = PurgeId(self.purges.last);
        let tiers = std::iter::once(Tier::Device).chain(self.lower.keys().copied());
        let purge = Purge {
            namespace,
            up_to,
            device: DeviceStage::Clearing,
            scrubs: Vec::new(),
            sweep: None,
            tiers: tiers.map(|tier| (tier, Erasure::default())).collect(),
            is_done: false,
        };
        self.purges.open.insert(id, purge);
        id
    }

    pub fn is_purging(&self) -> bool {
        self.purges.open.values().any(|purge| !purge.is_done)
    }

    /// Does what can be done now. `running` says how many pages sequences of a namespace up to a
    /// generation hold privately; `begun` is the newest step begun.
    pub fn advance_purges(&mut self, begun: StepId, running: impl Fn(NamespaceId, Generation) -> usize) {
        let ids: Vec<PurgeId> =
            self.purges.open.iter().filter(|(_, purge)| !purge.is_done).map(|(id, _)| *id).collect();
        for id in ids {
            let Some(mut purge) = self.purges.open.remove(&id) else { continue };
            let private = running(purge.namespace, purge.up_to);
            self.advance_device(&mut purge, begun, private);
            self.advance_host(id, &mut purge);
            for tier in [Tier::Nvme, Tier::Object] {
                self.advance_cold(id, tier, &mut purge);
            }
            let is_clear = purge.tiers.values().all(|erasure| erasure.outstanding == 0);
            purge.is_done = is_clear && purge.device == DeviceStage::Done;
            self.purges.open.insert(id, purge);
        }
    }

    fn advance_device(&mut self, purge: &mut Purge, begun: StepId, private: usize) {
        let cleared = self.device.clear_pages(|key| purge.covers(key), CHUNK).len() as u64;
        if cleared > 0 {
            purge.scrubs.push((None, cleared));
        }
        let held = purge.pages_in(&self.device) + private;
        if held == 0 && purge.device == DeviceStage::Clearing {
            purge.device = DeviceStage::Draining(begun);
        }
        if let DeviceStage::Draining(step) = purge.device
            && self.device.has_completed(step)
        {
            purge.device = DeviceStage::Due;
        }
        let erasure = purge.tiers.entry(Tier::Device).or_default();
        erasure.pages += cleared;
        let waiting: u64 = purge.scrubs.iter().map(|(_, pages)| pages).sum();
        erasure.outstanding = held as u64 + waiting;
    }

    fn advance_host(&mut self, id: PurgeId, purge: &mut Purge) {
        let Some(host) = self.lower.get_mut(&Tier::Host) else { return };
        let cleared = host.index.clear_pages(|key| purge.covers(key), CHUNK).len();
        let held = purge.pages_in(&host.index);
        if held == 0 && purge.sweep.is_none() {
            purge.sweep = Some(host.index.free_pages().iter().copied().collect());
        }
        // Frames taken since the snapshot are overwritten by whoever took them.
        let mut chunk: Vec<PageId> = Vec::new();
        let is_sweeping = self.purges.orders.values().any(|o| o.purge == id && o.tier == Tier::Host);
        if let Some(sweep) = &mut purge.sweep
            && !is_sweeping
            && !sweep.is_empty()
        {
            sweep.retain(|&place| host.index.is_free(place));
            chunk = sweep.iter().copied().take(CHUNK).collect();
            chunk.iter().for_each(|place| {
                sweep.remove(place);
            });
            let claimed = host.index.claim(&chunk);
            assert!(claimed, "frames just seen free can be claimed");
        }
        let unswept = purge.sweep.as_ref().map_or(0, HashSet::len);
        self.note_gone(Tier::Host);
        if !chunk.is_empty() {
            let frames = chunk.iter().copied().map(frame).collect();
            self.order_erasure(id, Tier::Host, chunk, ColdWork::ScrubFrames { frames });
        }
        let erasing = self.erasing_in(id, Tier::Host);
        let erasure = purge.tiers.entry(Tier::Host).or_default();
        erasure.pages += cleared as u64;
        erasure.outstanding = (held + unswept + erasing) as u64;
    }

    fn advance_cold(&mut self, id: PurgeId, tier: Tier, purge: &mut Purge) {
        let Some(lower) = self.lower.get_mut(&tier) else { return };
        let slots = lower.index.clear_pages(|key| purge.covers(key), CHUNK);
        let held = purge.pages_in(&lower.index);
        let claimed = lower.index.claim(&slots);
        assert!(claimed, "slots just cleared are free");
        self.note_gone(tier);
        for chunk in slots.chunks(CHUNK) {
            let work = ColdWork::Erase { slots: chunk.iter().copied().map(slot).collect() };
            self.order_erasure(id, tier, chunk.to_vec(), work);
        }
        let erasing = self.erasing_in(id, tier);
        let erasure = purge.tiers.entry(tier).or_default();
        erasure.pages += slots.len() as u64;
        erasure.outstanding = (held + erasing) as u64;
    }

    fn order_erasure(&mut self, purge: PurgeId, tier: Tier, places: Vec<PageId>, work: ColdWork) {
        let id = self.next_run();
        self.in_flight += places.len();
        self.purges.orders.insert(id, Order { purge, tier, places });
        self.orders.push(ColdOrder { ticket: Ticket::new(id, 0), tier, work });
    }

    fn erasing_in(&self, purge: PurgeId, tier: Tier) -> usize {
        let orders = self.purges.orders.values().filter(|o| o.purge == purge && o.tier == tier);
        orders.map(|order| order.places.len()).sum()
    }

    /// Takes the answer to an erasure; false if the ticket is of something else.
    pub(super) fn answer_erasure(&mut self, ticket: Ticket, outcome: ColdOutcome) -> bool {
        let Some(order) = self.purges.orders.remove(&ticket.run()) else { return false };
        self.in_flight -= order.places.len();
        let places = order.places.len() as u64;
        let verified = match outcome {
            ColdOutcome::Erased { probed } => u64::from(probed).min(places),
            _ => 0,
        };
        if let Some(purge) = self.purges.open.get_mut(&order.purge) {
            let erasure = purge.tiers.entry(order.tier).or_default();
            erasure.verified += verified;
            erasure.failed += places - verified;
        }
        if let Some(lower) = self.lower.get_mut(&order.tier) {
            lower.index.free(order.places, StepId(0));
        }
        self.note_gone(order.tier);
        true
    }

    /// A step has overwritten the pages it was told to.
    pub fn scrubbed(&mut self, step: StepId, scrubbed: &Scrubbed) {
        let unclean = scrubbed.unclean.len() as u64;
        for purge in self.purges.open.values_mut() {
            let due: u64 = purge.scrubs.iter().filter(|(of, _)| *of == Some(step)).map(|(_, n)| n).sum();
            purge.scrubs.retain(|(of, _)| *of != Some(step));
            let is_last = purge.device == DeviceStage::Scrubbing(step);
            if is_last {
                purge.device = DeviceStage::Done;
            }
            if due > 0 || is_last {
                let erasure = purge.tiers.entry(Tier::Device).or_default();
                erasure.verified += due.saturating_sub(unclean);
                erasure.failed += unclean;
            }
        }
    }

    /// How far a purge is; a finished one is forgotten by this call.
    pub fn purge_state(&mut self, id: PurgeId) -> Option<PurgeState> {
        let purge = self.purges.open.get(&id)?;
        let tiers = purge.tiers.iter().map(|(&tier, &erasure)| TierErasure { tier, erasure }).collect();
        let (namespace, up_to, is_done) = (purge.namespace, purge.up_to, purge.is_done);
        if is_done {
            self.purges.open.remove(&id);
        }
        Some(PurgeState { id, namespace, up_to, tiers, is_done })
    }

    /// Pages of `namespace` up to a generation in each tier's tree: the negative probe.
    pub fn remaining(&self, namespace: NamespaceId, up_to: Generation) -> Vec<(Tier, usize)> {
        let count =
            |cache: &Cache| cache.pages_of(|key| key.namespace == namespace && key.generation <= up_to);
        let lower = self.lower.values().map(|lower| (lower.tier, count(&lower.index)));
        std::iter::once((Tier::Device, count(&self.device))).chain(lower).collect()
    }
}

impl Purge {
    fn covers(&self, key: &TreeKey) -> bool {
        key.namespace == self.namespace && key.generation <= self.up_to
    }

    fn pages_in(&self, cache: &Cache) -> usize {
        cache.pages_of(|key| self.covers(key))
    }
}
