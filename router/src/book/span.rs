//! What the book learns in passing about a replica's speed.
//!
//! Whole busy spans and not single requests: engines batch the prefills of several requests into one pass and end
//! them together, so that one request's time says nothing, and the span's says all.

use crate::Seat;

/// Prefills that one replica did one after the other or together, with nothing else to prefill in between.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct PrefillSpan {
    pub seat: Seat,
    pub requests: u32,
    /// Tokens computed.
    pub tokens: u64,
    /// Sum over requests of computed tokens times the mean number of tokens they look back at.
    pub token_context: f64,
    pub ms: f64,
}

/// One answer's pace, with what stood in its way: other sequences' steps, and prefills between them.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct DecodeSpan {
    pub seat: Seat,
    pub step_ms: f64,
    /// Mean of begin and end.
    pub sequences: f64,
    pub resident_tokens: f64,
}

/// What became of a message about a ticket. After an expiry or a dropped seat it may be unknown, which is no error.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Told<S> {
    Unknown,
    Counted,
    /// Counted, and this is learned from it.
    Span(S),
}

impl<S> Told<S> {
    pub(super) fn of(span: Option<S>) -> Self {
        span.map_or(Told::Counted, Told::Span)
    }

    pub fn span(self) -> Option<S> {
        match self {
            Told::Span(span) => Some(span),
            Told::Unknown | Told::Counted => None,
        }
    }

    pub fn is_known(&self) -> bool {
        !matches!(self, Told::Unknown)
    }
}
