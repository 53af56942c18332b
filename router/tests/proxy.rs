//! The router between real connections: what passes through, what is retried, what is refused, what ends how.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode};
use quire_router::decide::Policy;
use quire_router::proxy::Config;
use serde_json::json;

use super::client::{Under, chat, request, soon, until};
use super::mock::{Mock, Script};

const FINE: Script = Script::Whole(StatusCode::OK, r#"{"fine": true}"#);

fn round_robin() -> Config {
    Config { policy: Policy::RoundRobin, ..Config::default() }
}

#[tokio::test]
async fn bodies_pass_through_as_they_are() {
    let mock = Mock::start(FINE).await;
    let under = Under::start(&[&mock]).await;
    let body = Bytes::from_static(b"{ \"model\" : \"m\",\n \"odd\": [1e3, \"\\u00e9\"], \"messages\": [] }");
    let sent = Request::post("/v1/chat/completions?beta=1")
        .header("host", "router")
        .header("x-custom", "kept")
        .header("connection", "x-hop")
        .header("x-hop", "not kept")
        .body(Full::new(body.clone()))
        .unwrap();
    let answer = under.send(sent).await;
    assert_eq!((answer.status, &answer.body[..]), (200, &br#"{"fine": true}"#[..]));
    let heard = mock.heard().pop().unwrap();
    assert_eq!((heard.path.as_str(), heard.body), ("/v1/chat/completions", body));
    assert_eq!(heard.headers["x-custom"], "kept");
    assert!(!heard.headers.contains_key("x-hop"));
    assert_eq!(heard.headers["host"], mock.address.to_string());
    under.is_idle().await;
}

#[tokio::test]
async fn a_streams_events_pass_one_by_one() {
    let mock = Mock::start(Script::Stream).await;
    let under = Under::start(&[&mock]).await;
    let mut stream = under.open(request(Method::POST, "/v1/completions", &chat("x"))).await.into_body();
    for event in ["one", "two"] {
        mock.say(Some(event));
        let frame = soon(stream.frame()).await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(frame, format!("data: {event}\n\n"));
    }
    mock.say(None);
    assert!(soon(stream.frame()).await.is_none());
    under.is_idle().await;
}

#[tokio::test]
async fn a_client_that_leaves_is_left_by_the_replica_too() {
    let mock = Mock::start(Script::Stream).await;
    let under = Under::start(&[&mock]).await;
    let mut stream = under.open(request(Method::POST, "/v1/completions", &chat("x"))).await.into_body();
    mock.say(Some("one"));
    soon(stream.frame()).await.unwrap().unwrap();
    drop(stream);
    // The end of a connection is noticed at the next write to it.
    until(|| {
        mock.say(Some("more"));
        mock.dropped() == 1
    })
    .await;
    under.is_idle().await;
}

#[tokio::test]
async fn a_busy_replica_is_passed_over_and_its_refusal_is_told_if_all_are_busy() {
    let (busy, fine) = (Mock::start(Script::Busy).await, Mock::start(FINE).await);
    let under = Under::with(&[&busy, &fine], round_robin()).await;
    for _ in 0..6 {
        assert_eq!(under.chat("x").await.status, 200);
    }
    assert!(!busy.heard().is_empty());
    fine.play(Script::Busy);
    let answer = under.chat("x").await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.code(), "overloaded", "the replica's own words");
    let answer = under.chat("x").await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "no_replica"));
    assert!(answer.headers.contains_key("retry-after") && answer.headers.contains_key("x-quire-overflow"));
    under.is_idle().await;
}

