//! The state machine of one pool.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use base::Nanos;

use super::capacity::Capacity;
use super::class::Class;
use super::config::{AdmissionConfig, ConfigError};
use super::fair::FairQueue;
use super::ledger::Ledger;
use super::offer::{Offer, Tenant, Ticket, Weight, Work};
use super::rank::Rank;
use super::turns::{Turns, Waiting};
use super::verdict::{Completion, Outcome, Reason, Refusal, Settled, Verdict};

/// No client is told to come back sooner or later than this.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Admission {
    config: AdmissionConfig,
    capacity: Capacity,
    door: Door,
    turns: Turns,
    queues: [FairQueue; Class::ALL.len()],
    waiters: HashMap<Ticket, Waiter>,
    /// Waiters by deadline, then ticket.
    expiry: BTreeSet<Rank>,
    tenants: HashMap<Tenant, Held>,
    queued_bytes: u64,
    flights: HashMap<Ticket, Flight>,
    flights_of: [usize; Class::ALL.len()],
    in_flight: u64,
    ledger: Ledger,
    arrivals: u64,
}

/// What a drain does with those that wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Waiters {
    Serve,
    Refuse,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Door {
    Open,
    Closed(Waiters),
}

#[derive(Clone, Copy, Debug)]
struct Waiter {
    offer: Offer,
    place: Rank,
}

/// What a tenant holds in the queue, over all classes.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    entries: usize,
    bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    tenant: Tenant,
    weight: Weight,
    class: Class,
    work: Work,
    deadline: Nanos,
}

/// What [`Admission::cancel`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cancel {
    /// It waited; its outcome is a rejection with [`Reason::Cancelled`], nothing follows.
    Waited,
    /// It is in flight: stop it and report its end with [`Completion::Cancelled`].
    InFlight,
    Unknown,
}

/// Whether an admitted request may still go to a replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    Go,
    /// Its deadline passed between admission and now; it has ended as [`Completion::TimedOut`].
    TooLate,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("ticket {ticket} is not in flight: it was never admitted, or has ended already")]
pub struct UnknownTicket {
    pub ticket: Ticket,
}

impl UnknownTicket {
    pub fn kind(&self) -> &'static str {
        "unknown_ticket"
    }
}

impl Admission {
    pub fn new(config: AdmissionConfig, capacity: Capacity) -> Result<Self, ConfigError> {
        config.validate()?;
        let queue = || FairQueue::new(config.queue.tenants_max);
        Ok(Self {
            turns: Turns::new(&config),
            queues: [queue(), queue(), queue()],
            config,
            capacity,
            door: Door::Open,
            waiters: HashMap::new(),
            expiry: BTreeSet::new(),
            tenants: HashMap::new(),
            queued_bytes: 0,
            flights: HashMap::new(),
            flights_of: [0; Class::ALL.len()],
            in_flight: 0,
            ledger: Ledger::default(),
            arrivals: 0,
        })
    }

    /// What the replicas can hold changed; ask [`Admission::next`] afterwards.
    pub fn set_capacity(&mut self, capacity: Capacity) {
        self.capacity = capacity;
    }

    /// Takes nothing new until [`Admission::open`].
    pub fn close(&mut self, waiters: Waiters) {
        self.door = Door::Closed(waiters);
    }
    pub fn open(&mut self) {
        self.door = Door::Open;
    }

    pub fn offer(&mut self, now: Nanos, offer: Offer) -> Verdict {
        let offer = self.normalized(now, offer);
        self.ledger.of(offer.class).offered += 1;
        let verdict = self.judge(now, &offer);
        match verdict {
            Verdict::Admitted => {
                self.queues[offer.class.index()].charge(offer.tenant, offer.weight, offer.work);
                self.fly(&offer);
            }
            Verdict::Queued { .. } => self.enqueue(offer),
            Verdict::Rejected(refusal) => self.ledger.of(offer.class).rejected[refusal.reason.index()] += 1,
            Verdict::ExpiredBeforeStart => self.ledger.of(offer.class).expired += 1,
        }
        verdict
    }

