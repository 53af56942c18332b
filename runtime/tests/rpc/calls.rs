//! The purge, load, drain; deadlines, cancellation, bounds, and how the server ends.

use std::time::Duration;

use proto::v1::{DrainRequest, Guarantee, KvEventsRequest, LoadRequest, PurgeRequest, Readiness, Tier};
use quire_runtime::purge::SignedReport;
use tokio::net::TcpStream;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_types::StatusExt;

use super::client::{Channel, soon};
use super::follower::Follower;
use super::server::{ACME, Server, ZEN, end, prompt};

fn acme() -> PurgeRequest {
    PurgeRequest { namespace: "acme".into(), ..PurgeRequest::default() }
}

#[tokio::test]
async fn a_purge_answers_with_what_was_signed() {
    let server = Server::start().await;
    let channel = server.operator().await;
    server.ask(ACME, 1, 4).await;
    let truth = server.truth(&channel).await;
    let answer = channel.cache().purge(acme()).await.unwrap().into_inner();
    let signed: SignedReport = serde_json::from_str(&answer.signed_report_json).unwrap();
    assert!(signed.verify());
    assert!(transfer::verify(&answer.public_key, &answer.signed_payload, &answer.signature));
    let mut other = answer.signed_payload.clone();
    other[10] ^= 1;
    assert!(!transfer::verify(&answer.public_key, &other, &answer.signature));
    // The fields say what the signed bytes say.
    let (of, json) = (answer.report.unwrap(), &signed.report);
    assert_eq!(answer.algorithm, "ed25519");
    assert_eq!(of.guarantee(), Guarantee::Erased);
    assert_eq!(
        (of.version, of.namespace, of.namespace_id, of.generation, of.model),
        (json.version, json.namespace.clone(), json.namespace_id, json.generation, json.model.clone())
    );
    assert_eq!(
        (of.begun_unix_ms, of.ended_unix_ms, of.data_keys_destroyed),
        (json.begun_unix_ms, json.ended_unix_ms, json.data_keys_destroyed)
    );
    assert_eq!(of.tiers.len(), json.tiers.len());
    for (line, of) in of.tiers.iter().zip(&json.tiers) {
        assert_eq!(Some(&line.pages), truth.get(&("acme".to_owned(), line.tier)), "{line:?}");
        assert_eq!((line.pages, line.bytes, &line.method), (of.pages, of.bytes, &of.method));
        assert_eq!((line.verified, line.failed, line.outstanding), (of.verified, of.failed, of.outstanding));
        assert_eq!((line.has_unknown_past, line.found_by_probe), (of.has_unknown_past, of.found_by_probe));
        assert_eq!(line.guarantee(), Guarantee::Erased);
    }
    assert_eq!(of.tiers.iter().map(|line| line.tier()).collect::<Vec<_>>(), [Tier::Device, Tier::Host]);
}

/// A deadline shortens the wait, so that the caller still hears what is outstanding.
#[tokio::test]
async fn a_purge_answers_before_its_deadline_and_goes_on() {
    let mut server = Server::with(|setup| setup.is_stuck = true).await;
    let channel = server.operator().await;
    let running = server.submit(ACME, &prompt(1, 4), 2);
    let impatient = channel.with_timeout("400m");
    let answer = impatient.cache().purge(acme()).await.unwrap().into_inner();
    let report = answer.report.unwrap();
    assert_eq!(report.guarantee(), Guarantee::Incomplete);
    assert_eq!(report.generation, 0);
    server.open_gate();
    end(running).await;
    let answer = channel.cache().purge(acme()).await.unwrap().into_inner();
    assert_eq!(answer.report.unwrap().guarantee(), Guarantee::Erased);
}

#[tokio::test]
async fn a_purge_whose_caller_has_left_is_done_all_the_same() {
    let server = Server::start().await;
    let channel = server.operator().await;
    let mut follower = Follower::new(&channel).await;
    server.ask(ACME, 1, 4).await;
    // Polled once: sent, and given up before it can be answered.
    let mut client = channel.cache();
    tokio::select! {
        biased;
        _ = client.purge(acme()) => {}
        () = tokio::task::yield_now() => {}
    }
    // It may not even have been sent: then there is nothing to be done.
    let sent = channel.cache().purge(acme()).await.unwrap().into_inner().report.unwrap().generation;
    while (follower.purged.len() as u64) <= sent {
        follower.step().await.unwrap();
    }
    assert_eq!(follower.purged[0].1, 0);
}

