//! One request inside a replica: how far it is, and which pages it has.

use std::sync::Arc;

use base::{Generation, NamespaceId, PageId, TokenId};
use kvcache::Lease;

use super::Submission;

/// A request at a replica; one try of one router.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket(pub u64);

impl Ticket {
    /// The `number`-th of a router's process.
    pub fn new(router: usize, epoch: u32, number: u64) -> Self {
        Self((router as u64) << 56 | u64::from(epoch & 0xffff) << 40 | number)
    }

    pub fn router(self) -> usize {
        (self.0 >> 56) as usize
    }

    pub fn epoch(self) -> u32 {
        (self.0 >> 40 & 0xffff) as u32
    }
}

/// What a router hears of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// The prompt is computed and a token drawn; so many tokens of it were found.
    First {
        cached_tokens: u32,
    },
    /// A further token, so long after the one before.
    Token {
        gap_ns: u64,
    },
    Finished {
        tokens: u32,
    },
}

pub struct Seq {
    pub submission: Submission,
    /// The generation it runs in, chosen when it begins.
    pub generation: Generation,
    /// Prompt and what was drawn.
    pub tokens: Vec<TokenId>,
    /// Tokens whose KV is there.
    pub computed: u32,
    pub drawn: u32,
    /// `None` while it waits.
    pub lease: Option<Lease>,
    /// Pages after the lease's.
    pub private: Vec<PageId>,
    /// The page that it waits for, because another computes it.
    pub blocked_on: Option<u64>,
    /// Of the first admission.
    pub cached_tokens: Option<u32>,
    /// The first of its prompt's pages that others wait for, because it said that it computes it and those after.
    pub claimed_from: Option<usize>,
    pub last_token_ns: u64,
    page_tokens: u32,
}

impl Seq {
    pub fn new(submission: Submission, page_tokens: u32) -> Self {
        Self {
            tokens: submission.tokens.to_vec(),
            generation: submission.generation,
            submission,
            computed: 0,
            drawn: 0,
            lease: None,
            private: Vec::new(),
            blocked_on: None,
            cached_tokens: None,
            claimed_from: None,
            last_token_ns: 0,
            page_tokens,
        }
    }

    pub fn ticket(&self) -> Ticket {
        self.submission.ticket
    }

    pub fn namespace(&self) -> NamespaceId {
        self.submission.namespace
    }

    pub fn names(&self) -> &Arc<[u64]> {
        &self.submission.names
    }

    /// Tokens that a step has yet to compute; the last draws the next token.
    pub fn left(&self) -> u32 {
        self.tokens.len() as u32 - self.computed
    }

    /// One token drawn already and only that one to compute.
    pub fn is_decoding(&self) -> bool {
        self.drawn > 0 && self.left() == 1
    }

    pub fn draw(&mut self) {
        let token = self.submission.output.token(self.drawn);
        self.tokens.push(token);
        self.drawn += 1;
    }

    pub fn is_finished(&self) -> bool {
        self.drawn >= self.submission.output.tokens
    }

    /// Pages that it lacks to compute up to token `upto`.
    pub fn pages_lacking(&self, upto: u32) -> usize {
        let have = self.lease.as_ref().map_or(0, |lease| lease.pages().len()) + self.private.len();
        (upto.div_ceil(self.page_tokens) as usize).saturating_sub(have)
    }
}
