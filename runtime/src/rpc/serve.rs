//! Connections and the graceful end, as the HTTP server has them, over HTTP/2.
//!
//! On the shutdown signal streams end with `draining`, calls finish, connections close; what is left at the
//! deadline is cut. Nobody who is silent holds that up: a connection that has said nothing ends at the signal, a call
//! whose request is still being read is not waited for, and a reader that does not take the end of its stream has a
//! second once no call is open.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::door::{Open, router};
use super::peers::{Calls, Idle, Peer, Peers};
use crate::api::App;
use crate::api::Drained;
use crate::metrics::Counted;
use web::{Phase, accept, follow_phase};

/// Calls and streams of one connection.
const STREAMS_MAX: u32 = 128;
/// What is encoded and not yet sent, of one stream.
const SEND_BYTES_MAX: usize = 64 << 10;
/// A peer that answers no ping for this long after one is gone.
const PING: Duration = Duration::from_secs(20);
/// For streams to be taken to their end, and for cut connections to end.
const GRACE: Duration = Duration::from_secs(1);
/// Connections without a call. Clients open theirs anew when they need it.
const IDLE: Idle = Idle { first: Duration::from_secs(30), between: Duration::from_secs(600) };

/// Serves `quire.v1` until `shutdown` resolves, then drains. Dropping the future cuts everything at once.
pub async fn serve(
    listener: TcpListener,
    app: App,
    shutdown: impl Future<Output = ()>,
) -> io::Result<Drained> {
    let connections_max = app.config().grpc_connections_max.clamp(1, 1 << 16);
    let slots = Arc::new(Semaphore::new(connections_max));
    let peers = Peers::new(connections_max.div_ceil(2));
    let (phase, _) = watch::channel(Phase::Serving);
    let open = Open::new();
    let router = router(app.clone(), phase.subscribe(), open.clone()).map_err(io::Error::other)?;
    let service = TowerToHyperService::new(router);
    let begin = |stream: TcpStream, slot| {
        // One whose peer has too many, or is gone already, is closed by being dropped.
        let peer = stream.peer_addr().ok().and_then(|address| peers.enter(address.ip()));
        if let Some(peer) = peer {
            let seat = Seat { _slot: slot, peer, _counted: app.metrics().rpc.connections.enter() };
            tokio::spawn(connection(stream, service.clone(), phase.subscribe(), seat));
        }
    };
    accept(listener, &slots, shutdown, begin).await;
    Ok(drain(&app, &phase, &slots, &open, connections_max as u32).await)
}

/// What a connection gives back when it ends.
struct Seat {
    _slot: OwnedSemaphorePermit,
    peer: Peer,
    _counted: Counted,
}

async fn drain(app: &App, phase: &watch::Sender<Phase>, slots: &Semaphore, open: &Open, all: u32) -> Drained {
    let before = open.count();
    phase.send_replace(Phase::Draining);
    let closed = async {
        open.none().await;
        let _ = tokio::time::timeout(GRACE, slots.acquire_many(all)).await;
    };
    let in_time = tokio::time::timeout(app.config().drain, closed).await.is_ok();
    let cut = if in_time { 0 } else { open.count() };
    phase.send_replace(Phase::Cut);
    // Cut connections end at their next poll; this only waits for that, and not for one that does not.
    let _ = tokio::time::timeout(GRACE, slots.acquire_many(all)).await;
    Drained { finished: before.saturating_sub(cut), cut }
}

async fn connection(
    stream: TcpStream,
    service: TowerToHyperService<axum::Router>,
    mut phase: watch::Receiver<Phase>,
    seat: Seat,
) {
    let _ = stream.set_nodelay(true);
    // One that says nothing at all costs a task and no more, and ends with the server.
    let spoken = tokio::select! {
        readable = tokio::time::timeout(IDLE.first, stream.readable()) => matches!(readable, Ok(Ok(()))),
        _ = phase.wait_for(|phase| *phase != Phase::Serving) => false,
    };
    if !spoken {
        return;
    }
    let calls = Calls::new();
    let (theirs, address) = (calls.clone(), seat.peer.address());
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(theirs.clone());
        request.extensions_mut().insert(address);
        hyper::service::Service::call(&service, request)
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .max_concurrent_streams(STREAMS_MAX)
        .max_send_buf_size(SEND_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    // Pings find those that fall silent in the midst of a call.
    let is_idle = tokio::select! {
        () = follow_phase(connection.as_mut(), phase, |connection| connection.graceful_shutdown()) => false,
        () = calls.idle(IDLE) => true,
    };
    if is_idle {
        connection.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(GRACE, connection).await;
    }
}
