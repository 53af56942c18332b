//! The pages of the device, and the one state that each is in.
//!
//! ```text
//!        take            publish             evict, clear
//! Free ───────► Private ─────────► Cached ───────────────► Free
//!   ▲              │ free(fence), or a duplicate at publish
//!   └── complete ──┴─► Fenced
//! ```
//!
//! A page handed to a sequence is private: nobody else can reach it until it is published whole. A
//! private page that goes back waits behind a fence, since the step in flight may still write it.
//! Every move asserts the state it leaves, in release too: a page freed twice would show one
//! request's keys and values to another, and a panic costs only its step.

use std::collections::HashSet;

use base::PageId;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PageState {
    Free,
    Private,
    Cached,
    Fenced,
}

pub(crate) struct PagePool {
    states: Vec<PageState>,
    /// The last freed is the next taken, while it is warm in the device's caches.
    /// Pages claimed out of turn stay listed until they are met; the state decides.
    free: Vec<PageId>,
    free_count: usize,
    private: usize,
    fenced: usize,
}

impl PagePool {
    pub fn new(pages: u32) -> Self {
        Self {
            states: vec![PageState::Free; pages as usize],
            free: (0..pages).rev().map(PageId).collect(),
            free_count: pages as usize,
            private: 0,
            fenced: 0,
        }
    }

    pub fn total(&self) -> usize {
        self.states.len()
    }

    pub fn free(&self) -> usize {
        self.free_count
    }

    pub fn private(&self) -> usize {
        self.private
    }

    pub fn fenced(&self) -> usize {
        self.fenced
    }

    pub fn state(&self, page: PageId) -> PageState {
        self.states[page.0 as usize]
    }

    /// Every free page, in no order.
    pub fn free_pages(&self) -> impl Iterator<Item = PageId> {
        let pages = (0..self.states.len() as u32).map(PageId);
        pages.filter(|&page| self.state(page) == PageState::Free)
    }

    /// The caller has made sure that `n` are free.
    pub fn take(&mut self, n: usize) -> Vec<PageId> {
        let mut pages = Vec::with_capacity(n);
        while pages.len() < n {
            let page = self.free.pop().expect("as many free pages are listed as are counted");
            if self.state(page) == PageState::Free {
                self.shift(page, PageState::Free, PageState::Private);
                pages.push(page);
            }
        }
        self.free_count -= n;
        self.private += n;
        pages
    }

    /// Takes just these pages, as they are known from before a restart or to be erased; all or none.
    pub fn take_exactly(&mut self, pages: &[PageId]) -> bool {
        let wanted: HashSet<PageId> = pages.iter().copied().collect();
        let is_free = |page: &PageId| self.states.get(page.0 as usize) == Some(&PageState::Free);
        if wanted.len() != pages.len() || !pages.iter().all(is_free) {
            return false;
        }
        pages.iter().for_each(|&page| self.shift(page, PageState::Free, PageState::Private));
        self.free_count -= pages.len();
        self.private += pages.len();
        true
    }

    pub fn publish(&mut self, page: PageId) {
        self.shift(page, PageState::Private, PageState::Cached);
        self.private -= 1;
    }

    pub fn fence(&mut self, page: PageId) {
        self.shift(page, PageState::Private, PageState::Fenced);
        self.private -= 1;
        self.fenced += 1;
    }

    pub fn unfence(&mut self, page: PageId) {
        self.shift(page, PageState::Fenced, PageState::Free);
        self.fenced -= 1;
        self.list(page);
    }

    pub fn evict(&mut self, page: PageId) {
        self.shift(page, PageState::Cached, PageState::Free);
        self.list(page);
    }

    fn list(&mut self, page: PageId) {
        self.free.push(page);
        self.free_count += 1;
        // Claims leave entries behind; more of them than pages are not worth keeping.
        if self.free.len() > 2 * self.states.len() {
            self.free = self.free_pages().collect();
        }
    }

    fn shift(&mut self, page: PageId, from: PageState, to: PageState) {
        let state = &mut self.states[page.0 as usize];
        assert!(
            *state == from,
            "page {page} is {state:?}, not {from:?}: it was given back or published twice"
        );
        *state = to;
    }

    pub fn bytes(&self) -> usize {
        self.states.len() * (size_of::<PageState>() + size_of::<PageId>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_taken_in_order_and_the_last_freed_comes_first() {
        let mut pool = PagePool::new(4);
        assert_eq!(pool.take(3), [PageId(0), PageId(1), PageId(2)]);
        pool.fence(PageId(1));
        assert_eq!((pool.free(), pool.private(), pool.fenced()), (1, 2, 1));
        pool.unfence(PageId(1));
        assert_eq!(pool.take(2), [PageId(1), PageId(3)]);
    }

    #[test]
    #[should_panic(expected = "page 0 is Fenced, not Private")]
    fn no_double_free() {
        let mut pool = PagePool::new(4);
        pool.take(1);
        pool.fence(PageId(0));
        pool.fence(PageId(0));
    }

    #[test]
    #[should_panic(expected = "page 0 is Cached, not Private")]
    fn a_published_page_is_not_freed_as_private() {
        let mut pool = PagePool::new(4);
        pool.take(1);
        pool.publish(PageId(0));
        pool.fence(PageId(0));
    }
}
