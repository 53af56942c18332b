//! The OpenAI-compatible HTTP server.

mod app;
mod config;
mod serve;

pub use app::App;
pub use config::{MetricsAlias, ServerConfig, os_entropy};
pub use serve::{Drained, runtime, serve};
