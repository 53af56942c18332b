//! What every request handler shares.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use base::Clock;

use crate::api::config::ServerConfig;
use crate::engine::Engine;
use crate::text::Text;

/// The server's shared state; cheap to clone.
///
/// It starts without a model ([`App::loading`]), so that the port answers `503 loading model` while
/// weights are read, and is given one by [`App::ready`].
#[derive(Clone)]
pub struct App {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub config: ServerConfig,
    pub clock: Arc<dyn Clock>,
    pub replica: OnceLock<Replica>,
    pub draining: AtomicBool,
    /// Requests between arrival and the last byte of their answer.
    pub open: AtomicU64,
}

/// What serves once a model is loaded.
pub(crate) struct Replica {
    pub engine: Engine,
    pub text: Arc<Text>,
}

impl App {
    /// A server that is up and has no model yet.
    pub fn loading(config: ServerConfig, clock: Arc<dyn Clock>) -> Self {
        let inner = Inner {
            config,
            clock,
            replica: OnceLock::new(),
            draining: AtomicBool::new(false),
            open: AtomicU64::new(0),
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
        let _ = self.inner.replica.set(Replica { engine, text: Arc::new(text) });
    }

    /// Not ready any more, nothing new is taken; what runs goes on.
    pub fn drain(&self) {
        self.inner.draining.store(true, Ordering::Release);
        if let Some(replica) = self.inner.replica.get() {
            replica.engine.drain();
        }
    }
}
