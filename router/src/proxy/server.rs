//! The router's HTTP server: connections, and the drain.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use web::{Drained, Phase, accept, follow_phase};

use super::router::Router;

/// For cut connections to end.
const GRACE: Duration = Duration::from_secs(1);

/// Serves until `shutdown` resolves, then drains. Dropping the future cuts everything at once.
pub async fn serve(
    listener: TcpListener,
    router: Arc<Router>,
    shutdown: impl Future<Output = ()>,
) -> io::Result<Drained> {
    let connections_max = router.config.connections_max.clamp(1, 1 << 20);
    let slots = Arc::new(Semaphore::new(connections_max));
    let (phase, _) = watch::channel(Phase::Serving);
    let begin = |stream, slot| {
        tokio::spawn(connection(stream, Arc::clone(&router), phase.subscribe(), slot));
    };
    accept(listener, &slots, shutdown, begin).await;
    Ok(drain(&router, &phase, &slots, connections_max as u32).await)
}

async fn drain(router: &Router, phase: &watch::Sender<Phase>, slots: &Semaphore, all: u32) -> Drained {
    let open = router.open();
    tracing::info!(open, deadline_s = router.config.drain.as_secs_f64(), "draining");
    router.drain();
    phase.send_replace(Phase::Draining);
    let closed = slots.acquire_many(all);
    let in_time = tokio::time::timeout(router.config.drain, closed).await.is_ok();
    let cut = if in_time { 0 } else { router.open() };
    phase.send_replace(Phase::Cut);
    let _ = tokio::time::timeout(GRACE, slots.acquire_many(all)).await;
    Drained { finished: open.saturating_sub(cut), cut }
}

async fn connection(
    stream: TcpStream,
    router: Arc<Router>,
    phase: watch::Receiver<Phase>,
    _slot: OwnedSemaphorePermit,
) {
    // Tokens are small writes that must not wait for each other.
    let _ = stream.set_nodelay(true);
    let read_timeout = router.config.read_timeout;
    let service = service_fn(move |request| {
        let router = Arc::clone(&router);
        async move { Ok::<_, Infallible>(router.answer(request).await) }
    });
    let connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(read_timeout)
            .serve_connection(TokioIo::new(stream), service)
    );
    follow_phase(connection, phase, |connection| connection.graceful_shutdown()).await;
}
