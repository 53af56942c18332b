//! The laws of the index: tables are sound, counts equal bits, bytes charged are bytes allocated.

use base::{Bytes, Tier};

use super::Index;
use crate::{Seat, SeatSet};

/// A law that does not hold: a defect of this code.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{place}: {what}")]
pub struct Unlawful {
    pub place: String,
    pub what: String,
}

impl Index {
    /// Holds whenever nobody writes. `others` is what translations and assumptions have of the budget; tables
    /// that a reader still has count as allocated, so there must be no lookup going on either.
    pub fn check(&self, others: Bytes) -> Result<(), Unlawful> {
        let fail = |place: String, what: String| Err(Unlawful { place, what });
        let mut totals = [[0; Tier::ALL.len()]; Seat::MAX];
        let (mut bytes, mut scopes) = (others.0, 0);
        for holdings in self.registry.all() {
            let ledger = holdings.lock();
            let place = holdings.scope.to_string();
            if let Err(what) = holdings.check(&ledger) {
                return fail(place, what);
            }
            if ledger.is_empty() || ledger.is_over {
                return fail(place, "it is over and still there".into());
            }
            for seat in SeatSet::ALL.iter() {
                let counts = holdings.counts(&ledger, seat);
                totals[seat.index()].iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
            }
            bytes += holdings.bytes(&ledger);
            scopes += 1;
        }
        if let Some(seat) = SeatSet::ALL.iter().find(|&s| self.seat(s).memberships != totals[s.index()]) {
            let counted = self.seat(seat).memberships;
            return fail(
                format!("seat {seat}"),
                format!("{:?} blocks, {counted:?} counted", totals[seat.index()]),
            );
        }
        let view = self.view();
        if (bytes, scopes) != (view.bytes.0, view.scopes) {
            return fail("budget".into(), format!("{bytes} bytes in {scopes} scopes, {view:?} counted"));
        }
        Ok(())
    }
}
