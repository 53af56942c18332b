//! A replica with two tenants, a host tier and a gRPC port.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use base::{Priority, SystemClock, TokenId};
use kernels::SamplingParams;
use kvcache::{EvictionKind, WritePolicy};
use proto::v1::CacheStatsRequest;
use quire_runtime::api::{self, App, Drained, ServerConfig, TenantKeys};
use quire_runtime::engine::{Engine, Running};
use quire_runtime::events::{EventHub, EventsConfig, Snapshots};
use quire_runtime::executor::ExecutorShape;
use quire_runtime::executor::sim::{SimConfig, SimModel};
use quire_runtime::executor::threaded::{StepModel, ThreadedExecutor};
use quire_runtime::plan::{Moved, StepPlan, StepResult};
use quire_runtime::request::{Event, Request, Tenant};
use quire_runtime::rpc;
use quire_runtime::scheduler::SchedulerConfig;
use quire_runtime::storage::{Keys, NamespaceSpec, Retention, StorageConfig, TierRoom};
use quire_runtime::text::Text;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use transfer::HostArena;

use super::client::{Channel, soon};
use super::follower::Follower;

const VOCAB: u32 = 300;
pub const PAGE: u32 = 16;
/// Ids that namespaces get in order, after the default's.
pub const ACME: u64 = 1;
pub const ZEN: u64 = 2;

/// What a test may change.
pub struct Setup {
    pub config: ServerConfig,
    pub pages: u32,
    pub buffer: usize,
    pub cluster: Option<transfer::ClusterKey>,
    /// Steps wait until the server is dropped.
    pub is_stuck: bool,
    /// 0 for any that is free.
    pub port: u16,
}

pub struct Server {
    pub address: SocketAddr,
    pub app: App,
    pub engine: Engine,
    pub hub: EventHub,
    gate: Option<Sender<()>>,
    shutdown: Option<oneshot::Sender<()>>,
    task: JoinHandle<std::io::Result<Drained>>,
}

struct Gated {
    sim: SimModel,
    gate: Option<Receiver<()>>,
}

impl StepModel for Gated {
    fn shape(&self) -> ExecutorShape {
        self.sim.shape()
    }
    fn forward(&mut self, plan: &StepPlan) -> StepResult {
        if let Some(gate) = &self.gate {
            let _ = gate.recv();
        }
        self.sim.forward(plan)
    }
    fn attach_host(&mut self, host: Arc<HostArena>) {
        self.sim.attach_host(host);
    }
    fn move_pages(&mut self, plan: &StepPlan) -> Moved {
        self.sim.move_pages(plan)
    }
    fn reset(&mut self) {
        self.sim.reset();
    }
}

fn spec(name: &str) -> NamespaceSpec {
    NamespaceSpec { name: name.into(), api_keys: vec![format!("{name}-key")], ..NamespaceSpec::default() }
}

impl Server {
    pub async fn start() -> Self {
        Self::with(|_| ()).await
    }

    pub async fn with(change: impl FnOnce(&mut Setup)) -> Self {
        let tenant = |id, name: &str| TenantKeys {
            namespace: base::NamespaceId(id),
            retention: Retention::Keep,
            keys: vec![format!("{name}-key")],
        };
        let config = ServerConfig {
            models: vec!["sim".into()],
            admin_keys: vec!["root".into()],
            tenants: vec![tenant(ACME, "acme"), tenant(ZEN, "zen")],
            version: "1.2.3".into(),
            ..ServerConfig::default()
        };
        let mut setup = Setup { config, pages: 256, buffer: 10_000, cluster: None, is_stuck: false, port: 0 };
        change(&mut setup);
        let clock = Arc::new(SystemClock::new());
        let mut sim = SimConfig::new(setup.pages, PAGE, VOCAB);
        sim.draws = 97..123;
        let (open, gate) = channel();
        let model = Gated { sim: SimModel::new(sim), gate: setup.is_stuck.then_some(gate) };
        let executor = ThreadedExecutor::start("sim", model, 2, clock.clone()).unwrap();
        let room = TierRoom { bytes: 96 * u64::from(PAGE) * 8, write: WritePolicy::WriteThrough };
        let storage = StorageConfig {
            host: room,
            nvme: None,
            object: None,
            eviction: EvictionKind::Lru,
            key_store: None,
            namespaces: vec![spec("acme"), spec("zen")],
        };
        let events =
            EventsConfig { buffer: setup.buffer, snapshots: Snapshots::On, ..EventsConfig::default() };
        let hub = EventHub::start(events, clock.clone()).unwrap();
        let keys = Keys::open_in(&storage.namespaces, None, setup.cluster).unwrap();
        let schedule = SchedulerConfig { eviction: EvictionKind::Lru, ..SchedulerConfig::default() };
        let started = Engine::start_tiered(
            Box::new(executor),
            schedule,
            &storage,
            keys,
            Some(hub.clone()),
            clock.clone(),
        );
        let (engine, _thread) = started.unwrap();
        let app = App::new(engine.clone(), Text::synthetic(VOCAB).unwrap(), setup.config, clock);
        app.publish(hub.clone());
        let listener = listen(setup.port).await;
        let address = listener.local_addr().unwrap();
        let (shutdown, signal) = oneshot::channel();
        let task = tokio::spawn(rpc::serve(listener, app.clone(), async {
            let _ = signal.await;
        }));
        Self {
            address,
            app,
            engine,
            hub,
            gate: setup.is_stuck.then_some(open),
            shutdown: Some(shutdown),
            task,
        }
    }

