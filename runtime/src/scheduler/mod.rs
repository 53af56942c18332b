//! The scheduler: a state machine that owns every piece of engine state and takes no lock.
//!
//! ```text
//!   submit ─▶ Waiting ──(pages, a seat)──▶ Running ──(stop, length, abort)──▶ end
//!                ▲  ▲                        │
//!                │  └── Blocked ◀── prefix is being computed by another ── on admission
//!                └──────────── preempted: pages stay in the tree ──┘
//! ```
//!
//! A step is planned from what is known, which may be before the last step has answered; a running
//! sequence therefore counts what is *planned* and what is *applied* apart. Pages leave in two moves,
//! too: freed behind the newest step in flight, usable once that step has answered.
//!
//! Draws are a function of (seed, position), so a preempted sequence forgets the draws in flight and
//! makes them again with the same outcome; nothing has to be saved but its tokens.
//!
//! Limits: one device pool, one model; prefix groups for cascade come with the CUDA executor.

mod admission;
mod apply;
pub(crate) mod driver;
mod faults;
mod planner;
mod promotion;
mod queue;
mod resident;
mod sharing;
mod stream;
mod telling;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use base::{Generation, NamespaceId, NamespaceKey, Nanos, RequestId, SeqId, StepId, Tier};
use kvcache::{
    CacheConfig, EvictionKind, IntegrityError, LowerConfig, PurgeId, PurgeState, SlotRecord, TierCounters,
    TierStats, Tiers, TiersConfig,
};

use crate::executor::ExecutorShape;
use crate::request::{Event, Finish, Refusal};
use crate::stats::EngineStats;
use promotion::Promotions;
pub use promotion::{PrefetchPolicy, UnknownPrefetchPolicy};
use queue::WaitQueue;
use resident::Resident;
use sharing::{Computing, Owner};
pub(crate) use stream::{Stream, Submission};

/// Policy knobs of one replica.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    /// Admitted and not yet ended; the bound of every queue here.
    pub requests_max: usize,
    /// Most tokens of one step (`--max-num-batched-tokens`).
    pub step_tokens: u32,
    /// Most sequences running at once (`--max-num-seqs`).
    pub step_seqs: u32,
    /// Most prompt tokens of one sequence in one step (`--prefill-chunk`).
    pub chunk_tokens: u32,
    /// Share prefixes at all (`--no-enable-prefix-caching` switches it off).
    pub prefix_cache: PrefixCache,
    pub eviction: EvictionKind,
    /// Aim for steps no longer than this while decodes wait; prefill chunks shrink to fit.
    pub step_budget: Duration,
    /// A step in flight for longer than this makes the replica unhealthy.
    pub stall_after: Duration,
    /// Names this replica's pages; from the node's key file, or drawn at start.
    pub namespace_key: NamespaceKey,
    /// Tiers below the device, nearest first.
    pub tiers: Vec<LowerConfig>,
    pub prefetch: PrefetchPolicy,
    /// Page names that may wait for a reader of events; 0 turns events off.
    pub events_max: usize,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            requests_max: 4096,
            step_tokens: 2048,
            step_seqs: 256,
            chunk_tokens: 512,
            prefix_cache: PrefixCache::On,
            eviction: EvictionKind::default(),
            step_budget: Duration::from_millis(200),
            stall_after: Duration::from_secs(120),
            namespace_key: NamespaceKey([0; 32]),
            tiers: Vec::new(),
            prefetch: PrefetchPolicy::default(),
            events_max: 0,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixCache {
    On,
    Off,
}

/// What a purge does with requests that run in the generation it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum PurgeRunning {
    /// They finish; the purge is done when they are.
    #[default]
    Wait,
    /// They fail with [`Refusal::Purged`].
    Cancel,
}

/// Where a request is, so that an abort finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Queued,
    Running(SeqId),
}

/// What a submitted step was to bring for one sequence.
#[derive(Clone, Copy, Debug)]
struct FlightRow {
    seq: SeqId,
    /// Positions whose KV is there once the step has answered.
    covers: u32,
    draws: bool,
}

/// A step in flight.
#[derive(Debug)]
struct Flight {
    id: StepId,
    rows: Vec<FlightRow>,
    tokens: u32,
    since: Nanos,
}

/// All state of one engine.
pub struct Scheduler {
    config: SchedulerConfig,
    shape: ExecutorShape,
    stats: Arc<EngineStats>,
    tiers: Tiers,
    /// Of namespaces that have been purged; all others are in their first.
    generations: HashMap<NamespaceId, Generation>,
    promotions: Promotions,
    running: BTreeMap<SeqId, Resident>,
    queue: WaitQueue,
    computing: Computing,
    places: HashMap<RequestId, Place>,
    flights: VecDeque<Flight>,
    retire: Vec<SeqId>,
    last_step: StepId,
    /// Restores of the steps up to here are in their pages.
    landed: StepId,
    /// The last step that restores.
    restoring: StepId,
    last_seq: SeqId,
    arrivals: u64,
    /// Nanoseconds a prefill token takes, learned from steps.
    token_ns: Option<f64>,
}

