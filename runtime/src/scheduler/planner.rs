//! One step: decodes first, then prompts in chunks, then newcomers, under a budget of tokens and time.
//!
//! A chunk's size changes nothing but speed: kernels give the same bits for any chunking.
//!
//! Where restores run beside the steps, a sequence whose pages are on their way stays out of steps that have others to
//! compute: the device would wait for its pages, and everybody with it. If there is nobody else it is drafted at once.

use base::{Nanos, Priority, SeqId, StepId};
use kvcache::PageMove;

use super::resident::Resident;
use super::{Flight, FlightRow, Scheduler};
use crate::executor::Restores;
use crate::plan::{SeqStart, StepPlan, Work};
use crate::stats::EngineStats;

/// Prompt tokens that a step may always take, so that a slow estimate cannot starve prompts.
const CHUNK_MIN: u32 = 16;

/// A step being put together.
#[derive(Default)]
struct Draft {
    admit: Vec<SeqStart>,
    work: Vec<Work>,
    rows: Vec<FlightRow>,
    tokens_left: u32,
    seats_left: usize,
}

impl Scheduler {
    /// The next step, or `None` if there is nothing to compute now.
    pub fn plan(&mut self, now: Nanos) -> Option<StepPlan> {
        self.tiers.tell_time((now.0 / 10_000_000) as u32);
        self.expire(now);
        self.expire_promotions(now);
        self.yield_to_priority();
        let mut draft = Draft {
            tokens_left: self.config.step_tokens.min(self.shape.step_tokens_max),
            seats_left: self.seats(),
            ..Draft::default()
        };
        let order = self.by_importance();
        self.draft_decodes(&order, &mut draft);
        self.limit_prompts(&mut draft);
        self.draft_chunks(&order, &mut draft);
        self.draft_newcomers(now, &mut draft);
        if draft.work.is_empty() {
            self.draft_landing(&mut draft);
        }
        self.seal(draft, now)
    }

    /// Most important first: whoever is preempted for pages has not been drafted yet.
    fn by_importance(&self) -> Vec<SeqId> {
        let mut order: Vec<(Priority, SeqId)> =
            self.running.values().map(|r| (r.stream.request.priority, r.seq)).collect();
        order.sort_unstable();
        order.into_iter().map(|(_, seq)| seq).collect()
    }

    fn draft_decodes(&mut self, order: &[SeqId], draft: &mut Draft) {
        for &seq in order {
            let Some(resident) = self.running.get(&seq) else { continue };
            let is_due = resident.is_decoding() && !resident.is_exhausted(self.shape.positions_max);
            let is_due = is_due && !self.is_landing(resident);
            if is_due && draft.has_room() && self.ensure_pages(seq, 1) {
                self.draft(seq, 1, draft);
            }
        }
    }

    /// While decodes wait for this step, prompts take no more of it than the time budget allows.
    fn limit_prompts(&self, draft: &mut Draft) {
        let Some(token_ns) = self.token_ns.filter(|_| !draft.work.is_empty()) else { return };
        let affordable = self.config.step_budget.as_nanos() as f64 / token_ns;
        draft.tokens_left = draft.tokens_left.min((affordable as u32).max(CHUNK_MIN));
    }

    fn draft_chunks(&mut self, order: &[SeqId], draft: &mut Draft) {
        for &seq in order {
            let Some(resident) = self.running.get(&seq) else { continue };
            if resident.is_decoding() || resident.remaining() == 0 || !draft.has_room() {
                continue;
            }
            if !self.is_landing(resident) {
                self.draft_chunk(seq, draft);
            }
        }
    }

    /// Whether pages of a sequence are still on their way while steps run.
    fn is_landing(&self, resident: &Resident) -> bool {
        let is_late = resident.lands_with.is_some_and(|step| step > self.landed);
        is_late && self.shape.restores == Restores::Beside
    }

    /// Nobody else has anything to compute: the device may as well wait.
    fn draft_landing(&mut self, draft: &mut Draft) {
        for seq in self.by_importance() {
            let Some(resident) = self.running.get(&seq) else { continue };
            if self.is_landing(resident) && resident.remaining() > 0 && draft.has_room() {
                self.draft_chunk(seq, draft);
            }
        }
    }

    fn draft_newcomers(&mut self, now: Nanos, draft: &mut Draft) {
        while draft.has_room()
            && let Some(seq) = self.admit_next(now)
        {
            if !self.running.get(&seq).is_some_and(|resident| self.is_landing(resident)) {
                self.draft_chunk(seq, draft);
            }
        }
    }

    fn draft_chunk(&mut self, seq: SeqId, draft: &mut Draft) {
        let Some(resident) = self.running.get(&seq) else { return };
        let tokens = resident.remaining().min(self.config.chunk_tokens).min(draft.tokens_left);
        EngineStats::add(&self.stats.computed_tokens, u64::from(tokens));
        self.draft(seq, tokens, draft);
    }

    fn draft(&mut self, seq: SeqId, tokens: u32, draft: &mut Draft) {
        let Some(resident) = self.running.get_mut(&seq) else { return };
        let share = resident.share(tokens);
        let (start, work) = resident.work(share);
        draft.admit.extend(start);
        draft.work.push(work);
        draft.rows.push(FlightRow { seq, covers: resident.planned, draws: share.draws });
        draft.tokens_left -= tokens;
        draft.seats_left -= 1;
    }

    fn seal(&mut self, draft: Draft, now: Nanos) -> Option<StepPlan> {
        // Beside work only: a disk that refuses must not keep an idle engine awake with retries.
        if !draft.work.is_empty() {
            self.tiers.settle_levels();
        } else if !self.tiers.has_moves() && !self.has_to_land() {
            return None;
        }
        self.last_step = StepId(self.last_step.0 + 1);
        let id = self.last_step;
        self.tiers.device.begin_step(id);
        let moves = self.tiers.take_moves(id);
        if moves.iter().any(|of| matches!(of, PageMove::Restore { .. })) {
            self.restoring = id;
        }
        let retire = std::mem::take(&mut self.retire);
        let plan = StepPlan { id, retire, admit: draft.admit, moves, work: draft.work };
        let tokens = plan.tokens() as u32;
        self.flights.push_back(Flight { id, rows: draft.rows, tokens, since: now });
        Some(plan)
    }
}

impl Scheduler {
    /// No step is left that would say whether restores have arrived: an empty one asks. It has an end, since a step
    /// without work answers once everything is there.
    fn has_to_land(&self) -> bool {
        self.flights.is_empty() && self.landed < self.restoring
    }
}

impl Draft {
    fn has_room(&self) -> bool {
        self.tokens_left > 0 && self.seats_left > 0
    }
}
