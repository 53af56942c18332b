//! One replica's sums and the entries they are made of.

use base::Nanos;
use serde::{Deserialize, Serialize};

use super::span::{DecodeSpan, PrefillSpan};
use super::{Reservation, Seat};

/// A busy replica says how fast it prefills after this many requests at the latest.
const SPAN_REQUESTS: u32 = 8;
/// After this long, work done counts 1/e.
const RECENT_SECONDS: f64 = 30.0;
/// Shorter answers say little about a step.
const SPAN_TOKENS: u64 = 8;

/// What is promised to one replica.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Load {
    /// Prompt tokens that wait to be computed, and of how many requests.
    pub pending_prefill_tokens: u64,
    pub pending_prefills: u32,
    /// Requests that run or wait.
    pub active: u32,
    /// Tokens of prompts and answers that they keep on the device.
    pub resident_tokens: u64,
    /// Tokens that they are still expected to generate.
    pub expected_tokens: u64,
    /// Since the oldest pending prefill can have begun.
    pub head_elapsed_ms: f64,
    /// Prompt tokens given to it to compute, each counting less the longer ago that was.
    pub recent_tokens: f64,
}

impl Load {
    /// What comes from outside may be anything; a decision reckons with times.
    pub(super) fn sanitize(&mut self) {
        for value in [&mut self.head_elapsed_ms, &mut self.recent_tokens] {
            *value = if value.is_finite() { value.max(0.0) } else { 0.0 };
        }
    }

    pub(super) fn add(&mut self, other: &Load) {
        self.pending_prefill_tokens =
            self.pending_prefill_tokens.saturating_add(other.pending_prefill_tokens);
        self.pending_prefills = self.pending_prefills.saturating_add(other.pending_prefills);
        self.active = self.active.saturating_add(other.active);
        self.resident_tokens = self.resident_tokens.saturating_add(other.resident_tokens);
        self.expected_tokens = self.expected_tokens.saturating_add(other.expected_tokens);
        self.head_elapsed_ms = self.head_elapsed_ms.max(other.head_elapsed_ms);
        self.recent_tokens += other.recent_tokens;
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    Prefill,
    /// Since when, and what ran beside it then.
    Decode {
        since: Nanos,
        active: u32,
        resident_tokens: u64,
    },
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub reservation: Reservation,
    pub phase: Phase,
    pub generated: u64,
    pub deadline: Nanos,
}

impl Entry {
    pub fn new(reservation: Reservation, deadline: Nanos) -> Self {
        Self { reservation, phase: Phase::Prefill, generated: 0, deadline }
    }

    fn expected_left(&self) -> u64 {
        u64::from(self.reservation.expected_output).saturating_sub(self.generated)
    }

    /// What this entry alone adds to its seat's sums.
    pub fn load(&self) -> Load {
        let pending = self.phase == Phase::Prefill;
        Load {
            pending_prefill_tokens: if pending { u64::from(self.reservation.uncached_tokens) } else { 0 },
            pending_prefills: u32::from(pending),
            active: 1,
            resident_tokens: u64::from(self.reservation.total_tokens) + self.generated,
            expected_tokens: self.expected_left(),
            ..Load::default()
        }
    }
}

/// A seat's sums.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Account {
    pub load: Load,
    /// When the oldest pending prefill can have begun.
    head_began: Nanos,
    busy: Busy,
    recent: Recent,
}

/// A sum that fades.
#[derive(Clone, Copy, Debug, Default)]
struct Recent {
    tokens: f64,
    at: Nanos,
}

impl Recent {
    fn read(&self, now: Nanos) -> f64 {
        self.tokens * (-now.since(self.at).as_secs_f64() / RECENT_SECONDS).exp()
    }

    fn add(&mut self, tokens: u32, now: Nanos) {
        *self = Self { tokens: self.read(now) + f64::from(tokens), at: now.max(self.at) };
    }
}

