//! The tail of foreign engines: never above the truth while EXACT, and the truth again soon after the last fault, as
//! long as the engine keeps what was missed.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use base::{Nanos, SplitMix, Tier};
use proptest::prelude::*;
use quire_router::Seat;
use quire_router::naming::foreign::{Chain, Tree};
use quire_router::source::{Engine, Replay, Scope, State, Tail, TailLimits, Tiers, Told, Want};

use super::held::{Held, Set};
use super::pack::{Change, Dialect, batch};

const BLOCK: u32 = 4;

fn engine() -> Engine {
    Engine { model: "m".into(), block_tokens: BLOCK, blocks_max: 1 << 20, chain: Chain::new(99) }
}

/// An engine's process: what it holds, what it published, what it still replays.
struct Process {
    rng: SplitMix,
    dialect: Dialect,
    /// Our name, its hash, tiers.
    blocks: Vec<(u64, u64, Tiers)>,
    buffer: VecDeque<(u64, Vec<u8>)>,
    buffer_max: usize,
    next: u64,
    /// What was held before each batch.
    history: Vec<Set>,
}

impl Process {
    fn new(seed: u64, buffer_max: usize) -> Self {
        let mut rng = SplitMix::new(seed);
        let dialect = if rng.below(2) == 0 { Dialect::Lists } else { Dialect::Maps };
        let (blocks, buffer) = (Vec::new(), VecDeque::new());
        Self { rng, dialect, blocks, buffer, buffer_max, next: 0, history: vec![Set::new()] }
    }

    fn set(&self) -> Set {
        self.blocks.iter().map(|(name, _, tiers)| ((Scope::foreign(), *name), tiers.bits())).collect()
    }

    fn publish(&mut self) -> (u64, Vec<u8>) {
        let changes: Vec<Change> = (0..1 + self.rng.below(3)).map(|_| self.change()).collect();
        let payload = batch(self.dialect, self.rng.unit(), &changes);
        let sent = (self.next, payload);
        self.buffer.push_back(sent.clone());
        if self.buffer.len() > self.buffer_max {
            self.buffer.pop_front();
        }
        self.next += 1;
        self.history.push(self.set());
        sent
    }

    fn change(&mut self) -> Change {
        match self.rng.below(20) {
            0 => {
                self.blocks.clear();
                Change::Cleared
            }
            1..=7 if !self.blocks.is_empty() => self.remove(),
            _ => self.store(),
        }
    }

    fn store(&mut self) -> Change {
        let chain = engine().chain;
        let at = self.rng.below(1 + self.blocks.len() as u64) as usize;
        let parent = self.blocks.get(at).map(|(name, hash, _)| (*name, *hash));
        let root = chain.root(&Tree { model: "m", lora: None, salt: None });
        let mut name = parent.map_or(root, |(name, _)| name);
        let tier = if self.rng.below(3) == 0 { Tier::Host } else { Tier::Device };
        let (mut hashes, mut tokens) = (Vec::new(), Vec::new());
        for _ in 0..1 + self.rng.below(3) {
            let block = [self.rng.below(4) as u32; BLOCK as usize];
            name = chain.next(name, &block);
            tokens.extend(block);
            let hash = match self.blocks.iter_mut().find(|(known, ..)| *known == name) {
                Some((_, hash, tiers)) => {
                    *tiers = tiers.with(Tiers::of(tier));
                    *hash
                }
                None => {
                    let hash = self.rng.next_u64();
                    self.blocks.push((name, hash, Tiers::of(tier)));
                    hash
                }
            };
            hashes.push(hash);
        }
        let parent = parent.map(|(_, hash)| hash);
        Change::Stored { hashes, parent, tokens, block_tokens: BLOCK, medium: tier.medium() }
    }

