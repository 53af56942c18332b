//! Random operations against the naive model, every answer compared.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::naive::{Naive, weight_of};
use super::*;

#[derive(Clone, Debug)]
enum Op {
    Offer { tenant: u64, class: usize, work: u64, bytes: u64, patience_ms: u64 },
    Duplicate { at: usize },
    Wait { ms: u64 },
    Drain,
    Finish { at: usize, off: i64 },
    Start { at: usize },
    Cancel { at: usize },
    Capacity { budget: u64, work_per_s: u64 },
    Close(Waiters),
    Open,
}

fn op() -> impl Strategy<Value = Op> {
    let offer = (0..4u64, 0..3usize, 1..70u64, 0..30u64, 0..3000u64);
    prop_oneof![
        12 => offer.prop_map(|(tenant, class, work, bytes, patience_ms)| {
            Op::Offer { tenant, class, work, bytes, patience_ms }
        }),
        1 => (0..64usize).prop_map(|at| Op::Duplicate { at }),
        3 => (0..400u64).prop_map(|ms| Op::Wait { ms }),
        6 => Just(Op::Drain),
        6 => (0..64usize, -40..40i64).prop_map(|(at, off)| Op::Finish { at, off }),
        1 => (0..64usize).prop_map(|at| Op::Start { at }),
        2 => (0..64usize).prop_map(|at| Op::Cancel { at }),
        1 => (0..200u64, 0..400u64).prop_map(|(budget, work_per_s)| Op::Capacity { budget, work_per_s }),
        1 => prop_oneof![Just(Op::Close(Waiters::Serve)), Just(Op::Close(Waiters::Refuse))],
        2 => Just(Op::Open),
    ]
}

fn config() -> AdmissionConfig {
    let mut config = AdmissionConfig { work_max: Work(64), in_flight_max: 12, ..AdmissionConfig::default() };
    config.queue = QueueLimits {
        entries_max: 20,
        bytes_max: 300,
        tenant_entries_max: 9,
        tenant_bytes_max: 150,
        tenants_max: 16,
    };
    config.classes[0].wait_max = Duration::from_secs(2);
    config
}

/// Both, and what became of each ticket.
struct World {
    real: Admission,
    naive: Naive,
    now: Nanos,
    next_ticket: u64,
    deadlines: BTreeMap<Ticket, Nanos>,
    open: BTreeMap<Ticket, ()>,
    outcomes: u64,
}

impl World {
    fn new() -> Self {
        let capacity = Capacity { budget: Work(100), work_per_s: 200 };
        Self {
            real: Admission::new(config(), capacity).unwrap(),
            naive: Naive::new(config(), capacity),
            now: Nanos(1),
            next_ticket: 0,
            deadlines: BTreeMap::new(),
            open: BTreeMap::new(),
            outcomes: 0,
        }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Offer { tenant, class, work, bytes, patience_ms } => {
                self.next_ticket += 1;
                let deadline = self.now.plus(Duration::from_millis(patience_ms));
                let tenant = Tenant(tenant);
                let class = Class::ALL[class];
                let (ticket, weight, work) = (Ticket(self.next_ticket), weight_of(tenant), Work(work));
                self.offer(Offer { ticket, tenant, weight, class, work, bytes, deadline });
            }
            Op::Duplicate { at } => self.offer_again(at),
            Op::Wait { ms } => self.now = self.now.plus(Duration::from_millis(ms)),
            Op::Drain => self.drain(),
            Op::Finish { at, off } => self.finish(at, off),
            Op::Start { at } => self.start(at),
            Op::Cancel { at } => self.cancel(at),
            Op::Capacity { budget, work_per_s } => {
                let capacity = Capacity { budget: Work(budget), work_per_s };
                self.real.set_capacity(capacity);
                self.naive.capacity = capacity;
            }
            Op::Close(waiters) => {
                self.real.close(waiters);
                self.naive.closed = Some(waiters);
            }
            Op::Open => {
                self.real.open();
                self.naive.closed = None;
            }
        }
        self.check();
    }

    fn offer(&mut self, offer: Offer) {
        let verdict = self.real.offer(self.now, offer);
        assert_eq!(verdict, self.naive.offer(self.now, offer), "{offer:?}");
        self.deadlines.insert(offer.ticket, offer.deadline);
        match verdict {
            Verdict::Queued { .. } => drop(self.open.insert(offer.ticket, ())),
            Verdict::Admitted => {
                assert!(self.now < offer.deadline);
                self.outcomes += 1;
            }
            Verdict::Rejected(_) | Verdict::ExpiredBeforeStart => self.outcomes += 1,
        }
    }

    fn offer_again(&mut self, at: usize) {
        let Some(again) = self.naive.flights.get(at).copied() else { return };
        assert_eq!(reason(self.real.offer(self.now, again)), "duplicate_ticket");
        self.outcomes += 1;
        self.deadlines.insert(again.ticket, again.deadline);
    }

    fn drain(&mut self) {
        loop {
            let settled = self.real.next(self.now);
            assert_eq!(settled, self.naive.next(self.now));
            let Some(Settled { ticket, outcome }) = settled else { break };
            assert!(self.open.remove(&ticket).is_some(), "{ticket} settled twice or unasked");
            let late = self.deadlines[&ticket] <= self.now;
            assert!(outcome != Outcome::Admitted || !late, "{ticket} admitted after its deadline");
            self.outcomes += 1;
        }
        let waiting: usize = Class::ALL.map(|class| self.real.waiting(class)).iter().sum();
        assert!(waiting == 0 || !self.naive.has_room(), "work waits while there is room");
    }

    fn finish(&mut self, at: usize, off: i64) {
        if self.naive.flights.is_empty() {
            return;
        }
        let at = at % self.naive.flights.len();
        let actual = Work(self.naive.flights[at].work.0.saturating_add_signed(off));
        let ticket = self.naive.finish(at, actual);
        assert_eq!(self.real.finished(ticket, actual, Completion::Completed), Ok(()));
        let again = self.real.finished(ticket, actual, Completion::Cancelled);
        assert_eq!(again, Err(UnknownTicket { ticket }), "one completion each");
    }

    fn start(&mut self, at: usize) {
        let Some(flight) = self.naive.flights.get(at).copied() else { return };
        let started = self.real.started(self.now, flight.ticket).unwrap();
        assert_eq!(started == Start::Go, self.now < flight.deadline);
        if started == Start::TooLate {
            self.naive.finish(at, Work(0));
        }
    }

    fn cancel(&mut self, at: usize) {
        let ticket = Ticket(at as u64 % (self.next_ticket + 1));
        let cancelled = self.real.cancel(ticket);
        assert_eq!(cancelled, self.naive.cancel(ticket));
        if cancelled == Cancel::Waited {
            assert!(self.open.remove(&ticket).is_some());
            self.outcomes += 1;
        }
    }

    fn check(&self) {
        self.real.check();
        let counts = &self.real.ledger().classes;
        let offered: u64 = counts.iter().map(|c| c.offered).sum();
        assert_eq!(offered, self.outcomes + self.open.len() as u64, "one admission outcome each");
        assert_eq!(self.real.requests_in_flight(), self.naive.flights.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn admission_does_what_the_naive_model_does(ops in proptest::collection::vec(op(), 1..150)) {
        let mut world = World::new();
        for op in &ops {
            world.apply(op);
        }
        world.now = world.now.plus(Duration::from_secs(1_000));
        world.apply(&Op::Drain);
        prop_assert!(world.open.is_empty(), "nobody waits for ever");
    }
}
