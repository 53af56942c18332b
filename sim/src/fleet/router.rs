//! A router process: the product's state machines, wired as its proxy wires them.
//!
//! ```text
//!  Stream ─▶ source::Follower ─▶ index ─┐
//!              └ load ─▶ fleet ─────────┤
//!  Ask ─▶ names ─▶ admission ─▶ decide ─┴▶ breakers, book ─▶ Submit
//!  Heard, Refused, NoConnection, Reset ─▶ book, breakers, admission, retry ─▶ Begun, Ended
//! ```
//!
//! What is the simulator's own here is only the wiring (this file, `serve` and `hear`); each judgement is made by
//! the code that serves. Limits: text and tokens are given, so nothing of `naming` runs; one pool.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base::{Generation, NamespaceId, Nanos, Tier};
use router::admission::{Admission, AdmissionConfig, Capacity, ClassPolicy, QueueLimits, Rest, Work};
use router::book::{Book, BookLimits, RouterId};
use router::breaker::{BreakerConfig, Breakers};
use router::decide::{Heat, Policy, View};
use router::fleet::{Fleet, FleetLimits, Rates, Seating};
use router::index::{Index, IndexConfig, Matches, Scope};
use router::retry::{RetryBudget, RetryConfig};
use router::source::State;
use router::{Seat, SeatSet};

use super::hear::Link;
use super::message::{Node, Try, Word};
use super::serve::Flight;
use crate::replica::Ticket;
use crate::trace::Trace;

/// A bug put in on purpose, to see that the laws find it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Plant {
    #[default]
    None,
    /// Now and then an answer's end is told twice.
    AnswersTwice,
    /// Requests of a replica that died are forgotten.
    ForgetsTheDead,
    /// Readiness is not looked at.
    RoutesToTheDead,
    /// Missing numbers are not noticed.
    BelievesGaps,
    /// A purge changes nothing.
    KeepsPurged,
    /// A request that ended keeps its place in the book.
    LeaksPlaces,
}

/// One router.
#[derive(Clone, Debug, PartialEq)]
pub struct RouterConfig {
    pub policy: Policy,
    /// How long admitted work may take in the replicas; `None` admits everything.
    pub admit_within: Option<Duration>,
    /// Requests that may wait.
    pub queue_max: usize,
    /// A decode token's work in prefill tokens.
    pub output_work: u64,
    pub gossip_every: Duration,
    pub tick_every: Duration,
    /// A stream that stands still for so long is broken.
    pub idle_max: Duration,
    pub plant: Plant,
}

impl RouterConfig {
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            admit_within: None,
            queue_max: 4_096,
            output_work: 5,
            gossip_every: Duration::from_millis(50),
            tick_every: Duration::from_millis(20),
            idle_max: Duration::from_secs(10),
            plant: Plant::None,
        }
    }
}

/// What all processes of a run know of it.
pub struct Facts {
    pub trace: Arc<Trace>,
    pub page_tokens: u32,
    pub replicas: usize,
    pub routers: usize,
    pub seed: u64,
}

impl Facts {
    pub fn namespace(&self, tenant: u16) -> NamespaceId {
        NamespaceId(u64::from(tenant) + 1)
    }

    pub fn namespace_name(&self, namespace: NamespaceId) -> &str {
        &self.trace.tenants[namespace.0 as usize - 1]
    }
}

/// A request was given to a replica.
#[derive(Clone, Debug)]
pub struct Placed {
    pub of: Try,
    pub seat: Seat,
    pub namespace: NamespaceId,
    pub generation: Generation,
    pub names: Arc<[u64]>,
    /// What the index said of the prompt, for every seat.
    pub held: Vec<u32>,
}

/// What a router does in answer to a word.
#[derive(Default)]
pub struct Out {
    pub words: Vec<(Node, Word)>,
    pub placed: Vec<Placed>,
}

impl Out {
    pub fn say(&mut self, to: Node, word: Word) {
        self.words.push((to, word));
    }
}

