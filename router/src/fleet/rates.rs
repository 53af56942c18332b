//! How fast one replica is, as numbers a decision can multiply.
//!
//! A handful of coefficients and not a table by batch and length: a prediction is made for every replica at
//! every request, and a model that is linear in its coefficients can be learned from a stream of samples
//! without keeping them. What such a model cannot say: steps in the hardware's speed (tile sizes, graph
//! buckets). Those come out as noise around the mean.

use base::Tier;
use serde::{Deserialize, Serialize};

/// A replica's speed. All finite and not negative, which [`Rates::check`] holds and the learner keeps.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Rates {
    /// Of a pass that prefills, whatever its length.
    pub prefill_fixed_ms: f64,
    pub prefill_ms_per_token: f64,
    /// Attention: per computed token and per token it looks back at.
    pub prefill_ms_per_token_context: f64,
    pub decode_fixed_ms: f64,
    pub decode_ms_per_sequence: f64,
    pub decode_ms_per_resident_token: f64,
    /// To bring one block to the device; zero for the device itself.
    pub restore_ms_per_block: [f64; Tier::ALL.len()],
    /// To bring one block from another replica's device.
    pub transfer_ms_per_block: f64,
    /// To make an adapter usable that is not loaded.
    pub adapter_load_ms: f64,
}

/// A mid-size model on one data-centre accelerator. Held only until the first samples.
impl Default for Rates {
    fn default() -> Self {
        Self {
            prefill_fixed_ms: 10.0,
            prefill_ms_per_token: 0.02,
            prefill_ms_per_token_context: 2e-7,
            decode_fixed_ms: 8.0,
            decode_ms_per_sequence: 0.02,
            decode_ms_per_resident_token: 2e-5,
            restore_ms_per_block: [0.0, 0.1, 0.5, 5.0],
            transfer_ms_per_block: 0.1,
            adapter_load_ms: 200.0,
        }
    }
}

impl Rates {
    /// Computing `tokens` that follow `before` tokens which need no computing.
    pub fn prefill_ms(&self, tokens: f64, before: f64) -> f64 {
        if tokens <= 0.0 {
            return 0.0;
        }
        self.prefill_fixed_ms + tokens * self.prefill_marginal_ms(tokens, before)
    }

    /// The same per token and without the pass itself: what a prefill adds to a queue.
    pub fn prefill_marginal_ms(&self, tokens: f64, before: f64) -> f64 {
        self.prefill_ms_per_token + self.prefill_ms_per_token_context * (before + tokens / 2.0)
    }

    /// One token for each of `sequences`, which look back at `resident_tokens` together.
    pub fn decode_step_ms(&self, sequences: f64, resident_tokens: f64) -> f64 {
        self.decode_fixed_ms + self.decode_growth_ms(sequences, resident_tokens)
    }

    /// What of that the sequences and their tokens cause.
    pub fn decode_growth_ms(&self, sequences: f64, resident_tokens: f64) -> f64 {
        self.decode_ms_per_sequence * sequences + self.decode_ms_per_resident_token * resident_tokens
    }

    /// The same for a replica that takes so many times as long.
    pub fn paced(mut self, prefill: f64, decode: f64) -> Self {
        self.prefill_fixed_ms *= prefill;
        self.prefill_ms_per_token *= prefill;
        self.prefill_ms_per_token_context *= prefill;
        self.decode_fixed_ms *= decode;
        self.decode_ms_per_sequence *= decode;
        self.decode_ms_per_resident_token *= decode;
        self
    }

    pub fn restore_ms(&self, tier: Tier, blocks: f64) -> f64 {
        self.restore_ms_per_block[tier.index()] * blocks
    }

    /// Every coefficient is a time.
    pub fn check(&self) -> Result<(), String> {
        let named = [
            ("prefill_fixed_ms", self.prefill_fixed_ms),
            ("prefill_ms_per_token", self.prefill_ms_per_token),
            ("prefill_ms_per_token_context", self.prefill_ms_per_token_context),
            ("decode_fixed_ms", self.decode_fixed_ms),
            ("decode_ms_per_sequence", self.decode_ms_per_sequence),
            ("decode_ms_per_resident_token", self.decode_ms_per_resident_token),
            ("transfer_ms_per_block", self.transfer_ms_per_block),
            ("adapter_load_ms", self.adapter_load_ms),
        ];
        let tiers = Tier::ALL.map(|t| (t.name(), self.restore_ms_per_block[t.index()]));
        match named.into_iter().chain(tiers).find(|(_, ms)| !(ms.is_finite() && *ms >= 0.0)) {
            Some((name, ms)) => Err(format!("{name} is {ms}")),
            None => Ok(()),
        }
    }
}