#[tokio::test]
async fn wrong_requests_open_no_breaker() {
    let mock = Mock::start(Script::Whole(StatusCode::BAD_REQUEST, r#"{"error":{"code":"bad"}}"#)).await;
    let under = Under::start(&[&mock]).await;
    for _ in 0..200 {
        assert_eq!(under.chat("x").await.status, 400);
    }
    mock.play(FINE);
    assert_eq!(under.chat("x").await.status, 200);
    assert_eq!(mock.heard().len(), 201, "refusals are not retried");
    under.is_idle().await;
}

#[tokio::test]
async fn a_dead_replicas_requests_go_elsewhere_before_anything_was_sent() {
    let (hangs, fine) = (Mock::start(Script::Hang).await, Mock::start(FINE).await);
    let under = Under::with(&[&hangs, &fine], round_robin()).await;
    let (a, b) = (under.chat("x"), under.chat("y"));
    let killed = async {
        until(|| !hangs.heard().is_empty()).await;
        hangs.kill();
    };
    let (a, b, ()) = tokio::join!(a, b, killed);
    assert_eq!((a.status, b.status), (200, 200));
    until(|| under.router.replicas_ready() == 1).await;
    let reborn = hangs.reborn(FINE).await;
    until(|| under.router.replicas_ready() == 2).await;
    for _ in 0..4 {
        under.chat("x").await;
    }
    assert!(!reborn.heard().is_empty(), "it takes requests again");
    under.is_idle().await;
}

#[tokio::test]
async fn a_half_answer_is_never_passed_on() {
    let (cut, fine) = (Mock::start(Script::Cut).await, Mock::start(FINE).await);
    let under = Under::with(&[&cut, &fine], round_robin()).await;
    for _ in 0..4 {
        assert_eq!(under.chat("x").await.status, 200);
    }
    fine.kill();
    until(|| under.router.replicas_ready() == 1).await;
    let answer = under.chat("x").await;
    assert_eq!((answer.status, answer.code().as_str()), (502, "replica_failed"));
    under.is_idle().await;
}

#[tokio::test]
async fn a_stream_whose_replica_dies_ends_with_an_error_event() {
    let mock = Mock::start(Script::Stream).await;
    let under = Under::start(&[&mock]).await;
    let mut stream = under.open(request(Method::POST, "/v1/messages", &chat("x"))).await.into_body();
    mock.say(Some("one"));
    soon(stream.frame()).await.unwrap().unwrap();
    mock.kill();
    let last = soon(stream.collect()).await.unwrap().to_bytes();
    let last = std::str::from_utf8(&last).unwrap();
    assert!(last.starts_with("event: error\ndata: {\"type\":\"error\""), "{last}");
    under.is_idle().await;
}

#[tokio::test]
async fn a_replica_that_stops_answering_probes_loses_its_requests() {
    let hangs = Mock::start(Script::Hang).await;
    let under = Under::start(&[&hangs]).await;
    let asked = under.chat("x");
    let unwell = async {
        until(|| !hangs.heard().is_empty()).await;
        hangs.kill();
    };
    let (answer, ()) = tokio::join!(asked, unwell);
    assert_eq!((answer.status, answer.code().as_str()), (502, "replica_failed"));
    under.is_idle().await;
}

#[tokio::test]
async fn an_unready_replica_keeps_its_requests_and_gets_no_new_ones() {
    let mock = Mock::start(Script::Stream).await;
    let under = Under::start(&[&mock]).await;
    let mut stream = under.open(request(Method::POST, "/v1/completions", &chat("x"))).await.into_body();
    mock.say(Some("one"));
    soon(stream.frame()).await.unwrap().unwrap();
    mock.set_healthy(false);
    until(|| under.router.replicas_ready() == 0).await;
    assert_eq!(under.chat("y").await.code(), "no_replica");
    mock.say(Some("two"));
    assert_eq!(soon(stream.frame()).await.unwrap().unwrap().into_data().unwrap(), "data: two\n\n");
    mock.say(None);
    assert!(soon(stream.frame()).await.is_none());
    under.is_idle().await;
}

#[tokio::test]
async fn a_conversation_stays_with_the_replica_that_has_its_prefix() {
    let mocks = [Mock::start(FINE).await, Mock::start(FINE).await, Mock::start(FINE).await];
    let under = Under::start(&[&mocks[0], &mocks[1], &mocks[2]]).await;
    let mut seats = std::collections::BTreeSet::new();
    for conversation in 0..12 {
        let mut said = format!("conversation {conversation}: {}", "word ".repeat(400));
        let seat = under.chat(&said).await.seat();
        for _ in 0..3 {
            said += &"more ".repeat(200);
            assert_eq!(under.chat(&said).await.seat(), seat);
        }
        seats.insert(seat);
    }
    assert!(seats.len() > 1, "and different conversations are spread");
    under.is_idle().await;
}

#[tokio::test]
async fn what_cannot_be_forwarded_is_refused_by_name() {
    let mock = Mock::start(FINE).await;
    let config = Config { body_bytes_max: 100_000, ..Config::default() };
    let under = Under::with(&[&mock], config).await;
    let path = "/v1/chat/completions";
    let raw = |body: &'static [u8]| Request::post(path).body(Full::new(Bytes::from_static(body))).unwrap();
    let answer = under.send(raw(b"{\"model\":")).await;
    assert_eq!((answer.status, answer.code().as_str()), (400, "invalid_json"));
    let answer = under.post(path, &json!({"model": "other"})).await;
    assert_eq!((answer.status, answer.code().as_str()), (404, "model_not_found"));
    assert_eq!(answer.json()["error"]["param"], "model");
    let answer = under.chat(&"x".repeat(100_001)).await;
    assert_eq!((answer.status, answer.code().as_str()), (413, "request_too_large"));
    let answer = under.get(path).await;
    assert_eq!((answer.status, answer.code().as_str()), (405, "method_not_allowed"));
    let answer = under.get("/v1/none").await;
    assert_eq!((answer.status, answer.code().as_str()), (404, "unknown_url"));
    let mut odd = request(Method::POST, path, &chat("x"));
    odd.headers_mut().insert("x-quire-class", "gold".parse().unwrap());
    let answer = under.send(odd).await;
    assert_eq!((answer.status, answer.code().as_str()), (400, "invalid_header"));
    assert!(mock.heard().is_empty());
}

#[tokio::test]
async fn before_any_replica_is_there_requests_are_told_so() {
    let mock = Mock::start(FINE).await;
    mock.kill();
    let under = Under::early(&[&mock], Config::default()).await;
    let answer = under.chat("x").await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "no_replica"));
    assert_eq!(under.get("/health").await.status, 503);
    assert_eq!(under.get("/livez").await.status, 200);
}

