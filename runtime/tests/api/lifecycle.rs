//! Loading, keys, overload, aborts, faults and the graceful end.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::Method;
use quire_runtime::api::{Raising, Scrapers};
use serde_json::{Value, json};

use super::server::{Client, Gate, Server, fault};

fn long(stream: bool) -> Value {
    json!({"model": "sim", "prompt": "hi", "max_tokens": 500, "stream": stream})
}

#[tokio::test]
async fn the_port_answers_while_the_model_loads() {
    let (server, text) = Server::loading(|_| ()).await;
    for path in ["/health", "/readyz", "/v1/models"] {
        let reply = server.get(path).await;
        assert_eq!(reply.status, 503, "{path}");
        assert_eq!(reply.json()["error"]["message"], "loading model");
    }
    assert_eq!(server.post("/v1/completions", long(false)).await.status, 503);
    assert_eq!(server.get("/livez").await.status, 200);
    assert_eq!(server.get("/metrics").await.status, 200);
    server.app.ready(server.engine.clone(), text);
    assert_eq!(server.get("/health").await.status, 200);
    assert_eq!(server.post("/v1/completions", long(false)).await.status, 200);
}

#[tokio::test]
async fn keys_guard_all_but_probes_and_metrics() {
    let server = Server::with(|setup| setup.config.api_keys = vec!["k1".into(), "k2".into()]).await;
    let mut client = server.connect().await;
    for path in ["/health", "/livez", "/readyz", "/metrics"] {
        assert_eq!(client.send(Method::GET, path, &[], "").await.status, 200);
    }
    for path in ["/v1/models", "/version", "/openapi.json", "/nowhere"] {
        let reply = client.send(Method::GET, path, &[("authorization", "Bearer k3")], "").await;
        assert_eq!((reply.status.as_u16(), &reply.json()["error"]["code"]), (401, &json!("invalid_api_key")));
        let reply = client.send(Method::GET, path, &[("authorization", "Bearer k2")], "").await;
        assert_ne!(reply.status, 401, "{path}");
    }
}

#[tokio::test]
async fn metrics_ask_for_a_key_when_told_to_and_probes_do_not() {
    let server = Server::with(|setup| {
        setup.config.admin_keys = vec!["root".into()];
        setup.config.scrapers = Scrapers::Keyed(vec!["prom".into()]);
    })
    .await;
    let mut client = server.connect().await;
    let mut status = async |path, key: &str| {
        let key = format!("Bearer {key}");
        client.send(Method::GET, path, &[("authorization", &key)], "").await.status.as_u16()
    };
    assert_eq!(status("/metrics", "prom").await, 200);
    assert_eq!(status("/metrics", "root").await, 200);
    assert_eq!(status("/metrics", "guess").await, 401);
    assert_eq!(status("/v1/admin/cache", "prom").await, 401);
    assert_eq!(server.get("/metrics").await.status, 401);
    assert_eq!(server.get("/health").await.status, 200);
}

