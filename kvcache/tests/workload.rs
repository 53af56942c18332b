//! Requests as lists of block ids, equal ids meaning equal prefixes, and their replay.
//! Shared by the tests and `benches/hitrate.rs`.
//!
//! A trace shows one service; a policy is judged by what it does on the others. The families are the
//! shapes that prefix caches are known to meet, each from a seed: what is popular, what comes back
//! after a pause and what never comes back differ between them in every combination.

use std::collections::{BTreeSet, HashMap};

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

/// A shape of traffic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// [`generate`]: conversations resumed by recency, among all that were ever opened.
    Resumed,
    /// Conversations resumed by their place in a stack of recency, so that nothing but recency tells.
    Recency,
    /// Conversations with think times; most prompts have one turn, those with two mostly more.
    Turns,
    /// A long shared system prompt, then loops of tool calls seconds apart.
    Agents,
    /// One to three shared documents of a skewed popularity in random order, then a question.
    Documents,
    /// Hot conversations among one-off prompts, four fifths of all.
    Scans,
    /// Shared prompts whose popularity moves on.
    Shift,
    /// Prompts asked many times for a while and never again.
    Bursts,
    /// Independent draws from one skewed popularity.
    Popular,
    /// A loop through more prompts than fit, beside some that do: what recency is worst at.
    Loop,
    /// Four of the others, one after the other.
    Phases,
}

impl Family {
    pub const ALL: [Family; 11] = [
        Self::Resumed,
        Self::Recency,
        Self::Turns,
        Self::Agents,
        Self::Documents,
        Self::Scans,
        Self::Shift,
        Self::Bursts,
        Self::Popular,
        Self::Loop,
        Self::Phases,
    ];

    pub fn requests(self, seed: u64, n: usize) -> Vec<Request> {
        let rng = &mut SplitMix::new(seed << 8 | self as u64);
        let prompts = match self {
            Self::Resumed => return generate(seed, n),
            Self::Recency => recency(rng, n),
            Self::Turns => turns(rng, n),
            Self::Agents => agents(rng, n),
            Self::Documents => documents(rng, n),
            Self::Scans => scans(rng, n),
            Self::Shift => (0..n).map(|i| shifted(rng, i, n)).collect(),
            Self::Bursts => bursts(rng, n),
            Self::Popular => popular(rng, n),
            Self::Loop => (0..n).map(|i| looped(rng, i)).collect(),
            Self::Phases => phases(seed, n),
        };
        name(prompts)
    }
}

/// What a prompt says, one number per block: blocks are the same only after the same blocks.
type Prompt = Vec<u64>;

/// Ids for prefixes, in order of first use.
fn name(prompts: Vec<Prompt>) -> Vec<Request> {
    let mut ids: HashMap<(Option<u32>, u64), u32> = HashMap::new();
    let mut request = |prompt: Prompt| {
        let mut above = None;
        let mut id_of = |block| {
            let fresh = ids.len() as u32;
            let id = *ids.entry((above, block)).or_insert(fresh);
            above = Some(id);
            id
        };
        prompt.into_iter().map(&mut id_of).collect()
    };
    prompts.into_iter().map(&mut request).collect()
}

/// `n` blocks of the text `text`; below 1 << 20 are shared texts, [`Fresh`] gives the others.
fn text(text: u64, n: u64) -> impl Iterator<Item = u64> {
    (0..n).map(move |block| text << 8 | block)
}

/// Texts that nobody else says.
struct Fresh(u64);

impl Fresh {
    fn new() -> Self {
        Self(1 << 20)
    }

    fn text(&mut self, n: u64) -> impl Iterator<Item = u64> + use<> {
        self.0 += 1;
        text(self.0, n)
    }
}

fn exponential(rng: &mut SplitMix, mean: f64) -> f64 {
    -mean * (1.0 - rng.unit()).ln()
}

fn lognormal(rng: &mut SplitMix, median: f64, sigma: f64) -> f64 {
    median * (sigma * rng.normal()).exp()
}

/// One of `n`, the first ones more common: nearly Zipf with exponent `s`, not 1.
fn skewed(rng: &mut SplitMix, n: u64, s: f64) -> u64 {
    let a = 1.0 - s;
    let x = (((n as f64 + 1.0).powf(a) - 1.0) * rng.unit() + 1.0).powf(1.0 / a);
    (x as u64 - 1).min(n - 1)
}

/// Prompts at their times: the first `n` of them.
fn in_time(mut events: Vec<(f64, Prompt)>, n: usize) -> Vec<Prompt> {
    events.sort_by(|a, b| a.0.total_cmp(&b.0));
    events.into_iter().map(|(_, prompt)| prompt).take(n).collect()
}