#[tokio::test]
async fn streams_end_at_their_deadline() {
    let server = Server::start().await;
    let channel = server.operator().await.with_timeout("50m");
    let ended = match Follower::begin(&channel, KvEventsRequest::default()).await {
        Err(ended) => ended,
        Ok(mut follower) => loop {
            if let Err(ended) = follower.step().await {
                break ended;
            }
        },
    };
    assert_eq!(ended.code(), Code::DeadlineExceeded);
    let ended = match channel.replica().load(LoadRequest::default()).await {
        Err(ended) => ended,
        Ok(load) => {
            let mut load = load.into_inner();
            loop {
                if let Err(ended) = soon(load.message()).await {
                    break ended;
                }
            }
        }
    };
    assert_eq!(ended.code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn load_is_told_again_and_again() {
    let server = Server::with(|setup| setup.is_stuck = true).await;
    let channel = server.operator().await;
    let request = LoadRequest { interval_ms: Some(10) };
    let mut load = channel.replica().load(request).await.unwrap().into_inner();
    let first = load.message().await.unwrap().unwrap();
    assert_eq!((first.readiness(), first.in_flight, first.in_flight_max), (Readiness::Ready, 0, 4096));
    let _running = server.submit(ZEN, &prompt(1, 1), 2);
    while soon(load.message()).await.unwrap().unwrap().in_flight != 1 {}
}

#[tokio::test]
async fn a_drain_waits_as_long_as_it_was_told_and_is_seen_everywhere() {
    let mut server = Server::with(|setup| setup.is_stuck = true).await;
    let channel = server.operator().await;
    let running = server.submit(ZEN, &prompt(1, 1), 2);
    let drain = |wait_ms| {
        let channel = channel.clone();
        async move {
            let request = DrainRequest { wait_ms: Some(wait_ms) };
            channel.replica().drain(request).await.unwrap().into_inner().in_flight
        }
    };
    assert_eq!(drain(0).await, 1);
    assert_eq!(drain(50).await, 1);
    let health = channel.health().check(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(health.status, 2, "not serving");
    let mut load = channel.replica().load(LoadRequest::default()).await.unwrap().into_inner();
    assert_eq!(load.message().await.unwrap().unwrap().readiness(), Readiness::Draining);
    server.open_gate();
    assert_eq!(drain(60_000).await, 0);
    end(running).await;
    // Events go on: the process is still there.
    Follower::new(&channel).await.until(0).await;
}

#[tokio::test]
async fn health_is_watched() {
    let server = Server::start().await;
    let channel = server.operator().await;
    let mut watch = channel.health().watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status, 1);
    server.app.drain();
    assert_eq!(watch.message().await.unwrap().unwrap().status, 2);
}

/// They ask for no key: one address leaves room for others.
#[tokio::test]
async fn watches_of_one_address_are_few() {
    let server = Server::start().await;
    let channel = Channel::open(server.address).await;
    let mut watches = Vec::new();
    let refused = loop {
        match soon(channel.health().watch(HealthCheckRequest::default())).await {
            Ok(watch) => watches.push(watch),
            Err(refused) => break refused,
        }
    };
    assert_eq!((refused.code(), watches.len()), (Code::ResourceExhausted, 16));
    assert!(refused.get_error_details().retry_info().is_some());
    watches.pop();
    soon(async { while channel.health().watch(HealthCheckRequest::default()).await.is_err() {} }).await;
}

/// Streams that were left are not counted any more.
#[tokio::test]
async fn streams_are_bounded_and_whoever_leaves_makes_room() {
    let server = Server::start().await;
    let channels = [server.operator().await, server.operator().await, server.operator().await];
    let mut open = Vec::new();
    // A connection takes 128 of its own.
    for channel in channels[..2].iter().flat_map(|channel| std::iter::repeat_n(channel, 128)) {
        open.push(Follower::begin(channel, KvEventsRequest::default()).await.unwrap());
    }
    let refused = Follower::begin(&channels[2], KvEventsRequest::default()).await.err().unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(refused.get_error_details().error_info().unwrap().reason, "too_many_streams");
    open.pop();
    soon(async { while Follower::begin(&channels[2], KvEventsRequest::default()).await.is_err() {} }).await;
}

#[tokio::test]
async fn a_shutdown_ends_streams_with_a_reason_and_calls_with_their_answer() {
    let mut server = Server::with(|setup| setup.is_stuck = true).await;
    let channel = server.operator().await;
    let mut follower = Follower::new(&channel).await;
    let _unread = Follower::new(&channel).await;
    let running = server.submit(ACME, &prompt(1, 4), 2);
    let calling = tokio::spawn(async move { channel.cache().purge(acme()).await });
    // The purge has begun once it is heard of.
    while follower.purged.is_empty() {
        follower.step().await.unwrap();
    }
    server.signal();
    let ended = loop {
        if let Err(ended) = follower.step().await {
            break ended;
        }
    };
    assert_eq!((ended.code(), ended.message()), (Code::Unavailable, "the server is shutting down"));
    assert_eq!(ended.get_error_details().error_info().unwrap().reason, "draining");
    server.open_gate();
    end(running).await;
    let report = calling.await.unwrap().unwrap().into_inner().report.unwrap();
    assert_eq!(report.guarantee(), Guarantee::Erased);
    let drained = server.drained().await;
    assert_eq!((drained.finished, drained.cut), (1, 0));
}

/// Neither who says nothing at all nor who begins and never goes on is waited for, however long a drain may be.
#[tokio::test]
async fn a_shutdown_waits_for_nobody_who_is_silent() {
    use tokio::io::AsyncWriteExt;
    let mut server = Server::with(|setup| setup.config.drain = Duration::from_secs(3600)).await;
    let _silent = TcpStream::connect(server.address).await.unwrap();
    let mut hesitant = TcpStream::connect(server.address).await.unwrap();
    hesitant.write_all(b"P").await.unwrap();
    let channel = server.operator().await;
    channel.begin("/grpc.health.v1.Health/Check").await;
    channel.begin("/quire.v1.Cache/Purge").await;
    // On the same connection, so that the others have arrived.
    channel.health().check(HealthCheckRequest::default()).await.unwrap();
    server.signal();
    let drained = server.drained().await;
    assert_eq!((drained.finished, drained.cut), (0, 0));
}

/// One address cannot take all connections, and those without a call do not stay.
#[tokio::test]
async fn a_peer_has_half_of_the_connections() {
    use tokio::io::AsyncReadExt;
    let server = Server::with(|setup| setup.config.grpc_connections_max = 4).await;
    let one = server.operator().await;
    one.health().check(HealthCheckRequest::default()).await.unwrap();
    let _two = TcpStream::connect(server.address).await.unwrap();
    let mut three = TcpStream::connect(server.address).await.unwrap();
    let closed = soon(three.read(&mut [0])).await;
    assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
    one.health().check(HealthCheckRequest::default()).await.unwrap();
}

#[tokio::test]
async fn calls_and_streams_are_counted() {
    let server = Server::start().await;
    let channel = server.operator().await;
    let follower = Follower::new(&channel).await;
    channel.cache().purge(acme()).await.unwrap();
    channel.cache().purge(PurgeRequest::default()).await.unwrap_err();
    let page = || server.metrics();
    let text = soon(async {
        loop {
            let text = page().await;
            if text.contains("method=\"Purge\",code=\"INVALID_ARGUMENT\"} 1") {
                return text;
            }
        }
    })
    .await;
    assert!(text.contains("method=\"Purge\",code=\"OK\"} 1"), "{text}");
    assert!(text.contains("kind=\"events\"} 1"), "{text}");
    drop(follower);
    soon(async { while !page().await.contains("method=\"KvEvents\",code=\"CANCELLED\"} 1") {} }).await;
}

#[tokio::test]
async fn a_server_without_events_says_so() {
    use quire_runtime::api::App;
    let server = Server::start().await;
    let config = server.app.config().clone();
    let app = App::loading(config, std::sync::Arc::new(base::SystemClock::new()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(quire_runtime::rpc::serve(listener, app.clone(), std::future::pending()));
    let channel = Channel::open(address).await.with_key("root");
    let refused = channel.cache().purge(acme()).await.err().unwrap();
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(refused.get_error_details().error_info().unwrap().reason, "loading_model");
    app.ready(server.engine.clone(), quire_runtime::text::Text::synthetic(300).unwrap());
    let refused = channel.cache().kv_events(KvEventsRequest::default()).await.err().unwrap();
    assert_eq!(refused.code(), Code::FailedPrecondition);
}
