//! Following the cache: whatever a follower missed, dropped or read late, its set is the cache's.

use proto::v1::{
    CacheStatsRequest, Guarantee, KvEventsRequest, Position, PurgeRequest, SnapshotPolicy, Tier,
};
use tonic::Code;

use super::client::soon;
use super::follower::Follower;
use super::server::{ACME, Server, ZEN, caught_up};

fn resume(at: Position) -> KvEventsRequest {
    KvEventsRequest { resume: Some(at), ..KvEventsRequest::default() }
}

fn never(resume: Option<Position>) -> KvEventsRequest {
    KvEventsRequest { resume, snapshot: SnapshotPolicy::Never.into(), ..KvEventsRequest::default() }
}

/// Two tenants, more prompts than either tier has room for.
async fn churn(server: &Server, from: u32, to: u32) {
    for seed in from..to {
        server.ask(if seed % 2 == 0 { ACME } else { ZEN }, seed, 1 + seed % 9).await;
    }
    server.truth(&server.operator().await).await;
}

#[tokio::test]
async fn a_snapshot_and_what_follows_is_what_the_cache_holds() {
    let server = Server::with(|setup| setup.pages = 64).await;
    let channel = server.operator().await;
    churn(&server, 0, 20).await;
    let mut follower = Follower::new(&channel).await;
    churn(&server, 20, 60).await;
    let fresh = caught_up(&server, &channel).await;
    let tiers: Vec<i32> = fresh.counts().into_keys().map(|(_, tier)| tier).collect();
    assert!(tiers.contains(&Tier::Host.into()) && tiers.contains(&Tier::Device.into()), "{tiers:?}");
    follower.until(fresh.next.unwrap()).await;
    assert_eq!(follower.set, fresh.set);
    assert_eq!((follower.snapshots, follower.gaps.len()), (1, 0));
    assert_eq!(follower.token_ids, 0, "tokens are not told unless asked for");
}

#[tokio::test]
async fn a_follower_goes_on_where_it_was() {
    let server = Server::with(|setup| setup.pages = 64).await;
    let channel = server.operator().await;
    churn(&server, 0, 10).await;
    let mut before = Follower::new(&channel).await;
    before.until(1).await;
    let at = before.position();
    let set = before.set.clone();
    drop(before);
    churn(&server, 10, 40).await;
    let mut after = Follower::begin(&channel, resume(at)).await.unwrap();
    (after.set, after.next) = (set, Some(at.next_sequence));
    let fresh = caught_up(&server, &channel).await;
    after.until(fresh.next.unwrap()).await;
    assert_eq!(after.set, fresh.set);
    assert_eq!((after.snapshots, after.gaps.len()), (0, 0));
}

#[tokio::test]
async fn what_the_log_no_longer_has_is_a_gap_and_a_snapshot() {
    let server = Server::with(|setup| setup.buffer = 4).await;
    let channel = server.operator().await;
    let mut follower = Follower::new(&channel).await;
    follower.until(0).await;
    let at = follower.position();
    drop(follower);
    churn(&server, 0, 20).await;
    let fresh = caught_up(&server, &channel).await;
    let mut after = Follower::begin(&channel, resume(at)).await.unwrap();
    after.until(fresh.next.unwrap()).await;
    assert_eq!(after.gaps, [(at.next_sequence, fresh.next.unwrap() - 4)]);
    assert_eq!((&after.set, after.snapshots), (&fresh.set, 1));
    // Without snapshots it continues with what is left.
    let mut after = Follower::begin(&channel, never(Some(at))).await.unwrap();
    after.until(fresh.next.unwrap()).await;
    assert_eq!((after.gaps[0].0, after.gaps.len(), after.snapshots), (at.next_sequence, 1, 0));
}

#[tokio::test]
async fn another_stream_is_a_gap_from_its_beginning_and_the_future_is_refused() {
    let server = Server::start().await;
    let channel = server.operator().await;
    churn(&server, 0, 4).await;
    let fresh = caught_up(&server, &channel).await;
    let elsewhere = Position { incarnation: fresh.incarnation ^ 1, next_sequence: 99 };
    let mut after = Follower::begin(&channel, resume(elsewhere)).await.unwrap();
    after.until(fresh.next.unwrap()).await;
    assert_eq!((after.gaps, &after.set), (vec![(0, 0)], &fresh.set));
    let ahead = Position { next_sequence: fresh.next.unwrap() + 1, ..fresh.position() };
    let refused = Follower::begin(&channel, resume(ahead)).await.err().unwrap();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().starts_with("`resume.next_sequence`"), "{}", refused.message());
}

/// The server has nothing to buffer for it but one message and a window of the connection.
#[tokio::test]
async fn a_slow_follower_hears_a_gap_and_then_how_things_stand() {
    let server = Server::with(|setup| setup.buffer = 16).await;
    let channel = server.operator().await;
    let ask = KvEventsRequest { with_token_ids: true, ..KvEventsRequest::default() };
    let mut slow = Follower::begin(&channel, ask).await.unwrap();
    // Some hundred bytes of tokens each, unread: past the window and the send buffer together.
    for seed in 0..400 {
        server.ask(ACME, seed, 40).await;
    }
    let fresh = caught_up(&server, &channel).await;
    slow.until(fresh.next.unwrap()).await;
    assert_eq!(slow.set, fresh.set);
    assert!(!slow.gaps.is_empty() && slow.snapshots == slow.gaps.len() + 1, "{:?}", slow.gaps);
}

