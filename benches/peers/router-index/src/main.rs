//! Dynamo's and smg's prefix indexes on the events and prompts of `quire-router`'s bench.
//!
//! `router-index-peers [--trace TRACE.jsonl] [--workers 16] [--capacity 65536] crtc|positional|chain…`; one line of JSON
//! for each. Rates count processor time, of the thread or, where an index has threads of its own, of the process;
//! percentiles are of the wall clock. Bytes are what jemalloc has more after the events than before.

#[path = "../../../../router/benches/corpus.rs"]
mod corpus;

use std::hint::black_box;
use std::time::Instant;

use corpus::{Corpus, Event, generate, read, tokens};
use dynamo_kv_router::indexer::concurrent_radix_tree_compressed::ConcurrentRadixTreeCompressed;
use dynamo_kv_router::indexer::positional::PositionalIndexer;
use dynamo_kv_router::indexer::{KvIndexerInterface, SyncIndexer, ThreadPoolIndexer};
use dynamo_kv_router::protocols::{
    ExternalSequenceBlockHash, KvCacheEvent, KvCacheEventData, KvCacheRemoveData, KvCacheStoreData,
    KvCacheStoredBlockData, LocalBlockHash, RouterEvent,
};
use kv_index::{ChainBlockMap, ChainIndex, ContentHash, SequenceHash, StoredBlock};
use serde_json::json;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const LOOKUPS: usize = 200_000;

fn main() {
    let (mut trace, mut workers, mut capacity, mut legs) = (None, 16, 65_536, Vec::new());
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().expect("a value");
        match arg.as_str() {
            "--trace" => trace = Some(value()),
            "--workers" => workers = value().parse().expect("a number"),
            "--capacity" => capacity = value().parse().expect("a number"),
            _ => legs.push(arg),
        }
    }
    let requests = trace.as_deref().map_or_else(|| generate(1, 12_000), read);
    let corpus = Corpus::new(&requests, workers, capacity);
    assert_eq!(tokens(0).len(), corpus::BLOCK_TOKENS);
    for leg in legs {
        let line = match leg.as_str() {
            "crtc" => dynamo("crtc", ConcurrentRadixTreeCompressed::new(), &corpus),
            "positional" => dynamo("positional", PositionalIndexer::new(32), &corpus),
            "chain" => chain(&corpus, workers),
            other => panic!("unknown leg {other:?}"),
        };
        println!("{line}");
    }
}

/// Enqueued and drained by one thread of its pool.
fn dynamo<T: SyncIndexer>(leg: &str, index: T, corpus: &Corpus) -> serde_json::Value {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let before = allocated();
    let events: Vec<RouterEvent> = corpus.events.iter().enumerate().map(|(id, e)| event(corpus, e, id)).collect();
    let pool = ThreadPoolIndexer::new(index, 1, corpus::BLOCK_TOKENS as u32);
    let start = process_s();
    events.into_iter().for_each(|event| pool.enqueue_event(event).expect("room"));
    runtime.block_on(async { drop(pool.flush().await) });
    let seconds = process_s() - start;
    let bytes = allocated() - before;
    let backend = pool.backend_arc();
    let locals: Vec<LocalBlockHash> = corpus.prompt_blocks.iter().map(|b| LocalBlockHash(b.local)).collect();
    let line = line(leg, corpus, seconds, bytes, |prompt| {
        black_box(backend.find_matches(&locals[prompt], false));
    });
    pool.shutdown();
    line
}

