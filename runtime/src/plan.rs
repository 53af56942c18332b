//! What one step does, as a value: which tokens of which sequences, over which pages.
//!
//! No device types and no pointers, so that a plan can be logged, replayed and simulated. A plan may be
//! made while the step before it still runs; a decode row then has no token yet and says [`Input::Fed`]:
//! "the token this sequence drew last", which the executor kept.

use std::sync::Arc;

use base::{FrameId, PageId, SeqId, StepId, TokenId};
use kernels::{Sampled, SamplingParams};
use kvcache::{PageMove, Scrubbed};

/// One step of the engine.
#[derive(Clone, Debug, Default)]
pub struct StepPlan {
    pub id: StepId,
    /// Sequences the executor may forget before it starts (finished, aborted or preempted).
    pub retire: Vec<SeqId>,
    /// Sequences that appear in `work` for the first time since they were admitted.
    pub admit: Vec<SeqStart>,
    /// Pages copied or overwritten before the work, in order. A plan may consist of them alone.
    pub moves: Vec<PageMove>,
    /// At most one entry a sequence.
    pub work: Vec<Work>,
}

impl StepPlan {
    /// Rows (tokens) the step computes.
    pub fn tokens(&self) -> usize {
        self.work.iter().map(|w| w.input.len()).sum()
    }
}

/// One sequence's part of a step.
#[derive(Clone, Debug)]
pub struct Work {
    pub seq: SeqId,
    /// Position of the first token; the KV of all before it is in `pages`.
    pub start: u32,
    pub input: Input,
    /// The sequence's page table, long enough for the last token of `input`.
    pub pages: Arc<[PageId]>,
    pub output: Output,
}

/// Where the tokens come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    Tokens(Vec<TokenId>),
    /// One token: the one that this sequence drew in its last step.
    Fed,
}

impl Input {
    #[expect(clippy::len_without_is_empty, reason = "an input is never empty")]
    pub fn len(&self) -> usize {
        match self {
            Input::Tokens(t) => t.len(),
            Input::Fed => 1,
        }
    }
}

/// What to bring back.
#[derive(Clone, Debug)]
pub enum Output {
    /// A prefill chunk that is not the last: only KV is wanted.
    None,
    /// Draw the token that follows the last one of the input.
    Sample,
    /// As [`Output::Sample`] if `draw`, and for each position of the chunk the logprob of the token
    /// that follows it (`targets[i]` follows input token `i`; the last chunk of a prompt has one
    /// target fewer than tokens).
    Prompt { targets: Vec<TokenId>, draw: Draw },
}

/// Whether a prompt-logprobs chunk also draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draw {
    Yes,
    No,
}

/// What the executor must know of a sequence; sent with its first work after (re)admission.
#[derive(Clone, Debug)]
pub struct SeqStart {
    pub seq: SeqId,
    pub params: Arc<SamplingParams>,
    /// The prompt, for penalties.
    pub prompt: Arc<[TokenId]>,
    /// Alternatives to report beside each prompt token's logprob.
    pub prompt_logprobs: Option<u32>,
    /// Tokens drawn before a preemption, for penalties and `min_tokens`.
    pub generated: Vec<TokenId>,
}

/// What a step brought.
#[derive(Clone, Debug, Default)]
pub struct StepResult {
    pub id: StepId,
    /// In the order of the plan's work; one entry per work item.
    pub rows: Vec<RowResult>,
    pub moved: Moved,
    /// Time the executor spent, for the planner's time budget; without the moves.
    pub took_ns: u64,
}

/// What became of a step's moves.
#[derive(Clone, Debug, Default)]
pub struct Moved {
    /// Frames that could not be written.
    pub unsaved: Vec<FrameId>,
    pub scrubbed: Scrubbed,
    /// The first step whose restores are still on their way; `None`: all that was ordered is there.
    pub landing: Option<StepId>,
    /// Copied either way.
    pub bytes: u64,
    pub took_ns: u64,
}

/// One work item's outcome.
#[derive(Clone, Debug, Default)]
pub struct RowResult {
    pub seq: SeqId,
    pub sampled: Option<Sampled>,
    /// One per target of [`Output::Prompt`].
    pub prompt: Vec<Sampled>,
}
