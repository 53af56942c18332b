//! What a replica without events is assumed to hold: what was sent to it, for a while and up to a size.
//!
//! Every block carries the epoch of its last use, and a whole epoch is forgotten at once. A prompt's use stamps
//! all its blocks, so a parent is never older than its child and what is left is always a beginning of every
//! prompt. A list by recency would be exact to the block, at three times the bytes and a chain of cache misses
//! for each use; the replica's own eviction is not known to the block either.

use std::collections::VecDeque;
use std::sync::Arc;

use base::{Bytes, Nanos, Tier};

use super::budget::Budget;
use super::outcome::{Dropped, Stored};
use super::writer::{CHUNK, Writer};
use super::{Evicts, Index, Scope};
use crate::Seat;

/// Epochs in a lifetime, and in a full cache: how fine forgetting is.
const EPOCHS: usize = 8;

#[derive(Clone, Copy, Debug)]
pub struct AssumedConfig {
    /// A block is forgotten this long after its last use, or up to an eighth earlier.
    pub ttl: Nanos,
    /// Most blocks; the least recently used are forgotten first, by eighths.
    pub blocks_max: usize,
}

/// The assumptions about one replica.
pub struct Assumed {
    seat: Seat,
    config: AssumedConfig,
    budget: Arc<Budget>,
    /// By scope, from name to the epoch of its last use.
    scopes: Vec<(Scope, Writer)>,
    /// Those not forgotten, oldest first; never empty once something was routed.
    epochs: VecDeque<Epoch>,
    /// The number of the oldest. From 1, because a word is not 0.
    oldest: u64,
    /// Blocks that were stamped in the epoch at hand.
    stamped: usize,
}

struct Epoch {
    begun: Nanos,
    /// Blocks whose last use was in it.
    blocks: usize,
}

impl Assumed {
    /// The seat is this value's from now on.
    pub fn new(index: &Index, seat: Seat, config: AssumedConfig) -> Self {
        index.replace(seat, Evicts::LeafFirst);
        let budget = index.budget.clone();
        Self { seat, config, budget, scopes: Vec::new(), epochs: VecDeque::new(), oldest: 1, stamped: 0 }
    }

    /// A prompt of these blocks was sent to the replica.
    pub fn routed(&mut self, index: &Index, scope: &Scope, names: &[u64], now: Nanos) -> Stored {
        self.expire(index, now);
        // All of one prompt and of the epoch before it must have room.
        let fits = names.len().min(self.config.blocks_max - self.config.blocks_max / EPOCHS);
        let stamped = self.stamp(scope, &names[..fits], now);
        let stored = index.stored(self.seat, scope, &[Tier::Device], None, &names[..stamped]);
        while self.blocks() > self.config.blocks_max && self.epochs.len() > 1 {
            self.forget_oldest(index);
        }
        stored
    }

    /// Stamps as many of the names as there is room for.
    fn stamp(&mut self, scope: &Scope, names: &[u64], now: Nanos) -> usize {
        if self.epochs.is_empty() || self.stamped >= (self.config.blocks_max / EPOCHS).max(1) {
            self.begin(now);
        }
        let (oldest, epoch) = (self.oldest, self.oldest + self.epochs.len() as u64 - 1);
        let at = match self.scopes.iter().position(|(of, _)| of == scope) {
            Some(at) => at,
            None => match Writer::new(&self.budget) {
                Ok(writer) => {
                    self.scopes.push((scope.clone(), writer));
                    self.scopes.len() - 1
                }
                Err(_) => return 0,
            },
        };
        let writer = &mut self.scopes[at].1;
        for (chunk, names) in names.chunks(CHUNK).enumerate() {
            writer.make_room(names.len(), &self.budget);
            writer.table().touch(names);
            for (offset, &name) in names.iter().enumerate() {
                match writer.put(name, epoch) {
                    Ok(before) if before == epoch => (),
                    Ok(before) => {
                        if before != 0 {
                            self.epochs[(before - oldest) as usize].blocks -= 1;
                        }
                        self.epochs[(epoch - oldest) as usize].blocks += 1;
                        self.stamped += 1;
                    }
                    Err(_) => return chunk * CHUNK + offset,
                }
            }
        }
        names.len()
    }

    /// Forgets what has not been used for the lifetime.
    pub fn expire(&mut self, index: &Index, now: Nanos) {
        let ttl = self.config.ttl.0;
        let is_over = |epoch: &Epoch, age: u64| now.0.saturating_sub(epoch.begun.0) >= age;
        // The epoch at hand ends after an eighth of it, so that it can be forgotten in time.
        if self.epochs.back().is_some_and(|epoch| epoch.blocks > 0 && is_over(epoch, ttl / EPOCHS as u64)) {
            self.begin(now);
        }
        while self.epochs.len() > 1 && (self.epochs[0].blocks == 0 || is_over(&self.epochs[0], ttl)) {
            self.forget_oldest(index);
        }
    }

    fn begin(&mut self, now: Nanos) {
        self.epochs.push_back(Epoch { begun: now, blocks: 0 });
        self.stamped = 0;
    }

    fn forget_oldest(&mut self, index: &Index) {
        let Some(Epoch { blocks, .. }) = self.epochs.pop_front() else { return };
        let (oldest, mut gone) = (self.oldest, Vec::new());
        self.oldest += 1;
        if blocks == 0 {
            return;
        }
        for (scope, writer) in &mut self.scopes {
            gone.clear();
            writer.sweep(u64::MAX, |epoch| epoch <= oldest, |name| gone.push(name));
            writer.shrink(&self.budget);
            index.removed(self.seat, Some(&scope.family), Tier::Device, &gone);
        }
        self.scopes.retain(|(_, writer)| writer.live() > 0);
    }

    /// The replica has restarted.
    pub fn clear(&mut self, index: &Index) -> Dropped {
        self.scopes.clear();
        self.oldest += self.epochs.len() as u64;
        self.epochs.clear();
        index.clear(self.seat)
    }

    pub fn blocks(&self) -> usize {
        self.scopes.iter().map(|(_, writer)| writer.live()).sum()
    }

    /// Every block stands in the epoch of its stamp, and no stamp is older than what was forgotten.
    pub fn check(&self) -> Result<(), String> {
        let mut blocks = vec![0; self.epochs.len()];
        for (_, writer) in &self.scopes {
            writer.check()?;
            for (name, epoch) in writer.table().iter() {
                let at = epoch.checked_sub(self.oldest).and_then(|at| blocks.get_mut(at as usize));
                *at.ok_or_else(|| format!("{name:016x} is of epoch {epoch}"))? += 1;
            }
        }
        let counted: Vec<usize> = self.epochs.iter().map(|epoch| epoch.blocks).collect();
        if blocks != counted {
            return Err(format!("{blocks:?} blocks by epoch, {counted:?} counted"));
        }
        Ok(())
    }

    /// What is charged to the index's budget.
    pub fn bytes(&self) -> Bytes {
        Bytes(self.scopes.iter().map(|(_, writer)| writer.table().bytes()).sum())
    }
}
