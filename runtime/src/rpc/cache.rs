//! `quire.v1.Cache`: events, the purge, roots of names, and how the tiers stand.

use std::sync::Arc;

use proto::v1::{
    CacheStatsRequest, CacheStatsResponse, ChainRootRequest, ChainRootResponse, KvEventsRequest,
    KvEventsResponse, PurgeRequest, PurgeResponse, RunningRequests, SnapshotPolicy,
};
use tokio::sync::Semaphore;
use tonic::{Code, Request, Response, Status};

use super::deadline::Deadline;
use super::feed::{Feed, SNAPSHOTS_MAX, Start, Tokens};
use super::replica::ranged;
use super::root;
use super::status::status;
use super::stream::{Messages, Streams};
use super::wire::{self, Names};
use crate::api::App;
use crate::api::admin::{PATIENCE, PATIENCE_MAX_MS};
use crate::api::error::ApiError;
use crate::events::EventHub;
use crate::purge::PurgeOrder;
use crate::scheduler::PurgeRunning;

pub(super) struct CacheService {
    app: App,
    streams: Streams,
    snapshots: Arc<Semaphore>,
}

impl CacheService {
    pub fn new(app: App, streams: Streams) -> Self {
        Self { app, streams, snapshots: Arc::new(Semaphore::new(SNAPSHOTS_MAX)) }
    }

    /// Tokens are the prompts of all namespaces. Where some belong to tenants, a key that is only good for
    /// answers must not open them, though without admin keys it may operate the server.
    fn check_tokens(&self) -> Result<(), Status> {
        let config = self.app.config();
        if config.tenants.is_empty() || !config.admin_keys.is_empty() {
            return Ok(());
        }
        let message = "`with_token_ids` tells the prompts of all tenants: it needs a server with --admin-key";
        Err(status(Code::FailedPrecondition, "no_admin_key", message))
    }

    fn feed(&self, hub: &EventHub, request: &KvEventsRequest) -> Result<Feed, ApiError> {
        let names = Names::new(self.app.replica()?.engine.names());
        let namespaces = names.find(&request.namespaces).map_err(|at| {
            let message = format!("no namespace is called {:?}", request.namespaces[at]);
            ApiError::invalid(format!("namespaces[{at}]"), message)
        })?;
        let policy = SnapshotPolicy::try_from(request.snapshot).map_err(|_| {
            ApiError::invalid("snapshot", format!("`snapshot` has no value {}", request.snapshot))
        })?;
        let start = match request.resume {
            None => Start::Unknown,
            Some(at) if at.incarnation != hub.incarnation() => Start::Elsewhere,
            Some(at) if at.next_sequence > hub.extent().next => {
                let message = format!("`resume.next_sequence` {} is yet to come", at.next_sequence);
                return Err(ApiError::invalid("resume.next_sequence", message));
            }
            Some(at) => Start::At(at.next_sequence),
        };
        Ok(Feed {
            app: self.app.clone(),
            hub: hub.clone(),
            names,
            start,
            policy,
            namespaces,
            tokens: if request.with_token_ids { Tokens::Told } else { Tokens::Kept },
            snapshots: Arc::clone(&self.snapshots),
        })
    }
}

fn order(request: PurgeRequest, deadline: Deadline) -> Result<PurgeOrder, ApiError> {
    if request.namespace.is_empty() {
        return Err(ApiError::invalid("namespace", "`namespace` is missing"));
    }
    let running = match RunningRequests::try_from(request.running) {
        Ok(RunningRequests::Unspecified | RunningRequests::Wait) => PurgeRunning::Wait,
        Ok(RunningRequests::Cancel) => PurgeRunning::Cancel,
        Err(_) => {
            let message = format!("`running` has no value {}", request.running);
            return Err(ApiError::invalid("running", message));
        }
    };
    let patience =
        ranged("timeout_ms", request.timeout_ms, PATIENCE.as_millis() as u32, 0..=PATIENCE_MAX_MS as u32)?;
    Ok(PurgeOrder { namespace: request.namespace, running, patience: deadline.shorten(patience) })
}

#[tonic::async_trait]
impl proto::v1::cache_server::Cache for CacheService {
    type KvEventsStream = Messages<KvEventsResponse>;

    async fn kv_events(
        &self,
        request: Request<KvEventsRequest>,
    ) -> Result<Response<Self::KvEventsStream>, Status> {
        let deadline = request.extensions().get::<Deadline>().copied().unwrap_or_default();
        let Some(hub) = self.app.events() else {
            let message = "this server keeps no KV events";
            return Err(status(Code::FailedPrecondition, "no_events", message));
        };
        if request.get_ref().with_token_ids {
            self.check_tokens()?;
        }
        let feed = self.feed(hub, request.get_ref())?;
        let messages = self.streams.begin(deadline, |out| feed.run(out))?;
        Ok(Response::new(messages))
    }

    async fn purge(&self, request: Request<PurgeRequest>) -> Result<Response<PurgeResponse>, Status> {
        let deadline = request.extensions().get::<Deadline>().copied().unwrap_or_default();
        let order = order(request.into_inner(), deadline)?;
        tracing::info!(namespace = order.namespace, running = ?order.running, "purge over gRPC");
        let report = self.app.purge(order).await?;
        Ok(Response::new(wire::purged(&report)?))
    }

    async fn chain_root(
        &self,
        request: Request<ChainRootRequest>,
    ) -> Result<Response<ChainRootResponse>, Status> {
        root::answer(&self.app, request.into_inner()).map(Response::new)
    }

    async fn cache_stats(
        &self,
        _request: Request<CacheStatsRequest>,
    ) -> Result<Response<CacheStatsResponse>, Status> {
        let engine = &self.app.replica()?.engine;
        let names = engine.names();
        let ids = names.iter().map(|(id, _)| *id).collect();
        let report = engine.inspect(ids).await.ok_or_else(|| ApiError::unavailable("stopped", "engine"))?;
        Ok(Response::new(wire::stats(&report, &Names::new(names), engine)))
    }
}
