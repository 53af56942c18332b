//! A follower of the ZeroMQ stream of a foreign engine.
//!
//! There is a live socket that may lose batches, numbered from 0 by each process, and (if the engine offers it) a
//! second one that replays what the engine still keeps. There is no snapshot and no name for the process, so:
//!
//! - The whole is had by replay from batch 0, or from the first batch of a process that was heard live, or when the
//!   engine says that all is cleared. If the engine keeps its first batches no more, what is known from then on is
//!   true but not all: DEGRADED until one of the three happens.
//! - Whether it is still the same process is proven by content: every request for replay begins one batch before what
//!   is missing, and that batch must be the very one that was applied last. A number that goes backwards with another
//!   content is another process.
//! - Silence proves nothing: PUB sockets send no heartbeats. After some of it, a replay of the last batch is asked
//!   for, which also brings what was lost at the end of a burst.
//!
//! After a gap that cannot be mended, what was held is let go at once. Keeping it would be keeping blocks whose removal
//! was perhaps in the gap, for good; what is told afterwards is true whatever came before.
//!
//! Limits: bytes that wait for a replay are bounded, and beyond the bound the replay is asked for again.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use base::Nanos;

use super::foreign::{Engine, Foreign, Taken};
use super::wire::{Scratch, decode};
use super::{State, Told};
use crate::Seat;
use crate::naming::foreign::Chain;

/// Batches whose content is remembered, so that one that comes twice is known.
const REMEMBERED: usize = 256;
/// Rests grow up to so many times the first.
const RESTS_MAX: u32 = 32;

/// Whether an engine replays what was missed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Replay {
    Offered,
    None,
}

/// What bounds a tail.
#[derive(Clone, Copy, Debug)]
pub struct TailLimits {
    /// Live batches that wait for the end of a replay.
    pub ahead_bytes_max: usize,
    /// Silence after which the last batch is asked for again.
    pub silence: Duration,
    /// A replay of which nothing was heard for so long has failed.
    pub patience: Duration,
    /// Before a replay is asked for again; doubled each time.
    pub rest: Duration,
}

impl Default for TailLimits {
    fn default() -> Self {
        Self {
            ahead_bytes_max: 64 << 20,
            silence: Duration::from_secs(2),
            patience: Duration::from_secs(5),
            rest: Duration::from_millis(50),
        }
    }
}

/// What the sockets do next. A replay that is asked for takes the place of one under way, whose rest is not heard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Want {
    Nothing,
    Replay { from: u64 },
}

/// What happened so far, for metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TailCounts {
    pub batches: u64,
    pub duplicates: u64,
    pub gaps: u64,
    /// Gaps for which the engine had nothing any more.
    pub holes: u64,
    pub replays: u64,
    pub failed_replays: u64,
    pub incarnations: u64,
    /// Batches that are not what they should be.
    pub garbage: u64,
    /// Times that more waited for a replay than is kept.
    pub overflows: u64,
}

