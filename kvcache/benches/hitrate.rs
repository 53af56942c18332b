//! Hit rates of each policy at several capacities, then the speed of match, insert and eviction.
//!
//! `cargo bench -p quire-kvcache --bench hitrate -- [--json rates|speed] [TRACE.jsonl | families [SEEDS]]`. A trace has one
//! request per line with `hash_ids`, one id per 512 tokens, equal ids meaning equal prefixes (the
//! Mooncake format). Without one, conversations are generated from a seed. `families` replays every
//! generated family at five capacities and says where a policy is below LRU. The last column is
//! what one would hit who knows the future. Hit rates take a block as one page, as published figures
//! do; times take real pages of 64 tokens. `--json` prints lines of JSON instead, for
//! `scripts/bench-peers tiers`.

#[path = "../tests/workload.rs"]
mod workload;

use base::{Clock, ModelDigest, NamespaceId, PageId, StepId, SystemClock, TokenId};
use quire_kvcache::{Cache, CacheConfig, EvictionKind, TreeKey};
use serde_json::json;
use workload::{Family, Request, clairvoyant, distinct, generate, replay, serve};

const BLOCK_TOKENS: usize = 512;
const CAPACITIES: [u32; 5] = [1_000, 3_000, 10_000, 30_000, 50_000];

/// Nanoseconds, and the tokens they took.
type Timed = (u64, usize);

fn main() {
    let mut args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let json =
        args.iter().position(|a| a == "--json").map(|at| args.drain(at..(at + 2).min(args.len())).nth(1));
    let requests = match args.first().map(String::as_str) {
        Some("families") => {
            return families(args.get(1).map_or(1, |seeds| seeds.parse().expect("SEEDS is a number")));
        }
        Some(path) => read(path),
        None => generate(1, 8_000),
    };
    let (blocks, unique) = (blocks(&requests), distinct(&requests));
    match json.as_ref().map(|part| part.as_deref()) {
        None => (),
        Some(Some("rates")) => return rates_json(&requests, blocks, unique),
        Some(Some("speed")) => return speed_json(&requests, unique),
        Some(other) => panic!("--json takes rates or speed, not {other:?}"),
    }
    println!("{} requests, {blocks} blocks, {unique} distinct", requests.len());
    hit_rates(&requests, blocks, unique);
    report(&speed(&requests, unique));
    println!("128-page match, warm, p50 {:.2} us", of_128_pages(&SystemClock::new()));
    EvictionKind::ALL.into_iter().for_each(|policy| under_pressure(&requests, policy));
}

/// A line for each capacity: what the default policy and LRU hit, and what could be hit.
fn rates_json(requests: &[Request], blocks: usize, unique: u32) {
    let rate = |hits: usize| hits as f64 / blocks as f64;
    for capacity in CAPACITIES.into_iter().filter(|&c| c < unique) {
        let [ours, lru] =
            [EvictionKind::default(), EvictionKind::Lru].map(|p| rate(replay(requests, capacity, p)));
        let best = rate(clairvoyant(requests, capacity));
        let policy = EvictionKind::default().name();
        println!(
            "{}",
            json!({"capacity": capacity, "policy": policy, "ours": ours, "lru": lru, "clairvoyant": best})
        );
    }
}

fn speed_json(requests: &[Request], unique: u32) {
    let speed = speed(requests, unique);
    println!(
        "{}",
        json!({
            "insert_p50": speed.insert_p50, "insert_total": speed.insert_total, "match_p50_us": speed.match_us[0],
            "match_tokens": speed.match_tokens, "metadata_per_page": speed.per_page,
            "match_128_us": of_128_pages(&SystemClock::new()),
        })
    );
}

