//! KV events to the outside: what is stored and removed, in every tier, so that a router can send a
//! request where its prefix is.
//!
//! ```text
//!  scheduler ── batches, never waits ──▶ hub (thread) ──▶ bounded log ──▶ publisher ─▶ ZeroMQ subscribers
//!                                             │              └─┬──────── replay by sequence number
//!                                             └─▶ mirror ──────┴─▶ `rpc`: snapshot, then changes
//! ```
//!
//! One wire is gRPC (`crate::rpc`), with snapshots. The other is what vLLM's engines speak and routers of the
//! field follow: ZeroMQ PUB with a topic, a sequence number and a MessagePack batch, and a ROUTER that replays.
//! ZMTP is our own (`zmtp`), some two hundred lines, because the library for it is C++ that a build would have to
//! bring. Readers of both wires take one record of the log at a time; nothing is queued for any of them.
//!
//! A subscriber that the log has moved past loses batches, sees the gap in the numbers, and asks for a replay;
//! if the log has moved on, the replay begins later and the gap remains, which is to say: take a snapshot
//! by reconnecting to a fresh engine or let the pages age out. When the engine itself lost events, the
//! stream says that all is cleared and tells everything anew.

mod hub;
mod log;
mod mirror;
mod msgpack;
mod record;
mod schema;
mod socket;

pub(crate) use hub::Forgotten;
pub use hub::{EventHub, EventsConfig, Snapshots};
pub(crate) use log::Read;
pub(crate) use mirror::Snapshot;
pub(crate) use record::{Change, Owner, Record, Run};
pub use socket::{EventServer, EventServerError};
