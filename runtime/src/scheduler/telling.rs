//! What the hub of events hears, and what it hears anew when something was lost.
//!
//! The hub takes batches as long as it has room. What it has no room for waits here, up to a bound; past it all
//! that waits is thrown away, and the hub hears that everything is gone, then all that is there. Only once it
//! has taken the first of that, which costs nothing to make and after which no reader believes anything that is
//! not so, are the trees walked; and what they hold goes over in pieces. What changes meanwhile comes after
//! the pieces: a page that is removed before its piece has gone must not be believed again.

use std::collections::VecDeque;

use base::Tier;
use kvcache::{KvChange, TierEvent};

use super::Scheduler;

/// Names in a piece of all that is there, but for the last run.
const PIECE: usize = 4096;
/// Names of changes that may wait.
const WAITING_MAX: usize = 1 << 16;

#[derive(Debug)]
pub(super) struct Teller {
    waiting: VecDeque<Vec<TierEvent>>,
    /// Names of changes that may still be added to `waiting`.
    room: usize,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// What was told and what waits is all there is to tell.
    Following,
    /// All is to be told anew.
    Lost,
}

impl Teller {
    /// To an empty cache.
    pub fn new() -> Self {
        Self { waiting: VecDeque::new(), room: WAITING_MAX, stage: Stage::Following }
    }

    /// To a cache of which nobody has been told.
    pub fn of_unknown() -> Self {
        Self { stage: Stage::Lost, ..Self::new() }
    }

    /// Whether there is something to tell even if nothing changes.
    pub fn is_behind(&self) -> bool {
        self.stage == Stage::Lost || !self.waiting.is_empty()
    }

    /// Tells what can be told now; `publish` says whether it took a batch.
    pub fn go_on(&mut self, scheduler: &mut Scheduler, mut publish: impl FnMut(Vec<TierEvent>) -> bool) {
        let events = scheduler.drain_events();
        if events.iter().any(|event| matches!(event.change, KvChange::Lost { .. })) {
            self.lose();
        }
        match self.stage {
            Stage::Following => self.enqueue(events),
            Stage::Lost if publish(vec![cleared()]) => self.begin_anew(scheduler),
            Stage::Lost => return,
        }
        while let Some(batch) = self.waiting.front() {
            if !publish(batch.clone()) {
                return;
            }
            self.waiting.pop_front();
        }
        self.room = WAITING_MAX;
    }

    fn lose(&mut self) {
        *self = Self::of_unknown();
    }

    fn enqueue(&mut self, events: Vec<TierEvent>) {
        if events.is_empty() {
            return;
        }
        match self.room.checked_sub(events.iter().map(weight).sum()) {
            Some(room) => {
                self.room = room;
                self.waiting.push_back(events);
            }
            // At the first batch, too: one that is larger than all that may wait.
            None => self.lose(),
        }
    }

    fn begin_anew(&mut self, scheduler: &mut Scheduler) {
        *self = Self::new();
        let mut piece = Vec::new();
        let mut names = 0;
        // That all is cleared has just been heard.
        for event in scheduler.retell().into_iter().skip(1) {
            names += weight(&event);
            piece.push(event);
            if names >= PIECE {
                self.waiting.push_back(std::mem::take(&mut piece));
                names = 0;
            }
        }
        if !piece.is_empty() {
            self.waiting.push_back(piece);
        }
    }
}

/// Nothing is anywhere. Without a number: the hub counts batches by itself.
fn cleared() -> TierEvent {
    TierEvent { sequence: 0, tier: Tier::Device, change: KvChange::Cleared }
}

fn weight(event: &TierEvent) -> usize {
    match &event.change {
        KvChange::Stored(stored) => stored.names.len(),
        KvChange::Removed { names } => names.len(),
        KvChange::Cleared | KvChange::Lost { .. } => 1,
    }
}
