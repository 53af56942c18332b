//! The router's HTTP face: OpenAI's and Anthropic's paths in front of many replicas.
//!
//! ```text
//!  client ─▶ server ─▶ router ─┬─▶ forward ─▶ pool (admission, decision) ─▶ upstream ─▶ replica
//!                              └─▶ ops: models, health, metrics, debug           ▲
//!                                                              probe ────────────┘ is it there?
//! ```
//!
//! A body passes through as it is: the router reads of it what it must know and forwards the bytes. Answers are
//! passed on frame by frame.

pub mod body;
pub mod config;
pub mod exact;
mod forward;
pub mod gate;
pub mod metrics;
pub mod naming;
mod ops;
mod pools;
mod probe;
pub mod refusal;
mod router;
mod server;
pub mod sniff;
pub mod text_names;
pub mod upstream;

pub use config::Config;
pub use forward::{Asked, CLASS_HEADER, DEADLINE_HEADER, Prompt, REPLICA_HEADER, look};
pub use pools::{Model, Pools};
pub use router::{ConfigError, FORWARDED, OWN, Router};
pub use server::serve;