#[tokio::test]
async fn tokens_are_told_when_asked_for_and_not_after_a_purge() {
    let server = Server::start().await;
    let channel = server.operator().await;
    let told = |at: Option<Position>| KvEventsRequest {
        with_token_ids: true,
        snapshot: SnapshotPolicy::Never.into(),
        resume: at,
        namespaces: Vec::new(),
    };
    let begin = Follower::new(&channel).await;
    let start = Position { incarnation: begin.incarnation, next_sequence: 0 };
    server.ask(ACME, 1, 3).await;
    let fresh = caught_up(&server, &channel).await;
    let mut reader = Follower::begin(&channel, told(Some(start))).await.unwrap();
    reader.until(fresh.next.unwrap()).await;
    // Three blocks, each told by the device and by the host.
    assert_eq!(reader.token_ids, 2 * 3 * 16);
    let order = PurgeRequest { namespace: "acme".into(), ..PurgeRequest::default() };
    channel.cache().purge(order).await.unwrap();
    let fresh = caught_up(&server, &channel).await;
    let mut reader = Follower::begin(&channel, told(Some(start))).await.unwrap();
    reader.until(fresh.next.unwrap()).await;
    assert_eq!(reader.token_ids, 0);
    assert_eq!(reader.purged, [("acme".to_owned(), 0, 3)]);
}

/// A reader that takes nothing holds up no purge, and what it is told later has no tokens of what is purged.
#[tokio::test]
async fn a_purge_is_done_with_a_stalled_reader_of_tokens() {
    let server = Server::start().await;
    let channel = server.operator().await;
    let ask = KvEventsRequest { with_token_ids: true, ..never(None) };
    let mut stalled = Follower::begin(&channel, ask).await.unwrap();
    for seed in 0..400 {
        server.ask(ACME, seed, 40).await;
    }
    let order = PurgeRequest { namespace: "acme".into(), ..PurgeRequest::default() };
    let report = soon(channel.cache().purge(order)).await.unwrap().into_inner().report.unwrap();
    assert_eq!(report.guarantee(), Guarantee::Erased);
    while stalled.purged.is_empty() {
        stalled.step().await.unwrap();
    }
    // What fits into the connection's buffers, of some four hundred thousand.
    assert!(stalled.token_ids < 200_000, "{}", stalled.token_ids);
    let fresh = caught_up(&server, &channel).await;
    assert!(fresh.set.is_empty());
}

#[tokio::test]
async fn a_namespaces_generation_and_floor_are_told() {
    let server = Server::start().await;
    let channel = server.operator().await;
    let acme = || async {
        let stats = channel.cache().cache_stats(CacheStatsRequest {}).await.unwrap().into_inner();
        let of = stats.namespaces.into_iter().find(|of| of.namespace == "acme").unwrap();
        (of.generation, of.floor)
    };
    assert_eq!(acme().await, (0, 0));
    let order = PurgeRequest { namespace: "acme".into(), ..PurgeRequest::default() };
    channel.cache().purge(order).await.unwrap();
    assert_eq!(acme().await, (1, 1));
}

#[tokio::test]
async fn one_namespace_can_be_followed_alone() {
    let server = Server::with(|setup| setup.pages = 64).await;
    let channel = server.operator().await;
    churn(&server, 0, 10).await;
    let only = KvEventsRequest { namespaces: vec!["zen".into()], ..KvEventsRequest::default() };
    let mut zen = Follower::begin(&channel, only).await.unwrap();
    zen.until(0).await;
    churn(&server, 10, 40).await;
    let fresh = caught_up(&server, &channel).await;
    zen.until(fresh.next.unwrap()).await;
    let mut expected = fresh.set.clone();
    expected.retain(|_, (namespace, _)| namespace == "zen");
    assert_eq!(zen.set, expected);
}

#[tokio::test]
async fn a_purge_is_heard_at_once_and_the_others_stay() {
    let server = Server::start().await;
    let channel = server.operator().await;
    let mut follower = Follower::new(&channel).await;
    follower.until(0).await;
    churn(&server, 0, 12).await;
    let before = caught_up(&server, &channel).await;
    let acme = before.set.values().filter(|(namespace, _)| namespace == "acme").count() as u64;
    let order = PurgeRequest { namespace: "acme".into(), ..PurgeRequest::default() };
    channel.cache().purge(order).await.unwrap();
    let fresh = caught_up(&server, &channel).await;
    follower.until(fresh.next.unwrap()).await;
    assert_eq!(follower.purged, [("acme".to_owned(), 0, acme)]);
    assert_eq!(follower.set, fresh.set);
    assert!(!fresh.set.is_empty() && fresh.set.values().all(|(namespace, _)| namespace == "zen"));
    // What comes after it is of the next generation and is told.
    server.ask(ACME, 0, 2).await;
    let fresh = caught_up(&server, &channel).await;
    follower.until(fresh.next.unwrap()).await;
    assert_eq!(follower.set, fresh.set);
    assert!(fresh.set.values().any(|(namespace, _)| namespace == "acme"));
}

#[tokio::test]
async fn an_emptied_cache_is_empty_for_followers_too() {
    let server = Server::start().await;
    let channel = server.operator().await;
    let mut follower = Follower::new(&channel).await;
    follower.until(0).await;
    churn(&server, 0, 6).await;
    server.truth(&channel).await;
    assert!(server.engine.clear_cache().await > 0);
    server.ask(ZEN, 77, 3).await;
    let fresh = caught_up(&server, &channel).await;
    follower.until(fresh.next.unwrap()).await;
    assert_eq!(follower.set, fresh.set);
    assert_eq!(fresh.set.len(), 3);
}
