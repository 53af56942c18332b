//! Replicas of one model, and the one place where their requests are admitted, placed and ended.
//!
//! Every face of the router (HTTP, the endpoint picker, the decision API) asks here, so that one budget, one
//! book and one set of breakers rule all of them. The lock is held for a decision, never across a wait.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use base::{Clock, Generation, Nanos};
use proto::v1::LoadRecord;
use tokio::sync::{Notify, oneshot};

use crate::admission::{Cancel, Class, Completion, Outcome, Reason as Why, Tenant, Verdict, Work};
use crate::breaker::{Answer, Permit};
use crate::decide::{Ask, Decision, NoReplica};
use crate::desk::{Desk, DeskConfig, Failed, NotPlaced, Placed, Request};
use crate::fleet::{FleetFull, Readiness, Seating};
use crate::index::{Assumed, AssumedConfig, Index, Matches, Scope};
use crate::placement::{Admitted, Ending, Placement};
use crate::proxy::metrics::Metrics;
use crate::proxy::naming::Naming;
use crate::proxy::refusal::{Reason, Refusal};
use crate::proxy::upstream::{Upstream, lock};
use crate::replica::Replica;
use crate::source::State;
use crate::{Seat, SeatSet, Ticket};

/// What a replica that tells nothing is assumed to keep, and for how long.
const ASSUMED: AssumedConfig = AssumedConfig { ttl: Nanos(1_800_000_000_000), blocks_max: 1 << 20 };
/// Between two looks at deadlines and silent replicas.
const TICK: Duration = Duration::from_millis(100);

/// A request that wants a replica.
pub struct Wanted<'a> {
    pub scope: &'a Scope,
    /// Of its blocks, from the first.
    pub names: &'a [u64],
    pub prompt_tokens: u32,
    pub block_tokens: u32,
    pub answer_tokens: u32,
    pub bytes: u64,
    pub tenant: Tenant,
    pub class: Class,
    pub deadline: Nanos,
    /// Only these may serve it.
    pub among: SeatSet,
}

/// See the file's head.
pub struct Pool {
    desk: Mutex<Counter>,
    index: Index,
    assumed: Mutex<Vec<Option<Assumed>>>,
    replicas: RwLock<Vec<Option<Arc<Replica>>>>,
    naming: Naming,
    /// How far each replica's events can be believed.
    sources: Mutex<[State; Seat::MAX]>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    /// A deadline is nearer than the next tick.
    sooner: Notify,
}

/// The desk and those who stand before it.
struct Counter {
    desk: Desk,
    waiting: HashMap<Ticket, oneshot::Sender<Outcome>>,
}

impl Counter {
    /// Tells everyone whose wait is over.
    fn settle(&mut self, now: Nanos) {
        while let Some(settled) = self.desk.settle(now) {
            let Some(waiter) = self.waiting.remove(&settled.ticket) else { continue };
            if waiter.send(settled.outcome).is_err() && settled.outcome == Outcome::Admitted {
                self.desk.end(settled.ticket, Work(0), Completion::Cancelled, now);
            }
        }
    }
}

