//! A client of a router under test, and the router itself.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base::SystemClock;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{HeaderMap, Method, Request, Response};
use hyper_util::rt::TokioIo;
use quire_router::proxy::upstream::Address;
use quire_router::proxy::{Config, Router, serve};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use web::Drained;

use super::mock::Mock;

/// Everything here happens at once or never.
const SOON: Duration = Duration::from_secs(20);

pub async fn soon<F: Future>(what: F) -> F::Output {
    tokio::time::timeout(SOON, what).await.expect("soon")
}

/// Waits until something holds.
pub async fn until(what: impl Fn() -> bool) {
    let holds = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    soon(holds).await;
}

pub struct Under {
    pub router: Arc<Router>,
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    server: JoinHandle<std::io::Result<Drained>>,
}

/// An answer, read whole.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
    pub fn seat(&self) -> String {
        self.headers["x-quire-replica"].to_str().unwrap().to_owned()
    }
}

impl Under {
    /// A router in front of these, once it has found all of them.
    pub async fn start(mocks: &[&Mock]) -> Self {
        Self::with(mocks, Config::default()).await
    }

    pub async fn with(mocks: &[&Mock], config: Config) -> Self {
        let under = Self::early(mocks, config).await;
        until(|| under.router.replicas_ready() == mocks.len()).await;
        under
    }

    /// The same, before anything is found.
    pub async fn early(mocks: &[&Mock], config: Config) -> Self {
        let replicas = mocks.iter().map(|mock| Address::parse(&mock.address.to_string()).unwrap()).collect();
        let config = Config {
            replicas,
            health_interval: Duration::from_millis(5),
            // A machine that is busy with other tests is no dead replica.
            health_timeout: Duration::from_secs(10),
            ..config
        };
        let router = Router::new(config, Arc::new(SystemClock::new()), "test").unwrap();
        router.watch_replicas();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async {
            let _ = stopped.await;
        };
        let server = tokio::spawn(serve(listener, Arc::clone(&router), stopped));
        Self { router, address, stop: Some(stop), server }
    }

    pub fn stop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
    }

    pub async fn drained(self) -> Drained {
        soon(self.server).await.unwrap().unwrap()
    }

    pub async fn open(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        soon(sender.send_request(request)).await.unwrap()
    }

    pub async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        let response = self.open(request).await;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = soon(response.into_body().collect()).await.unwrap().to_bytes();
        Answer { status, headers, body }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(request(Method::GET, path, &Value::Null)).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(request(Method::POST, path, body)).await
    }

    pub async fn chat(&self, said: &str) -> Answer {
        self.post("/v1/chat/completions", &chat(said)).await
    }

    /// Every seat is free, every promise taken back.
    pub async fn is_idle(&self) {
        until(|| self.router.open() == 0).await;
        for model in self.router.pools.pools() {
            model.pool.with_desk(|desk| {
                desk.check();
                assert!(desk.book().is_empty());
            });
        }
    }
}

pub fn chat(said: &str) -> Value {
    json!({"model": "m", "messages": [{"role": "user", "content": said}]})
}

pub fn request(method: Method, path: &str, body: &Value) -> Request<Full<Bytes>> {
    let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
    Request::builder().method(method).uri(path).header("host", "router").body(Full::new(body)).unwrap()
}
