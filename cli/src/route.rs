//! `quire route`: one address in front of many replicas.
//!
//! It serves as soon as it has its port: requests that come before the first replica has been reached are told so
//! (503), and `ready` is said when one is. Nothing is loaded, so there is nothing else to wait for.

use std::sync::Arc;
use std::time::Duration;

use base::{Clock, SystemClock};
use router::picker;
use router::proxy::{Config, Router, serve};
use runtime::api::Drained;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::failure::Failure;
use crate::flags::RouteFlags;
use crate::listen::{listen, url};
use crate::process::{Signals, cut_by, finish, say, say_draining};
use crate::version;

pub const EXAMPLES: &str = "\
Examples:
  quire route http://127.0.0.1:8001 http://127.0.0.1:8002
  quire route 10.0.0.7:8000 10.0.0.8:8000 --host 0.0.0.0 --api-key-file /run/secrets/keys
  curl -s http://127.0.0.1:8080/debug/replicas

Clients point their OpenAI or Anthropic base URL here. `x-quire-class` (interactive, standard,
batch) and `x-quire-deadline-ms` say how a request is to be served; `x-quire-overflow` on a refusal
says that another place may have room. POST /debug/route with a request's body answers where it
would go, and why.

Shutdown: the first SIGTERM or SIGINT refuses new requests and lets running ones finish
(--shutdown-timeout); the second stops now.";

/// How often the start looks whether a replica is there.
const LOOK: Duration = Duration::from_millis(20);

pub fn run(flags: &RouteFlags) -> Result<(), Failure> {
    say(&format!("quire {}", version::SHORT));
    let config = flags.meant()?;
    let listener = listen(&flags.host, flags.port, "--port")?;
    let picker = flags.picker_port.map(|port| listen(&flags.host, port, "--picker-port")).transpose()?;
    if flags.is_wide_open() {
        tracing::warn!(
            host = flags.host,
            "anyone who reaches this address can use the replicas: set --api-key"
        );
    }
    let runtime = web::runtime(usize::from(flags.threads))?;
    runtime.block_on(route(config, listener, picker))
}

async fn route(
    config: Config,
    listener: std::net::TcpListener,
    picker: Option<std::net::TcpListener>,
) -> Result<(), Failure> {
    let mut address = url(listener.local_addr()?);
    if let Some(picker) = &picker {
        address += &format!(" grpc://{}", picker.local_addr()?);
    }
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let drain = config.drain;
    say(&format!("policy:       {}", config.policy.name()));
    config.replicas.iter().for_each(|replica| say(&format!("replica:      {replica}")));
    let router =
        Router::new(config, clock, version::SHORT).map_err(|error| Failure::usage(error.to_string()))?;
    router.watch_replicas();
    let mut signals = Signals::new()?;
    let (stop, stopped) = watch::channel(false);
    let mut server = tokio::spawn(both(Arc::clone(&router), listener, picker, stopped));
    let ready = tokio::spawn(say_ready(Arc::clone(&router), address));
    let name = tokio::select! {
        name = signals.next() => name,
        ended = &mut server => {
            ended.map_err(|e| Failure::failed(format!("the router ended: {e}")))??;
            return Err(Failure::failed("the router ended by itself"));
        }
    };
    ready.abort();
    say_draining(name, drain);
    let _ = stop.send(true);
    tokio::select! {
        drained = &mut server => {
            finish(drained.map_err(|e| Failure::failed(format!("the router ended: {e}")))??)
        }
        name = signals.next() => {
            server.abort();
            Err(cut_by(name))
        }
    }
}

/// HTTP, and the picker if there is a port for it, until told to stop; then both drain.
async fn both(
    router: Arc<Router>,
    http: std::net::TcpListener,
    picker: Option<std::net::TcpListener>,
    stopped: watch::Receiver<bool>,
) -> std::io::Result<Drained> {
    let until = |mut stopped: watch::Receiver<bool>| async move {
        let _ = stopped.wait_for(|is_stopped| *is_stopped).await;
    };
    let http = serve(TcpListener::from_std(http)?, Arc::clone(&router), until(stopped.clone()));
    let Some(picker) = picker else { return http.await };
    let picker = picker::serve(TcpListener::from_std(picker)?, router, until(stopped));
    Ok(tokio::try_join!(http, picker)?.0)
}

/// Says when the first replica is there.
async fn say_ready(router: Arc<Router>, address: String) {
    while router.replicas_ready() == 0 {
        tokio::time::sleep(LOOK).await;
    }
    say(&format!("ready: {address}"));
}
