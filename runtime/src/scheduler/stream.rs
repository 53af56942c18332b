//! One requested sequence as its client sees it: the tokens so far and the channel they go to. It
//! outlives preemptions; what it holds of the device meanwhile is a `Resident`.

use std::sync::Arc;

use base::{Nanos, Priority, RequestId, TokenId};
use kernels::Sampled;
use tokio::sync::mpsc::UnboundedSender;

use crate::request::{Event, Finish, Request};

/// A request on its way into the scheduler.
pub(crate) struct Submission {
    pub request: Request,
    pub sender: UnboundedSender<Event>,
    pub arrived: Nanos,
}

pub(crate) struct Stream {
    pub request: Request,
    /// Prompt, then every applied draw.
    pub tokens: Vec<TokenId>,
    sender: UnboundedSender<Event>,
    arrived: Nanos,
    order: u64,
    started: bool,
    /// Its pages in cold tiers have been asked for.
    pub is_promoted: bool,
    /// Logprobs of prompt tokens gathered so far; taken once complete.
    prompt_scores: Option<Vec<Sampled>>,
}

impl Stream {
    pub fn new(submission: Submission, order: u64) -> Self {
        let Submission { request, sender, arrived } = submission;
        let tokens = request.prompt.to_vec();
        let prompt_scores = request.prompt_logprobs.map(|_| Vec::new());
        Self { request, tokens, sender, arrived, order, started: false, is_promoted: false, prompt_scores }
    }

    pub fn id(&self) -> RequestId {
        self.request.id
    }

    /// Where it stands in the queue: smaller runs first.
    pub fn rank(&self) -> (Priority, u64) {
        (self.request.priority, self.order)
    }

    pub fn prompt_len(&self) -> usize {
        self.request.prompt.len()
    }

    pub fn generated(&self) -> u32 {
        (self.tokens.len() - self.prompt_len()) as u32
    }

    /// The first `n` tokens as a cache limit: at least one token is computed, so that there are logits.
    pub fn reusable(&self) -> &[TokenId] {
        let limit = if self.wants_prompt_scores() { 0 } else { self.tokens.len() - 1 };
        &self.tokens[..limit]
    }

    pub fn wants_prompt_scores(&self) -> bool {
        self.prompt_scores.is_some()
    }

    /// Says once that work has begun.
    pub fn start(&mut self, cached_tokens: u32, now: Nanos) {
        if !std::mem::replace(&mut self.started, true) {
            let queued_ns = now.since(self.arrived).as_nanos() as u64;
            self.send(Event::Started { cached_tokens, queued_ns });
        }
    }

    pub fn has_started(&self) -> bool {
        self.started
    }

    /// Nobody listens any more.
    pub fn is_abandoned(&self) -> bool {
        self.sender.is_closed()
    }

    /// Gathers prompt logprobs; sends them when the last prompt token's has come.
    pub fn add_prompt_scores(&mut self, scores: Vec<Sampled>) {
        let Some(gathered) = &mut self.prompt_scores else { return };
        gathered.extend(scores);
        if gathered.len() + 1 >= self.request.prompt.len()
            && let Some(all) = self.prompt_scores.take()
        {
            self.send(Event::Prompt(all));
        }
    }

    /// A preemption before the prompt's scores were complete: they are gathered anew.
    pub fn forget_prompt_scores(&mut self) {
        if let Some(gathered) = &mut self.prompt_scores {
            gathered.clear();
        }
    }

    /// Takes a drawn token; answers how the sequence ends if it ends here.
    pub fn push(&mut self, drawn: Sampled, positions_max: u32) -> Option<Finish> {
        let token = drawn.token;
        self.tokens.push(token);
        self.send(Event::Token(drawn));
        if self.request.params.stop_ids.contains(&token) {
            return Some(Finish::Stop(token));
        }
        let full = self.tokens.len() as u32 >= positions_max;
        (full || self.generated() >= self.request.max_tokens).then_some(Finish::Length)
    }

    pub fn send(&self, event: Event) {
        // A client that left is noticed by `is_abandoned`.
        let _ = self.sender.send(event);
    }

    pub fn generated_tokens(&self) -> Vec<TokenId> {
        self.tokens[self.prompt_len()..].to_vec()
    }

    pub fn prompt(&self) -> Arc<[TokenId]> {
        Arc::clone(&self.request.prompt)
    }
}
