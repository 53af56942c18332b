//! The follower of our replicas: never above the truth while EXACT, and the truth again soon after the last fault.

use std::time::Duration;

use base::Nanos;
use proptest::prelude::*;
use proto::v1::kv_events_response::Message;
use proto::v1::{EventBatch, KvEventsResponse};
use quire_router::Seat;
use quire_router::source::{Follower, Limits, State, Verdict, Why};

use super::held::Held;
use super::replica::{Feed, Replica};

struct World {
    replica: Replica,
    follower: Follower,
    held: Held,
    feed: Option<Feed>,
    now: Nanos,
}

impl World {
    fn new(seed: u64, log_max: usize) -> Self {
        Self {
            replica: Replica::new(seed, log_max),
            follower: Follower::new(Seat(3), Limits::default()),
            held: Held::default(),
            feed: None,
            now: Nanos(1),
        }
    }

    fn connect(&mut self) {
        let request = self.follower.request(self.now);
        self.feed = Some(self.replica.serve(&request));
    }

    fn next(&mut self) -> Option<KvEventsResponse> {
        let feed = self.feed.as_mut()?;
        self.replica.message(feed)
    }

    fn hear(&mut self, message: KvEventsResponse) {
        self.now = self.now.plus(Duration::from_millis(1));
        if let Verdict::Reconnect(_) = self.follower.hear(self.now, message, &self.held) {
            self.connect();
        }
        self.check();
    }

    /// Exact is exactly what was there at the position that was reached.
    fn check(&self) {
        if self.follower.state() != State::Exact {
            return;
        }
        let at = self.follower.position().unwrap();
        let truth = &self.replica.history[&(at.incarnation, at.next_sequence)];
        assert_eq!(&self.held.set(), truth, "at {at:?}");
    }

    fn cut(&mut self) {
        self.feed = None;
        self.follower.lost();
        self.check();
    }

    /// Whoever publishes, loses, breaks: one of the things that happen.
    fn act(&mut self, action: u8) {
        match action {
            0..=99 => self.replica.publish(),
            100..=219 => {
                if let Some(message) = self.next() {
                    self.hear(message);
                }
            }
            220..=223 => drop(self.next()),
            224..=227 => {
                if let Some(message) = self.next() {
                    let is_page = matches!(message.message, Some(Message::SnapshotPage(_)));
                    self.hear(message.clone());
                    if !is_page {
                        self.hear(message);
                    }
                }
            }
            228..=231 => {
                if let (Some(first), second) = (self.next(), self.next()) {
                    second.into_iter().chain([first]).for_each(|message| self.hear(message));
                }
            }
            232..=236 => self.cut(),
            237..=239 => {
                self.replica.restart();
                self.cut();
            }
            240..=242 => {
                self.follower = Follower::new(Seat(3), Limits::default());
                self.held = Held::default();
                self.feed = None;
            }
            _ => self.connect_if_needed(),
        }
    }

    fn connect_if_needed(&mut self) {
        if self.feed.is_none() {
            self.connect();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn exact_is_the_truth_and_comes_back_after_the_last_fault(
        seed in any::<u64>(),
        log_max in prop_oneof![Just(2usize), Just(8), Just(1000)],
        actions in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        let mut world = World::new(seed, log_max);
        actions.into_iter().for_each(|action| world.act(action));
        // No fault from here on. A snapshot at most, and what is new, or a heartbeat that shows what is missing.
        world.connect_if_needed();
        let bound = 3 * (world.replica.truth().len() + world.replica.next as usize + 10);
        let mut heard = 0;
        loop {
            let message = match world.next() {
                Some(message) => Some(message),
                None => world.feed.as_ref().and_then(|feed| world.replica.heartbeat(feed)),
            };
            let is_beat = message.as_ref().is_some_and(|message| matches!(message.message, Some(Message::Heartbeat(_))));
            let Some(message) = message else { break };
            world.hear(message);
            heard += 1;
            prop_assert!(heard <= bound, "{heard} messages and still {}", world.follower.state());
            if is_beat && world.follower.state() == State::Exact {
                break;
            }
        }
        prop_assert_eq!(world.follower.state(), State::Exact);
        prop_assert_eq!(&world.held.set(), world.replica.truth());
        for (_, _, told, found) in world.held.purged() {
            prop_assert!(found <= told);
        }
    }
}

#[test]
fn a_source_goes_through_its_states_by_name() {
    let mut world = World::new(1, 100);
    (0..10).for_each(|_| world.replica.publish());
    let mut states = vec![world.follower.state().name()];
    world.connect();
    while let Some(message) = world.next() {
        world.hear(message);
        states.push(world.follower.state().name());
    }
    world.cut();
    states.push(world.follower.state().name());
    states.dedup();
    assert_eq!(states, ["cold", "snapshot", "exact", "degraded"]);
}

#[test]
fn silence_makes_a_source_doubt_and_reconnect_with_its_position() {
    let mut world = World::new(1, 100);
    world.connect();
    while let Some(message) = world.next() {
        world.hear(message);
    }
    assert_eq!(world.follower.idle(world.now), Verdict::GoOn);
    let later = world.follower.deadline();
    assert_eq!(world.follower.idle(later), Verdict::Reconnect(Why::Silent));
    assert_eq!(world.follower.state(), State::Degraded);
    assert_eq!(world.follower.request(later).resume, world.follower.position());
}

#[test]
fn what_makes_no_sense_ends_the_stream_and_is_said() {
    let said = |message: Message| {
        let mut follower = Follower::new(Seat(0), Limits::default());
        follower.request(Nanos(0));
        let response = KvEventsResponse { message: Some(message) };
        match follower.hear(Nanos(1), response, &Held::default()) {
            Verdict::Reconnect(why) => why.kind(),
            Verdict::GoOn => "go on",
        }
    };
    assert_eq!(said(Message::Batch(EventBatch::default())), "disorder");
    assert_eq!(said(Message::Hello(Default::default())), "go on");
}
