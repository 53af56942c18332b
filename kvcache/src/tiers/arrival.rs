//! What comes of moves and orders: steps that have answered, tickets, runs that end, and what must then be
//! cut out, told, recorded or copied on.

use base::{FrameId, PageId, StepId, Tier, TokenId};

use super::lower::{Gone, frame, slot};
use super::order::{ColdOrder, ColdOutcome, Fault, JournalNote, PageMove, SlotRecord, Ticket};
use super::run::{Run, RunId};
use super::{PrefetchEnd, Tiers, WritePolicy};
use crate::TreeKey;

impl Tiers {
    /// The moves that `step` does before its work, in order.
    pub fn take_moves(&mut self, step: StepId) -> Vec<PageMove> {
        self.runs.values_mut().filter(|run| run.source.is_none()).for_each(|run| {
            run.step.get_or_insert(step);
        });
        self.reading.iter_mut().for_each(|(of, _)| {
            of.get_or_insert(step);
        });
        let mut moves = std::mem::take(&mut self.moves);
        let mut freed: Vec<PageId> = self.device.drain_gone().into_iter().map(|(page, _)| page).collect();
        if self.purges.take_rescrub() {
            // The pool was made anew: what its pages hold has to be looked at, all of it.
            freed = (0..self.device_config.pages).map(PageId).collect();
        }
        let scrubs = freed.iter().map(|&page| PageMove::Scrub { page });
        moves.extend(scrubs);
        self.purges.scrubs_go_with(step, freed);
        moves.sort_by_key(|of| match of {
            PageMove::Save { .. } => 0,
            PageMove::Scrub { .. } => 1,
            PageMove::Restore { .. } => 2,
        });
        moves
    }

    /// Steps up to `step` have answered: what they saved is there, but for the `unsaved` frames; and what those up to
    /// `landed` read may go.
    pub fn complete(&mut self, step: StepId, landed: StepId, unsaved: &[FrameId]) {
        let is_done = |of: &Option<StepId>| of.is_some_and(|of| of <= step);
        let is_read = |of: &Option<StepId>| of.is_some_and(|of| of <= landed);
        let (read, reading) = std::mem::take(&mut self.reading).into_iter().partition(|(of, _)| is_read(of));
        self.reading = reading;
        for (_, lease) in read {
            self.give_back(Tier::Host, lease);
        }
        let saved: Vec<RunId> =
            self.runs.iter().filter(|(_, run)| is_done(&run.step)).map(|(id, _)| *id).collect();
        for id in saved {
            let run = self.runs.get_mut(&id).expect("just listed");
            run.left = 0;
            if let Some(at) = run.places.iter().position(|&place| unsaved.contains(&frame(place))) {
                run.fail(at, Fault::Unavailable);
                self.counters.failed_pages += 1;
            }
            let (places, fine) = (run.places.clone(), run.failed.unwrap_or(run.places.len()));
            let key = self.runs[&id].key.clone();
            self.arrived(Tier::Host, &key, &places[..fine]);
            self.finish(id);
        }
    }

    fn arrived(&mut self, tier: Tier, key: &TreeKey, places: &[PageId]) {
        if let Some(lower) = self.lower.get_mut(&tier) {
            places.iter().for_each(|&place| lower.arrived(place, key, None));
        }
    }

    /// What other threads are to do, in order.
    pub fn take_orders(&mut self) -> Vec<ColdOrder> {
        std::mem::take(&mut self.orders)
    }

    /// An order was carried out, or was not. Unknown tickets are ignored: their run was given up.
    pub fn answer(&mut self, ticket: Ticket, outcome: ColdOutcome) {
        if self.answer_erasure(ticket, outcome) {
            return;
        }
        let Some(run) = self.runs.get_mut(&ticket.run()) else { return };
        let (index, target) = (ticket.index(), run.target);
        let place = run.places[index];
        run.left -= 1;
        self.in_flight -= 1;
        let is_last = run.left == 0;
        let lower = self.lower.get_mut(&target).expect("a run's tier exists");
        match outcome {
            ColdOutcome::Stored(seal) => {
                lower.arrived(place, &run.key, Some(seal));
                self.counters.stored_pages += 1;
            }
            ColdOutcome::Loaded => {
                lower.arrived(place, &run.key, None);
                self.counters.loaded_pages += 1;
            }
            ColdOutcome::Failed(fault) => {
                run.fail(index, fault);
                self.counters.failed_pages += 1;
                self.counters.wrong_pages += u64::from(fault == Fault::Wrong);
            }
            ColdOutcome::Erased { .. } => run.fail(index, Fault::Unavailable),
        }
        if is_last {
            self.finish(ticket.run());
        }
    }

