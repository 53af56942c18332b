//! The desk of one pool: everything that decides about its requests, behind one short lock.
//!
//! ```text
//!  offer ──▶ admission ──▶ place: fleet + book + index + breakers ──▶ decide ──▶ reserve ──▶ first byte ──▶ end
//!               │                         ▲                                          │
//!               └ waits, fairly           └──────────── again: another replica ◀─────┘ failed, nothing sent
//! ```
//!
//! One lock and not one for each part: a decision reads all of them and must see one moment, and holding four
//! locks in turn costs more than holding one for the two microseconds that a decision takes. No I/O and no clock:
//! the simulator drives this very struct. Lookups in the index, which grow with the prompt, are made before.

use std::time::Duration;

use base::{AdapterId, Nanos};
use proto::v1;

use crate::admission::{
    Admission, AdmissionConfig, Cancel, Capacity, Class, Completion, ConfigError, Offer, Settled, Start,
    Tenant, Verdict, Weight, Work,
};
use crate::book::{Book, BookLimits, Reservation};
use crate::breaker::{Answer, BreakerConfig, Breakers, Permit};
use crate::decide::{AdapterState, Ask, Decision, Heat, NoReplica, Policy, View, decide};
use crate::fleet::{Fleet, FleetFull, FleetLimits, Rates, Readiness, Seating};
use crate::index::Matches;
use crate::retry::{Attempt, RetryBudget, RetryConfig, RetryVerdict, Sent};
use crate::{Seat, SeatSet, Ticket};

/// Token work in flight for each ready replica whose size is not known.
const WORK_PER_REPLICA: u64 = 1 << 19;
/// Of a replica's device pages, how many times as much work may be in flight: what waits in its own queue keeps
/// it busy between two of our looks.
const PAGES_WORK: u64 = 2;

/// Settings of a desk.
#[derive(Clone, Debug, Default)]
pub struct DeskConfig {
    pub policy: Policy,
    pub admission: AdmissionConfig,
    pub breaker: BreakerConfig,
    pub retry: RetryConfig,
    pub book: BookLimits,
    pub fleet: FleetLimits,
    /// How fast replicas are taken to be until they show it.
    pub prior: Rates,
    pub seed: u64,
}

/// One request, as it is offered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    pub tenant: Tenant,
    pub class: Class,
    /// Tokens to compute and to generate, as far as can be told.
    pub work: Work,
    pub bytes: u64,
    pub deadline: Nanos,
}

/// A request's place at a replica: the decision, and the right to send.
#[derive(Debug)]
pub struct Placed {
    pub decision: Decision,
    pub permit: Permit,
}

/// See the file's head.
pub struct Desk {
    policy: Policy,
    admission: Admission,
    book: Book,
    fleet: Fleet,
    breakers: Breakers,
    retries: RetryBudget,
    heat: Heat,
    views: Vec<View>,
    seed: u64,
    turn: u64,
    tickets: u64,
}

impl Desk {
    pub fn new(config: DeskConfig) -> Result<Self, ConfigError> {
        let capacity = Capacity::default();
        Ok(Self {
            policy: config.policy,
            admission: Admission::new(config.admission, capacity)?,
            book: Book::new(config.book),
            fleet: Fleet::new(config.fleet, config.prior),
            breakers: Breakers::new(config.breaker, config.seed).expect("checked with the settings"),
            retries: RetryBudget::new(config.retry),
            heat: Heat::default(),
            views: Vec::new(),
            seed: config.seed,
            turn: 0,
            tickets: 0,
        })
    }

    /// Seats a new replica; it takes no requests until it is heard of.
    pub fn join(&mut self, seating: Seating, now: Nanos) -> Result<Seat, FleetFull> {
        let seat = self.fleet.join(seating, now)?;
        self.members_changed(now);
        Ok(seat)
    }

    /// Frees a seat; what was promised to it is gone.
    pub fn leave(&mut self, seat: Seat, now: Nanos) {
        self.book.drop_seat(seat);
        self.fleet.leave(seat);
        self.members_changed(now);
    }