#[tokio::test]
async fn several_models_are_several_pools() {
    let (a, b) = (Mock::serving(FINE, &["a", "alias"]).await, Mock::serving(FINE, &["b"]).await);
    let under = Under::with(&[&a, &b], Config::default()).await;
    for (model, mock) in [("a", &a), ("alias", &a), ("b", &b)] {
        let before = mock.heard().len();
        assert_eq!(under.post("/v1/completions", &json!({"model": model, "prompt": "x"})).await.status, 200);
        assert_eq!(mock.heard().len(), before + 1, "{model}");
    }
    let answer = under.post("/v1/completions", &json!({"prompt": "x"})).await;
    assert_eq!(answer.code(), "model_not_found", "there are several");
    let listed = under.get("/v1/models").await.json();
    let names: Vec<_> = listed["data"].as_array().unwrap().iter().map(|m| m["id"].clone()).collect();
    assert_eq!(names, ["a", "alias", "b"]);
}

#[tokio::test]
async fn a_replica_that_comes_back_with_another_model_changes_pools() {
    let mock = Mock::start(FINE).await;
    let under = Under::start(&[&mock]).await;
    mock.set_healthy(false);
    until(|| under.router.replicas_ready() == 0).await;
    mock.serve(&["n"]);
    mock.set_healthy(true);
    until(|| under.router.replicas_ready() == 1).await;
    assert_eq!(under.post("/v1/completions", &json!({"model": "n", "prompt": "x"})).await.status, 200);
    assert_eq!(under.chat("x").await.code(), "no_replica", "nobody serves the old one");
    under.is_idle().await;
}

#[tokio::test]
async fn a_drain_finishes_what_runs_and_takes_nothing_new() {
    let mock = Mock::start(Script::Stream).await;
    let mut under = Under::start(&[&mock]).await;
    let mut stream = under.open(request(Method::POST, "/v1/completions", &chat("x"))).await.into_body();
    mock.say(Some("one"));
    soon(stream.frame()).await.unwrap().unwrap();
    under.stop();
    until(|| under.router.is_draining()).await;
    mock.say(Some("two"));
    assert_eq!(soon(stream.frame()).await.unwrap().unwrap().into_data().unwrap(), "data: two\n\n");
    mock.say(None);
    assert!(soon(stream.frame()).await.is_none());
    let drained = under.drained().await;
    assert_eq!((drained.finished, drained.cut), (1, 0));
}

#[tokio::test]
async fn a_deadline_that_cannot_be_met_is_told_before_the_start() {
    let mock = Mock::start(Script::Hang).await;
    let under = Under::start(&[&mock]).await;
    let mut late = request(Method::POST, "/v1/completions", &chat("x"));
    late.headers_mut().insert("x-quire-deadline-ms", "0".parse().unwrap());
    let answer = under.send(late).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "expired_before_start"));
    assert!(mock.heard().is_empty());
}

