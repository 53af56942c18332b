//! `quire up` and `quire serve`: start, say ready, drain, end.
//!
//! ```text
//!  bind ─▶ answer 503 loading ─▶ load (own thread) ─▶ ready ─▶ first signal: drain ─▶ end
//!                                    │ signal: end at once        │ second signal or deadline: cut
//! ```
//!
//! What a person or a script waits for goes to standard output, line by line; logs go to standard error.

use std::path::Path;
use std::sync::Arc;

use base::{Clock, SystemClock};
use runtime::api::{App, Drained};
use runtime::events::EventHub;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

use crate::failure::{Exit, Failure};
use crate::flags::EngineFlags;
use crate::launch::{Launch, Replica, Source};
use crate::listen::url;
use crate::process::{Signals, cut_by, finish, say, say_draining};
use crate::version;

/// Serves until a signal; `model` is `None` for the demo.
pub fn run(model: Option<&Path>, flags: &EngineFlags) -> Result<(), Failure> {
    say(&format!("quire {}", version::SHORT));
    let launch = Launch::new(model, flags)?;
    let listener = launch.bind()?;
    let grpc = launch.bind_grpc()?;
    if launch.server.is_wide_open() {
        tracing::warn!(
            host = launch.server.host,
            "anyone who reaches this address can use it: set --api-key"
        );
    }
    let runtime = runtime::api::runtime()?;
    runtime.block_on(serve(launch, listener, grpc))
}

async fn serve(
    launch: Launch,
    listener: std::net::TcpListener,
    grpc: Option<std::net::TcpListener>,
) -> Result<(), Failure> {
    let address = listener.local_addr()?;
    let grpc_address = grpc.as_ref().map(std::net::TcpListener::local_addr).transpose()?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let mut signals = Signals::new()?;
    let app = App::loading(launch.server_config(), Arc::clone(&clock));
    let events = launch.publish_events(&clock).await?;
    events.iter().for_each(|hub| app.publish(hub.clone()));
    grpc_address.iter().for_each(|address| app.grpc_at(address.port()));
    let (stop, stopped) = watch::channel(false);
    let mut server = tokio::spawn(both(app.clone(), listener, grpc, stopped));
    say(&format!("loading:      {} at {} (503 until ready)", launch.source, url(address)));
    let is_demo = matches!(launch.source, Source::Demo);
    let drain = launch.server.drain;
    let mut loading = load(launch, events, &clock)?;
    let replica = tokio::select! {
        replica = &mut loading => replica.map_err(|_| Failure::failed("loading ended without a result"))??,
        name = signals.next() => {
            say(&format!("{name} while loading: stopped"));
            return Ok(());
        }
    };
    let engine = replica.engine.clone();
    app.sign_with(replica.signer);
    let thread = replica.thread;
    app.ready(replica.engine, replica.text);
    if is_demo {
        say_how_to_talk(&url(address));
    }
    let grpc_url = grpc_address.map(|address| format!(" grpc://{address}")).unwrap_or_default();
    say(&format!("ready: {}{grpc_url}", url(address)));
    let name = tokio::select! {
        name = signals.next() => name,
        reason = engine.lost() => {
            // Those who wait hear why; what was being copied to lower tiers gets there. Both are bounded.
            let _ = stop.send(true);
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
            let _ = server.await;
            return Err(lost(&reason));
        }
        ended = &mut server => {
            ended.map_err(|e| Failure::failed(format!("the server ended: {e}")))??;
            return Err(Failure::failed("the server ended by itself"));
        }
    };
    say_draining(name, drain);
    let _ = stop.send(true);
    let drained = tokio::select! {
        drained = &mut server => drained.map_err(|e| Failure::failed(format!("the server ended: {e}")))??,
        name = signals.next() => {
            server.abort();
            engine.stop();
            return Err(cut_by(name));
        }
    };
    engine.stop();
    // The engine ends once its pages are where they outlive it; bounded by itself.
    let _ = tokio::task::spawn_blocking(move || thread.join()).await;
    finish(drained)
}

/// HTTP, and gRPC if there is a port for it, until told to stop; then both drain.
async fn both(
    app: App,
    http: std::net::TcpListener,
    grpc: Option<std::net::TcpListener>,
    stopped: watch::Receiver<bool>,
) -> std::io::Result<Drained> {
    let until = |mut stopped: watch::Receiver<bool>| async move {
        let _ = stopped.wait_for(|is_stopped| *is_stopped).await;
    };
    let http = runtime::api::serve(TcpListener::from_std(http)?, app.clone(), until(stopped.clone()));
    let Some(grpc) = grpc else { return http.await };
    let grpc = runtime::rpc::serve(TcpListener::from_std(grpc)?, app, until(stopped));
    let (http, grpc) = tokio::try_join!(http, grpc)?;
    Ok(Drained { finished: http.finished + grpc.finished, cut: http.cut + grpc.cut })
}

fn lost(reason: &str) -> Failure {
    Failure::new(Exit::Lost, format!("the executor is lost: {reason}"))
        .hint("start the server again; a GPU that keeps failing shows in `nvidia-smi -q` and the kernel's log (Xid)")
}

/// Loads on a thread of its own: reading weights blocks, and `/health` must answer meanwhile.
fn load(
    launch: Launch,
    events: Option<EventHub>,
    clock: &Arc<dyn Clock>,
) -> Result<oneshot::Receiver<Result<Replica, Failure>>, Failure> {
    let (done, loaded) = oneshot::channel();
    let clock = Arc::clone(clock);
    base::spawn("load", move || {
        let _ = done.send(launch.start(events, &clock, &mut std::io::stdout()));
    })?;
    Ok(loaded)
}

fn say_how_to_talk(url: &str) {
    say("talk to it:   quire chat");
    say(&format!(
        "or:           curl -s {url}/v1/chat/completions -H 'content-type: application/json' \
         -d '{{\"model\":\"{}\",\"messages\":[{{\"role\":\"user\",\"content\":\"What is a page?\"}}]}}'",
        crate::demo::NAME
    ));
}
