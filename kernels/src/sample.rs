//! Drawing a token from a row of logits: one pure function that every backend shares or must equal.
//!
//! A draw depends on (logits, parameters, history, seed, position) only, never on the batch, so the
//! same request gives the same tokens after a preemption and beside any neighbours.

use base::TokenId;

/// What a request asked for. Neutral values switch a filter off.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 = greedy.
    pub temperature: f32,
    /// 0 = off.
    pub top_k: u32,
    /// 1 = off.
    pub top_p: f32,
    /// 0 = off: keep tokens at least this fraction of the likeliest one's probability.
    pub min_p: f32,
    /// 1 = off; divides positive and multiplies negative logits of tokens seen in prompt or output.
    pub repetition_penalty: f32,
    /// 0 = off; subtracts per occurrence in the output.
    pub frequency_penalty: f32,
    /// 0 = off; subtracts once if the token is in the output.
    pub presence_penalty: f32,
    /// Added to logits.
    pub logit_bias: Vec<(TokenId, f32)>,
    pub seed: u64,
    /// Until this many tokens are generated, `stop_ids` cannot be drawn.
    pub min_tokens: u32,
    /// Tokens that end a sequence (EOS and `stop_token_ids`).
    pub stop_ids: Vec<TokenId>,
    /// `Some(k)`: report the drawn token's logprob and the `k` likeliest alternatives.
    pub logprobs: Option<u32>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            min_tokens: 0,
            stop_ids: Vec::new(),
            logprobs: None,
        }
    }
}

/// One row to draw for.
#[derive(Clone, Copy, Debug)]
pub struct SampleRow<'a> {
    pub params: &'a SamplingParams,
    pub history: &'a History,
    /// Position of the token to be drawn: the counter of the draw.
    pub position: u64,
    /// `Some(token)`: do not draw, report this token's logprob (prompt logprobs, echo).
    pub forced: Option<TokenId>,
}

/// The outcome for one row. Logprobs are of the raw distribution, before temperature and filters.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Sampled {
    pub token: TokenId,
    /// Present if asked for.
    pub logprob: Option<f32>,
    /// Rank of the token in the raw distribution, 1 = likeliest; present with `logprob`.
    pub rank: u32,
    /// The likeliest tokens, best first; ties by smaller id.
    pub top: Vec<(TokenId, f32)>,
}

/// Tokens seen so far, counted.
#[derive(Clone, Debug, Default)]
pub struct History {
    counts: std::collections::HashMap<TokenId, (bool, u32)>,
    generated: u32,
}
