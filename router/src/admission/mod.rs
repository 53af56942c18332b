//! Who may start, who waits, who is refused: one admission outcome and one completion outcome each.
//!
//! ```text
//!            ┌─ room, nobody waits ─▶ Admitted ──────────────┐
//!  offer ────┼─ no place for it ────▶ Rejected{reason}       ├─▶ in flight ─▶ one Completion
//!            └─ Queued ──▶ next(): Admitted ─────────────────┘
//!                              │ Rejected (drained, client gone)
//!                              └ ExpiredBeforeStart
//! ```
//!
//! What is limited is the predicted token work in flight (`capacity`), not the number of requests: they
//! differ by a factor of a thousand, and a queue-length threshold either starves the pool of small ones
//! or drowns it in large ones. Beyond the budget a request waits here, where waiting is fair, can be
//! cancelled and ends at the deadline, and not in a replica. Order: class (`turns`), then the tenant that
//! was given least (`fair`), then the deadline. The queue is bounded; lower classes are refused while
//! there is still room in it, so that a burst of batch work never costs a person the answer.
//!
//! A state machine: time is an argument, nothing sleeps. Each decision costs a few steps in ordered sets,
//! `O(log n)` in what waits.
//!
//! Limits: one pool, one router. Several routers each hold their part of the pool's capacity. The budget
//! is exceeded by less than one maximal request, because a request that does not fit would otherwise
//! wait for ever behind small ones or hold the pool empty until it fits.

mod capacity;
mod class;
mod config;
mod fair;
mod ledger;
mod offer;
mod pool;
mod rank;
#[cfg(test)]
mod tests;
mod turns;
mod verdict;
mod waitlist;

pub use capacity::Capacity;
pub use class::{Class, ClassPolicy, Rest};
pub use config::{AdmissionConfig, ConfigError, QueueLimits};
pub use ledger::{Counts, Ledger};
pub use offer::{Offer, Tenant, Ticket, Weight, Work};
pub use pool::{Admission, Cancel, Start, UnknownTicket, Waiters};
pub use verdict::{Completion, FailureKind, Fallback, Outcome, Reason, Refusal, Settled, Verdict};
