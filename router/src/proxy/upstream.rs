//! Connections to one replica: kept open, used last-in first-out, opened when none is idle.
//!
//! hyper's connection and not its pooled client: the pool there keys by URL, hides whether a connection was
//! fresh, and cannot be emptied when a replica is known to be dead. Whether it was fresh decides what a failure
//! means: a request that dies on a kept connection before anything came back has met the other side's idle
//! timeout, and is sent once more on a new one; on a fresh connection it is the replica's failure.
//!
//! Limits: HTTP/1.1 without TLS, one request at a time a connection. Idle connections are bounded; open ones
//! are bounded by the router's own bound of open requests.

use std::io;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Kept open without a request.
const IDLE_MAX: usize = 256;
/// Header lines of an answer.
const HEADERS_MAX: usize = 128;

/// Where a replica listens.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Address {
    /// `host:port`.
    pub authority: String,
    /// Before every path; usually empty.
    pub prefix: String,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AddressError {
    #[error("{0:?}: replicas are reached by plain http:// (a private network, or a TLS proxy beside them)")]
    Scheme(String),
    #[error("{0:?}: no host in it")]
    NoHost(String),
    #[error("{0:?}: not a host with a port")]
    Port(String),
}

impl Address {
    /// Takes `http://host:port`, with or without scheme and `/v1`.
    pub fn parse(url: &str) -> Result<Self, AddressError> {
        let rest = match url.split_once("://") {
            Some(("http", rest)) => rest,
            Some(_) => return Err(AddressError::Scheme(url.into())),
            None => url,
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if authority.is_empty() || authority.starts_with(':') {
            return Err(AddressError::NoHost(url.into()));
        }
        let prefix = path.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        let host_ends = authority.rfind(']').map_or(0, |at| at + 1);
        let authority = match authority[host_ends..].rsplit_once(':') {
            None => format!("{authority}:80"),
            Some((_, port)) if port.parse::<u16>().is_ok_and(|port| port > 0) => authority.to_owned(),
            Some(_) => return Err(AddressError::Port(url.into())),
        };
        Ok(Self { authority, prefix })
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}{}", self.authority, self.prefix)
    }
}

/// Why nothing came back.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    #[error("no connection within {} ms", .0.as_millis())]
    ConnectTimeout(Duration),
    #[error("the connection failed: {0}")]
    Broken(#[source] hyper::Error),
}

/// Connections of one replica.
pub struct Upstream {
    address: Address,
    connect_timeout: Duration,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

impl Upstream {
    pub fn new(address: Address, connect_timeout: Duration) -> Self {
        Self { address, connect_timeout, idle: Mutex::new(Vec::new()) }
    }

    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Sends what `make` makes, and returns when the answer's head is here.
    pub async fn send(&self, make: impl Fn() -> Request<Full<Bytes>>) -> Result<Reply, UpstreamError> {
        while let Some(mut kept) = self.take_idle() {
            // Closed while it lay idle: known already, and nothing was sent.
            if kept.ready().await.is_err() {
                continue;
            }
            match kept.send_request(make()).await {
                Ok(response) => return Ok(Reply { response, connection: kept }),
                // Closed by the other side just as we used it. A generation that was begun and lost costs time;
                // there is nothing that a second one would spoil.
                Err(error) if error.is_incomplete_message() || error.is_canceled() || error.is_closed() => {}
                Err(error) => return Err(UpstreamError::Broken(error)),
            }
        }
        let mut fresh = self.connect().await?;
        match fresh.send_request(make()).await {
            Ok(response) => Ok(Reply { response, connection: fresh }),
            Err(error) => Err(UpstreamError::Broken(error)),
        }
    }

    /// Takes a connection back whose answer has been read to its end.
    pub fn keep(&self, connection: SendRequest<Full<Bytes>>) {
        if connection.is_closed() {
            return;
        }
        let mut idle = lock(&self.idle);
        if idle.len() < IDLE_MAX {
            idle.push(connection);
        }
    }

    /// Closes what is idle: the other side is known to be gone.
    pub fn forget(&self) {
        lock(&self.idle).clear();
    }

    fn take_idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        lock(&self.idle).pop()
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, UpstreamError> {
        let connecting = TcpStream::connect(&self.address.authority);
        let stream = match tokio::time::timeout(self.connect_timeout, connecting).await {
            Err(_) => return Err(UpstreamError::ConnectTimeout(self.connect_timeout)),
            Ok(connected) => connected.map_err(UpstreamError::Connect)?,
        };
        stream.set_nodelay(true).map_err(UpstreamError::Connect)?;
        let (sender, connection) = http1::Builder::new()
            .max_headers(HEADERS_MAX)
            .writev(false)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(UpstreamError::Broken)?;
        tokio::spawn(async move {
            // An error here reaches the request that is waiting; there is nobody else to tell.
            let _ = connection.await;
        });
        Ok(sender)
    }
}

/// An answer that has begun, and the connection on which the rest of it comes.
pub struct Reply {
    pub response: Response<Incoming>,
    pub connection: SendRequest<Full<Bytes>>,
}

/// A panic elsewhere leaves nothing half done in these few lines.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_as_people_paste_them() {
        let parse = |url: &str| Address::parse(url).unwrap().to_string();
        assert_eq!(parse("http://127.0.0.1:8000"), "http://127.0.0.1:8000");
        assert_eq!(parse("node-3:8000/v1/"), "http://node-3:8000");
        assert_eq!(parse("http://host/llm/v1"), "http://host:80/llm");
        assert_eq!(parse("http://[::1]:8000"), "http://[::1]:8000");
        assert_eq!(parse("[::1]"), "http://[::1]:80");
    }

    #[test]
    fn what_is_no_address_is_refused_by_name() {
        let refused = |url: &str| Address::parse(url).unwrap_err();
        assert!(matches!(refused("https://h"), AddressError::Scheme(_)));
        assert!(matches!(refused("http://"), AddressError::NoHost(_)));
        assert!(matches!(refused(":8000"), AddressError::NoHost(_)));
        assert!(matches!(refused("h:0"), AddressError::Port(_)));
        assert!(matches!(refused("h:http"), AddressError::Port(_)));
    }
}
