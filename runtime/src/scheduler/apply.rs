//! What a step's answer changes: tokens reach their clients, full pages reach the tree, fenced pages
//! become free.

use base::{SeqId, StepId};

use super::sharing::Owner;
use super::{FlightRow, Scheduler};
use crate::plan::{RowResult, StepResult};
use crate::request::{Event, Finish};
use crate::stats::EngineStats;

/// A step of at least this many tokens tells how long a prefill token takes.
const RATE_TOKENS_MIN: u32 = 64;

impl Scheduler {
    /// Applies the answer of the oldest step in flight. Answers of steps that were given up are ignored.
    pub fn apply(&mut self, result: StepResult) {
        if self.flights.front().is_none_or(|f| f.id != result.id) {
            return;
        }
        let Some(flight) = self.flights.pop_front() else { return };
        assert_eq!(flight.rows.len(), result.rows.len(), "a step answers every row");
        self.learn_rate(flight.tokens, result.took_ns);
        self.promotions.learn_copy(&result.moved);
        for (row, answer) in flight.rows.iter().zip(result.rows) {
            self.apply_row(*row, answer);
        }
        self.tiers.device.complete(flight.id);
        self.landed = result.moved.landing.map_or(flight.id, |first| StepId(first.0 - 1));
        self.tiers.complete(flight.id, self.landed, &result.moved.unsaved);
        self.tiers.scrubbed(flight.id, &result.moved.scrubbed);
        EngineStats::add(&self.stats.steps, 1);
        EngineStats::add(&self.stats.step_ns, result.took_ns);
    }

    fn apply_row(&mut self, row: FlightRow, answer: RowResult) {
        // Finished, aborted or preempted meanwhile: its draw is void.
        let Some(resident) = self.running.get_mut(&row.seq) else { return };
        resident.apply(row.covers, row.draws);
        resident.stream.add_prompt_scores(answer.prompt);
        let mut end = None;
        if let Some(drawn) = answer.sampled {
            EngineStats::add(&self.stats.generation_tokens, 1);
            end = resident.stream.push(drawn, self.shape.positions_max);
        }
        let is_abandoned = resident.stream.is_abandoned();
        self.publish(row.seq);
        if is_abandoned {
            end = end.or(Some(Finish::Aborted));
        }
        if let Some(finish) = end {
            self.finish(row.seq, Event::Finished(finish));
        }
    }

    /// Puts whole computed pages into the tree and wakes those who waited for them.
    fn publish(&mut self, seq: SeqId) {
        let fence = self.fence();
        let page_tokens = self.shape.page_tokens;
        if !self.running.get(&seq).is_some_and(|resident| self.retains(&resident.stream)) {
            return;
        }
        let Some(resident) = self.running.get_mut(&seq) else { return };
        let Some(tokens) = resident.publishable(page_tokens) else { return };
        let pages = resident.unpublished(tokens, page_tokens).to_vec();
        let known = &resident.stream.tokens[..tokens as usize];
        if self.tiers.admits(&resident.key) {
            let published = self.tiers.device.publish(&mut resident.lease, known, &pages, fence);
            resident.adopt(&published.pages);
            let known = &resident.stream.tokens[..resident.lease.tokens() as usize];
            self.tiers.published(&resident.key, known, resident.lease.pages());
        }
        let settled = resident.settled;
        resident.settled = resident.claims.len().min(settled + pages.len());
        let done = &resident.claims[settled..resident.settled];
        for hash in self.computing.release(Owner::Sequence(seq), done) {
            self.queue.wake(hash);
        }
    }

    fn learn_rate(&mut self, tokens: u32, took_ns: u64) {
        if tokens >= RATE_TOKENS_MIN && took_ns > 0 {
            let seen = took_ns as f64 / f64::from(tokens);
            self.token_ns = Some(self.token_ns.map_or(seen, |old| old * 0.8 + seen * 0.2));
        }
    }
}