/// See the module's header.
pub struct RouterNode {
    pub at: usize,
    pub epoch: u32,
    pub config: RouterConfig,
    pub index: Index,
    pub links: Vec<Link>,
    pub fleet: Fleet,
    pub book: Book,
    pub admission: Admission,
    pub breakers: Breakers,
    pub retries: RetryBudget,
    pub(super) heat: Heat,
    pub(super) flights: BTreeMap<usize, Flight>,
    /// Replicas whose connections broke, until they are heard of again.
    pub(super) unreachable: SeatSet,
    pub(super) tickets: BTreeMap<Ticket, usize>,
    /// The first generation of each namespace that is still good.
    pub(super) floors: BTreeMap<NamespaceId, Generation>,
    pub(super) sessions: BTreeMap<u64, Seat>,
    pub(super) placed: u64,
    pub(super) last_ticket: u64,
    pub(super) output_mean: f64,
    pub(super) views: Vec<View>,
    pub(super) matches: Matches,
    gossip_sequence: u64,
    gossip_at: Nanos,
    pub retried: u64,
}

impl RouterNode {
    pub fn new(
        at: usize,
        epoch: u32,
        config: RouterConfig,
        facts: &Facts,
        floors: BTreeMap<NamespaceId, Generation>,
        now: Nanos,
    ) -> Self {
        let mut fleet = Fleet::new(FleetLimits::default(), Rates::default());
        let seats: SeatSet = (0..facts.replicas)
            .map(|_| {
                fleet
                    .join(Seating { block_tokens: facts.page_tokens, ..Seating::default() }, now)
                    .expect("a pool fits into its seats")
            })
            .collect();
        let mut breakers =
            Breakers::new(BreakerConfig::default(), facts.seed ^ at as u64).expect("the default is sound");
        breakers.set_members(now, seats);
        let admission =
            Admission::new(admission(&config), capacity(&config, &fleet)).expect("these limits are sound");
        Self {
            at,
            epoch,
            index: Index::new(IndexConfig::default()),
            links: seats.iter().map(|seat| Link::new(seat, at, epoch)).collect(),
            fleet,
            book: Book::new(BookLimits::default()),
            admission,
            breakers,
            retries: RetryBudget::new(RetryConfig::default()),
            heat: Heat::default(),
            flights: BTreeMap::new(),
            unreachable: SeatSet::EMPTY,
            tickets: BTreeMap::new(),
            floors,
            sessions: BTreeMap::new(),
            placed: 0,
            last_ticket: 0,
            output_mean: 128.0,
            views: Vec::new(),
            matches: Matches::default(),
            gossip_sequence: 0,
            gossip_at: now,
            retried: 0,
            config,
        }
    }

    /// Takes one word.
    pub fn hear(&mut self, now: Nanos, from: Node, word: Word, facts: &Facts, out: &mut Out) {
        match word {
            Word::Ask { of, asked } => self.ask(now, of, asked, facts, out),
            Word::Hangup { of } => self.hang_up(now, of, facts, out),
            Word::Heard { items, .. } => self.progress(now, items, facts, out),
            Word::Refused { ticket, refusal } => self.refused(now, ticket, refusal, facts, out),
            Word::NoConnection { replica, ticket } => self.no_connection(now, replica, ticket, facts, out),
            Word::Reset { peer: Node::Replica(replica), tickets, .. } => {
                self.reset(now, replica, &tickets, facts, out)
            }
            Word::Stream { replica, subscription, message } => {
                self.stream(now, replica, subscription, message, facts)
            }
            Word::Gossip(gossip) => {
                // More routers than the book knows are none here.
                let _ = self.book.merge(*gossip, now);
            }
            Word::Purge { namespace, up_to } => self.purge(namespace, up_to, facts),
            Word::Tick => self.tick(now, facts, out),
            other => unreachable!("{} from {from:?} is not for a router", other.name()),
        }
    }

