//! `quire.v1.Replica`: what this replica is, how busy it is, and taking it out of service.

use std::sync::Arc;
use std::time::Duration;

use proto::v1::{
    DrainRequest, DrainResponse, LoadRecord, LoadRequest, ModelInfoRequest, ModelInfoResponse,
    TextAssetsRequest, TextAssetsResponse,
};
use tonic::{Request, Response, Status};

use super::assets;
use super::deadline::Deadline;
use super::stream::{Messages, Streams};
use super::wire;
use crate::api::App;
use crate::api::error::ApiError;
use crate::stats::EngineStats;

const INTERVAL_MS: u32 = 1000;
const INTERVALS_MS: std::ops::RangeInclusive<u32> = 10..=60_000;
const WAIT_MS_MAX: u32 = 3_600_000;
/// How often a drain looks whether anything still runs.
const LOOK: Duration = Duration::from_millis(20);

pub(super) struct ReplicaService {
    app: App,
    loads: Streams,
    assets: Streams,
}

impl ReplicaService {
    pub fn new(app: App, loads: Streams, assets: Streams) -> Self {
        Self { app, loads, assets }
    }
}

/// A number of the request within its range.
pub(super) fn ranged(
    field: &str,
    value: Option<u32>,
    default: u32,
    range: std::ops::RangeInclusive<u32>,
) -> Result<Duration, ApiError> {
    let value = value.unwrap_or(default);
    if !range.contains(&value) {
        let (low, high) = (range.start(), range.end());
        let message = format!("`{field}` must be an integer from {low} to {high}, got {value}");
        return Err(ApiError::invalid(field, message));
    }
    Ok(Duration::from_millis(u64::from(value)))
}

#[tonic::async_trait]
impl proto::v1::replica_server::Replica for ReplicaService {
    type LoadStream = Messages<LoadRecord>;
    type TextAssetsStream = Messages<TextAssetsResponse>;

    async fn model_info(
        &self,
        _request: Request<ModelInfoRequest>,
    ) -> Result<Response<ModelInfoResponse>, Status> {
        let replica = self.app.replica()?;
        let shape = replica.engine.shape();
        Ok(Response::new(ModelInfoResponse {
            models: self.app.config().models.clone(),
            model_digest: shape.model.0.to_vec(),
            layout_digest: shape.layout.to_vec(),
            context_tokens: replica.context(),
            vocab_size: shape.vocab,
            page_tokens: shape.page_tokens,
            page_bytes: shape.page_bytes as u64,
            device_pages: shape.pages,
            step_tokens_max: shape.step_tokens_max,
            step_sequences_max: shape.step_seqs_max,
            incarnation: self.app.events().map(|hub| hub.incarnation()),
            signing_key: self.app.signer()?.public_key().to_vec(),
            version: self.app.config().version.clone(),
            ready_unix_ms: replica.since * 1000,
        }))
    }

    async fn text_assets(
        &self,
        request: Request<TextAssetsRequest>,
    ) -> Result<Response<Self::TextAssetsStream>, Status> {
        let deadline = request.extensions().get::<Deadline>().copied().unwrap_or_default();
        let known = request.into_inner().known_digest;
        let text = Arc::clone(&self.app.replica()?.text);
        let messages = self.assets.begin(deadline, |out| assets::tell(text, known, out))?;
        Ok(Response::new(messages))
    }

    async fn load(&self, request: Request<LoadRequest>) -> Result<Response<Self::LoadStream>, Status> {
        let deadline = request.extensions().get::<Deadline>().copied().unwrap_or_default();
        let interval = ranged("interval_ms", request.into_inner().interval_ms, INTERVAL_MS, INTERVALS_MS)?;
        self.app.replica()?;
        let app = self.app.clone();
        let messages = self.loads.begin(deadline, |out| async move {
            loop {
                let turn = out.turn().await?;
                turn.give(wire::load(&app)?).await?;
                tokio::time::sleep(interval).await;
            }
        })?;
        Ok(Response::new(messages))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        let deadline = request.extensions().get::<Deadline>().copied().unwrap_or_default();
        let wait = ranged("wait_ms", request.into_inner().wait_ms, 0, 0..=WAIT_MS_MAX)?;
        let stats = self.app.replica()?.engine.stats();
        tracing::info!(wait_s = wait.as_secs_f64(), "drain over gRPC");
        self.app.drain();
        let in_flight = || EngineStats::get(&stats.in_flight);
        let open_requests = || self.app.open();
        let done = async {
            while in_flight() > 0 || open_requests() > 0 {
                tokio::time::sleep(LOOK).await;
            }
        };
        // Still running at the end is an answer, not an error.
        let _ = tokio::time::timeout(deadline.shorten(wait), done).await;
        Ok(Response::new(DrainResponse { in_flight: in_flight(), open_requests: open_requests() }))
    }
}
