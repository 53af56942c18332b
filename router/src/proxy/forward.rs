//! One request from a client's bytes to a replica's answer.
//!
//! ```text
//!  read ─▶ who? ─▶ which pool? ─▶ name ─▶ place ─▶ send ─┬─▶ head ─▶ stream it, or send it whole
//!                                            ▲          └─ failed, busy: another replica, if the budget allows
//!                                            └───────────────────────────┘
//! ```
//!
//! Nothing of an answer is sent to the client before the replica has said something that is no failure, so up to
//! then another replica can take over unnoticed. Short answers are read whole before they are sent: a replica that
//! dies in the midst of one is then a retry and not a broken answer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response, StatusCode, Uri};
use web::{KeyDigest, bearer};

use super::body::{AnswerBody, Watched};
use super::exact::Named;
use super::gate::API_KEY_HEADER;
use super::refusal::{Reason, Refusal};
use super::router::Router;
use super::sniff::{Face, Sniffed};
use super::text_names::{PIECE_BYTES, TOKEN_BYTES, text_names};
use super::upstream::{Reply, UpstreamError};
use crate::SeatSet;
use crate::admission::{Class, Tenant};
use crate::breaker::Answer;
use crate::index::Scope;
use crate::placement::{Ending, Placement};
use crate::pool::{Pool, Wanted};

/// Answers up to here are read whole before they are sent.
const WHOLE_BYTES_MAX: u64 = 256 << 10;
/// Tokens that an answer is taken for at most: a bound is a wish, not a prediction.
const ANSWER_TOKENS_MAX: u32 = 4096;
/// Choices that are taken for sequences of their own.
const CHOICES_MAX: u32 = 128;
/// Of the class that a request belongs to.
pub const CLASS_HEADER: &str = "x-quire-class";
/// Milliseconds after which the request need not be started any more.
pub const DEADLINE_HEADER: &str = "x-quire-deadline-ms";
/// The seat of the replica that answered.
pub const REPLICA_HEADER: &str = "x-quire-replica";

/// Meant for one connection, not for the next.
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Answers a request that wants tokens.
pub async fn forward(router: &Router, request: Request<Incoming>, face: Face) -> Response<AnswerBody> {
    match try_forward(router, request, face).await {
        Ok(response) => response,
        Err(refusal) => {
            router.metrics.refused(refusal.reason);
            refusal.response(face)
        }
    }
}

async fn try_forward(
    router: &Router,
    request: Request<Incoming>,
    face: Face,
) -> Result<Response<AnswerBody>, Refusal> {
    let tenant = router.gate.client(request.headers())?;
    let (head, body) = request.into_parts();
    let body = read(router, &head.headers, body).await?;
    let asked = Asked::of(router, &head.headers, tenant)?;
    let headers = upstream_headers(router, head.headers);
    let (pool, prompt) = look(router, &body, bearer(&headers).unwrap_or_default()).await?;
    let placement = pool.place(prompt.wanted(router, &body, &asked)).await?;
    let outgoing = Outgoing { router, uri: head.uri, headers, body };
    send(outgoing, placement, face).await
}

/// What a request's head says of how it wants to be served.
pub struct Asked {
    tenant: Tenant,
    class: Class,
    wait_max: Duration,
}

impl Asked {
    fn of(router: &Router, headers: &HeaderMap, tenant: Tenant) -> Result<Self, Refusal> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        Ok(Self { tenant, ..Self::read(router, text)? })
    }

    /// For gateways, which check keys themselves: callers are only told apart.
    pub fn by<'a>(router: &Router, text: impl Fn(&str) -> Option<&'a str>) -> Result<Self, Refusal> {
        let tenant =
            text("authorization").map_or_else(Tenant::default, |key| Tenant(KeyDigest::of(key).low64()));
        Ok(Self { tenant, ..Self::read(router, text)? })
    }

    fn read<'a>(router: &Router, text: impl Fn(&str) -> Option<&'a str>) -> Result<Self, Refusal> {
        let odd = |header, message: &str| Refusal::new(Reason::InvalidHeader, message).about(header);
        let class = match text(CLASS_HEADER) {
            None => Class::Interactive,
            Some(name) => Class::parse(name)
                .ok_or_else(|| odd(CLASS_HEADER, "x-quire-class is interactive, standard or batch"))?,
        };
        let limit = router.config.request_timeout;
        let wait_max = match text(DEADLINE_HEADER) {
            None => limit,
            Some(ms) => ms
                .parse()
                .map(Duration::from_millis)
                .map_err(|_| odd(DEADLINE_HEADER, "x-quire-deadline-ms is a number of milliseconds"))?,
        };
        Ok(Self { tenant: Tenant::default(), class, wait_max: wait_max.min(limit) })
    }
}