/// See the module's header.
pub struct Tail {
    foreign: Foreign,
    chain: Chain,
    limits: TailLimits,
    replay: Replay,
    state: State,
    next: Option<u64>,
    /// No batch of this process is missing since it held nothing.
    is_whole: bool,
    stage: Stage,
    ahead: BTreeMap<u64, Box<[u8]>>,
    ahead_bytes: usize,
    applied: VecDeque<(u64, u64)>,
    scratch: Scratch,
    /// When there was last a sign of life: a live batch, or the end of a replay.
    heard: Nanos,
    rests: u32,
    counts: TailCounts,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Not connected.
    Off,
    Live,
    Replaying {
        purpose: Purpose,
        /// When something of it was last heard.
        since: Nanos,
        is_proven: bool,
    },
    /// A replay failed; the next is not asked for yet.
    Resting {
        until: Nanos,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Purpose {
    /// From the first batch.
    Restore,
    /// From what was missed.
    Mend,
    /// Nothing is known to be missing.
    Probe,
}

impl Tail {
    pub fn new(seat: Seat, engine: &Engine, replay: Replay, limits: TailLimits) -> Self {
        Self {
            foreign: Foreign::new(seat, engine),
            chain: engine.chain,
            limits,
            replay,
            state: State::Cold,
            next: None,
            is_whole: false,
            stage: Stage::Off,
            ahead: BTreeMap::new(),
            ahead_bytes: 0,
            applied: VecDeque::new(),
            scratch: Scratch::default(),
            heard: Nanos(0),
            rests: 0,
            counts: TailCounts::default(),
        }
    }

    pub fn state(&self) -> State {
        self.state
    }
    pub fn counts(&self) -> TailCounts {
        self.counts
    }
    pub fn foreign(&self) -> &Foreign {
        &self.foreign
    }
    /// The next batch that is not applied, once there is one.
    pub fn next(&self) -> Option<u64> {
        self.next
    }

    /// The live socket is connected and subscribed.
    pub fn joined(&mut self, now: Nanos, told: &dyn Told) -> Want {
        self.heard = now;
        match self.replay {
            Replay::Offered => self.ask(now),
            Replay::None => {
                // Nothing tells whether it is the same process, and what it did meanwhile.
                self.forget(told);
                self.stage = Stage::Live;
                Want::Nothing
            }
        }
    }

    /// The live socket is gone.
    pub fn lost(&mut self) {
        self.stage = Stage::Off;
        self.drop_ahead();
        self.doubt();
    }

    /// The engine is gone for good: nothing of it is held any more.
    pub fn retire(&mut self, told: &dyn Told) {
        self.lost();
        self.forget(told);
        self.state = State::Cold;
    }

    /// A batch from the live socket.
    pub fn live(&mut self, now: Nanos, sequence: u64, payload: &[u8], told: &dyn Told) -> Want {
        self.heard = now;
        match self.stage {
            Stage::Off => Want::Nothing,
            Stage::Live => self.take(now, sequence, payload, told),
            Stage::Replaying { .. } | Stage::Resting { .. } => {
                self.put_ahead(sequence, payload);
                Want::Nothing
            }
        }
    }

    /// A batch from a replay.
    pub fn replayed(&mut self, now: Nanos, sequence: u64, payload: &[u8], told: &dyn Told) -> Want {
        let Stage::Replaying { purpose, is_proven, .. } = self.stage else { return Want::Nothing };
        self.stage = Stage::Replaying { purpose, is_proven: true, since: now };
        let Some(next) = self.next else {
            self.begin_at(sequence, told);
            self.apply(sequence, payload, told);
            return Want::Nothing;
        };
        if !is_proven && next > 0 {
            if sequence + 1 < next {
                // Earlier than was asked for.
                self.stage = Stage::Replaying { purpose, is_proven, since: now };
                return Want::Nothing;
            }
            if sequence + 1 == next {
                if self.was_applied(sequence, payload) == Some(true) {
                    return Want::Nothing;
                }
                self.counts.incarnations += 1;
                self.forget(told);
                return self.ask(now);
            }
        }
        match sequence {
            at if at < next => {}
            at if at == next && is_proven || next == 0 && at == 0 => self.apply(sequence, payload, told),
            // The socket dropped some, as engines' do for a slow reader: they may still be had.
            _ if is_proven => {
                self.counts.gaps += 1;
                self.doubt();
                return self.ask_again(now);
            }
            _ => {
                // What was asked for is not kept any more, so neither is the proof.
                self.counts.holes += 1;
                self.begin_at(sequence, told);
                self.apply(sequence, payload, told);
            }
        }
        Want::Nothing
    }

    /// A replay has said that it is at its end.
    pub fn replay_done(&mut self, now: Nanos, told: &dyn Told) -> Want {
        let Stage::Replaying { is_proven, .. } = self.stage else { return Want::Nothing };
        self.heard = now;
        match self.next {
            // Nothing has been published, so nothing is held.
            None => self.begin_at(0, told),
            Some(next) if next > 0 && !is_proven => {
                // It has not even the batch that we had from it: another process.
                self.counts.incarnations += 1;
                self.forget(told);
                return self.ask(now);
            }
            Some(_) => {}
        }
        self.stage = Stage::Live;
        self.settle();
        self.drain(now, told)
    }

    /// A replay has failed.
    pub fn replay_failed(&mut self, now: Nanos) {
        if !matches!(self.stage, Stage::Replaying { .. }) {
            return;
        }
        self.counts.failed_replays += 1;
        self.doubt();
        self.rest(now);
    }

    /// Whether a replay is waited for.
    pub fn is_replaying(&self) -> bool {
        matches!(self.stage, Stage::Replaying { .. })
    }

    /// When [`Tail::idle`] has something to do.
    pub fn deadline(&self) -> Option<Nanos> {
        match self.stage {
            Stage::Off => None,
            Stage::Live if self.replay == Replay::None => None,
            Stage::Live => Some(self.heard.plus(self.limits.silence)),
            Stage::Replaying { since, .. } => Some(since.plus(self.limits.patience)),
            Stage::Resting { until } => Some(until),
        }
    }

    /// Looks at the time.
    pub fn idle(&mut self, now: Nanos) -> Want {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return Want::Nothing;
        }
        match self.stage {
            Stage::Off => Want::Nothing,
            Stage::Live => self.ask_for(now, Purpose::Probe),
            Stage::Replaying { .. } => {
                self.replay_failed(now);
                Want::Nothing
            }
            Stage::Resting { .. } => self.ask(now),
        }
    }

    pub fn check(&self) {
        assert_eq!(self.ahead_bytes, self.ahead.values().map(|payload| payload.len()).sum::<usize>());
        assert!(self.ahead_bytes <= self.limits.ahead_bytes_max && self.applied.len() <= REMEMBERED);
        if self.state == State::Exact {
            assert!(self.is_whole && self.stage != Stage::Off && self.next.is_some());
        }
        if let Some((last, _)) = self.applied.back() {
            assert_eq!(self.next, Some(last + 1));
        }
    }

    fn take(&mut self, now: Nanos, sequence: u64, payload: &[u8], told: &dyn Told) -> Want {
        match self.next {
            None => self.begin_at(sequence, told),
            Some(next) if sequence == next => {}
            Some(next) if sequence > next => {
                self.counts.gaps += 1;
                if self.replay == Replay::Offered {
                    self.put_ahead(sequence, payload);
                    self.doubt();
                    return self.ask_again(now);
                }
                self.counts.holes += 1;
                self.begin_at(sequence, told);
            }
            Some(_) if self.was_applied(sequence, payload) == Some(true) => {
                self.counts.duplicates += 1;
                return Want::Nothing;
            }
            Some(_) => {
                self.counts.incarnations += 1;
                self.forget(told);
                if sequence != 0 && self.replay == Replay::Offered {
                    self.put_ahead(sequence, payload);
                    return self.ask(now);
                }
                self.begin_at(sequence, told);
            }
        }
        self.apply(sequence, payload, told);
        self.settle();
        Want::Nothing
    }

    /// What came live while a replay was on.
    fn drain(&mut self, now: Nanos, told: &dyn Told) -> Want {
        while self.stage == Stage::Live {
            let Some((sequence, payload)) = self.ahead.pop_first() else { break };
            self.ahead_bytes -= payload.len();
            let want = self.take(now, sequence, &payload, told);
            if want != Want::Nothing {
                return want;
            }
        }
        Want::Nothing
    }

    /// The first batch of what is known from here on: all there is, if it is the process's first.
    fn begin_at(&mut self, sequence: u64, told: &dyn Told) {
        self.forget(told);
        self.next = Some(sequence);
        self.is_whole = sequence == 0;
    }

    fn apply(&mut self, sequence: u64, payload: &[u8], told: &dyn Told) {
        let (foreign, mut is_emptied) = (&mut self.foreign, false);
        let read = decode(payload, &mut self.scratch, |event| {
            is_emptied |= foreign.apply(&event, told) == Taken::Emptied;
        });
        self.is_whole |= is_emptied;
        if let Err(error) = read {
            // What the rest of it removed is not known.
            tracing::warn!(%error, sequence, "a batch of KV events cannot be read");
            self.counts.garbage += 1;
            self.foreign.clear(told);
            self.is_whole = false;
        }
        self.counts.batches += 1;
        self.rests = 0;
        self.next = Some(sequence + 1);
        self.applied.push_back((sequence, self.digest(payload)));
        if self.applied.len() > REMEMBERED {
            self.applied.pop_front();
        }
    }

    fn settle(&mut self) {
        self.state = if self.is_whole { State::Exact } else { State::Degraded };
    }

    fn doubt(&mut self) {
        if self.state != State::Cold {
            self.state = State::Degraded;
        }
    }

    /// Nothing that is held is of the process that is heard from now on.
    fn forget(&mut self, told: &dyn Told) {
        self.foreign.clear(told);
        self.applied.clear();
        self.next = None;
        self.is_whole = false;
        self.doubt();
    }

    fn ask(&mut self, now: Nanos) -> Want {
        self.ask_for(now, if self.next.is_none() { Purpose::Restore } else { Purpose::Mend })
    }

    fn ask_for(&mut self, now: Nanos, purpose: Purpose) -> Want {
        self.state = match purpose {
            Purpose::Restore => State::Snapshot,
            Purpose::Mend => State::Degraded,
            Purpose::Probe => self.state,
        };
        self.counts.replays += 1;
        self.stage = Stage::Replaying { purpose, since: now, is_proven: false };
        Want::Replay { from: self.next.unwrap_or(0).saturating_sub(1) }
    }

    /// At once the first time; after a rest where one replay after the other brings nothing.
    fn ask_again(&mut self, now: Nanos) -> Want {
        if self.rests == 0 {
            self.rests = 1;
            return self.ask(now);
        }
        self.rest(now);
        Want::Nothing
    }

    fn rest(&mut self, now: Nanos) {
        self.rests = (self.rests.max(1) * 2).min(RESTS_MAX);
        self.stage = Stage::Resting { until: now.plus(self.limits.rest * self.rests) };
    }

    fn put_ahead(&mut self, sequence: u64, payload: &[u8]) {
        if self.ahead_bytes + payload.len() > self.limits.ahead_bytes_max {
            self.counts.overflows += 1;
            self.drop_ahead();
            return;
        }
        self.ahead_bytes += payload.len();
        if let Some(old) = self.ahead.insert(sequence, payload.into()) {
            self.ahead_bytes -= old.len();
        }
    }

    fn drop_ahead(&mut self) {
        self.ahead.clear();
        self.ahead_bytes = 0;
    }

    /// Whether this is what was applied under its number; `None` if that is not remembered.
    fn was_applied(&self, sequence: u64, payload: &[u8]) -> Option<bool> {
        let digest = self.digest(payload);
        let found = self.applied.iter().rev().find(|(applied, _)| *applied == sequence);
        found.map(|(_, known)| *known == digest)
    }

    fn digest(&self, payload: &[u8]) -> u64 {
        self.chain.with_extra(0, payload)
    }
}
