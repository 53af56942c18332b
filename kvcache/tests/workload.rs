//! Requests as lists of block ids, equal ids meaning equal prefixes, and their replay.
//! Shared by the tests and `benches/hitrate.rs`.

use base::{ModelDigest, NamespaceId, SplitMix, StepId, TokenId};
use quire_kvcache::{Cache, CacheConfig, EvictionKind, TreeKey};

pub type Request = Vec<u32>;

/// Shared system prompts, turns that repeat all that came before, and one-off prompts.
pub fn generate(seed: u64, requests_max: usize) -> Vec<Request> {
    let mut rng = SplitMix::new(seed);
    let mut next = 40;
    let mut fresh = |rng: &mut SplitMix, max: u64| -> Vec<u32> {
        let n = 1 + rng.below(max) as u32;
        next += n;
        (next - n..next).collect()
    };
    let mut open: Vec<Request> = Vec::new();
    let mut requests = Vec::new();
    for _ in 0..requests_max {
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

/// Blocks hit when a block is a page of 16 equal tokens.
pub fn replay(requests: &[Request], capacity: u32, policy: EvictionKind) -> usize {
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
pub fn serve(cache: &mut Cache, tokens: &[TokenId], size: usize) -> usize {
    let key = TreeKey::new(NamespaceId(1), ModelDigest::default());
    let mut lease = cache.lease(&key, tokens);
    let hits = lease.pages().len();
    let rest = (tokens.len() / size - hits).min(cache.available());
    let pages = cache.reserve(rest).expect("no more than is available");
    cache.publish(&mut lease, tokens, &pages, StepId(0));
    cache.release(lease, StepId(0));
    hits
}