    /// The next waiter whose wait is over, if any: call until `None` after anything ended or changed.
    pub fn next(&mut self, now: Nanos) -> Option<Settled> {
        self.expire(now).or_else(|| self.turn_away()).or_else(|| self.admit())
    }

    /// The next waiter whose deadline is over, if any. [`Admission::next`] asks this first.
    pub fn expire(&mut self, now: Nanos) -> Option<Settled> {
        let first = *self.expiry.first()?;
        if first.major() > now.0 {
            return None;
        }
        let waiter = self.take_waiter(Ticket(first.0 as u64))?;
        self.ledger.of(waiter.offer.class).expired += 1;
        Some(Settled { ticket: waiter.offer.ticket, outcome: Outcome::ExpiredBeforeStart })
    }

    /// When [`Admission::expire`] will next have something to say.
    pub fn next_deadline(&self) -> Option<Nanos> {
        self.expiry.first().map(|first| Nanos(first.major()))
    }

    /// An admitted request goes to a replica: refused if its deadline has passed meanwhile.
    pub fn started(&mut self, now: Nanos, ticket: Ticket) -> Result<Start, UnknownTicket> {
        let flight = self.flights.get(&ticket).ok_or(UnknownTicket { ticket })?;
        if now < flight.deadline {
            return Ok(Start::Go);
        }
        self.finished(ticket, Work(0), Completion::TimedOut)?;
        Ok(Start::TooLate)
    }

    /// An admitted request ended after `actual` work; its place is free.
    pub fn finished(
        &mut self,
        ticket: Ticket,
        actual: Work,
        completion: Completion,
    ) -> Result<(), UnknownTicket> {
        let flight = self.flights.remove(&ticket).ok_or(UnknownTicket { ticket })?;
        self.in_flight -= flight.work.0;
        self.flights_of[flight.class.index()] -= 1;
        let queue = &mut self.queues[flight.class.index()];
        queue.correct(flight.tenant, flight.weight, flight.work, actual.min(self.config.work_max));
        self.ledger.of(flight.class).completions[completion.index()] += 1;
        Ok(())
    }

    /// The client went away.
    pub fn cancel(&mut self, ticket: Ticket) -> Cancel {
        if self.flights.contains_key(&ticket) {
            return Cancel::InFlight;
        }
        let Some(waiter) = self.take_waiter(ticket) else { return Cancel::Unknown };
        self.ledger.of(waiter.offer.class).rejected[Reason::Cancelled.index()] += 1;
        Cancel::Waited
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }
    pub fn work_in_flight(&self) -> Work {
        Work(self.in_flight)
    }
    pub fn requests_in_flight(&self) -> usize {
        self.flights.len()
    }
    pub fn waiting(&self, class: Class) -> usize {
        self.queues[class.index()].entries()
    }
    pub fn work_waiting(&self, class: Class) -> Work {
        Work(self.queues[class.index()].work())
    }
    pub fn bytes_waiting(&self) -> u64 {
        self.queued_bytes
    }

    /// Work is never nothing, and no wait is longer than its class allows.
    fn normalized(&self, now: Nanos, offer: Offer) -> Offer {
        let latest = now.plus(self.config.policy(offer.class).wait_max);
        Offer { work: Work(offer.work.0.max(1)), deadline: offer.deadline.min(latest), ..offer }
    }

    /// Decides without changing anything.
    fn judge(&self, now: Nanos, offer: &Offer) -> Verdict {
        if let Some(refusal) = self.refuse_at_sight(offer) {
            return Verdict::Rejected(refusal);
        }
        if offer.deadline <= now {
            return Verdict::ExpiredBeforeStart;
        }
        if self.waiters.is_empty() && self.has_room() {
            return Verdict::Admitted;
        }
        if let Some(reason) = self.no_place(offer) {
            return Verdict::Rejected(self.later(reason));
        }
        let wait_expected = self.wait_expected(offer);
        if wait_expected.is_some_and(|wait| now.plus(wait) >= offer.deadline) {
            return Verdict::Rejected(self.later(Reason::DeadlineUnreachable));
        }
        Verdict::Queued { wait_expected }
    }

