//! What admission answers: one admission outcome and one completion outcome per request.
//!
//! A refusal says in a machine's words why (`x-quire-overflow`), because a broker falls back on one
//! reason (the pool is full) and not on another (the request can never be served).

use std::time::Duration;

use super::offer::Ticket;

/// The answer to an offer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Start now.
    Admitted,
    /// Wait: exactly one [`Settled`] follows.
    Queued {
        wait_expected: Option<Duration>,
    },
    Rejected(Refusal),
    ExpiredBeforeStart,
}

/// What became of one that waited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settled {
    pub ticket: Ticket,
    pub outcome: Outcome,
}

/// The last word on a waiter's admission.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Admitted,
    Rejected(Refusal),
    ExpiredBeforeStart,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal {
    pub reason: Reason,
    /// `None`: the same request will be refused again.
    pub retry_after: Option<Duration>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reason {
    /// The pool's queue is full.
    Saturated,
    /// The queue still has room, but not for this class.
    Shed,
    /// This tenant waits with all it may.
    TenantLimit,
    /// More tenants wait than can be told apart.
    TenantsLimit,
    /// It would expire in the queue.
    DeadlineUnreachable,
    /// The pool is being drained.
    Draining,
    /// More work than any request may be.
    TooLarge,
    /// The client went away while it waited.
    Cancelled,
    /// The ticket is already waiting or in flight.
    DuplicateTicket,
}

/// Where a refused request may go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fallback {
    /// Another pool or the managed path serves it.
    Elsewhere,
    /// Nowhere: its own tenant's limit, or its own fault.
    Nowhere,
}

impl Reason {
    pub const ALL: [Reason; 9] = [
        Reason::Saturated,
        Reason::Shed,
        Reason::TenantLimit,
        Reason::TenantsLimit,
        Reason::DeadlineUnreachable,
        Reason::Draining,
        Reason::TooLarge,
        Reason::Cancelled,
        Reason::DuplicateTicket,
    ];
    /// The response header that carries [`Reason::code`].
    pub const HEADER: &'static str = "x-quire-overflow";

    pub fn index(self) -> usize {
        self as usize
    }
    /// The header's value and the metric label.
    pub fn code(self) -> &'static str {
        match self {
            Reason::Saturated => "saturated",
            Reason::Shed => "shed",
            Reason::TenantLimit => "tenant_limit",
            Reason::TenantsLimit => "tenants_limit",
            Reason::DeadlineUnreachable => "deadline_unreachable",
            Reason::Draining => "draining",
            Reason::TooLarge => "too_large",
            Reason::Cancelled => "cancelled",
            Reason::DuplicateTicket => "duplicate_ticket",
        }
    }
    pub fn fallback(self) -> Fallback {
        match self {
            Reason::Saturated
            | Reason::Shed
            | Reason::TenantsLimit
            | Reason::DeadlineUnreachable
            | Reason::Draining => Fallback::Elsewhere,
            Reason::TenantLimit | Reason::TooLarge | Reason::Cancelled | Reason::DuplicateTicket => {
                Fallback::Nowhere
            }
        }
    }
    pub fn http_status(self) -> u16 {
        match self {
            Reason::Saturated
            | Reason::Shed
            | Reason::TenantsLimit
            | Reason::DeadlineUnreachable
            | Reason::Draining => 503,
            Reason::TenantLimit => 429,
            Reason::TooLarge => 413,
            Reason::Cancelled => 499,
            Reason::DuplicateTicket => 409,
        }
    }
}

/// How an admitted request ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Completion {
    Completed,
    Failed(FailureKind),
    /// The client went away.
    Cancelled,
    /// Admitted, yet not started by its deadline, or longer than its limit.
    TimedOut,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FailureKind {
    /// No replica could be reached.
    Transport,
    /// A replica failed it.
    Upstream,
    /// The replica was cut by a drain's deadline.
    Drained,
    /// The request itself was refused by the replica.
    Refused,
}

impl Completion {
    pub const ALL: [Completion; 7] = [
        Completion::Completed,
        Completion::Failed(FailureKind::Transport),
        Completion::Failed(FailureKind::Upstream),
        Completion::Failed(FailureKind::Drained),
        Completion::Failed(FailureKind::Refused),
        Completion::Cancelled,
        Completion::TimedOut,
    ];

    pub fn index(self) -> usize {
        match self {
            Completion::Completed => 0,
            Completion::Failed(kind) => 1 + kind as usize,
            Completion::Cancelled => 5,
            Completion::TimedOut => 6,
        }
    }
    /// The metric label.
    pub fn code(self) -> &'static str {
        match self {
            Completion::Completed => "completed",
            Completion::Failed(FailureKind::Transport) => "failed_transport",
            Completion::Failed(FailureKind::Upstream) => "failed_upstream",
            Completion::Failed(FailureKind::Drained) => "failed_drained",
            Completion::Failed(FailureKind::Refused) => "failed_refused",
            Completion::Cancelled => "cancelled",
            Completion::TimedOut => "timed_out",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    #[test]
    fn every_refusal_says_what_a_broker_may_do() {
        let mut table = String::new();
        for reason in Reason::ALL {
            let fallback = reason.fallback();
            writeln!(table, "{} {}: {} → {fallback:?}", reason.http_status(), Reason::HEADER, reason.code())
                .unwrap();
        }
        expect_test::expect![[r#"
            503 x-quire-overflow: saturated → Elsewhere
            503 x-quire-overflow: shed → Elsewhere
            429 x-quire-overflow: tenant_limit → Nowhere
            503 x-quire-overflow: tenants_limit → Elsewhere
            503 x-quire-overflow: deadline_unreachable → Elsewhere
            503 x-quire-overflow: draining → Elsewhere
            413 x-quire-overflow: too_large → Nowhere
            499 x-quire-overflow: cancelled → Nowhere
            409 x-quire-overflow: duplicate_ticket → Nowhere
        "#]]
        .assert_eq(&table);
    }

    #[test]
    fn labels_are_dense_and_distinct() {
        for (at, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), at);
        }
        for (at, completion) in Completion::ALL.into_iter().enumerate() {
            assert_eq!(completion.index(), at);
        }
        let codes: std::collections::BTreeSet<_> = Completion::ALL.map(Completion::code).into();
        assert_eq!(codes.len(), Completion::ALL.len());
    }
}