/// The whole body, bounded in size and time.
pub(super) async fn read(router: &Router, headers: &HeaderMap, body: Incoming) -> Result<Bytes, Refusal> {
    let limit = router.config.body_bytes_max;
    let too_large = || {
        let message = format!("the request body is larger than {}", base::bytes_human(limit as u64));
        Refusal::new(Reason::BodyTooLarge, message)
    };
    let declared =
        headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    let whole = Limited::new(body, limit).collect();
    match tokio::time::timeout(router.config.read_timeout, whole).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(Refusal::new(Reason::BodyCut, "the request body ended early")),
        Err(_) => Err(Refusal::new(Reason::BodySlow, "the request body took too long")),
    }
}

/// A prompt that has been named.
pub struct Prompt {
    scope: Scope,
    names: Vec<u64>,
    tokens: u32,
    block_tokens: u32,
    answer_tokens: u32,
}

impl Prompt {
    pub fn wanted<'a>(&'a self, router: &Router, body: &Bytes, asked: &Asked) -> Wanted<'a> {
        Wanted {
            scope: &self.scope,
            names: &self.names,
            prompt_tokens: self.tokens,
            block_tokens: self.block_tokens,
            answer_tokens: self.answer_tokens,
            bytes: body.len() as u64,
            tenant: asked.tenant,
            class: asked.class,
            deadline: router.clock.now().plus(asked.wait_max),
            among: SeatSet::ALL,
        }
    }

    /// For a dry run, of nobody in particular.
    pub fn supposed<'a>(&'a self, router: &Router, body: &Bytes) -> Wanted<'a> {
        let (tenant, class) = (Tenant::default(), Class::Interactive);
        self.wanted(router, body, &Asked { tenant, class, wait_max: router.config.request_timeout })
    }
}

/// Which pool a body is for, and its prompt's names. `credential` is what the replica will see.
pub async fn look(router: &Router, body: &Bytes, credential: &str) -> Result<(Arc<Pool>, Prompt), Refusal> {
    let seen = Sniffed::parse(body).map_err(|error| {
        Refusal::new(Reason::InvalidJson, format!("the request body is not a JSON object: {error}"))
    })?;
    let model = seen.model();
    let model = model.as_deref();
    let known = router.pools.find(model)?;
    let choices = seen.choices().min(CHOICES_MAX);
    let answer_tokens = seen.answer_tokens().min(ANSWER_TOKENS_MAX).saturating_mul(choices);
    if let Some(named) = known.pool.naming().name(credential, body, &*router.clock).await {
        let Named { scope, names, tokens, block_tokens } = named;
        return Ok((known.pool, Prompt { scope, names, tokens: tokens.max(1), block_tokens, answer_tokens }));
    }
    let mut names = Vec::new();
    text_names(model.unwrap_or_default(), seen.prompt_parts(), &mut names);
    let bytes: usize = seen.prompt_parts().map(str::len).sum();
    let prompt = Prompt {
        scope: known.text_scope,
        names,
        tokens: (bytes as u32 / TOKEN_BYTES).max(1),
        block_tokens: PIECE_BYTES as u32 / TOKEN_BYTES,
        answer_tokens,
    };
    Ok((known.pool, prompt))
}

fn upstream_headers(router: &Router, mut headers: HeaderMap) -> HeaderMap {
    strip(&mut headers);
    for name in [header::HOST, header::CONTENT_LENGTH, header::EXPECT] {
        headers.remove(name);
    }
    // Else the client's own key goes on: it says whose namespace the request is in.
    if router.gate.is_own() {
        headers.remove(header::AUTHORIZATION);
        headers.remove(API_KEY_HEADER);
        if let Some(key) = &router.replica_key {
            headers.insert(header::AUTHORIZATION, key.clone());
        }
    }
    headers
}

/// Takes out what was meant for one connection.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    headers.remove("keep-alive");
}

/// A request on its way out, which can be sent again.
struct Outgoing<'a> {
    router: &'a Router,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
}

impl Outgoing<'_> {
    fn to(&self, placement: &Placement) -> Request<Full<Bytes>> {
        let address = placement.replica().upstream.address();
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = hyper::Method::POST;
        *request.uri_mut() = match address.prefix.as_str() {
            "" => path.parse().unwrap_or_default(),
            prefix => format!("{prefix}{path}").parse().unwrap_or_default(),
        };
        *request.headers_mut() = self.headers.clone();
        if let Ok(host) = HeaderValue::from_str(&address.authority) {
            request.headers_mut().insert(header::HOST, host);
        }
        request
    }
}