fn event(corpus: &Corpus, event: &Event, id: usize) -> RouterEvent {
    let (worker, data) = match event {
        Event::Stored { worker, parent, blocks } => {
            let block = |block: &corpus::Block| KvCacheStoredBlockData {
                block_hash: ExternalSequenceBlockHash(block.name),
                tokens_hash: LocalBlockHash(block.local),
                mm_extra_info: None,
            };
            let stored = KvCacheStoreData {
                parent_hash: parent.map(ExternalSequenceBlockHash),
                start_position: None,
                blocks: corpus.stored[blocks.clone()].iter().map(block).collect(),
            };
            (worker, KvCacheEventData::Stored(stored))
        }
        Event::Removed { worker, names } => {
            let hashes = corpus.removed[names.clone()].iter().map(|&name| ExternalSequenceBlockHash(name));
            (worker, KvCacheEventData::Removed(KvCacheRemoveData { block_hashes: hashes.collect() }))
        }
    };
    RouterEvent::new(u64::from(*worker), KvCacheEvent { event_id: id as u64, dp_rank: 0, data })
}

fn chain(corpus: &Corpus, workers: usize) -> serde_json::Value {
    let stored: Vec<StoredBlock> = corpus
        .stored
        .iter()
        .map(|b| StoredBlock { seq_hash: SequenceHash(b.name), content_hash: ContentHash(b.local) })
        .collect();
    let removed: Vec<SequenceHash> = corpus.removed.iter().map(|&name| SequenceHash(name)).collect();
    let locals: Vec<u64> = corpus.prompt_blocks.iter().map(|block| block.local).collect();
    let before = allocated();
    let index = ChainIndex::with_max_workers(64);
    let mut maps: Vec<ChainBlockMap> = (0..workers).map(|_| ChainBlockMap::new()).collect();
    let ids: Vec<u32> = (0..workers).map(|w| index.intern_worker(&format!("w{w}")).expect("room")).collect();
    let start = process_s();
    for event in &corpus.events {
        match event {
            Event::Stored { worker, parent, blocks } => {
                let worker = usize::from(*worker);
                let parent = parent.map(SequenceHash);
                let done = index.apply_stored(ids[worker], &stored[blocks.clone()], parent, &mut maps[worker]);
                assert!(done.is_ok(), "refused");
            }
            Event::Removed { worker, names } => {
                let worker = usize::from(*worker);
                index.apply_removed(ids[worker], &removed[names.clone()], &mut maps[worker]);
            }
        }
    }
    let seconds = process_s() - start;
    let bytes = allocated() - before;
    let mut scores: Vec<(u32, u32)> = Vec::new();
    line("chain", corpus, seconds, bytes, |prompt| {
        scores.clear();
        index.score_into(&locals[prompt], |local| *local, false, |worker, score| scores.push((worker, score)));
        black_box(&scores);
    })
}

/// Looks up the second half's prompts.
fn line(
    leg: &str,
    corpus: &Corpus,
    seconds: f64,
    bytes: usize,
    mut lookup: impl FnMut(std::ops::Range<usize>),
) -> serde_json::Value {
    let (mut nanos, mut blocks) = (Vec::new(), 0);
    let start = process_s();
    while nanos.len() < LOOKUPS {
        for prompt in &corpus.prompts[corpus.half()] {
            let start = Instant::now();
            lookup(prompt.clone());
            nanos.push(start.elapsed().as_nanos());
            blocks += prompt.len();
        }
    }
    let looking = process_s() - start;
    nanos.sort_unstable();
    let us = |share: f64| nanos[((nanos.len() - 1) as f64 * share) as usize] as f64 / 1e3;
    json!({
        "leg": leg, "m_blocks_per_s": corpus.changes() as f64 / seconds / 1e6,
        "bytes_per_membership": bytes as f64 / corpus.resident as f64,
        "lookup_m_blocks_per_s": blocks as f64 / looking / 1e6,
        "p50_us": us(0.5), "p99_us": us(0.99), "p999_us": us(0.999),
    })
}

fn allocated() -> usize {
    tikv_jemalloc_ctl::epoch::advance().expect("jemalloc");
    tikv_jemalloc_ctl::stats::allocated::read().expect("jemalloc")
}

/// Processor time of all threads.
fn process_s() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("Linux");
    let nanos = |path: std::path::PathBuf| {
        let text = std::fs::read_to_string(path.join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    tasks.flatten().filter_map(|task| nanos(task.path())).sum::<u64>() as f64 / 1e9
}
