//! Names for the blocks of engines of another make.
//!
//! Their hashes differ from version to version and often from process to process, so they cannot be computed
//! from a prompt. The tokens in their events can be named: each block's name is mixed from its parent's name
//! and its tokens. It has no key and is no cryptographic hash: nothing but this router's choice of a replica
//! hangs on it, and a prompt of a thousand blocks is named in a few microseconds. The seed keeps names
//! unguessable to whoever would like to make them collide.

use base::TokenId;

const ODD: u64 = 0xD6E8_FEB8_6659_FD93;

/// The naming of one router; all its translations and lookups of foreign prompts must use the same.
#[derive(Clone, Copy, Debug)]
pub struct Chain {
    seed: u64,
}

impl Chain {
    pub fn new(seed: u64) -> Self {
        Self { seed: fold(seed ^ ODD, !seed) }
    }

    /// What the first block of a prompt follows; `salt` keeps apart what the engine keeps apart beyond model
    /// and adapter.
    pub fn root(&self, salt: &[u8]) -> u64 {
        let word = |chunk: &[u8]| chunk.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
        let step = |state, chunk: &[u8]| fold(state ^ word(chunk), ODD);
        salt.chunks(8).fold(fold(self.seed, salt.len() as u64 ^ ODD), step)
    }

    /// The name of the block of `tokens` that follows `parent`.
    #[inline]
    pub fn next(&self, parent: u64, tokens: &[TokenId]) -> u64 {
        // Each four tokens are mixed by themselves, with a secret of their place, so that the products do not
        // wait for each other.
        let (mut sum, mut secret) = (tokens.len() as u64, self.seed);
        let (fours, rest) = tokens.as_chunks::<4>();
        for &[a, b, c, d] in fours {
            sum = sum.wrapping_add(fold(pair(a, b) ^ secret, pair(c, d) ^ secret.rotate_left(29)));
            secret = secret.wrapping_add(ODD);
        }
        for &token in rest {
            sum = sum.wrapping_add(fold(u64::from(token) ^ secret, secret.rotate_left(29)));
            secret = secret.wrapping_add(ODD);
        }
        fold(parent ^ self.seed, sum ^ ODD)
    }

    /// Names the whole blocks of `tokens`, the first of which follows `parent`.
    pub fn names(&self, parent: u64, tokens: &[TokenId], block_tokens: usize, into: &mut Vec<u64>) {
        let mut parent = parent;
        into.extend(tokens.chunks_exact(block_tokens.max(1)).map(|block| {
            parent = self.next(parent, block);
            parent
        }));
    }
}

#[inline(always)]
fn pair(low: TokenId, high: TokenId) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// Both halves of the product, in one word.
#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64 ^ (product >> 64) as u64).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_name_depends_on_seed_salt_parent_tokens_and_their_order() {
        let chain = Chain::new(7);
        let root = chain.root(b"");
        let tokens: Vec<u32> = (0..16).collect();
        let swapped: Vec<u32> = (4..8).chain(0..4).chain(8..16).collect();
        let names = [
            chain.next(root, &tokens),
            chain.next(root, &swapped),
            chain.next(root, &tokens[..15]),
            chain.next(chain.next(root, &tokens), &tokens),
            chain.next(chain.root(b"salt"), &tokens),
            chain.next(chain.root(b"salt\0"), &tokens),
            Chain::new(8).next(root, &tokens),
        ];
        assert_eq!(HashSet::from(names).len(), names.len());
    }

    #[test]
    fn neighbouring_prompts_do_not_meet_in_a_million_names() {
        let chain = Chain::new(1);
        let root = chain.root(b"");
        let names: HashSet<u64> =
            (0..1_000_000u32).map(|i| chain.next(root, &[i % 1000, i / 1000, 0, 0])).collect();
        assert_eq!(names.len(), 1_000_000);
    }

    #[test]
    fn a_run_is_named_as_its_blocks_one_by_one() {
        let (chain, tokens) = (Chain::new(1), (0..50).collect::<Vec<u32>>());
        let mut names = Vec::new();
        chain.names(9, &tokens, 16, &mut names);
        let second = chain.next(chain.next(9, &tokens[..16]), &tokens[16..32]);
        assert_eq!((names.len(), names[1]), (3, second));
    }
}
