//! Endpoints for operators of the cache: how the tiers stand, what the trees look like, and the purge.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::Response;
use base::{NamespaceId, Tier};
use kvcache::{CacheStats, Span, TierStats};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::app::App;
use crate::api::error::ApiError;
use crate::api::fields::Fields;
use crate::api::generate::json_response;
use crate::api::router::respond;
use crate::engine::CacheReport;
use crate::purge::{PurgeOrder, hex};
use crate::scheduler::PurgeRunning;

/// How long a purge waits for running requests if nothing is said, and at most.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const PATIENCE_MAX_MS: i64 = 3_600_000;

/// Tiers and namespaces: pages, hit rates, lifetimes, what travelled, what failed.
pub(crate) async fn cache(State(app): State<App>) -> Response<Body> {
    respond(cache_report(&app).await.map(|report| json_response(&report)))
}

async fn cache_report(app: &App) -> Result<Value, ApiError> {
    let engine = &app.replica()?.engine;
    let names = engine.names();
    let ids: Vec<NamespaceId> = names.iter().map(|(id, _)| *id).collect();
    let report = engine.inspect(ids).await.ok_or_else(|| ApiError::unavailable("stopped", "engine"))?;
    let page_bytes = engine.shape().page_bytes;
    let tiers: Vec<Value> = report.tiers.iter().map(|tier| describe(tier, page_bytes, &report)).collect();
    let namespaces: Vec<Value> = report
        .namespaces
        .iter()
        .map(|(id, used)| {
            let name = names.iter().find(|(other, _)| other == id).map_or("", |(_, name)| name);
            let pages: serde_json::Map<String, Value> =
                used.iter().map(|(tier, pages)| (tier.name().to_owned(), json!(pages))).collect();
            json!({"namespace": name, "id": id.0, "pages": pages})
        })
        .collect();
    Ok(json!({
        "page_tokens": engine.shape().page_tokens,
        "page_bytes": page_bytes,
        "tiers": tiers,
        "namespaces": namespaces,
        "travel": travel(&report),
        "journal": journal(&report),
        "purges_under_way": report.purges.len(),
        "is_settled": report.is_settled,
        "public_key": hex(&app.signer()?.public_key()),
    }))
}

fn describe(of: &TierStats, page_bytes: usize, report: &CacheReport) -> Value {
    let CacheStats {
        pages_total, pages_free, pages_private, pages_leased, pages_cached, pages_fenced, ..
    } = of.cache;
    let counters = of.cache.counters;
    let io = report.storage.tiers.iter().find(|(tier, _)| *tier == of.tier).map(|(_, io)| {
        let failures: serde_json::Map<String, Value> =
            io.failures.iter().map(|(kind, n)| ((*kind).to_owned(), json!(n))).collect();
        json!({
            "stores": io.stores, "loads": io.loads, "store_bytes": io.store_bytes, "load_bytes": io.load_bytes,
            "queued": io.queued, "in_flight": io.in_flight, "stuck": io.stuck, "refused": io.refused,
            "failures": failures, "direct": io.direct, "uring": io.uring,
        })
    });
    let rate = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
    json!({
        "tier": of.tier.name(),
        "bytes": pages_total * page_bytes,
        "pages": {
            "total": pages_total, "free": pages_free, "private": pages_private, "leased": pages_leased,
            "cached": pages_cached, "fenced": pages_fenced,
        },
        "trees": of.cache.trees,
        "nodes": of.cache.nodes,
        "metadata_bytes": of.cache.metadata_bytes,
        "lifetime_seconds": quantiles(&of.spans.lifetime),
        "idle_before_evict_seconds": quantiles(&of.spans.idle),
        "reuse_gap_seconds": quantiles(&of.spans.reuse),
        "hit_rate": rate(counters.hit_tokens, counters.queried_tokens),
        "queried_tokens": counters.queried_tokens,
        "hit_tokens": counters.hit_tokens,
        "published_pages": counters.published_pages,
        "evicted_pages": counters.evicted_pages,
        "evicted_at_quota": counters.quota_pages,
        "io": io,
    })
}

/// Upper bounds below which half and nine tenths of the pages lie.
fn quantiles(span: &Span) -> Value {
    json!({"p50": span.quantile_seconds(0.5), "p90": span.quantile_seconds(0.9), "pages": span.count()})
}

fn travel(report: &CacheReport) -> Value {
    let c = report.counters;
    json!({
        "saved_pages": c.saved_pages, "restored_pages": c.restored_pages, "stored_pages": c.stored_pages,
        "loaded_pages": c.loaded_pages, "shed_pages": c.shed_pages, "failed_pages": c.failed_pages,
        "wrong_pages": c.wrong_pages,
    })
}

fn journal(report: &CacheReport) -> Value {
    report.storage.journal.map_or(Value::Null, |j| {
        json!({
            "pages": j.pages, "written": j.written, "lost": j.lost, "failures": j.failures,
            "compactions": j.compactions, "file_bytes": j.file_bytes, "unrecorded": report.storage.unrecorded,
        })
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TreeQuery {
    tier: Option<String>,
}

/// The trees of one tier as text: structure, never tokens.
pub(crate) async fn tree(State(app): State<App>, Query(query): Query<TreeQuery>) -> Response<Body> {
    respond(tree_text(&app, query).await)
}

async fn tree_text(app: &App, query: TreeQuery) -> Result<Response<Body>, ApiError> {
    let name = query.tier.as_deref().unwrap_or("device");
    let tier = Tier::ALL.into_iter().find(|tier| tier.name() == name);
    let tier = tier.ok_or_else(|| ApiError::invalid("tier", format!("no tier is called {name:?}")))?;
    let dump = app.replica()?.engine.dump(tier).await;
    let text = dump.ok_or_else(|| ApiError::invalid("tier", format!("this server has no {name} tier")))?;
    Ok(json_response(&json!({"tier": name, "tree": text})))
}

/// Purges one namespace and answers with the signed report.
pub(crate) async fn purge(app: &App, body: &Value) -> Result<Response<Body>, ApiError> {
    let report = app.purge(order(body)?).await?;
    let value = serde_json::to_value(report).map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(json_response(&value))
}

fn order(body: &Value) -> Result<PurgeOrder, ApiError> {
    let fields = Fields::root(body)?;
    fields.only(&["namespace", "running", "timeout_ms"])?;
    let namespace = fields.string("namespace")?;
    let namespace = namespace.ok_or_else(|| ApiError::invalid("namespace", "`namespace` is missing"))?;
    let running = match fields.string("running")? {
        None | Some("wait") => PurgeRunning::Wait,
        Some("cancel") => PurgeRunning::Cancel,
        Some(other) => {
            let message = format!("`running` must be \"wait\" or \"cancel\", got {other:?}");
            return Err(ApiError::invalid("running", message));
        }
    };
    let patience = fields.integer("timeout_ms", 0..=PATIENCE_MAX_MS)?;
    let patience = patience.map_or(PATIENCE, |ms| Duration::from_millis(ms.unsigned_abs()));
    Ok(PurgeOrder { namespace: namespace.to_owned(), running, patience })
}
