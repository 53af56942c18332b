//! The router as a process, in front of replicas as processes.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use expect_test::expect;
use serde_json::{Value, json};

use crate::binary::{Server, request, run};
use crate::server::refused;

fn replica(more: &[&str]) -> Server {
    Server::start(&[&["serve", "--executor", "sim"], more].concat())
}

fn prompt(seed: u64, tokens: u64) -> Value {
    let ids: Vec<u64> = (0..tokens).map(|n| seed * 1000 + n % 900 + 1).collect();
    json!({"model": "sim", "prompt": ids, "max_tokens": 4, "ignore_eos": true})
}

fn ready(router: &Server, replicas: usize) {
    while router.get("/health").1["replicas_ready"].as_u64() != Some(replicas as u64) {
        std::thread::yield_now();
    }
}

/// What the router knows of each replica.
fn replicas(router: &Server) -> Vec<Value> {
    router.get("/debug/replicas").1["pools"][0]["replicas"].as_array().cloned().unwrap_or_default()
}

#[test]
fn two_replicas_are_one_address_and_a_prefix_stays_where_it_is() {
    let (a, b) = (replica(&[]), replica(&[]));
    let router = Server::start_router(&["route", &a.url, &b.url]);
    ready(&router, 2);
    assert!(router.said.iter().any(|line| line == "policy:       kv-aware"), "{:?}", router.said);
    for seed in 1..5 {
        let (status, first) = router.post("/v1/completions", &prompt(seed, 320));
        assert_eq!(status, 200, "{first}");
        let (_, again) = router.post("/v1/completions", &prompt(seed, 320));
        assert!(again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() > 0, "{again}");
    }
    let (status, refused) = router.post("/v1/completions", &json!({"model": "none", "prompt": "x"}));
    assert_eq!((status, &refused["error"]["code"]), (404, &json!("model_not_found")));
}

/// With one cluster key, replicas name blocks alike: what one holds is known, not guessed, and known at once to a
/// router that has only just begun.
#[test]
fn a_new_router_knows_what_replicas_hold() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("cluster.key");
    std::fs::write(&key, [7; 32]).unwrap();
    let mut mode = std::fs::metadata(&key).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o600);
    std::fs::set_permissions(&key, mode).unwrap();
    let more = ["--grpc-port", "0", "--cluster-key", key.to_str().unwrap()];
    let (a, b) = (replica(&more), replica(&more));
    // Straight to one of them: no router sees it.
    for seed in 1..4 {
        assert_eq!(b.post("/v1/completions", &prompt(seed, 320)).0, 200);
    }
    let router = Server::start_router(&["route", &a.url, &b.url]);
    let exact = |replica: &Value| replica["events"] == "exact";
    while replicas(&router).iter().filter(|replica| exact(replica)).count() < 2 {
        std::thread::yield_now();
    }
    for seed in 1..4 {
        let (_, decided) = router.post("/debug/route", &prompt(seed, 320));
        let scores = decided["decision"]["scores"].as_array().unwrap();
        let held = |seat: &Value| {
            let of = scores.iter().find(|score| score["seat"] == *seat).unwrap();
            of["held"]["blocks"][0].as_u64().unwrap()
        };
        let chosen = &decided["decision"]["chosen"];
        assert!(held(chosen) >= 18, "{decided}");
        let (_, answer) = router.post("/v1/completions", &prompt(seed, 320));
        assert!(
            answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() >= 288,
            "{answer}"
        );
    }
    assert_eq!(router.get("/debug/replicas").1["pools"][0]["names"], "exact");
}

#[test]
fn a_running_stream_is_finished_before_the_router_ends() {
    let a = replica(&[]);
    let router = Server::start_router(&["route", &a.url]);
    let body =
        json!({"model": "sim", "prompt": [1, 2, 3], "max_tokens": 2000, "ignore_eos": true, "stream": true});
    let mut stream = TcpStream::connect(router.address()).unwrap();
    stream.write_all(request("/v1/completions", &body).as_bytes()).unwrap();
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    assert!(lines.by_ref().any(|line| line.starts_with("data: ")), "the answer has begun");
    router.signal("TERM");
    assert!(lines.any(|line| line == "data: [DONE]"), "the whole answer came");
    let (code, rest) = router.wait();
    assert_eq!(code, 0, "{rest}");
    assert!(rest.contains("SIGTERM: no new requests") && rest.contains("none cut"), "{rest}");
}

#[test]
fn what_cannot_be_routed_to_is_refused_at_the_start() {
    let none = run(&["route", "--port", "0"]);
    refused(
        &none,
        &[],
        expect![[r#"
            code 2
            error: `quire route` needs at least one REPLICA, such as http://127.0.0.1:8000
            hint: start one with `quire serve MODEL`, or `quire up` for the demo model
        "#]],
    );
    refused(
        &run(&["route", "--port", "0", "https://a"]),
        &[],
        expect![[r#"
            code 2
            error: REPLICA "https://a": replicas are reached by plain http:// (a private network, or a TLS proxy beside them)
        "#]],
    );
}
