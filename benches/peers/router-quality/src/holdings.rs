//! Which worker holds which block, from the engine's events: exact, as the router's index is while its sources are.

use aisimulate_core::engine::{KvEvent, KvEventData};
use rustc_hash::FxHashMap;

/// Block to a mask of workers.
#[derive(Debug, Default)]
pub struct Holdings(FxHashMap<u64, u64>);

impl Holdings {
    pub fn apply(&mut self, worker: usize, event: KvEvent) {
        let bit = 1u64 << worker;
        match event.data {
            KvEventData::Stored(stored) => {
                stored.blocks.iter().for_each(|b| *self.0.entry(b.block_hash).or_default() |= bit);
            }
            KvEventData::Removed { block_hashes } => {
                block_hashes.iter().for_each(|hash| self.remove(*hash, bit))
            }
        }
    }

    fn remove(&mut self, hash: u64, bit: u64) {
        if let Some(mask) = self.0.get_mut(&hash) {
            *mask &= !bit;
            if *mask == 0 {
                self.0.remove(&hash);
            }
        }
    }

    /// Leading blocks that each worker holds.
    pub fn lookup(&self, hashes: &[u64], workers: usize) -> Vec<u32> {
        let mut held = vec![0; workers];
        let mut alive = u64::MAX;
        for (depth, hash) in hashes.iter().enumerate() {
            alive &= self.0.get(hash).copied().unwrap_or(0);
            if alive == 0 {
                break;
            }
            held.iter_mut()
                .enumerate()
                .filter(|(w, _)| alive >> w & 1 == 1)
                .for_each(|(_, h)| *h = depth as u32 + 1);
        }
        held
    }
}
