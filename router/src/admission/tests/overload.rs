//! Three times what the pool can do, three tenants, two classes, in simulated time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base::SplitMix;

use super::*;
use Class::{Batch, Interactive};

const WORK_PER_S: u64 = 100_000;
const WORK_MAX: u64 = 2_000;
const SLOTS: u64 = 32;
const TENANTS: u64 = 3;
const CLASSES: [Class; 2] = [Interactive, Batch];
const BATCH_FLOOR_PERMILLE: u64 = 200;
/// Of each class's offered work. The last tenant asks for less than its share of the interactive class.
const ASKS_PERMILLE: [u64; TENANTS as usize] = [620, 250, 130];

fn config() -> AdmissionConfig {
    let mut config = AdmissionConfig { work_max: Work(WORK_MAX), ..AdmissionConfig::default() };
    config.classes[Batch.index()].floor_permille = BATCH_FLOOR_PERMILLE as u16;
    config.queue.entries_max = 600;
    config.queue.tenant_entries_max = 250;
    config
}

/// A pool of slots that each do their part of the pool's rate, and what was seen of admission.
struct Run {
    admission: Admission,
    rng: SplitMix,
    now: Nanos,
    /// Requests in service, by when they end.
    running: BTreeSet<(Nanos, Ticket)>,
    slots: BTreeSet<(Nanos, u64)>,
    offers: BTreeMap<Ticket, Offer>,
    /// What each request turns out to cost, and how much of it each tenant's requests are predicted at.
    actual: BTreeMap<Ticket, Work>,
    predicted_permille: [u64; TENANTS as usize],
    next_ticket: u64,
    fair: BTreeMap<(Class, Tenant, Tenant), Gap>,
    floor: Floor,
    done: BTreeMap<(Class, Tenant), u64>,
    seen: BTreeMap<&'static str, u64>,
    waiting: BTreeMap<(Class, Tenant), BTreeSet<Ticket>>,
}

/// The work of two tenants while both wait: how far its difference has swung.
#[derive(Clone, Copy, Default)]
struct Gap {
    difference: i64,
    least: i64,
    most: i64,
    widest: i64,
}

/// The batch class's work against all work while it waits.
#[derive(Default)]
struct Floor {
    owed_permille: i64,
    lowest: i64,
    /// How far it fell behind within one backlogged interval.
    behind_permille: i64,
}

impl Run {
    fn new(seed: u64) -> Self {
        let capacity = Capacity::of([WORK_PER_S], Duration::from_millis(500));
        Self {
            admission: Admission::new(config(), capacity).unwrap(),
            rng: SplitMix::new(seed),
            now: Nanos(0),
            running: BTreeSet::new(),
            slots: (0..SLOTS).map(|slot| (Nanos(0), slot)).collect(),
            offers: BTreeMap::new(),
            actual: BTreeMap::new(),
            predicted_permille: [1000; TENANTS as usize],
            next_ticket: 0,
            fair: BTreeMap::new(),
            floor: Floor::default(),
            done: BTreeMap::new(),
            seen: BTreeMap::new(),
            waiting: BTreeMap::new(),
        }
    }

    /// Offers `load` times the pool's rate for `seconds`, then lets it run dry.
    fn offer_for(&mut self, seconds: u64, load: f64) {
        let mean_work = (100 + WORK_MAX) as f64 / 2.0;
        let gap_ns = 1e9 * mean_work / (load * WORK_PER_S as f64);
        let end = Nanos::from_millis(seconds * 1000);
        let mut arrival = Nanos(0);
        loop {
            arrival.0 += (-(1.0 - self.rng.unit()).ln() * gap_ns) as u64;
            if arrival >= end {
                break;
            }
            self.run_until(arrival);
            self.arrive();
        }
        self.run_until(Nanos::from_millis(seconds * 1000 + 2_000_000));
    }

    fn arrive(&mut self) {
        let draw = self.rng.below(1000);
        let tenant = if draw < ASKS_PERMILLE[0] { 0 } else { 1 + u64::from(draw >= 1000 - ASKS_PERMILLE[2]) };
        let class = CLASSES[self.rng.below(2) as usize];
        let work = 100 + self.rng.below(WORK_MAX - 99);
        let predicted = work * self.predicted_permille[tenant as usize] / 1000;
        self.next_ticket += 1;
        self.actual.insert(Ticket(self.next_ticket), Work(work));
        let patience =
            Duration::from_millis(500 + self.rng.below(if class == Batch { 20_000 } else { 4_000 }));
        let offer =
            Offer { deadline: self.now.plus(patience), ..offer(self.next_ticket, tenant, class, predicted) };
        self.offers.insert(offer.ticket, offer);
        let verdict = self.admission.offer(self.now, offer);
        match verdict {
            Verdict::Admitted => self.start(offer.ticket),
            Verdict::Queued { .. } => self.join(offer),
            Verdict::Rejected(refusal) => self.note(refusal.reason.code()),
            Verdict::ExpiredBeforeStart => self.note("expired"),
        }
        if self.rng.below(50) == 0 {
            self.cancel_one();
        }
    }

