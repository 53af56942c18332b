//! A decision's cost, counted in comparisons rather than in time.

use std::time::Duration;

use super::super::rank::COMPARISONS;
use super::*;

/// Comparisons per request that is offered, admitted, cancelled or expired, with `waiting` in the queue
/// of `tenants`.
fn comparisons(waiting: u64, tenants: u64) -> f64 {
    let mut config = AdmissionConfig::default();
    let max = 1 << 20;
    config.queue = QueueLimits {
        entries_max: max,
        bytes_max: u64::MAX,
        tenant_entries_max: max,
        tenant_bytes_max: u64::MAX,
        tenants_max: max,
    };
    let mut admission = Admission::new(config, Capacity { budget: Work(1), work_per_s: 0 }).unwrap();
    let mut rng = base::SplitMix::new(waiting);
    let mut draw = |ticket: u64| Offer {
        deadline: Nanos::from_millis(1_000 + rng.below(20_000)),
        ..offer(ticket, rng.below(tenants), Class::Interactive, 1 + rng.below(1000))
    };
    for ticket in 0..=waiting {
        let _ = admission.offer(Nanos(0), draw(ticket));
    }
    let rounds = 200;
    let before = COMPARISONS.with(std::cell::Cell::get);
    let mut running = Ticket(0);
    for round in 0..rounds {
        let ticket = waiting + 1 + round;
        let _ = admission.offer(Nanos(0), draw(ticket));
        let _ = admission.offer(Nanos(0), draw(ticket + rounds));
        admission.finished(running, Work(1), Completion::Completed).unwrap();
        running = admission.next(Nanos(0)).expect("there is room again").ticket;
        let _ = admission.cancel(Ticket(ticket + rounds));
    }
    let spent = COMPARISONS.with(std::cell::Cell::get) - before;
    admission.check();
    assert!(admission.next_deadline().unwrap() > Nanos(0).plus(Duration::from_millis(999)));
    spent as f64 / rounds as f64
}

#[test]
fn a_decision_costs_the_logarithm_of_what_waits() {
    let [few, more, many] = [(256, 16), (4_096, 256), (65_536, 4_096)].map(|(w, t)| comparisons(w, t));
    println!("comparisons per round: {few:.0}, {more:.0}, {many:.0} at 256, 4,096 and 65,536 waiters");
    let (first, second) = (more - few, many - more);
    assert!(second < 2.0 * first, "16 times the waiters added {first:.0}, then {second:.0}");
}
