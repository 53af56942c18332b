//! A client of `quire.v1`: generated stubs over one HTTP/2 connection, with a key or without.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use proto::v1::cache_client::CacheClient;
use proto::v1::replica_client::ReplicaClient;
use tokio::net::TcpStream;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic_health::pb::health_client::HealthClient;

/// What a client has not read, per stream, before the server must wait.
pub const WINDOW: u32 = 65_535;

/// What hangs is a failure, not a test that never ends.
pub async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work).await.expect("in time")
}

/// One connection. Dropping the last clone closes it.
#[derive(Clone)]
pub struct Channel {
    sender: SendRequest<Body>,
    key: Option<String>,
    timeout: Option<&'static str>,
}

impl Channel {
    pub async fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let mut builder = Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(WINDOW).initial_connection_window_size(1 << 20);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self { sender, key: None, timeout: None }
    }

    pub fn with_key(&self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self.clone() }
    }

    /// Begins a call whose request never ends.
    pub async fn begin(&self, path: &'static str) {
        let request = http::Request::post(format!("http://test{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Body::new(Never))
            .unwrap();
        let mut sender = self.sender.clone();
        sender.ready().await.unwrap();
        tokio::spawn(sender.send_request(request));
    }

    /// As in the `grpc-timeout` header.
    pub fn with_timeout(&self, timeout: &'static str) -> Self {
        Self { timeout: Some(timeout), ..self.clone() }
    }

    pub fn cache(&self) -> CacheClient<Self> {
        CacheClient::with_origin(self.clone(), origin())
    }

    pub fn replica(&self) -> ReplicaClient<Self> {
        ReplicaClient::with_origin(self.clone(), origin())
    }

    pub fn health(&self) -> HealthClient<Self> {
        HealthClient::with_origin(self.clone(), origin())
    }
}

/// The body of a request that never ends.
struct Never;

impl hyper::body::Body for Never {
    type Data = tonic::codegen::Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Self::Data>, Status>>> {
        Poll::Pending
    }
}

fn origin() -> http::Uri {
    http::Uri::from_static("http://test")
}

impl Service<http::Request<Body>> for Channel {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.sender.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        if let Some(key) = &self.key {
            let value = format!("Bearer {key}").parse().unwrap();
            request.headers_mut().insert("authorization", value);
        }
        if let Some(timeout) = self.timeout {
            request.headers_mut().insert("grpc-timeout", timeout.parse().unwrap());
        }
        Box::pin(self.sender.send_request(request))
    }
}
