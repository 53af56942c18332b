//! Admission against a naive model, under overload, and by the cost of a decision.

mod claims;
mod cost;
mod model;
mod naive;
mod overload;

use base::Nanos;

use super::*;

fn offer(ticket: u64, tenant: u64, class: Class, work: u64) -> Offer {
    Offer {
        ticket: Ticket(ticket),
        tenant: Tenant(tenant),
        weight: Weight::ONE,
        class,
        work: Work(work),
        bytes: 1,
        deadline: Nanos::from_millis(10_000),
    }
}

fn drain(admission: &mut Admission, now: Nanos) -> Vec<Settled> {
    let settled = std::iter::from_fn(|| admission.next(now)).collect();
    admission.check();
    settled
}

fn tickets(settled: &[Settled]) -> Vec<u64> {
    settled.iter().map(|s| s.ticket.0).collect()
}

fn reason(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Rejected(refusal) => refusal.reason.code(),
        other => panic!("not refused: {other:?}"),
    }
}