#[tokio::test]
async fn a_replica_that_says_nothing_is_given_up_at_the_timeout() {
    let mock = Mock::start(Script::Hang).await;
    let config = Config { request_timeout: Duration::from_millis(50), ..Config::default() };
    let under = Under::with(&[&mock], config).await;
    let answer = under.chat("x").await;
    assert_eq!((answer.status, answer.code().as_str()), (504, "replica_timeout"));
    under.is_idle().await;
}

#[tokio::test]
async fn a_stream_that_stands_still_is_cut_at_the_timeout_and_says_so() {
    let mock = Mock::start(Script::Stream).await;
    let config = Config { request_timeout: Duration::from_millis(300), ..Config::default() };
    let under = Under::with(&[&mock], config).await;
    let mut stream = under.open(request(Method::POST, "/v1/completions", &chat("x"))).await.into_body();
    mock.say(Some("one"));
    soon(stream.frame()).await.unwrap().unwrap();
    let last = soon(stream.collect()).await.unwrap().to_bytes();
    assert!(std::str::from_utf8(&last).unwrap().contains("\"replica_timeout\""), "{last:?}");
    under.is_idle().await;
}

#[tokio::test]
async fn with_keys_of_its_own_the_router_decides_and_shows_replicas_its_own() {
    let mock = Mock::start(FINE).await;
    let config = Config {
        keys: vec!["client".into()],
        admin_keys: vec!["root".into()],
        replica_key: Some("inner".into()),
        ..Config::default()
    };
    let under = Under::with(&[&mock], config).await;
    assert_eq!(under.chat("x").await.code(), "invalid_api_key");
    let with = |key: &str| {
        let mut request = request(Method::POST, "/v1/chat/completions", &chat("x"));
        request.headers_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
        request
    };
    assert_eq!(under.send(with("client")).await.status, 200);
    assert_eq!(mock.heard().pop().unwrap().headers["authorization"], "Bearer inner");
    let mut debug = with("client");
    *debug.uri_mut() = "/debug/route".parse().unwrap();
    assert_eq!(under.send(debug).await.status, 403);
    let mut debug = with("root");
    *debug.uri_mut() = "/debug/route".parse().unwrap();
    let decided = under.send(debug).await.json();
    assert_eq!(decided["decision"]["chosen"], 0);
    assert!(decided["decision"]["scores"][0]["total_ms"].is_number(), "{decided}");
}

/// A tenant's key is its namespace: a router that only needs a key for itself must not speak with it for others.
#[tokio::test]
async fn without_keys_of_its_own_a_clients_key_reaches_the_replica_whatever_the_router_has_for_itself() {
    let mock = Mock::start(FINE).await;
    let under =
        Under::with(&[&mock], Config { replica_key: Some("inner".into()), ..Config::default() }).await;
    let mut tenants = request(Method::POST, "/v1/chat/completions", &chat("x"));
    tenants.headers_mut().insert("authorization", "Bearer acme".parse().unwrap());
    assert_eq!(under.send(tenants).await.status, 200);
    assert_eq!(mock.heard().pop().unwrap().headers["authorization"], "Bearer acme");
    under.chat("x").await;
    assert!(
        !mock.heard().pop().unwrap().headers.contains_key("authorization"),
        "nor for those without a key"
    );
}

#[tokio::test]
async fn the_router_counts_what_it_did() {
    let mock = Mock::start(FINE).await;
    let under = Under::start(&[&mock]).await;
    under.chat("x").await;
    under.get("/nowhere").await;
    under.is_idle().await;
    let page = String::from_utf8(under.get("/metrics").await.body.to_vec()).unwrap();
    for line in [
        "quire_router_requests_total{ending=\"completed\"} 1",
        "quire_router_refusals_total{reason=\"unknown_url\"} 1",
        "quire_router_requests_waiting{model_name=\"m\",class=\"batch\"} 0",
    ] {
        assert!(page.lines().any(|l| l == line), "{line} missing in\n{page}");
    }
    let replicas = under.get("/debug/replicas").await.json();
    assert_eq!(replicas["pools"][0]["replicas"][0]["readiness"], "ready");
}