    fn remove(&mut self) -> Change {
        let at = self.rng.below(self.blocks.len() as u64) as usize;
        let (_, hash, tiers) = &mut self.blocks[at];
        let (hash, tier) = (*hash, tiers.iter().next().unwrap());
        *tiers = tiers.without(Tiers::of(tier));
        if tiers.is_empty() {
            self.blocks.swap_remove(at);
        }
        Change::Removed { hashes: vec![hash], medium: tier.medium() }
    }
}

struct World {
    seed: u64,
    buffer_max: usize,
    process: Process,
    tail: Tail,
    held: Held,
    /// Live batches on their way; `None` while there is no connection.
    live: Option<VecDeque<(u64, Vec<u8>)>>,
    replay: Option<VecDeque<(u64, Vec<u8>)>>,
    now: Nanos,
    heard: usize,
}

impl World {
    fn new(seed: u64, buffer_max: usize, offers: Replay) -> Self {
        Self {
            seed,
            buffer_max,
            process: Process::new(seed, buffer_max),
            tail: Tail::new(Seat(1), &engine(), offers, TailLimits::default()),
            held: Held::default(),
            live: None,
            replay: None,
            now: Nanos(1),
            heard: 0,
        }
    }

    fn want(&mut self, want: Want) {
        if let Want::Replay { from } = want {
            let kept = self.process.buffer.iter().filter(|(sequence, _)| *sequence >= from);
            self.replay = Some(kept.cloned().collect());
        }
        self.tail.check();
        if self.tail.state() == State::Exact {
            let truth = &self.process.history[self.tail.next().unwrap() as usize];
            assert_eq!(&self.held.set(), truth);
        }
    }

    fn deliver(&mut self) {
        self.now = self.now.plus(Duration::from_millis(20));
        if let Some((sequence, payload)) = self.live.as_mut().and_then(VecDeque::pop_front) {
            self.heard += 1;
            let want = self.tail.live(self.now, sequence, &payload, &self.held);
            self.want(want);
        }
        let want = match self.replay.as_mut().map(VecDeque::pop_front) {
            Some(Some((sequence, payload))) => {
                self.heard += 1;
                self.tail.replayed(self.now, sequence, &payload, &self.held)
            }
            Some(None) => {
                self.replay = None;
                self.tail.replay_done(self.now, &self.held)
            }
            None => self.tail.idle(self.now),
        };
        self.want(want);
    }

    fn publish(&mut self) {
        let sent = self.process.publish();
        if let Some(live) = &mut self.live {
            live.push_back(sent);
        }
    }

    fn cut(&mut self) {
        (self.live, self.replay) = (None, None);
        self.tail.lost();
        self.want(Want::Nothing);
    }

    fn join(&mut self) {
        if self.live.is_none() {
            self.live = Some(VecDeque::new());
            let want = self.tail.joined(self.now, &self.held);
            self.want(want);
        }
    }

    fn restart(&mut self) {
        self.seed += 1;
        self.process = Process::new(self.seed, self.buffer_max);
        self.cut();
    }

