//! KV events of a fleet, and the prompts that its router looks up: what indexes are measured on.
//!
//! A trace's requests (`hash_ids`, one for 512 tokens; `input_length`, `output_length`) are sent to replicas by
//! overlap less load, and each replica caches blocks of 16 tokens, evicting the least recently used leaf. What it
//! stores and removes are the events. Everything is made before any clock starts, and the same for every index:
//! `benches/peers/router-index` includes this file.

use std::collections::HashMap;
use std::ops::Range;

pub const BLOCK_TOKENS: usize = 16;
/// Tokens of one id of the trace.
const ID_TOKENS: usize = 512;
const NONE: u32 = u32::MAX;

#[derive(Clone)]
pub struct Request {
    pub ids: Vec<u64>,
    pub input: usize,
    pub output: usize,
}

/// A block by the hash of everything up to it, and by the hash of its own tokens.
#[derive(Clone, Copy)]
pub struct Block {
    pub name: u64,
    pub local: u64,
}

pub enum Event {
    Stored { worker: u16, parent: Option<u64>, blocks: Range<usize> },
    Removed { worker: u16, names: Range<usize> },
}

#[derive(Default)]
pub struct Corpus {
    pub events: Vec<Event>,
    pub stored: Vec<Block>,
    pub removed: Vec<u64>,
    pub prompts: Vec<Range<usize>>,
    pub prompt_blocks: Vec<Block>,
    /// Blocks that replicas hold in the end.
    pub resident: usize,
}