    /// A connection of an operator.
    pub async fn operator(&self) -> Channel {
        Channel::open(self.address).await.with_key("root")
    }

    /// Sends the shutdown signal.
    pub fn signal(&mut self) {
        let _ = self.shutdown.take().unwrap().send(());
    }

    /// Lets steps run.
    pub fn open_gate(&mut self) {
        self.gate = None;
    }

    pub async fn drained(self) -> Drained {
        soon(self.task).await.unwrap().unwrap()
    }

    pub fn submit(&self, namespace: u64, prompt: &[TokenId], max_tokens: u32) -> Running {
        let tenant = Tenant { namespace: base::NamespaceId(namespace), ..Tenant::default() };
        let request = Request {
            id: self.engine.next_id(),
            tenant,
            prompt: prompt.into(),
            params: Arc::new(SamplingParams::default()),
            max_tokens,
            prompt_logprobs: None,
            priority: Priority(0),
            deadline: None,
        };
        self.engine.submit(request).unwrap()
    }

    /// The page that scrapers read.
    pub async fn metrics(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let serving = tokio::spawn(api::serve(listener, self.app.clone(), std::future::pending()));
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).await.unwrap();
        serving.abort();
        page
    }

    /// Runs a prompt of so many pages to its end.
    pub async fn ask(&self, namespace: u64, seed: u32, pages: u32) {
        end(self.submit(namespace, &prompt(seed, pages), 2)).await;
    }

    /// Blocks by (namespace, tier), as the scheduler counts them once nothing is being copied.
    pub async fn truth(&self, channel: &Channel) -> BTreeMap<(String, i32), u64> {
        soon(self.settled(channel)).await
    }

    async fn settled(&self, channel: &Channel) -> BTreeMap<(String, i32), u64> {
        loop {
            let stats = channel.cache().cache_stats(CacheStatsRequest {}).await.unwrap().into_inner();
            if !stats.is_settled || stats.purges_under_way > 0 {
                continue;
            }
            let counts = stats.namespaces.into_iter().flat_map(|of| {
                let name = of.namespace;
                of.pages.into_iter().map(move |at| ((name.clone(), at.tier), at.pages))
            });
            return counts.filter(|(_, pages)| *pages > 0).collect();
        }
    }
}

/// A port that was just let go may be taken for a moment.
async fn listen(port: u16) -> TcpListener {
    loop {
        match TcpListener::bind(("127.0.0.1", port)).await {
            Ok(listener) => return listener,
            Err(_) if port != 0 => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
}

pub async fn end(mut running: Running) {
    while let Some(event) = soon(running.next()).await {
        assert!(!matches!(event, Event::Failed(_)), "{event:?}");
    }
}

pub fn prompt(seed: u32, pages: u32) -> Vec<TokenId> {
    (0..pages * PAGE + 3).map(|i| (seed.wrapping_mul(7919) + i * 13 + i * i * seed) % VOCAB).collect()
}

/// A new follower whose snapshot has caught up with what the scheduler says.
pub async fn caught_up(server: &Server, channel: &Channel) -> Follower {
    let truth = server.truth(channel).await;
    soon(async {
        loop {
            let mut follower = Follower::new(channel).await;
            follower.until(0).await;
            if follower.counts() == truth {
                return follower;
            }
        }
    })
    .await
}
