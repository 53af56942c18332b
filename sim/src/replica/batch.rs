//! Continuous batching: what the next step computes, and what follows from it.

use std::time::Duration;

use base::{Nanos, StepId};

use super::{Progress, Replica, StepEnd, Ticket};
use crate::model::StepWork;
use crate::replica::seq::Seq;

/// A step under way: the tokens that each sequence computes.
pub struct Step {
    pub id: StepId,
    parts: Vec<(Ticket, u32)>,
    work: StepWork,
}

impl Replica {
    /// Begins a step, if none is under way and there is something to do, and says how long it takes.
    pub fn plan(&mut self) -> Option<Duration> {
        if self.step.is_some() {
            return None;
        }
        self.admit();
        let (parts, work) = self.choose();
        if parts.is_empty() {
            return None;
        }
        self.last_step = StepId(self.last_step.0 + 1);
        self.cache.begin_step(self.last_step);
        let took = self.config.model.step(&work).mul_f64(self.slowness);
        self.counters.steps += 1;
        self.counters.step_ns += took.as_nanos() as u64;
        self.step = Some(Step { id: self.last_step, parts, work });
        Some(took)
    }

    /// What the step under way consists of, for logs of steps.
    pub fn step_work(&self) -> Option<StepWork> {
        self.step.as_ref().map(|step| step.work)
    }

    /// From the queue's head: whoever fits, with all of its prompt's pages. A blocked one lets others pass.
    fn admit(&mut self) {
        let mut at = 0;
        while at < self.waiting.len() && self.running.len() < self.config.step_seqs {
            let is_blocked =
                self.waiting[at].blocked_on.is_some_and(|name| self.computing.contains_key(&name));
            if is_blocked {
                at += 1;
                continue;
            }
            let Some(mut seq) = self.waiting.remove(at) else { return };
            match self.start(&mut seq) {
                Started::Running => self.running.push(seq),
                Started::Blocked => {
                    self.waiting.insert(at, seq);
                    at += 1;
                }
                Started::NoRoom => {
                    self.waiting.insert(at, seq);
                    return;
                }
            }
        }
    }

    fn start(&mut self, seq: &mut Seq) -> Started {
        self.choose_generation(seq);
        let key = self.key(seq.namespace(), seq.generation);
        let asked = seq.tokens.len() - 1;
        let lease = self.cache.hold(&key, &seq.tokens[..asked]);
        let covered = lease.pages().len();
        if let Some(name) = seq.names().get(covered).filter(|name| self.computing.contains_key(name)) {
            seq.blocked_on = Some(*name);
            self.cache.release(lease, self.last_step);
            return Started::Blocked;
        }
        let lacking = (seq.tokens.len() as u32 + 1).div_ceil(self.config.page_tokens) as usize - covered;
        let Ok(pages) = self.cache.reserve(lacking) else {
            self.cache.release(lease, self.last_step);
            return Started::NoRoom;
        };
        self.cache.count_use(&lease, asked);
        if seq.cached_tokens.is_none() {
            seq.cached_tokens = Some(lease.tokens());
            self.counters.query_tokens += seq.submission.tokens.len() as u64;
            self.counters.hit_tokens += u64::from(lease.tokens());
        }
        seq.computed = lease.tokens();
        seq.private = pages;
        seq.lease = Some(lease);
        seq.blocked_on = None;
        self.claim_names(seq, covered);
        Started::Running
    }

    /// A request runs in the generation that is good when it begins.
    fn choose_generation(&mut self, seq: &mut Seq) {
        let floor = self.floor(seq.namespace());
        if seq.generation < floor {
            seq.generation = floor;
            seq.submission.names = self.names(seq.namespace(), floor, &seq.submission.tokens).into();
        }
    }

    fn claim_names(&mut self, seq: &mut Seq, covered: usize) {
        for &name in seq.submission.names.iter().skip(covered) {
            self.computing.entry(name).or_insert(seq.ticket());
        }
        seq.claimed_from = Some(covered);
    }

    /// Pages up to `upto` of the prompt are there, or nobody computes them any more.
    fn unclaim(&mut self, seq: &mut Seq, upto: usize) {
        let Some(from) = seq.claimed_from else { return };
        let names = &seq.submission.names;
        let upto = upto.min(names.len());
        for name in names.get(from..upto).unwrap_or_default() {
            if self.computing.get(name) == Some(&seq.submission.ticket) {
                self.computing.remove(name);
            }
        }
        seq.claimed_from = Some(upto.max(from));
    }

    /// Decodes first, then prefill in order of admission, within the step's tokens and time.
    fn choose(&mut self) -> (Vec<(Ticket, u32)>, StepWork) {
        self.make_room_for_decodes();
        let (mut parts, mut work) = (Vec::new(), StepWork::default());
        for seq in self.running.iter().filter(|seq| seq.is_decoding()) {
            parts.push((seq.ticket(), 1));
            work.decode_seqs += 1;
            work.resident_tokens += seq.tokens.len() as u64;
        }
        let mut room = self.prefill_room(&work);
        for seq in self.running.iter().filter(|seq| !seq.is_decoding()) {
            let tokens = seq.left().min(self.config.chunk_tokens).min(room);
            if tokens == 0 {
                break;
            }
            room -= tokens;
            parts.push((seq.ticket(), tokens));
            work.prefill_tokens += u64::from(tokens);
            work.prefill_pairs += u64::from(tokens) * (u64::from(seq.computed) + u64::from(tokens) / 2);
        }
        (parts, work)
    }

