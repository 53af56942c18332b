//! Hit rates of each policy at several capacities, then the speed of match and insert.
//!
//! `cargo bench -p quire-kvcache --bench hitrate -- [TRACE.jsonl]`. A trace has one request per line
//! with `hash_ids`, one id per 512 tokens, equal ids meaning equal prefixes (the Mooncake format).
//! Without one, conversations are generated from a seed: shared system prompts, turns that repeat all
//! that came before, and one-off prompts. Hit rates take a block as one page, as published figures
//! do; times take real pages of 64 tokens.

use base::{Clock, ModelDigest, NamespaceId, PageId, SplitMix, StepId, SystemClock, TokenId};
use quire_kvcache::{Cache, CacheConfig, EvictionKind, TreeKey};

const BLOCK_TOKENS: usize = 512;
const CAPACITIES: [u32; 5] = [1_000, 3_000, 10_000, 30_000, 50_000];

type Request = Vec<u32>;

fn main() {
    let path = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let requests = match &path {
        Some(path) => read(path),
        None => generate(1),
    };
    let blocks: usize = requests.iter().map(Vec::len).sum();
    let unique = 1 + requests.iter().flatten().max().copied().unwrap_or(0);
    println!("{} requests, {blocks} blocks, {unique} distinct", requests.len());
    hit_rates(&requests, blocks, unique);
    speed(&requests, unique);
}

fn read(path: &str) -> Vec<Request> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let request = |line: &str| -> Request {
        let line: serde_json::Value = serde_json::from_str(line).expect("a line is JSON");
        let ids = line["hash_ids"].as_array().expect("a request has hash_ids");
        ids.iter().map(|id| id.as_u64().expect("an id is a number") as u32).collect()
    };
    text.lines().filter(|l| !l.trim().is_empty()).map(request).collect()
}

fn generate(seed: u64) -> Vec<Request> {
    let mut rng = SplitMix::new(seed);
    let mut next = 40;
    let mut fresh = |rng: &mut SplitMix, max: u64| -> Vec<u32> {
        let n = 1 + rng.below(max) as u32;
        next += n;
        (next - n..next).collect()
    };
    let mut open: Vec<Request> = Vec::new();
    let mut requests = Vec::new();
    for _ in 0..8_000 {
        let roll = rng.below(10);
        if roll < 6 && !open.is_empty() {
            let recent = rng.unit().powi(3);
            let i = open.len() - 1 - (recent * open.len() as f64) as usize;
            let turn = fresh(&mut rng, 8);
            open[i].extend(turn);
            requests.push(open[i].clone());
        } else {
            // System prompts of four blocks, the first ones far more common.
            let system = (rng.unit().powi(4) * 10.0) as u32 * 4;
            let mut request: Request = if roll < 9 { (system..system + 4).collect() } else { Vec::new() };
            request.extend(fresh(&mut rng, 24));
            requests.push(request.clone());
            open.push(request);
        }
    }
    requests
}

fn hit_rates(requests: &[Request], blocks: usize, unique: u32) {
    println!("{:>10} {}", "blocks", EvictionKind::ALL.map(|p| format!("{:>8}", p.name())).join(""));
    for capacity in CAPACITIES.into_iter().filter(|&c| c < unique).chain([unique]) {
        let rate = |policy| replay(requests, capacity, policy) as f64 / blocks as f64;
        println!("{capacity:>10} {}", EvictionKind::ALL.map(|p| format!("{:>8.4}", rate(p))).join(""));
    }
}

/// Blocks hit when a block is a page of 16 equal tokens.
fn replay(requests: &[Request], capacity: u32, policy: EvictionKind) -> usize {
    let mut cache = Cache::new(CacheConfig { policy, ..CacheConfig::new(capacity, 16) });
    let mut hits = 0;
    for request in requests {
        let tokens: Vec<TokenId> = request.iter().flat_map(|&id| [id; 16]).collect();
        hits += serve(&mut cache, &tokens, 16);
    }
    cache.check().expect("the integrity law holds");
    hits
}

