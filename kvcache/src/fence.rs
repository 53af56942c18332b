//! What waits for a step: private pages to become free, and leases to let go.
//!
//! Steps run asynchronously, so when the scheduler drops a sequence, steps that read and write its
//! pages may be in flight. A fence names the last of them; what stands behind it moves when that step
//! is complete. A lease behind a fence still holds its path, so a page of the tree is only ever
//! evicted when no step reads it, and eviction itself needs no fence: evicted pages can be handed
//! out at once. (The other way, evicting early and fencing the page, would make `reserve` wait for
//! pages that it has just counted as available.)

use std::collections::BTreeMap;

use base::{PageId, StepId};

use crate::lease::LeaseId;

#[derive(Default)]
pub(crate) struct Waiting {
    pub pages: Vec<PageId>,
    pub leases: Vec<LeaseId>,
}

#[derive(Default)]
pub(crate) struct Fences {
    waiting: BTreeMap<StepId, Waiting>,
    /// The newest step begun: what a lease dropped without a fence waits for.
    begun: StepId,
    completed: StepId,
}

impl Fences {
    pub fn begin(&mut self, step: StepId) {
        self.begun = self.begun.max(step);
    }

    pub fn begun(&self) -> StepId {
        self.begun
    }

    pub fn is_complete(&self, step: StepId) -> bool {
        step <= self.completed
    }

    pub fn completed(&self) -> StepId {
        self.completed
    }

    /// `None` if `fence` has completed, and there is nothing to wait for.
    pub fn behind(&mut self, fence: StepId) -> Option<&mut Waiting> {
        (!self.is_complete(fence)).then(|| self.waiting.entry(fence).or_default())
    }

    /// Records that steps up to `step` are done.
    pub fn complete(&mut self, step: StepId) {
        self.completed = self.completed.max(step);
    }

    /// What waited for a step that has completed, fence by fence.
    pub fn next_due(&mut self) -> Option<Waiting> {
        let first = self.waiting.first_entry()?;
        (*first.key() <= self.completed).then(|| first.remove())
    }

    pub fn iter(&self) -> impl Iterator<Item = (StepId, &Waiting)> {
        self.waiting.iter().map(|(step, waiting)| (*step, waiting))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_waits_for_completed_steps_is_due() {
        let mut fences = Fences::default();
        fences.behind(StepId(5)).unwrap().pages.push(PageId(5));
        fences.behind(StepId(3)).unwrap().pages.push(PageId(3));
        fences.complete(StepId(4));
        assert_eq!(fences.next_due().unwrap().pages, [PageId(3)]);
        assert!(fences.next_due().is_none());
        assert!(fences.behind(StepId(4)).is_none());
        fences.complete(StepId(9));
        fences.complete(StepId(6));
        assert_eq!(fences.next_due().unwrap().pages, [PageId(5)]);
        assert!(fences.is_complete(StepId(9)));
    }
}