impl Scheduler {
    pub fn new(config: SchedulerConfig, shape: ExecutorShape, stats: Arc<EngineStats>) -> Self {
        let tiers = new_tiers(&config, &shape);
        EngineStats::put(&stats.pages_total, u64::from(shape.pages));
        Self {
            config,
            shape,
            stats,
            tiers,
            generations: HashMap::new(),
            promotions: Promotions::default(),
            running: BTreeMap::new(),
            queue: WaitQueue::default(),
            computing: Computing::default(),
            places: HashMap::new(),
            flights: VecDeque::new(),
            retire: Vec::new(),
            last_step: StepId(0),
            landed: StepId(0),
            restoring: StepId(0),
            last_seq: SeqId(0),
            arrivals: 0,
            token_ns: None,
        }
    }

    /// Takes a request that `Engine::submit` has checked and counted.
    pub(crate) fn submit(&mut self, submission: Submission) {
        self.arrivals += 1;
        let now = submission.arrived;
        let mut stream = Stream::new(submission, self.arrivals);
        self.promote(&mut stream, now);
        self.places.insert(stream.id(), Place::Queued);
        self.queue.push(stream);
    }

    /// Ends a request early. Unknown ids (already ended) are ignored.
    pub fn abort(&mut self, id: RequestId) {
        match self.places.get(&id) {
            Some(Place::Queued) => {
                if let Some(stream) = self.queue.remove(id) {
                    self.end(stream, Event::Finished(Finish::Aborted));
                }
            }
            Some(Place::Running(seq)) => self.finish(*seq, Event::Finished(Finish::Aborted)),
            None => {}
        }
    }

    /// Fails everything that is not finished.
    pub fn fail_all(&mut self, why: &Refusal) {
        let running: Vec<SeqId> = self.running.keys().copied().collect();
        for seq in running {
            self.finish(seq, Event::Failed(why.clone()));
        }
        for stream in self.queue.drain() {
            self.end(stream, Event::Failed(why.clone()));
        }
    }

    /// A namespace's key, and the generation it is in.
    pub fn register_namespace(&mut self, id: NamespaceId, key: NamespaceKey, generation: Generation) {
        self.tiers.register_namespace(id, key);
        if generation > Generation(0) {
            self.generations.insert(id, generation);
        }
    }

    pub(super) fn generation(&self, namespace: NamespaceId) -> Generation {
        self.generations.get(&namespace).copied().unwrap_or_default()
    }

    /// Begins to forget a namespace up to generation `old`: it is in a later one from now on, and what
    /// runs in the old one is waited for or cancelled.
    pub fn purge(&mut self, namespace: NamespaceId, old: Generation, running: PurgeRunning) -> PurgeId {
        let next = self.generation(namespace).max(Generation(old.0 + 1));
        self.generations.insert(namespace, next);
        let id = self.tiers.purge(namespace, old);
        if running == PurgeRunning::Cancel {
            let of = |r: &&Resident| r.key.namespace == namespace && r.key.generation <= old;
            let seqs: Vec<SeqId> = self.running.values().filter(of).map(|r| r.seq).collect();
            for seq in seqs {
                self.finish(seq, Event::Failed(Refusal::Purged));
            }
        }
        id
    }

    /// Pages of a namespace up to a generation that are still in a tier: the negative probe.
    pub fn remaining(&self, namespace: NamespaceId, up_to: Generation) -> Vec<(Tier, usize)> {
        self.tiers.remaining(namespace, up_to)
    }

    /// Pages of an earlier run, before anything else; answers with how many are back.
    pub fn reinstate(&mut self, records: Vec<SlotRecord>) -> usize {
        self.tiers.reinstate(records).0
    }

    /// Limits the pages of a namespace in one tier.
    pub fn set_quota(&mut self, namespace: NamespaceId, tier: Tier, pages: Option<usize>) {
        self.tiers.set_quota(namespace, tier, pages);
    }

    /// How each tier stands, and what has travelled.
    pub fn tier_report(&self) -> (Vec<TierStats>, TierCounters) {
        (self.tiers.tier_stats(), self.tiers.counters())
    }

    /// Whether nothing is being copied between tiers or waits to be.
    pub fn is_settled(&self) -> bool {
        self.tiers.is_settled()
    }

    /// Pages of a namespace, by tier.
    pub fn used(&self, namespace: NamespaceId) -> Vec<(Tier, usize)> {
        let used = |tier: Tier| Some((tier, self.tiers.index(tier)?.used(namespace)));
        Tier::ALL.into_iter().filter_map(used).collect()
    }