    fn refuse_at_sight(&self, offer: &Offer) -> Option<Refusal> {
        let never = |reason| Refusal { reason, retry_after: None };
        if self.waiters.contains_key(&offer.ticket) || self.flights.contains_key(&offer.ticket) {
            return Some(never(Reason::DuplicateTicket));
        }
        if offer.work > self.config.work_max || offer.bytes > self.config.queue.bytes_max {
            return Some(never(Reason::TooLarge));
        }
        (self.door != Door::Open).then(|| self.later(Reason::Draining))
    }

    fn no_place(&self, offer: &Offer) -> Option<Reason> {
        let limits = &self.config.queue;
        let held = self.tenants.get(&offer.tenant).copied().unwrap_or_default();
        if held.entries >= limits.tenant_entries_max || held.bytes + offer.bytes > limits.tenant_bytes_max {
            return Some(Reason::TenantLimit);
        }
        let permille = self.config.policy(offer.class).shed_at_permille;
        let entries = self.waiters.len() as u64;
        let bytes = self.queued_bytes + offer.bytes;
        if entries >= limits.entries_max as u64 || bytes > limits.bytes_max {
            return Some(Reason::Saturated);
        }
        if entries >= part(limits.entries_max as u64, permille) || bytes > part(limits.bytes_max, permille) {
            return Some(Reason::Shed);
        }
        (!self.queues[offer.class.index()].has_lane_for(offer.tenant)).then_some(Reason::TenantsLimit)
    }

    /// How long it would wait if nothing more came: the higher classes' waiters and its own share of its
    /// class's. Too short rather than too long, for a request that could have started must not be refused.
    fn wait_expected(&self, offer: &Offer) -> Option<Duration> {
        let above: u64 = offer.class.above().iter().map(|class| self.queues[class.index()].work()).sum();
        let place = Rank::of(offer.deadline.0, self.arrivals);
        let own = self.queues[offer.class.index()].work_ahead(offer.tenant, offer.weight, place);
        self.capacity.time_for(above + own)
    }

