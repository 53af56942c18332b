//! The prefix index: events applied, lookups, and both at once.
//!
//! `cargo bench -p quire-router --bench index -- [--trace TRACE.jsonl] [--workers 16] [--capacity 65536] [LEG…]`
//! Legs: `own` events of our replicas, `foreign` events by engine hash and tokens, `lookup`, `mixed`. One line of JSON
//! for each. Rates count processor time of the thread, because machines are shared; percentiles are of the wall
//! clock. `hash` is over every score of every lookup: equal for our names and for translated ones.

mod corpus;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use base::{Bytes, Clock, Generation, SystemClock, Tier};
use corpus::{Corpus, Event, mix, tokens};
use quire_router::index::{Chain, Evicts, ForeignRun, Index, IndexConfig, Matches, Scope, Translator};
use quire_router::{Seat, SeatSet};
use serde_json::json;

const LEGS: [&str; 4] = ["own", "foreign", "lookup", "mixed"];
/// Events whose tokens are made at a time, before the clock starts.
const BATCH: usize = 4096;
const LOOKUPS: usize = 200_000;

fn main() {
    let mut options = Options { trace: None, workers: 16, capacity: 65_536, legs: Vec::new() };
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    while let Some(arg) = args.next() {
        let mut value = || args.next().unwrap_or_else(|| panic!("{arg} takes a value"));
        match arg.as_str() {
            "--trace" => options.trace = Some(value()),
            "--workers" => options.workers = value().parse().expect("a number"),
            "--capacity" => options.capacity = value().parse().expect("a number"),
            leg if LEGS.contains(&leg) => options.legs.push(leg.into()),
            other => panic!("unknown leg {other:?}; there are {LEGS:?}"),
        }
    }
    let requests = options.trace.as_deref().map_or_else(|| corpus::generate(1, 12_000), corpus::read);
    let corpus = Corpus::new(&requests, options.workers, options.capacity);
    let bench = Bench { corpus: Arc::new(corpus), clock: SystemClock::new(), workers: options.workers };
    let all = LEGS.map(String::from).to_vec();
    for leg in if options.legs.is_empty() { all } else { options.legs } {
        let line = match leg.as_str() {
            "own" => bench.own(),
            "foreign" => bench.foreign(),
            "lookup" => bench.lookup(),
            _ => bench.mixed(),
        };
        println!("{line}");
    }
}

struct Options {
    trace: Option<String>,
    workers: usize,
    capacity: usize,
    legs: Vec<String>,
}

struct Bench {
    corpus: Arc<Corpus>,
    clock: SystemClock,
    workers: usize,
}

/// Names side by side, as an index takes them.
struct Names {
    stored: Vec<u64>,
    prompts: Vec<u64>,
}

impl Bench {
    fn names(&self) -> Names {
        let of = |blocks: &[corpus::Block]| blocks.iter().map(|block| block.name).collect();
        Names { stored: of(&self.corpus.stored), prompts: of(&self.corpus.prompt_blocks) }
    }

    fn index(&self, evicts: Evicts) -> Index {
        let index = Index::new(IndexConfig { bytes_max: Bytes(4 << 30), scopes_max: 16 });
        for seat in 0..self.workers {
            index.replace(Seat(seat as u16), evicts);
        }
        index
    }

    fn own(&self) -> serde_json::Value {
        let (index, names, start) = (self.index(Evicts::LeafFirst), self.names(), cpu_s());
        apply(&index, &self.corpus, &names.stored, 0..self.corpus.events.len());
        self.events("own", &index, cpu_s() - start, self.hash(&index, &own(), &names.prompts))
    }

    fn foreign(&self) -> serde_json::Value {
        let (index, chain, scope) = (self.index(Evicts::Anyhow), Chain::new(1), Scope::foreign("model", ""));
        let mut engines: Vec<Translator> =
            (0..self.workers).map(|seat| Translator::new(&index, Seat(seat as u16), chain)).collect();
        let root = chain.root(b"");
        let mut seconds = 0.0;
        for events in self.corpus.events.chunks(BATCH) {
            let batch: Vec<Told> = events.iter().map(|event| self.told(event)).collect();
            let start = cpu_s();
            for told in &batch {
                told.apply(&index, &mut engines, &scope, root);
            }
            seconds += cpu_s() - start;
        }
        let prompts = self.translated(&chain, root);
        let hash = self.hash(&index, &scope, &prompts);
        engines.iter().for_each(|engine| engine.check(&index).expect("sound"));
        self.events("foreign", &index, seconds, hash)
    }

