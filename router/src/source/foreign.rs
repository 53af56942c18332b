//! From what a foreign engine calls its blocks to what this router calls them.
//!
//! One map per engine: its hash to our name and the tiers that hold the block. A block's name follows from its
//! parent's name and its tokens, so a block whose parent was never heard of has none and is passed over: less is known
//! then, never more than is true. Name and tiers share a word, names having 60 bits: sixteen bytes an entry.
//!
//! An engine may tell the same block more than once (again in another tier, or again in the same: a second copy).
//! What a tier holds is a set, not a count, as every router of the field reads these streams.
//!
//! Limits: bounded by [`Engine::blocks_max`]; past it blocks are refused and counted. Blocks of speculative heads are told in pairs of neighbouring tokens; they are named by the first of
//! each pair, so the last block of a match may be one that the engine only has for another next token.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use base::Tier;

use super::wire::{Event, Group, Stored};
use super::{Scope, Tiers, Told};
use crate::Seat;
use crate::naming::foreign::{Chain, SPARE_BITS, Tree};

const NAME_MASK: u64 = u64::MAX >> SPARE_BITS;

/// What happened so far, for metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ForeignCounts {
    pub blocks_stored: u64,
    pub blocks_removed: u64,
    /// Blocks whose parent is not known, or that came without tokens.
    pub orphans: u64,
    /// Blocks for which there was no room.
    pub refused: u64,
    /// Events of no interest: other groups, other owners, elsewhere.
    pub ignored: u64,
    /// Events about blocks of another size than this pool has, or in a memory that has no place here.
    pub foreign_shape: u64,
}

/// What an event made of the set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// Another, or the same.
    Changed,
    /// Nothing is in it, as nothing is at the engine.
    Emptied,
}

/// See the module's header.
pub struct Foreign {
    seat: Seat,
    scope: Scope,
    chain: Chain,
    model: String,
    block_tokens: u32,
    blocks_max: usize,
    names: HashMap<u64, u64, BuildHasherDefault<Spread>>,
    run: Vec<u64>,
    extras: Vec<(usize, u64)>,
    counts: ForeignCounts,
}

/// What a pool's engines have in common.
#[derive(Clone, Debug)]
pub struct Engine {
    pub model: String,
    pub block_tokens: u32,
    /// Most blocks that are kept track of, per engine.
    pub blocks_max: usize,
    pub chain: Chain,
}

impl Foreign {
    pub fn new(seat: Seat, engine: &Engine) -> Self {
        Self {
            seat,
            scope: Scope::foreign(),
            chain: engine.chain,
            model: engine.model.clone(),
            block_tokens: engine.block_tokens,
            blocks_max: engine.blocks_max,
            names: HashMap::default(),
            run: Vec::new(),
            extras: Vec::new(),
            counts: ForeignCounts::default(),
        }
    }

    pub fn counts(&self) -> ForeignCounts {
        self.counts
    }

    pub fn len(&self) -> usize {
        self.names.len()
    }

    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Bytes of the map, about.
    pub fn bytes(&self) -> usize {
        self.names.capacity() * 17
    }

    /// Forgets all.
    pub fn clear(&mut self, told: &dyn Told) {
        told.cleared(self.seat);
        self.names = HashMap::default();
    }

    pub fn apply(&mut self, event: &Event<'_>, told: &dyn Told) -> Taken {
        match event {
            Event::Stored(stored) if is_ours(&stored.group) => self.store(stored, told),
            Event::Removed { hashes, medium, group } if is_ours(group) => {
                match tier_of(*medium) {
                    Some(tier) => self.remove(hashes, tier, told),
                    None => self.counts.foreign_shape += 1,
                }
                Taken::Changed
            }
            Event::Cleared { owner: None } => {
                self.clear(told);
                Taken::Emptied
            }
            Event::Stored(_) | Event::Removed { .. } | Event::Cleared { .. } | Event::Ignored => {
                self.counts.ignored += 1;
                Taken::Changed
            }
        }
    }