    /// A replica told its load.
    pub fn observe(&mut self, seat: Seat, record: v1::LoadRecord, now: Nanos) {
        self.fleet.observe(seat, record, now);
        self.capacity_changed();
    }

    /// A probe of a replica that tells no load was answered.
    pub fn probed(&mut self, seat: Seat, readiness: Readiness, now: Nanos) {
        self.fleet.probed(seat, readiness, now);
        self.capacity_changed();
    }

    /// A replica is known to be gone. Its requests are told by whoever sends them.
    pub fn lost(&mut self, seat: Seat, now: Nanos) {
        self.fleet.probed(seat, Readiness::Dead, now);
        self.capacity_changed();
    }

    pub fn offer(&mut self, request: Request, now: Nanos) -> (Ticket, Verdict) {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        let Request { tenant, class, work, bytes, deadline } = request;
        let offer = Offer { ticket, tenant, weight: Weight::ONE, class, work, bytes, deadline };
        (ticket, self.admission.offer(now, offer))
    }

    /// The next waiter whose wait is over: call until `None` after anything ended or changed.
    pub fn settle(&mut self, now: Nanos) -> Option<Settled> {
        self.admission.next(now)
    }

    /// When [`Desk::settle`] will have something to say though nothing changed.
    pub fn next_deadline(&self) -> Option<Nanos> {
        self.admission.next_deadline()
    }

    /// Chooses a replica for an admitted request, and promises its time.
    pub fn place(
        &mut self,
        ticket: Ticket,
        ask: &mut Ask,
        matches: &Matches,
        names: &[u64],
        now: Nanos,
    ) -> Result<Placed, NotPlaced> {
        if self.admission.started(now, ticket).is_ok_and(|start| start == Start::TooLate) {
            return Err(NotPlaced::TooLate);
        }
        self.retries.request();
        ask.hot = self.heat.note(names, now);
        self.choose(ticket, ask, matches, now)
    }

    /// Chooses another replica for a request that failed before anything of the answer was sent.
    pub fn place_again(
        &mut self,
        ticket: Ticket,
        ask: &Ask,
        matches: &Matches,
        failed: Failed,
        now: Nanos,
    ) -> Result<Placed, NotPlaced> {
        self.book.free(ticket, now);
        let usable = self.breakers.view(now).usable.and(self.ready());
        let attempt = Attempt {
            answer: failed.answer,
            sent: Sent::Nothing,
            tried: failed.tried,
            usable,
            deadline: failed.deadline,
        };
        match self.retries.ask(now, &attempt) {
            RetryVerdict::Retry { .. } => {
                let ask = Ask { excluded: SeatSet(ask.excluded.0 | failed.tried.0), ..*ask };
                self.choose(ticket, &ask, matches, now)
            }
            RetryVerdict::GiveUp(why) => Err(NotPlaced::NoRetry(why)),
        }
    }

    /// What would be decided, with nothing promised.
    pub fn dry_run(&mut self, ask: &Ask, matches: &Matches, now: Nanos) -> Result<Decision, NoReplica> {
        let out = SeatSet(!self.breakers.view(now).usable.0);
        self.look(ask, matches, now);
        let ask = Ask { excluded: SeatSet(ask.excluded.0 | out.0), turn: self.turn, seed: self.seed, ..*ask };
        decide(&self.policy, &ask, &self.views)
    }

    /// The first byte of an answer is here: the prompt has been computed.
    pub fn first_byte(&mut self, ticket: Ticket, now: Nanos) {
        if let Some(span) = self.book.prefill_done(ticket, now).span() {
            self.fleet.speeds_mut().prefilled(&span);
        }
    }

    pub fn grew(&mut self, ticket: Ticket, tokens: u32, now: Nanos) {
        self.book.grew(ticket, tokens, now);
    }

    /// How a replica answered; says nothing about the request's end.
    pub fn answered(&mut self, permit: Permit, answer: Answer, now: Nanos) {
        self.breakers.answered(now, permit, answer);
    }