    /// The prompts as a router names them that knows their tokens only.
    fn translated(&self, chain: &Chain, root: u64) -> Vec<u64> {
        let corpus = &self.corpus;
        let mut names = Vec::with_capacity(corpus.prompt_blocks.len());
        for prompt in &corpus.prompts {
            let mut parent = root;
            names.extend(corpus.prompt_blocks[prompt.clone()].iter().map(|block| {
                parent = chain.next(parent, &tokens(block.local));
                parent
            }));
        }
        names
    }

    /// An event as a foreign engine tells it.
    fn told(&self, event: &Event) -> Told {
        let hash = |worker: u16, name: u64| mix(name ^ u64::from(worker) << 48);
        match event {
            Event::Stored { worker, parent, blocks } => {
                let blocks = &self.corpus.stored[blocks.clone()];
                Told {
                    worker: *worker,
                    parent: parent.map(|name| hash(*worker, name)),
                    hashes: blocks.iter().map(|block| hash(*worker, block.name)).collect(),
                    tokens: blocks.iter().flat_map(|block| tokens(block.local)).collect(),
                }
            }
            Event::Removed { worker, names } => {
                let names = &self.corpus.removed[names.clone()];
                let hashes = names.iter().map(|&name| hash(*worker, name)).collect();
                Told { worker: *worker, parent: None, hashes, tokens: Vec::new() }
            }
        }
    }

    fn events(&self, leg: &str, index: &Index, seconds: f64, hash: String) -> serde_json::Value {
        let (changes, resident) = (self.corpus.changes(), self.corpus.resident);
        let held: u64 = (0..self.workers).map(|seat| index.seat(Seat(seat as u16)).memberships[0]).sum();
        assert_eq!(held, resident as u64, "the index holds what the replicas hold");
        json!({
            "leg": leg, "events": self.corpus.events.len(), "blocks": changes, "resident": resident,
            "m_blocks_per_s": changes as f64 / seconds / 1e6,
            "bytes_per_membership": index.view().bytes.0 as f64 / resident as f64, "hash": hash,
        })
    }

    /// Over every score of the second half's prompts.
    fn hash(&self, index: &Index, scope: &Scope, names: &[u64]) -> String {
        let mut matches = Matches::default();
        let mut hash = 0;
        for prompt in &self.corpus.prompts[self.corpus.half()] {
            index.lookup(scope, &names[prompt.clone()], SeatSet::ALL, &mut matches);
            for (seat, held) in matches.iter() {
                hash = mix(hash ^ u64::from(seat.0) << 32 ^ u64::from(held.anywhere()));
            }
        }
        format!("{hash:016x}")
    }

    fn lookup(&self) -> serde_json::Value {
        let (index, names) = (self.index(Evicts::LeafFirst), self.names());
        apply(&index, &self.corpus, &names.stored, 0..self.corpus.events.len());
        let mut seen = Seen::default();
        let start = cpu_s();
        while seen.nanos.len() < LOOKUPS {
            seen.look(self, &index, &names.prompts);
        }
        let seconds = cpu_s() - start;
        let hash = self.hash(&index, &own(), &names.prompts);
        let mut line = seen.line("lookup", seconds);
        line["hash"] = json!(hash);
        line
    }

