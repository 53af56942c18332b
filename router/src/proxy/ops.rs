//! What the router answers itself: models, health, metrics, and why it decides as it does.

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode, header};
use serde_json::{Value, json};
use web::Page;

use super::body::AnswerBody;
use super::forward::{json as answer_json, look, read};
use super::pools::Model;
use super::refusal::{Reason, Refusal};
use super::router::{Router, wrong_method};
use crate::admission::Class;
use crate::fleet::Readiness;

type Answer = Result<Response<AnswerBody>, Refusal>;

pub(super) async fn answer(router: &Router, request: Request<Incoming>) -> Answer {
    let is_get = request.method() == Method::GET;
    match request.uri().path() {
        "/debug/route" if request.method() == Method::POST => route(router, request).await,
        "/livez" if is_get => Ok(text("ok")),
        "/health" | "/readyz" if is_get => health(router),
        "/metrics" if is_get => Ok(metrics(router)),
        "/version" if is_get => {
            Ok(answer_json(StatusCode::OK, json!({"version": router.version}).to_string()))
        }
        "/v1/models" if is_get => {
            router.gate.client(request.headers())?;
            Ok(models(router))
        }
        "/debug/replicas" if is_get => {
            router.gate.operator(request.headers())?;
            Ok(replicas(router))
        }
        path if is_get && path.starts_with("/v1/models/") => {
            router.gate.client(request.headers())?;
            model(router, &path["/v1/models/".len()..])
        }
        path if super::router::OWN.contains(&path) => Err(wrong_method(&request)),
        path => {
            let message = format!("unknown URL: {} {path}", request.method());
            Err(Refusal::new(Reason::UnknownUrl, message))
        }
    }
}

fn text(said: &'static str) -> Response<AnswerBody> {
    Response::new(AnswerBody::Whole(Full::new(Bytes::from_static(said.as_bytes()))))
}

/// 200 while some replica takes requests.
fn health(router: &Router) -> Answer {
    if router.is_draining() {
        return Err(Refusal::new(Reason::Draining, "the router is being stopped"));
    }
    let ready = router.replicas_ready();
    if ready == 0 {
        return Err(Refusal::new(Reason::NoReplica, "no replica is ready"));
    }
    Ok(answer_json(StatusCode::OK, json!({"status": "ok", "replicas_ready": ready}).to_string()))
}

fn entry(name: &str) -> Value {
    json!({"id": name, "object": "model", "created": 0, "owned_by": "quire"})
}

fn models(router: &Router) -> Response<AnswerBody> {
    let data: Vec<Value> = router.pools.all().keys().map(|name| entry(name)).collect();
    answer_json(StatusCode::OK, json!({"object": "list", "data": data}).to_string())
}

fn model(router: &Router, name: &str) -> Answer {
    router.pools.find(Some(name))?;
    Ok(answer_json(StatusCode::OK, entry(name).to_string()))
}

/// What would be decided for this body, and why; nothing is sent or promised.
async fn route(router: &Router, request: Request<Incoming>) -> Answer {
    router.gate.operator(request.headers())?;
    let (head, body) = request.into_parts();
    let body = read(router, &head.headers, body).await?;
    let credential = web::bearer(&head.headers).unwrap_or_default();
    let (pool, prompt) = look(router, &body, router.seen_by_replicas(credential)).await?;
    let decision = pool.dry_run(&prompt.supposed(router, &body));
    let decision = decision.map_err(|none| Refusal::new(Reason::NoReplica, none.to_string()))?;
    let names: Vec<Value> = pool
        .replicas()
        .iter()
        .map(|replica| json!({"seat": replica.seat, "address": replica.upstream.address().to_string()}))
        .collect();
    Ok(answer_json(StatusCode::OK, json!({"decision": decision, "replicas": names}).to_string()))
}

fn replicas(router: &Router) -> Response<AnswerBody> {
    let pools: Vec<Value> = router.pools.pools().iter().map(|model| pool(router, model)).collect();
    answer_json(StatusCode::OK, json!({"pools": pools}).to_string())
}

