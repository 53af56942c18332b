//! A hub that is behind: nobody walks the cache for it, and what it believes in the end is so.

use base::Tier;
use kvcache::{EvictionKind, Follower, KvChange, LowerConfig, TierEvent};

use super::harness::Harness;
use crate::executor::sim::SimConfig;
use crate::scheduler::SchedulerConfig;
use crate::scheduler::telling::Teller;

fn telling() -> Harness {
    let host = LowerConfig { policy: EvictionKind::Lru, ..LowerConfig::new(Tier::Host, 64) };
    let config = SchedulerConfig { tiers: vec![host], events_max: 1 << 16, ..SchedulerConfig::default() };
    Harness::new(SimConfig::new(24, 16, 1000), config, 2)
}

fn ask(h: &mut Harness, from: u32) {
    h.ask(&(0..6 * 16 + 1).map(|i| (from + i) % 900).collect::<Vec<u32>>(), 2);
    h.run(200);
}

/// A hub with room for so many batches.
#[derive(Default)]
struct Hub {
    room: usize,
    asked: Vec<TierEvent>,
    follower: Follower,
}

impl Hub {
    fn go_on(&mut self, teller: &mut Teller, h: &mut Harness) {
        teller.go_on(&mut h.scheduler, |events| {
            self.asked.extend(events.iter().cloned());
            let has_room = self.room > 0;
            self.room -= usize::from(has_room);
            if has_room {
                events.iter().for_each(|event| self.follower.hear(event).expect("parents first"));
            }
            has_room
        });
    }

    fn knows_all(&self, h: &Harness) -> bool {
        self.follower == Follower::of(&h.scheduler.tiers.snapshot()).expect("parents first")
    }
}

#[test]
fn a_full_hub_is_asked_with_nothing_until_it_has_room() {
    let (mut h, mut hub, mut teller) = (telling(), Hub::default(), Teller::of_unknown());
    for from in [0, 100, 200] {
        ask(&mut h, from);
        hub.go_on(&mut teller, &mut h);
    }
    let is_cleared = |event: &TierEvent| event.change == KvChange::Cleared;
    assert_eq!((hub.asked.len(), hub.asked.iter().all(is_cleared)), (3, true));
    hub.room = 99;
    hub.go_on(&mut teller, &mut h);
    assert!(hub.knows_all(&h) && !teller.is_behind());
}

#[test]
fn what_changes_while_all_is_retold_comes_after_it() {
    let (mut h, mut hub, mut teller) = (telling(), Hub::default(), Teller::of_unknown());
    ask(&mut h, 0);
    hub.room = 1;
    hub.go_on(&mut teller, &mut h);
    assert!(teller.is_behind() && hub.follower == Follower::default());
    // What waits to be told is removed meanwhile, and another is stored.
    h.scheduler.clear_cache();
    ask(&mut h, 300);
    for room in [1, 0, 1, 99] {
        hub.room = room;
        hub.go_on(&mut teller, &mut h);
    }
    assert!(hub.knows_all(&h) && !teller.is_behind());
    assert!(!hub.follower.names(Tier::Host).is_empty());
}

#[test]
fn more_than_may_wait_is_told_anew() {
    let (mut h, mut hub, mut teller) = (telling(), Hub::default(), Teller::new());
    for from in 0..4 {
        ask(&mut h, from * 100);
        h.scheduler.tiers.lose_events();
        hub.go_on(&mut teller, &mut h);
    }
    assert!(teller.is_behind() && hub.follower == Follower::default());
    hub.room = 99;
    hub.go_on(&mut teller, &mut h);
    assert!(hub.knows_all(&h) && !teller.is_behind());
}
