//! gRPC of a real process: what is followed is what the admin API says, and a purge's report is one that
//! `quire verify` accepts.

#[path = "../../runtime/tests/rpc/client.rs"]
#[expect(dead_code, reason = "the runtime's tests use more of it")]
mod client;
#[path = "../../runtime/tests/rpc/follower.rs"]
#[expect(dead_code, reason = "the runtime's tests use more of it")]
mod follower;

use std::collections::BTreeMap;

use expect_test::expect;
use proto::v1::{Guarantee, ModelInfoRequest, PurgeRequest, Tier};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::Code;

use self::client::Channel;
use self::follower::Follower;
use crate::binary::{Server, run, stderr, stdout};
use crate::server::refused;

const NAMESPACES: &str = "\
[[namespace]]
name = \"acme\"
api_keys = [\"acme-key\"]

[[namespace]]
name = \"zen\"
api_keys = [\"zen-key\"]
";

/// A server with few pages, two tenants and gRPC.
fn start(dir: &TempDir) -> Server {
    let (names, nvme) = (dir.path().join("namespaces.toml"), dir.path().join("nvme"));
    std::fs::write(&names, NAMESPACES).unwrap();
    let (names, nvme) = (names.to_str().unwrap(), nvme.to_str().unwrap());
    let serve = ["serve", "--executor", "sim", "--admin-key", "root", "--grpc-port", "0"];
    let tiers =
        ["--kv-pages", "64", "--kv-host-memory", "12KiB", "--kv-nvme-dir", nvme, "--kv-nvme-size", "64KiB"];
    Server::start(&[&serve[..], &tiers, &["--namespaces", names]].concat())
}

fn runtime() -> tokio::runtime::Runtime {
    runtime::api::runtime().unwrap()
}

async fn connect(server: &Server) -> Channel {
    Channel::open(server.grpc.as_ref().expect("a gRPC port").parse().unwrap()).await
}

fn ask(server: &Server, key: &str, seed: u32, tokens: u32) {
    let prompt: Vec<u32> = (0..tokens).map(|i| (seed * 7919 + i * 31) % 32_000).collect();
    let body = json!({"model": "sim", "prompt": prompt, "max_tokens": 2, "temperature": 0});
    let (status, answer) = server.post_as(key, "/v1/completions", &body);
    assert_eq!(status, 200, "{answer}");
}

fn churn(server: &Server, from: u32, to: u32) {
    for seed in from..to {
        ask(server, if seed % 2 == 0 { "acme-key" } else { "zen-key" }, seed, 20 + 16 * (seed % 9));
    }
}

/// Blocks by (namespace, tier) as the admin API has them, once nothing moves.
fn truth(server: &Server) -> BTreeMap<(String, i32), u64> {
    let report = loop {
        let (status, report) = server.get_as("root", "/v1/admin/cache");
        assert_eq!(status, 200, "{report}");
        if report["is_settled"] == true && report["purges_under_way"] == 0 {
            break report;
        }
    };
    let tiers = [("device", Tier::Device), ("host", Tier::Host), ("nvme", Tier::Nvme)];
    let of = |namespace: &Value| {
        let name = namespace["namespace"].as_str().unwrap().to_owned();
        let pages = namespace["pages"].clone();
        tiers.map(|(tier, id)| ((name.clone(), i32::from(id)), pages[tier].as_u64().unwrap_or(0)))
    };
    let all = report["namespaces"].as_array().unwrap().iter().flat_map(of);
    all.filter(|(_, pages)| *pages > 0).collect()
}

/// A follower whose snapshot is what the admin API says.
async fn caught_up(server: &Server, channel: &Channel) -> Follower {
    let truth = truth(server);
    loop {
        let mut follower = Follower::new(channel).await;
        follower.until(0).await;
        if follower.counts() == truth {
            return follower;
        }
    }
}

#[test]
fn what_is_followed_is_what_the_admin_api_says() {
    let dir = TempDir::new().unwrap();
    let server = start(&dir);
    runtime().block_on(async {
        let channel = connect(&server).await.with_key("root");
        churn(&server, 0, 12);
        let mut follower = Follower::new(&channel).await;
        follower.until(0).await;
        churn(&server, 12, 40);
        let fresh = caught_up(&server, &channel).await;
        follower.until(fresh.next.unwrap()).await;
        assert_eq!(follower.set, fresh.set);
        assert_eq!((follower.snapshots, follower.gaps.len()), (1, 0));
        let tiers: Vec<i32> = fresh.counts().keys().map(|(_, tier)| *tier).collect();
        for tier in [Tier::Device, Tier::Host, Tier::Nvme] {
            assert!(tiers.contains(&tier.into()), "{tier:?}: {:?}", fresh.counts());
        }
    });
}

#[test]
fn a_purge_gives_a_report_that_the_binary_verifies() {
    let dir = TempDir::new().unwrap();
    let server = start(&dir);
    runtime().block_on(async {
        let channel = connect(&server).await.with_key("root");
        churn(&server, 0, 12);
        let mut follower = Follower::new(&channel).await;
        let order = PurgeRequest { namespace: "acme".into(), ..PurgeRequest::default() };
        let refused = connect(&server).await.with_key("acme-key").cache().purge(order.clone()).await;
        assert_eq!(refused.err().unwrap().code(), Code::PermissionDenied);
        let answer = channel.cache().purge(order).await.unwrap().into_inner();
        let report = answer.report.unwrap();
        assert_eq!((report.namespace.as_str(), report.guarantee()), ("acme", Guarantee::Erased));
        let key = channel.replica().model_info(ModelInfoRequest {}).await.unwrap().into_inner().signing_key;
        assert_eq!(key, answer.public_key);
        let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        let file = dir.path().join("acme.json");
        std::fs::write(&file, &answer.signed_report_json).unwrap();
        let output = run(&["verify", file.to_str().unwrap(), "--public-key", &hex]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert!(stdout(&output).contains("namespace: acme (id 1), everything up to generation 0"));
        let signed: Value = serde_json::from_slice(&answer.signed_payload).unwrap();
        let whole: Value = serde_json::from_str(&answer.signed_report_json).unwrap();
        assert_eq!(whole["report"], signed);
        let fresh = caught_up(&server, &channel).await;
        follower.until(fresh.next.unwrap()).await;
        assert_eq!(follower.set, fresh.set);
        assert!(fresh.counts().keys().all(|(namespace, _)| namespace == "zen"), "{:?}", fresh.counts());
    });
    server.signal("TERM");
    assert_eq!(server.wait().0, 0);
}

#[test]
fn a_grpc_port_that_is_taken_is_one_clear_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = run(&["serve", "--executor", "sim", "--port", "0", "--grpc-port", &port]);
    refused(
        &output,
        &[(&port, "PORT")],
        expect![[r#"
            code 4
            error: cannot listen on 127.0.0.1:PORT: address already in use
            hint: another process has this port; choose one with --grpc-port, or --grpc-port 0 for a free one
        "#]],
    );
}
