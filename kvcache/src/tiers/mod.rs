//! The tiers of the KV cache: which page lies where, what is copied when, and what may be read.
//!
//! ```text
//!            scheduler
//!  lease/publish │ fetch, prefetch, offer
//!   ┌────────────▼─────────────┐   moves, part of a step    ┌──────────┐
//!   │ device: Cache            │ ─────────────────────────► │ executor │
//!   │ host:   Cache over frames│                            └──────────┘
//!   │ nvme:   Cache over slots │   orders, by ticket        ┌──────────┐
//!   │ object: Cache over slots │ ─────────────────────────► │ transfer │
//!   └──────────────────────────┘ ◄── done(ticket, outcome)  └──────────┘
//! ```
//!
//! Every tier is a [`Cache`] of its own: the same tree code over places of another kind, so that the
//! comparison of tokens, leaf-first eviction, quotas and the integrity law hold in each of them by
//! construction. One tree with a set of places at each page, as elsewhere, saves four bytes a token and
//! pays with residency rules at every node; here a tier holds whole prefixes, from the root, and that
//! is all there is to know.
//!
//! A place enters its tree when its copy is *ordered*, so nobody orders it twice, and is *ready* when
//! the copy is done. Lookups take ready places only. A copy that fails is cut out again, with all that
//! hangs below it.
//!
//! Moves between device and host belong to a step and run before its work, in order: saves, scrubs,
//! restores. A page may therefore be handed out again while its save is still to come, and a restored
//! page be computed on in the same step. Orders run on other threads, whenever; what they read and
//! write is leased until they answer.
//!
//! Limits: cold tiers are written from and read into host frames, so they need a host tier.

mod arrival;
mod follower;
mod lower;
mod order;
mod purge;
mod recovery;
mod run;
mod settings;
mod telling;
mod travel;

pub use follower::{Follower, Misheard};
pub use order::{
    ColdOrder, ColdOutcome, ColdWork, Fault, JournalNote, Label, PageMove, Seal, SlotRecord, Ticket,
};
pub use purge::{Erasure, PurgeId, PurgeState, Scrubbed, TierErasure};
pub use settings::{LowerConfig, TiersConfig, UnknownWritePolicy, WritePolicy};
pub use telling::TierEvent;
pub use travel::{Fetch, PrefetchEnd, PrefetchId, Reach, TierCounters, TierStats};

use std::collections::{BTreeMap, HashMap};

use base::{Generation, NamespaceId, NamespaceKey, StepId, Tier};

use crate::lease::Lease;
use crate::{Cache, CacheConfig, Departures, IntegrityError, KvChange, TreeKey};
use lower::Lower;
use purge::Purges;
use run::{Run, RunId};

/// All tiers of one replica. See the module's header.
pub struct Tiers {
    /// The device's cache: leases, reservations and publishing are its own business.
    pub device: Cache,
    device_config: CacheConfig,
    lower: BTreeMap<Tier, Lower>,
    runs: BTreeMap<RunId, Run>,
    last_run: u32,
    /// Pages of orders not answered yet; bounded by `orders_max`.
    in_flight: usize,
    orders_max: usize,
    moves: Vec<PageMove>,
    /// Host leases of restores, by the step that reads them; `None` until it is known.
    reading: Vec<(Option<StepId>, Lease)>,
    orders: Vec<ColdOrder>,
    notes: Vec<JournalNote>,
    ended: Vec<PrefetchEnd>,
    /// Per namespace, the generation below which nothing may enter any more.
    floors: HashMap<NamespaceId, Generation>,
    keys: HashMap<NamespaceId, NamespaceKey>,
    purges: Purges,
    /// Events of the lower tiers, and the sequence number of the last event of any.
    told: Vec<(Tier, KvChange)>,
    told_weight: usize,
    sequence: u64,
    /// What a reader of these events believes; held against the trees.
    #[cfg(debug_assertions)]
    follower: Follower,
    counters: TierCounters,
}

impl Tiers {
    pub fn new(config: TiersConfig) -> Self {
        config.assert_sound();
        let device = CacheConfig { departures: Departures::Told, ..config.device };
        let lower = config.lower.iter().map(|of| (of.tier, Lower::new(of, &device)));
        Self {
            lower: lower.collect(),
            device: Cache::new(device.clone()),
            device_config: device,
            runs: BTreeMap::new(),
            last_run: 0,
            in_flight: 0,
            orders_max: config.orders_max,
            moves: Vec::new(),
            reading: Vec::new(),
            orders: Vec::new(),
            notes: Vec::new(),
            ended: Vec::new(),
            floors: HashMap::new(),
            keys: HashMap::new(),
            purges: Purges::default(),
            told: Vec::new(),
            told_weight: 0,
            sequence: 0,
            #[cfg(debug_assertions)]
            follower: Follower::default(),
            counters: TierCounters::default(),
        }
    }