    /// The second half of the events on one thread, the second half of the prompts on another.
    fn mixed(&self) -> serde_json::Value {
        let (index, names) = (Arc::new(self.index(Evicts::LeafFirst)), self.names());
        let half = self.corpus.events.len() / 2;
        apply(&index, &self.corpus, &names.stored, 0..half);
        let is_done = Arc::new(AtomicBool::new(false));
        let writer = {
            let (index, corpus, is_done) = (index.clone(), self.corpus.clone(), is_done.clone());
            let stored = names.stored;
            base::spawn("bench-writer", move || {
                let (start, end) = (cpu_s(), corpus.events.len());
                apply(&index, &corpus, &stored, half..end);
                is_done.store(true, Relaxed);
                cpu_s() - start
            })
            .expect("a thread")
        };
        let (mut seen, start) = (Seen::default(), cpu_s());
        while !is_done.load(Relaxed) {
            seen.look(self, &index, &names.prompts);
        }
        let seconds = cpu_s() - start;
        let writing = writer.join().expect("no panic");
        let changes: usize = self.corpus.events[half..].iter().map(size).sum();
        let mut line = seen.line("mixed", seconds);
        line["written_m_blocks_per_s"] = json!(changes as f64 / writing / 1e6);
        line["hash"] = json!(self.hash(&index, &own(), &names.prompts));
        line
    }
}

fn own() -> Scope {
    Scope::namespace("default", Generation(1))
}

fn size(event: &Event) -> usize {
    match event {
        Event::Stored { blocks, .. } => blocks.len(),
        Event::Removed { names, .. } => names.len(),
    }
}

fn apply(index: &Index, corpus: &Corpus, stored: &[u64], events: std::ops::Range<usize>) {
    let scope = own();
    for event in &corpus.events[events] {
        match event {
            Event::Stored { worker, parent, blocks } => {
                let names = &stored[blocks.clone()];
                let stored = index.stored(Seat(*worker), &scope, &[Tier::Device], *parent, names);
                assert_eq!((stored.refused, stored.orphans), (0, 0));
            }
            Event::Removed { worker, names } => {
                let names = &corpus.removed[names.clone()];
                let removed = index.removed(Seat(*worker), Some(&scope.family), Tier::Device, names);
                assert_eq!(removed.unknown, 0);
            }
        }
    }
}

/// An event with an engine's hashes; without tokens it removes.
struct Told {
    worker: u16,
    parent: Option<u64>,
    hashes: Vec<u64>,
    tokens: Vec<u32>,
}

impl Told {
    fn apply(&self, index: &Index, engines: &mut [Translator], scope: &Scope, root: u64) {
        let engine = &mut engines[usize::from(self.worker)];
        if self.tokens.is_empty() {
            assert_eq!(engine.removed(index, Tier::Device, &self.hashes).unknown, 0);
            return;
        }
        let run = ForeignRun {
            root,
            parent: self.parent,
            hashes: &self.hashes,
            tokens: &self.tokens,
            block_tokens: corpus::BLOCK_TOKENS,
        };
        let stored = engine.stored(index, scope, &[Tier::Device], run).expect("named");
        assert_eq!((stored.refused, stored.orphans), (0, 0));
    }
}

/// Lookups one by one.
#[derive(Default)]
struct Seen {
    nanos: Vec<u64>,
    blocks: usize,
    matches: Matches,
}

impl Seen {
    /// One round of the second half's prompts.
    fn look(&mut self, bench: &Bench, index: &Index, names: &[u64]) {
        let scope = own();
        for prompt in &bench.corpus.prompts[bench.corpus.half()] {
            let names = &names[prompt.clone()];
            let start = bench.clock.now();
            index.lookup(&scope, std::hint::black_box(names), SeatSet::ALL, &mut self.matches);
            self.nanos.push(bench.clock.now().0 - start.0);
            self.blocks += names.len();
        }
    }

    fn line(&mut self, leg: &str, seconds: f64) -> serde_json::Value {
        self.nanos.sort_unstable();
        let us = |share: f64| self.nanos[((self.nanos.len() - 1) as f64 * share) as usize] as f64 / 1e3;
        json!({
            "leg": leg, "lookups": self.nanos.len(), "blocks_per_lookup": self.blocks / self.nanos.len(),
            "m_blocks_per_s": self.blocks as f64 / seconds / 1e6,
            "p50_us": us(0.5), "p99_us": us(0.99), "p999_us": us(0.999),
        })
    }
}

/// Processor time of this thread, where the system tells it; else the wall clock.
fn cpu_s() -> f64 {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanos = told.and_then(|text| text.split(' ').next().and_then(|first| first.parse::<u64>().ok()));
    nanos.unwrap_or_else(|| SystemClock::new().unix_ms() * 1_000_000) as f64 / 1e9
}
