//! Tokens of texts between control tokens, so that a conversation's next turn tokenizes only what is new.
//!
//! A chat template writes control tokens around every message, and no merge reaches over one. So the text
//! between two of them has the same tokens wherever it stands, and the cache is keyed by that text alone: a
//! conversation finds all its earlier messages, and a system prompt is found by everybody who has it. (A
//! cache of whole prefixes would keep every earlier message once per turn and share less.)
//!
//! Hits are exact: the key is the text, not its hash. Bounded in bytes, least recently used goes first; in
//! [`SHARDS`] parts, each under a lock that is held for one comparison and one copy. Short texts are not
//! kept: tokenizing them costs what finding them does.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use base::{Bytes, TokenId};

use crate::bpe::hash;

const SHARDS: usize = 16;
/// Bytes of bookkeeping counted for an entry.
const ENTRY_BYTES: usize = 96;
/// Shortest text worth keeping, in bytes.
pub(crate) const TEXT_MIN: usize = 256;
/// The end of a list.
const END: u32 = u32::MAX;

/// Where a text stands, for tokenizers that tell the first from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    First,
    Anywhere,
}

/// What the cache did so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TokenCacheStats {
    /// Texts found and not.
    pub hits: u64,
    pub misses: u64,
    /// Bytes of text found and not.
    pub hit_bytes: u64,
    pub miss_bytes: u64,
    pub evictions: u64,
    pub entries: usize,
    pub bytes: usize,
}

/// The cache of one model's tokenizer.
pub struct TokenCache {
    shards: Vec<Mutex<Shard>>,
}

impl std::fmt::Debug for TokenCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenCache").field("stats", &self.stats()).finish()
    }
}

impl TokenCache {
    /// Holds at most `bytes_max` of texts, tokens and bookkeeping; 0 keeps nothing.
    pub fn new(bytes_max: Bytes) -> Self {
        let share = usize::try_from(bytes_max.0).unwrap_or(usize::MAX) / SHARDS;
        Self { shards: (0..SHARDS).map(|_| Mutex::new(Shard::new(share))).collect() }
    }

    /// Appends the tokens of `text`: those kept, or else those that `encode` appends.
    pub(crate) fn append<E>(
        &self,
        text: &str,
        standing: Standing,
        out: &mut Vec<TokenId>,
        encode: impl FnOnce(&mut Vec<TokenId>) -> Result<(), E>,
    ) -> Result<(), E> {
        let name = hash(text.as_bytes()).wrapping_add(standing as u64);
        let shard = &self.shards[(name >> 60) as usize % SHARDS];
        let lock = || shard.lock().unwrap_or_else(PoisonError::into_inner);
        if lock().find(name, text, standing, out) {
            return Ok(());
        }
        // The lock is not held while encoding; two who miss at once both encode.
        let from = out.len();
        encode(out)?;
        lock().keep(name, text, standing, &out[from..]);
        Ok(())
    }

    pub fn stats(&self) -> TokenCacheStats {
        self.shards.iter().fold(TokenCacheStats::default(), |sum, shard| {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            TokenCacheStats {
                hits: sum.hits + shard.stats.hits,
                misses: sum.misses + shard.stats.misses,
                hit_bytes: sum.hit_bytes + shard.stats.hit_bytes,
                miss_bytes: sum.miss_bytes + shard.stats.miss_bytes,
                evictions: sum.evictions + shard.stats.evictions,
                entries: sum.entries + shard.places.len(),
                bytes: sum.bytes + shard.bytes,
            }
        })
    }

    /// Panics if the parts do not agree with each other.
    pub fn check(&self) {
        for shard in &self.shards {
            shard.lock().unwrap_or_else(PoisonError::into_inner).check();
        }
    }
}

struct Entry {
    name: u64,
    text: Box<str>,
    standing: Standing,
    tokens: Box<[TokenId]>,
    /// Neighbours in the order of use.
    newer: u32,
    older: u32,
}

impl Entry {
    fn bytes(&self) -> usize {
        bytes_of(&self.text, &self.tokens)
    }
}

fn bytes_of(text: &str, tokens: &[TokenId]) -> usize {
    text.len() + size_of_val(tokens) + ENTRY_BYTES
}

struct Shard {
    places: HashMap<u64, u32>,
    entries: Vec<Entry>,
    newest: u32,
    oldest: u32,
    bytes: usize,
    bytes_max: usize,
    stats: TokenCacheStats,
}

impl Shard {
    fn new(bytes_max: usize) -> Self {
        let (places, entries) = (HashMap::new(), Vec::new());
        let stats = TokenCacheStats::default();
        Self { places, entries, newest: END, oldest: END, bytes: 0, bytes_max, stats }
    }

    fn find(&mut self, name: u64, text: &str, standing: Standing, out: &mut Vec<TokenId>) -> bool {
        let place = self.places.get(&name).copied().filter(|place| {
            let entry = &self.entries[*place as usize];
            entry.standing == standing && *entry.text == *text
        });
        let Some(place) = place else {
            self.stats.misses += 1;
            self.stats.miss_bytes += text.len() as u64;
            return false;
        };
        self.stats.hits += 1;
        self.stats.hit_bytes += text.len() as u64;
        out.extend_from_slice(&self.entries[place as usize].tokens);
        self.unlink(place);
        self.link_newest(place);
        true
    }