pub fn mix(word: u64) -> u64 {
    let word = (word ^ word >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let word = (word ^ word >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ word >> 31
}

/// Requests of a trace file, one JSON object a line.
pub fn read(path: &str) -> Vec<Request> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let number = |value: &serde_json::Value| value.as_u64().expect("a number");
    let request = |line: &str| {
        let value: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
        let ids = value["hash_ids"].as_array().expect("hash_ids").iter().map(number).collect();
        let [input, output] = ["input_length", "output_length"].map(|key| number(&value[key]) as usize);
        Request { ids, input, output }
    };
    text.lines().map(request).collect()
}

/// Conversations that take turns: each turn repeats what was said and adds to it.
pub fn generate(seed: u64, requests: usize) -> Vec<Request> {
    let mut state = seed;
    let mut below = |bound: u64| {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(state) % bound
    };
    let (mut talks, mut next, mut made): (Vec<Vec<u64>>, u64, Vec<Request>) = (Vec::new(), 1, Vec::new());
    while made.len() < requests {
        let at = below(talks.len() as u64 + 1 + talks.len() as u64 / 2) as usize;
        if at >= talks.len() {
            talks.push(vec![0]); // the system prompt of all
        }
        let at = at.min(talks.len() - 1);
        let added = 1 + below(16) + below(16);
        talks[at].extend(next..next + added);
        next += added;
        let ids = talks[at].clone();
        let input = ids.len() * ID_TOKENS - below(ID_TOKENS as u64) as usize;
        made.push(Request { ids, input, output: 50 + below(600) as usize });
        if talks[at].len() > 200 || talks.len() > 400 {
            talks.swap_remove(at);
        }
    }
    made
}

impl Corpus {
    /// The requests on `workers` replicas with room for `capacity` blocks each.
    pub fn new(requests: &[Request], workers: usize, capacity: usize) -> Self {
        let mut corpus = Corpus::default();
        let mut caches: Vec<Cache> = (0..workers).map(|_| Cache::new(capacity)).collect();
        let mut load = vec![0.0; workers];
        for (number, request) in requests.iter().enumerate() {
            let prompt = prompt(request);
            if prompt.is_empty() {
                continue;
            }
            let reused = |worker: usize| prompt.iter().take_while(|b| caches[worker].has(b.name)).count();
            let value = |worker: usize| reused(worker) as f64 - load[worker];
            let worker = (0..workers).max_by(|&a, &b| value(a).total_cmp(&value(b))).expect("workers");
            load.iter_mut().for_each(|load| *load *= 0.9);
            load[worker] += (prompt.len() - reused(worker)) as f64;
            corpus.serve(&mut caches[worker], worker as u16, &prompt, &answer(number, request, &prompt));
            let start = corpus.prompt_blocks.len();
            corpus.prompt_blocks.extend(prompt);
            corpus.prompts.push(start..corpus.prompt_blocks.len());
        }
        corpus.resident = caches.iter().map(|cache| cache.places.len()).sum();
        corpus
    }

    /// The prompt is stored in one event, the answer block by block, and what must go in one.
    fn serve(&mut self, cache: &mut Cache, worker: u16, prompt: &[Block], answer: &[Block]) {
        let known = prompt.iter().take_while(|block| cache.has(block.name)).count();
        let mut parent = known.checked_sub(1).map(|before| prompt[before].name);
        let runs = std::iter::once(&prompt[known..]).chain(answer.chunks(1));
        for run in runs.filter(|run| !run.is_empty()) {
            let start = self.stored.len();
            self.stored.extend(run);
            self.events.push(Event::Stored { worker, parent, blocks: start..self.stored.len() });
            parent = run.last().map(|block| block.name);
        }
        // From the end, so that the leaf is the least recently used.
        prompt.iter().chain(answer).rev().for_each(|block| cache.touch(block.name));
        let start = self.removed.len();
        self.removed.extend(cache.evict());
        if self.removed.len() > start {
            self.events.push(Event::Removed { worker, names: start..self.removed.len() });
        }
    }

    /// Blocks stored and removed.
    pub fn changes(&self) -> usize {
        self.stored.len() + self.removed.len()
    }

    pub fn half(&self) -> Range<usize> {
        self.prompts.len() / 2..self.prompts.len()
    }
}

fn prompt(request: &Request) -> Vec<Block> {
    let each = ID_TOKENS / BLOCK_TOKENS;
    let locals =
        request.ids.iter().flat_map(|&id| (0..each as u64).map(move |at| mix(id * 1_000_003 + at + 1)));
    chain(0, locals.take(request.input / BLOCK_TOKENS))
}

/// No two answers are alike.
fn answer(number: usize, request: &Request, prompt: &[Block]) -> Vec<Block> {
    let locals =
        (0..request.output / BLOCK_TOKENS).map(|at| mix((number as u64) << 32 ^ at as u64 ^ 0xA11CE << 40));
    chain(prompt.last().map_or(0, |block| block.name), locals)
}

fn chain(parent: u64, locals: impl Iterator<Item = u64>) -> Vec<Block> {
    let step = |parent: &mut u64, local: u64| {
        *parent = mix(parent.rotate_left(23) ^ local.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        Some(Block { name: *parent, local })
    };
    locals.scan(parent, step).collect()
}

/// Tokens that a block with this hash has.
pub fn tokens(local: u64) -> [u32; BLOCK_TOKENS] {
    std::array::from_fn(|at| (mix(local.wrapping_add(at as u64)) >> 47) as u32)
}

/// Names by last use.
struct Cache {
    places: HashMap<u64, u32>,
    nodes: Vec<Node>,
    newest: u32,
    oldest: u32,
    capacity: usize,
}

struct Node {
    name: u64,
    newer: u32,
    older: u32,
}

impl Cache {
    fn new(capacity: usize) -> Self {
        Self { places: HashMap::new(), nodes: Vec::new(), newest: NONE, oldest: NONE, capacity }
    }

    fn has(&self, name: u64) -> bool {
        self.places.contains_key(&name)
    }

    fn touch(&mut self, name: u64) {
        let at = match self.places.get(&name) {
            Some(&at) => {
                self.unlink(at);
                at
            }
            None => {
                self.nodes.push(Node { name, newer: NONE, older: NONE });
                self.places.insert(name, self.nodes.len() as u32 - 1);
                self.nodes.len() as u32 - 1
            }
        };
        let newest = std::mem::replace(&mut self.newest, at);
        (self.nodes[at as usize].newer, self.nodes[at as usize].older) = (NONE, newest);
        match newest {
            NONE => self.oldest = at,
            _ => self.nodes[newest as usize].newer = at,
        }
    }

    fn unlink(&mut self, at: u32) {
        let Node { newer, older, .. } = self.nodes[at as usize];
        match newer {
            NONE => self.newest = older,
            _ => self.nodes[newer as usize].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            _ => self.nodes[older as usize].newer = newer,
        }
    }

    fn evict(&mut self) -> Vec<u64> {
        let mut gone = Vec::new();
        while self.places.len() > self.capacity {
            let oldest = self.oldest;
            self.unlink(oldest);
            gone.push(self.nodes[oldest as usize].name);
            self.places.remove(&self.nodes[oldest as usize].name);
        }
        gone
    }
}
