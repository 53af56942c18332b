//! Taking a port, with an error that says what to do.

use std::net::{SocketAddr, TcpListener};

use crate::failure::{Exit, Failure};

/// Connections that wait to be accepted; the kernel caps it at its own `somaxconn`.
const BACKLOG: i32 = 4096;

/// Takes `port` on `host`; `flag` is the one that chose it.
pub fn listen(host: &str, port: u16, flag: &str) -> Result<TcpListener, Failure> {
    let listener = TcpListener::bind((host, port)).map_err(|e| {
        let failure = Failure::new(Exit::Address, format!("cannot listen on {host}:{port}: {}", plain(&e)));
        match e.kind() {
            std::io::ErrorKind::AddrInUse => failure.hint(format!(
                "another process has this port; choose one with {flag}, or {flag} 0 for a free one"
            )),
            std::io::ErrorKind::PermissionDenied => {
                failure.hint(format!("ports below 1024 need a privilege; use {flag}"))
            }
            _ => failure.hint("--host must be an address of this machine"),
        }
    })?;
    // std listens with room for 128; the 129th of a burst would wait a second for its next SYN.
    rustix::net::listen(&listener, BACKLOG).map_err(std::io::Error::from)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// `Address already in use`, without the number that the system calls it by.
pub fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

/// `http://127.0.0.1:8000`, with brackets where the address needs them.
pub fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}
