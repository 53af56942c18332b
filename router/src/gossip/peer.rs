//! What is known of one other router.

use std::collections::HashMap;

use base::Nanos;

use super::load::{ReplicaKey, SeatLoad};
use super::wire::{Incarnation, Sequence};

#[derive(Debug, Default)]
pub(super) struct Peer {
    /// The newest life we have heard of; told back in greetings. A recording may raise it, and then only
    /// the router's own greeting is late.
    pub heard: Incarnation,
    /// The life whose totals we hold, once it has shown that it is not a recording, and its last datagram.
    pub taken: Option<(Incarnation, Sequence)>,
    pub last_heard: Nanos,
    pub totals: HashMap<ReplicaKey, Total>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Total {
    pub load: SeatLoad,
    pub expires: Nanos,
}

/// What a datagram's numbers say about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Freshness {
    Next,
    /// The first of a new life, and it has heard us in ours.
    NewLife,
    /// Perhaps a new life, perhaps a recording: it has not heard us.
    Unproven,
    Old,
}

impl Peer {
    pub fn freshness(&self, incarnation: Incarnation, sequence: Sequence, heard_us: HeardUs) -> Freshness {
        match self.taken {
            Some((taken, _)) if incarnation < taken => Freshness::Old,
            Some((taken, last)) if incarnation == taken => {
                if sequence > last {
                    Freshness::Next
                } else {
                    Freshness::Old
                }
            }
            _ if heard_us == HeardUs::Yes => Freshness::NewLife,
            _ => Freshness::Unproven,
        }
    }
}

/// Whether a datagram names our own incarnation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum HeardUs {
    Yes,
    No,
}
