//! Pages on their way between pool and host, beside the steps.
//!
//! ```text
//! work     ── step 7 ──●a────────── step 8 (needs neither) ──────────── ▷b step 9 (reads restored pages) ──
//! copies               ▷a─ save, save ─── restore, restore ──●b
//! ```
//!
//! Copies begin once the work so far has run (`a`). A batch ends with an event (`b`), and work waits for it only if it
//! touches the batch's pages: reads or writes what is restored, or writes what is saved. Who waits is decided here, from
//! the page numbers, and not by the scheduler: a page that was given up and handed out again while its copy still runs
//! is as safe as any other.
//!
//! A batch and not a page has an event: the copies of a batch run one after the other at the rate of the link, and its
//! pages mostly belong to one sequence. At most [`RING`] batches are under way; the next waits for the oldest.

use std::collections::{HashSet, VecDeque};

use super::driver::{Driver, Event, Stream};
use crate::{Copied, CopyBatch};

/// Batches under way.
const RING: usize = 32;

/// One batch.
struct Under {
    batch: CopyBatch,
    begun: Event,
    ended: Event,
    bytes: u64,
    saved: Vec<u32>,
    restored: Vec<u32>,
}

/// Batches in order; the last may still be open.
pub(super) struct Copies {
    events: Vec<[Event; 2]>,
    /// Where the work was when the open batch was begun.
    work: Event,
    under_way: VecDeque<Under>,
    is_open: bool,
    /// Closed, and not told to the caller yet.
    ended: Option<CopyBatch>,
    batches: u64,
    copied: Copied,
}

impl Copies {
    pub fn new(driver: &dyn Driver) -> Self {
        let events = (0..RING).map(|_| [driver.event(), driver.event()]).collect();
        Self {
            events,
            work: driver.event(),
            under_way: VecDeque::new(),
            is_open: false,
            ended: None,
            batches: 0,
            copied: Copied::default(),
        }
    }

    /// Notes that `page` is saved by a copy that the caller begins now.
    pub fn save(&mut self, driver: &dyn Driver, page: u32, bytes: usize) {
        let under = self.open(driver);
        under.saved.push(page);
        under.bytes += bytes as u64;
    }

    /// Notes that `page` is restored by a copy that the caller begins now.
    pub fn restore(&mut self, driver: &dyn Driver, page: u32, bytes: usize) {
        let under = self.open(driver);
        under.restored.push(page);
        under.bytes += bytes as u64;
    }

    fn open(&mut self, driver: &dyn Driver) -> &mut Under {
        if !self.is_open {
            self.begin(driver);
        }
        self.under_way.back_mut().expect("one is open")
    }

    fn begin(&mut self, driver: &dyn Driver) {
        if self.under_way.len() == RING {
            driver.pass(self.under_way[0].ended);
            self.settle(driver);
        }
        driver.mark(self.work, Stream::Work);
        driver.follow(Stream::Copies, self.work);
        self.batches += 1;
        let [begun, ended] = self.events[self.batches as usize % RING];
        driver.mark(begun, Stream::Copies);
        let batch = CopyBatch(self.batches);
        self.under_way.push_back(Under {
            batch,
            begun,
            ended,
            bytes: 0,
            saved: Vec::new(),
            restored: Vec::new(),
        });
        self.is_open = true;
    }

    /// The batch behind all copies since the last call; `None` if there were none.
    pub fn end_batch(&mut self, driver: &dyn Driver) -> Option<CopyBatch> {
        self.close(driver);
        self.ended.take()
    }

    fn close(&mut self, driver: &dyn Driver) {
        if std::mem::take(&mut self.is_open) {
            let last = self.under_way.back().expect("one is open");
            driver.mark(last.ended, Stream::Copies);
            self.ended = Some(last.batch);
        }
    }

    /// Work that is given to the device from now on waits for copies of the pages that it reads or writes.
    pub fn guard(
        &mut self,
        driver: &dyn Driver,
        mut reads: impl FnMut(u32) -> bool,
        mut writes: impl FnMut(u32) -> bool,
    ) {
        self.close(driver);
        self.settle(driver);
        let mut conflicts = |under: &Under| {
            under.restored.iter().any(|&page| reads(page) || writes(page))
                || under.saved.iter().any(|&page| writes(page))
        };
        // Copies run in order: whoever waits for a batch has waited for those before it.
        if let Some(last) = self.under_way.iter().rev().find(|under| conflicts(under)) {
            driver.follow(Stream::Work, last.ended);
        }
    }

    /// As [`Copies::guard`] for work that reads and writes these pages.
    pub fn guard_pages(&mut self, driver: &dyn Driver, pages: &[u32]) {
        if !self.is_idle() {
            let pages: HashSet<u32> = pages.iter().copied().collect();
            self.guard(driver, |_| false, |page| pages.contains(&page));
        }
    }

    pub fn is_idle(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Whether a batch has arrived.
    pub fn has_arrived(&mut self, driver: &dyn Driver, batch: CopyBatch) -> bool {
        self.settle(driver);
        self.under_way.front().is_none_or(|under| under.batch > batch)
    }

    /// Waits for a batch.
    pub fn wait(&mut self, driver: &dyn Driver, batch: CopyBatch) {
        if let Some(under) = self.under_way.iter().rev().find(|under| under.batch <= batch) {
            driver.pass(under.ended);
        }
        self.settle(driver);
    }

    /// What arrived since the last call.
    pub fn take_copied(&mut self) -> Copied {
        std::mem::take(&mut self.copied)
    }

    /// Lets go of the batches that have arrived.
    fn settle(&mut self, driver: &dyn Driver) {
        let closed = self.under_way.len() - usize::from(self.is_open);
        for _ in 0..closed {
            let Some(first) = self.under_way.front().filter(|first| driver.has_passed(first.ended)) else {
                return;
            };
            self.copied.bytes += first.bytes;
            self.copied.took_ns += driver.between_ns(first.begun, first.ended);
            self.under_way.pop_front();
        }
    }
}
