//! `grpc.health.v1`: open to anyone, as `/health` is, and of the same opinion.
//!
//! The whole server (`""`) and each service are SERVING when the replica takes requests. Watch looks twice a second
//! and speaks when the answer has changed.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::deadline::Deadline;
use super::peers::Peers;
use super::status::busy;
use super::stream::{Messages, Streams};
use crate::api::App;

const LOOK: Duration = Duration::from_millis(500);
const SERVICES: [&str; 3] = ["", "quire.v1.Cache", "quire.v1.Replica"];

/// Watches of one address, since they ask for no key: a quarter of all.
const WATCHES_MAX: usize = 16;

pub(super) struct HealthService {
    app: App,
    streams: Streams,
    watchers: Arc<Peers>,
}

impl HealthService {
    pub fn new(app: App, streams: Streams) -> Self {
        Self { app, streams, watchers: Peers::new(WATCHES_MAX) }
    }
}

fn now(app: &App, service: &str) -> ServingStatus {
    match (SERVICES.contains(&service), app.health()) {
        (false, _) => ServingStatus::ServiceUnknown,
        (true, Ok(())) => ServingStatus::Serving,
        (true, Err(_)) => ServingStatus::NotServing,
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    type WatchStream = Messages<HealthCheckResponse>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        match now(&self.app, &service) {
            ServingStatus::ServiceUnknown => {
                Err(Status::not_found(format!("there is no service {service:?} here")))
            }
            status => Ok(Response::new(HealthCheckResponse { status: status.into() })),
        }
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let deadline = request.extensions().get::<Deadline>().copied().unwrap_or_default();
        let address = request.extensions().get::<IpAddr>().copied().unwrap_or(IpAddr::from([0; 4]));
        let watcher = self.watchers.enter(address);
        let watcher = watcher.ok_or_else(|| busy("too_many_streams", "this address has too many watches"))?;
        let (app, service) = (self.app.clone(), request.into_inner().service);
        let messages = self.streams.begin(deadline, |out| async move {
            let _watcher = watcher;
            let mut told = None;
            loop {
                let status = now(&app, &service);
                if told != Some(status) {
                    out.send(HealthCheckResponse { status: status.into() }).await?;
                    told = Some(status);
                }
                tokio::time::sleep(LOOK).await;
            }
        })?;
        Ok(Response::new(messages))
    }
}
