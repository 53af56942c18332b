//! The present step on the device: what kernels need to know of each row, uploaded once.
//!
//! Every array has its place for life. A kernel that is launched for more rows than are live looks at the
//! count in [`StepArrays::live`] and leaves, so a recorded step serves any number of rows up to its bucket.

use super::driver::{DevicePtr, Driver, Memory};
use super::memory::DeviceArray;
use crate::{Batch, KernelError, SeqSpan, StepLimits};

/// Words of [`StepArrays::live`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Live {
    /// Rows of the batch.
    Rows = 0,
    /// Rows that the present gather picks, and those that follow it work on.
    Wanted = 1,
}

pub(super) struct StepArrays {
    live: DeviceArray<u32>,
    pub tokens: DeviceArray<u32>,
    pub positions: DeviceArray<u32>,
    /// The pool's page that holds each row's token.
    pub row_pages: DeviceArray<u32>,
    pub page_table: DeviceArray<u32>,
    /// Rows picked by gathers.
    picks: DeviceArray<u32>,
    /// Of the batch, on the host.
    pub spans: Vec<SeqSpan>,
    pub host_positions: Vec<u32>,
    host_tokens: Vec<u32>,
    host_table: Vec<u32>,
}

impl StepArrays {
    pub fn new(memory: &dyn Memory, limits: StepLimits, page_tokens: usize) -> Result<Self, KernelError> {
        let rows = |what| DeviceArray::new(memory, limits.rows, what);
        let table = limits.seqs * limits.positions.div_ceil(page_tokens);
        Ok(Self {
            live: DeviceArray::new(memory, 2, "step")?,
            tokens: rows("step")?,
            positions: rows("step")?,
            row_pages: rows("step")?,
            page_table: DeviceArray::new(memory, table, "page tables")?,
            picks: rows("step")?,
            spans: Vec::new(),
            host_positions: Vec::new(),
            host_tokens: Vec::new(),
            host_table: Vec::new(),
        })
    }

    /// Uploads a step.
    pub fn fill(&mut self, driver: &dyn Driver, batch: &Batch<'_>, page_tokens: usize) {
        self.spans.clear();
        self.spans.extend_from_slice(batch.spans);
        self.host_tokens.clear();
        self.host_tokens.extend_from_slice(batch.tokens);
        self.host_table.clear();
        self.host_table.extend_from_slice(batch.page_table);
        self.host_positions.clear();
        let mut pages = Vec::with_capacity(batch.tokens.len());
        for span in batch.spans {
            for position in span.start..span.start + span.rows {
                self.host_positions.push(position);
                pages.push(batch.page_table[span.table as usize + position as usize / page_tokens]);
            }
        }
        let rows = batch.tokens.len() as u32;
        self.live.put(driver, &[rows, rows]);
        self.tokens.put(driver, batch.tokens);
        self.positions.put(driver, &self.host_positions);
        self.row_pages.put(driver, &pages);
        self.page_table.put(driver, batch.page_table);
    }

    /// Announces the rows that a gather picks; where their list is.
    pub fn pick(&self, driver: &dyn Driver, rows: &[u32]) -> DevicePtr {
        self.picks.put(driver, rows);
        driver.upload(self.live(Live::Wanted), bytemuck::bytes_of(&(rows.len() as u32)));
        self.picks.at()
    }

    pub fn live(&self, which: Live) -> DevicePtr {
        self.live.at().plus(which as usize * size_of::<u32>())
    }

    /// The step as it was given.
    pub fn batch(&self) -> Batch<'_> {
        Batch { tokens: &self.host_tokens, spans: &self.spans, page_table: &self.host_table }
    }

    pub fn rows(&self) -> usize {
        self.host_positions.len()
    }
}
