//! What is offered to admission.

use std::fmt;

use base::Nanos;

use super::class::Class;
pub use crate::Ticket;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// Who pays. The faces map a key's project to this number.
    Tenant(u64)
);
number!(
    /// Predicted work in tokens: uncached prefill plus the decode steps expected, weighed to the same
    /// time. Never zero once offered.
    Work(u64)
);

/// A tenant's share against the others of its class: 1 to 1000.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Weight(u16);

impl Weight {
    pub const ONE: Weight = Weight(1);
    pub const MAX: Weight = Weight(1000);

    /// The nearest weight there is.
    pub fn new(weight: u16) -> Self {
        Self(weight.clamp(1, Self::MAX.0))
    }
    pub fn get(self) -> u64 {
        u64::from(self.0)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Offer {
    pub ticket: Ticket,
    pub tenant: Tenant,
    pub weight: Weight,
    pub class: Class,
    pub work: Work,
    /// What the request holds while it waits: its body and its tokens.
    pub bytes: u64,
    /// The last instant before which it must start.
    pub deadline: Nanos,
}
