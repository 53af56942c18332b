//! Names of prompts at engines that are not ours.
//!
//! Their hashes cannot be computed here: they are seeded per process, or follow from pickled Python objects. But their
//! events carry the tokens, so blocks get names of our own, chained over tokens like those of our replicas, and equal
//! prompts at several engines have equal names.
//!
//! A folded multiply and not SHA-256: a name decides where a request goes and nothing else, the engine compares its
//! own hashes, and millions of blocks a second must be named. The seed is this router's secret, so nobody outside can
//! look for prompts whose names collide.
//!
//! Names have 60 bits: the upper four are left to whoever keeps a set of tiers beside a name.

use base::TokenId;

/// Bits that are never set in a name.
pub const SPARE_BITS: u32 = 4;

const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;
const LANES: [u64; 4] =
    [0xD6E8_FEB8_6659_FD93, 0xA076_1D64_78BD_642F, 0xE703_7ED1_A0B4_28DB, 0x8EBC_6AF0_9C88_C6E3];

/// What separates one tree of blocks from another at a foreign engine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Tree<'a> {
    pub model: &'a str,
    pub lora: Option<&'a str>,
    pub salt: Option<&'a str>,
}

/// Names blocks under one seed.
#[derive(Clone, Copy)]
pub struct Chain {
    seed: u64,
}

impl Chain {
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// Where a tree begins.
    pub fn root(&self, tree: &Tree<'_>) -> u64 {
        let mut state = self.seed;
        for part in [Some(tree.model), tree.lora, tree.salt] {
            // Absent is not empty, and no part runs into the next.
            state = match part {
                None => fold(state ^ LANES[0], MULTIPLIER),
                Some(text) => {
                    self.bytes(fold(state ^ LANES[1], text.len() as u64 ^ LANES[2]), text.as_bytes())
                }
            };
        }
        state >> SPARE_BITS
    }

    /// The block of `tokens` after `parent`.
    pub fn next(&self, parent: u64, tokens: &[TokenId]) -> u64 {
        let mut state = fold(parent ^ self.seed, tokens.len() as u64 ^ LANES[3]);
        let (blocks, rest) = tokens.as_chunks::<8>();
        let word = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
        for [a, b, c, d, e, f, g, h] in blocks {
            let left = fold(word(*a, *b) ^ LANES[0] ^ state, word(*c, *d) ^ LANES[1]);
            let right = fold(word(*e, *f) ^ LANES[2] ^ state, word(*g, *h) ^ LANES[3]);
            state = left ^ right.rotate_left(23);
        }
        for token in rest {
            state = fold(state ^ u64::from(*token), LANES[0]);
        }
        fold(state, self.seed ^ MULTIPLIER) >> SPARE_BITS
    }

    /// The same block with something beside its tokens, such as an image's hash.
    pub fn with_extra(&self, name: u64, extra: &[u8]) -> u64 {
        self.bytes(fold(name ^ LANES[1], extra.len() as u64 ^ LANES[3]), extra) >> SPARE_BITS
    }

    fn bytes(&self, mut state: u64, bytes: &[u8]) -> u64 {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            state = fold(state ^ u64::from_le_bytes(word), self.seed ^ LANES[2]);
        }
        fold(state, MULTIPLIER)
    }
}

/// The seed must reach no log.
impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Chain(..)")
    }
}

/// Both halves of a 128-bit product, and the factors: one that is zero would make the other forgotten.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ MULTIPLIER) * u128::from(b ^ LANES[2]);
    (product as u64) ^ (product >> 64) as u64 ^ a.rotate_left(32) ^ b
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_part_of_a_tree_and_every_token_changes_the_name() {
        let chain = Chain::new(7);
        let tree = |model, lora, salt| chain.root(&Tree { model, lora, salt });
        let roots = [
            tree("m", None, None),
            tree("n", None, None),
            tree("m", Some(""), None),
            tree("m", Some("x"), None),
            tree("m", None, Some("x")),
            tree("mx", None, None),
            Chain::new(8).root(&Tree { model: "m", lora: None, salt: None }),
        ];
        assert_eq!(roots.iter().collect::<HashSet<_>>().len(), roots.len());
        let tokens: Vec<u32> = (0..20).collect();
        let name = chain.next(roots[0], &tokens);
        assert_eq!(name >> (64 - SPARE_BITS), 0);
        for at in 0..tokens.len() {
            let mut other = tokens.clone();
            other[at] ^= 1;
            assert_ne!(chain.next(roots[0], &other), name, "{at}");
        }
        assert_ne!(chain.next(roots[1], &tokens), name);
        assert_ne!(chain.next(roots[0], &tokens[..19]), name);
        assert_ne!(chain.with_extra(name, b"image"), name);
    }

    /// Counters, small tokens, repeated tokens: what real streams are full of.
    #[test]
    fn a_million_similar_blocks_do_not_collide() {
        let chain = Chain::new(1);
        let root = chain.root(&Tree { model: "m", lora: None, salt: None });
        let mut seen = HashSet::new();
        for n in 0..1_000_000u32 {
            let mut tokens = [n & 0xff; 16];
            tokens[(n % 16) as usize] = n;
            tokens[((n + 1) % 16) as usize] = n >> 4;
            seen.insert((n, chain.next(root, &tokens)));
        }
        let names: HashSet<u64> = seen.iter().map(|(_, name)| *name).collect();
        assert_eq!(names.len(), seen.len());
    }
}
