//! The body of an answer: whole, or a replica's stream passed on frame by frame.
//!
//! Frames are neither copied, cut nor gathered. On the way the router looks at two things: the first frame,
//! which means that the prompt has been computed, and how many events have passed, which is how many tokens the
//! sequence has grown by. A stream that stands still beyond the request's time is cut. Whatever way the stream ends, its [`Placement`] hears of it: read to its end, failed,
//! or dropped because the client has gone, which also drops the replica's connection and so cancels there.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::SendRequest;
use tokio::time::Sleep;

use crate::placement::{Ending, Placement};
use crate::proxy::refusal::{Reason, Refusal};
use crate::proxy::sniff::Face;

/// What is sent to a client.
pub enum AnswerBody {
    Whole(Full<Bytes>),
    Stream(Box<Watched>),
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match &mut *self {
            AnswerBody::Whole(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            AnswerBody::Stream(stream) => stream.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            AnswerBody::Whole(body) => body.is_end_stream(),
            AnswerBody::Stream(stream) => stream.is_done(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            AnswerBody::Whole(body) => body.size_hint(),
            AnswerBody::Stream(stream) => stream.size_hint(),
        }
    }
}

/// A body that ended before its end; hyper closes the client's connection, so that it cannot pass for whole.
#[derive(Debug, thiserror::Error)]
#[error("the replica's answer was cut short")]
pub struct Cut;

/// A replica's body on its way through.
pub struct Watched {
    body: Incoming,
    /// Goes back to its pool once the body has been read.
    connection: Option<SendRequest<Full<Bytes>>>,
    placement: Option<Placement>,
    /// `Some` where the answer is a stream of events, which can say that it was cut.
    events: Option<Face>,
    /// The end of the request's time.
    limit: Pin<Box<Sleep>>,
    unreported: u32,
}

/// Tokens after which the book hears of them: its lock is not for every token.
const REPORT_EVERY: u32 = 16;

impl Watched {
    pub fn new(
        body: Incoming,
        connection: SendRequest<Full<Bytes>>,
        placement: Placement,
        events: Option<Face>,
        limit: Duration,
    ) -> Self {
        let (connection, placement) = (Some(connection), Some(placement));
        let limit = Box::pin(tokio::time::sleep(limit));
        let mut watched = Self { body, connection, placement, events, limit, unreported: 0 };
        if watched.body.is_end_stream() {
            watched.end(Ending::Completed);
        }
        watched
    }

    fn is_done(&self) -> bool {
        self.placement.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        // A length promised to the client could not be kept if the stream has to say that it was cut.
        if self.events.is_some() { SizeHint::default() } else { self.body.size_hint() }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let Some(placement) = &mut self.placement else { return Poll::Ready(None) };
        if placement.is_lost(cx) {
            return self.cut(Ending::ReplicaLost);
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Pending => match self.limit.as_mut().poll(cx) {
                Poll::Ready(()) => self.cut(Ending::TimedOut),
                Poll::Pending => Poll::Pending,
            },
            Poll::Ready(Some(Ok(frame))) => {
                self.passed(frame.data_ref());
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                self.end(Ending::Completed);
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(_))) => self.cut(Ending::ReplicaFailed),
        }
    }

    fn passed(&mut self, data: Option<&Bytes>) {
        let (Some(placement), Some(data)) = (&mut self.placement, data) else { return };
        placement.first_byte();
        if self.events.is_some() {
            self.unreported += data.windows(2).filter(|pair| pair == b"\n\n").count() as u32;
            if self.unreported >= REPORT_EVERY {
                placement.grew(std::mem::take(&mut self.unreported));
            }
        }
    }

    fn end(&mut self, ending: Ending) {
        let Some(placement) = self.placement.take() else { return };
        if let Some(connection) = self.connection.take()
            && ending == Ending::Completed
        {
            placement.replica().upstream.keep(connection);
        }
        placement.finish(ending);
    }

    fn cut(&mut self, ending: Ending) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let seat =
            self.placement.as_ref().map(|placement| placement.replica().upstream.address().to_string());
        self.end(ending);
        let Some(face) = self.events else { return Poll::Ready(Some(Err(Cut))) };
        let seat = seat.unwrap_or_default();
        let refusal = match ending {
            Ending::TimedOut => {
                let message = format!("the time of the request was over before {seat} had answered");
                Refusal::new(Reason::ReplicaTimeout, message)
            }
            _ => {
                let message = format!("the replica {seat} ended in the midst of the answer");
                Refusal::new(Reason::ReplicaFailed, message)
            }
        };
        let event = refusal.event(face);
        Poll::Ready(Some(Ok(Frame::data(event))))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.end(Ending::Cancelled);
    }
}
