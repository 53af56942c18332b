//! One request as a gateway tells of it: its head, its body, then the answer's.
//!
//! Under `FULL_DUPLEX_STREAMED` nothing is answered before the body is whole: the answer to the head is what
//! carries the choice, and the body goes back after it. Under `BUFFERED` the gateway waits for an answer to the
//! head before it sends the body, and the choice travels with the answer to the body.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use proto::envoy::service::ext_proc::v3::processing_request::Request;
use proto::envoy::service::ext_proc::v3::protocol_configuration::BodySendMode;
use proto::envoy::service::ext_proc::v3::{HttpBody, HttpHeaders, ProcessingRequest, ProcessingResponse};

use super::message::{self, Carrier};
use crate::SeatSet;
use crate::decide::Decision;
use crate::placement::{Ending, Placement};
use crate::pool::Pool;
use crate::proxy::refusal::{Reason, Refusal};
use crate::proxy::sniff::Face;
use crate::proxy::{Asked, Router, look};

/// Endpoints told beside the first choice, for the gateway to fall back on.
const FALLBACKS: usize = 2;

/// See the file's head.
pub struct Exchange {
    router: Arc<Router>,
    headers: BTreeMap<String, String>,
    subset: Option<Vec<String>>,
    body: BytesMut,
    request_mode: BodySendMode,
    response_mode: BodySendMode,
    placement: Option<Placement>,
    /// Of the answer; 0 until it is known.
    status: u16,
    is_over: bool,
}

impl Exchange {
    pub fn new(router: Arc<Router>) -> Self {
        Self {
            router,
            headers: BTreeMap::new(),
            subset: None,
            body: BytesMut::new(),
            request_mode: BodySendMode::FullDuplexStreamed,
            response_mode: BodySendMode::FullDuplexStreamed,
            placement: None,
            status: 0,
            is_over: false,
        }
    }

    /// Nothing that follows will be answered.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Takes a message, and says what to answer.
    pub async fn hear(&mut self, message: ProcessingRequest) -> Vec<ProcessingResponse> {
        if let Some(config) = message.protocol_config {
            self.request_mode = config.request_body_mode();
            self.response_mode = config.response_body_mode();
        }
        if let Some(subset) = message::subset(message.metadata_context.as_ref()) {
            self.subset = Some(subset);
        }
        let answer = match message.request {
            Some(Request::RequestHeaders(head)) => self.request_head(&head).await,
            Some(Request::RequestBody(piece)) => self.request_body(piece).await,
            Some(Request::RequestTrailers(_)) => self.request_trailers().await,
            Some(Request::ResponseHeaders(head)) => {
                let served = message::served(message.metadata_context.as_ref());
                Ok(self.response_head(&head, served))
            }
            Some(Request::ResponseBody(piece)) => Ok(self.response_body(piece)),
            Some(Request::ResponseTrailers(_)) => {
                self.finish();
                Ok(vec![message::response_trailers()])
            }
            None => Ok(Vec::new()),
        };
        answer.unwrap_or_else(|refusal| {
            self.is_over = true;
            self.router.metrics.refused(refusal.reason);
            vec![message::refused(&refusal, self.face())]
        })
    }

    async fn request_head(&mut self, head: &HttpHeaders) -> Result<Vec<ProcessingResponse>, Refusal> {
        self.headers = message::headers(head.headers.as_ref());
        if head.end_of_stream {
            return Ok(vec![message::chosen(&self.place().await?, Carrier::Headers)]);
        }
        match self.request_mode {
            BodySendMode::FullDuplexStreamed => Ok(Vec::new()),
            BodySendMode::None => Ok(vec![message::chosen(&self.place().await?, Carrier::Headers)]),
            _ => Ok(vec![message::request_headers()]),
        }
    }

    async fn request_body(&mut self, piece: HttpBody) -> Result<Vec<ProcessingResponse>, Refusal> {
        let limit = self.router.config.body_bytes_max;
        if self.body.len() + piece.body.len() > limit {
            let message = format!("the request body is larger than {}", base::bytes_human(limit as u64));
            return Err(Refusal::new(Reason::BodyTooLarge, message));
        }
        self.body.extend_from_slice(&piece.body);
        if !piece.end_of_stream {
            return Ok(Vec::new());
        }
        let endpoints = self.place().await?;
        if self.request_mode != BodySendMode::FullDuplexStreamed {
            return Ok(vec![message::chosen(&endpoints, Carrier::Body)]);
        }
        Ok(self.duplex(&endpoints, true))
    }

