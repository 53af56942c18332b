//! Select and reserve: names of the prompt's blocks, what each of 64 replicas holds of them, the decision, the
//! reservation, its end. One core; a line per prompt length.
//!
//! ```text
//! cargo bench -p quire-router --bench decide [-- --seconds 3]
//! ```
//!
//! Names are computed from the tokens, as a router does that gets tokens. What is looked up here is a plain map and
//! not the router's index, which has a bench of its own: the figure is a floor for the decision, not for the map.
//! The hash in each line is over who was chosen: equal hashes mean equal decisions.

use std::collections::HashMap;
use std::time::Duration;

use base::{
    AdapterId, ChainHash, ChainRoot, Clock, Generation, ModelDigest, NamespaceKey, Nanos, SplitMix,
    SystemClock,
};
use quire_router::book::{Book, BookLimits, Reservation, Ticket};
use quire_router::decide::{AdapterState, Ask, Heat, Policy, View, decide};
use quire_router::fleet::{Fleet, Seating};
use quire_router::{Held, Seat};

const REPLICAS: usize = 64;
const BLOCK_TOKENS: usize = 16;
/// Requests in flight, and prompts that are asked for in turn.
const IN_FLIGHT: u64 = 512;
const PROMPTS: usize = 64;

struct Router {
    root: ChainHash,
    holdings: HashMap<u64, u64>,
    fleet: Fleet,
    book: Book,
    heat: Heat,
    names: Vec<u64>,
    views: Vec<View>,
    policy: Policy,
    turn: u64,
}

impl Router {
    fn new() -> Self {
        let mut fleet = Fleet::default();
        for _ in 0..REPLICAS {
            let seat = fleet.join(Seating::default(), Nanos(0)).expect("as many as a pool has seats");
            fleet.alive(seat, Nanos(0));
        }
        let (holdings, book) = (HashMap::new(), Book::new(BookLimits::default()));
        let (heat, names, views) = (Heat::default(), Vec::new(), Vec::new());
        Self { root: root(), holdings, fleet, book, heat, names, views, policy: Policy::default(), turn: 0 }
    }

    /// What a router does between the tokens and the connection.
    fn select(&mut self, tokens: &[u32], now: Nanos) -> Seat {
        name(&mut self.names, self.root, tokens);
        let held = self.lookup();
        self.fleet.views(&self.book, now, |s| held[s.index()], |_| AdapterState::Loaded, &mut self.views);
        let ask = Ask {
            prompt_tokens: tokens.len() as u32,
            block_tokens: BLOCK_TOKENS as u32,
            turn: self.turn,
            hot: self.heat.note(&self.names, now),
            ..Ask::default()
        };
        let decision = decide(&self.policy, &ask, &self.views).expect("all are ready");
        let reservation = Reservation {
            seat: decision.chosen,
            uncached_tokens: decision.score().uncached_tokens,
            total_tokens: ask.prompt_tokens,
            expected_output: ask.output_tokens,
        };
        self.book.reserve(Ticket(self.turn), reservation, now).expect("the book has room");
        self.retire(now);
        self.turn += 1;
        decision.chosen
    }

    fn lookup(&self) -> [Held; REPLICAS] {
        let mut held = [Held::default(); REPLICAS];
        let mut alive = u64::MAX;
        for (depth, name) in self.names.iter().enumerate() {
            let here = alive & self.holdings.get(name).copied().unwrap_or(0);
            end(&mut held, alive & !here, depth as u32);
            alive = here;
        }
        end(&mut held, alive, self.names.len() as u32);
        held
    }

    /// The oldest request ends, the one in the middle had its first token.
    fn retire(&mut self, now: Nanos) {
        self.book.prefill_done(Ticket(self.turn.wrapping_sub(IN_FLIGHT / 8)), now);
        self.book.free(Ticket(self.turn.wrapping_sub(IN_FLIGHT)), now);
    }

    /// The chosen replica keeps the last prompt.
    fn store(&mut self, seat: Seat) {
        self.names.iter().for_each(|name| *self.holdings.entry(*name).or_default() |= 1 << seat.index());
    }
}

/// Names of a prompt's blocks, as its tokens give them.
fn name(names: &mut Vec<u64>, root: ChainHash, tokens: &[u32]) {
    names.clear();
    let mut chain = root;
    names.extend(tokens.chunks_exact(BLOCK_TOKENS).map(|block| {
        chain = chain.next(block);
        chain.low64()
    }));
}

/// The workers that held up to here and no farther.
fn end(held: &mut [Held; REPLICAS], mut ended: u64, depth: u32) {
    while ended != 0 {
        held[ended.trailing_zeros() as usize].blocks[0] = depth;
        ended &= ended - 1;
    }
}

fn root() -> ChainHash {
    let root = ChainRoot {
        generation: Generation(1),
        model: ModelDigest([1; 32]),
        layout: [2; 32],
        adapter: AdapterId(0),
        salt: Vec::new(),
    };
    root.hash(&NamespaceKey([3; 32]))
}

/// Prompts that share their first quarter.
fn prompts(tokens: usize, rng: &mut SplitMix) -> Vec<Vec<u32>> {
    let mut draw = |count: usize| (0..count).map(|_| rng.below(100_000) as u32).collect::<Vec<u32>>();
    let shared = draw(tokens / 4);
    (0..PROMPTS).map(|_| [shared.clone(), draw(tokens - tokens / 4)].concat()).collect()
}

fn main() {
    let seconds: f64 = std::env::args()
        .skip_while(|a| a != "--seconds")
        .nth(1)
        .map_or(3.0, |s| s.parse().expect("SECONDS is a number"));
    let clock = SystemClock::new();
    for tokens in [1_000, 8_000] {
        let mut router = Router::new();
        let prompts = prompts(tokens, &mut SplitMix::new(7));
        let mut digest = 0u64;
        // Everybody is chosen by time that the seed makes, so that the decisions are the same in every run.
        let step = Duration::from_micros(500);
        let mut now = Nanos(0);
        for turn in 0..4 * IN_FLIGHT as usize {
            now = now.plus(step);
            let prompt = &prompts[turn % PROMPTS];
            let seat = router.select(prompt, now);
            router.store(seat);
            digest = digest.rotate_left(5) ^ u64::from(seat.0);
        }
        let (begun, mut count) = (clock.now(), 0usize);
        while clock.now().since(begun).as_secs_f64() < seconds {
            for _ in 0..64 {
                now = now.plus(step);
                router.select(&prompts[count % PROMPTS], now);
                count += 1;
            }
        }
        let rate = count as f64 / clock.now().since(begun).as_secs_f64();
        println!("{tokens} tokens, {REPLICAS} replicas: {rate:.0} select+reserve/s, decisions {digest:016x}");
    }
}
