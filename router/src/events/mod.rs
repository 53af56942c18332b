//! The sockets behind `source`: one task per replica, which reads, hands on, and comes back after every failure.
//!
//! ```text
//!  quire.v1 ── h2 ──▶ quire::follow ─┐ messages   source::Follower ──▶ Told (index)
//!  PUB, ROUTER ─ TCP ▶ zmq::follow ──┤──────────▶ source::Tail      ──▶ Told (index)
//!                                    └──────────▶ Heard (fleet: state, load, failures)
//! ```
//!
//! A task has one message in hand and reads the next when that is applied, so a router that is behind holds up its
//! connection and not its memory. A task may be dropped at any await: what it had told of its replica is taken back
//! then, because a replica that nobody follows is one of which nothing is known.

mod backoff;
mod channel;
pub mod quire;
pub mod zmq;

pub use backoff::Backoff;
pub use channel::{Channel, ChannelError, Key};

use std::sync::Arc;
use std::time::Duration;

use proto::v1::LoadRecord;

use crate::Seat;
use crate::source::{State, Told};

/// Receives what streams say beside blocks.
pub trait Heard: Send + Sync {
    /// How busy the replica is, with every batch and heartbeat.
    fn load(&self, seat: Seat, load: &LoadRecord);
    /// How far its source can be believed.
    fn state(&self, seat: Seat, state: State);
    /// A stream ended; the next is begun after `rest`.
    fn failed(&self, seat: Seat, why: &str, rest: Duration);
}

/// A source's place in the index, empty once nobody follows.
struct Place {
    seat: Seat,
    told: Arc<dyn Told>,
    heard: Arc<dyn Heard>,
    state: Option<State>,
}

impl Place {
    fn new(seat: Seat, told: Arc<dyn Told>, heard: Arc<dyn Heard>) -> Self {
        Self { seat, told, heard, state: None }
    }

    /// Says so where the state is another.
    fn note(&mut self, state: State) {
        if self.state.replace(state) != Some(state) {
            self.heard.state(self.seat, state);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.told.cleared(self.seat);
        self.note(State::Cold);
    }
}