    /// The client of some waiter hangs up.
    fn cancel_one(&mut self) {
        let ticket = Ticket(self.next_ticket - self.rng.below(self.next_ticket.min(200)));
        if self.admission.cancel(ticket) == Cancel::Waited {
            self.leave(ticket);
            self.note("cancelled");
        }
    }

    fn run_until(&mut self, to: Nanos) {
        loop {
            let ends = self.running.first().map(|(at, _)| *at);
            let next = ends.into_iter().chain(self.admission.next_deadline()).min();
            let Some(next) = next.filter(|next| *next <= to) else { break };
            self.now = next.max(self.now);
            self.finish_ended();
            self.settle();
        }
        self.now = to;
    }

    fn finish_ended(&mut self) {
        while let Some(&(at, ticket)) = self.running.first()
            && at <= self.now
        {
            self.running.pop_first();
            let (offer, actual) = (self.offers[&ticket], self.actual[&ticket]);
            *self.done.entry((offer.class, offer.tenant)).or_default() += actual.0;
            self.admission.finished(ticket, actual, Completion::Completed).unwrap();
            self.note("completed");
        }
    }

    fn settle(&mut self) {
        while let Some(Settled { ticket, outcome }) = self.admission.next(self.now) {
            match outcome {
                Outcome::Admitted => {
                    self.measure(ticket);
                    self.leave(ticket);
                    self.start(ticket);
                }
                Outcome::Rejected(_) => panic!("nothing was drained"),
                Outcome::ExpiredBeforeStart => {
                    self.leave(ticket);
                    self.note("expired");
                }
            }
        }
    }

    fn start(&mut self, ticket: Ticket) {
        let offer = self.offers[&ticket];
        assert!(self.now < offer.deadline, "{ticket} starts after its deadline");
        assert_eq!(self.admission.started(self.now, ticket), Ok(Start::Go));
        let (free, slot) = self.slots.pop_first().unwrap();
        let nanos = self.actual[&ticket].0 * SLOTS * 1_000_000_000 / WORK_PER_S;
        let end = Nanos(free.max(self.now).0 + nanos);
        self.slots.insert((end, slot));
        self.running.insert((end, ticket));
        let most = self.admission.capacity().budget.0 + WORK_MAX;
        assert!(self.admission.work_in_flight().0 < most, "budget exceeded by a whole request");
    }

    fn join(&mut self, offer: Offer) {
        let key = (offer.class, offer.tenant);
        let waited = self.waits(key);
        self.waiting.entry(key).or_default().insert(offer.ticket);
        if !waited {
            self.restart_gaps(offer.class, offer.tenant);
        }
        if offer.class == Batch && self.admission.waiting(Batch) == 1 {
            self.floor.owed_permille = 0;
            self.floor.lowest = 0;
        }
    }

    fn leave(&mut self, ticket: Ticket) {
        let offer = self.offers[&ticket];
        assert!(self.waiting.get_mut(&(offer.class, offer.tenant)).unwrap().remove(&ticket), "left twice");
    }

    fn waits(&self, key: (Class, Tenant)) -> bool {
        self.waiting.get(&key).is_some_and(|waiting| !waiting.is_empty())
    }

    fn restart_gaps(&mut self, class: Class, tenant: Tenant) {
        for other in (0..TENANTS).map(Tenant).filter(|other| *other != tenant) {
            let gap = self.fair.entry((class, tenant.min(other), tenant.max(other))).or_default();
            *gap = Gap { widest: gap.widest, ..Gap::default() };
        }
    }

    /// Before an admitted waiter leaves the queue: who waited beside it?
    fn measure(&mut self, ticket: Ticket) {
        let Offer { class, tenant, work, .. } = self.offers[&ticket];
        for other in (0..TENANTS).map(Tenant).filter(|other| *other != tenant) {
            if self.waits((class, other)) {
                let sign = if tenant < other { 1 } else { -1 };
                let gap = self.fair.entry((class, tenant.min(other), tenant.max(other))).or_default();
                gap.add(sign * work.0 as i64);
            }
        }
        if (0..TENANTS).any(|tenant| self.waits((Batch, Tenant(tenant)))) {
            let own = if class == Batch { 1000 } else { 0 };
            self.floor.add((BATCH_FLOOR_PERMILLE as i64 - own) * work.0 as i64);
        }
    }