    /// A body that ends with trailers has no last piece.
    async fn request_trailers(&mut self) -> Result<Vec<ProcessingResponse>, Refusal> {
        let mut answers = Vec::new();
        if self.placement.is_none() {
            let endpoints = self.place().await?;
            answers = self.duplex(&endpoints, false);
        }
        answers.push(message::request_trailers());
        Ok(answers)
    }

    fn duplex(&mut self, endpoints: &str, is_end: bool) -> Vec<ProcessingResponse> {
        let body = std::mem::take(&mut self.body).freeze();
        let mut answers = vec![message::chosen(endpoints, Carrier::Headers)];
        answers.extend(message::request_body(&body, is_end));
        answers
    }

    fn response_head(&mut self, head: &HttpHeaders, served: Option<&str>) -> Vec<ProcessingResponse> {
        let status = message::headers(head.headers.as_ref()).get(":status").and_then(|s| s.parse().ok());
        self.status = status.unwrap_or(200);
        if let (Some(placement), Some(served)) = (&mut self.placement, served)
            && placement.replica().upstream.address().authority != served
        {
            // The gateway fell back: what comes says nothing of our choice.
            placement.is_served_elsewhere();
        }
        if head.end_of_stream {
            self.finish();
        }
        vec![message::response_headers()]
    }

    fn response_body(&mut self, piece: HttpBody) -> Vec<ProcessingResponse> {
        if let Some(placement) = &mut self.placement
            && !piece.body.is_empty()
        {
            placement.first_byte();
            placement.grew(piece.body.windows(2).filter(|pair| pair == b"\n\n").count() as u32);
        }
        if piece.end_of_stream {
            self.finish();
        }
        match self.response_mode {
            BodySendMode::FullDuplexStreamed => {
                message::response_body(&Bytes::from(piece.body), piece.end_of_stream)
            }
            _ => vec![message::buffered_response_body()],
        }
    }

    fn finish(&mut self) {
        if let Some(placement) = self.placement.take() {
            placement.finish(match self.status {
                500.. => Ending::ReplicaFailed,
                400..=499 => Ending::Refused,
                _ => Ending::Completed,
            });
        }
    }

    /// Waits for a place; says which endpoints to try, the chosen one first.
    async fn place(&mut self) -> Result<String, Refusal> {
        let router = Arc::clone(&self.router);
        let asked = Asked::by(&router, |name| self.headers.get(name).map(String::as_str))?;
        let body = match self.body.is_empty() {
            true => Bytes::from_static(b"{}"),
            false => Bytes::copy_from_slice(&self.body),
        };
        let credential = self.headers.get("authorization").and_then(|value| value.split_once(' '));
        let credential = credential.map_or("", |(_, key)| key.trim());
        let (pool, prompt) = look(&router, &body, credential).await?;
        let among = self.among(&pool)?;
        let mut wanted = prompt.wanted(&router, &body, &asked);
        wanted.among = among;
        let placement = pool.place(wanted).await?;
        let endpoints = endpoints(&pool, placement.decision(), among);
        self.placement = Some(placement);
        Ok(endpoints)
    }

    /// The replicas that the gateway allows.
    fn among(&self, pool: &Pool) -> Result<SeatSet, Refusal> {
        let Some(subset) = &self.subset else { return Ok(SeatSet::ALL) };
        let replicas = pool.replicas();
        let allowed = replicas.iter().filter(|r| subset.contains(&r.upstream.address().authority));
        let seats: SeatSet = allowed.map(|replica| replica.seat).collect();
        if seats.is_empty() {
            return Err(Refusal::new(
                Reason::NoReplica,
                "none of the endpoints that the gateway allows is known",
            ));
        }
        Ok(seats)
    }

    fn face(&self) -> Face {
        match self.headers.get(":path") {
            Some(path) if path.starts_with("/v1/messages") => Face::Anthropic,
            _ => Face::OpenAi,
        }
    }
}

/// `ip:port,ip:port…`, the chosen one first and then by cost.
fn endpoints(pool: &Pool, decision: &Decision, among: SeatSet) -> String {
    let mut scores: Vec<_> = decision.scores.iter().filter(|score| among.has(score.seat)).collect();
    scores.sort_by(|a, b| {
        let rank = |seat| seat != decision.chosen;
        rank(a.seat).cmp(&rank(b.seat)).then(a.total_ms.total_cmp(&b.total_ms))
    });
    let authority = |score: &&crate::decide::Score| {
        pool.replica(score.seat).map(|replica| replica.upstream.address().authority.clone())
    };
    scores.iter().take(1 + FALLBACKS).filter_map(authority).collect::<Vec<_>>().join(",")
}

/// Longest silence of a gateway in the midst of a request before its place is given up.
pub(super) const SILENCE: Duration = Duration::from_secs(1800);
