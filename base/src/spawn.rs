//! Named threads only: a stack trace, `top -H` and a panic message then say who it was.

use std::io;
use std::thread::{Builder, JoinHandle};

/// Starts a thread called `quire-<name>` (Linux shows the first 15 bytes).
pub fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(format!("quire-{name}")).spawn(work)
}
