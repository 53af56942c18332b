//! The body of an answer: counts how its call ended, and keeps what the call has for as long as it lasts.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::HeaderMap;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tonic::{Code, Status};

use super::peers::Call;
use crate::api::App;

/// Counts one call when it is dropped: as cancelled, if its end was never told.
pub(super) struct Ledger {
    pub app: App,
    pub path: String,
    pub code: Code,
}

/// A seat of the connection, and one of a bounded kind of calls.
type Hold = (Option<Call>, Option<OwnedSemaphorePermit>);

pub(super) struct Answer {
    body: Body,
    ledger: Ledger,
    _hold: Hold,
}

impl Answer {
    pub fn new(headers: &HeaderMap, body: Body, mut ledger: Ledger, hold: Hold) -> Self {
        ledger.note(headers);
        Self { body, ledger, _hold: hold }
    }
}

impl Ledger {
    /// An answer without messages tells its end in its headers.
    fn note(&mut self, headers: &HeaderMap) {
        if let Some(status) = Status::from_header_map(headers) {
            self.code = status.code();
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.app.metrics().rpc.ended(&self.path, self.code as usize);
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(trailers) = frame.trailers_ref()
        {
            self.ledger.note(trailers);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
