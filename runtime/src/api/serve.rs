//! The accept loop and the graceful end.
//!
//! One task per connection, HTTP/1.1. On the shutdown signal the listener closes, idle connections are
//! closed, busy ones finish their answer and close; at the deadline the rest is cut and counted.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::api::app::App;
use crate::api::router::router;

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
pub(crate) enum Phase {
    Serving,
    Draining,
    Cut,
}

/// The runtime that this server is fastest on: one worker, since the scheduler and the executor want
/// the other cores, and a multi-thread runtime of one is woken from outside without a system call while
/// it is busy; the current-thread runtime is not.
pub fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("quire-http")
        .enable_all()
        .build()
}

/// Serves until `shutdown` resolves, then drains. Dropping the future cuts everything at once.
pub async fn serve(
    listener: TcpListener,
    app: App,
    shutdown: impl Future<Output = ()>,
) -> io::Result<Drained> {
    let connections_max = app.config().connections_max.clamp(1, Semaphore::MAX_PERMITS.min(1 << 20));
    let slots = Arc::new(Semaphore::new(connections_max));
    let (phase, _) = watch::channel(Phase::Serving);
    // Dropped with this future: connections then see the channel closed and end.
    let service = TowerToHyperService::new(router(app.clone()));
    let timeout = app.config().read_timeout;
    let begin = |stream, slot| {
        tokio::spawn(connection(stream, service.clone(), phase.subscribe(), slot, timeout));
    };
    accept(listener, &slots, shutdown, begin).await;
    Ok(drain(&app, &phase, &slots, connections_max as u32).await)
}

/// Hands connections to `begin`, each with a slot, until `shutdown` resolves; then closes the listener.
pub(crate) async fn accept(
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

async fn drain(app: &App, phase: &watch::Sender<Phase>, slots: &Arc<Semaphore>, all: u32) -> Drained {
    let open = app.open();
    tracing::info!(open, deadline_s = app.config().drain.as_secs_f64(), "draining");
    app.drain();
    phase.send_replace(Phase::Draining);
    let closed = slots.acquire_many(all);
    let in_time = tokio::time::timeout(app.config().drain, closed).await.is_ok();
    let cut = if in_time { 0 } else { app.open() };
    if cut > 0 {
        tracing::warn!(cut, "the drain deadline passed; open requests are cut");
    }
    phase.send_replace(Phase::Cut);
    // Cut connections end at their next poll; this only waits for that.
    let _ = slots.acquire_many(all).await;
    Drained { finished: open.saturating_sub(cut), cut }
}

async fn connection(
    stream: TcpStream,
    service: TowerToHyperService<axum::Router>,
    phase: watch::Receiver<Phase>,
    _slot: OwnedSemaphorePermit,
    read_timeout: Duration,
) {
    // Tokens are small writes that must not wait for each other.
    let _ = stream.set_nodelay(true);
    let connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(read_timeout)
            .writev(false)
            .serve_connection(TokioIo::new(stream), service)
    );
    follow_phase(connection, phase, |connection| connection.graceful_shutdown()).await;
}

/// Drives a connection to its end, or to the server's.
pub(crate) async fn follow_phase<C: Future>(
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
