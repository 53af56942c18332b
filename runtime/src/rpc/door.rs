//! What every call passes on its way in: who calls and whether they may, how long they wait, a bounded request,
//! and a panic that is one call's error.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Response;
use axum::middleware::{Next, from_fn_with_state};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use proto::v1::cache_server::CacheServer;
use proto::v1::replica_server::ReplicaServer;
use tokio::sync::watch;
use tonic::{Code, Status};
use tonic_health::pb::health_server::HealthServer;
use tonic_reflection::server::Builder as Reflection;

use super::cache::CacheService;
use super::deadline::Deadline;
use super::health::HealthService;
use super::replica::ReplicaService;
use super::status::status;
use super::stream::Streams;
use crate::api::App;
use crate::api::auth::{Caller, Role};
use crate::api::error::ApiError;
use crate::api::router::CatchPanic;
use crate::api::serve::Phase;

/// The largest request: a list of namespaces.
const REQUEST_BYTES_MAX: usize = 64 << 10;
/// Streams of events and load, of all callers together; and of health.
const STREAMS_MAX: usize = 256;
const HEALTH_STREAMS_MAX: usize = 64;

/// Calls between their arrival and the head of their answer.
#[derive(Clone)]
pub(super) struct Open(Arc<watch::Sender<u64>>);

impl Open {
    pub fn new() -> Self {
        Self(Arc::new(watch::channel(0).0))
    }

    pub fn count(&self) -> u64 {
        *self.0.borrow()
    }

    /// Resolves when no call is open.
    pub async fn none(&self) {
        let _ = self.0.subscribe().wait_for(|open| *open == 0).await;
    }

    fn enter(&self) -> Ticket {
        self.0.send_modify(|open| *open += 1);
        Ticket(self.clone())
    }
}

struct Ticket(Open);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.0.send_modify(|open| *open -= 1);
    }
}

#[derive(Clone)]
struct Door {
    app: App,
    open: Open,
}

/// All services behind the door.
pub(super) fn router(app: App, phase: watch::Receiver<Phase>, open: Open) -> Result<Router, Status> {
    let streams = Streams::new(STREAMS_MAX, phase.clone());
    let cache = CacheServer::new(CacheService::new(app.clone(), streams.clone()));
    let replica = ReplicaServer::new(ReplicaService::new(app.clone(), streams));
    let health = HealthService::new(app.clone(), Streams::new(HEALTH_STREAMS_MAX, phase));
    let reflection = || {
        Reflection::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTOR)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let broken = |error| Status::internal(format!("the descriptor: {error}"));
    let (now, before) = (reflection().build_v1(), reflection().build_v1alpha());
    let door = Door { app, open };
    Ok(Router::new()
        .route_service("/quire.v1.Cache/{*method}", cache)
        .route_service("/quire.v1.Replica/{*method}", replica)
        .route_service("/grpc.health.v1.Health/{*method}", HealthServer::new(health))
        .route_service("/grpc.reflection.v1.ServerReflection/{*method}", now.map_err(broken)?)
        .route_service("/grpc.reflection.v1alpha.ServerReflection/{*method}", before.map_err(broken)?)
        .fallback(unknown)
        .layer(from_fn_with_state(door, enter)))
}

async fn unknown(request: Request) -> Response<Body> {
    let path = request.uri().path();
    status(Code::Unimplemented, "unknown_method", &format!("there is no method {path}")).into_http()
}

/// What a method asks of its caller.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    AnyKey,
    Operator,
}

fn needs(path: &str) -> Needs {
    match path.split('/').nth(1).unwrap_or("") {
        "grpc.health.v1.Health" => Needs::Nothing,
        "quire.v1.Replica" if path.ends_with("/ModelInfo") => Needs::AnyKey,
        service if service.starts_with("grpc.reflection.") => Needs::AnyKey,
        // Also methods that are yet to come, until someone says otherwise.
        _ => Needs::Operator,
    }
}

async fn enter(State(door): State<Door>, request: Request, next: Next) -> Response<Body> {
    let answer = pass(&door, request, next).await;
    answer.unwrap_or_else(|refused| refused.into_http())
}

async fn pass(door: &Door, request: Request, next: Next) -> Result<Response<Body>, Status> {
    let _open = door.open.enter();
    let path = request.uri().path().to_owned();
    let caller = admit(&door.app, &path, &request)?;
    let deadline = Deadline::read(request.headers())?;
    let mut request = match path.starts_with("/grpc.reflection.") {
        // A conversation: it has no whole.
        true => request,
        false => whole(request, door.app.config().read_timeout).await?,
    };
    request.extensions_mut().insert(caller);
    request.extensions_mut().insert(deadline);
    tokio::select! {
        biased;
        done = CatchPanic::new(next.run(request)) => done.map_err(|panic| {
            tracing::error!(panic, path, "a call panicked");
            Status::from(ApiError::internal("the server failed on this call"))
        }),
        () = deadline.passed() => Err(Status::deadline_exceeded("the deadline of the call has passed")),
    }
}

fn admit(app: &App, path: &str, request: &Request) -> Result<Caller, ApiError> {
    let needs = needs(path);
    if needs == Needs::Nothing {
        return Ok(Caller::default());
    }
    let caller = app.authorize(request.headers())?;
    match (needs, caller.role) {
        (Needs::Operator, Role::User) => Err(ApiError::forbidden("this key may not operate the server")),
        _ => Ok(caller),
    }
}

/// The request with its one message read, bounded in size and time.
async fn whole(request: Request, patience: Duration) -> Result<Request, ApiError> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, REQUEST_BYTES_MAX).collect();
    match tokio::time::timeout(patience, body).await {
        Ok(Ok(read)) => Ok(Request::from_parts(head, Body::from(read.to_bytes()))),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::body_too_large(REQUEST_BYTES_MAX)),
        Ok(Err(_)) => Err(ApiError::body_cut()),
        Err(_) => Err(ApiError::body_slow()),
    }
}
