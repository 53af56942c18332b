//! A server on a free port with a gate before every step, and a client to talk to it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use base::{ManualClock, StepId};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use quire_runtime::api::{App, Drained, ServerConfig, serve};
use quire_runtime::engine::Engine;
use quire_runtime::executor::ExecutorShape;
use quire_runtime::executor::sim::{SimConfig, SimModel};
use quire_runtime::executor::threaded::{StepModel, ThreadedExecutor};
use quire_runtime::plan::{Moved, StepPlan, StepResult};
use quire_runtime::scheduler::SchedulerConfig;
use quire_runtime::text::Text;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use transfer::HostArena;

pub const VOCAB: u32 = 300;

/// What a test may change.
pub struct Setup {
    pub config: ServerConfig,
    pub schedule: SchedulerConfig,
    pub sim: SimConfig,
    pub gate: Gate,
}

/// Whether steps wait for [`Server::steps`].
#[derive(Clone, Copy, PartialEq)]
pub enum Gate {
    Open,
    Closed,
}

impl Default for Setup {
    fn default() -> Self {
        let mut sim = SimConfig::new(256, 16, VOCAB);
        // Letters only: readable, and never an end of sequence.
        sim.draws = u32::from(b'a')..u32::from(b'z') + 1;
        sim.shape.positions_max = 2048;
        let config = ServerConfig { models: vec!["sim".into()], entropy: 7, ..ServerConfig::default() };
        Self { config, schedule: SchedulerConfig::default(), sim, gate: Gate::Open }
    }
}

/// A running server.
pub struct Server {
    pub address: SocketAddr,
    pub app: App,
    pub engine: Engine,
    steps: Option<Sender<()>>,
    shutdown: Option<oneshot::Sender<()>>,
    task: JoinHandle<std::io::Result<Drained>>,
}

/// The simulated model behind the gate.
struct Gated {
    sim: SimModel,
    steps: Option<Receiver<()>>,
}

impl StepModel for Gated {
    fn shape(&self) -> ExecutorShape {
        self.sim.shape()
    }
    fn forward(&mut self, plan: &StepPlan) -> StepResult {
        if let Some(steps) = &self.steps {
            // An error means the test is over and the gate is gone: run on.
            let _ = steps.recv();
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

impl Server {
    pub async fn start() -> Self {
        Self::with(|_| ()).await
    }

    pub async fn with(change: impl FnOnce(&mut Setup)) -> Self {
        let (server, text) = Self::loading(change).await;
        server.app.ready(server.engine.clone(), text);
        server
    }

    /// As [`Server::with`], still without its model.
    pub async fn loading(change: impl FnOnce(&mut Setup)) -> (Self, Text) {
        let mut setup = Setup::default();
        change(&mut setup);
        let clock = Arc::new(ManualClock::default());
        let (steps, gate) = channel();
        let closed = setup.gate == Gate::Closed;
        let model = Gated { sim: SimModel::new(setup.sim), steps: closed.then_some(gate) };
        let executor = ThreadedExecutor::start("sim", model, 2, clock.clone()).unwrap();
        let (engine, _thread) = Engine::start(Box::new(executor), setup.schedule, clock.clone()).unwrap();
        let app = App::loading(setup.config, clock);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (shutdown, signal) = oneshot::channel();
        let served = app.clone();
        let task = tokio::spawn(async move {
            serve(listener, served, async {
                let _ = signal.await;
            })
            .await
        });
        let steps = closed.then_some(steps);
        let server = Self { address, app, engine, steps, shutdown: Some(shutdown), task };
        (server, Text::synthetic(VOCAB).unwrap())
    }

    /// Lets `count` steps run.
    pub fn steps(&self, count: usize) {
        let gate = self.steps.as_ref().expect("this server has no gate");
        (0..count).for_each(|_| gate.send(()).unwrap());
    }

    /// Lets all further steps run.
    pub fn open_gate(&mut self) {
        self.steps = None;
    }

    /// Sends the shutdown signal.
    pub fn signal(&mut self) {
        let _ = self.shutdown.take().unwrap().send(());
    }

    pub async fn drained(self) -> Drained {
        self.task.await.unwrap().unwrap()
    }

    pub async fn connect(&self) -> Client {
        Client::connect(self.address).await.unwrap()
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.connect().await.send(Method::GET, path, &[], "").await
    }

    pub async fn post(&self, path: &str, body: Value) -> Reply {
        self.connect().await.send(Method::POST, path, &[], body.to_string()).await
    }

    /// A metric's value.
    pub async fn metric(&self, series: &str) -> f64 {
        let page = self.get("/metrics").await.body;
        let line = page.lines().find(|line| line.starts_with(series));
        let value = line.and_then(|line| line.rsplit(' ').next());
        value.unwrap_or_else(|| panic!("no {series} in\n{page}")).parse().unwrap()
    }

    /// Asks until `series` has `value`; every question lets the server go on.
    pub async fn until_metric(&self, series: &str, value: f64) {
        for _ in 0..100_000 {
            if self.metric(series).await == value {
                return;
            }
        }
        panic!("{series} never became {value}");
    }

    /// Asks until the answer is 200: what was let go of is free a moment later.
    pub async fn until_served(&self, path: &str, body: &Value) {
        for _ in 0..100_000 {
            if self.post(path, body.clone()).await.status == StatusCode::OK {
                return;
            }
        }
        panic!("{path} never served {body}");
    }
}

/// One keep-alive connection.
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
    task: JoinHandle<()>,
}

/// A whole answer.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: hyper::HeaderMap,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e} in {}", self.body))
    }

    /// Events of a stream, `[DONE]` included.
    pub fn events(&self) -> Vec<&str> {
        self.body.split("\n\n").filter(|e| !e.is_empty()).map(|e| e.strip_prefix("data: ").unwrap()).collect()
    }

    /// The chunks of a stream; asserts that it ended as it should.
    pub fn chunks(&self) -> Vec<Value> {
        let mut events = self.events();
        assert_eq!(events.pop(), Some("[DONE]"), "{}", self.body);
        events.into_iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }
}

impl Client {
    pub async fn connect(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
        let task = tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Self { sender, task })
    }

    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Reply {
        let response = self.begin(method, path, headers, body).await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.into_body().collect().await.unwrap().to_bytes();
        Reply { status, headers, body: String::from_utf8(body.into()).unwrap() }
    }

    /// Sends a request and gives back the answer's head.
    pub async fn begin(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> hyper::Result<hyper::Response<hyper::body::Incoming>> {
        self.sender.ready().await?;
        let mut request = Request::builder().method(method).uri(path).header("host", "test");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.sender.send_request(request.body(Full::new(body.into())).unwrap()).await
    }

    /// Drops the connection.
    pub async fn hang_up(self) {
        drop(self.sender);
        self.task.abort();
        let _ = self.task.await;
    }
}

/// A fault in step `step`.
pub fn fault(setup: &mut Setup, step: u64) {
    setup.sim.faults.push(StepId(step));
}
