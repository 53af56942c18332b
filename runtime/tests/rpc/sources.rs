//! The router's sources against a real server: over gRPC, and over ZeroMQ as any engine's.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base::{AdapterId, ChainHash, Clock, Generation, SystemClock};
use proto::v1::chain_root_request::Whose;
use proto::v1::{CacheStatsRequest, ChainRootRequest, LoadRecord, PurgeRequest};
use quire_runtime::events::EventServer;
use router::Seat;
use router::events::{Channel, Heard, Key, quire, zmq};
use router::naming::foreign::{Chain, Tree};
use router::naming::roots::{CredentialDigest, Keeps, Root, RootKey, Roots, names};
use router::source::{Engine, Scope, State, Told};

use super::held::Held;
use super::server::{ACME, PAGE, Server, ZEN, prompt};

#[derive(Default)]
struct Said {
    states: Mutex<Vec<State>>,
    loads: Mutex<Vec<LoadRecord>>,
    failures: Mutex<Vec<String>>,
}

impl Said {
    fn state(&self) -> State {
        self.states.lock().unwrap().last().copied().unwrap_or_default()
    }
}

impl Heard for Said {
    fn load(&self, _: Seat, load: &LoadRecord) {
        self.loads.lock().unwrap().push(*load);
    }
    fn state(&self, _: Seat, state: State) {
        self.states.lock().unwrap().push(state);
    }
    fn failed(&self, _: Seat, why: &str, _: Duration) {
        self.failures.lock().unwrap().push(why.to_owned());
    }
}

struct Following {
    held: Arc<Held>,
    said: Arc<Said>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Following {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::new())
}

fn follow(server: &Server, key: &str) -> Following {
    let (held, said) = (Arc::<Held>::default(), Arc::<Said>::default());
    let replica =
        quire::Replica { seat: Seat(1), address: server.address.to_string(), key: Key::new(key), seed: 1 };
    let (told, heard) = (Arc::clone(&held) as Arc<dyn Told>, Arc::clone(&said) as Arc<dyn Heard>);
    let task = tokio::spawn(quire::follow(replica, told, heard, clock()));
    Following { held, said, task }
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let looks = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), looks).await.unwrap_or_else(|_| panic!("not {what}"));
}

async fn operator(server: &Server) -> Channel {
    Channel::open(&server.address.to_string(), Key::new("root"), Duration::from_secs(5)).await.unwrap()
}

/// Blocks by (namespace, tier), as the replica counts them and as are held here.
async fn counts(channel: &Channel) -> BTreeMap<(String, i32), u64> {
    let stats = channel.cache().cache_stats(CacheStatsRequest {}).await.unwrap().into_inner();
    let counts = stats
        .namespaces
        .into_iter()
        .flat_map(|of| of.pages.into_iter().map(move |at| ((of.namespace.clone(), at.tier), at.pages)));
    counts.filter(|(_, pages)| *pages > 0).collect()
}

fn held_counts(held: &Held) -> BTreeMap<(String, i32), u64> {
    let mut counts = BTreeMap::new();
    for ((scope, _), tiers) in held.set() {
        for tier in 0..4 {
            if tiers >> tier & 1 == 1 {
                *counts.entry((scope.namespace.to_string(), tier + 1)).or_default() += 1;
            }
        }
    }
    counts
}

#[tokio::test]
async fn a_follower_holds_what_the_replica_holds_and_drops_what_is_purged() {
    let server = Server::start().await;
    let channel = operator(&server).await;
    server.ask(ACME, 1, 6).await;
    let following = follow(&server, "root");
    server.ask(ACME, 2, 4).await;
    server.ask(ZEN, 1, 3).await;
    until("the same", async || {
        following.said.state() == State::Exact && held_counts(&following.held) == counts(&channel).await
    })
    .await;
    assert!(!following.held.set().is_empty());
    channel.cache().purge(PurgeRequest { namespace: "acme".into(), ..Default::default() }).await.unwrap();
    until("purged", async || !following.held.purged().is_empty()).await;
    let (namespace, up_to, told, found) = following.held.purged()[0].clone();
    assert_eq!((namespace.as_str(), up_to, found), ("acme", 0, told));
    assert!(following.held.set().keys().all(|(scope, _)| *scope.namespace == *"zen"));
    assert!(!following.said.loads.lock().unwrap().is_empty(), "load comes with batches");
}

