//! What every server's process does alike: speak to whoever started it, hear signals, end with a word.

use std::future::pending;
use std::io::Write;
use std::time::Duration;

use runtime::api::Drained;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::{Exit, Failure};

/// One line to whoever started the server; a closed pipe is their choice, not an error.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// The word at the first signal.
pub fn say_draining(signal: &str, drain: Duration) {
    say(&format!(
        "{signal}: no new requests; running ones have {} s, a second signal stops now",
        drain.as_secs()
    ));
}

/// The failure that a second signal means.
pub fn cut_by(signal: &str) -> Failure {
    Failure::new(Exit::Cut, format!("second signal ({signal}): running requests were cut"))
}

/// The last word.
pub fn finish(drained: Drained) -> Result<(), Failure> {
    let Drained { finished, cut } = drained;
    if cut > 0 {
        return Err(Failure::new(
            Exit::Cut,
            format!("stopped: {finished} requests finished, {cut} cut at the deadline"),
        )
        .hint("--shutdown-timeout gives them longer"));
    }
    say(&format!("stopped: {finished} running requests finished, none cut"));
    Ok(())
}

/// SIGTERM and SIGINT.
pub struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    pub async fn next(&mut self) -> &'static str {
        let name = tokio::select! {
            Some(()) = self.term.recv() => "SIGTERM",
            Some(()) = self.int.recv() => "SIGINT",
            else => "",
        };
        // Both streams ending means that no signal can come any more, not that one came.
        if name.is_empty() { pending().await } else { name }
    }
}
