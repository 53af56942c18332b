//! What a run adds up.

use std::collections::BTreeMap;
use std::time::Duration;

use base::Nanos;

use super::histogram::Histogram;

/// Different kinds of error that are counted apart.
const ERROR_KINDS_MAX: usize = 32;
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

/// What one answer held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub output_tokens: u64,
    /// Since the request was sent; `None` if not streamed.
    pub first: Option<Duration>,
    /// FNV-1a over the text as it stands in the JSON: enough to tell two runs apart, and nearly free.
    pub hash: u64,
}

impl Default for Answer {
    fn default() -> Self {
        Self { prompt_tokens: 0, cached_tokens: 0, output_tokens: 0, first: None, hash: FNV_OFFSET }
    }
}

impl Answer {
    pub fn hash_text(&mut self, text: &[u8]) {
        self.hash = fnv(self.hash, text);
    }

    /// Takes the counts out of a JSON object with `usage`; leaves them if there is none.
    pub fn read_usage(&mut self, json: &[u8]) {
        let json: serde_json::Value = serde_json::from_slice(json).unwrap_or_default();
        let usage = &json["usage"];
        let count = |value: &serde_json::Value| value.as_u64().unwrap_or(0);
        if usage.is_object() {
            self.prompt_tokens = count(&usage["prompt_tokens"]);
            self.output_tokens = count(&usage["completion_tokens"]);
            self.cached_tokens = count(&usage["prompt_tokens_details"]["cached_tokens"]);
        }
    }
}

/// Counts while a run goes on.
pub struct Tally {
    outcome: Outcome,
    hashes: Vec<u64>,
    /// Requests of an open loop that had to wait for another to end.
    pub held_back: u64,
}

/// What a run measured.
pub struct Outcome {
    pub succeeded: u64,
    pub errors: BTreeMap<String, u64>,
    pub held_back: u64,
    pub took: Duration,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub output_tokens: u64,
    /// Pieces of text that arrived; fewer than tokens where a server sends several at once.
    pub chunks: u64,
    /// To the first token of an answer.
    pub ttft: Histogram,
    /// Between two chunks of an answer, as its client sees them.
    pub itl: Histogram,
    /// (end − first token) / (tokens − 1), one a request.
    pub tpot: Histogram,
    pub e2e: Histogram,
    /// Over every answer's text, in the order of the requests.
    pub hash: u64,
}

impl Tally {
    pub fn new(requests: usize) -> Self {
        let outcome = Outcome {
            succeeded: 0,
            errors: BTreeMap::new(),
            held_back: 0,
            took: Duration::ZERO,
            prompt_tokens: 0,
            cached_tokens: 0,
            output_tokens: 0,
            chunks: 0,
            ttft: Histogram::new(),
            itl: Histogram::new(),
            tpot: Histogram::new(),
            e2e: Histogram::new(),
            hash: 0,
        };
        Self { outcome, hashes: vec![0; requests], held_back: 0 }
    }

    /// `count` chunks that arrived together: the first after a wait, the rest at once.
    pub fn chunks(&mut self, start: Nanos, last: Option<Nanos>, now: Nanos, count: u64) {
        self.outcome.chunks += count;
        match last {
            None => self.outcome.ttft.record(now.since(start)),
            Some(last) => self.outcome.itl.record(now.since(last)),
        }
        if count > 1 {
            self.outcome.itl.record_many(Duration::ZERO, count - 1);
        }
    }

    pub fn record(&mut self, index: usize, answer: Result<Answer, String>, took: Duration) {
        let outcome = &mut self.outcome;
        match answer {
            Ok(answer) => {
                outcome.succeeded += 1;
                outcome.prompt_tokens += answer.prompt_tokens;
                outcome.cached_tokens += answer.cached_tokens;
                outcome.output_tokens += answer.output_tokens;
                outcome.e2e.record(took);
                if let (Some(first), 2..) = (answer.first, answer.output_tokens) {
                    let rest = (answer.output_tokens - 1).min(u64::from(u32::MAX)) as u32;
                    outcome.tpot.record(took.saturating_sub(first) / rest);
                }
                if let Some(slot) = self.hashes.get_mut(index) {
                    *slot = answer.hash;
                }
            }
            Err(kind) => {
                let known = outcome.errors.contains_key(&kind);
                let kind =
                    if known || outcome.errors.len() < ERROR_KINDS_MAX { kind } else { "other".into() };
                *outcome.errors.entry(kind).or_default() += 1;
            }
        }
    }

    pub fn finish(self, took: Duration) -> Outcome {
        let hash = self.hashes.iter().fold(FNV_OFFSET, |hash, answer| fnv(hash, &answer.to_le_bytes()));
        Outcome { took, hash, held_back: self.held_back, ..self.outcome }
    }
}

fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &[u8]) -> Answer {
        let mut answer =
            Answer { output_tokens: 3, first: Some(Duration::from_millis(10)), ..Answer::default() };
        answer.hash_text(text);
        answer
    }

    #[test]
    fn the_hash_follows_the_requests_and_not_the_order_of_answers() {
        let run = |order: &[(usize, &[u8])]| {
            let mut tally = Tally::new(2);
            order.iter().for_each(|(i, text)| tally.record(*i, Ok(answer(text)), Duration::from_millis(30)));
            tally.finish(Duration::from_secs(1)).hash
        };
        assert_eq!(run(&[(0, b"a"), (1, b"b")]), run(&[(1, b"b"), (0, b"a")]));
        assert_ne!(run(&[(0, b"a"), (1, b"b")]), run(&[(0, b"b"), (1, b"a")]));
    }

    #[test]
    fn errors_are_bounded_by_kind() {
        let mut tally = Tally::new(0);
        (0..100).for_each(|i| tally.record(0, Err(format!("kind {i}")), Duration::ZERO));
        let outcome = tally.finish(Duration::ZERO);
        assert_eq!(outcome.errors.len(), ERROR_KINDS_MAX + 1);
        assert_eq!(outcome.errors["other"], 100 - ERROR_KINDS_MAX as u64);
    }

    #[test]
    fn time_per_token_leaves_out_the_first() {
        let mut tally = Tally::new(1);
        tally.record(0, Ok(answer(b"x")), Duration::from_millis(30));
        let outcome = tally.finish(Duration::ZERO);
        assert!((outcome.tpot.percentile_ms(50.0) - 10.0).abs() < 0.05);
    }
}
