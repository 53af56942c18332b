//! From an engine's hashes to our names, for one replica of another make.
//!
//! Its events store blocks by a hash and tokens, and remove them by hash alone. So whoever listens must keep,
//! per replica, what each hash meant; the hash of the same block may differ from one replica to the next. A
//! block enters this map before the index and leaves it after: a block in the index that no removal could
//! reach would stay for ever.
//!
//! Owned by the replica's source, as the only one that hears its events; no lock.

use std::sync::Arc;

use base::{Tier, TokenId};

use super::budget::Budget;
use super::chain::Chain;
use super::outcome::{Dropped, Removed, Stored};
use super::writer::{CHUNK, Writer};
use super::{Evicts, Index, Scope};
use crate::{Seat, SeatSet};

/// Blocks that an engine stored, each the child of the one before.
#[derive(Clone, Copy, Debug)]
pub struct ForeignRun<'a> {
    /// What the first block of a prompt follows ([`Chain::root`]).
    pub root: u64,
    /// The engine's hash of the block before; `None` at the beginning of a prompt.
    pub parent: Option<u64>,
    pub hashes: &'a [u64],
    /// `block_tokens` for each hash.
    pub tokens: &'a [TokenId],
    pub block_tokens: usize,
}

/// Why blocks have no name. The replica's scores are too low from now on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unnamed {
    #[error("{blocks} blocks follow {parent:016x}, of which nothing was told")]
    UnknownParent { parent: u64, blocks: usize },
    #[error("{blocks} blocks come with {tokens} tokens, not {block_tokens} each")]
    TokenCount { blocks: usize, tokens: usize, block_tokens: usize },
    #[error("more than {max} models and adapters on one replica")]
    TooManyScopes { max: usize },
}

/// Most models and adapters of one replica.
const SCOPES_MAX: usize = 1024;

pub struct Translator {
    seat: Seat,
    chain: Chain,
    budget: Arc<Budget>,
    scopes: Vec<Meanings>,
    /// Of the run at hand.
    names: Vec<u64>,
}

struct Meanings {
    scope: Scope,
    /// From hash to name.
    map: Writer,
    /// Bits of the tiers that ever held a block of it.
    tiers: u8,
}

impl Translator {
    pub fn new(index: &Index, seat: Seat, chain: Chain) -> Self {
        Self { seat, chain, budget: index.budget.clone(), scopes: Vec::new(), names: Vec::new() }
    }

    /// As [`Index::stored`], by the engine's hashes.
    pub fn stored(
        &mut self,
        index: &Index,
        scope: &Scope,
        tiers: &[Tier],
        run: ForeignRun<'_>,
    ) -> Result<Stored, Unnamed> {
        let named = self.name(scope, &run);
        let at = named.inspect_err(|_| index.miss(self.seat, run.hashes.len()))?;
        let meanings = &mut self.scopes[at];
        meanings.tiers |= tiers.iter().fold(0, |bits, tier| bits | 1 << tier.index());
        let known = meanings.learn(index, self.seat, run.hashes, &self.names, &self.budget);
        let parent = run.parent.map(|hash| meanings.map.table().get(hash));
        let mut stored = index.stored(self.seat, scope, tiers, parent, &self.names[..known]);
        if known < run.hashes.len() {
            index.miss(self.seat, run.hashes.len() - known);
            stored.refused += ((run.hashes.len() - known) * tiers.len()) as u32;
        }
        Ok(stored)
    }

    /// Puts the run's names into `names`; the scope's place.
    fn name(&mut self, scope: &Scope, run: &ForeignRun<'_>) -> Result<usize, Unnamed> {
        let (blocks, tokens) = (run.hashes.len(), run.tokens.len());
        if blocks * run.block_tokens != tokens {
            return Err(Unnamed::TokenCount { blocks, tokens, block_tokens: run.block_tokens });
        }
        let unknown = |parent| Unnamed::UnknownParent { parent, blocks };
        let at = match self.scopes.iter().position(|of| of.scope == *scope) {
            Some(at) => at,
            None if run.parent.is_some() => return Err(unknown(run.parent.unwrap_or(0))),
            None => self.open(scope)?,
        };
        let parent = match run.parent {
            None => run.root,
            Some(hash) => match self.scopes[at].map.table().get(hash) {
                0 => return Err(unknown(hash)),
                name => name,
            },
        };
        self.names.clear();
        self.chain.names(parent, run.tokens, run.block_tokens, &mut self.names);
        Ok(at)
    }

