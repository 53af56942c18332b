//! The OpenAI-compatible HTTP server.
//!
//! ```text
//!  connection ─ router ─ fields ─ chat | completion ─▶ Prepared ─ generate ─▶ Choice × n ─ Answer
//!      ▲                   (one error type, names the field)                     │ Running events
//!      └────────────── sse (one write per batch of tokens)  |  whole ◀───────────┘
//! ```
//!
//! Bodies are OpenAI's exactly; what is ours goes into headers. A token costs no task, timer, channel or
//! serializer here: the connection's own task polls the sequence's events and writes a prepared chunk
//! around the escaped text.

pub(crate) mod admin;
mod answer;
mod app;
pub(crate) mod auth;
mod chat;
mod choice;
mod completion;
mod config;
pub(crate) mod error;
mod fields;
mod generate;
mod ops;
mod params;
pub(crate) mod router;
pub(crate) mod serve;
mod sse;
mod tokens;
mod whole;
mod wire;

pub use app::App;
pub use auth::TenantKeys;
pub use config::{MetricsAlias, Raising, Scrapers, ServerConfig, os_entropy};
pub use router::PATHS;
pub use serve::{runtime, serve};
pub use web::Drained;
