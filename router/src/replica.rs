//! One replica as the router reaches it: its connections, and the requests that are with it right now.
//!
//! Requests are kept by ticket so that a replica that is found dead lets go of all of them at once: those that
//! have sent nothing go elsewhere, the others end with an error that says so, and nobody waits for TCP to notice.

use std::collections::HashMap;
use std::sync::Mutex;

use tokio::sync::oneshot;

use crate::proxy::upstream::{Upstream, lock};
use crate::{Seat, Ticket};

/// See the file's head.
pub struct Replica {
    pub seat: Seat,
    pub upstream: Upstream,
    /// Dropped senders tell their requests.
    open: Mutex<HashMap<Ticket, oneshot::Sender<()>>>,
}

/// Resolves when the replica is lost.
pub type Lost = oneshot::Receiver<()>;

impl Replica {
    pub fn new(seat: Seat, upstream: Upstream) -> Self {
        Self { seat, upstream, open: Mutex::new(HashMap::new()) }
    }

    /// A request is about to be sent here.
    pub fn enter(&self, ticket: Ticket) -> Lost {
        let (sender, lost) = oneshot::channel();
        lock(&self.open).insert(ticket, sender);
        lost
    }

    /// A request is here no longer.
    pub fn leave(&self, ticket: Ticket) {
        lock(&self.open).remove(&ticket);
    }

    /// Lets go of all requests and connections.
    pub fn lose(&self) -> usize {
        self.upstream.forget();
        std::mem::take(&mut *lock(&self.open)).len()
    }

    /// Requests that are here now.
    pub fn open(&self) -> usize {
        lock(&self.open).len()
    }
}
