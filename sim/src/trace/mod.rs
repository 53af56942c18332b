//! What is asked of a fleet: calls with their times, whose they are, and which texts they share.
//!
//! A prompt is a list of *segments*. Two segments with equal ids are the same text, and a segment's tokens are
//! a function of its id, so a trace of hashes becomes prompts with real tokens that share exactly the prefixes
//! that the traffic shared: the replicas' radix trees compare tokens, as they do in service. A trace without
//! hashes (Azure's) gives every call a text of its own.
//!
//! ```text
//!  Mooncake JSONL ─┐
//!  Azure CSV ──────┼─▶ Trace { calls: [start, tenant, prompt segments, output] } ─▶ replay, sweep, scenarios
//!  recorded JSONL ─┤
//!  generator ──────┘
//! ```
//!
//! Limits: [`CALLS_MAX`] calls a trace, [`PROMPT_TOKENS_MAX`] tokens a prompt; a file that exceeds them is refused.

mod azure;
mod generate;
mod mooncake;
mod recorded;

use std::path::Path;
use std::time::Duration;

use base::{Nanos, TokenId};

pub use generate::{Generator, Talk};
pub use recorded::{RecordedCall, RecordedClass};

/// Most calls of one trace.
pub const CALLS_MAX: usize = 4_000_000;
/// Longest prompt.
pub const PROMPT_TOKENS_MAX: u64 = 4_000_000;

/// A text that may be shared: its tokens follow from its id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Segment {
    pub id: u64,
    pub tokens: u32,
}

impl Segment {
    /// Token `index` of the text.
    pub fn token(self, index: u32) -> TokenId {
        let mixed = (self.id ^ u64::from(index).wrapping_mul(0x9E37_79B9_7F4A_7C15))
            .wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (mixed >> 40) as u32
    }
}

/// When a call is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// At this time of the trace.
    At(Nanos),
    /// So long after another call of the trace, an earlier one, has ended: a person who reads and answers.
    After { call: usize, think: Duration },
}

/// What a request is worth to whoever made it; smaller goes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Class {
    #[default]
    Interactive,
    Batch,
}

/// One request of a trace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Call {
    pub start: Start,
    /// Index into [`Trace::tenants`].
    pub tenant: u16,
    pub class: Class,
    pub prompt: Vec<Segment>,
    /// What the replica will answer, whatever it is asked.
    pub output: Segment,
    /// How long after its start it must have begun.
    pub deadline: Option<Duration>,
    /// Calls of one conversation have one number.
    pub session: Option<u64>,
}

impl Call {
    pub fn prompt_tokens(&self) -> u32 {
        self.prompt.iter().map(|segment| segment.tokens).sum()
    }

    /// The prompt as a tokenizer would give it.
    pub fn tokens(&self) -> Vec<TokenId> {
        let mut tokens = Vec::with_capacity(self.prompt_tokens() as usize);
        self.prompt.iter().for_each(|&segment| push(&mut tokens, segment));
        tokens
    }
}

/// Appends a segment's tokens.
pub(crate) fn push(tokens: &mut Vec<TokenId>, segment: Segment) {
    tokens.extend((0..segment.tokens).map(|index| segment.token(index)));
}

/// Calls in the order of their starts; one that follows another comes after it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trace {
    pub name: String,
    pub tenants: Vec<String>,
    pub calls: Vec<Call>,
}

/// Why a trace cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("cannot read trace {path}: {source}")]
    Io { path: String, source: std::io::Error },
    #[error("trace {path}, line {line}: {problem}")]
    Line { path: String, line: usize, problem: String },
    #[error("trace {path} has no calls")]
    Empty { path: String },
    #[error("trace {path} has more than {most} calls")]
    TooLong { path: String, most: usize },
    #[error("trace {path} is in no known format: .jsonl of Mooncake or recorded traffic, or Azure's .csv")]
    UnknownFormat { path: String },
}

impl TraceError {
    /// For messages and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            TraceError::Io { .. } => "io",
            TraceError::Line { .. } => "line",
            TraceError::Empty { .. } => "empty",
            TraceError::TooLong { .. } => "too_long",
            TraceError::UnknownFormat { .. } => "unknown_format",
        }
    }
}

impl Trace {
    /// Reads a file of any format known; which one, its first line says.
    pub fn read(path: &Path) -> Result<Trace, TraceError> {
        let shown = path.display().to_string();
        let text =
            std::fs::read_to_string(path).map_err(|source| TraceError::Io { path: shown.clone(), source })?;
        Self::parse(&shown, &text)
    }

    /// As [`Trace::read`], of text at hand.
    pub fn parse(path: &str, text: &str) -> Result<Trace, TraceError> {
        let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let parse: fn(&str) -> Result<Call, String> = match () {
            () if first.starts_with("TIMESTAMP,") => return azure::parse(path, text),
            () if first.contains("\"arrival_ms\"") => return recorded::parse(path, text),
            () if first.contains("\"hash_ids\"") => mooncake::line,
            () if first.is_empty() => return Err(TraceError::Empty { path: path.to_owned() }),
            () => return Err(TraceError::UnknownFormat { path: path.to_owned() }),
        };
        let calls = lines(path, text).map(|at| at.and_then(|(line, text)| at_line(path, line, parse(text))));
        Trace::of(path, vec!["default".to_owned()], calls)
    }

