//! What an admitted sequence holds of the device: a lease on the shared prefix, pages of its own behind
//! it, and how far it is planned and applied.
//!
//! ```text
//!   table:   [ leased, in the tree ........ | private, being filled .... ]
//!   tokens:  0 ................. applied ... planned ... known + unresolved draws
//! ```

use std::sync::Arc;

use base::{PageId, SeqId, StepId};
use kvcache::{Lease, TreeKey};

use super::sharing::PrefixHash;
use super::stream::Stream;
use crate::plan::{Draw, Input, Output, SeqStart, Work};

pub(crate) struct Resident {
    pub seq: SeqId,
    pub key: TreeKey,
    pub stream: Stream,
    pub lease: Lease,
    /// Leased pages, then private ones.
    table: Vec<PageId>,
    shared: Arc<[PageId]>,
    /// Pages of the table that the lease covers.
    leased: usize,
    /// Positions whose computation has been submitted.
    pub planned: u32,
    /// Positions whose KV is there.
    pub applied: u32,
    /// Draws submitted and not yet answered.
    unresolved: u32,
    /// The step that restores its first private pages.
    pub lands_with: Option<StepId>,
    /// The executor has not heard of this sequence yet.
    is_new: bool,
    /// Hashes of the pages this sequence claims to compute, and how many are settled.
    pub claims: Vec<PrefixHash>,
    pub settled: usize,
}

/// One step's share of a sequence, to be turned into `Work`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    pub tokens: u32,
    pub draws: bool,
}

impl Resident {
    /// `restored` tokens of the first private pages are on their way from the host.
    pub fn new(
        seq: SeqId,
        key: TreeKey,
        stream: Stream,
        lease: Lease,
        private: Vec<PageId>,
        restored: u32,
    ) -> Self {
        let leased = lease.pages().len();
        let reused = lease.tokens() + restored;
        let mut table = lease.pages().to_vec();
        table.extend(private);
        Self {
            seq,
            key,
            stream,
            lease,
            shared: table.as_slice().into(),
            table,
            leased,
            planned: reused,
            applied: reused,
            unresolved: 0,
            lands_with: None,
            is_new: true,
            claims: Vec::new(),
            settled: 0,
        }
    }

    /// Known tokens and draws on their way.
    fn total(&self) -> u32 {
        self.stream.tokens.len() as u32 + self.unresolved
    }

    /// Positions that can be computed now.
    pub fn remaining(&self) -> u32 {
        self.total() - self.planned
    }

    /// One position left: the next token of a sequence that is past its prompt.
    pub fn is_decoding(&self) -> bool {
        self.remaining() == 1 && self.total() as usize > self.stream.prompt_len()
    }

    /// All draws it may make are planned.
    pub fn is_exhausted(&self, positions_max: u32) -> bool {
        self.stream.generated() + self.unresolved >= self.stream.request.max_tokens
            || self.total() >= positions_max
    }

    /// Pages missing to hold `tokens` more positions.
    pub fn pages_missing(&self, tokens: u32, page_tokens: u32) -> usize {
        ((self.planned + tokens).div_ceil(page_tokens) as usize).saturating_sub(self.table.len())
    }

    pub fn add_pages(&mut self, pages: Vec<PageId>) {
        self.table.extend(pages);
        self.shared = self.table.as_slice().into();
    }

    pub fn private_pages(&self) -> usize {
        self.table.len() - self.leased
    }

    /// What the next `tokens` positions amount to.
    pub fn share(&self, tokens: u32) -> Share {
        Share { tokens, draws: self.planned + tokens == self.total() }
    }

    /// Turns a share into work and moves `planned`.
    pub fn work(&mut self, share: Share) -> (Option<SeqStart>, Work) {
        let start = self.planned;
        let end = start + share.tokens;
        let known = self.stream.tokens.len() as u32;
        let input = if start >= known {
            Input::Fed
        } else {
            Input::Tokens(self.stream.tokens[start as usize..end.min(known) as usize].to_vec())
        };
        let output = self.output(start, end, share);
        self.planned = end;
        self.unresolved += u32::from(share.draws);
        let work = Work { seq: self.seq, start, input, pages: Arc::clone(&self.shared), output };
        (self.introduce(), work)
    }

    fn output(&self, start: u32, end: u32, share: Share) -> Output {
        let draw = if share.draws { Draw::Yes } else { Draw::No };
        let prompt = self.stream.prompt_len() as u32;
        if self.stream.wants_prompt_scores() && start + 1 < prompt {
            let targets = &self.stream.tokens[start as usize + 1..prompt.min(end + 1) as usize];
            return Output::Prompt { targets: targets.to_vec(), draw };
        }
        if share.draws { Output::Sample } else { Output::None }
    }

    fn introduce(&mut self) -> Option<SeqStart> {
        std::mem::replace(&mut self.is_new, false).then(|| SeqStart {
            seq: self.seq,
            params: Arc::clone(&self.stream.request.params),
            prompt: self.stream.prompt(),
            prompt_logprobs: self.stream.request.prompt_logprobs,
            generated: self.stream.generated_tokens(),
        })
    }

    /// A step answered: KV up to `covers` is there.
    pub fn apply(&mut self, covers: u32, draws: bool) {
        debug_assert!(covers > self.applied && covers <= self.planned);
        self.applied = covers;
        self.unresolved -= u32::from(draws);
    }

    /// Whole pages computed and not yet in the tree: how many tokens the tree could hold.
    pub fn publishable(&self, page_tokens: u32) -> Option<u32> {
        let whole = self.applied.min(self.stream.tokens.len() as u32) / page_tokens;
        (whole as usize > self.leased).then_some(whole * page_tokens)
    }

    /// The private pages that cover the whole pages up to `tokens`.
    pub fn unpublished(&self, tokens: u32, page_tokens: u32) -> &[PageId] {
        &self.table[self.leased..(tokens / page_tokens) as usize]
    }

    /// The tree's pages take the place of ours up to `tokens`.
    pub fn adopt(&mut self, canonical: &[PageId]) {
        let published = self.leased..self.leased + canonical.len();
        self.leased = published.end;
        if self.table[published.clone()] != *canonical {
            self.table[published].copy_from_slice(canonical);
            self.shared = self.table.as_slice().into();
        }
    }

    /// Hands back what it holds: the stream, the lease, and its private pages.
    pub fn dissolve(mut self) -> (Stream, Lease, Vec<PageId>) {
        let private = self.table.split_off(self.leased);
        (self.stream, self.lease, private)
    }

    pub fn check(&self, page_tokens: u32) {
        assert!(self.applied <= self.planned && self.planned <= self.total());
        assert!(self.leased <= self.table.len());
        assert!(self.planned.div_ceil(page_tokens) as usize <= self.table.len(), "planned past its pages");
        assert_eq!(self.lease.pages(), &self.table[..self.leased], "lease and table agree");
    }
}
