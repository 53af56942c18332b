//! A step that failed: its requests fail with the reason, everyone else starts over from their tokens.
//!
//! What the failed step wrote is unknown, so the whole pool is given up: a recomputed page costs time, a
//! wrong one costs trust. Draws are a function of (seed, position), so those who start over lose none.

use base::SeqId;

use super::{Place, Scheduler};
use crate::executor::StepError;
use crate::request::{Event, Refusal};
use crate::stats::EngineStats;

impl Scheduler {
    /// Handles a failed step; false if it speaks of a step that was given up already.
    pub fn fail_step(&mut self, error: &StepError) -> bool {
        let Some(flight) = self.flights.iter().find(|f| f.id == error.step()) else { return false };
        let failed: Vec<SeqId> = flight.rows.iter().map(|row| row.seq).collect();
        self.flights.clear();
        self.tiers.device.complete(self.last_step);
        for seq in failed {
            self.finish(seq, Event::Failed(Refusal::Engine(error.to_string())));
        }
        self.start_over();
        true
    }

    /// Everyone who runs goes back to the queue; the pool is empty again.
    fn start_over(&mut self) {
        for (_, resident) in std::mem::take(&mut self.running) {
            let (mut stream, lease, _) = resident.dissolve();
            drop(lease);
            stream.forget_prompt_scores();
            self.places.insert(stream.id(), Place::Queued);
            self.queue.push(stream);
        }
        self.queue.wake_all();
        self.computing.clear();
        self.promotions.clear();
        self.retire.clear();
        self.tiers.reset_device();
        self.landed = self.last_step;
        EngineStats::add(&self.stats.executor_restarts, 1);
    }
}
