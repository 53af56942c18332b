//! One step's work in the terms of kernels: flattened tokens and where each one's KV lives.

/// A run of consecutive tokens of one sequence: a prefill chunk or one decode token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SeqSpan {
    /// First row of this run in the flattened batch.
    pub row: u32,
    /// Tokens in the run.
    pub rows: u32,
    /// Position of the first token; everything before it is already in the pages.
    pub start: u32,
    /// Where this sequence's page table starts in [`Batch::page_table`].
    pub table: u32,
}

/// A step: tokens flattened over sequences, with a shared page table.
///
/// The token at position `p` of a span lives in page `page_table[table + p / page_tokens]` at slot
/// `p % page_tokens`, for past and present tokens alike.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    pub tokens: &'a [u32],
    pub spans: &'a [SeqSpan],
    pub page_table: &'a [u32],
}

impl Batch<'_> {
    /// Panics with the reason if the step is malformed: a wrong page is worse than a failed step.
    pub fn check(&self, page_tokens: usize, pages: usize, vocab: usize) {
        let mut row = 0;
        for s in self.spans {
            assert_eq!(s.row, row, "spans must be dense and in order");
            assert!(s.rows > 0, "empty span");
            let last_page = (s.start + s.rows - 1) as usize / page_tokens;
            assert!(s.table as usize + last_page < self.page_table.len(), "page table too short");
            row += s.rows;
        }
        assert_eq!(row as usize, self.tokens.len(), "spans must cover all tokens");
        assert!(self.page_table.iter().all(|&p| (p as usize) < pages), "page outside the pool");
        assert!(self.tokens.iter().all(|&t| (t as usize) < vocab), "token outside the vocabulary");
    }
}
