//! Dynamo's default cost, from its published selector at default settings: blocks of prefill that are promised, this
//! request's uncached ones included, plus blocks that would then be decoding. A block that several requests of a
//! worker share counts once.

use rustc_hash::FxHashMap;
use uuid::Uuid;

#[derive(Debug, Default)]
struct Worker {
    pending_blocks: u64,
    /// Requests that use each active block.
    active: FxHashMap<u64, u32>,
}

#[derive(Debug)]
struct Running {
    worker: usize,
    uncached_blocks: u64,
    prefilling: bool,
    hashes: Vec<u64>,
}

#[derive(Debug, Default)]
pub struct Dynamo {
    workers: Vec<Worker>,
    running: FxHashMap<Uuid, Running>,
    /// Ties go to any of them; a cycle stands for its generator.
    turn: usize,
}

impl Dynamo {
    pub fn new(workers: usize) -> Self {
        Self { workers: (0..workers).map(|_| Worker::default()).collect(), ..Self::default() }
    }

    pub fn place(&mut self, id: Uuid, prompt_blocks: u64, hashes: Vec<u64>, held: &[u32]) -> usize {
        let cost = |w: usize| {
            let uncached = prompt_blocks - u64::from(held[w]).min(prompt_blocks);
            let worker = &self.workers[w];
            let shared = hashes.iter().take_while(|h| worker.active.contains_key(h)).count() as u64;
            worker.pending_blocks + uncached + worker.active.len() as u64 + prompt_blocks
                - shared.min(prompt_blocks)
        };
        let costs: Vec<u64> = (0..self.workers.len()).map(cost).collect();
        let least = *costs.iter().min().expect("there are workers");
        let tied: Vec<usize> = (0..costs.len()).filter(|w| costs[*w] == least).collect();
        self.turn += 1;
        let worker = tied[self.turn % tied.len()];
        self.start(id, worker, prompt_blocks - u64::from(held[worker]).min(prompt_blocks), hashes);
        worker
    }

    fn start(&mut self, id: Uuid, worker: usize, uncached_blocks: u64, hashes: Vec<u64>) {
        self.workers[worker].pending_blocks += uncached_blocks;
        hashes.iter().for_each(|h| *self.workers[worker].active.entry(*h).or_default() += 1);
        self.running.insert(id, Running { worker, uncached_blocks, prefilling: true, hashes });
    }

    pub fn prefilled(&mut self, id: Uuid) {
        let Some(running) = self.running.get_mut(&id) else { return };
        if std::mem::take(&mut running.prefilling) {
            self.workers[running.worker].pending_blocks -= running.uncached_blocks;
        }
    }

    pub fn ended(&mut self, id: Uuid) {
        self.prefilled(id);
        let Some(running) = self.running.remove(&id) else { return };
        let active = &mut self.workers[running.worker].active;
        for hash in running.hashes {
            if let Some(uses) = active.get_mut(&hash) {
                *uses -= 1;
                if *uses == 0 {
                    active.remove(&hash);
                }
            }
        }
    }
}