    fn keep(&mut self, name: u64, text: &str, standing: Standing, tokens: &[TokenId]) {
        let needed = bytes_of(text, tokens);
        if needed > self.bytes_max {
            return;
        }
        if let Some(place) = self.places.get(&name).copied() {
            self.remove(place);
        }
        while self.bytes + needed > self.bytes_max {
            self.stats.evictions += 1;
            self.remove(self.oldest);
        }
        let place = self.entries.len() as u32;
        let (text, tokens) = (text.into(), tokens.into());
        self.entries.push(Entry { name, text, standing, tokens, newer: END, older: END });
        self.places.insert(name, place);
        self.bytes += needed;
        self.link_newest(place);
    }

    /// The last entry moves into the place that becomes free.
    fn remove(&mut self, place: u32) {
        self.unlink(place);
        let gone = self.entries.swap_remove(place as usize);
        self.places.remove(&gone.name);
        self.bytes -= gone.bytes();
        let Some(moved) = self.entries.get(place as usize) else { return };
        let (name, newer, older) = (moved.name, moved.newer, moved.older);
        self.places.insert(name, place);
        *self.older_of(newer) = place;
        *self.newer_of(older) = place;
    }

    fn link_newest(&mut self, place: u32) {
        let second = self.newest;
        let entry = &mut self.entries[place as usize];
        (entry.newer, entry.older) = (END, second);
        *self.newer_of(second) = place;
        self.newest = place;
    }

    fn unlink(&mut self, place: u32) {
        let Entry { newer, older, .. } = self.entries[place as usize];
        *self.older_of(newer) = older;
        *self.newer_of(older) = newer;
    }

    /// The link from `place` to the next older; from the end of the list, to its newest.
    fn older_of(&mut self, place: u32) -> &mut u32 {
        if place == END { &mut self.newest } else { &mut self.entries[place as usize].older }
    }

    fn newer_of(&mut self, place: u32) -> &mut u32 {
        if place == END { &mut self.oldest } else { &mut self.entries[place as usize].newer }
    }

    fn check(&self) {
        let (mut at, mut seen, mut bytes, mut newer) = (self.newest, 0, 0, END);
        while at != END {
            let entry = &self.entries[at as usize];
            assert_eq!(entry.newer, newer, "links go both ways");
            assert_eq!(self.places.get(&entry.name), Some(&at), "an entry is found by its name");
            bytes += entry.bytes();
            seen += 1;
            (newer, at) = (at, entry.older);
        }
        assert_eq!(self.oldest, newer, "the list ends at the oldest");
        assert_eq!((seen, bytes), (self.entries.len(), self.bytes), "all entries are in the list");
        assert_eq!(self.places.len(), self.entries.len(), "nobody has two entries");
        assert!(self.bytes <= self.bytes_max, "within the bound");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tokens_of(text: &str) -> Vec<TokenId> {
        text.bytes().map(TokenId::from).collect()
    }

    proptest! {
        /// The model: whatever was asked before, the tokens are those of the text.
        #[test]
        fn kept_or_not_the_tokens_are_those_of_the_text(
            asks in prop::collection::vec(("[ab]{0,4}", 0usize..40), 0..200),
            bytes_max in 0u64..20_000,
        ) {
            let cache = TokenCache::new(Bytes(bytes_max));
            for (word, times) in asks {
                let text = word.repeat(times);
                let mut out = vec![7];
                let encode = |out: &mut Vec<TokenId>| -> Result<(), ()> {
                    out.extend(tokens_of(&text));
                    Ok(())
                };
                cache.append(&text, Standing::Anywhere, &mut out, encode).unwrap();
                prop_assert_eq!(&out[1..], tokens_of(&text));
                cache.check();
            }
        }
    }

    /// One shard, so that the order is that of use.
    #[test]
    fn evicts_what_was_not_used_for_longest() {
        let mut shard = Shard::new(3 * (ENTRY_BYTES + 5));
        let keep = |shard: &mut Shard, text: &str| {
            shard.keep(hash(text.as_bytes()), text, Standing::Anywhere, &[1]);
            shard.check();
        };
        let found = |shard: &mut Shard, text: &str| {
            shard.find(hash(text.as_bytes()), text, Standing::Anywhere, &mut Vec::new())
        };
        ["a", "b", "c"].iter().for_each(|text| keep(&mut shard, text));
        assert!(found(&mut shard, "a"));
        keep(&mut shard, "d");
        assert_eq!(["a", "b", "c", "d"].map(|text| found(&mut shard, text)), [true, false, true, true]);
        assert_eq!((shard.stats.evictions, shard.stats.hits, shard.stats.misses), (1, 4, 1));
    }

    #[test]
    fn a_text_is_not_taken_for_another_of_the_same_hash_or_another_standing() {
        let mut shard = Shard::new(10_000);
        shard.keep(1, "one", Standing::Anywhere, &[1]);
        let mut found = |text, standing| shard.find(1, text, standing, &mut Vec::new());
        assert!(!found("two", Standing::Anywhere) && !found("one", Standing::First));
        assert!(found("one", Standing::Anywhere));
    }
}