/// The router's own names of a prompt are those that the replica told, and a purge ends them.
#[tokio::test]
async fn a_root_from_the_replica_names_prompts_as_its_events_do() {
    let server = Server::start().await;
    let channel = operator(&server).await;
    let following = follow(&server, "root");
    server.ask(ACME, 1, 6).await;
    let request =
        ChainRootRequest { whose: Some(Whose::Credential("acme-key".into())), ..Default::default() };
    let told = channel.cache().chain_root(request).await.unwrap().into_inner();
    let scope = Scope::new(&told.namespace, Generation(told.generation));
    let hash = ChainHash(told.root.as_slice().try_into().unwrap());
    let key = RootKey::new(CredentialDigest::of("acme-key"), AdapterId(0), b"");
    let mut roots = Roots::new(100);
    assert!(roots.put(key.clone(), Root { scope: scope.clone(), hash, keeps: Keeps::Blocks }));
    let named = names(&roots.get(&key).unwrap().hash, &prompt(1, 6), PAGE as usize);
    until("all named blocks held", async || {
        let set = following.held.set();
        named.iter().all(|name| set.contains_key(&(scope.clone(), *name)))
    })
    .await;
    assert_eq!(named.len(), 6);
    assert_eq!(roots.purge("acme", Generation(0)), 1);
}

#[tokio::test]
async fn a_replica_that_restarts_is_followed_anew_and_a_wrong_key_is_said() {
    let server = Server::start().await;
    let port = server.address.port();
    let following = follow(&server, "root");
    server.ask(ACME, 1, 6).await;
    until("held", async || !following.held.set().is_empty()).await;
    let mut server = server;
    server.signal();
    server.drained().await;
    until("doubted", async || following.said.state() == State::Degraded).await;
    let again = Server::with(|setup| setup.port = port).await;
    until("empty and exact", async || {
        following.said.state() == State::Exact && following.held.set().is_empty()
    })
    .await;
    again.ask(ZEN, 3, 2).await;
    until("held again", async || !following.held.set().is_empty()).await;
    let wrong = follow(&again, "acme-key");
    until("refused", async || !wrong.said.failures.lock().unwrap().is_empty()).await;
    assert!(wrong.said.failures.lock().unwrap()[0].contains("may not operate"), "{:?}", wrong.said.failures);
    assert_eq!(wrong.said.state(), State::Cold);
}

/// Our ZeroMQ stream is one of the dialects: followed with it, the same blocks are known by this router's own names.
#[tokio::test]
async fn our_zeromq_stream_is_followed_as_any_engines() {
    let server = Server::start().await;
    server.ask(ACME, 1, 5).await;
    let (held, said) = (Arc::<Held>::default(), Arc::<Said>::default());
    let chain = Chain::new(5);
    let engine = Engine { model: "m".into(), block_tokens: PAGE, blocks_max: 1 << 16, chain };
    let any = "tcp://127.0.0.1:0";
    let sockets = EventServer::bind(server.hub.clone(), any, Some(any)).await.unwrap();
    let (live, replay) = sockets.addresses().unwrap();
    let replay = replay.unwrap();
    let serving = tokio::spawn(sockets.serve());
    let publisher = zmq::Publisher {
        seat: Seat(2),
        engine,
        live: format!("tcp://{live}"),
        replay: Some(format!("tcp://{replay}")),
        topic: String::new(),
        seed: 1,
    };
    let (told, heard) = (Arc::clone(&held) as Arc<dyn Told>, Arc::clone(&said) as Arc<dyn Heard>);
    let task = tokio::spawn(zmq::follow(publisher, told, heard, clock()));
    server.ask(ACME, 2, 3).await;
    let expected = |seed, pages| {
        let mut name = chain.root(&Tree { model: "m", lora: None, salt: None });
        let tokens = prompt(seed, pages);
        let next = move |block: &[u32]| {
            name = chain.next(name, block);
            (Scope::foreign(), name)
        };
        tokens.chunks_exact(PAGE as usize).map(next).collect::<Vec<_>>()
    };
    until("both prompts", async || {
        let set = held.set();
        said.state() == State::Exact
            && expected(1, 5).iter().chain(&expected(2, 3)).all(|key| set.contains_key(key))
    })
    .await;
    task.abort();
    serving.abort();
}
