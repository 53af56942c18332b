//! Leases: while one lives, no page of its path is evicted.
//!
//! A lease is given back in one of two ways. `Cache::release(lease, fence)` says which step is the
//! last to read the pages. A plain drop, as when a panic unwinds or a queue of requests is thrown
//! away, cannot say it, so the cache takes the newest step begun: nothing planned later can know the
//! lease. Either way the path stays held until that step is complete.
//!
//! A dropped lease reports through a channel that the cache drains at the start of each call. Not
//! `Rc<RefCell<…>>`: a lease must be `Send`, since a request may be dropped on another thread. Not a
//! mutex: the scheduler takes no lock. Not a flag per lease: the cache would have to scan them. The
//! channel holds at most one message per lease. Until the next call that takes `&mut Cache`, a
//! dropped lease still counts as held, which is the safe side.
//!
//! ```text
//! scheduler thread          any thread
//! Cache ── lease() ──► Lease ── drop ──┐
//!   ▲                                  │ id
//!   └───── drained at each call ◄──────┘
//! ```

use std::sync::mpsc::{Receiver, Sender, channel};

use base::PageId;

use crate::node::NodeId;
use crate::slab::Slab;

/// Slot of a live lease; reused only after its one message has been drained.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct LeaseId(pub u32);

/// The right to read a path of the tree, from its root.
#[must_use = "a dropped lease lets its pages be evicted"]
#[derive(Debug)]
pub struct Lease {
    pub(crate) id: LeaseId,
    pub(crate) pages: Vec<PageId>,
    page_tokens: u32,
    /// `None` once released explicitly.
    back: Option<Sender<LeaseId>>,
}

impl Lease {
    /// The pages of the path in order: the head of the sequence's page table.
    pub fn pages(&self) -> &[PageId] {
        &self.pages
    }

    /// Tokens that the pages hold; always whole pages.
    pub fn tokens(&self) -> u32 {
        self.pages.len() as u32 * self.page_tokens
    }

    pub(crate) fn disarm(mut self) -> LeaseId {
        self.back = None;
        self.id
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(back) = &self.back {
            // A cache that is gone has nothing left to release.
            let _ = back.send(self.id);
        }
    }
}

/// The cache's side: where each live lease ends.
pub(crate) struct LeaseTable {
    tips: Slab<NodeId>,
    back: Sender<LeaseId>,
    dropped: Receiver<LeaseId>,
    page_tokens: u32,
}

impl LeaseTable {
    pub fn new(page_tokens: u32) -> Self {
        let (back, dropped) = channel();
        Self { tips: Slab::new(), back, dropped, page_tokens }
    }

    pub fn open(&mut self, tip: NodeId, pages: Vec<PageId>) -> Lease {
        let id = LeaseId(self.tips.insert(tip));
        Lease { id, pages, page_tokens: self.page_tokens, back: Some(self.back.clone()) }
    }

    /// The node that `lease` ends in. A lease of another cache is a bug that must not pass.
    pub fn tip(&self, id: LeaseId) -> NodeId {
        *self.tips.get(id.0).expect("the lease was given by this cache and not released")
    }

    pub fn advance(&mut self, id: LeaseId, tip: NodeId) {
        self.tips[id.0] = tip;
    }

    pub fn close(&mut self, id: LeaseId) -> NodeId {
        self.tips.remove(id.0)
    }

    /// A lease dropped since the last call.
    pub fn next_dropped(&mut self) -> Option<LeaseId> {
        self.dropped.try_recv().ok()
    }

    pub fn len(&self) -> usize {
        self.tips.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = (LeaseId, NodeId)> {
        self.tips.iter().map(|(id, tip)| (LeaseId(id), *tip))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_lease_reports_once_and_a_released_one_never() {
        let mut table = LeaseTable::new(16);
        let (a, b) = (table.open(NodeId(1), vec![PageId(0)]), table.open(NodeId(2), Vec::new()));
        assert_eq!((a.tokens(), b.tokens()), (16, 0));
        let (id, other) = (a.id, b.id);
        drop(a);
        assert_eq!(b.disarm(), other);
        assert_eq!((table.next_dropped(), table.next_dropped()), (Some(id), None));
    }

    #[test]
    fn a_lease_may_be_dropped_on_another_thread() {
        fn is_send<T: Send>() {}
        is_send::<Lease>();
        let lease = LeaseTable::new(16).open(NodeId(0), Vec::new());
        drop(lease); // its table is gone: nothing to report to, nothing to panic about
    }
}
