//! One claim per rule.

use std::time::Duration;

use super::*;
use Class::{Batch, Interactive, Standard};

/// A pool that holds 100 tokens of work and finishes 100 per second.
fn pool(config: AdmissionConfig) -> Admission {
    Admission::new(config, Capacity { budget: Work(100), work_per_s: 100 }).unwrap()
}

/// The same, filled by ticket 0.
fn full(config: AdmissionConfig) -> Admission {
    let mut pool = pool(config);
    assert_eq!(pool.offer(Nanos(0), offer(0, 9, Standard, 100)), Verdict::Admitted);
    pool
}

fn small(change: impl FnOnce(&mut AdmissionConfig)) -> AdmissionConfig {
    let mut config = AdmissionConfig { work_max: Work(200), ..AdmissionConfig::default() };
    config.queue.entries_max = 10;
    change(&mut config);
    config
}

fn queued(pool: &mut Admission, offer: Offer) {
    let verdict = pool.offer(Nanos(0), offer);
    assert!(matches!(verdict, Verdict::Queued { .. }), "{verdict:?}");
    pool.check();
}

#[test]
fn work_not_requests_fills_the_pool() {
    let mut pool = pool(AdmissionConfig::default());
    for ticket in 0..99 {
        assert_eq!(pool.offer(Nanos(0), offer(ticket, 1, Standard, 1)), Verdict::Admitted);
    }
    assert_eq!(pool.offer(Nanos(0), offer(99, 1, Standard, 50)), Verdict::Admitted, "the one that crosses");
    queued(&mut pool, offer(100, 1, Standard, 1));
    assert_eq!(pool.work_in_flight(), Work(149));
}

#[test]
fn a_higher_class_goes_first_and_the_floor_is_kept() {
    let mut pool = full(AdmissionConfig::default());
    for n in 0..10 {
        queued(&mut pool, offer(100 + n, 1, Interactive, 10));
        queued(&mut pool, offer(200 + n, 1, Standard, 10));
    }
    pool.finished(Ticket(0), Work(100), Completion::Completed).unwrap();
    let order = tickets(&drain(&mut pool, Nanos(1)));
    assert_eq!(order, [100, 200, 101, 102, 103, 104, 201, 105, 106, 107], "a fifth is standard's");
}

#[test]
fn lower_classes_are_shed_while_there_is_room_for_higher_ones() {
    let mut pool = full(small(|c| c.classes[2].shed_at_permille = 300));
    (1..4).for_each(|n| queued(&mut pool, offer(n, 1, Batch, 1)));
    assert_eq!(reason(pool.offer(Nanos(0), offer(4, 1, Batch, 1))), "shed");
    (5..10).for_each(|n| queued(&mut pool, offer(n, 1, Standard, 1)));
    assert_eq!(reason(pool.offer(Nanos(0), offer(10, 1, Standard, 1))), "shed");
    (11..13).for_each(|n| queued(&mut pool, offer(n, 1, Interactive, 1)));
    assert_eq!(reason(pool.offer(Nanos(0), offer(13, 1, Interactive, 1))), "saturated");
}

#[test]
fn a_tenant_at_its_limit_leaves_room_for_the_others() {
    let mut pool = full(small(|c| {
        c.queue.tenant_entries_max = 2;
        c.queue.tenant_bytes_max = 100;
    }));
    (1..3).for_each(|n| queued(&mut pool, offer(n, 1, Interactive, 1)));
    assert_eq!(reason(pool.offer(Nanos(0), offer(3, 1, Interactive, 1))), "tenant_limit");
    let heavy = Offer { bytes: 101, ..offer(4, 2, Interactive, 1) };
    assert_eq!(reason(pool.offer(Nanos(0), heavy)), "tenant_limit");
    queued(&mut pool, offer(5, 2, Interactive, 1));
}

#[test]
fn without_a_queue_a_full_pool_refuses_at_once() {
    let mut pool = full(small(|c| c.queue.entries_max = 0));
    assert_eq!(reason(pool.offer(Nanos(0), offer(1, 1, Interactive, 1))), "saturated");
    pool.check();
}

#[test]
fn more_tenants_than_can_be_told_apart_are_refused() {
    let mut pool = full(small(|c| c.queue.tenants_max = 2));
    queued(&mut pool, offer(1, 1, Interactive, 1));
    queued(&mut pool, offer(2, 2, Interactive, 1));
    assert_eq!(reason(pool.offer(Nanos(0), offer(3, 3, Interactive, 1))), "tenants_limit");
}

#[test]
fn what_would_expire_in_the_queue_is_refused_at_once() {
    let mut pool = full(small(|c| c.classes[0].wait_max = Duration::from_secs(2)));
    queued(&mut pool, offer(1, 1, Interactive, 150));
    assert!(matches!(
        pool.offer(Nanos(0), offer(2, 1, Interactive, 60)),
        Verdict::Queued { wait_expected: Some(wait) } if wait == Duration::from_millis(1500)
    ));
    let verdict = pool.offer(Nanos(0), offer(3, 1, Interactive, 1));
    let refusal =
        Refusal { reason: Reason::DeadlineUnreachable, retry_after: Some(Duration::from_millis(2100)) };
    assert_eq!(verdict, Verdict::Rejected(refusal), "210 tokens wait at 100 per second");
    queued(&mut pool, offer(4, 2, Interactive, 1));
}

