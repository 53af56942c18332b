//! Connections and the graceful end, as the HTTP server has them, over HTTP/2.
//!
//! On the shutdown signal streams end with `draining`, calls finish, connections close; what is left at the
//! deadline is cut. A reader that does not take the end of its stream holds nobody up: once no call is open,
//! streams have a second.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::door::{Open, router};
use crate::api::App;
use crate::api::Drained;
use crate::api::serve::{Phase, accept, follow_phase};

/// Connections: routers, brokers, probes.
const CONNECTIONS_MAX: usize = 256;
/// Calls and streams of one connection.
const STREAMS_MAX: u32 = 128;
/// What is encoded and not yet sent, of one stream.
const SEND_BYTES_MAX: usize = 64 << 10;
/// A peer that answers no ping for this long after one is gone.
const PING: Duration = Duration::from_secs(20);
/// For streams to be taken to their end.
const GRACE: Duration = Duration::from_secs(1);

/// Serves `quire.v1` until `shutdown` resolves, then drains. Dropping the future cuts everything at once.
pub async fn serve(
    listener: TcpListener,
    app: App,
    shutdown: impl Future<Output = ()>,
) -> io::Result<Drained> {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let (phase, _) = watch::channel(Phase::Serving);
    let open = Open::new();
    let router = router(app.clone(), phase.subscribe(), open.clone()).map_err(io::Error::other)?;
    let service = TowerToHyperService::new(router);
    let patience = app.config().read_timeout;
    let begin = |stream, slot| {
        tokio::spawn(connection(stream, service.clone(), phase.subscribe(), slot, patience));
    };
    accept(listener, &slots, shutdown, begin).await;
    Ok(drain(&app, &phase, &slots, &open).await)
}

async fn drain(app: &App, phase: &watch::Sender<Phase>, slots: &Semaphore, open: &Open) -> Drained {
    let before = open.count();
    phase.send_replace(Phase::Draining);
    let all = CONNECTIONS_MAX as u32;
    let closed = async {
        open.none().await;
        let _ = tokio::time::timeout(GRACE, slots.acquire_many(all)).await;
    };
    let in_time = tokio::time::timeout(app.config().drain, closed).await.is_ok();
    let cut = if in_time { 0 } else { open.count() };
    phase.send_replace(Phase::Cut);
    let _ = slots.acquire_many(all).await;
    Drained { finished: before.saturating_sub(cut), cut }
}

async fn connection(
    stream: TcpStream,
    service: TowerToHyperService<axum::Router>,
    phase: watch::Receiver<Phase>,
    _slot: OwnedSemaphorePermit,
    patience: Duration,
) {
    let _ = stream.set_nodelay(true);
    // One that says nothing at all; pings find those that fall silent later.
    if !matches!(tokio::time::timeout(patience, stream.readable()).await, Ok(Ok(()))) {
        return;
    }
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .max_concurrent_streams(STREAMS_MAX)
        .max_send_buf_size(SEND_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    follow_phase(pin!(connection), phase, |connection| connection.graceful_shutdown()).await;
}
