//! What the HTTP server must be told, checked once by whoever reads flags and files.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use base::Limits;

use crate::api::auth::TenantKeys;
use crate::storage::Retention;

/// Plain values; the command line fills them.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Names this server answers to. The first is the one that responses carry.
    pub models: Vec<String>,
    /// Accepted bearer keys; empty = no check.
    pub api_keys: Vec<String>,
    /// Keys that may operate the server; empty = the server-wide keys may, or anyone where there are none.
    pub admin_keys: Vec<String>,
    /// Namespaces beside the default one, with the keys of their users.
    pub tenants: Vec<TenantKeys>,
    /// Of the default namespace.
    pub retention: Retention,
    pub limits: Limits,
    /// Open connections; further ones wait in the kernel's backlog.
    pub connections_max: usize,
    /// Of the gRPC server; any one address has half of them.
    pub grpc_connections_max: usize,
    /// After the shutdown signal, running requests may go on for this long.
    pub drain: Duration,
    /// A request's head or body that takes longer than this is given up.
    pub read_timeout: Duration,
    /// Prompts being templated and tokenized at once, and threads that do it.
    pub text_lanes: usize,
    /// Whether a request's `priority` may put it before others'.
    pub raising: Raising,
    /// Who may read `/metrics`.
    pub scrapers: Scrapers,
    /// Also show metrics under vLLM's own prefix.
    pub metrics_alias: MetricsAlias,
    /// From which request ids and missing `seed`s are drawn.
    pub entropy: u64,
    /// `GET /version`.
    pub version: String,
}

/// Whether `/metrics` repeats each series as `vllm:…`, so that dashboards made for vLLM work unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsAlias {
    None,
    Vllm,
}

/// Whose requests may come before those of others: a raised priority preempts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raising {
    /// Operators'. With a single key, or none, that is everyone.
    Operators,
    Anyone,
}

/// Whether `/metrics` asks for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scrapers {
    Anyone,
    /// Operators, and whoever has one of these keys, which open nothing else.
    Keyed(Vec<String>),
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            models: vec!["quire".into()],
            api_keys: Vec::new(),
            admin_keys: Vec::new(),
            tenants: Vec::new(),
            retention: Retention::Keep,
            limits: Limits::default(),
            connections_max: 8192,
            grpc_connections_max: 512,
            drain: Duration::from_secs(30),
            read_timeout: Duration::from_secs(60),
            text_lanes: 2,
            raising: Raising::Operators,
            scrapers: Scrapers::Anyone,
            metrics_alias: MetricsAlias::None,
            entropy: os_entropy(),
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }
}

/// 64 bits from the operating system, through the one door that std has to it.
pub fn os_entropy() -> u64 {
    RandomState::new().build_hasher().finish()
}
