//! A stream of messages: a task that sends one, waits until it is taken, and sends the next.
//!
//! It ends when its reader leaves, when its deadline passes, when the server stops, or with the error that its
//! work ends with; never by itself in silence, so that a task that died is an error and not the end of news.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;
use tokio::sync::{Semaphore, mpsc, watch};
use tonic::{Code, Status};

use super::deadline::Deadline;
use super::status::status;
use crate::api::serve::Phase;

/// What lets streams begin and makes them end.
#[derive(Clone)]
pub(super) struct Streams {
    seats: Arc<Semaphore>,
    phase: watch::Receiver<Phase>,
}

/// Where a stream's work puts its messages.
pub(super) struct Outlet<T>(mpsc::Sender<Result<T, Status>>);

/// What the connection reads.
pub(super) struct Messages<T> {
    inbox: mpsc::Receiver<Result<T, Status>>,
    has_ended: bool,
}

impl Streams {
    pub fn new(most: usize, phase: watch::Receiver<Phase>) -> Self {
        Self { seats: Arc::new(Semaphore::new(most)), phase }
    }

    /// Begins a stream that `work` fills.
    pub fn begin<T, F>(
        &self,
        deadline: Deadline,
        work: impl FnOnce(Outlet<T>) -> F,
    ) -> Result<Messages<T>, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<Infallible, Status>> + Send + 'static,
    {
        let seat = Arc::clone(&self.seats).try_acquire_owned();
        let seat = seat.map_err(|_| {
            status(Code::ResourceExhausted, "too_many_streams", "too many streams are open; try again later")
        })?;
        let (sender, inbox) = mpsc::channel(1);
        let work = work(Outlet(sender.clone()));
        let mut phase = self.phase.clone();
        tokio::spawn(async move {
            let _seat = seat;
            let end = tokio::select! {
                biased;
                () = sender.closed() => return,
                _ = phase.wait_for(|phase| *phase != Phase::Serving) => draining(),
                () = deadline.passed() => Status::deadline_exceeded("the deadline of the call has passed"),
                Err(end) = work => end,
            };
            let _ = sender.send(Err(end)).await;
        });
        Ok(Messages { inbox, has_ended: false })
    }
}

fn draining() -> Status {
    status(Code::Unavailable, "draining", "the server is shutting down")
}

impl<T> Outlet<T> {
    /// Waits until the message before has been taken.
    pub async fn send(&self, message: T) -> Result<(), Status> {
        self.0.send(Ok(message)).await.map_err(|_| Status::cancelled("the reader has left"))
    }
}

impl<T> Stream for Messages<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.inbox.poll_recv(cx);
        polled.map(|message| {
            let lost = || Err(status(Code::Internal, "internal", "the stream broke off"));
            let is_lost = message.is_none() && !self.has_ended;
            self.has_ended |= matches!(message, None | Some(Err(_)));
            if is_lost { Some(lost()) } else { message }
        })
    }
}
