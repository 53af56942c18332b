//! The HTTP server: its connections and its drain.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use web::{Drained, Phase, accept, follow_phase};

use crate::api::app::App;
use crate::api::router::router;

/// One worker: see [`web::runtime`].
pub fn runtime() -> io::Result<tokio::runtime::Runtime> {
    web::runtime(1)
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
