//! A long random run beside the naive model, from a seed. Bounded in the tests; `benches/soak.rs`
//! runs a million.

use base::SplitMix;
use quire_kvcache::{Cache, CacheStats};

use crate::naive::{Op, World};

pub fn run(cache: Cache, ops: usize, seed: u64) -> CacheStats {
    let mut rng = SplitMix::new(seed);
    let mut world = World::new(cache);
    for _ in 0..ops {
        world.apply(&op(&mut rng));
    }
    let stats = world.cache().stats();
    world.finish_all();
    stats
}

fn op(rng: &mut SplitMix) -> Op {
    let sequence = rng.below(64) as usize;
    let n = rng.below(5) as usize;
    match rng.below(40) {
        0..6 => Op::Start { key: sequence, prompt: pages(rng, 7) },
        6..8 => Op::Extend { sequence, pages: pages(rng, 2) },
        8 => Op::Rematch { sequence },
        9..17 => Op::Reserve { sequence, n },
        17..26 => Op::Publish { sequence, n },
        26 => Op::Free { sequence, n },
        27..30 => Op::Finish { sequence },
        30 => Op::Drop { sequence },
        31..34 => Op::BeginStep,
        34..38 => Op::Complete { back: rng.below(3) },
        38 => Op::Evict { n },
        _ => Op::Clear { key: sequence },
    }
}

fn pages(rng: &mut SplitMix, max: u64) -> Vec<u32> {
    (0..rng.below(max + 1)).map(|_| rng.below(3) as u32).collect()
}
