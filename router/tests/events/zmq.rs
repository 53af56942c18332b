//! The follower of ZeroMQ streams against a publisher.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use base::SystemClock;
use proto::v1::LoadRecord;
use quire_router::Seat;
use quire_router::events::{Heard, zmq};
use quire_router::naming::foreign::Chain;
use quire_router::source::{Engine, State, Told};

use super::publisher::Publisher;
use crate::source::held::Held;
use crate::source::pack::{Change, Dialect, batch};

#[derive(Default)]
struct Said(Mutex<Vec<State>>);

impl Said {
    fn last(&self) -> Option<State> {
        self.0.lock().unwrap().last().copied()
    }
}

impl Heard for Said {
    fn load(&self, _: Seat, _: &LoadRecord) {}
    fn state(&self, _: Seat, state: State) {
        self.0.lock().unwrap().push(state);
    }
    fn failed(&self, _: Seat, _: &str, _: Duration) {}
}

/// What hangs is a failure, not a test that never ends.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let looks = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), looks).await.unwrap_or_else(|_| panic!("not {what}"));
}

fn stored(n: u64) -> Vec<u8> {
    let change = Change::Stored {
        hashes: vec![1000 + n],
        parent: None,
        tokens: vec![n as u32; 4],
        block_tokens: 4,
        medium: "GPU",
    };
    batch(if n.is_multiple_of(2) { Dialect::Lists } else { Dialect::Maps }, n as f64, &[change])
}

struct World {
    publisher: Publisher,
    held: Arc<Held>,
    said: Arc<Said>,
    task: tokio::task::JoinHandle<()>,
}

impl World {
    async fn start() -> Self {
        let publisher = Publisher::start().await;
        let (live, replay) = publisher.addresses();
        let (held, said) = (Arc::<Held>::default(), Arc::<Said>::default());
        let engine = Engine { model: "m".into(), block_tokens: 4, blocks_max: 1000, chain: Chain::new(3) };
        let follows = zmq::Publisher {
            seat: Seat(0),
            engine,
            live: format!("tcp://{live}"),
            replay: Some(format!("tcp://{replay}")),
            topic: "kv".into(),
            seed: 1,
        };
        let (told, heard) = (Arc::clone(&held) as Arc<dyn Told>, Arc::clone(&said) as Arc<dyn Heard>);
        let task = tokio::spawn(zmq::follow(follows, told, heard, Arc::new(SystemClock::new())));
        Self { publisher, held, said, task }
    }

    async fn is_exact_with(&self, blocks: usize) {
        until(&format!("exact with {blocks}"), || {
            self.said.last() == Some(State::Exact) && self.held.set().len() == blocks
        })
        .await;
    }
}

#[tokio::test]
async fn what_is_lost_repeated_or_begun_anew_is_mended_by_replay() {
    let mut world = World::start().await;
    world.is_exact_with(0).await;
    (0..3).for_each(|n| world.publisher.publish(stored(n)));
    world.is_exact_with(3).await;
    // One in the middle, seen at once by its number.
    world.publisher.lose(stored(3));
    world.publisher.publish(stored(4));
    world.publisher.repeat();
    world.is_exact_with(5).await;
    // The last one, which only silence tells of.
    world.publisher.lose(stored(5));
    world.is_exact_with(6).await;
    world.publisher.restart();
    until("subscribed again", || world.publisher.is_heard()).await;
    world.publisher.publish(stored(9));
    world.is_exact_with(1).await;
}

#[tokio::test]
async fn a_replica_that_nobody_follows_is_one_of_which_nothing_is_known() {
    let world = World::start().await;
    world.is_exact_with(0).await;
    world.publisher.publish(stored(1));
    world.is_exact_with(1).await;
    world.task.abort();
    until("cold and empty", || world.said.last() == Some(State::Cold) && world.held.set().is_empty()).await;
}