impl Pool {
    pub fn new(config: DeskConfig, index: Index, clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Arc<Self> {
        let desk = Desk::new(config).expect("checked with the settings");
        Arc::new(Self {
            desk: Mutex::new(Counter { desk, waiting: HashMap::new() }),
            index,
            assumed: Mutex::new((0..Seat::MAX).map(|_| None).collect()),
            replicas: RwLock::new(vec![None; Seat::MAX]),
            naming: Naming::default(),
            sources: Mutex::new([State::Cold; Seat::MAX]),
            clock,
            metrics,
            sooner: Notify::new(),
        })
    }

    /// Seats a replica.
    pub fn join(&self, seating: Seating, upstream: Upstream) -> Result<Arc<Replica>, FleetFull> {
        let now = self.clock.now();
        let seat = self.desk().desk.join(seating, now)?;
        let replica = Arc::new(Replica::new(seat, upstream));
        lock(&self.assumed)[seat.index()] = Some(Assumed::new(&self.index, seat, ASSUMED));
        self.seats_mut()[seat.index()] = Some(Arc::clone(&replica));
        Ok(replica)
    }

    /// A replica is gone for good.
    pub fn leave(&self, replica: &Replica) {
        self.seats_mut()[replica.seat.index()] = None;
        lock(&self.assumed)[replica.seat.index()] = None;
        let _ = self.index.clear(replica.seat);
        self.desk().desk.leave(replica.seat, self.clock.now());
        replica.lose();
    }

    /// A replica answered a probe; whether it is taken to be ready from now on.
    pub fn probed(&self, seat: Seat, readiness: Readiness) {
        let now = self.clock.now();
        let mut counter = self.desk();
        counter.desk.probed(seat, readiness, now);
        counter.settle(now);
    }

    /// A replica is known to be dead: nothing more goes there, and what is there goes elsewhere or ends.
    pub fn lost(&self, replica: &Replica) -> usize {
        self.desk().desk.lost(replica.seat, self.clock.now());
        if let Some(assumed) = &mut lock(&self.assumed)[replica.seat.index()] {
            // It comes back empty.
            assumed.clear(&self.index);
        }
        replica.lose()
    }

    /// A replica's events are followed from now on: what it holds is known and need not be assumed.
    pub fn followed(&self, seat: Seat) {
        lock(&self.assumed)[seat.index()] = None;
    }

    /// A replica told its load.
    pub fn told_load(&self, seat: Seat, load: LoadRecord) {
        let now = self.clock.now();
        let mut counter = self.desk();
        counter.desk.observe(seat, load, now);
        counter.settle(now);
    }

    /// A replica's events can be believed so far.
    pub fn source_is(&self, seat: Seat, state: State) {
        lock(&self.sources)[seat.index()] = state;
    }

    pub fn source(&self, seat: Seat) -> State {
        lock(&self.sources)[seat.index()]
    }

    /// Nothing of a namespace up to a generation is named any more.
    pub fn purged(&self, namespace: &str, up_to: Generation) {
        self.naming.purged(namespace, up_to);
    }

    pub fn naming(&self) -> &Naming {
        &self.naming
    }

    /// Waits to be admitted, then chooses.
    pub async fn place(self: &Arc<Self>, wanted: Wanted<'_>) -> Result<Placement, Refusal> {
        let arrived = self.clock.now();
        let mut matches = Box::new(Matches::default());
        self.index.lookup(wanted.scope, wanted.names, wanted.among, &mut matches);
        let request = request_of(&wanted, &matches);
        let ask = ask_of(&wanted);
        let (ticket, outcome) = self.offer(request)?;
        if let Some(outcome) = outcome {
            Waiter { pool: self, ticket: Some(ticket) }.wait(outcome).await?;
            self.metrics.queue.observe(self.clock.now().since(arrived), 1);
            // What is cached where has changed while it waited.
            self.index.lookup(wanted.scope, wanted.names, wanted.among, &mut matches);
        }
        let mut admitted = Admitted::new(Arc::clone(self), ticket, ask, matches, (arrived, wanted.deadline));
        match self.choose(&mut admitted, &wanted) {
            Ok((placed, replica)) => Ok(admitted.at(placed, replica)),
            Err(refusal) => {
                admitted.finish(Ending::NoReplica);
                Err(refusal)
            }
        }
    }

    fn offer(&self, request: Request) -> Result<(Ticket, Option<oneshot::Receiver<Outcome>>), Refusal> {
        let mut counter = self.desk();
        // With nobody to serve it, waiting would only hide that.
        if counter.desk.ready().is_empty() {
            return Err(Refusal::new(Reason::NoReplica, "no replica is ready"));
        }
        let (ticket, verdict) = counter.desk.offer(request, self.clock.now());
        match verdict {
            Verdict::Admitted => Ok((ticket, None)),
            Verdict::Queued { .. } => {
                let (sender, outcome) = oneshot::channel();
                counter.waiting.insert(ticket, sender);
                self.sooner.notify_one();
                Ok((ticket, Some(outcome)))
            }
            Verdict::Rejected(refusal) => Err(refused(refusal)),
            Verdict::ExpiredBeforeStart => Err(expired()),
        }
    }

    fn choose(
        &self,
        admitted: &mut Admitted,
        wanted: &Wanted<'_>,
    ) -> Result<(Placed, Arc<Replica>), Refusal> {
        let now = self.clock.now();
        let placed = {
            let desk = &mut self.desk().desk;
            let placed = desk.place(admitted.ticket, &mut admitted.ask, &admitted.matches, wanted.names, now);
            placed.map_err(|why| not_placed(why, desk.soonest(now)))?
        };
        let seat = placed.decision.chosen;
        let held = placed.decision.score().held.anywhere();
        self.metrics.placed(wanted.names.len() as u64, u64::from(held), self.clock.now().since(now));
        if let Some(assumed) = &mut lock(&self.assumed)[seat.index()] {
            let _ = assumed.routed(&self.index, wanted.scope, wanted.names, now);
        }
        let replica =
            self.replica(seat).ok_or_else(|| Refusal::new(Reason::NoReplica, "the replica has just left"))?;
        Ok((placed, replica))
    }

    pub(crate) fn place_again(
        &self,
        ticket: Ticket,
        ask: &Ask,
        matches: &Matches,
        failed: Failed,
    ) -> Result<(Placed, Arc<Replica>), NotPlaced> {
        let now = self.clock.now();
        let placed = self.desk().desk.place_again(ticket, ask, matches, failed, now)?;
        self.metrics.retried();
        let replica = self.replica(placed.decision.chosen).ok_or(NotPlaced::TooLate)?;
        Ok((placed, replica))
    }

    pub(crate) fn first_byte(&self, ticket: Ticket, arrived: Nanos) {
        let now = self.clock.now();
        self.metrics.first_byte.observe(now.since(arrived), 1);
        self.desk().desk.first_byte(ticket, now);
    }

    pub(crate) fn grew(&self, ticket: Ticket, tokens: u32) {
        self.desk().desk.grew(ticket, tokens, self.clock.now());
    }

    pub(crate) fn answered(&self, permit: Permit, answer: Answer) {
        self.desk().desk.answered(permit, answer, self.clock.now());
    }

    pub(crate) fn ended(
        &self,
        ticket: Ticket,
        work: Work,
        ending: Ending,
        completion: Completion,
        arrived: Nanos,
    ) {
        let now = self.clock.now();
        self.metrics.ended(ending, now.since(arrived));
        let mut counter = self.desk();
        counter.desk.end(ticket, work, completion, now);
        counter.settle(now);
    }

    /// What would be decided now; promises nothing.
    pub fn dry_run(&self, wanted: &Wanted<'_>) -> Result<Decision, NoReplica> {
        let mut matches = Matches::default();
        self.index.lookup(wanted.scope, wanted.names, wanted.among, &mut matches);
        self.desk().desk.dry_run(&ask_of(wanted), &matches, self.clock.now())
    }

    pub fn replica(&self, seat: Seat) -> Option<Arc<Replica>> {
        self.seats().get(seat.index())?.clone()
    }

    /// Everyone who is seated.
    pub fn replicas(&self) -> Vec<Arc<Replica>> {
        self.seats().iter().flatten().cloned().collect()
    }

    /// Looks at the desk, with its lock held.
    pub fn with_desk<T>(&self, look: impl FnOnce(&mut Desk) -> T) -> T {
        look(&mut self.desk().desk)
    }

    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Requests that wait for admission or are with a replica.
    pub fn open(&self) -> usize {
        let counter = self.desk();
        counter.waiting.len() + counter.desk.admission().requests_in_flight()
    }

    /// Takes nothing new from now on.
    pub fn drain(&self) {
        self.desk().desk.drain();
    }

    /// Expires waiters and finds silent replicas, for as long as the pool is there.
    pub async fn housekeep(self: Arc<Self>) {
        loop {
            let until = {
                let now = self.clock.now();
                let mut counter = self.desk();
                counter.desk.tick(now);
                counter.settle(now);
                counter.desk.next_deadline().map_or(TICK, |deadline| deadline.since(now).min(TICK))
            };
            let pause = until.max(Duration::from_millis(1));
            let _ = tokio::time::timeout(pause, self.sooner.notified()).await;
        }
    }

    fn desk(&self) -> std::sync::MutexGuard<'_, Counter> {
        lock(&self.desk)
    }