/// Why an attempt brought nothing that could be sent on.
enum Miss {
    /// The replica's refusal, kept for the client in case nobody else takes the request.
    Said(Answer, Box<Response<AnswerBody>>),
    Failed(Answer, Ending, Refusal),
}

async fn send(
    out: Outgoing<'_>,
    mut placement: Placement,
    face: Face,
) -> Result<Response<AnswerBody>, Refusal> {
    loop {
        let miss = match attempt(&out, &mut placement).await {
            Ok(reply) => match pass_on(&out, reply, placement, face).await {
                Ok(response) => return Ok(response),
                Err((back, miss)) => {
                    placement = back;
                    miss
                }
            },
            Err(miss) => miss,
        };
        let (answer, ending) = match &miss {
            Miss::Said(answer, _) => (*answer, Ending::Refused),
            Miss::Failed(answer, ending, _) => (*answer, *ending),
        };
        match placement.elsewhere(answer, ending) {
            Ok(next) => placement = next,
            Err(_) => {
                return match miss {
                    Miss::Said(_, response) => Ok(*response),
                    Miss::Failed(_, _, refusal) => Err(refusal),
                };
            }
        }
    }
}

/// Sends once and waits for the head of the answer.
async fn attempt(out: &Outgoing<'_>, placement: &mut Placement) -> Result<Reply, Miss> {
    let replica = Arc::clone(placement.replica());
    let name = replica.upstream.address().to_string();
    let failed = |answer, ending, reason, why: String| {
        let refusal = Refusal::new(reason, format!("the replica {name} {why}"));
        Err(Miss::Failed(answer, ending, refusal))
    };
    let limit = placement.deadline().since(out.router.clock.now());
    let request = out.to(placement);
    let sending = replica.upstream.send(|| request.clone());
    tokio::select! {
        biased;
        sent = tokio::time::timeout(limit, sending) => match sent {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(error)) => {
                let why = match &error {
                    UpstreamError::Broken(_) => format!("broke off: {error}"),
                    _ => format!("cannot be reached: {error}"),
                };
                failed(Answer::Transport, Ending::ReplicaLost, Reason::ReplicaFailed, why)
            }
            Err(_) => {
                let why = format!("gave no answer within {} s", limit.as_secs());
                failed(Answer::TimedOut, Ending::TimedOut, Reason::ReplicaTimeout, why)
            }
        },
        () = placement.lost() => {
            failed(Answer::Transport, Ending::ReplicaLost, Reason::ReplicaFailed, "stopped answering".into())
        }
    }
}

/// Turns a replica's reply into the client's answer, or says why it should come from another.
async fn pass_on(
    out: &Outgoing<'_>,
    reply: Reply,
    placement: Placement,
    face: Face,
) -> Result<Response<AnswerBody>, (Placement, Miss)> {
    let Reply { response, connection } = reply;
    let (mut head, body) = response.into_parts();
    strip(&mut head.headers);
    let answer = Answer::of_status(head.status.as_u16(), retry_after(&head.headers));
    let is_events = is_event_stream(&head.headers);
    let is_short = !is_events && body.size_hint().exact().is_some_and(|length| length <= WHOLE_BYTES_MAX);
    if let Ok(seat) = HeaderValue::from_str(&placement.replica().seat.to_string()) {
        head.headers.insert(REPLICA_HEADER, seat);
    }
    if !is_short {
        let events = is_events.then_some(face);
        let limit = placement.deadline().since(out.router.clock.now());
        let stream = Watched::new(body, connection, placement, events, limit);
        return Ok(Response::from_parts(head, AnswerBody::Stream(Box::new(stream))));
    }
    let limit = placement.deadline().since(out.router.clock.now());
    let whole = tokio::time::timeout(limit, body.collect()).await;
    let Ok(Ok(whole)) = whole else {
        let refusal = Refusal::new(Reason::ReplicaFailed, "the replica broke off in the midst of its answer");
        return Err((placement, Miss::Failed(Answer::Transport, Ending::ReplicaFailed, refusal)));
    };
    placement.replica().upstream.keep(connection);
    let status = head.status;
    let response = Response::from_parts(head, AnswerBody::Whole(Full::new(whole.to_bytes())));
    match answer {
        Answer::Success | Answer::ClientError => {
            placement.finish(if status.is_success() { Ending::Completed } else { Ending::Refused });
            Ok(response)
        }
        _ => Err((placement, Miss::Said(answer, Box::new(response)))),
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    kind.is_some_and(|kind| kind.starts_with("text/event-stream"))
}

/// An answer of the router itself.
pub(super) fn json(status: StatusCode, body: String) -> Response<AnswerBody> {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "application/json")
        .body(AnswerBody::Whole(Full::new(Bytes::from(body))))
        .expect("constant headers")
}
