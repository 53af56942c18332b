//! What routers tell each other: how much work each has sent where.
//!
//! ```text
//!   own reservations ─▶ Gossip ─ tick: changed or due entries, signed ─▶ every other router
//!   others' load    ◀─ Gossip ◀─ receive: verified, fresh, newer ────────── datagrams
//! ```
//!
//! Routers that follow the same events see the same caches and pick the same replica for the same prefix;
//! without hearing of each other's picks they herd. Told is each router's own total per replica, not each
//! reservation: a total replaces the one before, so a lost, doubled or late datagram does no harm and
//! nothing needs to be acknowledged. Totals that change are told with the next tick; all others are told
//! again several times within the TTL, which is the repair. A total that was not repeated for a TTL is
//! gone, and so is, with all its totals, a router that died.
//!
//! Each datagram carries an HMAC under the fleet's key and three numbers: router, incarnation, sequence.
//! Within an incarnation only a higher sequence is taken. The first datagram of an incarnation is taken
//! only if it names our own incarnation, which it can only have learned since we started; so what was
//! recorded before a restart, ours or theirs, is worth nothing after it.
//!
//! Limits: every router sends to every other (no relaying). A late datagram counts as lost, so reordering
//! costs freshness until the repair. Contents are authenticated, not secret.

mod load;
mod peer;
mod state;
#[cfg(test)]
mod tests;
mod wire;

pub use load::{ReplicaKey, SeatLoad};
pub use state::{Gossip, GossipConfig, GossipStats, Ignored, TableFull};
pub use wire::{
    DATAGRAM_BYTES_MAX, Entry, Greeting, Incarnation, Keys, Message, RouterId, Sequence, WireError,
};
