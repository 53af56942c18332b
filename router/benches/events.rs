//! Naming prompts and taking in events: time per prompt and per block, medians of five rounds.
//!
//!     cargo bench -p quire-router --bench events
//!
//! Workload: 8,192 tokens in blocks of 16 and of 64; a hundred thousand blocks from our replicas (64 a run) and from an
//! engine in each dialect (16 a batch), told to a receiver that does nothing. The printed sums are those of the names
//! and must not change with the machine.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use base::{ChainHash, Clock, Generation, Nanos, SplitMix, SystemClock, Tier};
use proto::v1::event::Event as Kind;
use proto::v1::kv_events_response::Message;
use proto::v1::{Event, EventBatch, Hello, KvEventsResponse, Position, SnapshotEnd, StoredRun};
use quire_router::Seat;
use quire_router::naming::foreign::Chain;
use quire_router::naming::roots::names;
use quire_router::source::{Engine, Follower, Limits, Replay, Scope, Tail, TailLimits, Tiers, Told, Want};

#[path = "../tests/source/pack.rs"]
#[expect(dead_code, reason = "the tests write all kinds of events, nothing here but stores")]
mod pack;

#[derive(Default)]
struct Sum(AtomicU64);

impl Told for Sum {
    fn stored(&self, _: Seat, _: &Scope, _: Tiers, _: Option<u64>, names: &[u64]) {
        let sum = names.iter().fold(0u64, |sum, name| sum.wrapping_add(*name));
        self.0.fetch_add(sum, Ordering::Relaxed);
    }
    fn removed(&self, _: Seat, _: &Scope, _: Tier, _: &[u64]) {}
    fn cleared(&self, _: Seat) {}
    fn purged(&self, _: Seat, _: &str, _: Generation, _: u64) {}
}

fn main() {
    let clock = SystemClock::new();
    let time = |what: &str, per: f64, unit: &str, mut work: Box<dyn FnMut() -> u64>| {
        let mut sum = 0;
        let mut rounds: Vec<f64> = (0..5)
            .map(|_| {
                let begun = clock.now();
                sum = black_box(work());
                clock.now().since(begun).as_secs_f64()
            })
            .collect();
        rounds.sort_by(f64::total_cmp);
        println!("{what:<40} {:>10.2} {unit}   sum {sum:016x}", rounds[2] * 1e9 / per);
    };
    let mut rng = SplitMix::new(1);
    let tokens: Vec<u32> = (0..8192).map(|_| rng.below(100_000) as u32).collect();
    for block in [16, 64] {
        let tokens = tokens.clone();
        let work = move || {
            let sum = |names: Vec<u64>| names.iter().fold(0u64, |sum, name| sum.wrapping_add(*name));
            (0..100).fold(0, |_, _| sum(names(&ChainHash([1; 32]), &tokens, block)))
        };
        time(&format!("names of 8192 tokens, blocks of {block}"), 1e3 * 100.0, "µs", Box::new(work));
    }
    let batches = ours(&mut rng);
    time("events of a replica of ours", 1e5, "ns a block", Box::new(move || follow(&batches)));
    for dialect in [pack::Dialect::Lists, pack::Dialect::Maps] {
        let batches = theirs(&mut rng, dialect);
        let what = format!("events of an engine, {dialect:?}");
        time(&what, 1e5, "ns a block", Box::new(move || tail(&batches)));
    }
}

fn response(message: Message) -> KvEventsResponse {
    KvEventsResponse { message: Some(message) }
}

fn ours(rng: &mut SplitMix) -> Vec<KvEventsResponse> {
    let hello = Hello { incarnation: 1, block_tokens: 16, ..Hello::default() };
    let end = SnapshotEnd { next: Some(Position { incarnation: 1, next_sequence: 0 }), blocks: 0 };
    let mut all = vec![
        response(Message::Hello(hello)),
        response(Message::SnapshotPage(Default::default())),
        response(Message::SnapshotEnd(end)),
    ];
    for sequence in 0..100_000 / 64 {
        let hashes = (0..64).map(|_| rng.next_u64()).collect();
        let run = StoredRun { namespace: "acme".into(), tiers: vec![1], hashes, ..StoredRun::default() };
        let events = vec![Event { event: Some(Kind::Stored(run)) }];
        all.push(response(Message::Batch(EventBatch { sequence, events, ..EventBatch::default() })));
    }
    all
}

fn follow(messages: &[KvEventsResponse]) -> u64 {
    let (sum, mut follower) = (Sum::default(), Follower::new(Seat(0), Limits::default()));
    follower.request(Nanos(0));
    for message in messages {
        black_box(follower.hear(Nanos(0), message.clone(), &sum));
    }
    sum.0.into_inner()
}

fn theirs(rng: &mut SplitMix, dialect: pack::Dialect) -> Vec<Vec<u8>> {
    let mut parent = None;
    let batch = |_| {
        let hashes: Vec<u64> = (0..16).map(|_| rng.next_u64()).collect();
        let tokens = (0..256).map(|_| rng.below(100_000) as u32).collect();
        let last = hashes.last().copied();
        let change = pack::Change::Stored { hashes, parent, tokens, block_tokens: 16, medium: "GPU" };
        parent = last;
        pack::batch(dialect, 1.0, &[change])
    };
    (0..100_000 / 16).map(batch).collect()
}

fn tail(batches: &[Vec<u8>]) -> u64 {
    let engine = Engine { model: "m".into(), block_tokens: 16, blocks_max: 1 << 20, chain: Chain::new(1) };
    let mut tail = Tail::new(Seat(0), &engine, Replay::None, TailLimits::default());
    let sum = Sum::default();
    tail.joined(Nanos(0), &sum);
    for (sequence, payload) in batches.iter().enumerate() {
        assert_eq!(tail.live(Nanos(0), sequence as u64, payload, &sum), Want::Nothing);
    }
    sum.0.into_inner()
}
