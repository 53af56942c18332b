//! What every request handler shares.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use axum::http::HeaderMap;
use base::{Clock, SplitMix};
use tokio::sync::Semaphore;

use crate::api::auth::{Caller, Keys};
use crate::api::config::ServerConfig;
use crate::api::error::ApiError;
use crate::api::fields::Fields;
use crate::engine::{Engine, Health};
use crate::events::EventHub;
use crate::metrics::ServerMetrics;
use crate::purge::{PurgeOrder, SignedReport};
use crate::text::Text;
use transfer::NodeSigner;

/// The server's shared state; cheap to clone.
///
/// It starts without a model ([`App::loading`]), so that the port answers `503 loading model` while
/// weights are read, and is given one by [`App::ready`].
#[derive(Clone)]
pub struct App {
    inner: Arc<Inner>,
}

struct Inner {
    config: ServerConfig,
    clock: Arc<dyn Clock>,
    keys: Keys,
    replica: OnceLock<Replica>,
    draining: AtomicBool,
    open: AtomicU64,
    entropy: Entropy,
    metrics: Arc<ServerMetrics>,
    lanes: Arc<Semaphore>,
    waiting: AtomicUsize,
    signer: OnceLock<NodeSigner>,
    events: OnceLock<EventHub>,
    grpc_port: OnceLock<u16>,
}

/// What serves once a model is loaded.
pub(crate) struct Replica {
    pub engine: Engine,
    pub text: Arc<Text>,
    pub fingerprint: String,
    /// Seconds since 1970 at which it became ready; `created` of `/v1/models`.
    pub since: u64,
}

impl Replica {
    /// Longest sequence, prompt and answer together, that can ever run.
    pub fn context(&self) -> u32 {
        let shape = self.engine.shape();
        shape.positions_max.min(shape.pages.saturating_mul(shape.page_tokens))
    }

    pub fn vocab(&self) -> u32 {
        self.engine.shape().vocab
    }
}