    /// What the journal is to know of the pages of a run that have arrived.
    fn note_stored(&mut self, run: &Run, arrived: usize) {
        let size = self.page_tokens();
        let lower = self.lower.get_mut(&run.target).expect("a run's tier exists");
        let record = |index: usize| {
            let (at, place) = (run.first + index, run.places[index]);
            Some(SlotRecord {
                tier: run.target,
                slot: slot(place),
                key: run.key.clone(),
                parent: at.checked_sub(1).map(|before| slot(run.to.pages()[before])),
                name: lower.name(place)?,
                seal: lower.seal(place),
                tokens: run.tokens[at * size..(at + 1) * size].to_vec(),
            })
        };
        let records: Vec<SlotRecord> = (0..arrived).filter_map(record).collect();
        self.notes.extend(lower.note(records).into_iter().map(JournalNote::Page));
    }

    /// Every page of a run has answered: leases end, failures are cut out, copies go on.
    pub(super) fn finish(&mut self, id: RunId) {
        let Some(run) = self.runs.remove(&id) else { return };
        let arrived = self.settle_arrived(&run);
        if run.target > Tier::Host {
            self.note_stored(&run, arrived);
        }
        let Run { key, tokens, source, target, to, first, places, failed, fault, prefetch, .. } = run;
        self.give_back(target, to);
        let from = source.as_ref().map(|(tier, _)| *tier);
        if let Some((tier, lease)) = source {
            self.give_back(tier, lease);
        }
        if let Some(at) = failed {
            self.cut_out(target, &key, &tokens, first + at);
            if let (Some(tier), Some(Fault::Wrong)) = (from, fault)
                && target == Tier::Host
            {
                self.cut_out(tier, &key, &tokens, first + at);
            }
        }
        if let (Some(id), Some(from)) = (prefetch, from) {
            self.ended.push(PrefetchEnd { id, from, asked: places.len(), arrived });
        }
        if target == Tier::Host && arrived > 0 {
            let tokens = &tokens[..(first + arrived) * self.page_tokens()];
            self.go_on(&key, tokens, from);
        }
    }

    /// How many pages of a run stay, which is told. Pages that were found wrong while the run went on are not
    /// among them.
    fn settle_arrived(&mut self, run: &Run) -> usize {
        let Some(lower) = self.lower.get_mut(&run.target) else { return 0 };
        let fine = run.failed.unwrap_or(run.places.len());
        let arrived = lower.ready_prefix(&run.places[..fine]);
        lower.withdraw(&run.places[arrived..]);
        let parent = run.first.checked_sub(1).map(|before| run.to.pages()[before]);
        let stored = lower.settled(&run.key, parent, &run.places[..arrived]);
        self.tell_stored(run.target, stored);
        arrived
    }

    /// Pages have reached host memory: write-through tiers below get them, too.
    fn go_on(&mut self, key: &TreeKey, tokens: &[TokenId], from: Option<Tier>) {
        for tier in self.cold_tiers() {
            let is_due = self.writes(tier) == Some(WritePolicy::WriteThrough);
            if is_due && from != Some(tier) {
                self.store(tier, key, tokens);
            }
        }
    }

    /// Drops page `at` of a path and what lies below it. What others still hold cannot be read any more
    /// either, and goes when they let go.
    fn cut_out(&mut self, tier: Tier, key: &TreeKey, tokens: &[TokenId], at: usize) {
        let Some(lower) = self.lower.get_mut(&tier) else { return };
        lower.index.cut(key, tokens, at);
        let gone = lower.doom(key, tokens, at);
        self.take_leave(tier, gone);
        self.note_gone(tier);
    }

    /// Takes note of the places that left a tier's tree.
    pub(super) fn note_gone(&mut self, tier: Tier) {
        let Some(lower) = self.lower.get_mut(&tier) else { return };
        lower.cut_doomed();
        let gone = lower.note_gone();
        self.take_leave(tier, gone);
    }

    fn take_leave(&mut self, tier: Tier, gone: Gone) {
        self.notes.extend(gone.noted.into_iter().map(|slot| JournalNote::Drop { tier, slot }));
        self.tell_removed(tier, gone.names);
    }

    /// What the journal of the cold tiers has to record, in order.
    pub fn drain_notes(&mut self) -> Vec<JournalNote> {
        std::mem::take(&mut self.notes)
    }

    /// Prefetches that ended since the last call.
    pub fn drain_ended(&mut self) -> Vec<PrefetchEnd> {
        std::mem::take(&mut self.ended)
    }
}
