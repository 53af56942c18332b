//! What every server of the house shares, be it a replica's HTTP, its gRPC or the router's: connections and
//! their graceful end, bearer keys, and the page that Prometheus reads.
//!
//! A crate and not a module of the runtime, because the router must not carry a model runtime to accept
//! connections. Nothing here knows an API.

mod bearer;
mod connections;
mod histogram;
mod page;

pub use bearer::{KeyDigest, bearer};
pub use connections::{Drained, Phase, accept, follow_phase, runtime};
pub use histogram::Histogram;
pub use page::Page;
