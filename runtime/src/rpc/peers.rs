//! Connections: whether one is in use, and how many a peer may have.
//!
//! Whoever reaches the port can open a connection without a key. So there is a bound for all, half of it for any
//! one address, and a connection on which no call is open is closed after a while: soon if there has been none at
//! all, which is also the deadline of the handshake.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

/// The calls of one connection.
#[derive(Clone)]
pub(super) struct Calls(Arc<watch::Sender<State>>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct State {
    open: u64,
    begun: u64,
}

/// One open call, until its answer has been sent or given up.
pub(super) struct Call(Calls);

/// How long a connection may stay without a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Idle {
    /// Before the first.
    pub first: Duration,
    /// Between two.
    pub between: Duration,
}

impl Calls {
    pub fn new() -> Self {
        Self(Arc::new(watch::channel(State::default()).0))
    }

    pub fn enter(&self) -> Call {
        self.0.send_modify(|state| {
            state.open += 1;
            state.begun += 1;
        });
        Call(self.clone())
    }

    /// Resolves when no call has been open for too long.
    pub async fn idle(&self, most: Idle) {
        let mut state = self.0.subscribe();
        loop {
            let now = *state.borrow_and_update();
            let patience = if now.begun == 0 { most.first } else { most.between };
            if now.open > 0 {
                let _ = state.changed().await;
            } else if tokio::time::timeout(patience, state.changed()).await.is_err() {
                return;
            }
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.0.send_modify(|state| state.open -= 1);
    }
}

/// Connections, or whatever else is bounded by address.
pub(super) struct Peers {
    open: Mutex<HashMap<IpAddr, usize>>,
    most: usize,
}

/// One of a peer's.
pub(super) struct Peer {
    peers: Arc<Peers>,
    address: IpAddr,
}

impl Peers {
    /// So many for each.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { open: Mutex::default(), most })
    }

    /// `None` if this one has too many.
    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Peer> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(address).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Peer { peers: Arc::clone(self), address })
    }
}

impl Peer {
    pub fn address(&self) -> IpAddr {
        self.address
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let mut open = self.peers.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_so_many_and_whoever_leaves_makes_room() {
        let peers = Peers::new(2);
        let (here, there) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let first = peers.enter(here).unwrap();
        let _second = peers.enter(here).unwrap();
        assert!(peers.enter(here).is_none());
        let other = peers.enter(there).unwrap();
        drop(first);
        assert!(peers.enter(here).is_some());
        drop(other);
        assert_eq!(peers.open.lock().unwrap().len(), 1, "nothing is kept of those who left");
    }

    #[tokio::test]
    async fn a_connection_is_idle_unless_a_call_is_open() {
        let calls = Calls::new();
        let most = Idle { first: Duration::ZERO, between: Duration::from_secs(3600) };
        calls.idle(most).await;
        let call = calls.enter();
        let idle = |calls: Calls, most| tokio::spawn(async move { calls.idle(most).await });
        let never = Idle { first: Duration::ZERO, between: Duration::ZERO };
        let waits = idle(calls.clone(), never);
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        drop(call);
        waits.await.unwrap();
    }
}
