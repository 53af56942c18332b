//! The router as its faces share it, and which path goes where.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base::Clock;
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::{Method, Request, Response};

use super::body::AnswerBody;
use super::config::Config;
use super::forward::forward;
use super::gate::Gate;
use super::metrics::Metrics;
use super::ops;
use super::pools::Pools;
use super::probe;
use super::refusal::{Reason, Refusal};
use super::sniff::Face;
use crate::desk::DeskConfig;
use crate::fleet::FleetLimits;
use crate::index::IndexConfig;

/// Paths that are placed and forwarded, with the API they belong to.
pub const FORWARDED: [(&str, Face); 10] = [
    ("/v1/chat/completions", Face::OpenAi),
    ("/v1/completions", Face::OpenAi),
    ("/v1/responses", Face::OpenAi),
    ("/v1/embeddings", Face::OpenAi),
    ("/v1/rerank", Face::OpenAi),
    ("/v1/messages", Face::Anthropic),
    ("/v1/messages/count_tokens", Face::Anthropic),
    ("/generate", Face::OpenAi),
    ("/tokenize", Face::OpenAi),
    ("/detokenize", Face::OpenAi),
];

/// Paths that the router answers itself.
pub const OWN: [&str; 8] =
    ["/v1/models", "/health", "/livez", "/readyz", "/metrics", "/version", "/debug/replicas", "/debug/route"];

/// See the file's head.
pub struct Router {
    pub config: Config,
    pub gate: Gate,
    pub pools: Pools,
    pub metrics: Arc<Metrics>,
    pub clock: Arc<dyn Clock>,
    /// `Bearer KEY`, for probes, and for requests where the router has keys of its own.
    pub replica_key: Option<HeaderValue>,
    pub version: String,
    is_draining: AtomicBool,
}

/// A setting that cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("the key for replicas has characters that no header may carry")]
    ReplicaKey,
    #[error("{0}")]
    Admission(#[from] crate::admission::ConfigError),
}

impl Router {
    pub fn new(config: Config, clock: Arc<dyn Clock>, version: &str) -> Result<Arc<Self>, ConfigError> {
        let metrics = Arc::new(Metrics::default());
        // Three probes without an answer, or as long as one may take.
        let silence_max = (config.health_interval * 3).max(config.health_timeout);
        let desk = DeskConfig {
            policy: config.policy,
            seed: config.seed,
            fleet: FleetLimits { silence_max },
            ..DeskConfig::default()
        };
        desk.admission.validate()?;
        let pools = Pools::new(desk, IndexConfig::default(), Arc::clone(&clock), Arc::clone(&metrics));
        Ok(Arc::new(Self {
            gate: Gate::new(&config),
            pools,
            metrics,
            clock,
            replica_key: config.replica_key.as_ref().map(|key| bearer(key)).transpose()?,
            version: version.to_owned(),
            is_draining: AtomicBool::new(false),
            config,
        }))
    }

    /// Starts to watch the replicas that are configured.
    pub fn watch_replicas(self: &Arc<Self>) {
        for address in &self.config.replicas {
            tokio::spawn(probe::watch(Arc::clone(self), address.clone()));
        }
    }

    pub async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<AnswerBody> {
        let path = request.uri().path();
        if let Some((_, face)) = FORWARDED.iter().find(|(known, _)| *known == path) {
            return match request.method() {
                &Method::POST => forward(&self, request, *face).await,
                _ => self.refuse(wrong_method(&request), *face),
            };
        }
        match ops::answer(&self, request).await {
            Ok(response) => response,
            Err(refusal) => self.refuse(refusal, Face::OpenAi),
        }
    }

    fn refuse(&self, refusal: Refusal, face: Face) -> Response<AnswerBody> {
        self.metrics.refused(refusal.reason);
        refusal.response(face)
    }

    /// The credential that a replica sees for a client's.
    pub fn seen_by_replicas<'a>(&'a self, credential: &'a str) -> &'a str {
        match self.gate.is_own() {
            true => self.config.replica_key.as_deref().unwrap_or_default(),
            false => credential,
        }
    }

    /// Takes nothing new from now on.
    pub fn drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
        self.pools.pools().iter().for_each(|model| model.pool.drain());
    }

    pub fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
    }

    /// Replicas that take requests, over all pools.
    pub fn replicas_ready(&self) -> usize {
        self.pools.pools().iter().map(|model| model.pool.with_desk(|desk| desk.ready().len())).sum()
    }

    /// Requests that are with a replica or wait for one.
    pub fn open(&self) -> u64 {
        self.pools.pools().iter().map(|model| model.pool.open() as u64).sum()
    }
}

pub(super) fn wrong_method(request: &Request<Incoming>) -> Refusal {
    let message = format!("{} does not take {}", request.uri().path(), request.method());
    Refusal::new(Reason::MethodNotAllowed, message)
}

fn bearer(key: &str) -> Result<HeaderValue, ConfigError> {
    let mut value = HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| ConfigError::ReplicaKey)?;
    value.set_sensitive(true);
    Ok(value)
}
