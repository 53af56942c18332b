//! A fleet under virtual time: clients, routers, a network, replicas, and what goes wrong with them.
//!
//! ```text
//!   clients ──ask──▶ router ──submit──▶ replica ─┐ plan, finish: a step
//!      ▲               ▲  ▲ └─gossip─▶ router    │
//!      └────ended──────┘  └──heard, stream───────┘      each arrow: the network, with delay, loss and cuts
//! ```
//!
//! One thread, one queue, one seed: a run is a function of its [`FleetConfig`] and its trace, and [`RunEnd::hash`]
//! says which run it was. The routers are the product's own state machines ([`router::RouterNode`]), the replicas'
//! pages its own cache. What must hold is in [`laws`].

pub mod clients;
mod control;
pub mod fault;
mod hear;
pub mod laws;
pub mod message;
pub mod names;
pub mod net;
pub mod place;
pub mod router;
mod serve;
pub mod tally;
mod world;

use std::time::Duration;

use base::Nanos;

use crate::journal::Verbosity;
use crate::replica::ReplicaConfig;
use crate::trace::Trace;
use fault::Plan;
use laws::{Violation, Watch};
use net::NetConfig;
use router::RouterConfig;
use tally::{Slo, Tally};

/// Everything that decides a run, but for the trace.
#[derive(Clone, Debug)]
pub struct FleetConfig {
    pub seed: u64,
    pub replicas: Vec<ReplicaConfig>,
    pub routers: usize,
    pub router: RouterConfig,
    pub net: NetConfig,
    /// After this the network loses nothing any more.
    pub lossy_until: Nanos,
    pub plan: Plan,
    pub watch: Watch,
    pub verbosity: Verbosity,
    pub slo: Slo,
    /// Clients that go away before they are answered.
    pub hangups_permille: u64,
    /// How long after the last fault and the last answer everything must be in order.
    pub settle: Duration,
}

impl FleetConfig {
    /// One router, a near network, no faults, watched by its ends alone.
    pub fn new(seed: u64, replicas: usize, replica: ReplicaConfig, router: RouterConfig) -> Self {
        Self {
            seed,
            replicas: vec![replica; replicas],
            routers: 1,
            router,
            net: NetConfig::near(),
            lossy_until: Nanos(0),
            plan: Plan::new(),
            watch: Watch::Ends,
            verbosity: Verbosity::Hash,
            slo: Slo::default(),
            hangups_permille: 0,
            settle: Duration::from_secs(2),
        }
    }
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct RunEnd {
    /// Of everything that happened: equal for equal runs only.
    pub hash: u64,
    pub events: u64,
    pub tally: Tally,
    /// Laws that were broken, in order; the first ones only.
    pub violations: Vec<Violation>,
    /// The last lines of the log, if they were kept.
    pub tail: Vec<String>,
}

/// Plays `trace` against a fleet.
pub fn run(config: FleetConfig, trace: &std::sync::Arc<Trace>) -> RunEnd {
    world::World::new(config, trace.clone()).run()
}
