//! The state machine of one pool.

use std::collections::HashMap;
use std::time::Duration;

use base::Nanos;

use super::capacity::Capacity;
use super::class::Class;
use super::config::{AdmissionConfig, ConfigError};
use super::ledger::Ledger;
use super::offer::{Offer, Tenant, Ticket, Weight, Work};
use super::verdict::{Completion, Outcome, Reason, Refusal, Settled, Verdict};
use super::waitlist::Waitlist;

/// No client is told to come back sooner or later than this.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Admission {
    config: AdmissionConfig,
    capacity: Capacity,
    door: Door,
    waitlist: Waitlist,
    flights: HashMap<Ticket, Flight>,
    flights_of: [usize; Class::ALL.len()],
    in_flight: u64,
    ledger: Ledger,
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
        Ok(Self {
            waitlist: Waitlist::new(&config),
            config,
            capacity,
            door: Door::Open,
            flights: HashMap::new(),
            flights_of: [0; Class::ALL.len()],
            in_flight: 0,
            ledger: Ledger::default(),
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
                self.waitlist.charge(&offer);
                self.fly(&offer);
            }
            Verdict::Queued { .. } => {
                self.ledger.of(offer.class).queued += 1;
                self.waitlist.push(offer);
            }
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
        let (deadline, ticket) = self.waitlist.first_to_expire()?;
        if deadline > now {
            return None;
        }
        let offer = self.waitlist.remove(ticket)?;
        self.ledger.of(offer.class).expired += 1;
        Some(Settled { ticket, outcome: Outcome::ExpiredBeforeStart })
    }

    /// When [`Admission::expire`] will next have something to say.
    pub fn next_deadline(&self) -> Option<Nanos> {
        self.waitlist.first_to_expire().map(|(deadline, _)| deadline)
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
        let Flight { class, tenant, weight, work, .. } = flight;
        self.waitlist.correct(class, tenant, weight, work, actual.min(self.config.work_max));
        self.ledger.of(class).completions[completion.index()] += 1;
        Ok(())
    }

    /// The client went away.
    pub fn cancel(&mut self, ticket: Ticket) -> Cancel {
        if self.flights.contains_key(&ticket) {
            return Cancel::InFlight;
        }
        let Some(offer) = self.waitlist.remove(ticket) else { return Cancel::Unknown };
        self.ledger.of(offer.class).rejected[Reason::Cancelled.index()] += 1;
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
        self.waitlist.entries(class)
    }
    pub fn work_waiting(&self, class: Class) -> Work {
        Work(self.waitlist.work(class))
    }
    pub fn bytes_waiting(&self) -> u64 {
        self.waitlist.bytes()
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
        if self.waitlist.is_empty() && self.has_room() {
            return Verdict::Admitted;
        }
        if let Some(reason) = self.waitlist.no_place(offer) {
            return Verdict::Rejected(self.later(reason));
        }
        let wait_expected = self.capacity.time_for(self.waitlist.work_ahead(offer));
        if wait_expected.is_some_and(|wait| now.plus(wait) >= offer.deadline) {
            return Verdict::Rejected(self.later(Reason::DeadlineUnreachable));
        }
        Verdict::Queued { wait_expected }
    }

    fn refuse_at_sight(&self, offer: &Offer) -> Option<Refusal> {
        let never = |reason| Refusal { reason, retry_after: None };
        if self.waitlist.has(offer.ticket) || self.flights.contains_key(&offer.ticket) {
            return Some(never(Reason::DuplicateTicket));
        }
        if offer.work > self.config.work_max || offer.bytes > self.config.queue.bytes_max {
            return Some(never(Reason::TooLarge));
        }
        (self.door != Door::Open).then(|| self.later(Reason::Draining))
    }

    /// A refusal that time will mend, by when what waits has been served.
    fn later(&self, reason: Reason) -> Refusal {
        let drained = self.capacity.time_for(self.waitlist.work_total()).unwrap_or(RETRY_AFTER_MIN);
        Refusal { reason, retry_after: Some(drained.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX)) }
    }

    fn has_room(&self) -> bool {
        self.in_flight < self.capacity.budget.0 && self.flights.len() < self.config.in_flight_max
    }

    /// With the door shut for waiters: the next of them goes elsewhere.
    fn turn_away(&mut self) -> Option<Settled> {
        if self.door != Door::Closed(Waiters::Refuse) {
            return None;
        }
        let (_, ticket) = self.waitlist.first_to_expire()?;
        let offer = self.waitlist.remove(ticket)?;
        self.ledger.of(offer.class).rejected[Reason::Draining.index()] += 1;
        Some(Settled { ticket, outcome: Outcome::Rejected(self.later(Reason::Draining)) })
    }

    fn admit(&mut self) -> Option<Settled> {
        if !self.has_room() {
            return None;
        }
        let offer = self.waitlist.pop()?;
        self.fly(&offer);
        Some(Settled { ticket: offer.ticket, outcome: Outcome::Admitted })
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
        self.waitlist.check();
        assert!(self.flights.len() <= self.config.in_flight_max);
        assert_eq!(self.in_flight, self.flights.values().map(|flight| flight.work.0).sum::<u64>());
        for class in Class::ALL {
            let flights = self.flights.values().filter(|flight| flight.class == class).count();
            assert_eq!(self.flights_of[class.index()], flights, "{} in flight", class.name());
            self.ledger.check(class, self.waiting(class), flights);
        }
    }
}
