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
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tonic::{Code, Status};
use tonic_health::pb::health_server::HealthServer;
use tonic_reflection::server::Builder as Reflection;

use super::answer::{Answer, Ledger};
use super::cache::CacheService;
use super::deadline::Deadline;
use super::health::HealthService;
use super::peers::Calls;
use super::replica::ReplicaService;
use super::status::{busy, status};
use super::stream::{Streams, draining};
use crate::api::App;
use crate::api::auth::{Caller, Role};
use crate::api::error::ApiError;
use crate::api::router::CatchPanic;
use crate::metrics::Gauge;
use web::Phase;

/// The largest request: a list of namespaces. Without a key: the name of a service.
const REQUEST_BYTES_MAX: usize = 64 << 10;
const OPEN_REQUEST_BYTES_MAX: usize = 1 << 10;
/// For a request to be read.
const REQUEST_PATIENCE: Duration = Duration::from_secs(10);
/// Streams of all callers together, by kind; reflection is a stream too.
const EVENT_STREAMS_MAX: usize = 256;
const LOAD_STREAMS_MAX: usize = 256;
const HEALTH_STREAMS_MAX: usize = 64;
const ASSET_STREAMS_MAX: usize = 32;
const REFLECTIONS_MAX: usize = 16;

/// Calls between their arrival and the head of their answer: those that a shutdown waits for. Not probes, which
/// ask for no key, nor a call whose request is still being read.
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
    phase: watch::Receiver<Phase>,
    reflections: Arc<Semaphore>,
}

/// All services behind the door.
pub(super) fn router(app: App, phase: watch::Receiver<Phase>, open: Open) -> Result<Router, Status> {
    let open_streams = &app.metrics().rpc;
    let streams = |most, gauge: &Gauge| Streams::new(most, phase.clone(), gauge.clone());
    let events = streams(EVENT_STREAMS_MAX, &open_streams.event_streams);
    let loads = streams(LOAD_STREAMS_MAX, &open_streams.load_streams);
    let watches = streams(HEALTH_STREAMS_MAX, &open_streams.health_streams);
    let cache = CacheServer::new(CacheService::new(app.clone(), events));
    let assets = streams(ASSET_STREAMS_MAX, &Gauge::default());
    let replica = ReplicaServer::new(ReplicaService::new(app.clone(), loads, assets));
    let health = HealthService::new(app.clone(), watches);
    let reflection = || {
        Reflection::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTOR)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let broken = |error| Status::internal(format!("the descriptor: {error}"));
    let (now, before) = (reflection().build_v1(), reflection().build_v1alpha());
    let now = now.map_err(broken)?.max_decoding_message_size(OPEN_REQUEST_BYTES_MAX);
    let before = before.map_err(broken)?.max_decoding_message_size(OPEN_REQUEST_BYTES_MAX);
    let door = Door { app, open, phase, reflections: Arc::new(Semaphore::new(REFLECTIONS_MAX)) };
    Ok(Router::new()
        .route_service("/quire.v1.Cache/{*method}", cache)
        .route_service("/quire.v1.Replica/{*method}", replica)
        .route_service("/grpc.health.v1.Health/{*method}", HealthServer::new(health))
        .route_service("/grpc.reflection.v1.ServerReflection/{*method}", now)
        .route_service("/grpc.reflection.v1alpha.ServerReflection/{*method}", before)
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
        "quire.v1.Replica" if path.ends_with("/ModelInfo") || path.ends_with("/TextAssets") => Needs::AnyKey,
        service if service.starts_with("grpc.reflection.") => Needs::AnyKey,
        // Also methods that are yet to come, until someone says otherwise.
        _ => Needs::Operator,
    }
}

async fn enter(State(door): State<Door>, request: Request, next: Next) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let call = request.extensions().get::<Calls>().map(Calls::enter);
    let (answer, seat) = match pass(&door, &path, request, next).await {
        Ok((answer, seat)) => (answer, seat),
        Err(refused) => (refused.into_http(), None),
    };
    let (head, body) = answer.into_parts();
    let ledger = Ledger { app: door.app, path, code: Code::Cancelled };
    let answer = Answer::new(&head.headers, body, ledger, (call, seat));
    Response::from_parts(head, Body::new(answer))
}

type Passed = (Response<Body>, Option<OwnedSemaphorePermit>);

async fn pass(door: &Door, path: &str, request: Request, next: Next) -> Result<Passed, Status> {
    let needs = needs(path);
    let caller = admit(&door.app, needs, &request)?;
    let deadline = Deadline::read(request.headers())?;
    let (mut request, seat) = match path.starts_with("/grpc.reflection.") {
        // A conversation: it has no whole.
        true => (request, Some(reflect(door)?)),
        false => (whole(door, request, needs).await?, None),
    };
    let _open = (needs != Needs::Nothing).then(|| door.open.enter());
    request.extensions_mut().insert(caller);
    request.extensions_mut().insert(deadline);
    tokio::select! {
        biased;
        done = CatchPanic::new(next.run(request)) => done.map(|answer| (answer, seat)).map_err(|panic| {
            tracing::error!(panic, path, "a call panicked");
            Status::from(ApiError::internal("the server failed on this call"))
        }),
        () = deadline.passed() => Err(Status::deadline_exceeded("the deadline of the call has passed")),
    }
}

fn reflect(door: &Door) -> Result<OwnedSemaphorePermit, Status> {
    let seat = Arc::clone(&door.reflections).try_acquire_owned();
    seat.map_err(|_| busy("too_many_streams", "too many streams are open; try again later"))
}

fn admit(app: &App, needs: Needs, request: &Request) -> Result<Caller, ApiError> {
    if needs == Needs::Nothing {
        return Ok(Caller::default());
    }
    let caller = app.authorize(request.headers())?;
    match (needs, caller.role) {
        (Needs::Operator, Role::User) => Err(ApiError::forbidden("this key may not operate the server")),
        _ => Ok(caller),
    }
}

/// The request with its one message read, bounded in size and time. A shutdown does not wait for it.
async fn whole(door: &Door, request: Request, needs: Needs) -> Result<Request, Status> {
    let most = if needs == Needs::Nothing { OPEN_REQUEST_BYTES_MAX } else { REQUEST_BYTES_MAX };
    let patience = door.app.config().read_timeout.min(REQUEST_PATIENCE);
    let mut phase = door.phase.clone();
    let (head, body) = request.into_parts();
    let body = Limited::new(body, most).collect();
    let read = tokio::select! {
        biased;
        read = tokio::time::timeout(patience, body) => read,
        _ = phase.wait_for(|phase| *phase != Phase::Serving) => return Err(draining()),
    };
    match read {
        Ok(Ok(read)) => Ok(Request::from_parts(head, Body::from(read.to_bytes()))),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::body_too_large(most).into()),
        Ok(Err(_)) => Err(ApiError::body_cut().into()),
        Err(_) => Err(ApiError::body_slow().into()),
    }
}
