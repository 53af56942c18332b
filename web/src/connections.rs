//! Accepting connections, and their graceful end.
//!
//! One task per connection. On the shutdown signal the listener closes, idle connections are closed, busy ones
//! finish their answer and close; at the deadline the rest is cut.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Requests that were open at the signal and got their whole answer.
    pub finished: u64,
    /// Requests that were still open at the deadline and were cut.
    pub cut: u64,
}

/// What connections are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Serving,
    Draining,
    Cut,
}

/// A runtime for servers. For a replica one worker is fastest, since the scheduler and the executor want the
/// other cores; and a multi-thread runtime of one is woken from outside without a system call while it is
/// busy, which the current-thread runtime is not.
pub fn runtime(workers: usize) -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .thread_name("quire-http")
        .enable_all()
        .build()
}

/// Hands connections to `begin`, each with a slot, until `shutdown` resolves; then closes the listener.
pub async fn accept(
    listener: TcpListener,
    slots: &Arc<Semaphore>,
    shutdown: impl Future<Output = ()>,
    begin: impl Fn(TcpStream, OwnedSemaphorePermit),
) {
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = async {
            let slot = Arc::clone(slots).acquire_owned().await;
            (slot, listener.accept().await)
        };
        tokio::select! {
            biased;
            () = &mut shutdown => return,
            (slot, stream) = accepted => match (slot, stream) {
                (Ok(slot), Ok((stream, _))) => begin(stream, slot),
                (_, Err(error)) => rest_after(&error).await,
                (Err(_), _) => return,
            },
        }
    }
}

/// Out of descriptors or memory: accepting again at once would spin.
async fn rest_after(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
        return;
    }
    tracing::warn!(%error, "cannot accept connections");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// Drives a connection to its end, or to the server's.
pub async fn follow_phase<C: Future>(
    mut connection: Pin<&mut C>,
    mut phase: watch::Receiver<Phase>,
    finish: impl Fn(Pin<&mut C>),
) {
    loop {
        tokio::select! {
            biased;
            // Errors here are the client's doing (gone, or not speaking HTTP); hyper has answered.
            _ = connection.as_mut() => return,
            changed = phase.changed() => {
                let now = *phase.borrow_and_update();
                match (changed, now) {
                    (Ok(()), Phase::Serving) => {}
                    (Ok(()), Phase::Draining) => finish(connection.as_mut()),
                    (Ok(()), Phase::Cut) | (Err(_), _) => return,
                }
            }
        }
    }
}
