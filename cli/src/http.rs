//! A small HTTP/1.1 client over hyper's connection: enough for `chat`, `bench` and the self-test.
//!
//! Not a client library: those bring pools, redirects, TLS and proxies, and cost the load generator more
//! than the server it measures. Limits: plain `http://` only; one request at a time a connection.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::failure::{Exit, Failure};
use crate::listen::plain;

/// Largest answer that is read whole.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `host:port`, as connected to and as sent in `Host`.
    pub authority: String,
    /// Without a trailing slash; usually empty.
    pub path: String,
    pub key: Option<String>,
}

impl Endpoint {
    /// Takes `http://host:port`, with or without `/v1`.
    pub fn parse(url: &str, key: Option<String>) -> Result<Self, Failure> {
        if url.starts_with("https://") {
            return Err(Failure::usage(format!("--url {url}: https is not supported here"))
                .hint("put the server's own http address there, or a local proxy that speaks TLS"));
        }
        let rest = url.strip_prefix("http://").unwrap_or(url);
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let path = path.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        let has_port = authority.rsplit(':').next().is_some_and(|p| p.parse::<u16>().is_ok());
        match authority {
            "" => Err(Failure::usage(format!("--url {url}: no host in it"))),
            _ if has_port => Ok(Self { authority: authority.to_owned(), path, key }),
            _ => Ok(Self { authority: format!("{authority}:80"), path, key }),
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}{}", self.authority, self.path)
    }

    fn unreachable(&self, why: impl std::fmt::Display) -> Failure {
        Failure::new(Exit::Unreachable, format!("no answer from {}: {why}", self.url()))
            .hint("start a server with `quire` in another terminal, or name one with --url")
    }
}

/// One open connection.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    endpoint: Endpoint,
}

impl Connection {
    pub async fn open(endpoint: &Endpoint) -> Result<Self, Failure> {
        let stream =
            TcpStream::connect(&endpoint.authority).await.map_err(|e| endpoint.unreachable(plain(&e)))?;
        stream.set_nodelay(true)?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| endpoint.unreachable(e))?;
        tokio::spawn(async move {
            // An error here reaches the request that is waiting; there is nobody else to tell.
            let _ = connection.await;
        });
        Ok(Self { sender, endpoint: endpoint.clone() })
    }

    /// Ready for one more request; false once the server has closed it.
    pub async fn is_usable(&mut self) -> bool {
        self.sender.ready().await.is_ok()
    }

    /// Sends, and returns when the answer's head is here.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> hyper::Result<Response<Incoming>> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.endpoint.path))
            .header(header::HOST, &self.endpoint.authority)
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(key) = &self.endpoint.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        let request = request.body(Full::new(body)).expect("parsed by Endpoint::parse");
        self.sender.ready().await?;
        self.sender.send_request(request).await
    }

    /// Sends, and reads the whole answer as JSON. A refusal becomes a failure with the server's own words.
    pub async fn json(
        &mut self,
        method: Method,
        path: &str,
        body: &serde_json::Value,
    ) -> Result<serde_json::Value, Failure> {
        let bytes = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let answer = self.send(method, path, bytes).await.map_err(|e| self.endpoint.unreachable(e))?;
        let status = answer.status();
        let bytes = read_all(answer).await.map_err(|e| self.endpoint.unreachable(e))?;
        if !status.is_success() {
            return Err(refusal(status, &bytes));
        }
        serde_json::from_slice(&bytes)
            .map_err(|e| Failure::failed(format!("{path} answered something that is not JSON: {e}")))
    }
}

/// The whole body, up to a bound.
pub async fn read_all(answer: Response<Incoming>) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>> {
    Ok(Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await?.to_bytes())
}

/// The failure that a refusing answer means.
pub fn refusal(status: StatusCode, body: &[u8]) -> Failure {
    let json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let said = json["error"]["message"].as_str().or(json["message"].as_str());
    let text = said
        .map_or_else(|| String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned(), str::to_owned);
    let failure = Failure::failed(format!("the server refused: {} ({})", text.trim(), status.as_u16()));
    match status {
        StatusCode::UNAUTHORIZED => failure.hint("give the server's key with --api-key or QUIRE_API_KEY"),
        StatusCode::SERVICE_UNAVAILABLE => {
            failure.hint("the server is still loading, or stopping; try again")
        }
        _ => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> (String, String) {
        let e = Endpoint::parse(url, None).unwrap();
        (e.authority, e.path)
    }

    #[test]
    fn urls_are_taken_as_people_paste_them() {
        let at = |a: &str, p: &str| (a.to_owned(), p.to_owned());
        assert_eq!(parse("http://127.0.0.1:8000"), at("127.0.0.1:8000", ""));
        assert_eq!(parse("http://127.0.0.1:8000/v1/"), at("127.0.0.1:8000", ""));
        assert_eq!(parse("localhost:9"), at("localhost:9", ""));
        assert_eq!(parse("http://host/llm/v1"), at("host:80", "/llm"));
        assert_eq!(parse("http://[::1]:8000"), at("[::1]:8000", ""));
        assert!(Endpoint::parse("https://host", None).unwrap_err().message.contains("https"));
        assert!(Endpoint::parse("http://", None).is_err());
    }

    #[test]
    fn a_refusal_speaks_in_the_servers_words() {
        let body = br#"{"error":{"message":"model `x` does not exist"}}"#;
        assert_eq!(
            refusal(StatusCode::NOT_FOUND, body).message,
            "the server refused: model `x` does not exist (404)"
        );
    }
}