/// Prefills that ended since the replica last had none, or since the last span was told.
#[derive(Clone, Copy, Debug, Default)]
struct Busy {
    began: Nanos,
    requests: u32,
    tokens: u64,
    token_context: f64,
}

impl Account {
    pub fn open(&mut self, entry: &Entry, now: Nanos) {
        if self.load.pending_prefills == 0 {
            self.head_began = now;
            self.busy = Busy { began: now, ..Busy::default() };
        }
        self.load.add(&entry.load());
        self.recent.add(entry.reservation.uncached_tokens, now);
    }

    pub fn prefilled(&mut self, entry: &mut Entry, now: Nanos) -> Option<PrefillSpan> {
        self.settle(&entry.reservation, now);
        let (active, resident_tokens) = (self.load.active, self.load.resident_tokens);
        entry.phase = Phase::Decode { since: now, active, resident_tokens };
        self.busy.add(&entry.reservation);
        let told = self.load.pending_prefills == 0 || self.busy.requests >= SPAN_REQUESTS;
        let span = told.then(|| self.busy.span(entry.reservation.seat, now));
        if told {
            self.busy = Busy { began: now, ..Busy::default() };
        }
        span
    }

    pub fn grew(&mut self, entry: &mut Entry, tokens: u64) {
        let before = entry.expected_left();
        entry.generated += tokens;
        self.load.resident_tokens += tokens;
        self.load.expected_tokens -= before - entry.expected_left();
    }

    pub fn close(&mut self, entry: &Entry, now: Nanos) -> Option<DecodeSpan> {
        let span = self.decoded(entry, now);
        if entry.phase == Phase::Prefill {
            self.settle(&entry.reservation, now);
            // It ended unfinished: how much of it was computed nobody knows.
            self.busy = Busy { began: now, ..Busy::default() };
        }
        self.load.active -= 1;
        self.load.resident_tokens -= u64::from(entry.reservation.total_tokens) + entry.generated;
        self.load.expected_tokens -= entry.expected_left();
        span
    }

    pub fn at(&self, now: Nanos) -> Load {
        let pending = self.load.pending_prefills > 0;
        let head_elapsed_ms = if pending { now.since(self.head_began).as_secs_f64() * 1e3 } else { 0.0 };
        Load { head_elapsed_ms, recent_tokens: self.recent.read(now), ..self.load }
    }

    /// One prefill is no longer pending; the next can begin.
    fn settle(&mut self, reservation: &Reservation, now: Nanos) {
        self.load.pending_prefill_tokens -= u64::from(reservation.uncached_tokens);
        self.load.pending_prefills -= 1;
        self.head_began = now;
    }

    fn decoded(&self, entry: &Entry, now: Nanos) -> Option<DecodeSpan> {
        let Phase::Decode { since, active, resident_tokens } = entry.phase else { return None };
        (entry.generated >= SPAN_TOKENS).then(|| DecodeSpan {
            seat: entry.reservation.seat,
            step_ms: now.since(since).as_secs_f64() * 1e3 / (entry.generated - 1) as f64,
            sequences: (f64::from(active) + f64::from(self.load.active)) / 2.0,
            resident_tokens: (resident_tokens as f64 + self.load.resident_tokens as f64) / 2.0,
        })
    }
}

impl Busy {
    fn add(&mut self, reservation: &Reservation) {
        let tokens = f64::from(reservation.uncached_tokens);
        let before = f64::from(reservation.total_tokens) - tokens;
        self.requests += 1;
        self.tokens += u64::from(reservation.uncached_tokens);
        self.token_context += tokens * (before + tokens / 2.0);
    }

    fn span(&self, seat: Seat, now: Nanos) -> PrefillSpan {
        PrefillSpan {
            seat,
            requests: self.requests,
            tokens: self.tokens,
            token_context: self.token_context,
            ms: now.since(self.began).as_secs_f64() * 1e3,
        }
    }
}
