//! A stream of messages, each made when its reader asks for it.
//!
//! The reader is the connection: it asks when there is room to send. The work behind a stream waits for its turn,
//! makes one message and hands it over, so a reader that stalls costs a task and no memory, and what it is told
//! is as new as can be. One that has not asked for a minute while there is something to say is given up.
//!
//! A stream ends when its reader leaves, when its deadline passes, when the server stops, or with the error that its
//! work ends with; never by itself in silence, so that a task that died is an error and not the end of news. Its
//! seat is free as soon as its work has ended, whether the end is taken or not.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tonic::{Code, Status};

use super::deadline::Deadline;
use super::status::{busy, status};
use crate::metrics::Gauge;
use web::Phase;

/// A reader that takes nothing for so long is given up.
const STALL_MAX: Duration = Duration::from_secs(60);
/// For the end of a stream to be taken.
const END_MAX: Duration = Duration::from_secs(5);

/// What lets streams begin and makes them end.
#[derive(Clone)]
pub(super) struct Streams {
    seats: Arc<Semaphore>,
    phase: watch::Receiver<Phase>,
    open: Gauge,
    stall_max: Duration,
}

/// What is left out of a message at the moment at which it is taken.
type Revise<T> = Box<dyn FnOnce(&mut T) + Send>;

/// A message. A reader may ask long before it takes: an encoder asks for the next as it hands on the last.
struct Parcel<T> {
    message: Result<T, Status>,
    revise: Option<Revise<T>>,
}

/// Where a stream's work puts its messages.
pub(super) struct Outlet<T> {
    sender: mpsc::Sender<Parcel<T>>,
    asked: Arc<Notify>,
    stall_max: Duration,
}

/// The reader waits: one message can be handed over.
pub(super) struct Turn<'a, T>(&'a Outlet<T>);

/// What the connection reads.
pub(super) struct Messages<T> {
    inbox: mpsc::Receiver<Parcel<T>>,
    asked: Arc<Notify>,
    has_asked: bool,
    has_ended: bool,
}

impl Streams {
    /// `open` counts those that are.
    pub fn new(most: usize, phase: watch::Receiver<Phase>, open: Gauge) -> Self {
        Self { seats: Arc::new(Semaphore::new(most)), phase, open, stall_max: STALL_MAX }
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
        let seat =
            seat.map_err(|_| busy("too_many_streams", "too many streams are open; try again later"))?;
        let (sender, inbox) = mpsc::channel(1);
        let asked = Arc::new(Notify::new());
        let work =
            work(Outlet { sender: sender.clone(), asked: Arc::clone(&asked), stall_max: self.stall_max });
        let seat = (seat, self.open.enter());
        tokio::spawn(drive(work, sender, deadline, self.phase.clone(), seat));
        Ok(Messages { inbox, asked, has_asked: false, has_ended: false })
    }
}

async fn drive<T, G>(
    work: impl Future<Output = Result<Infallible, Status>>,
    sender: mpsc::Sender<Parcel<T>>,
    deadline: Deadline,
    mut phase: watch::Receiver<Phase>,
    seat: (OwnedSemaphorePermit, G),
) {
    let end = {
        let work = std::pin::pin!(work);
        tokio::select! {
            biased;
            () = sender.closed() => return,
            _ = phase.wait_for(|phase| *phase != Phase::Serving) => draining(),
            () = deadline.passed() => Status::deadline_exceeded("the deadline of the call has passed"),
            Err(end) = work => end,
        }
    };
    drop(seat);
    let _ = sender.send_timeout(Parcel { message: Err(end), revise: None }, END_MAX).await;
}

pub(super) fn draining() -> Status {
    status(Code::Unavailable, "draining", "the server is shutting down")
}

impl<T> Outlet<T> {
    /// Waits until the reader asks for a message.
    pub async fn turn(&self) -> Result<Turn<'_, T>, Status> {
        match tokio::time::timeout(self.stall_max, self.asked.notified()).await {
            Ok(()) => Ok(Turn(self)),
            Err(_) => Err(busy("slow_reader", "the stream was read too slowly")),
        }
    }

    /// Hands over a message when the reader asks for it.
    pub async fn send(&self, message: T) -> Result<(), Status> {
        self.turn().await?.give(message).await
    }
}

