//! What one replica has been given and has not finished.

use std::ops::{Add, Sub};

/// A replica as all routers call it: the first 64 bits of a digest of its pool and address. Seats will
/// not do, each router gives out its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ReplicaKey(pub u64);

/// Reservations on one replica, summed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct SeatLoad {
    /// Uncached prefill tokens routed there and not computed yet.
    pub pending_prefill_tokens: u64,
    pub active_requests: u64,
    /// Tokens that active requests keep resident.
    pub resident_tokens: u64,
}

impl SeatLoad {
    pub const NONE: SeatLoad = SeatLoad { pending_prefill_tokens: 0, active_requests: 0, resident_tokens: 0 };

    fn zip(self, other: SeatLoad, with: impl Fn(u64, u64) -> u64) -> SeatLoad {
        SeatLoad {
            pending_prefill_tokens: with(self.pending_prefill_tokens, other.pending_prefill_tokens),
            active_requests: with(self.active_requests, other.active_requests),
            resident_tokens: with(self.resident_tokens, other.resident_tokens),
        }
    }
    pub(super) fn values(self) -> [u64; 3] {
        [self.pending_prefill_tokens, self.active_requests, self.resident_tokens]
    }
    pub(super) fn of_values([pending_prefill_tokens, active_requests, resident_tokens]: [u64; 3]) -> Self {
        Self { pending_prefill_tokens, active_requests, resident_tokens }
    }
}

impl Add for SeatLoad {
    type Output = SeatLoad;
    fn add(self, other: SeatLoad) -> SeatLoad {
        self.zip(other, u64::saturating_add)
    }
}

impl Sub for SeatLoad {
    type Output = SeatLoad;
    fn sub(self, other: SeatLoad) -> SeatLoad {
        self.zip(other, u64::saturating_sub)
    }
}
