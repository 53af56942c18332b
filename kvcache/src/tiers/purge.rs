//! A purge: nothing of a namespace up to a generation stays, in any tier, and each tier says what it did.
//!
//! ```text
//!   floor raised ─► trees cleared ─► places overwritten or erased ─► read back ─► done
//!                      ▲      │ still leased: a request runs, a copy is on its way
//!                      └──────┘ looked at again whenever something has ended
//! ```
//!
//! Raising the floor comes first: from then on nothing of an old generation can enter, so what is
//! cleared cannot come back. Device pages are overwritten by the next step and read back, as all pages are
//! that become free. Of frames and slots each tier remembers whose bytes may lie there, since a copy was
//! ordered and until another has overwritten it whole or it was erased: a page evicted long ago, a copy that
//! failed half-way and an erasure that failed are all found by it. When nobody holds anything of the
//! namespace any more, those places are swept; such a set only shrinks.
//!
//! Nobody is made to wait: a purge advances between steps, a chunk at a time, with few erasures open, and
//! looks at the nodes of its own trees only.
//!
//! Limits: what an earlier run left in slots that its index no longer names is not known here; the tier then
//! says that its past is not known.

use std::collections::{BTreeMap, BTreeSet};

use base::{Generation, NamespaceId, PageId, StepId, Tier};

use super::lower::{frame, slot};
use super::order::{ColdOrder, ColdOutcome, ColdWork, JournalNote, Ticket};
use super::{RunId, Tiers};
use crate::{Cache, TreeKey};

/// Pages taken out of a tier at a time, and places erased by one order.
const CHUNK: usize = 64;
/// Erasures of one purge in one tier that may be open.
const OPEN_MAX: usize = 4;
/// Places looked at in one go.
const LOOK_MAX: usize = 4096;

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
    /// Pages that someone still holds, and places not yet erased.
    pub outstanding: u64,
    /// An earlier run may have left more than this one can name.
    pub has_unknown_past: bool,
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
    /// Places still to be swept, by tier; absent until nobody holds any page of the namespace there.
    sweeps: BTreeMap<Tier, Vec<PageId>>,
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
    /// Pages that steps in flight overwrite.
    scrubbing: Vec<(StepId, Vec<PageId>)>,
    /// Pages that did not read back as zeros when they were last overwritten.
    unclean: BTreeSet<PageId>,
    /// The device's pool was made anew while a purge was open.
    rescrub: bool,
}

impl Purges {
    /// Whether a step must come even if nothing is to be computed.
    pub fn needs_step(&self) -> bool {
        let waits = |purge: &Purge| {
            purge.device == DeviceStage::Due || purge.scrubs.iter().any(|(of, _)| of.is_none())
        };
        self.rescrub || self.open.values().any(waits)
    }

    /// Every page of the device is to be overwritten and read back by the next step.
    pub fn take_rescrub(&mut self) -> bool {
        std::mem::take(&mut self.rescrub)
    }

    /// `step` overwrites `pages`.
    pub fn scrubs_go_with(&mut self, step: StepId, pages: Vec<PageId>) {
        if !pages.is_empty() {
            self.scrubbing.push((step, pages));
        }
        for purge in self.open.values_mut() {
            purge.scrubs.iter_mut().for_each(|(of, _)| {
                of.get_or_insert(step);
            });
            if purge.device == DeviceStage::Due {
                purge.device = DeviceStage::Scrubbing(step);
            }
        }
    }