impl<T> Turn<'_, T> {
    pub async fn give(self, message: T) -> Result<(), Status> {
        self.hand(Parcel { message: Ok(message), revise: None }).await
    }

    /// As `give`; `revise` has the last word when the reader takes the message.
    pub async fn give_revised(self, message: T, revise: Revise<T>) -> Result<(), Status> {
        self.hand(Parcel { message: Ok(message), revise: Some(revise) }).await
    }

    async fn hand(self, parcel: Parcel<T>) -> Result<(), Status> {
        self.0.sender.send(parcel).await.map_err(|_| Status::cancelled("the reader has left"))
    }
}

impl<T> Stream for Messages<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Poll::Ready(parcel) = self.inbox.poll_recv(cx) else {
            if !self.has_asked {
                self.has_asked = true;
                self.asked.notify_one();
            }
            return Poll::Pending;
        };
        self.has_asked = false;
        let message = parcel.map(|Parcel { mut message, revise }| {
            if let (Ok(message), Some(revise)) = (&mut message, revise) {
                revise(message);
            }
            message
        });
        let is_lost = message.is_none() && !self.has_ended;
        self.has_ended |= matches!(message, None | Some(Err(_)));
        let lost = || Err(status(Code::Internal, "internal", "the stream broke off"));
        Poll::Ready(if is_lost { Some(lost()) } else { message })
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    fn streams() -> (Streams, watch::Sender<Phase>) {
        let (phase, follow) = watch::channel(Phase::Serving);
        (Streams::new(1, follow, Gauge::default()), phase)
    }

    async fn next<T>(messages: &mut Messages<T>) -> Option<Result<T, Status>> {
        poll_fn(|cx| Pin::new(&mut *messages).poll_next(cx)).await
    }

    #[tokio::test]
    async fn a_message_is_made_when_it_is_asked_for() {
        let (streams, _phase) = streams();
        let (makes, mut made) = mpsc::unbounded_channel();
        let work = |out: Outlet<u32>| async move {
            for n in 0.. {
                let turn = out.turn().await?;
                let _ = makes.send(n);
                turn.give(n).await?;
            }
            unreachable!()
        };
        let mut messages = streams.begin(Deadline::default(), work).unwrap();
        tokio::task::yield_now().await;
        assert!(made.try_recv().is_err(), "nothing is made for a reader that does not read");
        assert_eq!(next(&mut messages).await.unwrap().unwrap(), 0);
        assert_eq!(made.try_recv().unwrap(), 0);
        tokio::task::yield_now().await;
        assert!(made.try_recv().is_err(), "nor ahead of one that does");
        assert_eq!(next(&mut messages).await.unwrap().unwrap(), 1);
    }

    #[tokio::test]
    async fn a_reader_that_stalls_loses_its_seat_without_reading_the_end() {
        let (streams, _phase) = streams();
        let streams = Streams { stall_max: Duration::from_millis(1), ..streams };
        let forever = |out: Outlet<u32>| async move {
            loop {
                out.send(1).await?;
            }
        };
        let mut stalled = streams.begin(Deadline::default(), forever).unwrap();
        assert!(streams.begin(Deadline::default(), forever).is_err());
        let mut fresh = loop {
            if let Ok(messages) = streams.begin(Deadline::default(), forever) {
                break messages;
            }
            tokio::task::yield_now().await;
        };
        assert!(next(&mut fresh).await.is_some());
        assert_eq!(next(&mut stalled).await.unwrap().unwrap_err().code(), Code::ResourceExhausted);
    }

    #[tokio::test]
    async fn a_message_is_revised_when_it_is_taken() {
        let (streams, phase) = streams();
        let work = |out: Outlet<u32>| async move {
            out.turn().await?.give_revised(1, Box::new(|n| *n += 1)).await?;
            std::future::pending().await
        };
        let mut messages = streams.begin(Deadline::default(), work).unwrap();
        assert_eq!(next(&mut messages).await.unwrap().unwrap(), 2);
        phase.send_replace(Phase::Draining);
        assert_eq!(next(&mut messages).await.unwrap().unwrap_err().code(), Code::Unavailable);
    }
}
