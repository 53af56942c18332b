//! What a client wants generated, checked, in the engine's terms; and what comes back.

use std::sync::Arc;

use base::{AdapterId, NamespaceId, Nanos, Priority, RequestId, TokenId};
use kernels::{Sampled, SamplingParams};
use sha2::{Digest, Sha256};

use crate::storage::Retention;

/// One sequence to generate. A request with `n` choices is `n` of these: the radix tree and in-flight
/// sharing make them compute their prompt once.
#[derive(Clone, Debug)]
pub struct Request {
    /// Unique per sequence; chosen by the caller through `Engine::next_id`.
    pub id: RequestId,
    pub tenant: Tenant,
    pub prompt: Arc<[TokenId]>,
    pub params: Arc<SamplingParams>,
    /// At least 1; prompt + this must fit `positions_max`.
    pub max_tokens: u32,
    /// Some: report logprobs of the prompt's tokens with this many alternatives.
    pub prompt_logprobs: Option<u32>,
    pub priority: Priority,
    /// Fails with `Refusal::Expired` if it has not started by then.
    pub deadline: Option<Nanos>,
}

/// Whose pages may be shared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tenant {
    pub namespace: NamespaceId,
    pub adapter: AdapterId,
    /// `cache_salt`.
    pub salt: Vec<u8>,
    pub retention: Retention,
}

impl Tenant {
    /// A salt of any length as a few bytes: it is cloned and hashed with every look at the queue.
    pub fn salt_of(typed: &[u8]) -> Vec<u8> {
        if typed.is_empty() { Vec::new() } else { Sha256::digest(typed).to_vec() }
    }
}

/// Why a request did not get in, or did not stay. Each has a stable `kind()` for metrics and bodies.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    #[error("the prompt has {tokens} tokens; with max_tokens {max_tokens} it exceeds the model's {limit}")]
    TooLong { tokens: usize, max_tokens: u32, limit: u32 },
    #[error("the prompt is empty")]
    EmptyPrompt,
    #[error("token {token} is outside the vocabulary of {vocab}")]
    BadToken { token: TokenId, vocab: u32 },
    #[error("the request needs {needed} KV pages, the pool has {pages}")]
    TooManyPages { needed: u32, pages: u32 },
    #[error("{running} requests are in flight, the limit is {limit}")]
    Overloaded { running: usize, limit: usize },
    #[error("the deadline passed before the request started")]
    Expired,
    #[error("the server is draining")]
    Draining,
    #[error("the cache of this request's namespace was purged while it ran")]
    Purged,
    #[error("the engine failed: {0}")]
    Engine(String),
}

impl Refusal {
    /// Stable label for metrics and error codes.
    pub fn kind(&self) -> &'static str {
        match self {
            Refusal::TooLong { .. } => "too_long",
            Refusal::EmptyPrompt => "empty_prompt",
            Refusal::BadToken { .. } => "bad_token",
            Refusal::TooManyPages { .. } => "too_many_pages",
            Refusal::Overloaded { .. } => "overloaded",
            Refusal::Expired => "expired_before_start",
            Refusal::Draining => "draining",
            Refusal::Purged => "purged",
            Refusal::Engine(_) => "engine",
        }
    }
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop token was drawn (it is the last token delivered).
    Stop(TokenId),
    /// `max_tokens` or the model's length.
    Length,
    /// The caller asked.
    Aborted,
}

/// What a caller hears of its sequence, in order: `Started`, `Prompt`?, `Token`*, then one of
/// `Finished` or `Failed`.
#[derive(Clone, Debug)]
pub enum Event {
    /// The first step with this sequence was planned.
    Started {
        cached_tokens: u32,
        queued_ns: u64,
    },
    /// Logprobs of prompt tokens 1.. (the first token has none); complete, once.
    Prompt(Vec<Sampled>),
    Token(Sampled),
    Finished(Finish),
    Failed(Refusal),
}

impl Request {
    /// What can be refused without asking the scheduler.
    pub(crate) fn check(&self, shape: &crate::executor::ExecutorShape) -> Result<(), Refusal> {
        if self.prompt.is_empty() {
            return Err(Refusal::EmptyPrompt);
        }
        if let Some(&token) = self.prompt.iter().find(|&&t| t >= shape.vocab) {
            return Err(Refusal::BadToken { token, vocab: shape.vocab });
        }
        let longest = self.prompt.len() as u64 + u64::from(self.max_tokens);
        if longest > u64::from(shape.positions_max) {
            return Err(Refusal::TooLong {
                tokens: self.prompt.len(),
                max_tokens: self.max_tokens,
                limit: shape.positions_max,
            });
        }
        let needed = (longest as u32).div_ceil(shape.page_tokens);
        if needed > shape.pages {
            return Err(Refusal::TooManyPages { needed, pages: shape.pages });
        }
        Ok(())
    }
}