    /// Whether there is any tier but the device's.
    pub fn is_tiered(&self) -> bool {
        !self.lower.is_empty()
    }

    pub fn has(&self, tier: Tier) -> bool {
        tier == Tier::Device || self.lower.contains_key(&tier)
    }

    /// The cache of a tier, for looking.
    pub fn index(&self, tier: Tier) -> Option<&Cache> {
        match tier {
            Tier::Device => Some(&self.device),
            _ => self.lower.get(&tier).map(|lower| &lower.index),
        }
    }

    /// The key that names a namespace's pages, in every tier.
    pub fn register_namespace(&mut self, id: NamespaceId, key: NamespaceKey) {
        self.device.register_namespace(id, key.clone());
        for lower in self.lower.values_mut() {
            lower.index.register_namespace(id, key.clone());
        }
        self.keys.insert(id, key);
    }

    /// Limits the pages of a namespace in one tier; `None` lifts the limit.
    pub fn set_quota(&mut self, namespace: NamespaceId, tier: Tier, pages: Option<usize>) {
        match tier {
            Tier::Device => self.device.set_quota(namespace, pages),
            _ => {
                if let Some(lower) = self.lower.get_mut(&tier) {
                    lower.index.set_quota(namespace, pages);
                }
            }
        }
    }

    /// The time, as [`Cache::tell_time`], for every tier.
    pub fn tell_time(&mut self, hundredths: u32) {
        self.device.tell_time(hundredths);
        self.lower.values_mut().for_each(|lower| lower.index.tell_time(hundredths));
    }

    /// Whether pages under `key` may still enter: a purge closes all generations up to its own.
    pub fn admits(&self, key: &TreeKey) -> bool {
        self.floors.get(&key.namespace).is_none_or(|floor| key.generation >= *floor)
    }

    /// Drops every page that nobody holds, in every tier; answers with how many.
    pub fn clear(&mut self) -> usize {
        let device = self.device.clear_pages(|_| true, usize::MAX).len();
        let tiers: Vec<Tier> = self.lower.keys().copied().collect();
        let below = tiers.into_iter().map(|tier| {
            let lower = self.lower.get_mut(&tier).expect("just listed");
            let dropped = lower.index.clear_pages(|_| true, usize::MAX).len();
            self.note_gone(tier);
            dropped
        });
        device + below.sum::<usize>()
    }

    /// A step failed and what it wrote is unknown: the device starts empty. Host frames that a step
    /// was to fill are dropped; what lies in other tiers was there before and stays.
    pub fn reset_device(&mut self) {
        let old = std::mem::replace(&mut self.device, Cache::new(self.device_config.clone()));
        self.device.succeed(&old);
        for (id, key) in &self.keys {
            self.device.register_namespace(*id, key.clone());
        }
        self.moves.clear();
        for (_, lease) in std::mem::take(&mut self.reading) {
            self.give_back(Tier::Host, lease);
        }
        let saves: Vec<RunId> =
            self.runs.iter().filter(|(_, run)| run.source.is_none()).map(|(id, _)| *id).collect();
        for id in saves {
            if let Some(run) = self.runs.get_mut(&id) {
                run.fail_all(Fault::Unavailable);
            }
            self.finish(id);
        }
        self.purges.device_was_reset();
        self.lose_events();
    }

    pub(super) fn give_back(&mut self, tier: Tier, lease: Lease) {
        match self.lower.get_mut(&tier) {
            Some(lower) => {
                lower.index.release(lease, StepId(0));
                if lower.has_doomed() {
                    self.note_gone(tier);
                }
            }
            None => self.device.release(lease, StepId(0)),
        }
    }

    /// The integrity law, tier by tier, and that every unanswered page is on one run's account.
    pub fn check(&self) -> Result<(), IntegrityError> {
        self.device.check()?;
        for lower in self.lower.values() {
            lower.check()?;
        }
        let waiting: usize = self.runs.values().filter(|run| run.source.is_some()).map(|run| run.left).sum();
        if waiting != self.in_flight {
            let (book, counted) = (self.in_flight, waiting);
            return Err(IntegrityError::Tally { what: "pages in flight", book, counted });
        }
        for run in self.runs.values() {
            let lower = self.lower.get(&run.target).expect("a run's tier exists");
            lower.index.check_lease(&run.to)?;
        }
        Ok(())
    }
}