    fn act(&mut self, action: u8, offers: Replay) {
        match action {
            0..=89 => self.publish(),
            90..=220 => self.deliver(),
            221..=224 => drop(self.live.as_mut().and_then(VecDeque::pop_front)),
            225..=228 => {
                if let Some(live) = &mut self.live
                    && let Some(first) = live.front().cloned()
                {
                    live.push_front(first);
                }
            }
            229..=232 => {
                if let Some(live) = &mut self.live
                    && live.len() > 1
                {
                    live.swap(0, 1);
                }
            }
            233..=235 => {
                if self.replay.take().is_some() {
                    self.tail.replay_failed(self.now);
                }
            }
            236..=239 => self.cut(),
            240..=242 => self.restart(),
            243..=244 => {
                self.tail = Tail::new(Seat(1), &engine(), offers, TailLimits::default());
                self.held = Held::default();
                (self.live, self.replay) = (None, None);
            }
            _ => self.join(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn exact_is_the_truth_and_comes_back_by_replay(
        seed in 0..u64::MAX / 2,
        actions in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        let mut world = World::new(seed, usize::MAX, Replay::Offered);
        actions.into_iter().for_each(|action| world.act(action, Replay::Offered));
        world.join();
        // Twice what was published (a replay that turns out to be of another process is begun again), and what waited.
        let bound = world.heard + 3 * (world.process.next as usize + 10);
        let quiet = world.now.plus(Duration::from_secs(10));
        while world.now < quiet || world.replay.is_some() {
            world.deliver();
        }
        prop_assert_eq!(world.tail.state(), State::Exact);
        prop_assert_eq!(world.held.set(), world.process.set());
        // Of these, one a probe: silence is asked about every two seconds.
        prop_assert!(world.heard <= bound + 2 * 10, "{} > {}", world.heard, bound);
    }

    /// An engine that keeps little, or replays nothing, cannot be known whole again; what is known is still so.
    #[test]
    fn exact_is_the_truth_where_little_is_kept(
        seed in 0..u64::MAX / 2,
        buffer_max in 1usize..6,
        offers in prop_oneof![Just(Replay::Offered), Just(Replay::None)],
        actions in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        let mut world = World::new(seed, buffer_max, offers);
        actions.into_iter().for_each(|action| world.act(action, offers));
    }
}

/// A process that took the place of another behind one address, without the connection telling.
#[test]
fn a_number_that_goes_backwards_is_another_process_and_a_repeat_is_not() {
    let mut world = World::new(5, usize::MAX, Replay::Offered);
    world.join();
    world.deliver();
    (0..5).for_each(|_| world.publish());
    let again = world.live.as_ref().unwrap()[2].clone();
    (0..5).for_each(|_| world.deliver());
    assert_eq!(world.tail.next(), Some(5));
    world.live.as_mut().unwrap().push_back(again);
    world.deliver();
    assert_eq!((world.tail.counts().duplicates, world.tail.state()), (1, State::Exact));
    world.process = Process::new(77, usize::MAX);
    (0..3).for_each(|_| world.publish());
    world.live.as_mut().unwrap().pop_front();
    while world.tail.state() != State::Exact || world.tail.next() != Some(3) {
        world.deliver();
    }
    assert_eq!(world.tail.counts().incarnations, 1);
    assert_eq!(world.held.set(), world.process.set());
}

#[test]
fn a_batch_that_cannot_be_read_empties_what_it_may_have_changed() {
    let mut world = World::new(5, usize::MAX, Replay::Offered);
    world.join();
    world.deliver();
    world.publish();
    world.deliver();
    let want = world.tail.live(world.now, 1, b"\x93garbage", &world.held);
    assert_eq!((want, world.tail.state(), world.tail.counts().garbage), (Want::Nothing, State::Degraded, 1));
    assert!(world.held.set().is_empty());
    // All is known again once nothing is held.
    let cleared = batch(Dialect::Maps, 0.0, &[Change::Cleared]);
    world.tail.live(world.now, 2, &cleared, &world.held);
    assert_eq!(world.tail.state(), State::Exact);
}

/// Twelve bytes of budget are not a million blocks.
#[test]
fn blocks_beyond_the_budget_are_refused_and_counted() {
    let tight = Engine { blocks_max: 3, ..engine() };
    let mut tail = Tail::new(Seat(0), &tight, Replay::None, TailLimits::default());
    let held = Held::default();
    tail.joined(Nanos(0), &held);
    let hashes: Vec<u64> = (1..=5).collect();
    let tokens = (0..5 * BLOCK).collect();
    let change = Change::Stored { hashes, parent: None, tokens, block_tokens: BLOCK, medium: "GPU" };
    tail.live(Nanos(1), 0, &batch(Dialect::Lists, 0.0, &[change]), &held);
    let counts = tail.foreign().counts();
    assert_eq!((counts.blocks_stored, counts.refused, held.set().len()), (3, 2, 3));
    let names: BTreeMap<_, _> = held.set();
    tail.retire(&held as &dyn Told);
    assert!(names.len() == 3 && held.set().is_empty());
}