fn pool(router: &Router, model: &Model) -> Value {
    let now = router.clock.now();
    let mut seats: Vec<Value> = Vec::new();
    for replica in model.pool.replicas() {
        let seat = replica.seat;
        let held = model.pool.index().seat(seat);
        let source = model.pool.source(seat);
        seats.push(model.pool.with_desk(|desk| {
            let breaker = desk.breakers().state(now, seat).map(crate::breaker::State::name);
            let known = desk.fleet().replica(seat);
            json!({
                "seat": seat,
                "address": replica.upstream.address().to_string(),
                "readiness": known.map(|known| known.readiness),
                "open_requests": replica.open(),
                "load": desk.book().load(seat, now),
                "rates": desk.fleet().speeds().rates(seat),
                "breaker": breaker,
                "events": source.name(),
                "blocks": held.memberships,
            })
        }));
    }
    let admission = model.pool.with_desk(|desk| {
        let admission = desk.admission();
        let waiting = Class::ALL.map(|class| (class.name(), admission.waiting(class)));
        json!({
            "in_flight": admission.requests_in_flight(),
            "work_in_flight": admission.work_in_flight().0,
            "work_budget": admission.capacity().budget.0,
            "waiting": waiting.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
        })
    });
    let names = if model.pool.naming().is_exact() { "exact" } else { "text" };
    json!({"model": &*model.name, "policy": router.config.policy.name(), "names": names, "admission": admission, "replicas": seats})
}

fn metrics(router: &Router) -> Response<AnswerBody> {
    let mut page = Page::new("quire_router_", &[]);
    router.metrics.write(&mut page);
    let pools = router.pools.pools();
    fleet_metrics(&mut page, &pools);
    queue_metrics(&mut page, &pools);
    index_metrics(&mut page, &pools);
    Response::builder()
        .header(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")
        .body(AnswerBody::Whole(Full::new(Bytes::from(page.finish()))))
        .expect("constant headers")
}

fn fleet_metrics(page: &mut Page, pools: &[Model]) {
    page.head("replica_ready", "gauge", "Whether a replica takes requests.");
    for model in pools {
        for replica in model.pool.replicas() {
            let is_ready = model.pool.with_desk(|desk| {
                desk.fleet().replica(replica.seat).is_some_and(|known| known.readiness == Readiness::Ready)
            });
            let address = replica.upstream.address().to_string();
            let labels = [("model_name", &*model.name), ("replica", address.as_str())];
            page.sample("replica_ready", &labels, f64::from(u8::from(is_ready)));
        }
    }
    page.head("replica_open_requests", "gauge", "Requests that are with a replica.");
    for model in pools {
        for replica in model.pool.replicas() {
            let address = replica.upstream.address().to_string();
            let labels = [("model_name", &*model.name), ("replica", address.as_str())];
            page.sample("replica_open_requests", &labels, replica.open() as f64);
        }
    }
}

fn queue_metrics(page: &mut Page, pools: &[Model]) {
    page.head("requests_waiting", "gauge", "Requests that wait for admission, by class.");
    for model in pools {
        for class in Class::ALL {
            let waiting = model.pool.with_desk(|desk| desk.admission().waiting(class));
            let labels = [("model_name", &*model.name), ("class", class.name())];
            page.sample("requests_waiting", &labels, waiting as f64);
        }
    }
    page.head("work_in_flight_tokens", "gauge", "Predicted token work of admitted requests.");
    for model in pools {
        let work = model.pool.with_desk(|desk| desk.admission().work_in_flight().0);
        page.sample("work_in_flight_tokens", &[("model_name", &*model.name)], work as f64);
    }
}

fn index_metrics(page: &mut Page, pools: &[Model]) {
    page.head("index_bytes", "gauge", "Memory of the prefix index.");
    for model in pools {
        let bytes = model.pool.index().view().bytes.0;
        page.sample("index_bytes", &[("model_name", &*model.name)], bytes as f64);
    }
    page.head("index_refused_blocks_total", "counter", "Blocks that the index had no room for.");
    for model in pools {
        let refused = model.pool.index().view().refused_blocks;
        page.sample("index_refused_blocks_total", &[("model_name", &*model.name)], refused as f64);
    }
}
