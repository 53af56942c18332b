//! Logs go to standard error; standard output belongs to what was asked for.

use std::io::IsTerminal;
use std::panic::PanicHookInfo;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::flags::{LogFlags, LogFormat};

/// Starts logging; call once, before any thread.
pub fn start(flags: &LogFlags) {
    // The level was parsed with the flags, so the fallback is never taken.
    let filter = EnvFilter::try_new(&flags.log_level).unwrap_or_default();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(BoxMakeWriter::new(std::io::stderr));
    let set = match flags.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    debug_assert!(set.is_ok(), "logging is started once");
    std::panic::set_hook(Box::new(log_panic));
}

/// A panic is one ERROR line: who, where, what. The engine catches those of a step and goes on.
fn log_panic(info: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let place = info.location().map(|l| format!("{}:{}", l.file(), l.line())).unwrap_or_default();
    let payload = info.payload();
    let message = payload.downcast_ref::<&str>().copied();
    let message = message.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let message = message.unwrap_or("(no message)");
    tracing::error!(thread = thread.name().unwrap_or("?"), place, message, "panic");
}
