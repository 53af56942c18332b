//! One choice of an answer: a running sequence's events turned into text, logprobs and an end.
//!
//! The same code feeds streamed and whole answers, so the two cannot differ. Logprobs are held back with
//! the text they belong to: a stop string that is cut from the text does not leak through them.

use std::collections::VecDeque;
use std::sync::Arc;

use base::{Nanos, TokenId};
use kernels::{Sampled, SamplingParams};

use crate::api::error::ApiError;
use crate::engine::Running;
use crate::request::{Event, Finish, Refusal};
use crate::text::{Detokenizer, StopMatcher, StopText, Stopped};

/// What an event adds to a choice. Reused from event to event.
#[derive(Debug, Default)]
pub(crate) struct Delta {
    pub text: String,
    pub entries: Vec<Entry>,
    pub end: Option<End>,
}

impl Delta {
    pub fn clear(&mut self) {
        self.text.clear();
        self.entries.clear();
        self.end = None;
    }

    pub fn is_empty(&self) -> bool {
        self.text.is_empty() && self.entries.is_empty() && self.end.is_none()
    }
}

/// How a choice ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum End {
    Stop,
    Length,
    Failed(ApiError),
}

impl End {
    /// OpenAI's `finish_reason`.
    pub fn reason(&self) -> &'static str {
        match self {
            End::Stop => "stop",
            End::Length => "length",
            End::Failed(_) => "error",
        }
    }
}

/// A token with its logprobs.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub token: TokenId,
    /// None for the first token of a prompt.
    pub logprob: Option<f32>,
    pub top: Vec<(TokenId, f32)>,
    /// Characters of text before it.
    pub offset: usize,
}

/// What an echoed prompt looks like.
#[derive(Clone, Debug)]
pub(crate) struct Echo {
    pub text: String,
    pub tokens: Arc<[TokenId]>,
    /// Nothing is to follow the prompt (`max_tokens` 0).
    pub alone: bool,
}

/// What a choice is made of.
pub(crate) struct ChoiceStart {
    pub index: usize,
    pub running: Running,
    pub detokenizer: Detokenizer,
    pub stop: StopMatcher,
    pub stop_text: StopText,
    pub params: Arc<SamplingParams>,
    pub echo: Option<Echo>,
    pub prompt_logprobs: bool,
}

/// The state of one choice.
pub(crate) struct Choice {
    pub index: usize,
    /// Tokens drawn, the one that stopped it included.
    pub generated: u32,
    /// Prompt tokens that came from the cache.
    pub cached: u32,
    pub queued_ns: u64,
    /// When the last batch of tokens was seen; for latency metrics.
    pub seen: Option<Nanos>,
    /// Logprobs of the prompt, if asked for.
    pub prompt: Vec<Sampled>,
    running: Option<Running>,
    detokenizer: Detokenizer,
    stop: StopMatcher,
    stop_text: StopText,
    params: Arc<SamplingParams>,
    echo: Option<Echo>,
    prompt_logprobs: bool,
    mute: bool,
    /// Text of the current token.
    piece: String,
    /// Logprobs whose text is held back, with the byte of text at which they start.
    held: VecDeque<(usize, Entry)>,
    /// Bytes of text made so far, held ones included.
    bytes: usize,
    /// Characters of text made so far; counted only for logprobs.
    chars: usize,
}

impl Choice {
    pub fn new(start: ChoiceStart) -> Self {
        let mute = start.echo.as_ref().is_some_and(|echo| echo.alone);
        Self {
            index: start.index,
            generated: 0,
            cached: 0,
            queued_ns: 0,
            seen: None,
            prompt: Vec::new(),
            running: Some(start.running),
            detokenizer: start.detokenizer,
            stop: start.stop,
            stop_text: start.stop_text,
            params: start.params,
            echo: start.echo,
            prompt_logprobs: start.prompt_logprobs,
            mute,
            piece: String::new(),
            held: VecDeque::new(),
            bytes: 0,
            chars: 0,
        }
    }

    /// The sequence, while it runs.
    pub fn running(&mut self) -> Option<&mut Running> {
        self.running.as_mut()
    }

    /// Tokens that count as output.
    pub fn counted(&self) -> u32 {
        if self.mute { 0 } else { self.generated }
    }

