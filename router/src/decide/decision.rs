//! A decision as a value: who, what each would have cost, and why. Logged, metered, answered by the debug
//! endpoint and compared by the replay, all from this one form.

use serde::{Deserialize, Serialize};

use crate::{Held, Seat};

/// Where a request goes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Decision {
    pub chosen: Seat,
    /// Of every replica that could have served, in the order of the views.
    pub scores: Vec<Score>,
    pub why: Why,
}

impl Decision {
    /// The chosen replica's score.
    pub fn score(&self) -> &Score {
        self.scores.iter().find(|s| s.seat == self.chosen).expect("the chosen replica has a score")
    }
}

/// What a request would cost on one replica, in predicted milliseconds.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Score {
    pub seat: Seat,
    pub held: Held,
    /// Prompt tokens that would have to be computed. What to reserve.
    pub uncached_tokens: u32,
    /// Computing them.
    pub prefill_ms: f64,
    /// Bringing blocks from farther tiers, where that beats computing them.
    pub restore_ms: f64,
    /// Prefills that were promised to this replica before.
    pub queue_ms: f64,
    /// Decoding: what it slows down, weighed by whether the target for inter-token latency is still met.
    pub decode_ms: f64,
    /// The rest: adapter, memory pressure, recent work; less what others will have of the prefill, and less what the
    /// session's last replica is preferred by.
    pub other_ms: f64,
    pub total_ms: f64,
}

impl Score {
    /// The time to the first token that this predicts.
    pub fn ttft_ms(&self) -> f64 {
        self.prefill_ms + self.restore_ms + self.queue_ms
    }
}

/// What settled it.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "rule")]
pub enum Why {
    /// No other could serve.
    Only,
    /// Cheapest, by this much.
    Cheapest { margin_ms: f64 },
    /// Several cost the same; the seed chose.
    Tie { among: u32 },
    /// Its turn.
    Turn,
    /// Fewest active requests.
    LeastLoaded,
    /// The seed alone.
    Random,
    /// The prefix's place on the ring of replicas.
    Prefix,
}

/// Nobody can serve; the counts say why. A replica is counted once, for the first reason that holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, thiserror::Error)]
#[error(
    "no replica can serve: {excluded} excluded, {not_ready} not ready, {wrong_role} in another role, \
     {no_adapter} without the adapter, {too_small} too small"
)]
pub struct NoReplica {
    pub excluded: u32,
    pub not_ready: u32,
    pub wrong_role: u32,
    pub no_adapter: u32,
    /// The prompt alone exceeds their device.
    pub too_small: u32,
}

impl NoReplica {
    /// The metric's label: the reason of most replicas.
    pub fn kind(&self) -> &'static str {
        let counts = [
            (self.not_ready, "not_ready"),
            (self.excluded, "excluded"),
            (self.too_small, "too_small"),
            (self.no_adapter, "no_adapter"),
            (self.wrong_role, "wrong_role"),
        ];
        // The first of equals, and `max_by_key` gives the last.
        let most = counts.into_iter().rev().max_by_key(|(n, _)| *n);
        most.filter(|(n, _)| *n > 0).map_or("no_replicas", |(_, kind)| kind)
    }
}
