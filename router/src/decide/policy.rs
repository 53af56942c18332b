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
    /// Of decoding's slowdown while the target is met.
    pub decode_below_target: f64,
    /// … and of what exceeds it.
    pub decode_above_target: f64,
    pub queue: f64,
    pub head: f64,
    pub interference: f64,
    pub recent: f64,
    /// Per active request: each is a chance that something is in the way.
    pub active_request_ms: f64,
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
            decode_below_target: 0.02,
            decode_above_target: 1.0,
            queue: 1.0,
            head: 1.0,
            interference: 0.0,
            recent: 0.0,
            active_request_ms: 2.5,
            stall: 0.1,
            eviction: 0.05,
            session_ms: 5.0,
            tie_ms: 1e-6,
        }
    }
}
