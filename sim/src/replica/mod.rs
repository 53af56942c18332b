//! A replica as its clients see it: it queues, computes in steps, keeps pages, tells of them, and refuses.
//!
//! Pages are those of the real `kvcache`: its radix trees, leases, eviction and names. What is simulated is
//! the arithmetic, whose time comes from a [`StepModel`], and the scheduler around it, which does what the
//! product's does: decodes first, prefill in chunks, whole prompts admitted or none, the newest preempted when
//! pages run out, and a request whose next page another is computing waits for it.
//!
//! ```text
//!  submit ─▶ waiting ──(pages, a seat)──▶ running ─── step ─── step ─── finished
//!             ▲    ▲                         │           └─ publish whole pages ─▶ stream ─▶ followers
//!             │    └ its next page is being computed by another
//!             └──────── preempted
//! ```
//!
//! It does nothing by itself: the fleet calls `plan` and, when that much time has passed, `finish`.
//!
//! Limits: one device tier, one model, no speculation, no overlap of planning and execution (a fitted model
//! contains it).

mod batch;
mod seq;
mod stream;
mod wire;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use base::{AdapterId, Generation, ModelDigest, NamespaceId, NamespaceKey, Nanos, StepId, TokenId};
use kvcache::{Cache, CacheConfig, EvictionKind, IntegrityError, TreeKey};

use crate::model::StepModel;
use crate::trace::Segment;
use seq::Seq;
pub use seq::{Progress, Ticket};
pub use stream::Stream;
pub use wire::{Batch, Change, Load, Message, Owner, Position, Ready, Run};

/// One replica's size and speed.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplicaConfig {
    pub pages: u32,
    pub page_tokens: u32,
    /// Most tokens of one step.
    pub step_tokens: u32,
    /// Most sequences that run at once.
    pub step_seqs: usize,
    /// Most prompt tokens of one sequence in one step.
    pub chunk_tokens: u32,
    /// Prefill shrinks so that a step with decodes in it takes no longer than this.
    pub step_budget: Duration,
    /// Requests admitted and not ended; the next is refused.
    pub requests_max: usize,
    /// Batches of events that are kept for those who come back.
    pub log_batches: usize,
    pub model: StepModel,
}

impl ReplicaConfig {
    /// One H200 with an 8-billion-parameter model: 1,048,576 tokens of KV in pages of 64.
    pub fn h200_8b() -> Self {
        Self {
            pages: 16_384,
            page_tokens: 64,
            step_tokens: 8_192,
            step_seqs: 256,
            chunk_tokens: 2_048,
            step_budget: Duration::from_millis(60),
            requests_max: 1_024,
            log_batches: 4_096,
            model: StepModel::profile("h200-8b").expect("it is listed"),
        }
    }

    /// Small enough that eviction, preemption and full queues happen within a hundred requests.
    pub fn small() -> Self {
        Self {
            pages: 160,
            page_tokens: 16,
            step_tokens: 256,
            step_seqs: 8,
            chunk_tokens: 96,
            requests_max: 24,
            log_batches: 64,
            ..Self::h200_8b()
        }
    }
}

/// The model of every replica of a pool, and the layout of its pages.
pub const MODEL: ModelDigest = ModelDigest([7; 32]);
/// Of every namespace's chain: replicas and routers of one pool share keys.
pub fn namespace_key(namespace: NamespaceId) -> NamespaceKey {
    let mut key = [0x5a; 32];
    key[..8].copy_from_slice(&namespace.0.to_le_bytes());
    NamespaceKey(key)
}

/// One request as a router hands it over.
#[derive(Clone, Debug)]
pub struct Submission {
    pub ticket: Ticket,
    pub namespace: NamespaceId,
    /// Of the names. Where the replica is at another generation by now, it names the prompt itself.
    pub generation: Generation,
    pub tokens: Arc<[TokenId]>,
    /// Of the prompt's whole pages.
    pub names: Arc<[u64]>,
    pub output: Segment,
}

/// Why a replica does not take a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    #[error("the queue is full")]
    Full,
    #[error("draining")]
    Draining,
    #[error("the request can never fit")]
    TooLong,
}

