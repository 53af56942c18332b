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
        let (mut known, epochs, stamped) = (0, &mut self.epochs, &mut self.stamped);
        for names in names.chunks(CHUNK) {
            writer.make_room(names.len(), &self.budget);
            let restamp = |_, before: u64| {
                if before == epoch {
                    return;
                }
                if before != 0 {
                    epochs[(before - oldest) as usize].blocks -= 1;
                }
                epochs[(epoch - oldest) as usize].blocks += 1;
                *stamped += 1;
            };
            let done = writer.put_all(names, |_| epoch, restamp);
            known += done;
            if done < names.len() {
                break;
            }
        }
        known
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

#[cfg(test)]
mod tests {
    use base::SplitMix;

    use super::super::tests::{names, one_scope, score};
    use super::*;
    use crate::SeatSet;

    fn new(index: &Index, blocks_max: usize) -> Assumed {
        Assumed::new(index, Seat(0), AssumedConfig { ttl: Nanos(800), blocks_max })
    }

    #[test]
    fn what_was_routed_is_held_for_its_lifetime_and_not_longer() {
        let (index, scope) = one_scope();
        let mut assumed = new(&index, 1000);
        let names = names(40);
        let _ = assumed.routed(&index, &scope, &names, Nanos(0));
        let _ = assumed.routed(&index, &scope, &names[..10], Nanos(600));
        assumed.expire(&index, Nanos(699));
        assert_eq!(score(&index, &scope, &names, 0), 40);
        assumed.expire(&index, Nanos(800));
        assert_eq!(score(&index, &scope, &names, 0), 10, "used again at 600");
        assumed.expire(&index, Nanos(1400));
        assert_eq!(score(&index, &scope, &names, 0), 0);
        assert_eq!((assumed.blocks(), index.view().scopes), (0, 0));
    }

    #[test]
    fn the_least_recently_used_go_first_and_prompts_stay_whole_beginnings() {
        let (index, scope) = one_scope();
        let (mut assumed, mut rng) = (new(&index, 500), SplitMix::new(1));
        let trunk = names(30);
        let prompts: Vec<Vec<u64>> =
            (0..60).map(|_| trunk.iter().copied().chain((0..20).map(|_| rng.next_u64())).collect()).collect();
        for (now, prompt) in prompts.iter().enumerate() {
            let stored = assumed.routed(&index, &scope, prompt, Nanos(now as u64));
            assert_eq!(stored.refused, 0);
            assumed.check().unwrap();
            index.check(assumed.bytes()).unwrap();
            assert!(assumed.blocks() <= 500);
            assert_eq!(score(&index, &scope, prompt, 0), 50);
        }
        assert_eq!(index.audit(&scope, &prompts[0], SeatSet::ALL), SeatSet::EMPTY);
        assert_eq!(score(&index, &scope, &prompts[0], 0), 30, "the trunk is used by all");
        assert!(score(&index, &scope, &prompts[50], 0) == 50, "recent ones stay");
    }

    #[test]
    fn a_prompt_longer_than_the_bound_is_held_in_part() {
        let (index, scope) = one_scope();
        let mut assumed = new(&index, 80);
        let _ = assumed.routed(&index, &scope, &names(200), Nanos(0));
        let _ = assumed.routed(&index, &scope, &names(300), Nanos(1));
        assert!(assumed.blocks() <= 80);
        assert_eq!(score(&index, &scope, &names(300), 0), 70);
        assumed.clear(&index);
        assert_eq!(index.view().bytes, Bytes(0));
    }
}