fn recency(rng: &mut SplitMix, n: usize) -> Vec<Prompt> {
    let mut fresh = Fresh::new();
    let mut open: Vec<Prompt> = Vec::new();
    let mut next = || {
        if open.is_empty() || rng.unit() < 0.3 {
            open.push(fresh.text(2 + rng.below(20)).collect());
            return open[open.len() - 1].clone();
        }
        let back = (open.len() as f64).powf(rng.unit()) as usize;
        let mut prompt = open.remove(open.len() - back.clamp(1, open.len()));
        prompt.extend(fresh.text(1 + rng.below(5)));
        if prompt.len() < 200 {
            open.push(prompt.clone());
        }
        prompt
    };
    (0..n).map(|_| next()).collect()
}

fn turns(rng: &mut SplitMix, n: usize) -> Vec<Prompt> {
    let (mut fresh, mut events, mut opened) = (Fresh::new(), Vec::new(), 0.0);
    while events.len() < n * 5 / 4 {
        opened += exponential(rng, 2.0);
        let mut prompt: Prompt = text(skewed(rng, 12, 1.1), 4).chain(fresh.text(1 + rng.below(16))).collect();
        let (mut at, mut stays) = (opened, 0.45);
        loop {
            events.push((at, prompt.clone()));
            if rng.unit() > stays {
                break;
            }
            stays = 0.8;
            at += lognormal(rng, 60.0, 1.0);
            prompt.extend(fresh.text(1 + rng.below(6)));
        }
    }
    in_time(events, n)
}

fn agents(rng: &mut SplitMix, n: usize) -> Vec<Prompt> {
    let (mut fresh, mut events, mut opened) = (Fresh::new(), Vec::new(), 0.0);
    while events.len() < n * 5 / 4 {
        opened += exponential(rng, 12.0);
        let mut prompt: Prompt = text(skewed(rng, 5, 1.1), 20).chain(fresh.text(1 + rng.below(4))).collect();
        let mut at = opened;
        for _ in 0..1 + exponential(rng, 12.0) as usize {
            events.push((at, prompt.clone()));
            at += lognormal(rng, 4.0, 0.7);
            prompt.extend(fresh.text(1 + rng.below(3)));
            if rng.unit() < 0.05 {
                at += lognormal(rng, 200.0, 1.0);
            }
        }
    }
    in_time(events, n)
}

fn documents(rng: &mut SplitMix, n: usize) -> Vec<Prompt> {
    let mut fresh = Fresh::new();
    let mut next = || {
        let mut prompt: Prompt = text(0, 2).collect();
        for _ in 0..1 + rng.below(3) {
            let document = 1 + skewed(rng, 400, 0.9);
            prompt.extend(text(document, 2 + document % 7));
        }
        prompt.extend(fresh.text(1));
        prompt
    };
    (0..n).map(|_| next()).collect()
}

fn scans(rng: &mut SplitMix, n: usize) -> Vec<Prompt> {
    let (mut fresh, mut events, mut opened) = (Fresh::new(), Vec::new(), 0.0);
    while events.len() < n * 5 / 4 {
        opened += exponential(rng, 4.0);
        let mut prompt: Prompt = text(0, 4).chain(fresh.text(4)).collect();
        let mut at = opened;
        for _ in 0..1 + exponential(rng, 6.0) as usize {
            events.push((at, prompt.clone()));
            at += lognormal(rng, 50.0, 0.8);
            prompt.extend(fresh.text(1 + rng.below(4)));
        }
        for _ in 0..24 {
            events.push((opened + exponential(rng, 4.0), fresh.text(4 + rng.below(24)).collect()));
        }
    }
    in_time(events, n)
}

fn shifted(rng: &mut SplitMix, i: usize, n: usize) -> Prompt {
    let era = (i * 8 / n) as u64 * 60;
    let shared = (era + skewed(rng, 300, 1.1) * 7) % 2_000;
    text(shared, 2 + shared % 9).chain(text((1 << 20) + i as u64, 1 + rng.below(4))).collect()
}

fn bursts(rng: &mut SplitMix, n: usize) -> Vec<Prompt> {
    let (mut fresh, mut events, mut opened) = (Fresh::new(), Vec::new(), 0.0);
    while events.len() < n * 5 / 4 {
        opened += exponential(rng, 6.0);
        let prompt: Prompt = fresh.text(4 + rng.below(16)).collect();
        let asked = if rng.unit() < 0.3 { 1 + exponential(rng, 15.0) as usize } else { 1 };
        let mut at = opened;
        for _ in 0..asked {
            events.push((at, prompt.iter().copied().chain(fresh.text(1 + rng.below(3))).collect()));
            at += exponential(rng, 5.0);
        }
    }
    in_time(events, n)
}