impl Refusal {
    pub fn code(self) -> &'static str {
        match self {
            Refusal::Full => "replica_full",
            Refusal::Draining => "replica_draining",
            Refusal::TooLong => "too_long",
        }
    }

    pub fn status(self) -> u16 {
        match self {
            Refusal::Full => 429,
            Refusal::Draining => 503,
            Refusal::TooLong => 400,
        }
    }
}

/// What a step brought.
#[derive(Debug, Default)]
pub struct StepEnd {
    pub progress: Vec<(Ticket, Progress)>,
    /// What followers hear.
    pub batch: Option<Arc<Batch>>,
}

/// Counters since the process started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    pub query_tokens: u64,
    pub hit_tokens: u64,
    pub computed_tokens: u64,
    pub generated_tokens: u64,
    pub steps: u64,
    pub step_ns: u64,
    pub preemptions: u64,
    pub finished: u64,
}

/// See the module's header.
pub struct Replica {
    pub config: ReplicaConfig,
    cache: Cache,
    pub stream: Stream,
    waiting: VecDeque<Seq>,
    running: Vec<Seq>,
    /// Pages being computed, by name, and who computes them. Looked up only: its order decides nothing.
    computing: HashMap<u64, Ticket>,
    /// The first generation of a namespace that is still good.
    floors: HashMap<NamespaceId, Generation>,
    /// Pages of a purged generation are still leased.
    is_unswept: bool,
    step: Option<batch::Step>,
    last_step: StepId,
    pub counters: Counters,
    ready: Ready,
    /// Step times are multiplied by this: a card that throttles.
    pub slowness: f64,
    /// Takes nothing, as if its queue were full.
    pub queue_is_closed: bool,
}

impl Replica {
    pub fn new(config: ReplicaConfig, incarnation: u64) -> Self {
        let cache = Cache::new(CacheConfig {
            events_max: config.pages as usize * 4,
            policy: EvictionKind::default(),
            ..CacheConfig::new(config.pages, config.page_tokens)
        });
        Self {
            stream: Stream::new(incarnation, config.log_batches),
            config,
            cache,
            waiting: VecDeque::new(),
            running: Vec::new(),
            computing: HashMap::new(),
            floors: HashMap::new(),
            is_unswept: false,
            step: None,
            last_step: StepId(0),
            counters: Counters::default(),
            ready: Ready::Ready,
            slowness: 1.0,
            queue_is_closed: false,
        }
    }

    /// The process that comes after this one on the same machine, with its pages, as tiers that survive a
    /// restart would give them back. All requests are gone.
    pub fn warm_restart(mut self, incarnation: u64) -> Self {
        self.abandon_all();
        let known: Vec<Run> = self.snapshot();
        let mut next = Self { cache: self.cache, ..Self::new(self.config, incarnation) };
        next.last_step = self.last_step;
        next.floors = self.floors;
        next.stream.adopt(&known);
        next
    }

    fn abandon_all(&mut self) {
        self.step = None;
        let gone: Vec<Seq> = self.waiting.drain(..).chain(std::mem::take(&mut self.running)).collect();
        gone.into_iter().for_each(|seq| self.give_back(seq));
        self.cache.complete(self.last_step);
        self.tell(Nanos(0));
    }

    /// Takes a request or says why not.
    pub fn submit(&mut self, submission: Submission) -> Result<(), Refusal> {
        if self.ready == Ready::Draining {
            return Err(Refusal::Draining);
        }
        if self.queue_is_closed || self.in_flight() >= self.config.requests_max {
            return Err(Refusal::Full);
        }
        let longest = submission.tokens.len() as u64 + u64::from(submission.output.tokens);
        if submission.tokens.is_empty() || longest > u64::from(self.config.pages * self.config.page_tokens) {
            return Err(Refusal::TooLong);
        }
        let seq = Seq::new(submission, self.config.page_tokens);
        self.waiting.push_back(seq);
        Ok(())
    }

