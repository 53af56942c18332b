//! KV events to the outside: what is stored and removed, in every tier, so that a router can send a
//! request where its prefix is.
//!
//! ```text
//!  scheduler ── batches, never waits ──▶ hub (thread) ──▶ bounded log ──▶ publisher ─▶ subscribers
//!                                                             └────────── replay by sequence number
//! ```
//!
//! The wire is what vLLM's engines speak and routers of the field follow: ZeroMQ PUB with a topic, a
//! sequence number and a MessagePack batch, and a ROUTER that replays. ZMTP is written here, some three
//! hundred lines, because the library for it is C++ that a build would have to bring.
//!
//! A subscriber that reads too slowly loses batches, sees the gap in the numbers, and asks for a replay;
//! if the log has moved on, the replay begins later and the gap remains, which is to say: take a snapshot
//! by reconnecting to a fresh engine or let the pages age out. When the engine itself lost events, the
//! stream says that all is cleared and tells everything anew.

mod hub;
mod msgpack;
mod socket;
mod zmtp;

pub use hub::{EventHub, EventsConfig};
pub use socket::{EventServer, EventServerError};