fn popular(rng: &mut SplitMix, n: usize) -> Vec<Prompt> {
    let mut fresh = Fresh::new();
    let mut next = || {
        let shared = skewed(rng, 3_000, 0.8);
        let tail = rng.below(2);
        text(shared, 1 + shared % 12).chain(fresh.text(tail)).collect()
    };
    (0..n).map(|_| next()).collect()
}

fn looped(rng: &mut SplitMix, i: usize) -> Prompt {
    if rng.unit() < 0.3 {
        let tail = text((1 << 20) + i as u64, 1 + rng.below(4));
        return text(1_000 + skewed(rng, 50, 1.1), 6).chain(tail).collect();
    }
    text(i as u64 % 600, 10).collect()
}

fn phases(seed: u64, n: usize) -> Vec<Prompt> {
    let of = [Family::Resumed, Family::Scans, Family::Loop, Family::Turns];
    let phase = |(k, family): (usize, Family)| -> Vec<Prompt> {
        let requests = family.requests(seed + k as u64, n / of.len());
        requests
            .into_iter()
            .map(|r| r.into_iter().map(|id| (k as u64) << 32 | u64::from(id)).collect())
            .collect()
    };
    of.into_iter().enumerate().flat_map(phase).collect()
}

/// Distinct blocks.
pub fn distinct(requests: &[Request]) -> u32 {
    1 + requests.iter().flatten().max().copied().unwrap_or(0)
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

/// Blocks hit by one who knows the future and evicts the leaf whose next use is farthest. Not quite
/// the best there is, since leaves hide what is under them, but nothing without the future comes near.
pub fn clairvoyant(requests: &[Request], capacity: u32) -> usize {
    let mut oracle = Oracle::new(requests);
    requests.iter().enumerate().map(|(now, request)| oracle.serve(now, request, capacity as usize)).sum()
}

const NEVER: u32 = u32::MAX;

#[derive(Clone, Default)]
struct Known {
    cached: bool,
    held: bool,
    children: u32,
    parent: Option<u32>,
    next: u32,
}

struct Oracle {
    /// When each block of each request is used again.
    next: Vec<Vec<u32>>,
    blocks: Vec<Known>,
    leaves: BTreeSet<(u32, u32)>,
    cached: usize,
}

impl Oracle {
    fn new(requests: &[Request]) -> Self {
        let distinct = distinct(requests) as usize;
        let mut at = vec![NEVER; distinct];
        let mut next: Vec<Vec<u32>> = Vec::with_capacity(requests.len());
        for (now, request) in requests.iter().enumerate().rev() {
            next.push(
                request.iter().map(|&id| std::mem::replace(&mut at[id as usize], now as u32)).collect(),
            );
        }
        next.reverse();
        Self { next, blocks: vec![Known::default(); distinct], leaves: BTreeSet::new(), cached: 0 }
    }

    fn serve(&mut self, now: usize, request: &[u32], capacity: usize) -> usize {
        let hits = request.iter().take_while(|&&id| self.blocks[id as usize].cached).count();
        let mut kept = 0;
        for (depth, &id) in request.iter().enumerate() {
            let next = self.next[now][depth];
            if depth < hits {
                self.leaves.remove(&(self.blocks[id as usize].next, id));
            } else if self.cached == capacity && !self.evict() {
                break;
            } else {
                let parent = depth.checked_sub(1).map(|above| request[above]);
                parent.inspect(|&p| self.blocks[p as usize].children += 1);
                self.cached += 1;
                self.blocks[id as usize] = Known { cached: true, parent, ..Known::default() };
            }
            let block = &mut self.blocks[id as usize];
            (block.held, block.next) = (true, next);
            kept = depth + 1;
        }
        for &id in &request[..kept] {
            self.blocks[id as usize].held = false;
            self.offer(id);
        }
        hits
    }

    fn offer(&mut self, id: u32) {
        let block = &self.blocks[id as usize];
        if block.children == 0 && !block.held {
            self.leaves.insert((block.next, id));
        }
    }

    fn evict(&mut self) -> bool {
        let Some((_, id)) = self.leaves.pop_last() else { return false };
        self.cached -= 1;
        self.blocks[id as usize].cached = false;
        if let Some(parent) = self.blocks[id as usize].parent {
            self.blocks[parent as usize].children -= 1;
            self.offer(parent);
        }
        true
    }
}