    fn prefill_room(&self, decodes: &StepWork) -> u32 {
        let room = u64::from(self.config.step_tokens).saturating_sub(decodes.decode_seqs);
        if decodes.decode_seqs == 0 {
            return room as u32;
        }
        let left = self.config.step_budget.saturating_sub(self.config.model.step(decodes));
        let in_time = left.as_nanos() as f64 / self.config.model.prefill_token_ns.max(1.0);
        room.min((in_time as u64).max(u64::from(self.config.page_tokens))) as u32
    }

    /// Each decode has a place for its token; the newest give theirs up where there are too few.
    fn make_room_for_decodes(&mut self) {
        let mut at = 0;
        while at < self.running.len() {
            let seq = &self.running[at];
            let lacking = if seq.is_decoding() { seq.pages_lacking(seq.tokens.len() as u32) } else { 0 };
            match self.cache.reserve(lacking) {
                Ok(pages) => {
                    self.running[at].private.extend(pages);
                    at += 1;
                }
                Err(_) => self.preempt_newest(),
            }
        }
    }

    fn preempt_newest(&mut self) {
        let Some(mut seq) = self.running.pop() else { return };
        self.counters.preemptions += 1;
        self.let_go(&mut seq);
        seq.computed = 0;
        self.waiting.push_front(seq);
    }

    /// Ends the step under way.
    pub fn finish(&mut self, now: Nanos) -> StepEnd {
        let Some(step) = self.step.take() else { return StepEnd::default() };
        self.cache.complete(step.id);
        self.sweep();
        let mut end = StepEnd::default();
        let parts: std::collections::HashMap<Ticket, u32> = step.parts.into_iter().collect();
        for mut seq in std::mem::take(&mut self.running) {
            let Some(&tokens) = parts.get(&seq.ticket()) else {
                self.running.push(seq); // not part of this step
                continue;
            };
            self.advance(&mut seq, tokens, now, &mut end.progress);
            if seq.is_finished() {
                end.progress.push((seq.ticket(), Progress::Finished { tokens: seq.drawn }));
                self.counters.finished += 1;
                self.give_back(seq);
            } else {
                self.running.push(seq);
            }
        }
        end.batch = self.tell(now);
        end
    }

    fn advance(&mut self, seq: &mut Seq, tokens: u32, now: Nanos, progress: &mut Vec<(Ticket, Progress)>) {
        let was_decoding = seq.is_decoding();
        seq.computed += tokens;
        self.publish(seq);
        self.counters.computed_tokens += if was_decoding { 0 } else { u64::from(tokens) };
        if seq.left() > 0 {
            return;
        }
        seq.draw();
        self.counters.generated_tokens += 1;
        progress.push(match seq.drawn {
            1 => (seq.ticket(), Progress::First { cached_tokens: seq.cached_tokens.unwrap_or(0) }),
            _ => (seq.ticket(), Progress::Token { gap_ns: now.0 - seq.last_token_ns }),
        });
        seq.last_token_ns = now.0;
    }

    /// Whole pages become visible, unless a purge has ended their generation.
    fn publish(&mut self, seq: &mut Seq) {
        let Some(lease) = &mut seq.lease else { return };
        let whole = (seq.computed / self.config.page_tokens) as usize;
        let count = whole.saturating_sub(lease.pages().len()).min(seq.private.len());
        let floor = self.floors.get(&seq.submission.namespace).copied().unwrap_or_default();
        if count == 0 || seq.generation < floor {
            return;
        }
        let pages: Vec<_> = seq.private.drain(..count).collect();
        self.cache.publish(lease, &seq.tokens, &pages, self.last_step);
        let covered = lease.pages().len();
        self.unclaim(seq, covered);
    }

    /// A sequence is over: its pages stay in the tree, as far as they are whole.
    pub(super) fn give_back(&mut self, mut seq: Seq) {
        self.let_go(&mut seq);
    }

    /// What a purge found in use goes when its last user has.
    pub(super) fn sweep(&mut self) {
        if self.is_unswept {
            let floors = &self.floors;
            let is_old = |key: &kvcache::TreeKey| {
                floors.get(&key.namespace).is_some_and(|floor| key.generation < *floor)
            };
            self.cache.clear_pages(is_old, usize::MAX);
            self.is_unswept = self.cache.pages_of(is_old) > 0;
        }
    }

    fn let_go(&mut self, seq: &mut Seq) {
        self.unclaim(seq, usize::MAX);
        seq.claimed_from = None;
        self.cache.free(std::mem::take(&mut seq.private), self.last_step);
        if let Some(lease) = seq.lease.take() {
            self.cache.release(lease, self.last_step);
        }
    }
}

enum Started {
    Running,
    /// Its next page is being computed.
    Blocked,
    NoRoom,
}
