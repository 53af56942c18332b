//! kvbm-logical's match of 128 registered blocks, held by somebody (`active`) and by nobody (`inactive`).
//! `scripts/bench-peers tiers` builds it in a crate of its own; hashes are made beforehand and cost nothing.
//! Prints a line of JSON for each line read.

use std::time::Instant;

use kvbm_logical::{BlockManager, BlockRegistry, SequenceHash, manager::FrequencyTrackingCapacity};

const BLOCKS: usize = 128;
const TIMES: usize = 2_000;

#[derive(Clone)]
struct Host;

fn main() {
    let tracker = FrequencyTrackingCapacity::Medium.create_tracker();
    let registry = BlockRegistry::builder().frequency_tracker(tracker).build();
    let manager = BlockManager::<Host>::builder()
        .block_count(BLOCKS)
        .block_size(64)
        .registry(registry)
        .with_lru_backend()
        .build()
        .expect("a manager");
    let place = |i: u64| SequenceHash::new(i + 1, i.checked_sub(1).map(|p| p + 1), i);
    let names: Vec<SequenceHash> = (0..BLOCKS as u64).map(place).collect();
    let blocks = manager.allocate_blocks(BLOCKS).expect("room");
    let stage = |(block, name): (_, &SequenceHash)| {
        let block: kvbm_logical::MutableBlock<Host> = block;
        manager.register_block(block.stage(*name, 64).expect("a block"))
    };
    let mut held: Vec<_> = blocks.into_iter().zip(&names).map(stage).collect();
    for _ in std::io::stdin().lines() {
        let active = median(&manager, &names);
        held.clear();
        let inactive = median(&manager, &names);
        held = manager.match_blocks(&names);
        println!("{{\"active_us\": {active}, \"inactive_us\": {inactive}}}");
    }
}

/// Microseconds of a match; letting go is not counted.
fn median(manager: &BlockManager<Host>, names: &[SequenceHash]) -> f64 {
    let mut times = Vec::with_capacity(TIMES);
    for _ in 0..TIMES {
        let start = Instant::now();
        let found = manager.match_blocks(std::hint::black_box(names));
        times.push(start.elapsed().as_nanos());
        assert_eq!(found.len(), BLOCKS);
    }
    times.sort_unstable();
    times[TIMES / 2] as f64 / 1e3
}