    fn store(&mut self, stored: &Stored<'_>, told: &dyn Told) -> Taken {
        let (Some(tier), true) = (tier_of(stored.medium), stored.block_tokens == self.block_tokens) else {
            self.counts.foreign_shape += 1;
            return Taken::Changed;
        };
        let parent = match stored.parent {
            None => Some(self.root(stored)),
            Some(parent) => self.names.get(&parent).map(|entry| entry & NAME_MASK),
        };
        self.name_run(stored, parent);
        let named = self.run.len();
        let mut kept = 0;
        for (hash, name) in stored.hashes.iter().zip(&self.run) {
            if self.names.len() >= self.blocks_max && !self.names.contains_key(hash) {
                break;
            }
            let entry = self.names.entry(*hash).or_insert(*name);
            // Never another name for the same hash: what was told of it must be taken back by the same name.
            if *entry & NAME_MASK != *name {
                break;
            }
            *entry |= u64::from(Tiers::of(tier).bits()) << (64 - SPARE_BITS);
            kept += 1;
        }
        let first = if stored.parent.is_none() { None } else { parent };
        if kept > 0 {
            told.stored(self.seat, &self.scope, Tiers::of(tier), first, &self.run[..kept]);
        }
        self.counts.blocks_stored += kept as u64;
        self.counts.orphans += (stored.hashes.len() - named) as u64;
        self.counts.refused += (named - kept) as u64;
        Taken::Changed
    }

    /// Names of as many blocks as have a parent and tokens; of blocks told without tokens, those that are known.
    fn name_run(&mut self, stored: &Stored<'_>, parent: Option<u64>) {
        self.run.clear();
        if stored.tokens.is_empty() {
            let known = stored.hashes.iter().map_while(|hash| self.names.get(hash));
            self.run.extend(known.map(|entry| entry & NAME_MASK));
            return;
        }
        let Some(mut name) = parent else { return };
        self.read_extras(stored);
        let mut extras = self.extras.iter().peekable();
        let blocks = stored.tokens.chunks_exact(self.block_tokens.max(1) as usize).take(stored.hashes.len());
        for (at, tokens) in blocks.enumerate() {
            name = self.chain.next(name, tokens);
            while let Some((_, digest)) = extras.next_if(|(block, _)| *block == at) {
                name = self.chain.with_extra(name, &digest.to_le_bytes());
            }
            self.run.push(name);
        }
    }

    /// What blocks are made of beside tokens, but for what is in the root already.
    fn read_extras(&mut self, stored: &Stored<'_>) {
        self.extras.clear();
        let (chain, extras) = (self.chain, &mut self.extras);
        let is_in_root = |text: Option<&str>| text.is_some() && (text == stored.lora || text == stored.salt);
        // It was checked when the event was read.
        let _ = stored.extras(|block, key| {
            if !is_in_root(key.text) {
                extras.push((block, chain.with_extra(0, key.bytes)));
            }
        });
    }

    fn root(&self, stored: &Stored<'_>) -> u64 {
        let lora = stored.lora.filter(|lora| !lora.is_empty());
        self.chain.root(&Tree { model: &self.model, lora, salt: stored.salt })
    }

    fn remove(&mut self, hashes: &[u64], tier: Tier, told: &dyn Told) {
        self.run.clear();
        let bit = u64::from(Tiers::of(tier).bits()) << (64 - SPARE_BITS);
        for hash in hashes {
            let Some(entry) = self.names.get_mut(hash) else { continue };
            if *entry & bit == 0 {
                continue;
            }
            *entry &= !bit;
            let left = *entry;
            self.run.push(left & NAME_MASK);
            if left & !NAME_MASK == 0 {
                self.names.remove(hash);
            }
        }
        if !self.run.is_empty() {
            told.removed(self.seat, &self.scope, tier, &self.run);
        }
        self.counts.blocks_removed += self.run.len() as u64;
    }
}

/// Blocks of full attention at the engine itself: others say nothing of a prefix, or lie elsewhere.
fn is_ours(group: &Group<'_>) -> bool {
    let is_main = match (group.kind, group.index) {
        (Some(kind), _) => matches!(kind, "full_attention" | "mla_attention" | "sink_full_attention"),
        (None, index) => index.unwrap_or(0) == 0,
    };
    is_main && group.owner.is_none() && group.locality.is_none_or(|at| at == "LOCAL")
}

/// Every name that engines have for a kind of memory.
fn tier_of(medium: Option<&str>) -> Option<Tier> {
    match medium {
        None | Some("GPU" | "DEVICE") => Some(Tier::Device),
        Some("CPU" | "CPU_PINNED" | "CPU_TIER1") => Some(Tier::Host),
        Some("CPU_TIER2" | "DISK" | "NVME" | "STORAGE") => Some(Tier::Nvme),
        Some("EXTERNAL" | "NETWORK" | "REMOTE" | "SHARED") => Some(Tier::Object),
        Some(_) => None,
    }
}

/// The engine's hashes are hashes; whoever could choose them is the engine itself. One multiply spreads counters.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }
    fn write_u64(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * 0x9E37_79B9_7F4A_7C15;
        self.0 = (product as u64) ^ (product >> 64) as u64;
    }
}
