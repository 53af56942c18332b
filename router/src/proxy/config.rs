//! What the router is told at start.

use std::time::Duration;

use crate::decide::Policy;
use crate::proxy::upstream::Address;

/// Settings of one router.
#[derive(Clone, Debug)]
pub struct Config {
    /// Replicas, by address.
    pub replicas: Vec<Address>,
    pub policy: Policy,
    /// Keys of clients; empty: whoever reaches the port, and replicas see the client's own key.
    pub keys: Vec<String>,
    /// Keys that may look at and operate the router; empty: any key may.
    pub admin_keys: Vec<String>,
    /// For probes and events; and instead of a client's key, where the router has keys of its own.
    pub replica_key: Option<String>,
    /// To a replica.
    pub connect_timeout: Duration,
    /// From the first byte of a request to the last of its answer.
    pub request_timeout: Duration,
    /// Of a client that sends its head or body.
    pub read_timeout: Duration,
    pub health_interval: Duration,
    /// A probe without an answer for this long has failed.
    pub health_timeout: Duration,
    /// Probes in a row that must fail before a replica counts as gone.
    pub health_failures: u32,
    pub body_bytes_max: usize,
    pub connections_max: usize,
    /// For what runs when the router is told to stop.
    pub drain: Duration,
    /// Makes ties and names of text reproducible.
    pub seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            replicas: Vec::new(),
            policy: Policy::default(),
            keys: Vec::new(),
            admin_keys: Vec::new(),
            replica_key: None,
            connect_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(1800),
            read_timeout: Duration::from_secs(30),
            health_interval: Duration::from_millis(500),
            health_timeout: Duration::from_millis(1000),
            health_failures: 2,
            body_bytes_max: 16 << 20,
            connections_max: 16 << 10,
            drain: Duration::from_secs(30),
            seed: 0,
        }
    }
}