    /// A request that was admitted has ended.
    pub fn end(&mut self, ticket: Ticket, work: Work, completion: Completion, now: Nanos) {
        if let Some(span) = self.book.free(ticket, now).span() {
            self.fleet.speeds_mut().decoded(&span);
        }
        // One that timed out before it started has ended already.
        let _ = self.admission.finished(ticket, work, completion);
    }

    /// The client went away while its request waited.
    pub fn cancel(&mut self, ticket: Ticket) -> Cancel {
        self.admission.cancel(ticket)
    }

    /// What must be done now and then: lost tickets, silent replicas. Says who has fallen silent.
    pub fn tick(&mut self, now: Nanos) -> SeatSet {
        self.book.expire(now);
        let silent = self.fleet.silence(now);
        if !silent.is_empty() {
            self.capacity_changed();
        }
        silent
    }

    /// Takes nothing new from now on; what waits is served.
    pub fn drain(&mut self) {
        self.admission.close(crate::admission::Waiters::Serve);
    }

    /// Replicas that take requests.
    pub fn ready(&self) -> SeatSet {
        self.fleet.seats().filter(|(_, r)| r.readiness == Readiness::Ready).map(|(seat, _)| seat).collect()
    }

    /// How soon a replica that is busy or out may be asked again.
    pub fn soonest(&mut self, now: Nanos) -> Option<Duration> {
        Some(self.breakers.view(now).soonest?.since(now))
    }

    pub fn admission(&self) -> &Admission {
        &self.admission
    }
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }
    pub fn book(&self) -> &Book {
        &self.book
    }
    pub fn breakers(&mut self) -> &mut Breakers {
        &mut self.breakers
    }
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// # Panics
    /// If the parts contradict each other. Linear: for tests and idle debug builds.
    pub fn check(&self) {
        self.admission.check();
        self.breakers.check();
        for law in [self.book.check(), self.fleet.check()] {
            law.unwrap_or_else(|broken| panic!("{broken}"));
        }
    }

    fn choose(
        &mut self,
        ticket: Ticket,
        ask: &Ask,
        matches: &Matches,
        now: Nanos,
    ) -> Result<Placed, NotPlaced> {
        self.turn += 1;
        let decision = self.dry_run(ask, matches, now).map_err(NotPlaced::NoReplica)?;
        let permit = self.breakers.take(now, decision.chosen).expect("chosen among the usable");
        let reservation = Reservation {
            seat: decision.chosen,
            uncached_tokens: decision.score().uncached_tokens,
            total_tokens: ask.prompt_tokens,
            expected_output: ask.output_tokens,
        };
        // A full book loses an estimate of load, never a request.
        let _ = self.book.reserve(ticket, reservation, now);
        Ok(Placed { decision, permit })
    }

    fn look(&mut self, ask: &Ask, matches: &Matches, now: Nanos) {
        let adapter = match ask.adapter {
            AdapterId(0) => AdapterState::Loaded,
            _ => AdapterState::Absent,
        };
        let Self { fleet, book, views, .. } = self;
        fleet.views(book, now, |seat| matches.held(seat), |_| adapter, views);
    }

    fn members_changed(&mut self, now: Nanos) {
        let members = self.fleet.seats().map(|(seat, _)| seat).collect();
        self.breakers.set_members(now, members);
        self.capacity_changed();
    }

    fn capacity_changed(&mut self) {
        let ready = self.fleet.seats().filter(|(_, replica)| replica.readiness == Readiness::Ready);
        let budget = ready.map(|(_, replica)| {
            let room = replica.pages().total * u64::from(replica.block_tokens) * PAGES_WORK;
            if room == 0 { WORK_PER_REPLICA } else { room }
        });
        let capacity = Capacity { budget: Work(budget.sum()), work_per_s: 0 };
        if capacity.budget != self.admission.capacity().budget {
            self.admission.set_capacity(capacity);
        }
    }
}

/// What is known of an attempt that failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Failed {
    pub answer: Answer,
    /// Replicas tried so far.
    pub tried: SeatSet,
    pub deadline: Nanos,
}

/// Why an admitted request goes nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotPlaced {
    NoReplica(NoReplica),
    /// Its deadline passed between admission and now.
    TooLate,
    NoRetry(crate::retry::NoRetry),
}
