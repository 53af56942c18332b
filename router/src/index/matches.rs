//! What a lookup found: how many blocks of a prompt each replica holds.
//!
//! One value is kept and filled again and again: a kilobyte of zeros for each lookup would cost as much as
//! the lookup itself, so only entries of `seats` mean anything.

use base::Tier;

use crate::{Held, Seat, SeatSet};

#[derive(Clone)]
pub struct Matches {
    seats: SeatSet,
    held: [Held; Seat::MAX],
}

impl Default for Matches {
    fn default() -> Self {
        Self { seats: SeatSet::EMPTY, held: [Held::default(); Seat::MAX] }
    }
}

impl Matches {
    /// The replicas that hold at least the first block in some tier.
    pub fn seats(&self) -> SeatSet {
        self.seats
    }

    pub fn held(&self, seat: Seat) -> Held {
        if self.seats.has(seat) { self.held[seat.index()] } else { Held::default() }
    }

    pub fn iter(&self) -> impl Iterator<Item = (Seat, Held)> {
        self.seats.iter().map(|seat| (seat, self.held[seat.index()]))
    }

    /// The most blocks that any replica holds, wherever.
    pub fn longest(&self) -> u32 {
        self.iter().map(|(_, held)| held.anywhere()).max().unwrap_or(0)
    }

    pub(super) fn clear(&mut self) {
        self.seats = SeatSet::EMPTY;
    }

    #[inline(always)]
    pub(super) fn put(&mut self, seats: u64, tier: Tier, blocks: u32) {
        for seat in SeatSet(seats).iter() {
            let held = &mut self.held[seat.index()];
            if !self.seats.has(seat) {
                *held = Held::default();
            }
            held.blocks[tier.index()] = blocks;
        }
        self.seats.0 |= seats;
    }
}

impl PartialEq for Matches {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl std::fmt::Debug for Matches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.iter().map(|(seat, held)| (seat.0, held.blocks))).finish()
    }
}