    /// The pool was made anew and holds nothing of anyone; what its bytes are must be looked at again.
    pub fn device_was_reset(&mut self) {
        self.scrubbing.clear();
        for purge in self.open.values_mut().filter(|purge| !purge.is_done) {
            purge.scrubs.iter_mut().for_each(|(of, _)| *of = None);
            purge.device = DeviceStage::Clearing;
            self.rescrub = true;
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
            sweeps: BTreeMap::new(),
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
            for tier in [Tier::Host, Tier::Nvme, Tier::Object] {
                self.advance_lower(id, tier, &mut purge);
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

    fn advance_lower(&mut self, id: PurgeId, tier: Tier, purge: &mut Purge) {
        let open = self.erasing_in(id, tier);
        let Some(lower) = self.lower.get_mut(&tier) else { return };
        let cleared = lower.index.clear_pages(|key| purge.covers(key), CHUNK).len();
        let held = purge.pages_in(&lower.index);
        if held == 0 {
            purge.sweeps.entry(tier).or_insert_with(|| lower.soiled(purge.namespace, purge.up_to));
        }
        let has_unknown_past = lower.has_past;
        let chunk = if open.0 < OPEN_MAX { self.next_to_sweep(tier, purge) } else { Vec::new() };
        self.note_gone(tier);
        let erasing = open.1 + chunk.len();
        if !chunk.is_empty() {
            let work = match tier {
                Tier::Host => ColdWork::ScrubFrames { frames: chunk.iter().copied().map(frame).collect() },
                _ => ColdWork::Erase { slots: chunk.iter().copied().map(slot).collect() },
            };
            self.order_erasure(id, tier, chunk, work);
        }
        let unswept = purge.sweeps.get(&tier).map_or(0, Vec::len);
        let erasure = purge.tiers.entry(tier).or_default();
        erasure.pages += cleared as u64;
        erasure.outstanding = (held + unswept + erasing) as u64;
        erasure.has_unknown_past = has_unknown_past;
    }

    /// The next places to erase, claimed. A place that somebody has taken meanwhile is asked for again:
    /// it is overwritten whole, or comes back as it was.
    fn next_to_sweep(&mut self, tier: Tier, purge: &mut Purge) -> Vec<PageId> {
        let (Some(sweep), Some(lower)) = (purge.sweeps.get_mut(&tier), self.lower.get_mut(&tier)) else {
            return Vec::new();
        };
        let (mut chunk, mut later) = (Vec::new(), Vec::new());
        for _ in 0..LOOK_MAX {
            if chunk.len() == CHUNK {
                break;
            }
            let Some(place) = sweep.pop() else { break };
            match (lower.is_soiled(place, purge.namespace, purge.up_to), lower.index.is_free(place)) {
                (false, _) => {}
                (true, true) => chunk.push(place),
                (true, false) => later.push(place),
            }
        }
        sweep.extend(later);
        let claimed = lower.index.claim(&chunk);
        assert!(claimed, "places just seen free can be claimed");
        chunk
    }

    fn order_erasure(&mut self, purge: PurgeId, tier: Tier, places: Vec<PageId>, work: ColdWork) {
        let id = self.next_run();
        self.purges.orders.insert(id, Order { purge, tier, places });
        self.orders.push(ColdOrder { ticket: Ticket::new(id, 0), tier, work });
    }

    /// Open erasures of a purge in a tier, and their places.
    fn erasing_in(&self, purge: PurgeId, tier: Tier) -> (usize, usize) {
        let orders = self.purges.orders.values().filter(|o| o.purge == purge && o.tier == tier);
        orders.fold((0, 0), |(open, places), order| (open + 1, places + order.places.len()))
    }

    /// Takes the answer to an erasure; false if the ticket is of something else.
    pub(super) fn answer_erasure(&mut self, ticket: Ticket, outcome: ColdOutcome) -> bool {
        let Some(order) = self.purges.orders.remove(&ticket.run()) else { return false };
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
            // Of an erasure that failed in part it is not known where: its places stay soiled.
            if verified == places {
                order.places.iter().for_each(|&place| lower.clean(place));
            }
            lower.index.free(order.places, StepId(0));
        }
        self.note_gone(order.tier);
        true
    }

    /// A step has overwritten the pages it was told to.
    pub fn scrubbed(&mut self, step: StepId, scrubbed: &Scrubbed) {
        let purges = &mut self.purges;
        let (done, open) = std::mem::take(&mut purges.scrubbing).into_iter().partition(|(of, _)| *of <= step);
        purges.scrubbing = open;
        for page in Vec::into_iter(done).flat_map(|(_, pages): (StepId, Vec<PageId>)| pages) {
            purges.unclean.remove(&page);
        }
        purges.unclean.extend(&scrubbed.unclean);
        let unclean = purges.unclean.len() as u64;
        for purge in purges.open.values_mut() {
            let due: u64 = purge.scrubs.iter().filter(|(of, _)| *of == Some(step)).map(|(_, n)| n).sum();
            purge.scrubs.retain(|(of, _)| *of != Some(step));
            let was_open = purge.device != DeviceStage::Done;
            if purge.device == DeviceStage::Scrubbing(step) {
                purge.device = DeviceStage::Done;
            }
            if was_open {
                let erasure = purge.tiers.entry(Tier::Device).or_default();
                erasure.verified += due.saturating_sub(scrubbed.unclean.len() as u64);
                // Whosever they are: while such pages exist, nobody's are known to be gone.
                erasure.failed = unclean;
            }
        }
    }

    /// Forgets a purge that has been reported.
    pub fn forget_purge(&mut self, id: PurgeId) {
        self.purges.open.remove(&id);
    }

    /// How far a purge is.
    pub fn purge_state(&self, id: PurgeId) -> Option<PurgeState> {
        let purge = self.purges.open.get(&id)?;
        let tiers = purge.tiers.iter().map(|(&tier, &erasure)| TierErasure { tier, erasure }).collect();
        let (namespace, up_to, is_done) = (purge.namespace, purge.up_to, purge.is_done);
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
