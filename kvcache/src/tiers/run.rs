//! A run: consecutive pages of one path on their way from one tier to another.
//!
//! A run holds its path in the tier it fills, and in the cold tier or host it reads, until every page
//! has answered: what is being copied cannot be evicted. Pages answer in any order; a page counts only
//! if all before it in the run have arrived, for a tier holds whole prefixes.

use base::{PageId, StepId, Tier, TokenId};

use super::order::{Fault, Ticket};
use super::travel::PrefetchId;
use crate::TreeKey;
use crate::lease::Lease;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct RunId(pub u32);

pub(super) struct Run {
    pub key: TreeKey,
    /// The whole path up to the end of the run.
    pub tokens: Vec<TokenId>,
    /// Where it reads from; `None` for the device, whose pages a step saves before it rewrites them.
    pub source: Option<(Tier, Lease)>,
    pub target: Tier,
    pub to: Lease,
    /// Pages of the path before the run.
    pub first: usize,
    /// The run's places in the target.
    pub places: Vec<PageId>,
    /// Pages without an answer.
    pub left: usize,
    /// The first page that failed, counted from `first`.
    pub failed: Option<usize>,
    pub fault: Option<Fault>,
    /// For a save: the step that does it, once that is known.
    pub step: Option<StepId>,
    pub prefetch: Option<PrefetchId>,
}

impl Run {
    /// A run without a source or a step yet.
    pub fn new(
        key: &TreeKey,
        tokens: Vec<TokenId>,
        target: Tier,
        to: Lease,
        first: usize,
        places: Vec<PageId>,
    ) -> Self {
        Self {
            key: key.clone(),
            tokens,
            source: None,
            target,
            to,
            first,
            left: places.len(),
            places,
            failed: None,
            fault: None,
            step: None,
            prefetch: None,
        }
    }

    pub fn fail(&mut self, index: usize, fault: Fault) {
        if self.failed.is_none_or(|first| index < first) {
            self.failed = Some(index);
            self.fault = Some(fault);
        }
    }

    pub fn fail_all(&mut self, fault: Fault) {
        self.fail(0, fault);
        self.left = 0;
    }
}

impl Ticket {
    pub(super) fn new(run: RunId, index: usize) -> Self {
        Ticket(u64::from(run.0) << 32 | index as u64)
    }

    pub(super) fn run(self) -> RunId {
        RunId((self.0 >> 32) as u32)
    }

    pub(super) fn index(self) -> usize {
        (self.0 & u64::from(u32::MAX)) as usize
    }
}
