//! Frames in the hands of copies that run beside the steps.
//!
//! A step's answer says that its saves are in the host: others read those frames from then on. What it restores may
//! arrive later, since steps wait for it on the device; the frames stay held until it has, and the answers say from
//! which step on restores are still under way.
//!
//! Bounded by the frames of the host: each is held at most once for writing, and a page's restore ends before the page
//! is handed out again.

use std::collections::VecDeque;

use base::StepId;
use kernels::{Backend, CopyBatch};
use transfer::{OwnedRead, OwnedWrite};

/// A frame until its copy has arrived.
pub(super) enum Held {
    /// Never looked at here: the guards are held for the sake of their end.
    Write(#[expect(dead_code, reason = "a guard")] OwnedWrite),
    Read(#[expect(dead_code, reason = "a guard")] OwnedRead),
}

struct Batch {
    batch: CopyBatch,
    step: StepId,
    /// Restores may arrive after their step has answered.
    restores: bool,
    _frames: Vec<Held>,
}

/// Everything under way, oldest first.
#[derive(Default)]
pub(super) struct Traffic {
    open: Vec<Held>,
    batches: VecDeque<Batch>,
}

impl Traffic {
    /// A copy was begun that uses this frame.
    pub fn hold(&mut self, frame: Held) {
        self.open.push(frame);
    }

    /// Whether the open batch is one of saves.
    pub fn is_saving(&self) -> bool {
        matches!(self.open.last(), Some(Held::Write(_)))
    }

    /// The copies of one kind of `step` have all been begun.
    pub fn end_batch(&mut self, backend: &mut dyn Backend, step: StepId) {
        let frames = std::mem::take(&mut self.open);
        let Some(batch) = backend.end_batch() else { return };
        let restores = frames.iter().any(|held| matches!(held, Held::Read(_)));
        self.batches.push_back(Batch { batch, step, restores, _frames: frames });
    }

    /// Waits for what must be there when a step answers.
    pub fn settle_saves(&mut self, backend: &mut dyn Backend) {
        if let Some(last) = self.batches.iter().rev().find(|batch| !batch.restores) {
            backend.wait_for(last.batch);
        }
        self.settle(backend);
    }

    pub fn settle_all(&mut self, backend: &mut dyn Backend) {
        if let Some(last) = self.batches.back() {
            backend.wait_for(last.batch);
        }
        self.settle(backend);
    }

    /// The first step whose restores are still under way.
    pub fn landing(&self) -> Option<StepId> {
        self.batches.front().map(|batch| batch.step)
    }

    fn settle(&mut self, backend: &mut dyn Backend) {
        while self.batches.front().is_some_and(|first| backend.has_arrived(first.batch)) {
            self.batches.pop_front();
        }
    }
}
