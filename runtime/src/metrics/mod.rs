//! What `/metrics` shows: request histograms of the API and the engine's counters, in Prometheus text.
//!
//! Stems, units and buckets are vLLM's under `quire_`, so that dashboards and autoscalers carry over by
//! changing a prefix. A metrics crate would bring a global registry and a lock for what is a dozen
//! atomics read once a scrape.

mod rpc;
mod server;
mod text;
mod tiers;

pub use rpc::{Counted, Gauge, RpcMetrics};
pub use server::{Ending, ServerMetrics};
pub(crate) use text::{EngineNumbers, render};
pub use web::Histogram;