    /// A refusal that time will mend, by when what waits has been served.
    fn later(&self, reason: Reason) -> Refusal {
        let waiting = self.queues.iter().map(FairQueue::work).sum();
        let drained = self.capacity.time_for(waiting).unwrap_or(RETRY_AFTER_MIN);
        Refusal { reason, retry_after: Some(drained.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX)) }
    }

    fn has_room(&self) -> bool {
        self.in_flight < self.capacity.budget.0 && self.flights.len() < self.config.in_flight_max
    }

    fn enqueue(&mut self, offer: Offer) {
        let place = Rank::of(offer.deadline.0, self.arrivals);
        self.arrivals += 1;
        self.queues[offer.class.index()].push(offer.tenant, offer.weight, place, offer.ticket, offer.work);
        self.expiry.insert(Rank::of(offer.deadline.0, offer.ticket.0));
        let held = self.tenants.entry(offer.tenant).or_default();
        held.entries += 1;
        held.bytes += offer.bytes;
        self.queued_bytes += offer.bytes;
        self.ledger.of(offer.class).queued += 1;
        self.waiters.insert(offer.ticket, Waiter { offer, place });
    }

    /// Takes a waiter out of its lane and everything else.
    fn take_waiter(&mut self, ticket: Ticket) -> Option<Waiter> {
        let waiter = self.forget_waiter(ticket)?;
        let offer = &waiter.offer;
        self.queues[offer.class.index()].remove(offer.tenant, waiter.place);
        self.end_turns(offer.class);
        Some(waiter)
    }

    /// Takes a waiter that has left its lane out of everything else.
    fn forget_waiter(&mut self, ticket: Ticket) -> Option<Waiter> {
        let waiter = self.waiters.remove(&ticket)?;
        let offer = &waiter.offer;
        self.expiry.remove(&Rank::of(offer.deadline.0, ticket.0));
        self.queued_bytes -= offer.bytes;
        if let Some(held) = self.tenants.get_mut(&offer.tenant) {
            held.entries -= 1;
            held.bytes -= offer.bytes;
            if held.entries == 0 {
                self.tenants.remove(&offer.tenant);
            }
        }
        Some(waiter)
    }

    /// With the door shut for waiters: the next of them goes elsewhere.
    fn turn_away(&mut self) -> Option<Settled> {
        if self.door != Door::Closed(Waiters::Refuse) {
            return None;
        }
        let first = *self.expiry.first()?;
        let waiter = self.take_waiter(Ticket(first.0 as u64))?;
        self.ledger.of(waiter.offer.class).rejected[Reason::Draining.index()] += 1;
        let refusal = self.later(Reason::Draining);
        Some(Settled { ticket: waiter.offer.ticket, outcome: Outcome::Rejected(refusal) })
    }

    fn admit(&mut self) -> Option<Settled> {
        if !self.has_room() {
            return None;
        }
        let waiting = self.waiting_classes();
        let class = self.turns.pick(waiting)?;
        let (ticket, work) = self.queues[class.index()].pop()?;
        self.turns.served(class, work, waiting);
        self.end_turns(class);
        let waiter = self.forget_waiter(ticket)?;
        self.fly(&waiter.offer);
        Some(Settled { ticket, outcome: Outcome::Admitted })
    }

    fn waiting_classes(&self) -> Waiting {
        std::array::from_fn(|at| !self.queues[at].is_empty())
    }

    fn end_turns(&mut self, class: Class) {
        if self.queues[class.index()].is_empty() {
            self.turns.idle(class);
        }
    }

    fn fly(&mut self, offer: &Offer) {
        let &Offer { ticket, tenant, weight, class, work, deadline, .. } = offer;
        self.flights.insert(ticket, Flight { tenant, weight, class, work, deadline });
        self.flights_of[class.index()] += 1;
        self.in_flight += work.0;
        self.ledger.of(class).admitted += 1;
    }

    /// # Panics
    /// If the parts contradict each other. Linear: for tests, the simulator and idle debug builds.
    pub fn check(&self) {
        self.check_bounds();
        self.check_flights();
        self.check_waiters();
        self.turns.check(self.waiting_classes());
        for class in Class::ALL {
            self.queues[class.index()].check();
            self.ledger.check(class, self.waiting(class), self.flights_of[class.index()]);
        }
    }

    fn check_bounds(&self) {
        let limits = &self.config.queue;
        assert!(self.waiters.len() <= limits.entries_max && self.queued_bytes <= limits.bytes_max);
        assert!(self.flights.len() <= self.config.in_flight_max);
        for (tenant, held) in &self.tenants {
            assert!((1..=limits.tenant_entries_max).contains(&held.entries), "tenant {tenant} {held:?}");
            assert!(held.bytes <= limits.tenant_bytes_max, "tenant {tenant} {held:?}");
        }
    }

    fn check_flights(&self) {
        assert_eq!(self.in_flight, self.flights.values().map(|flight| flight.work.0).sum::<u64>());
        for class in Class::ALL {
            let flights = self.flights.values().filter(|flight| flight.class == class).count();
            assert_eq!(self.flights_of[class.index()], flights, "{} in flight", class.name());
        }
    }

    fn check_waiters(&self) {
        let entries: usize = self.queues.iter().map(FairQueue::entries).sum();
        assert_eq!(self.waiters.len(), entries, "each waiter is in one lane");
        assert_eq!(self.waiters.len(), self.expiry.len(), "each waiter has one deadline");
        assert_eq!(self.waiters.len(), self.tenants.values().map(|held| held.entries).sum::<usize>());
        assert_eq!(self.queued_bytes, self.waiters.values().map(|w| w.offer.bytes).sum::<u64>());
        assert_eq!(self.queued_bytes, self.tenants.values().map(|held| held.bytes).sum::<u64>());
    }
}

/// So many thousandths of `whole`, rounded down, at least 1.
fn part(whole: u64, permille: u16) -> u64 {
    ((u128::from(whole) * u128::from(permille) / 1000) as u64).max(1)
}