#[test]
fn what_can_never_be_served_is_told_not_to_come_back() {
    let mut pool = pool(small(|_| ()));
    let never = |reason| Verdict::Rejected(Refusal { reason, retry_after: None });
    assert_eq!(pool.offer(Nanos(0), offer(1, 1, Batch, 201)), never(Reason::TooLarge));
    assert_eq!(pool.offer(Nanos(0), offer(2, 1, Batch, 1)), Verdict::Admitted);
    assert_eq!(pool.offer(Nanos(0), offer(2, 1, Batch, 1)), never(Reason::DuplicateTicket));
    let late = Offer { deadline: Nanos(5), ..offer(3, 1, Batch, 1) };
    assert_eq!(pool.offer(Nanos(5), late), Verdict::ExpiredBeforeStart);
    pool.check();
}

#[test]
fn a_cancelled_waiter_frees_its_place() {
    let mut pool = full(small(|c| c.queue.entries_max = 1));
    queued(&mut pool, offer(1, 1, Interactive, 1));
    assert_eq!(reason(pool.offer(Nanos(0), offer(2, 1, Interactive, 1))), "saturated");
    assert_eq!(pool.cancel(Ticket(1)), Cancel::Waited);
    assert_eq!(pool.cancel(Ticket(1)), Cancel::Unknown);
    assert_eq!(pool.cancel(Ticket(0)), Cancel::InFlight);
    queued(&mut pool, offer(3, 1, Interactive, 1));
    pool.finished(Ticket(0), Work(100), Completion::Completed).unwrap();
    assert_eq!(tickets(&drain(&mut pool, Nanos(1))), [3]);
}

#[test]
fn an_admitted_request_that_dawdles_past_its_deadline_does_not_start() {
    let mut pool = pool(AdmissionConfig::default());
    let deadline = Nanos(50);
    for ticket in [1, 2] {
        assert_eq!(pool.offer(Nanos(0), Offer { deadline, ..offer(ticket, 1, Batch, 1) }), Verdict::Admitted);
    }
    assert_eq!(pool.started(Nanos(49), Ticket(1)), Ok(Start::Go));
    assert_eq!(pool.started(Nanos(50), Ticket(2)), Ok(Start::TooLate));
    let gone = UnknownTicket { ticket: Ticket(2) };
    assert_eq!(pool.finished(Ticket(2), Work(1), Completion::Completed), Err(gone), "it has ended once");
    assert_eq!(pool.ledger().classes[Batch.index()].completions[Completion::TimedOut.index()], 1);
    pool.check();
}

#[test]
fn a_drain_serves_its_waiters_or_sends_them_elsewhere() {
    for (waiters, served) in [(Waiters::Serve, true), (Waiters::Refuse, false)] {
        let mut pool = full(AdmissionConfig::default());
        queued(&mut pool, offer(1, 1, Interactive, 1));
        pool.close(waiters);
        assert_eq!(reason(pool.offer(Nanos(0), offer(2, 1, Interactive, 1))), "draining");
        pool.finished(Ticket(0), Work(100), Completion::Completed).unwrap();
        let settled = drain(&mut pool, Nanos(1));
        assert_eq!(tickets(&settled), [1]);
        assert_eq!(settled[0].outcome == Outcome::Admitted, served, "{settled:?}");
        pool.open();
        assert_eq!(pool.offer(Nanos(1), offer(3, 1, Interactive, 1)), Verdict::Admitted);
    }
}

#[test]
fn a_pool_without_replicas_queues_and_expires() {
    let mut pool = Admission::new(AdmissionConfig::default(), Capacity::default()).unwrap();
    let verdict = pool.offer(Nanos(0), offer(1, 1, Interactive, 1));
    assert_eq!(verdict, Verdict::Queued { wait_expected: None });
    assert_eq!(pool.next_deadline(), Some(Nanos::from_millis(10_000)));
    assert_eq!(drain(&mut pool, Nanos::from_millis(9_999)), []);
    let expired = Settled { ticket: Ticket(1), outcome: Outcome::ExpiredBeforeStart };
    assert_eq!(drain(&mut pool, Nanos::from_millis(10_000)), [expired]);
}

#[test]
fn replicas_that_come_back_take_the_waiters() {
    let mut pool = Admission::new(AdmissionConfig::default(), Capacity::default()).unwrap();
    queued(&mut pool, offer(1, 1, Interactive, 1));
    pool.set_capacity(Capacity::of([50], Duration::from_secs(1)));
    assert_eq!(tickets(&drain(&mut pool, Nanos(1))), [1]);
}
