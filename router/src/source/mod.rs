//! One replica's event stream as a state machine without I/O: messages in, operations on the index out, and what the
//! socket should ask for next.
//!
//! ```text
//!           first word            snapshot or replay whole
//!   COLD ───────────────▶ SNAPSHOT ───────────────────────▶ EXACT ◀──┐
//!                            ▲                                │ gap, silence, lost stream
//!                            └──────── DEGRADED ◀─────────────┘      │
//!                                          └── resumed, proven ──────┘
//! ```
//!
//! EXACT is a promise: what the index holds for the replica is what the replica held at the position that the source
//! has reached, no block more; what cannot be named or has no room is left out and counted. In every other state what
//! is held is a hint. There are two kinds of sources.
//! [`Follower`] follows `quire.v1`: numbered by incarnation, resumed, restored from a snapshot that was cut together
//! with the position from which changes go on. [`Tail`] follows the ZeroMQ streams of vLLM and SGLang, which have no
//! snapshots and name no incarnation: it is restored by replay and proves by the content of the last batch that it
//! still hears the same process.

mod follower;
mod foreign;
mod tail;
mod told;
pub mod wire;

pub use follower::{Counts, Follower, Limits, Verdict, Why};
pub use foreign::{Engine, Foreign, ForeignCounts, Taken};
pub use tail::{Replay, Tail, TailCounts, TailLimits, Want};
pub use told::{Scope, Tiers, Told};

use std::fmt;

/// How far a source can be believed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum State {
    /// Nothing is known.
    #[default]
    Cold,
    /// What is there is being told from the beginning.
    Snapshot,
    /// Nothing is known that is not so.
    Exact,
    /// Something was missed, or may have been.
    Degraded,
}

impl State {
    pub const ALL: [State; 4] = [State::Cold, State::Snapshot, State::Exact, State::Degraded];

    /// The label in metrics.
    pub fn name(self) -> &'static str {
        match self {
            State::Cold => "cold",
            State::Snapshot => "snapshot",
            State::Exact => "exact",
            State::Degraded => "degraded",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