    fn open(&mut self, scope: &Scope) -> Result<usize, Unnamed> {
        let full = Unnamed::TooManyScopes { max: SCOPES_MAX };
        if self.scopes.len() >= SCOPES_MAX {
            return Err(full);
        }
        let map = Writer::new(&self.budget).map_err(|_| full)?;
        self.scopes.push(Meanings { scope: scope.clone(), map, tiers: 0 });
        Ok(self.scopes.len() - 1)
    }

    /// As [`Index::removed`], by the engine's hashes.
    pub fn removed(&mut self, index: &Index, tier: Tier, hashes: &[u64]) -> Removed {
        let mut removed = 0;
        for meanings in &mut self.scopes {
            if meanings.tiers & 1 << tier.index() == 0 {
                continue;
            }
            self.names.clear();
            let is_alone = meanings.tiers.count_ones() == 1;
            let names = &mut self.names;
            let mut mean = |name| names.extend((name != 0).then_some(name));
            match is_alone {
                true => meanings.map.take_all(hashes, u64::MAX, mean),
                false => hashes.iter().for_each(|&hash| mean(meanings.map.table().get(hash))),
            }
            removed += index.removed(self.seat, Some(&meanings.scope.family), tier, &self.names).removed;
            if !is_alone {
                meanings.forget(index, self.seat, hashes);
            }
            meanings.map.shrink(&self.budget);
            if removed as usize == hashes.len() {
                break;
            }
        }
        Removed { removed, unknown: (hashes.len() as u32).saturating_sub(removed) }
    }

    /// As [`Index::clear`].
    pub fn clear(&mut self, index: &Index) -> Dropped {
        self.scopes.clear();
        index.clear(self.seat)
    }

    /// As [`Index::replace`].
    pub fn replace(&mut self, index: &Index, evicts: Evicts) -> Dropped {
        self.scopes.clear();
        index.replace(self.seat, evicts)
    }

    /// Hashes whose meaning is kept.
    pub fn hashes(&self) -> usize {
        self.scopes.iter().map(|of| of.map.live()).sum()
    }

    /// What is charged to the index's budget.
    pub fn bytes(&self) -> base::Bytes {
        base::Bytes(self.scopes.iter().map(|of| of.map.table().bytes()).sum())
    }

    /// The maps are sound, and a hash is kept for every block that the index has of this replica.
    pub fn check(&self, index: &Index) -> Result<(), String> {
        self.scopes.iter().try_for_each(|of| of.map.check())?;
        let most = index.seat(self.seat).memberships.into_iter().max().unwrap_or(0);
        if most > self.hashes() as u64 {
            return Err(format!("{most} blocks in the index, {} hashes", self.hashes()));
        }
        Ok(())
    }
}

impl Meanings {
    /// Enters the meanings of hashes, as many as there is room for.
    fn learn(
        &mut self,
        index: &Index,
        seat: Seat,
        hashes: &[u64],
        names: &[u64],
        budget: &Arc<Budget>,
    ) -> usize {
        let mut known = 0;
        for (hashes, names) in hashes.chunks(CHUNK).zip(names.chunks(CHUNK)) {
            self.map.make_room(hashes.len(), budget);
            let scope = &self.scope;
            let done = self.map.put_all(
                hashes,
                |at| names[at],
                |at, old| {
                    if old != 0 && old != names[at] {
                        // The engine uses a hash again; the block that it meant is not there any more.
                        for tier in Tier::ALL {
                            index.removed(seat, Some(&scope.family), tier, &[old]);
                        }
                    }
                },
            );
            known += done;
            if done < hashes.len() {
                break;
            }
        }
        known
    }