/// Pages hit; what fits of the rest is published.
fn serve(cache: &mut Cache, tokens: &[TokenId], size: usize) -> usize {
    let key = TreeKey::new(NamespaceId(1), ModelDigest::default());
    let mut lease = cache.lease(&key, tokens);
    let hits = lease.pages().len();
    let rest = (tokens.len() / size - hits).min(cache.available());
    let pages = cache.reserve(rest).expect("no more than is available");
    cache.publish(&mut lease, tokens, &pages, StepId(0));
    cache.release(lease, StepId(0));
    hits
}

/// Everything fits, so each request is inserted once and then hit whole.
fn speed(requests: &[Request], unique: u32) {
    let size = 64;
    let pages = (unique as usize * BLOCK_TOKENS / size) as u32;
    let mut cache = Cache::new(CacheConfig::new(pages, size as u32));
    let key = TreeKey::new(NamespaceId(1), ModelDigest::default());
    let clock = SystemClock::new();
    let (mut inserted, mut insert_ns, mut matched) = (0usize, 0u128, Vec::new());
    let mut tokens: Vec<TokenId> = Vec::new();
    for request in requests {
        fill(request, &mut tokens);
        let mut lease = cache.lease(&key, &tokens);
        let rest = tokens.len() / size - lease.pages().len();
        let own: Vec<PageId> = cache.reserve(rest).expect("everything fits");
        let start = clock.now();
        cache.publish(&mut lease, &tokens, &own, StepId(0));
        insert_ns += clock.now().since(start).as_nanos();
        inserted += rest * size;
        cache.release(lease, StepId(0));
    }
    for request in requests {
        fill(request, &mut tokens);
        let start = clock.now();
        let lease = cache.lease(&key, &tokens);
        matched.push((clock.now().since(start).as_nanos() as u64, lease.pages().len()));
        assert_eq!(lease.pages().len(), tokens.len() / size, "a full hit");
        cache.release(lease, StepId(0));
    }
    report(&cache, inserted, insert_ns, matched);
    of_128_pages(&clock);
}

fn report(cache: &Cache, inserted: usize, insert_ns: u128, mut matched: Vec<(u64, usize)>) {
    let rate = inserted as f64 * 1e3 / insert_ns.max(1) as f64;
    println!("insert {rate:.0} M tokens/s over {inserted} tokens");
    let pages: usize = matched.iter().map(|(_, n)| n).sum();
    matched.sort_unstable();
    let at = |q: usize| matched[(matched.len() - 1) * q / 100].0 as f64 / 1e3;
    let mean = pages * 64 / matched.len();
    println!("full-hit match p50 {:.2} us, p99 {:.2} us, {mean} tokens on average", at(50), at(99));
    let stats = cache.stats();
    let per_page = stats.metadata_bytes as f64 / stats.pages_total as f64;
    println!("{} nodes, {per_page:.0} bytes of metadata per page of 64 tokens", stats.nodes);
}

fn fill(request: &[u32], tokens: &mut Vec<TokenId>) {
    tokens.clear();
    for &id in request {
        tokens
            .extend((0..BLOCK_TOKENS as u32).map(|i| id.wrapping_mul(0x9E37_79B9).wrapping_add(i) & 0x1FFFF));
    }
}

fn of_128_pages(clock: &SystemClock) {
    let mut cache = Cache::new(CacheConfig::new(128, 64));
    let key = TreeKey::new(NamespaceId(1), ModelDigest::default());
    let tokens: Vec<TokenId> = (0..128 * 64).collect();
    serve(&mut cache, &tokens, 64);
    let mut times: Vec<u64> = Vec::new();
    for _ in 0..2_000 {
        let start = clock.now();
        let lease = cache.lease(&key, &tokens);
        times.push(clock.now().since(start).as_nanos() as u64);
        cache.release(lease, StepId(0));
    }
    times.sort_unstable();
    println!("128-page match, warm, p50 {:.2} us", times[times.len() / 2] as f64 / 1e3);
}