    /// Puts into `delta` what `event` brings; `None` = the engine is gone.
    pub fn apply(&mut self, event: Option<Event>, delta: &mut Delta) {
        match event {
            Some(Event::Started { cached_tokens, queued_ns }) => {
                self.cached = cached_tokens;
                self.queued_ns = queued_ns;
                if !self.prompt_logprobs {
                    self.echo_prompt(delta);
                }
            }
            Some(Event::Prompt(scores)) => {
                self.prompt = scores;
                self.echo_prompt(delta);
            }
            Some(Event::Token(sampled)) => self.token(sampled, delta),
            Some(Event::Finished(Finish::Stop(_))) => self.finish(End::Stop, delta),
            Some(Event::Finished(Finish::Length)) => self.finish(End::Length, delta),
            Some(Event::Finished(Finish::Aborted)) => self.fail(Refusal::Engine("aborted".into()), delta),
            Some(Event::Failed(refusal)) => self.fail(refusal, delta),
            None => self.fail(Refusal::Engine("the scheduler has stopped".into()), delta),
        }
    }

    fn token(&mut self, sampled: Sampled, delta: &mut Delta) {
        self.generated += 1;
        if self.mute {
            return;
        }
        // The stop token itself shows only if stop texts are to show.
        let ends = self.params.stop_ids.contains(&sampled.token);
        if ends && self.stop_text == StopText::Exclude {
            return;
        }
        if self.stop.is_idle() && self.params.logprobs.is_none() {
            self.detokenizer.push(sampled.token, &mut delta.text);
            return;
        }
        self.piece.clear();
        self.detokenizer.push(sampled.token, &mut self.piece);
        if self.params.logprobs.is_some() {
            let entry = Entry {
                token: sampled.token,
                logprob: sampled.logprob,
                top: sampled.top,
                offset: self.chars,
            };
            self.held.push_back((self.bytes, entry));
        }
        self.chars += self.piece.chars().count();
        self.bytes += self.piece.len();
        let stopped = if self.generated < self.params.min_tokens {
            self.stop.pass(&self.piece, &mut delta.text);
            Stopped::No
        } else {
            self.stop.push(&self.piece, &mut delta.text)
        };
        match stopped {
            Stopped::No => self.release(self.bytes - self.stop.held().len(), delta),
            Stopped::At(_) => self.stop_here(delta),
        }
    }

    /// A stop string was found: the sequence is aborted, what follows in this token is dropped.
    fn stop_here(&mut self, delta: &mut Delta) {
        self.running = None;
        let dropped = self.stop.dropped();
        self.release(self.bytes.saturating_sub(dropped), delta);
        self.held.clear();
        delta.end = Some(End::Stop);
    }

    /// Lets go of the logprobs of all text before byte `shown`, or of all if nothing is held back.
    fn release(&mut self, shown: usize, delta: &mut Delta) {
        while let Some((start, _)) = self.held.front() {
            if *start >= shown && shown < self.bytes {
                return;
            }
            let entry = self.held.pop_front();
            delta.entries.extend(entry.map(|(_, entry)| entry));
        }
    }

    fn finish(&mut self, end: End, delta: &mut Delta) {
        if !self.mute {
            self.piece.clear();
            self.detokenizer.finish(&mut self.piece);
            self.stop.finish(&mut delta.text);
            delta.text.push_str(&self.piece);
            self.bytes += self.piece.len();
            self.release(self.bytes, delta);
        }
        // Already ended in the engine: dropping it aborts nothing.
        self.running = None;
        delta.end = Some(end);
    }

    fn fail(&mut self, refusal: Refusal, delta: &mut Delta) {
        self.running = None;
        delta.end = Some(End::Failed(refusal.into()));
    }

    fn echo_prompt(&mut self, delta: &mut Delta) {
        let Some(echo) = self.echo.take() else { return };
        self.chars = echo.text.chars().count();
        if self.params.logprobs.is_some() {
            let none = Sampled::default();
            let scores = std::iter::once(&none).chain(&self.prompt);
            let mut text = String::new();
            let mut offset = 0;
            for (token, score) in echo.tokens.iter().zip(scores) {
                let top = score.top.clone();
                delta.entries.push(Entry { token: *token, logprob: score.logprob, top, offset });
                text.clear();
                self.detokenizer.push(*token, &mut text);
                offset += text.chars().count();
            }
            self.detokenizer.finish(&mut text);
        }
        delta.text.push_str(&echo.text);
    }
}
