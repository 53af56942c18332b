//! The gRPC server: `quire.v1` (the contract is in `base/proto`), health and reflection.
//!
//! ```text
//!  connection ─ door ───────────────▶ Cache ───▶ feed ◀── hub (log, mirror)
//!      ▲        key, deadline, size,  Replica ─▶ engine, assets
//!      │        panic, reason         Health
//!      └──── stream: one message at a time, at the reader's pace ───┘
//! ```
//!
//! A port of its own, as Triton has and unlike servers that swap HTTP for gRPC: operators fence the two off
//! differently, and plain HTTP/1.1 stays the fast path that it is. Same host, same keys, same roles as HTTP, and
//! the same code behind: a method here does what its HTTP sibling does or has none. Messages and services are
//! tonic's; connections are served by the hyper that serves HTTP, so that draining, bounds and the accept loop are
//! the same too.
//!
//! Nothing is queued for a reader: a stream is a task with a place in a log that makes a message when there is room
//! to send it.

mod answer;
mod assets;
mod cache;
mod deadline;
mod door;
mod feed;
mod health;
mod peers;
mod replica;
mod root;
mod serve;
mod status;
mod stream;
mod wire;

pub use serve::serve;
