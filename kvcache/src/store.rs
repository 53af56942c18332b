//! What is known of each cached page, by page id: its tokens, fingerprint and, with events on, name.
//!
//! Flat arrays as long as the pool instead of vectors in the nodes: splitting a node moves page ids
//! and no tokens, metadata is bounded and allocated once, and a run of pages that were reserved
//! together compares as one sweep of memory. 4 bytes per token + 8 per page (+ 32 with events):
//! 0.02–0.1 % of the pages of any model worth serving. Entries of pages outside the tree are overwritten.

use base::{ChainHash, PageId, TokenId};

use crate::fingerprint::Fingerprint;

/// No page is called that: no chain of SHA-256 is known to end in it.
const NAMELESS: ChainHash = ChainHash([0; 32]);

pub(crate) struct PageStore {
    page_tokens: usize,
    tokens: Vec<TokenId>,
    prints: Vec<u64>,
    /// Empty when events are off.
    names: Vec<ChainHash>,
    pub hasher: Fingerprint,
}

impl PageStore {
    pub fn new(pages: usize, page_tokens: usize, hasher: Fingerprint, names: Names) -> Self {
        let named = if names == Names::Kept { pages } else { 0 };
        Self {
            page_tokens,
            // No token; and writing it maps the memory now, not page fault by page fault while serving.
            tokens: vec![TokenId::MAX; pages * page_tokens],
            prints: vec![u64::MAX; pages],
            names: vec![NAMELESS; named],
            hasher,
        }
    }

    pub fn page_tokens(&self) -> usize {
        self.page_tokens
    }

    pub fn tokens(&self, page: PageId) -> &[TokenId] {
        let start = page.0 as usize * self.page_tokens;
        &self.tokens[start..start + self.page_tokens]
    }

    pub fn print(&self, page: PageId) -> u64 {
        self.prints[page.0 as usize]
    }

    /// `None` when events are off, or the page has none: its namespace has no key.
    pub fn name(&self, page: PageId) -> Option<ChainHash> {
        self.names.get(page.0 as usize).copied().filter(|name| *name != NAMELESS)
    }

    pub fn write(&mut self, page: PageId, tokens: &[TokenId], print: u64, name: Option<ChainHash>) {
        let start = page.0 as usize * self.page_tokens;
        self.tokens[start..start + self.page_tokens].copy_from_slice(tokens);
        self.prints[page.0 as usize] = print;
        if let (Some(slot), Some(name)) = (self.names.get_mut(page.0 as usize), name) {
            *slot = name;
        }
    }

    /// Overwrites what is known of a page that has left its tree: its tokens are a tenant's.
    pub fn wipe(&mut self, page: PageId) {
        let start = page.0 as usize * self.page_tokens;
        self.tokens[start..start + self.page_tokens].fill(TokenId::MAX);
        self.prints[page.0 as usize] = u64::MAX;
        if let Some(name) = self.names.get_mut(page.0 as usize) {
            *name = NAMELESS;
        }
    }

    /// How many of `pages` hold the leading tokens of `tokens`. Neighbours in the pool, the common
    /// case, are compared in one go.
    pub fn matching(&self, pages: &[PageId], tokens: &[TokenId]) -> usize {
        let mut matched = 0;
        let whole = pages.len().min(tokens.len() / self.page_tokens);
        while matched < whole {
            let run = neighbours(&pages[matched..whole]);
            let start = pages[matched].0 as usize * self.page_tokens;
            let held = &self.tokens[start..start + run * self.page_tokens];
            let asked = &tokens[matched * self.page_tokens..][..held.len()];
            if held != asked {
                return matched + self.matching_apart(&pages[matched..matched + run], asked);
            }
            matched += run;
        }
        matched
    }

    fn matching_apart(&self, pages: &[PageId], tokens: &[TokenId]) -> usize {
        let same = |(page, asked): &(&PageId, &[TokenId])| self.tokens(**page) == *asked;
        pages.iter().zip(tokens.chunks_exact(self.page_tokens)).take_while(same).count()
    }

    pub fn tokens_kept(&self) -> usize {
        self.tokens.iter().filter(|&&token| token != TokenId::MAX).count()
    }

    pub fn bytes(&self) -> usize {
        self.tokens.len() * size_of::<TokenId>()
            + self.prints.len() * size_of::<u64>()
            + self.names.len() * size_of::<ChainHash>()
    }
}

/// Whether chain hashes are computed and kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Names {
    Kept,
    Off,
}

/// Length of the leading run of consecutive page ids.
fn neighbours(pages: &[PageId]) -> usize {
    1 + pages.windows(2).take_while(|w| w[1].0 == w[0].0 + 1).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(ids: &[u32]) -> (PageStore, Vec<PageId>, Vec<TokenId>) {
        let mut store = PageStore::new(16, 16, Fingerprint::new(0), Names::Off);
        let tokens: Vec<TokenId> = (0..16 * ids.len() as u32).collect();
        let pages: Vec<PageId> = ids.iter().map(|&i| PageId(i)).collect();
        for (page, tokens) in pages.iter().zip(tokens.chunks(16)) {
            store.write(*page, tokens, 0, None);
        }
        (store, pages, tokens)
    }

    #[test]
    fn runs_match_whether_neighbours_or_scattered() {
        for ids in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [7, 8, 2, 3, 15]] {
            let (store, pages, tokens) = store(&ids);
            assert_eq!(store.matching(&pages, &tokens), 5);
            assert_eq!(store.matching(&pages, &tokens[..47]), 2);
            for differs in 0..80 {
                let mut other = tokens.clone();
                other[differs] = 9999;
                assert_eq!(store.matching(&pages, &other), differs / 16);
            }
        }
    }
}