    /// Forgets a request whose client is gone.
    pub fn cancel(&mut self, ticket: Ticket) {
        if let Some(at) = self.waiting.iter().position(|seq| seq.ticket() == ticket) {
            self.waiting.remove(at);
        } else if let Some(at) = self.running.iter().position(|seq| seq.ticket() == ticket) {
            let seq = self.running.remove(at);
            self.give_back(seq);
        }
    }

    /// Takes nothing new from now on.
    pub fn drain(&mut self) {
        self.ready = Ready::Draining;
    }

    /// Forgets what `namespace` has of generations up to `up_to`; answers with what followers hear.
    pub fn purge(&mut self, namespace: NamespaceId, up_to: Generation, now: Nanos) -> Option<Arc<Batch>> {
        let floor = Generation(up_to.0 + 1);
        if self.floor(namespace) >= floor {
            return None;
        }
        self.floors.insert(namespace, floor);
        // What runs still leases its pages: they go when it ends, and nobody finds them meanwhile, because
        // no key of theirs can be formed.
        self.is_unswept = true;
        self.sweep();
        self.tell_of(Some((namespace, up_to)), now)
    }

    pub fn floor(&self, namespace: NamespaceId) -> Generation {
        self.floors.get(&namespace).copied().unwrap_or_default()
    }

    fn key(&self, namespace: NamespaceId, generation: Generation) -> TreeKey {
        TreeKey { namespace, generation, model: MODEL, adapter: AdapterId(0), salt: Vec::new() }
    }

    /// What followers hear of the cache's last changes.
    pub(super) fn tell(&mut self, now: Nanos) -> Option<Arc<Batch>> {
        self.tell_of(None, now)
    }

    fn tell_of(&mut self, purged: Option<(NamespaceId, Generation)>, now: Nanos) -> Option<Arc<Batch>> {
        let events = self.cache.drain_events();
        let load = self.load();
        self.stream.record(events, purged, load, now)
    }

    /// All that are here.
    pub fn tickets(&self) -> impl Iterator<Item = Ticket> {
        self.waiting.iter().chain(&self.running).map(Seq::ticket)
    }

    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub fn in_flight(&self) -> usize {
        self.waiting.len() + self.running.len()
    }

    pub fn is_idle(&self) -> bool {
        self.in_flight() == 0
    }

    pub fn ready(&self) -> Ready {
        self.ready
    }

    pub fn load(&self) -> Load {
        let stats = self.cache.stats();
        Load {
            ready: self.ready,
            in_flight: self.in_flight() as u64,
            running: self.running.len() as u64,
            waiting: self.waiting.len() as u64,
            in_flight_max: if self.queue_is_closed { 0 } else { self.config.requests_max as u64 },
            pages_total: stats.pages_total as u64,
            pages_free: stats.pages_free as u64,
            pages_cached: stats.pages_cached as u64,
            counters: self.counters,
        }
    }

    /// All that is held now, parents first.
    pub fn snapshot(&self) -> Vec<Run> {
        let floor = |run: &Run| run.owner.generation >= self.floor(run.owner.namespace);
        self.cache.snapshot().iter().map(Run::of).filter(floor).collect()
    }

    /// What a follower hears first, from `resume` on if that can be served.
    pub fn follow(&self, resume: Option<Position>) -> Vec<Message> {
        self.stream.follow(resume, || self.snapshot())
    }

    /// The integrity law of the cache and of what is told of it.
    pub fn check(&self) -> Result<(), IntegrityError> {
        self.cache.check()?;
        self.running
            .iter()
            .filter_map(|seq| seq.lease.as_ref())
            .try_for_each(|lease| self.cache.check_lease(lease))
    }

    pub fn names(&self, namespace: NamespaceId, generation: Generation, tokens: &[TokenId]) -> Vec<u64> {
        let names = self.cache.names(&self.key(namespace, generation), tokens).unwrap_or_default();
        names.iter().map(|name| name.low64()).collect()
    }

    /// Makes a namespace's pages nameable.
    pub fn register(&mut self, namespace: NamespaceId) {
        self.cache.register_namespace(namespace, namespace_key(namespace));
    }
}
