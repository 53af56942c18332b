//! What a run measured, from the clients' side where clients see it and from the replicas' where they do not.

use std::collections::BTreeMap;
use std::time::Duration;

use base::Nanos;

use crate::histogram::Histogram;

/// Latencies that were promised.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Slo {
    pub ttft: Duration,
    /// Mean gap between a request's tokens.
    pub itl: Duration,
}

impl Default for Slo {
    fn default() -> Self {
        Self { ttft: Duration::from_millis(500), itl: Duration::from_millis(50) }
    }
}

/// Of one replica, over all its processes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReplicaTally {
    pub computed_tokens: u64,
    pub generated_tokens: u64,
    pub query_tokens: u64,
    pub hit_tokens: u64,
    pub steps: u64,
    pub busy_ns: u64,
    pub preemptions: u64,
    pub finished: u64,
}

impl ReplicaTally {
    /// Tokens that it worked on.
    pub fn work(&self) -> u64 {
        self.computed_tokens + self.generated_tokens
    }
}

/// See the module's header.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub ttft: Histogram,
    pub itl: Histogram,
    pub e2e: Histogram,
    pub refusal: Histogram,
    pub ends: BTreeMap<&'static str, u64>,
    pub asked: u64,
    pub answered: u64,
    /// Answered within the SLO.
    pub good: u64,
    pub placed: u64,
    pub retried: u64,
    /// Tries that a client had to make again at another router.
    pub asked_again: u64,
    pub replicas: Vec<ReplicaTally>,
    /// Longest time that a replica did nothing while another had requests waiting.
    pub idle_while_waiting: Duration,
    /// Prompt tokens whose prefix some earlier call had.
    pub reusable_tokens: u64,
    pub answered_tokens: u64,
    pub first: Nanos,
    pub last: Nanos,
}

impl Tally {
    pub fn query_tokens(&self) -> u64 {
        self.replicas.iter().map(|of| of.query_tokens).sum()
    }

    pub fn hit_tokens(&self) -> u64 {
        self.replicas.iter().map(|of| of.hit_tokens).sum()
    }

    pub fn hit_rate(&self) -> f64 {
        self.hit_tokens() as f64 / self.query_tokens().max(1) as f64
    }

    /// The most work of a replica over the least.
    pub fn imbalance(&self) -> f64 {
        let work = || self.replicas.iter().map(ReplicaTally::work);
        work().max().unwrap_or(0) as f64 / work().min().unwrap_or(0).max(1) as f64
    }

    pub fn seconds(&self) -> f64 {
        self.last.since(self.first).as_secs_f64().max(1e-9)
    }

    /// Requests a second that met the SLO.
    pub fn goodput(&self) -> f64 {
        self.good as f64 / self.seconds()
    }

    /// Never started: refused or expired.
    pub fn refused(&self) -> u64 {
        self.ends.iter().filter(|(code, _)| is_refusal(code)).map(|(_, count)| count).sum()
    }

    /// Started, or meant to, and broken off.
    pub fn failed(&self) -> u64 {
        self.ends
            .iter()
            .filter(|(code, _)| **code != "answered" && !is_refusal(code))
            .map(|(_, count)| count)
            .sum()
    }
}

fn is_refusal(code: &str) -> bool {
    !matches!(code, "answered" | "replica_lost" | "replica_silent" | "router_lost" | "hung_up")
}