fn blocks(requests: &[Request]) -> usize {
    requests.iter().map(Vec::len).sum()
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

fn hit_rates(requests: &[Request], blocks: usize, unique: u32) {
    header("blocks");
    for capacity in CAPACITIES.into_iter().filter(|&c| c < unique).chain([unique]) {
        let rate = |hits: usize| format!("{:>8.4}", hits as f64 / blocks as f64);
        let policies = EvictionKind::ALL.map(|p| rate(replay(requests, capacity, p))).join("");
        println!("{capacity:>16} {policies}{}", rate(clairvoyant(requests, capacity)));
    }
}

fn header(first: &str) {
    println!("{first:>16} {} clairvoyant", EvictionKind::ALL.map(|p| format!("{:>8}", p.name())).join(""));
}

/// Capacities are shares of the distinct blocks, in percent.
fn families(seeds: u64) {
    header("family, blocks");
    let mut below: Vec<(f64, String)> = Vec::new();
    for (family, seed) in Family::ALL.into_iter().flat_map(|f| (1..=seeds).map(move |s| (f, s))) {
        let requests = family.requests(seed, 6_000);
        for share in [1, 3, 10, 25, 50] {
            let capacity = (distinct(&requests) * share / 100).max(60);
            let rate = |hits: usize| hits as f64 / blocks(&requests) as f64;
            let rates = EvictionKind::ALL.map(|p| (p, rate(replay(&requests, capacity, p))));
            let best = rate(clairvoyant(&requests, capacity));
            let cells = rates.map(|(_, rate)| format!("{rate:>8.4}")).join("");
            let label = format!("{family:?} {seed}");
            println!("{label:>11} {capacity:>6} {cells}{best:>8.4}");
            let of = |kind| rates.iter().find(|r| r.0 == kind).map_or(0.0, |r| r.1);
            below.push((of(EvictionKind::default()) - of(EvictionKind::Lru), format!("{label} {capacity}")));
        }
    }
    below.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mean = below.iter().map(|b| b.0).sum::<f64>() / below.len() as f64;
    let lost = below.iter().filter(|b| b.0 < 0.0).count();
    println!("{} less lru: mean {mean:+.4}, below in {lost} of {}", EvictionKind::default(), below.len());
    below.iter().take(12).for_each(|(by, at)| println!("{by:+.5} {at}"));
}

/// Everything fits, so each request is inserted once and then hit whole.
fn speed(requests: &[Request], unique: u32) -> Speed {
    let size = 64;
    let pages = (unique as usize * BLOCK_TOKENS / size) as u32;
    let mut cache = Cache::new(CacheConfig::new(pages, size as u32));
    let key = TreeKey::new(NamespaceId(1), ModelDigest::default());
    let clock = SystemClock::new();
    let (mut inserts, mut matches): (Vec<Timed>, Vec<Timed>) = (Vec::new(), Vec::new());
    let mut tokens: Vec<TokenId> = Vec::new();
    for request in requests {
        fill(request, &mut tokens);
        let mut lease = cache.lease(&key, &tokens);
        let rest = tokens.len() / size - lease.pages().len();
        let own: Vec<PageId> = cache.reserve(rest).expect("everything fits");
        let start = clock.now();
        cache.publish(&mut lease, &tokens, &own, StepId(0));
        inserts.push((clock.now().since(start).as_nanos() as u64, rest * size));
        cache.release(lease, StepId(0));
    }
    for request in requests {
        fill(request, &mut tokens);
        let start = clock.now();
        let lease = cache.lease(&key, &tokens);
        matches.push((clock.now().since(start).as_nanos() as u64, tokens.len()));
        assert_eq!(lease.pages().len(), tokens.len() / size, "a full hit");
        cache.release(lease, StepId(0));
    }
    measured(&cache, inserts, matches)
}

/// A pool of a tenth of what is asked for, so that nearly every request evicts.
fn under_pressure(requests: &[Request], policy: EvictionKind) {
    let size = 64;
    let pages = (distinct(requests) as usize * BLOCK_TOKENS / size / 10) as u32;
    let mut cache = Cache::new(CacheConfig { policy, ..CacheConfig::new(pages, size as u32) });
    let clock = SystemClock::new();
    let mut tokens: Vec<TokenId> = Vec::new();
    let mut times: Vec<u64> = Vec::new();
    for request in requests {
        fill(request, &mut tokens);
        let start = clock.now();
        serve(&mut cache, &tokens, size);
        times.push(clock.now().since(start).as_nanos() as u64);
    }
    let total = times.iter().sum::<u64>() as f64 / 1e6;
    times.sort_unstable();
    let p50 = times[times.len() / 2] as f64 / 1e3;
    println!("{policy:>8}, evicting: a request p50 {p50:.2} us, {total:.1} ms in total");
}

/// Medians beside totals: on a busy machine a total measures the neighbours.
struct Speed {
    /// Millions of tokens a second.
    insert_p50: f64,
    insert_total: f64,
    tokens: usize,
    /// The 50th and the 99th percentile.
    match_us: [f64; 2],
    match_tokens: usize,
    nodes: usize,
    /// Bytes of metadata.
    per_page: f64,
}

fn measured(cache: &Cache, mut inserts: Vec<Timed>, mut matches: Vec<Timed>) -> Speed {
    let sum = |of: &[Timed]| of.iter().fold((0, 0), |(ns, n), t| (ns + t.0, n + t.1));
    let rate = |(ns, tokens): Timed| tokens as f64 * 1e3 / ns.max(1) as f64;
    let (all, tokens) = sum(&inserts);
    inserts.sort_unstable_by(|a, b| rate(*a).total_cmp(&rate(*b)));
    let match_tokens = sum(&matches).1 / matches.len();
    matches.sort_unstable();
    let at = |q: usize| matches[(matches.len() - 1) * q / 100].0 as f64 / 1e3;
    let stats = cache.stats();
    Speed {
        insert_p50: rate(inserts[inserts.len() / 2]),
        insert_total: rate((all, tokens)),
        tokens,
        match_us: [at(50), at(99)],
        match_tokens,
        nodes: stats.nodes,
        per_page: stats.metadata_bytes as f64 / stats.pages_total as f64,
    }
}

fn report(speed: &Speed) {
    let Speed { insert_p50, insert_total, tokens, match_us: [p50, p99], match_tokens, nodes, per_page } =
        speed;
    println!("insert p50 {insert_p50:.0}, in total {insert_total:.0} M tokens/s over {tokens} tokens");
    println!("full-hit match p50 {p50:.2} us, p99 {p99:.2} us, {match_tokens} tokens on average");
    println!("{nodes} nodes, {per_page:.0} bytes of metadata per page of 64 tokens");
}

fn fill(request: &[u32], tokens: &mut Vec<TokenId>) {
    tokens.clear();
    for &id in request {
        tokens
            .extend((0..BLOCK_TOKENS as u32).map(|i| id.wrapping_mul(0x9E37_79B9).wrapping_add(i) & 0x1FFFF));
    }
}

/// Microseconds, the median.
fn of_128_pages(clock: &SystemClock) -> f64 {
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
    times[times.len() / 2] as f64 / 1e3
}