    /// Drops hashes of blocks that no tier holds any more.
    fn forget(&mut self, index: &Index, seat: Seat, hashes: &[u64]) {
        let mut matches = super::Matches::default();
        for &hash in hashes {
            let name = self.map.table().get(hash);
            index.lookup(&self.scope, &[name], SeatSet::of(seat), &mut matches);
            if matches.seats().is_empty() {
                self.map.take(hash, u64::MAX);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use base::Bytes;

    use super::super::IndexConfig;
    use super::super::tests::{names, score};
    use super::*;

    const BLOCK: usize = 4;

    fn tokens(blocks: std::ops::Range<u32>) -> Vec<u32> {
        blocks.flat_map(|block| (0..BLOCK as u32).map(move |at| block * 10 + at)).collect()
    }

    fn run<'a>(root: u64, parent: Option<u64>, hashes: &'a [u64], tokens: &'a [u32]) -> ForeignRun<'a> {
        ForeignRun { root, parent, hashes, tokens, block_tokens: BLOCK }
    }

    #[test]
    fn two_engines_with_hashes_of_their_own_meet_in_our_names() {
        let (index, chain) = (Index::new(IndexConfig::default()), Chain::new(3));
        let (scope, root, tokens) = (Scope::foreign("m", ""), chain.root(b""), tokens(0..50));
        let mut engines = [0, 1].map(|seat| Translator::new(&index, Seat(seat), chain));
        let hashes = [names(50), (1..51).collect::<Vec<u64>>()];
        for (engine, hashes) in engines.iter_mut().zip(&hashes) {
            engine.replace(&index, Evicts::Anyhow);
            let first = run(root, None, &hashes[..20], &tokens[..20 * BLOCK]);
            let rest = run(root, Some(hashes[19]), &hashes[20..], &tokens[20 * BLOCK..]);
            assert_eq!(engine.stored(&index, &scope, &[Tier::Device], first).unwrap().added, 20);
            assert_eq!(engine.stored(&index, &scope, &[Tier::Device], rest).unwrap().added, 30);
        }
        let mut prompt = Vec::new();
        chain.names(root, &tokens, BLOCK, &mut prompt);
        assert_eq!([0, 1].map(|seat| score(&index, &scope, &prompt, seat)), [50, 50]);
        let told = engines[1].removed(&index, Tier::Device, &[hashes[1][30], 999]);
        assert_eq!(told, Removed { removed: 1, unknown: 1 });
        assert_eq!([0, 1].map(|seat| score(&index, &scope, &prompt, seat)), [50, 30]);
        engines.iter().for_each(|engine| engine.check(&index).unwrap());
        let others = engines.iter().map(|engine| engine.bytes().0).sum();
        index.check(Bytes(others)).unwrap();
        for engine in &mut engines {
            engine.clear(&index);
        }
        assert_eq!(index.view().bytes, Bytes(0));
    }

    #[test]
    fn a_hash_keeps_its_meaning_while_any_tier_has_the_block() {
        let (index, chain) = (Index::new(IndexConfig::default()), Chain::new(3));
        let (scope, root, tokens) = (Scope::foreign("m", "lora"), chain.root(b""), tokens(0..3));
        let mut engine = Translator::new(&index, Seat(0), chain);
        let both = [Tier::Device, Tier::Host];
        let _ = engine.stored(&index, &scope, &both, run(root, None, &[7, 8, 9], &tokens)).unwrap();
        assert_eq!(engine.removed(&index, Tier::Device, &[9]).removed, 1);
        assert_eq!(engine.hashes(), 3);
        assert_eq!(engine.removed(&index, Tier::Host, &[9]).removed, 1);
        assert_eq!(engine.hashes(), 2);
        engine.check(&index).unwrap();
    }

    #[test]
    fn a_hash_that_means_another_block_drops_the_one_it_meant() {
        let (index, chain) = (Index::new(IndexConfig::default()), Chain::new(3));
        let (scope, root) = (Scope::foreign("m", ""), chain.root(b""));
        let mut engine = Translator::new(&index, Seat(0), chain);
        for first in [0, 5] {
            let tokens = tokens(first..first + 1);
            let _ = engine.stored(&index, &scope, &[Tier::Device], run(root, None, &[7], &tokens)).unwrap();
        }
        assert_eq!(index.seat(Seat(0)).memberships[0], 1);
        assert_eq!(score(&index, &scope, &[chain.next(root, &tokens(0..1))], 0), 0);
    }

    #[test]
    fn blocks_without_a_name_are_refused_with_a_reason_and_mark_the_seat() {
        let (index, chain) = (Index::new(IndexConfig::default()), Chain::new(3));
        let (scope, tokens) = (Scope::foreign("m", ""), tokens(0..2));
        let mut engine = Translator::new(&index, Seat(0), chain);
        let orphan = engine.stored(&index, &scope, &[Tier::Device], run(0, Some(4), &[5, 6], &tokens));
        assert_eq!(orphan, Err(Unnamed::UnknownParent { parent: 4, blocks: 2 }));
        let short = engine.stored(&index, &scope, &[Tier::Device], run(0, None, &[5, 6], &tokens[1..]));
        assert_eq!(short, Err(Unnamed::TokenCount { blocks: 2, tokens: 7, block_tokens: 4 }));
        assert!(index.seat(Seat(0)).is_incomplete);
        assert_eq!(index.view().refused_blocks, 4);
    }
}
