//! The count of outcomes: what was offered is what was admitted, refused, expired or still waits.

use super::class::Class;
use super::verdict::{Completion, Reason};

/// One class's outcomes since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    pub offered: u64,
    pub admitted: u64,
    /// Of all offered, how many waited first.
    pub queued: u64,
    pub expired: u64,
    pub rejected: [u64; Reason::ALL.len()],
    pub completions: [u64; Completion::ALL.len()],
}

impl Counts {
    pub fn rejected_total(&self) -> u64 {
        self.rejected.iter().sum()
    }
    pub fn completions_total(&self) -> u64 {
        self.completions.iter().sum()
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ledger {
    pub classes: [Counts; Class::ALL.len()],
}

impl Ledger {
    pub(super) fn of(&mut self, class: Class) -> &mut Counts {
        &mut self.classes[class.index()]
    }

    /// # Panics
    /// If an outcome is missing or counted twice.
    pub(super) fn check(&self, class: Class, waiting: usize, in_flight: usize) {
        let counts = &self.classes[class.index()];
        let settled = counts.admitted + counts.rejected_total() + counts.expired;
        assert_eq!(counts.offered, settled + waiting as u64, "{} admission outcomes", class.name());
        let open = counts.completions_total() + in_flight as u64;
        assert_eq!(counts.admitted, open, "{} completion outcomes", class.name());
    }
}