    /// The trees of a tier as text.
    pub fn dump(&self, tier: Tier) -> Option<String> {
        Some(self.tiers.index(tier)?.dump())
    }

    /// How far a purge is.
    pub fn purge_state(&self, id: PurgeId) -> Option<PurgeState> {
        self.tiers.purge_state(id)
    }

    /// Forgets a purge that has been reported.
    pub fn forget_purge(&mut self, id: PurgeId) {
        self.tiers.forget_purge(id);
    }

    /// Drops every cached page that no sequence uses.
    pub fn clear_cache(&mut self) -> usize {
        self.tiers.clear()
    }

    pub fn is_idle(&self) -> bool {
        self.running.is_empty()
            && self.queue.is_empty()
            && self.flights.is_empty()
            && !self.tiers.has_moves()
            && !self.tiers.is_purging()
    }

    /// Steps planned so far.
    #[cfg(test)]
    pub fn steps(&self) -> u64 {
        self.last_step.0
    }

    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// True if the oldest step in flight is overdue.
    pub fn is_stalled(&self, now: Nanos) -> bool {
        self.flights.front().is_some_and(|f| now.since(f.since) > self.config.stall_after)
    }

    /// The step behind which pages are freed: no later step can have seen them.
    fn fence(&self) -> StepId {
        self.last_step
    }

    /// Tells the client and forgets the request.
    fn end(&mut self, stream: Stream, event: Event) {
        self.places.remove(&stream.id());
        let counter = match &event {
            Event::Finished(Finish::Stop(_)) => &self.stats.finished_stop,
            Event::Finished(Finish::Length) => &self.stats.finished_length,
            Event::Finished(Finish::Aborted) => &self.stats.finished_abort,
            _ => &self.stats.finished_error,
        };
        EngineStats::add(counter, 1);
        EngineStats::sub(&self.stats.in_flight, 1);
        stream.send(event);
    }

    /// Publishes gauges; called once a loop.
    pub fn publish_stats(&self) {
        let cache = self.tiers.device.stats();
        EngineStats::put(&self.stats.running, self.running.len() as u64);
        EngineStats::put(&self.stats.waiting, self.queue.len() as u64);
        EngineStats::put(&self.stats.pages_free, cache.pages_free as u64);
        EngineStats::put(&self.stats.pages_cached, cache.pages_cached as u64);
        EngineStats::put(&self.stats.evicted_pages, cache.counters.evicted_pages);
        self.publish_tier_stats();
    }

    fn publish_tier_stats(&self) {
        let (tiers, c) = self.tier_report();
        for tier in &tiers {
            self.stats.tiers[tier.tier.index()].put(tier);
        }
        EngineStats::put(&self.stats.tier_saved_pages, c.saved_pages);
        EngineStats::put(&self.stats.tier_restored_pages, c.restored_pages);
        EngineStats::put(&self.stats.tier_stored_pages, c.stored_pages);
        EngineStats::put(&self.stats.tier_loaded_pages, c.loaded_pages);
        EngineStats::put(&self.stats.tier_shed_pages, c.shed_pages);
        EngineStats::put(&self.stats.tier_failed_pages, c.failed_pages);
        EngineStats::put(&self.stats.tier_wrong_pages, c.wrong_pages);
    }

    /// The integrity law over the whole engine: every page is in one place, every sequence too.
    pub fn check(&self) -> Result<(), IntegrityError> {
        self.tiers.check()?;
        let private: usize = self.running.values().map(|r| r.private_pages()).sum();
        assert_eq!(
            private,
            self.tiers.device.stats().pages_private,
            "private pages agree with the pool's count"
        );
        assert_eq!(self.places.len(), self.running.len() + self.queue.len(), "each request has one place");
        for (id, resident) in &self.running {
            assert_eq!(self.places.get(&resident.stream.id()), Some(&Place::Running(*id)));
            resident.check(self.shape.page_tokens);
        }
        self.computing.check(|owner| match owner {
            Owner::Sequence(seq) => self.running.contains_key(&seq),
            Owner::Promotion(id) => self.promotions.has(id),
        });
        self.queue.check(|hash| self.computing.has(hash));
        Ok(())
    }
}

fn new_tiers(config: &SchedulerConfig, shape: &ExecutorShape) -> Tiers {
    let device = CacheConfig {
        policy: config.eviction,
        layout: shape.layout,
        events_max: config.events_max,
        seed: u64::from_le_bytes(*config.namespace_key.0.first_chunk().expect("a key has 32 bytes")),
        ..CacheConfig::new(shape.pages, shape.page_tokens)
    };
    let mut tiers = Tiers::new(TiersConfig { lower: config.tiers.clone(), ..TiersConfig::device(device) });
    tiers.register_namespace(NamespaceId(0), config.namespace_key.clone());
    tiers
}
