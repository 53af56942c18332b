//! Paths to handlers, and what every request passes on its way in and out.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Response, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::routing::{get, post};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::Value;

use crate::api::app::{App, Replica, Ticket};
use crate::api::auth::{Caller, Role};
use crate::api::error::ApiError;
use crate::api::generate::{self, Prepared};
use crate::api::{admin, chat, completion, ops, tokens};

/// Every path of the server, in the order of `openapi.json`, which describes them.
pub const PATHS: [&str; 16] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/models",
    "/v1/models/{model}",
    "/tokenize",
    "/detokenize",
    "/health",
    "/livez",
    "/readyz",
    "/metrics",
    "/version",
    "/openapi.json",
    "/reset_prefix_cache",
    "/v1/admin/cache",
    "/v1/admin/cache/tree",
    "/v1/admin/purge",
];

pub(crate) fn router(app: App) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/completions", post(completions))
        .route("/v1/models", get(ops::models))
        .route("/v1/models/{*id}", get(ops::model))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/health", get(ops::health))
        .route("/livez", get(ops::livez))
        .route("/readyz", get(ops::health))
        .route("/metrics", get(ops::metrics))
        .route("/version", get(ops::version))
        .route("/openapi.json", get(ops::openapi))
        .route("/reset_prefix_cache", post(ops::reset_prefix_cache))
        .route("/v1/admin/cache", get(admin::cache))
        .route("/v1/admin/cache/tree", get(admin::tree))
        .route("/v1/admin/purge", post(purge))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(app.clone(), enter))
        .with_state(app)
}

/// Open to anyone: probes come without a key.
const OPEN: [&str; 3] = ["/health", "/livez", "/readyz"];
/// Open too, unless the server is told otherwise: scrapers are set up without keys.
const METRICS: &str = "/metrics";

/// Paths that act on more than the caller's own.
fn is_operators(path: &str) -> bool {
    path == "/reset_prefix_cache" || path.starts_with("/v1/admin/")
}

/// Ticket, key, panics, request id, status count.
async fn enter(State(app): State<App>, mut request: Request, next: Next) -> Response<Body> {
    let ticket = app.ticket(request.headers());
    let name = HeaderValue::from_str(&ticket.name);
    let path = request.uri().path();
    let mut response = match admit(&app, path, request.headers()) {
        Err(error) => error.response(),
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            request.extensions_mut().insert(ticket);
            CatchPanic::new(next.run(request)).await.unwrap_or_else(|panic| {
                tracing::error!(panic, "a request handler panicked");
                ApiError::internal("the server failed on this request").response()
            })
        }
    };
    if let Ok(name) = name {
        response.headers_mut().insert("x-request-id", name);
    }
    app.metrics().response(response.status().as_u16());
    response
}

fn admit(app: &App, path: &str, headers: &HeaderMap) -> Result<Caller, ApiError> {
    if OPEN.contains(&path) {
        return Ok(Caller::default());
    }
    if path == METRICS {
        return app.authorize_scrape(headers).map(|()| Caller::default());
    }
    let caller = app.authorize(headers)?;
    match caller.role {
        Role::User if is_operators(path) => Err(ApiError::forbidden("this key may not operate the server")),
        _ => Ok(caller),
    }
}

async fn chat_completions(State(app): State<App>, request: Request) -> Response<Body> {
    respond(generate(app, request, chat::prepare).await)
}

async fn completions(State(app): State<App>, request: Request) -> Response<Body> {
    respond(generate(app, request, completion::prepare).await)
}

type Prepare = fn(&App, &Replica, &Value) -> Result<Prepared, ApiError>;

async fn generate(app: App, request: Request, prepare: Prepare) -> Result<Response<Body>, ApiError> {
    let arrived = app.clock().now();
    app.health()?;
    let ticket = request.extensions().get::<Arc<Ticket>>().map(Arc::clone);
    let ticket = ticket.ok_or_else(|| ApiError::internal("a request without a ticket"))?;
    let caller = request.extensions().get::<Caller>().copied();
    let caller = caller.ok_or_else(|| ApiError::internal("a request without a caller"))?;
    let body = read(&app, request).await?;
    let prepared = app.prepare(body.len(), move |app| prepare(app, app.replica()?, &parse(&body)?)).await?;
    generate::answer(&app, caller, ticket, arrived, prepared).await
}

async fn tokenize(State(app): State<App>, request: Request) -> Response<Body> {
    respond(convert(app, request, tokens::tokenize).await)
}

async fn detokenize(State(app): State<App>, request: Request) -> Response<Body> {
    respond(convert(app, request, tokens::detokenize).await)
}

type Convert = fn(&App, &Replica, &Value) -> Result<Value, ApiError>;

async fn convert(app: App, request: Request, convert: Convert) -> Result<Response<Body>, ApiError> {
    app.replica()?;
    let body = read(&app, request).await?;
    let value = app.prepare(body.len(), move |app| convert(app, app.replica()?, &parse(&body)?)).await?;
    Ok(generate::json_response(&value))
}

async fn purge(State(app): State<App>, request: Request) -> Response<Body> {
    let answer = async {
        let body = read(&app, request).await?;
        admin::purge(&app, &parse(&body)?).await
    };
    respond(answer.await)
}

async fn unknown_path(request: Request) -> Response<Body> {
    ApiError::unknown_path(request.method().as_str(), request.uri().path()).response()
}

async fn wrong_method(request: Request) -> Response<Body> {
    ApiError::wrong_method(request.method().as_str(), request.uri().path()).response()
}

pub(crate) fn respond(result: Result<Response<Body>, ApiError>) -> Response<Body> {
    result.unwrap_or_else(|error| error.response())
}

fn parse(body: &Bytes) -> Result<Value, ApiError> {
    serde_json::from_slice(body).map_err(|error| ApiError::malformed(&error))
}

/// The whole body, bounded in size and time.
async fn read(app: &App, request: Request) -> Result<Bytes, ApiError> {
    let limit = app.config().limits.body_bytes_max;
    let declared = request.headers().get(header::CONTENT_LENGTH);
    let declared = declared.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > limit as u64) {
        return Err(ApiError::body_too_large(limit));
    }
    let body = Limited::new(request.into_body(), limit).collect();
    match tokio::time::timeout(app.config().read_timeout, body).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::body_too_large(limit)),
        Ok(Err(_)) => Err(ApiError::body_cut()),
        Err(_) => Err(ApiError::body_slow()),
    }
}

/// A panic in a handler is that request's 500, not the connection's end.
pub(crate) struct CatchPanic<F>(Pin<Box<F>>);

impl<F> CatchPanic<F> {
    pub fn new(work: F) -> Self {
        Self(Box::pin(work))
    }
}

impl<F: Future> Future for CatchPanic<F> {
    type Output = Result<F::Output, String>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(cx))) {
            Ok(poll) => poll.map(Ok),
            Err(panic) => Poll::Ready(Err(panic_text(&*panic))),
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panic".to_owned())
}
