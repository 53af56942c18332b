//! The ways to choose that the product offers and the replay compares.

use serde::{Deserialize, Serialize};

/// How a replica is chosen.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// The least predicted cost.
    KvAware(Weights),
    RoundRobin,
    /// Fewest active requests, then least pending prefill.
    LeastLoaded,
    Random,
    /// By the prompt's first block alone (rendezvous hashing): affinity without events.
    PrefixHash,
}

impl Default for Policy {
    fn default() -> Self {
        Policy::KvAware(Weights::default())
    }
}

impl Policy {
    pub const NAMES: [&'static str; 5] = ["kv-aware", "round-robin", "least-loaded", "random", "prefix-hash"];

    /// As the command line calls it.
    pub fn name(&self) -> &'static str {
        match self {
            Policy::KvAware(_) => Self::NAMES[0],
            Policy::RoundRobin => Self::NAMES[1],
            Policy::LeastLoaded => Self::NAMES[2],
            Policy::Random => Self::NAMES[3],
            Policy::PrefixHash => Self::NAMES[4],
        }
    }

    /// What scores are made with. The other policies' scores say what theirs would cost, and decide nothing.
    pub fn weights(&self) -> Weights {
        match self {
            Policy::KvAware(weights) => *weights,
            _ => Weights::default(),
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "kv-aware" => Policy::default(),
            "round-robin" => Policy::RoundRobin,
            "least-loaded" => Policy::LeastLoaded,
            "random" => Policy::Random,
            "prefix-hash" => Policy::PrefixHash,
            _ => return None,
        })
    }
}

/// What a millisecond of each kind counts. The first token's own time counts 1.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Weights {
    /// Inter-token latency that was promised. Below it, a slower step hardly counts.
    pub itl_target_ms: f64,
    /// Of decoding's slowdown while the target is met: this request's, that of those it joins, and what its prefill
    /// stalls. The exchange rate of first tokens and whole answers: raise it for throughput of answers.
    pub decode_below_target: f64,
    /// Of what exceeds the target.
    pub decode_above_target: f64,
    /// Of prefill given to a replica of late: work evens out even where nobody waits.
    pub recent: f64,
    /// Of what a prefill takes from those who decode beside it beyond the target. Weighs a pair against one replica.
    pub stall: f64,
    /// Of computing again what this request would push out of the cache.
    pub eviction: f64,
    /// What the session's last replica is preferred by.
    pub session_ms: f64,
    /// Scores this near to the least are ties.
    pub tie_ms: f64,
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            itl_target_ms: 50.0,
            decode_below_target: 0.04,
            decode_above_target: 1.0,
            recent: 0.01,
            stall: 0.1,
            eviction: 0.02,
            session_ms: 5.0,
            tie_ms: 1e-6,
        }
    }
}
