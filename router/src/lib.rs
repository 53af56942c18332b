//! One scheduler for many replicas: it knows what each of them holds, predicts what a request would cost
//! there, admits or refuses it, and forwards its stream.
//!
//! ```text
//!  KV events ──▶ source (COLD → SNAPSHOT → EXACT → DEGRADED) ──▶ index ─┐
//!  load      ──▶ fleet (health, rates learned) ─────────────────────────┤ a snapshot
//!                                                                       ▼
//!  request ──▶ naming (text → tokens → names) ──▶ admission ──▶ decide ──▶ book (reserve) ──▶ proxy
//! ```
//!
//! Everything that decides is a function of values or a state machine without I/O, so that the simulator
//! and the replay run the very code that serves. I/O lives in `events` and `proxy` alone.

pub mod admission;
pub mod book;
pub mod breaker;
pub mod decide;
pub mod desk;
pub mod events;
pub mod fleet;
pub mod follow;
pub mod gossip;
pub mod ids;
pub mod index;
pub mod naming;
pub mod picker;
pub mod placement;
pub mod pool;
pub mod proxy;
pub mod replica;
pub mod retry;
pub mod source;

pub use ids::{Held, Seat, SeatSet, Ticket};