    fn seats(&self) -> std::sync::RwLockReadGuard<'_, Vec<Option<Arc<Replica>>>> {
        self.replicas.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn seats_mut(&self) -> std::sync::RwLockWriteGuard<'_, Vec<Option<Arc<Replica>>>> {
        self.replicas.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A request that waits; one that is dropped gives its place up.
struct Waiter<'a> {
    pool: &'a Pool,
    /// `None` once its wait is over.
    ticket: Option<Ticket>,
}

impl Waiter<'_> {
    async fn wait(mut self, outcome: oneshot::Receiver<Outcome>) -> Result<(), Refusal> {
        let outcome = outcome.await.unwrap_or(Outcome::ExpiredBeforeStart);
        self.ticket = None;
        admitted(outcome)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let now = self.pool.clock.now();
        let mut counter = self.pool.desk();
        counter.waiting.remove(&ticket);
        // Its turn came in this very moment.
        if counter.desk.cancel(ticket) == Cancel::InFlight {
            counter.desk.end(ticket, Work(0), Completion::Cancelled, now);
        }
        counter.settle(now);
    }
}

fn request_of(wanted: &Wanted<'_>, matches: &Matches) -> Request {
    let cached = matches.longest().saturating_mul(wanted.block_tokens).min(wanted.prompt_tokens);
    let work = u64::from(wanted.prompt_tokens - cached) + u64::from(wanted.answer_tokens);
    let Wanted { tenant, class, bytes, deadline, .. } = *wanted;
    Request { tenant, class, work: Work(work), bytes, deadline }
}