    fn note(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    fn work_done(&self, class: Class) -> u64 {
        self.done.iter().filter(|((c, _), _)| *c == class).map(|(_, work)| *work).sum()
    }
}

impl Gap {
    fn add(&mut self, work: i64) {
        self.difference += work;
        self.least = self.least.min(self.difference);
        self.most = self.most.max(self.difference);
        self.widest = self.widest.max(self.most - self.least);
    }
}

impl Floor {
    fn add(&mut self, owed_permille: i64) {
        self.owed_permille += owed_permille;
        self.lowest = self.lowest.min(self.owed_permille);
        self.behind_permille = self.behind_permille.max(self.owed_permille - self.lowest);
    }
}

fn run(seed: u64, load: f64) -> Run {
    let mut run = Run::new(seed);
    run.offer_for(60, load);
    run.admission.check();
    run
}

#[test]
fn at_three_times_the_load_every_request_has_one_outcome_and_none_starts_late() {
    for seed in 0..4 {
        let run = run(seed, 3.0);
        let counts = &run.admission.ledger().classes;
        let total = |what: fn(&Counts) -> u64| counts.iter().map(what).sum::<u64>();
        println!("seed {seed}: {} offered, {:?}", run.next_ticket, run.seen);
        assert_eq!(total(|c| c.offered), run.next_ticket);
        assert_eq!(
            run.seen.values().sum::<u64>(),
            run.next_ticket,
            "completed, refused, cancelled and expired are all there is: {:?}",
            run.seen
        );
        assert_eq!(run.seen["completed"], total(Counts::completions_total));
        assert!(run.waiting.values().all(BTreeSet::is_empty) && run.admission.bytes_waiting() == 0);
        assert!(run.admission.work_in_flight() == Work(0));
        let refused = run.next_ticket - run.seen["completed"];
        let of_all = refused as f64 / run.next_ticket as f64;
        assert!((0.60..0.72).contains(&of_all), "two thirds cannot be served: {of_all:.2}");
        assert!(run.seen["shed"] > 0 && run.seen["cancelled"] > 0, "{:?}", run.seen);
    }
}

#[test]
fn tenants_that_wait_differ_by_at_most_two_maximal_requests() {
    let mut widest = 0;
    for seed in 0..4 {
        let run = run(seed, 3.0);
        for ((class, a, b), gap) in &run.fair {
            widest = widest.max(gap.widest);
            let bound = 2 * WORK_MAX as i64;
            assert!(gap.widest <= bound, "seed {seed} {class:?} {a} {b}: {}", gap.widest);
        }
    }
    println!("widest gap {widest} of {} allowed", 2 * WORK_MAX);
    assert!(widest > WORK_MAX as i64 / 2, "no contention was measured: {widest}");
}

#[test]
fn a_small_tenant_is_served_in_full_and_the_others_share_the_rest_evenly() {
    for seed in 0..4 {
        let run = run(seed, 3.0);
        let done = |tenant| run.done[&(Interactive, Tenant(tenant))] as f64;
        let asked = |tenant| {
            let own = run.offers.values().filter(|o| o.class == Interactive && o.tenant == Tenant(tenant));
            own.map(|o| o.work.0).sum::<u64>() as f64
        };
        println!("seed {seed}: served {:?}", [0, 1, 2].map(|t| (done(t) / asked(t) * 100.0) as u64));
        assert!(done(2) > 0.95 * asked(2), "the small tenant got {:.2}", done(2) / asked(2));
        assert!((done(0) / done(1) - 1.0).abs() < 0.05, "the large ones got {:.2}", done(0) / done(1));
    }
}

#[test]
fn a_tenant_predicted_at_half_its_work_gets_no_more_for_it() {
    for seed in 0..4 {
        let mut run = Run::new(seed);
        run.predicted_permille[0] = 500;
        run.offer_for(60, 3.0);
        let done = |tenant| run.done[&(Interactive, Tenant(tenant))] as f64;
        let ratio = done(0) / done(1);
        println!("seed {seed}: the underpredicted tenant got {ratio:.2} times the other's work");
        assert!((ratio - 1.0).abs() < 0.10, "{ratio:.2}");
    }
}

#[test]
fn the_lower_class_keeps_its_floor_and_the_pool_stays_busy() {
    for seed in 0..4 {
        let run = run(seed, 3.0);
        let behind = run.floor.behind_permille / 1000;
        assert!(behind <= 3 * WORK_MAX as i64, "seed {seed}: {behind} tokens behind its floor");
        let (high, low) = (run.work_done(Interactive) as f64, run.work_done(Batch) as f64);
        let share = low / (high + low);
        println!("seed {seed}: batch {share:.3} of the work, at most {behind} tokens behind");
        assert!((0.19..0.30).contains(&share), "batch got {share:.3}");
        assert!(high + low > 0.98 * 60.0 * WORK_PER_S as f64, "the pool idled: {}", high + low);
    }
}

#[test]
fn below_saturation_nobody_is_refused() {
    let run = run(7, 0.6);
    let refused: Vec<_> =
        run.seen.iter().filter(|(what, _)| !["completed", "cancelled"].contains(what)).collect();
    assert!(refused.is_empty(), "{refused:?}");
}
