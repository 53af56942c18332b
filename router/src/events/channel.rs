//! One HTTP/2 connection to a replica, for tonic's generated clients.
//!
//! tonic's own transport would bring a second connection stack beside the hyper that proxies; what is needed of one is
//! this file. A channel does not reconnect by itself: whoever has it must learn that a connection was lost, because a
//! stream of events then has to be resumed and a reservation looked at.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::header::{AUTHORIZATION, HeaderValue};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use proto::v1::cache_client::CacheClient;
use proto::v1::replica_client::ReplicaClient;
use tokio::net::TcpStream;
use tonic::body::Body;
use tonic::codegen::{Service, http};

/// A peer that answers no ping for this long after one is gone.
const PING: Duration = Duration::from_secs(5);
/// What is not read yet, per stream and in all, before the replica waits.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// What a router shows a replica. Never printed.
#[derive(Clone)]
pub struct Key(HeaderValue);

impl Key {
    /// `None` if it cannot be in a header.
    pub fn new(bearer: &str) -> Option<Self> {
        let mut value = HeaderValue::from_str(&format!("Bearer {bearer}")).ok()?;
        value.set_sensitive(true);
        Some(Self(value))
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    #[error("cannot connect to {address}: {source}")]
    Connect { address: String, source: std::io::Error },
    #[error("{address} speaks no HTTP/2: {source}")]
    Handshake { address: String, source: hyper::Error },
    #[error("{address} did not answer within {patience:?}")]
    Slow { address: String, patience: Duration },
}

impl ChannelError {
    /// The label in metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            ChannelError::Connect { .. } => "connect",
            ChannelError::Handshake { .. } => "handshake",
            ChannelError::Slow { .. } => "slow",
        }
    }
}

/// See the file's header. Cheap to clone; dropping the last closes the connection once its calls have ended.
#[derive(Clone)]
pub struct Channel {
    sender: SendRequest<Body>,
    key: Option<Key>,
    timeout: Option<HeaderValue>,
}

impl Channel {
    /// Connects to `HOST:PORT`.
    pub async fn open(address: &str, key: Option<Key>, patience: Duration) -> Result<Self, ChannelError> {
        let slow = |_| ChannelError::Slow { address: address.to_owned(), patience };
        let sender = tokio::time::timeout(patience, connect(address)).await.map_err(slow)??;
        Ok(Self { sender, key, timeout: None })
    }

    /// Calls are given up by the replica after this time.
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        let ms = deadline.as_millis().clamp(1, 99_999_999);
        let value = HeaderValue::from_str(&format!("{ms}m")).expect("digits are a header");
        Self { timeout: Some(value), ..self.clone() }
    }

    /// Whether calls can still be made.
    pub fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    pub fn cache(&self) -> CacheClient<Self> {
        CacheClient::with_origin(self.clone(), origin())
    }

    pub fn replica(&self) -> ReplicaClient<Self> {
        ReplicaClient::with_origin(self.clone(), origin())
    }
}

/// Replicas look at no authority.
fn origin() -> http::Uri {
    http::Uri::from_static("http://replica")
}

async fn connect(address: &str) -> Result<SendRequest<Body>, ChannelError> {
    let failed = |source| ChannelError::Connect { address: address.to_owned(), source };
    let stream = TcpStream::connect(address).await.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    let handshake = Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .handshake(TokioIo::new(stream));
    let (sender, connection) =
        handshake.await.map_err(|source| ChannelError::Handshake { address: address.to_owned(), source })?;
    // Its end is heard by whoever has a call on it.
    tokio::spawn(connection);
    Ok(sender)
}

impl Service<http::Request<Body>> for Channel {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.sender.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        if let Some(Key(value)) = &self.key {
            request.headers_mut().insert(AUTHORIZATION, value.clone());
        }
        if let Some(timeout) = &self.timeout {
            request.headers_mut().insert("grpc-timeout", timeout.clone());
        }
        Box::pin(self.sender.send_request(request))
    }
}