fn ask_of(wanted: &Wanted<'_>) -> Ask {
    Ask {
        prompt_tokens: wanted.prompt_tokens.max(1),
        block_tokens: wanted.block_tokens,
        output_tokens: wanted.answer_tokens,
        prefix: wanted.names.first().copied().unwrap_or_default(),
        excluded: SeatSet(!wanted.among.0),
        ..Ask::default()
    }
}

fn admitted(outcome: Outcome) -> Result<(), Refusal> {
    match outcome {
        Outcome::Admitted => Ok(()),
        Outcome::Rejected(refusal) => Err(refused(refusal)),
        Outcome::ExpiredBeforeStart => Err(expired()),
    }
}

fn not_placed(why: NotPlaced, soonest: Option<Duration>) -> Refusal {
    match why {
        NotPlaced::TooLate => expired(),
        NotPlaced::NoReplica(none) => {
            let wait_s = soonest.map_or(1, |wait| wait.as_secs_f64().ceil().max(1.0) as u32);
            Refusal::new(Reason::NoReplica, none.to_string()).retry_after(wait_s)
        }
        NotPlaced::NoRetry(why) => Refusal::new(Reason::ReplicaFailed, why.code()),
    }
}

fn expired() -> Refusal {
    Refusal::new(Reason::ExpiredBeforeStart, "its deadline passed before a replica was free")
}

/// Admission's words as the faces say them.
fn refused(refusal: crate::admission::Refusal) -> Refusal {
    let (reason, message) = match refusal.reason {
        Why::Saturated | Why::TenantsLimit => {
            (Reason::Saturated, "every replica is busy and the queue is full")
        }
        Why::Shed => {
            (Reason::Saturated, "every replica is busy, and this class of request is turned away first")
        }
        Why::TenantLimit => (Reason::TenantQueueFull, "this key waits with as many requests as it may"),
        Why::DeadlineUnreachable => (Reason::Saturated, "it would wait in the queue beyond its deadline"),
        Why::Draining => (Reason::Draining, "the router is being stopped"),
        Why::TooLarge => (Reason::BodyTooLarge, "the request asks for more work than any may"),
        Why::Cancelled | Why::DuplicateTicket => (Reason::Saturated, "the request was given up"),
    };
    let seconds = refusal.retry_after.map(|wait| wait.as_secs_f64().ceil() as u32);
    let said = Refusal::new(reason, message);
    Refusal { retry_after_s: seconds.or(said.retry_after_s), ..said }
}