/// Who is served first of two that wait: the one with the raised priority, sent last, or the one before.
async fn first_served(key: &'static str, raising: Raising) -> &'static str {
    let mut server = Server::with(|setup| {
        setup.config.api_keys = vec!["user".into()];
        setup.config.admin_keys = vec!["root".into()];
        setup.config.raising = raising;
        setup.schedule.step_seqs = 1;
        setup.gate = Gate::Closed;
    })
    .await;
    let (served, mut order) = tokio::sync::mpsc::unbounded_channel();
    for (at, name, priority) in [(0, "running", 0), (1, "plain", 0), (2, "raised", -5)] {
        server.until_metric("quire_num_requests_waiting", f64::from(at - 1).max(0.0)).await;
        server.until_metric("quire_num_requests_running", f64::from(at.min(1))).await;
        let mut client = server.connect().await;
        let body = json!({"prompt": name, "max_tokens": 200, "priority": priority}).to_string();
        let served = served.clone();
        tokio::spawn(async move {
            let key = format!("Bearer {key}");
            let reply = client.send(Method::POST, "/v1/completions", &[("authorization", &key)], body).await;
            assert_eq!(reply.status, 200);
            // Nobody asks who came last.
            let _ = served.send(name);
        });
    }
    server.until_metric("quire_num_requests_waiting", 2.0).await;
    server.open_gate();
    loop {
        match order.recv().await.unwrap() {
            // Whoever comes before the others may come before it, too.
            "running" => {}
            first => return first,
        }
    }
}

#[tokio::test]
async fn only_an_operator_comes_before_others_unless_anyone_may() {
    assert_eq!(first_served("user", Raising::Operators).await, "plain");
    assert_eq!(first_served("user", Raising::Anyone).await, "raised");
    assert_eq!(first_served("root", Raising::Operators).await, "raised");
}

#[tokio::test]
async fn beyond_the_bound_the_answer_is_429_with_retry_after() {
    let mut server = Server::with(|setup| {
        setup.gate = Gate::Closed;
        setup.schedule.requests_max = 1;
    })
    .await;
    let mut first = server.connect().await;
    server.steps(1);
    let head = first.begin(Method::POST, "/v1/completions", &[], long(true).to_string()).await.unwrap();
    let refused = server.post("/v1/completions", long(false)).await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(refused.json()["error"]["code"], "overloaded");
    server.open_gate();
    assert!(head.into_body().collect().await.is_ok());
    server.until_served("/v1/completions", &long(false)).await;
}

#[tokio::test]
async fn n_choices_are_admitted_together_or_not_at_all() {
    let server = Server::with(|setup| setup.schedule.requests_max = 2).await;
    let mut body = long(false);
    body["n"] = json!(3);
    assert_eq!(server.post("/v1/completions", body.clone()).await.status, 429);
    body["n"] = json!(2);
    server.until_served("/v1/completions", &body).await;
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_pages() {
    for stream in [true, false] {
        let server = Server::with(|setup| setup.gate = Gate::Closed).await;
        let mut client = server.connect().await;
        if stream {
            server.steps(3);
            let head =
                client.begin(Method::POST, "/v1/completions", &[], long(true).to_string()).await.unwrap();
            let mut body = head.into_body();
            assert!(body.frame().await.is_some());
            drop(body);
            client.hang_up().await;
        } else {
            let body = long(false).to_string();
            let asking = tokio::spawn(async move {
                let _ = client.begin(Method::POST, "/v1/completions", &[], body).await;
            });
            server.until_metric("quire_num_requests_running", 1.0).await;
            asking.abort();
            let _ = asking.await;
        }
        server
            .until_metric("quire_request_success_total{model_name=\"sim\",finished_reason=\"abort\"}", 1.0)
            .await;
        // Far fewer steps than 500 tokens take.
        server.steps(20);
        server.until_metric("quire_num_requests_running", 0.0).await;
        server.until_metric("quire_kv_pages{model_name=\"sim\",state=\"used\"}", 0.0).await;
        assert!(server.metric("quire_generation_tokens_total").await < 30.0);
    }
}

#[tokio::test]
async fn a_panic_in_a_step_fails_its_requests_and_the_server_goes_on() {
    let server = Server::with(|setup| fault(setup, 3)).await;
    let failed = server.post("/v1/completions", long(false)).await;
    assert_eq!(failed.status, 503);
    assert_eq!(failed.json()["error"]["code"], "engine");
    server.until_metric("quire_executor_restarts_total", 1.0).await;
    server.until_served("/v1/completions", &long(false)).await;
    assert_eq!(server.get("/health").await.status, 200);
}

#[tokio::test]
async fn a_failure_amid_a_stream_is_an_event_of_the_stream() {
    let server = Server::with(|setup| fault(setup, 3)).await;
    let reply = server.post("/v1/completions", long(true)).await;
    assert_eq!(reply.status, 200);
    let chunks = reply.chunks();
    assert_eq!(chunks.last().unwrap()["error"]["code"], "engine");
}

#[tokio::test]
async fn draining_finishes_streams_and_closes_idle_connections() {
    let mut server = Server::with(|setup| setup.gate = Gate::Closed).await;
    let mut idle = server.connect().await;
    assert_eq!(idle.send(Method::GET, "/health", &[], "").await.status, 200);
    let mut busy = server.connect().await;
    server.steps(2);
    let head = busy.begin(Method::POST, "/v1/completions", &[], long(true).to_string()).await.unwrap();
    server.signal();
    // The idle connection ends; only then is the drain known to have begun.
    assert!(idle.begin(Method::GET, "/health", &[], "").await.is_err());
    assert!(Client::connect(server.address).await.is_err(), "the listener is closed");
    server.open_gate();
    let body = head.into_body().collect().await.unwrap().to_bytes();
    assert!(body.ends_with(b"data: [DONE]\n\n"));
    let drained = server.drained().await;
    assert_eq!((drained.finished, drained.cut), (1, 0));
}

#[tokio::test]
async fn past_the_deadline_what_runs_is_cut_and_counted() {
    let mut server = Server::with(|setup| {
        setup.gate = Gate::Closed;
        setup.config.drain = Duration::ZERO;
    })
    .await;
    let mut busy = server.connect().await;
    server.steps(2);
    let head = busy.begin(Method::POST, "/v1/completions", &[], long(true).to_string()).await.unwrap();
    server.signal();
    assert!(head.into_body().collect().await.is_err(), "the stream is cut, not ended");
    server.open_gate();
    let drained = server.drained().await;
    assert_eq!((drained.finished, drained.cut), (0, 1));
}