    fn tick(&mut self, now: Nanos, facts: &Facts, out: &mut Out) {
        self.follow_all(now, out);
        self.give_up_silent(now, facts, out);
        self.book.expire(now);
        self.admission.set_capacity(capacity(&self.config, &self.fleet));
        self.settle(now, facts, out);
        if facts.routers > 1 && now >= self.gossip_at {
            self.gossip_at = now.plus(self.config.gossip_every);
            self.gossip_sequence += 1;
            let id = RouterId((self.at as u64) << 32 | u64::from(self.epoch));
            let gossip = self.book.gossip(id, self.gossip_sequence, now);
            for other in (0..facts.routers).filter(|other| *other != self.at) {
                out.say(Node::Router(other), Word::Gossip(Box::new(gossip.clone())));
            }
        }
    }

    fn purge(&mut self, namespace: NamespaceId, up_to: Generation, facts: &Facts) {
        if self.config.plant == Plant::KeepsPurged {
            return;
        }
        let floor = self.floors.entry(namespace).or_default();
        *floor = (*floor).max(Generation(up_to.0 + 1));
        for link in &self.links {
            self.index.purge(link.seat, facts.namespace_name(namespace), up_to);
        }
    }

    pub fn floor(&self, namespace: NamespaceId) -> Generation {
        self.floors.get(&namespace).copied().unwrap_or_default()
    }

    /// Blocks of `names` that the index says `seat` holds.
    pub fn lookup(
        &mut self,
        facts: &Facts,
        namespace: NamespaceId,
        generation: Generation,
        names: &[u64],
    ) -> Vec<u32> {
        let scope = Scope::namespace(facts.namespace_name(namespace), generation);
        let seats: SeatSet = self.links.iter().map(|link| link.seat).collect();
        self.index.lookup(&scope, names, seats, &mut self.matches);
        self.links.iter().map(|link| self.matches.held(link.seat).in_tier(Tier::Device)).collect()
    }

    pub fn state(&self, replica: usize) -> State {
        self.links[replica].follower.state()
    }

    /// Requests that have not ended here.
    pub fn open(&self) -> usize {
        self.flights.len()
    }

    pub fn check(&self) -> Result<(), String> {
        self.book.check()?;
        self.fleet.check()?;
        self.breakers.check();
        let admitted = self.flights.values().filter(|flight| flight.is_admitted()).count();
        match self.admission.requests_in_flight() {
            known if known == admitted => Ok(()),
            known => Err(format!("admission has {known} requests in flight, the router {admitted}")),
        }
    }
}

fn admission(config: &RouterConfig) -> AdmissionConfig {
    let class = |floor_permille, weight, shed_at_permille| ClassPolicy {
        floor_permille,
        weight,
        shed_at_permille,
        wait_max: Duration::from_secs(60),
    };
    AdmissionConfig {
        classes: [class(300, 8, 1000), class(200, 4, 900), class(50, 1, 700)],
        rest: Rest::ByOrder,
        queue: QueueLimits {
            entries_max: config.queue_max,
            bytes_max: 1 << 30,
            tenant_entries_max: config.queue_max,
            tenant_bytes_max: 1 << 30,
            tenants_max: 1 << 16,
        },
        work_max: Work(1 << 24),
        in_flight_max: 1 << 20,
    }
}

/// What the ready replicas may hold at once.
fn capacity(config: &RouterConfig, fleet: &Fleet) -> Capacity {
    let Some(within) = config.admit_within else {
        return Capacity { budget: Work(u64::MAX / 2), work_per_s: 0 };
    };
    let ready = fleet.seats().filter(|(_, replica)| replica.readiness == router::fleet::Readiness::Ready);
    let per_s =
        ready.map(|(seat, _)| (1e3 / fleet.speeds().rates(seat).prefill_ms_per_token.max(1e-6)) as u64);
    Capacity::of(per_s, within)
}