impl App {
    /// A server that is up and has no model yet.
    pub fn loading(config: ServerConfig, clock: Arc<dyn Clock>) -> Self {
        let inner = Inner {
            keys: Keys::new(&config.api_keys, &config.admin_keys, &config.tenants, config.retention)
                .with_scrapers(&config.scrapers),
            entropy: Entropy { base: config.entropy, drawn: AtomicU64::new(0) },
            lanes: Arc::new(Semaphore::new(config.text_lanes.max(1))),
            config,
            clock,
            replica: OnceLock::new(),
            draining: AtomicBool::new(false),
            open: AtomicU64::new(0),
            metrics: Arc::new(ServerMetrics::default()),
            waiting: AtomicUsize::new(0),
            signer: OnceLock::new(),
            events: OnceLock::new(),
            grpc_port: OnceLock::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    pub fn new(engine: Engine, text: Text, config: ServerConfig, clock: Arc<dyn Clock>) -> Self {
        let app = Self::loading(config, clock);
        app.ready(engine, text);
        app
    }

    /// From now on requests are served. A second call changes nothing.
    pub fn ready(&self, engine: Engine, text: Text) {
        let fingerprint = format!("fp_{}", engine.shape().model);
        let since = self.inner.clock.unix_ms() / 1000;
        let _ = self.inner.replica.set(Replica { engine, text: Arc::new(text), fingerprint, since });
    }

    /// Signs purge reports from now on. Without it a key of this process does.
    pub fn sign_with(&self, signer: NodeSigner) {
        let _ = self.inner.signer.set(signer);
    }

    pub(crate) fn signer(&self) -> Result<&NodeSigner, ApiError> {
        if self.inner.signer.get().is_none() {
            let fresh = NodeSigner::random().map_err(|error| ApiError::internal(error.to_string()))?;
            let _ = self.inner.signer.set(fresh);
        }
        self.inner.signer.get().ok_or_else(|| ApiError::internal("no signing key"))
    }

    /// Where events of the cache can be followed from now on.
    pub fn publish(&self, events: EventHub) {
        let _ = self.inner.events.set(events);
    }

    /// The same server speaks gRPC on this port; routers find their way there by it.
    pub fn grpc_at(&self, port: u16) {
        let _ = self.inner.grpc_port.set(port);
    }

    pub(crate) fn grpc_port(&self) -> Option<u16> {
        self.inner.grpc_port.get().copied()
    }

    pub(crate) fn events(&self) -> Option<&EventHub> {
        self.inner.events.get()
    }

    /// Purges a namespace and reports. In a task of its own: a caller that leaves must not stop it between
    /// its keys, which go first, and its pages.
    pub(crate) async fn purge(&self, order: PurgeOrder) -> Result<SignedReport, ApiError> {
        let engine = self.replica()?.engine.clone();
        self.signer()?;
        let app = self.clone();
        let purge = tokio::spawn(async move { Ok(engine.purge(&order, app.signer()?).await?) });
        purge.await.map_err(|_| ApiError::internal("the purge failed"))?
    }

    /// Not ready any more, nothing new is taken; what runs goes on.
    pub fn drain(&self) {
        self.inner.draining.store(true, Ordering::Release);
        if let Some(replica) = self.inner.replica.get() {
            replica.engine.drain();
        }
    }

    /// Requests between arrival and the last byte of their answer.
    pub fn open(&self) -> u64 {
        self.inner.open.load(Ordering::Acquire)
    }

    pub fn config(&self) -> &ServerConfig {
        &self.inner.config
    }

    /// The model's replica, or why there is none.
    pub(crate) fn replica(&self) -> Result<&Replica, ApiError> {
        self.inner.replica.get().ok_or_else(ApiError::loading)
    }

    /// Whether new requests can be served right now.
    pub(crate) fn health(&self) -> Result<(), ApiError> {
        let replica = self.replica()?;
        if self.is_draining() {
            return Err(ApiError::unavailable("the server is draining", "draining"));
        }
        match replica.engine.health() {
            Health::Ready => Ok(()),
            Health::Draining => Err(ApiError::unavailable("the server is draining", "draining")),
            Health::Unhealthy => Err(ApiError::unavailable("the engine is restarting", "engine")),
            Health::Lost => Err(ApiError::unavailable("the engine is lost; the server is ending", "engine")),
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.inner.draining.load(Ordering::Acquire)
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.inner.clock
    }

    pub(crate) fn metrics(&self) -> &Arc<ServerMetrics> {
        &self.inner.metrics
    }

    pub(crate) fn entropy(&self) -> &Entropy {
        &self.inner.entropy
    }

    /// The name under which the request knows the model; absent = the first one.
    pub(crate) fn model(&self, fields: &Fields<'_>) -> Result<String, ApiError> {
        let models = &self.inner.config.models;
        match fields.string("model")? {
            None => Ok(models.first().cloned().unwrap_or_default()),
            Some(name) if models.iter().any(|model| model == name) => Ok(name.to_owned()),
            Some(name) => Err(ApiError::unknown_model(name)),
        }
    }

    pub(crate) fn authorize(&self, headers: &HeaderMap) -> Result<Caller, ApiError> {
        self.inner.keys.check(headers)
    }

    /// On whose behalf a request with this credential would be.
    pub(crate) fn whose(&self, credential: Option<&str>) -> Result<Caller, ApiError> {
        self.inner.keys.whose(credential)
    }

    /// Whether whoever sends these headers may read metrics.
    pub(crate) fn authorize_scrape(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        self.inner.keys.check_scrape(headers)
    }

    /// Counts a request as open until the ticket is dropped.
    pub(crate) fn ticket(&self, headers: &HeaderMap) -> Arc<Ticket> {
        let given =
            headers.get("x-request-id").and_then(|value| value.to_str().ok()).filter(|name| is_name(name));
        let fresh = || format!("{:016x}{:016x}", self.inner.entropy.draw(), self.inner.entropy.draw());
        self.inner.open.fetch_add(1, Ordering::AcqRel);
        Arc::new(Ticket { name: given.map_or_else(fresh, str::to_owned), app: self.clone() })
    }

    /// Does `work` — parsing, templating, tokenizing `bytes` bytes — here if it is short, else on a
    /// thread of its own, at most `text_lanes` at once and a bounded number waiting.
    pub(crate) async fn prepare<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce(&App) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        /// About half a millisecond of tokenizing.
        const INLINE_BYTES: usize = 4096;
        if bytes <= INLINE_BYTES {
            return work(self);
        }
        let limit = self.inner.config.limits.requests_max;
        let _turn = Turn::wait(self, limit)?;
        let lane = Arc::clone(&self.inner.lanes).acquire_owned().await;
        let lane = lane.map_err(|_| ApiError::internal("the text lanes are closed"))?;
        let app = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let _lane = lane;
            work(&app)
        });
        done.await.map_err(|_| ApiError::internal("reading the request failed"))?
    }
}

/// One request among those that wait for or use a text lane.
struct Turn<'a>(&'a App);

impl<'a> Turn<'a> {
    fn wait(app: &'a App, limit: usize) -> Result<Self, ApiError> {
        if app.inner.waiting.fetch_add(1, Ordering::AcqRel) >= limit {
            app.inner.waiting.fetch_sub(1, Ordering::AcqRel);
            return Err(ApiError::overloaded("too many long prompts wait to be tokenized"));
        }
        Ok(Self(app))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.inner.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One HTTP request from arrival to its last byte.
pub(crate) struct Ticket {
    /// The client's `x-request-id`, or one of ours.
    pub name: String,
    app: App,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.app.inner.open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Fit to be echoed in a header and used in an id.
fn is_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.:".contains(&b);
    (1..=128).contains(&name.len()) && name.bytes().all(plain)
}

/// Ids and seeds: a counter through a mixing function, from one draw at the start.
pub(crate) struct Entropy {
    base: u64,
    drawn: AtomicU64,
}

impl Entropy {
    pub fn draw(&self) -> u64 {
        let count = self.drawn.fetch_add(1, Ordering::Relaxed);
        // Two rounds: the base must not be readable from one draw and the counter.
        let mut outer = SplitMix::new(self.base ^ count);
        SplitMix::new(outer.next_u64() ^ self.base.rotate_left(32)).next_u64()
    }
}
