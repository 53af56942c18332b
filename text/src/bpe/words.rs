//! What a word becomes, remembered: the vocabulary's own words for good, recent ones in a small cache.
//!
//! Most words of a text are tokens themselves; [`Whole`] finds those with one look-up and no merging. It is
//! made at load of the tokens that merging gives back unchanged, and never changes. [`Recent`] stands
//! before it: one slot per hash, the word itself as the key (up to 15 bytes and the length, so a hit cannot
//! be wrong), up to three tokens in it; 1 MB whatever the text. A general map of strings would spend more
//! on one word than the scanner does.

use base::TokenId;
use hashbrown::HashTable;

/// Longest word and most tokens that a slot of [`Recent`] holds.
const WORD_MAX: usize = 15;
const TOKENS_MAX: usize = 3;
const SLOTS_LOG2: u32 = 15;

/// Words up to [`WORD_MAX`] bytes as a number: the bytes, and the length on top.
pub(crate) type Key = u128;

/// The key of `text[start..end]`; `None` if it is too long.
#[inline(always)]
pub(crate) fn key(text: &[u8], start: usize, end: usize) -> Option<Key> {
    let length = end - start;
    if length > WORD_MAX {
        return None;
    }
    let mut bytes = [0; 16];
    match text.get(start..start + 16) {
        // A load of fixed size and a mask; a copy of variable length is a call.
        Some(full) => bytes.copy_from_slice(full),
        None => bytes[..length].copy_from_slice(&text[start..end]),
    }
    let mask = (1u128 << (length * 8)) - 1;
    Some(u128::from_le_bytes(bytes) & mask | (length as u128) << 120)
}

#[derive(Clone, Copy)]
struct Slot {
    key: Key,
    tokens: [TokenId; TOKENS_MAX],
    count: u32,
}

/// The cache; a later word takes the place of an earlier one.
pub(crate) struct Recent(Vec<Slot>);

impl Recent {
    pub fn new() -> Self {
        // No word has length 0, so the key 0 is free.
        Self(vec![Slot { key: 0, tokens: [0; TOKENS_MAX], count: 0 }; 1 << SLOTS_LOG2])
    }

    #[inline(always)]
    fn place(key: Key) -> usize {
        let folded = (key as u64 ^ ((key >> 64) as u64).rotate_left(23)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (folded >> (64 - SLOTS_LOG2)) as usize
    }

    /// Appends the word's tokens; false if they are not here.
    #[inline(always)]
    pub fn append(&self, key: Key, out: &mut Vec<TokenId>) -> bool {
        let slot = &self.0[Self::place(key)];
        if slot.key != key {
            return false;
        }
        if slot.count == 1 {
            out.push(slot.tokens[0]);
        } else {
            out.extend_from_slice(&slot.tokens[..slot.count as usize]);
        }
        true
    }

    pub fn keep(&mut self, key: Key, tokens: &[TokenId]) {
        if tokens.len() <= TOKENS_MAX {
            let mut slot = Slot { key, tokens: [0; TOKENS_MAX], count: tokens.len() as u32 };
            slot.tokens[..tokens.len()].copy_from_slice(tokens);
            self.0[Self::place(key)] = slot;
        }
    }
}

/// Words that are one token.
pub(crate) struct Whole {
    table: HashTable<Entry>,
    bytes: Vec<u8>,
}

struct Entry {
    start: u32,
    end: u32,
    token: TokenId,
}

impl Whole {
    pub fn new<'a>(words: impl Iterator<Item = (&'a [u8], TokenId)>) -> Self {
        let mut whole = Self { table: HashTable::new(), bytes: Vec::new() };
        for (word, token) in words {
            let start = whole.bytes.len() as u32;
            whole.bytes.extend_from_slice(word);
            let entry = Entry { start, end: whole.bytes.len() as u32, token };
            let Self { table, bytes } = &mut whole;
            table.insert_unique(hash(word), entry, |e| hash(&bytes[e.start as usize..e.end as usize]));
        }
        whole
    }

    pub fn get(&self, word: &[u8]) -> Option<TokenId> {
        let same = |entry: &Entry| self.bytes[entry.start as usize..entry.end as usize] == *word;
        self.table.find(hash(word), same).map(|entry| entry.token)
    }
}

/// A quick hash of bytes for tables whose keys nobody outside chooses.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    let mut state = bytes.len() as u64;
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let mut eight = [0; 8];
        eight.copy_from_slice(chunk);
        state = mixed(state, u64::from_le_bytes(eight));
    }
    let mut last = [0; 8];
    last[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    let state = mixed(state, u64::from_le_bytes(last));
    state ^ state >> 29
}

#[inline(always)]
fn mixed(state: u64, word: u64) -> u64 {
    (state.rotate_left(5) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_are_equal_only_for_equal_words(a in prop::collection::vec(0u8..3, 1..18), b in prop::collection::vec(0u8..3, 1..18)) {
            let short = |w: &[u8]| w.len() <= WORD_MAX;
            prop_assert_eq!(key(&a, 0, a.len()).is_some(), short(&a));
            if short(&a) && short(&b) {
                prop_assert_eq!(key(&a, 0, a.len()) == key(&b, 0, b.len()), a == b);
                // Inside a longer text the key is the same.
                let text = [b"x".as_slice(), &a, b"0123456789abcdef"].concat();
                prop_assert_eq!(key(&text, 1, 1 + a.len()), key(&a, 0, a.len()));
            }
        }

        #[test]
        fn a_hit_is_what_was_kept(words in prop::collection::vec("[ab]{1,3}", 1..50)) {
            let mut recent = Recent::new();
            for word in &words {
                let tokens: Vec<u32> = word.bytes().map(u32::from).collect();
                let key = key(word.as_bytes(), 0, word.len()).unwrap();
                let mut out = Vec::new();
                if recent.append(key, &mut out) {
                    prop_assert_eq!(out, tokens);
                } else {
                    recent.keep(key, &tokens);
                }
            }
        }
    }

    #[test]
    fn whole_words_are_found_by_their_bytes() {
        let words = ["a", "ab", "a longer word than eight"];
        let whole = Whole::new(words.iter().enumerate().map(|(id, word)| (word.as_bytes(), id as u32)));
        let found: Vec<_> = words.iter().chain(&["b", ""]).map(|word| whole.get(word.as_bytes())).collect();
        assert_eq!(found, [Some(0), Some(1), Some(2), None, None]);
    }
}
