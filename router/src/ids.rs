//! What the parts of the router call a replica, and what they say it holds.
//!
//! A block's name is a plain `u64`, the first 64 bits of its chain hash, as events carry them: slices of
//! names cross from hashing into the index by the thousand, and a wrapper would buy casts, not safety.

use std::fmt;

use base::Tier;
use serde::{Deserialize, Serialize};

/// A replica's seat in the router's tables. Dense and reused: a seat is given away again once nothing
/// in any table speaks of the replica that had it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seat(pub u16);

impl Seat {
    /// Most replicas of one pool: a set of them is one machine word.
    pub const MAX: usize = 64;

    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One request at the router's door; the router numbers them and never reuses a number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ticket(pub u64);

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Some of a pool's replicas.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct SeatSet(pub u64);

impl SeatSet {
    pub const EMPTY: SeatSet = SeatSet(0);
    pub const ALL: SeatSet = SeatSet(u64::MAX);

    pub fn of(seat: Seat) -> Self {
        Self(1 << seat.index())
    }
    pub fn has(self, seat: Seat) -> bool {
        self.0 >> seat.index() & 1 == 1
    }
    pub fn with(self, seat: Seat) -> Self {
        Self(self.0 | Self::of(seat).0)
    }
    pub fn without(self, seat: Seat) -> Self {
        Self(self.0 & !Self::of(seat).0)
    }
    pub fn and(self, other: SeatSet) -> Self {
        Self(self.0 & other.0)
    }
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }
    /// The seats in order.
    pub fn iter(self) -> impl Iterator<Item = Seat> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            (left != 0).then(|| {
                let seat = left.trailing_zeros();
                left &= left - 1;
                Seat(seat as u16)
            })
        })
    }
}

impl FromIterator<Seat> for SeatSet {
    fn from_iter<I: IntoIterator<Item = Seat>>(seats: I) -> Self {
        seats.into_iter().fold(Self::EMPTY, SeatSet::with)
    }
}

/// How many blocks of a prompt, counted from its first, one replica holds in each tier.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Held {
    pub blocks: [u32; Tier::ALL.len()],
}

impl Held {
    pub fn in_tier(&self, tier: Tier) -> u32 {
        self.blocks[tier.index()]
    }
    /// What need not be computed, wherever it lies.
    pub fn anywhere(&self) -> u32 {
        self.blocks.iter().copied().max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_gives_back_its_seats_in_order() {
        let seats = [Seat(63), Seat(0), Seat(7)];
        let set: SeatSet = seats.into_iter().collect();
        assert_eq!(set.iter().collect::<Vec<_>>(), [Seat(0), Seat(7), Seat(63)]);
        assert_eq!(set.without(Seat(7)).len(), 2);
        assert!(set.has(Seat(63)) && !set.has(Seat(1)));
    }
}