    fn of(
        path: &str,
        tenants: Vec<String>,
        calls: impl Iterator<Item = Result<Call, TraceError>>,
    ) -> Result<Trace, TraceError> {
        let mut calls = calls.collect::<Result<Vec<Call>, TraceError>>()?;
        if calls.is_empty() {
            return Err(TraceError::Empty { path: path.to_owned() });
        }
        calls.sort_by_key(|call| match call.start {
            Start::At(at) => at,
            Start::After { .. } => unreachable!("files have times"),
        });
        let name =
            Path::new(path).file_stem().map_or_else(|| path.to_owned(), |stem| stem.to_string_lossy().into());
        Ok(Trace { name, tenants, calls })
    }

    /// The same calls, `factor` times as fast. Thinking is not sped up: people do not.
    pub fn sped_up(mut self, factor: f64) -> Trace {
        for call in &mut self.calls {
            if let Start::At(at) = &mut call.start {
                at.0 = (at.0 as f64 / factor) as u64;
            }
        }
        self
    }

    /// The first `most` calls.
    pub fn truncated(mut self, most: usize) -> Trace {
        self.calls.truncate(most);
        self
    }

    pub fn prompt_tokens(&self) -> u64 {
        self.calls.iter().map(|call| u64::from(call.prompt_tokens())).sum()
    }

    /// Share of prompt tokens that an unbounded cache in one place would find, answers included: what no fleet can
    /// exceed.
    pub fn reusable(&self) -> f64 {
        let mut seen = std::collections::HashSet::new();
        let (mut found, mut all) = (0u64, 0u64);
        for call in &self.calls {
            let mut path = u64::from(call.tenant);
            for segment in &call.prompt {
                path = below(path, *segment);
                found += if seen.insert(path) { 0 } else { u64::from(segment.tokens) };
                all += u64::from(segment.tokens);
            }
            seen.insert(below(path, call.output));
        }
        found as f64 / all.max(1) as f64
    }
}

/// A number for `segment` after all that `path` stands for.
fn below(path: u64, segment: Segment) -> u64 {
    let text = segment.id ^ u64::from(segment.tokens).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    (path.rotate_left(7) ^ text).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// The lines that say something, numbered from 1.
fn lines<'a>(path: &'a str, text: &'a str) -> impl Iterator<Item = Result<(usize, &'a str), TraceError>> {
    let filled = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    filled.enumerate().map(move |(count, (index, line))| match count < CALLS_MAX {
        true => Ok((index + 1, line)),
        false => Err(TraceError::TooLong { path: path.to_owned(), most: CALLS_MAX }),
    })
}

fn at_line<T>(path: &str, line: usize, parsed: Result<T, String>) -> Result<T, TraceError> {
    parsed.map_err(|problem| TraceError::Line { path: path.to_owned(), line, problem })
}

/// Segments of `block_tokens` for ids of blocks; the last one holds what is left of `tokens`.
fn blocks(
    ids: impl ExactSizeIterator<Item = u64>,
    tokens: u64,
    block_tokens: u32,
) -> Result<Vec<Segment>, String> {
    if tokens == 0 || tokens > PROMPT_TOKENS_MAX {
        return Err(format!("a prompt of {tokens} tokens; 1 to {PROMPT_TOKENS_MAX} can be asked"));
    }
    if block_tokens == 0 {
        return Err("blocks of no tokens".to_owned());
    }
    let (count, whole) = (ids.len() as u64, tokens.div_ceil(u64::from(block_tokens)));
    if count != whole {
        return Err(format!("{count} blocks of {block_tokens} for {tokens} tokens, which take {whole}"));
    }
    let size =
        |index: usize| (tokens - index as u64 * u64::from(block_tokens)).min(u64::from(block_tokens)) as u32;
    Ok(ids.enumerate().map(|(index, id)| Segment { id, tokens: size(index) }).collect())
}

/// An id that no file and no other kind of text uses.
fn own_text(kind: u64, number: u64) -> u64 {
    (kind << 56 | 1 << 63) ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 8
}

const OUTPUT: u64 = 0x01;
const PROMPT: u64 = 0x02;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_ids_give_equal_tokens_and_others_do_not() {
        let (a, b) = (Segment { id: 1, tokens: 64 }, Segment { id: 2, tokens: 64 });
        let of = |segment: Segment| (0..64).map(|i| segment.token(i)).collect::<Vec<_>>();
        assert_eq!(of(a), of(a));
        assert_eq!(of(a).iter().zip(of(b)).filter(|(x, y)| **x == *y).count(), 0);
    }

    #[test]
    fn an_unknown_file_is_refused_by_name() {
        let refusal = Trace::parse("x.txt", "hello\n").unwrap_err();
        assert_eq!(refusal.kind(), "unknown_format");
        assert_eq!(Trace::parse("x.txt", "\n").unwrap_err().kind(), "empty");
    }

    #[test]
    fn what_could_be_reused_counts_whole_prefixes_only() {
        let text = "{\"timestamp\":0,\"input_length\":1024,\"output_length\":1,\"hash_ids\":[1,2]}\n\
                    {\"timestamp\":1,\"input_length\":1024,\"output_length\":1,\"hash_ids\":[1,3]}\n\
                    {\"timestamp\":2,\"input_length\":1024,\"output_length\":1,\"hash_ids\":[9,2]}\n";
        let trace = Trace::parse("t.jsonl", text).unwrap();
        assert!((trace.reusable() - 512.0 / 3072.0).abs() < 1e-9);
    }
}
