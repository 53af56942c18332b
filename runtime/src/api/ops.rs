//! Endpoints for operators and clients' discovery: models, health, metrics, version, cache reset.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, Response, header};
use serde_json::{Value, json};

use crate::api::app::{App, Replica};
use crate::api::config::MetricsAlias;
use crate::api::error::ApiError;
use crate::api::generate::json_response;
use crate::api::router::respond;
use crate::metrics::{self, EngineNumbers};

const OPENAPI: &str = include_str!("openapi.json");

/// 200 when requests can be served, else 503 and why.
pub(crate) async fn health(State(app): State<App>) -> Response<Body> {
    respond(app.health().map(|()| json_response(&json!({"status": "ok"}))))
}

/// 200 as long as the process answers.
pub(crate) async fn livez() -> Response<Body> {
    json_response(&json!({"status": "ok"}))
}

pub(crate) async fn models(State(app): State<App>) -> Response<Body> {
    let list = |replica: &Replica| {
        let data: Vec<Value> = app.config().models.iter().map(|name| describe(name, replica)).collect();
        json_response(&json!({"object": "list", "data": data}))
    };
    respond(app.replica().map(list))
}

pub(crate) async fn model(State(app): State<App>, Path(id): Path<String>) -> Response<Body> {
    let find = |replica: &Replica| match app.config().models.iter().find(|name| **name == id) {
        Some(name) => Ok(json_response(&describe(name, replica))),
        None => Err(ApiError::unknown_model(&id)),
    };
    respond(app.replica().and_then(find))
}

fn describe(name: &str, replica: &Replica) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": replica.since,
        "owned_by": "quire",
        "max_model_len": replica.context(),
    })
}

pub(crate) async fn metrics(State(app): State<App>) -> Response<Body> {
    let prefixes: &[&str] = match app.config().metrics_alias {
        MetricsAlias::None => &["quire_"],
        MetricsAlias::Vllm => &["quire_", "vllm:"],
    };
    let model = app.config().models.first().map_or("", String::as_str);
    let replica = app.replica().ok();
    let io = replica.map(|replica| replica.engine.tier_io()).unwrap_or_default();
    let engine = replica.map(|replica| EngineNumbers {
        stats: replica.engine.stats(),
        shape: replica.engine.shape(),
        io: &io,
    });
    let page = metrics::render(prefixes, model, app.metrics(), engine);
    with_type(page, "text/plain; version=0.0.4; charset=utf-8")
}

pub(crate) async fn version(State(app): State<App>) -> Response<Body> {
    match app.grpc_port() {
        Some(port) => json_response(&json!({"version": app.config().version, "grpc_port": port})),
        None => json_response(&json!({"version": app.config().version})),
    }
}

pub(crate) async fn openapi() -> Response<Body> {
    with_type(OPENAPI.to_owned(), "application/json")
}

/// Drops cached pages that no request uses.
pub(crate) async fn reset_prefix_cache(State(app): State<App>) -> Response<Body> {
    match app.replica() {
        Ok(replica) => json_response(&json!({"dropped_pages": replica.engine.clear_cache().await})),
        Err(error) => error.response(),
    }
}

fn with_type(body: String, kind: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
