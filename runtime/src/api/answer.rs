//! All choices of one request, driven together.
//!
//! One future polls every choice: no task per choice or token. Ready events are taken without
//! registering a waker until none is left, then what they brought goes out as one write. Under load a
//! slow client's tokens so gather by themselves; an idle stream sends each token at once.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use base::{Clock, Nanos};

use crate::api::choice::{Choice, Delta, End};
use crate::api::error::ApiError;
use crate::metrics::{Ending, ServerMetrics};

/// Where deltas go.
pub(crate) trait Sink {
    /// Takes what `delta` adds to `choice`.
    fn put(&mut self, choice: &Choice, delta: &mut Delta);
    /// Enough was put for one write.
    fn full(&self) -> bool;
    /// Something was put since the last flush, and the sink wants it to go out.
    fn waiting(&self) -> bool;
}

/// The choices and what their metrics need.
pub(crate) struct Answer {
    pub choices: Vec<Choice>,
    pub prompts: usize,
    pub prompt_tokens: usize,
    live: usize,
    delta: Delta,
    arrived: Nanos,
    clock: Arc<dyn Clock>,
    metrics: Arc<ServerMetrics>,
}

/// Token counts of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    pub prompt: usize,
    pub cached: usize,
    pub completion: usize,
}

impl Answer {
    pub fn new(
        choices: Vec<Choice>,
        prompts: &[usize],
        arrived: Nanos,
        clock: Arc<dyn Clock>,
        metrics: Arc<ServerMetrics>,
    ) -> Self {
        let live = choices.len();
        let prompt_tokens = prompts.iter().sum();
        let delta = Delta::default();
        Self { choices, prompts: prompts.len(), prompt_tokens, live, delta, arrived, clock, metrics }
    }

    pub fn ended(&self) -> bool {
        self.live == 0
    }

    /// Puts what is ready into `sink`. Ready when the sink has something to write or all has ended.
    pub fn advance(&mut self, cx: &mut Context<'_>, sink: &mut impl Sink) -> Poll<()> {
        loop {
            for index in 0..self.choices.len() {
                self.drain(index, sink);
            }
            if self.live == 0 || sink.waiting() {
                return Poll::Ready(());
            }
            if !self.poll_each(cx, sink) {
                return Poll::Pending;
            }
        }
    }

    /// Waits until the first choice has started; a refusal after admission becomes the answer.
    pub async fn started(&mut self, sink: &mut impl Sink) -> Result<(), ApiError> {
        let Some(running) = self.choices.first_mut().and_then(Choice::running) else { return Ok(()) };
        let event = running.next().await;
        self.apply(0, event, sink).map_or(Ok(()), Err)
    }

    pub fn usage(&self) -> Usage {
        let each = self.choices.len() / self.prompts.max(1);
        let firsts = self.choices.iter().step_by(each.max(1));
        Usage {
            prompt: self.prompt_tokens,
            cached: firsts.map(|choice| choice.cached as usize).sum(),
            completion: self.choices.iter().map(|choice| choice.counted() as usize).sum(),
        }
    }

    /// Takes what is ready for one choice.
    fn drain(&mut self, index: usize, sink: &mut impl Sink) {
        let before = self.choices[index].generated;
        while !sink.full() {
            let Some(event) = self.choices[index].running().and_then(|running| running.try_next()) else {
                break;
            };
            self.apply(index, Some(event), sink);
        }
        let tokens = self.choices[index].generated - before;
        if tokens > 0 {
            self.time(index, tokens);
        }
    }

    /// Registers for more; true if something was there after all.
    fn poll_each(&mut self, cx: &mut Context<'_>, sink: &mut impl Sink) -> bool {
        let mut progress = false;
        for index in 0..self.choices.len() {
            let Some(running) = self.choices[index].running() else { continue };
            if let Poll::Ready(event) = running.poll_next(cx) {
                let before = self.choices[index].generated;
                self.apply(index, event, sink);
                if self.choices[index].generated > before {
                    self.time(index, 1);
                }
                progress = true;
            }
        }
        progress
    }

    /// One event of one choice; gives back the failure if it was one.
    fn apply(
        &mut self,
        index: usize,
        event: Option<crate::request::Event>,
        sink: &mut impl Sink,
    ) -> Option<ApiError> {
        self.delta.clear();
        let choice = &mut self.choices[index];
        choice.apply(event, &mut self.delta);
        if self.delta.is_empty() {
            return None;
        }
        let end = self.delta.end.clone();
        sink.put(choice, &mut self.delta);
        let end = end?;
        self.live -= 1;
        let now = self.clock.now();
        let generated = u64::from(self.choices[index].counted());
        let ending = match &end {
            End::Stop => Ending::Stop,
            End::Length => Ending::Length,
            End::Failed(_) => Ending::Error,
        };
        let prompt = (self.prompt_tokens / self.prompts.max(1)) as u64;
        self.metrics.ended(ending, now.since(self.arrived), prompt, generated);
        match end {
            End::Failed(error) => Some(error),
            _ => None,
        }
    }

    /// `tokens` of a choice arrived together.
    fn time(&mut self, index: usize, tokens: u32) {
        let now = self.clock.now();
        let choice = &mut self.choices[index];
        let rest = match choice.seen.replace(now) {
            Some(seen) => Some((now.since(seen), tokens)),
            None => {
                let queued = Duration::from_nanos(choice.queued_ns);
                self.metrics.first_token(now.since(self.arrived), queued);
                None
            }
        };
        if let Some((elapsed, tokens)) = rest {
            self.metrics.tokens(elapsed / tokens, tokens);
        }
    }
}

/// Choices that did not end are aborted with the answer.
impl Drop for Answer {
    fn drop(&mut self) {
        let now = self.clock.now();
        for _ in 0..self.live {
            self.metrics.ended(Ending::Abort, now.since(self.arrived), 0, 0);
        }
    }
}
