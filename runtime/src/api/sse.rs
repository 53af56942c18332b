//! A streamed answer: server-sent events, one chunk a token, all that is ready in one write.
//!
//! The chunk of a plain token is two byte strings rendered once per choice with the escaped text between
//! them. The body is polled by the connection itself: no task, channel or timer of its own.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body as AnyBody;
use axum::http::{HeaderValue, Response, header};
use bytes::{BufMut, Bytes, BytesMut};
use hyper::body::{Body, Frame};
use serde_json::{Value, json};

use crate::api::answer::{Answer, Sink, Usage};
use crate::api::app::Ticket;
use crate::api::choice::{Choice, Delta, End};
use crate::api::params::StreamUsage;
use crate::api::wire::{self, Endpoint, Meta};
use crate::text::Text;

/// Bytes gathered before they must go out.
const WRITE_BYTES: usize = 32 << 10;

/// Writes chunks into a buffer.
pub(crate) struct SseWriter {
    meta: Meta,
    text: Arc<Text>,
    usage: StreamUsage,
    logprobs: bool,
    /// The two sides of a plain chunk, per choice.
    plain: Vec<(Bytes, Bytes)>,
    out: BytesMut,
}

impl SseWriter {
    pub fn new(meta: Meta, text: Arc<Text>, usage: StreamUsage, logprobs: bool, choices: usize) -> Self {
        let plain = (0..choices).map(|index| sides(&meta, usage, index)).collect();
        let mut writer = Self { meta, text, usage, logprobs, plain, out: BytesMut::with_capacity(1024) };
        if writer.meta.endpoint == Endpoint::Chat {
            for index in 0..choices {
                let delta = json!({"role": "assistant", "content": ""});
                writer
                    .choice(json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": null}));
            }
        }
        writer
    }

    /// A chunk with one choice, built the slow way.
    fn choice(&mut self, choice: Value) {
        let mut chunk = head(&self.meta);
        chunk["choices"] = json!([choice]);
        if self.usage == StreamUsage::Last {
            chunk["usage"] = Value::Null;
        }
        self.event(&chunk);
    }

    fn event(&mut self, value: &Value) {
        self.out.put_slice(b"data: ");
        self.out.put_slice(value.to_string().as_bytes());
        self.out.put_slice(b"\n\n");
    }

    fn content(&mut self, index: usize, delta: &Delta) {
        if !self.logprobs {
            let (left, right) = &self.plain[index];
            self.out.reserve(left.len() + delta.text.len() + right.len());
            self.out.put_slice(left);
            wire::escape(&delta.text, &mut self.out);
            self.out.put_slice(right);
            return;
        }
        let text = Arc::clone(&self.text);
        let choice = match self.meta.endpoint {
            Endpoint::Chat => json!({
                "index": index, "delta": {"content": delta.text},
                "logprobs": wire::chat_logprobs(&text, &delta.entries), "finish_reason": null,
            }),
            Endpoint::Completion => json!({
                "text": delta.text, "index": index,
                "logprobs": wire::completion_logprobs(&text, &delta.entries), "finish_reason": null,
            }),
        };
        self.choice(choice);
    }

    fn end(&mut self, index: usize, end: &End) {
        if let End::Failed(error) = end {
            self.event(&error.body());
            return;
        }
        let reason = end.reason();
        self.choice(match self.meta.endpoint {
            Endpoint::Chat => json!({"index": index, "delta": {}, "logprobs": null, "finish_reason": reason}),
            Endpoint::Completion => {
                json!({"text": "", "index": index, "logprobs": null, "finish_reason": reason})
            }
        });
    }

    fn last(&mut self, usage: Usage) {
        if self.usage == StreamUsage::Last {
            let mut chunk = head(&self.meta);
            chunk["choices"] = json!([]);
            chunk["usage"] = wire::usage(usage);
            self.event(&chunk);
        }
        self.out.put_slice(b"data: [DONE]\n\n");
    }
}

impl Sink for SseWriter {
    fn put(&mut self, choice: &Choice, delta: &mut Delta) {
        if !delta.text.is_empty() || !delta.entries.is_empty() {
            self.content(choice.index, delta);
        }
        if let Some(end) = &delta.end {
            self.end(choice.index, end);
        }
    }

    fn full(&self) -> bool {
        self.out.len() >= WRITE_BYTES
    }

    fn waiting(&self) -> bool {
        !self.out.is_empty()
    }
}

/// All of a chunk but its choices.
fn head(meta: &Meta) -> Value {
    json!({
        "id": meta.id,
        "object": meta.endpoint.chunk_object(),
        "created": meta.created,
        "model": meta.model,
        "system_fingerprint": meta.fingerprint,
    })
}

/// What stands left and right of a plain chunk's text: a chunk is rendered around a mark and cut there.
fn sides(meta: &Meta, usage: StreamUsage, index: usize) -> (Bytes, Bytes) {
    const MARK: &str = "\u{1}";
    let mut chunk = head(meta);
    chunk["choices"] = match meta.endpoint {
        Endpoint::Chat => {
            json!([{"index": index, "delta": {"content": MARK}, "logprobs": null, "finish_reason": null}])
        }
        Endpoint::Completion => {
            json!([{"text": MARK, "index": index, "logprobs": null, "finish_reason": null}])
        }
    };
    if usage == StreamUsage::Last {
        chunk["usage"] = Value::Null;
    }
    let rendered = chunk.to_string();
    // The last one: an id or model name that holds the mark stands before it.
    let (left, right) = rendered.rsplit_once("\\u0001").unwrap_or((&rendered, ""));
    (format!("data: {left}").into(), format!("{right}\n\n").into())
}

/// The response body.
struct SseBody {
    answer: Answer,
    writer: SseWriter,
    done: bool,
    /// Counts the request as open until its last byte.
    _ticket: Arc<Ticket>,
}

impl Body for SseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let body = self.get_mut();
        if body.done {
            return Poll::Ready(None);
        }
        if body.answer.advance(cx, &mut body.writer).is_pending() {
            return Poll::Pending;
        }
        if body.answer.ended() {
            let usage = body.answer.usage();
            body.writer.last(usage);
            body.done = true;
        }
        Poll::Ready(Some(Ok(Frame::data(body.writer.out.split().freeze()))))
    }

    fn is_end_stream(&self) -> bool {
        self.done
    }
}

/// The response around `answer`, which has started.
pub(crate) fn response(answer: Answer, writer: SseWriter, ticket: Arc<Ticket>) -> Response<AnyBody> {
    let body = SseBody { answer, writer, done: false, _ticket: ticket };
    let mut response = Response::new(AnyBody::new(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Asks proxies such as nginx not to gather the stream.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}
