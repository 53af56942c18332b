//! Routers over a channel that loses, doubles, delays and reorders; forgers and recordings.

use std::collections::BTreeMap;
use std::time::Duration;

use base::{Nanos, SplitMix};
use proptest::prelude::*;

use super::*;

const KEYS: Keys = Keys { current: [7; 32], previous: None };

fn ms(ms: u64) -> Nanos {
    Nanos::from_millis(ms)
}

fn load(requests: u64) -> SeatLoad {
    SeatLoad {
        pending_prefill_tokens: requests * 1000,
        active_requests: requests,
        resident_tokens: requests * 3000,
    }
}

fn router(id: u64, incarnation: u64) -> Gossip {
    Gossip::new(GossipConfig::new(RouterId(id), Incarnation(incarnation), KEYS))
}

fn kind(taken: Result<(), Ignored>) -> &'static str {
    taken.map_or_else(|ignored| ignored.kind(), |()| "taken")
}

/// Everything `from` says now, to `to`.
fn tell(from: &mut Gossip, to: &mut Gossip, now: Nanos) -> Vec<&'static str> {
    let kinds = from.tick(now).iter().map(|bytes| kind(to.receive(now, bytes))).collect();
    from.check();
    to.check();
    kinds
}

/// Two that have heard each other.
fn acquainted() -> (Gossip, Gossip) {
    let (mut a, mut b) = (router(1, 100), router(2, 200));
    tell(&mut a, &mut b, ms(0));
    tell(&mut b, &mut a, ms(0));
    assert_eq!(tell(&mut a, &mut b, ms(1)), ["taken"]);
    (a, b)
}

#[test]
fn strangers_are_acquainted_after_three_datagrams() {
    let (mut a, mut b) = (router(1, 100), router(2, 200));
    a.set_own(ms(0), ReplicaKey(5), load(2)).unwrap();
    assert_eq!(tell(&mut a, &mut b, ms(0)), ["unproven"], "a has not heard b: perhaps a recording");
    assert_eq!(tell(&mut b, &mut a, ms(0)), ["taken"]);
    assert_eq!(tell(&mut a, &mut b, ms(600)), ["taken"]);
    assert_eq!(b.others(ReplicaKey(5)), load(2));
}

#[test]
fn totals_of_several_routers_are_added_and_replaced() {
    let (mut a, mut b) = acquainted();
    let mut c = router(3, 300);
    tell(&mut b, &mut c, ms(1));
    tell(&mut c, &mut b, ms(1));
    a.set_own(ms(2), ReplicaKey(5), load(2)).unwrap();
    c.set_own(ms(2), ReplicaKey(5), load(3)).unwrap();
    tell(&mut b, &mut c, ms(2));
    tell(&mut a, &mut b, ms(2));
    tell(&mut c, &mut b, ms(2));
    assert_eq!(b.others(ReplicaKey(5)), load(5));
    a.set_own(ms(3), ReplicaKey(5), load(1)).unwrap();
    tell(&mut a, &mut b, ms(3));
    assert_eq!(b.others(ReplicaKey(5)), load(4));
    a.set_own(ms(4), ReplicaKey(5), SeatLoad::NONE).unwrap();
    tell(&mut a, &mut b, ms(4));
    assert_eq!(b.others_all().collect::<Vec<_>>(), [(ReplicaKey(5), load(3))]);
}

#[test]
fn a_dead_routers_totals_vanish_after_the_ttl() {
    let (mut a, mut b) = acquainted();
    a.set_own(ms(10), ReplicaKey(5), load(2)).unwrap();
    tell(&mut a, &mut b, ms(10));
    b.tick(ms(2_009));
    assert_eq!((b.others(ReplicaKey(5)), b.routers_alive(ms(2_009))), (load(2), 1));
    b.tick(ms(2_010));
    assert_eq!((b.others(ReplicaKey(5)), b.routers_alive(ms(2_010))), (SeatLoad::NONE, 0));
    b.check();
}

#[test]
fn an_unchanged_total_is_repeated_before_it_expires() {
    let (mut a, mut b) = acquainted();
    a.set_own(ms(10), ReplicaKey(5), load(2)).unwrap();
    for tick in 0..200 {
        tell(&mut a, &mut b, ms(10 + tick * 100));
        b.tick(ms(10 + tick * 100));
        assert_eq!(b.others(ReplicaKey(5)), load(2));
    }
    assert_eq!(b.stats().totals_expired, 0);
}

#[test]
fn a_forged_or_damaged_datagram_changes_nothing() {
    let (mut a, mut b) = acquainted();
    a.set_own(ms(2), ReplicaKey(5), load(2)).unwrap();
    let genuine = a.tick(ms(2)).remove(0);
    for at in 0..genuine.len() * 8 {
        let mut damaged = genuine.clone();
        damaged[at / 8] ^= 1 << (at % 8);
        let taken = kind(b.receive(ms(2), &damaged));
        assert!(["forged", "magic"].contains(&taken), "bit {at}: {taken}");
    }
    for length in 0..genuine.len() {
        assert_ne!(kind(b.receive(ms(2), &genuine[..length])), "taken", "cut to {length}");
    }
    let mut forger = Gossip::new(GossipConfig::new(
        RouterId(1),
        Incarnation(999),
        Keys { current: [8; 32], previous: None },
    ));
    forger.set_own(ms(2), ReplicaKey(5), load(50)).unwrap();
    assert_eq!(tell(&mut forger, &mut b, ms(2)), ["forged"]);
    assert_eq!(b.others_all().count(), 0);
    assert_eq!(kind(b.receive(ms(2), &genuine)), "taken", "the genuine one still counts");
}

#[test]
fn a_recording_changes_nothing_even_after_the_ttl_or_a_restart() {
    let (mut a, mut b) = acquainted();
    let mut recorded = Vec::new();
    for n in 1..20 {
        a.set_own(ms(n), ReplicaKey(5), load(n)).unwrap();
        let sent = a.tick(ms(n));
        sent.iter().for_each(|bytes| b.receive(ms(n), bytes).unwrap());
        recorded.extend(sent);
    }
    let play = |b: &mut Gossip, now: Nanos| {
        let kinds: std::collections::BTreeSet<_> = recorded.iter().map(|r| kind(b.receive(now, r))).collect();
        b.check();
        kinds.into_iter().collect::<Vec<_>>()
    };
    assert_eq!(play(&mut b, ms(20)), ["old"]);
    assert_eq!(b.others(ReplicaKey(5)), load(19));
    b.tick(ms(10_000));
    assert_eq!(play(&mut b, ms(10_000)), ["old"], "the dead router's numbers are remembered");
    let mut restarted = router(2, 201);
    assert_eq!(play(&mut restarted, ms(10_001)), ["unproven"], "they speak to the life before");
    let mut a_again = router(1, 101);
    tell(&mut b, &mut a_again, ms(10_002));
    assert_eq!(tell(&mut a_again, &mut b, ms(10_002)), ["taken"]);
    assert_eq!(play(&mut b, ms(10_003)), ["old"]);
    for gossip in [&b, &restarted] {
        assert_eq!(gossip.others_all().count(), 0);
    }
}

#[test]
fn a_router_does_not_hear_itself() {
    let (mut a, _) = acquainted();
    let own = a.tick(ms(3)).remove(0);
    assert_eq!(kind(a.receive(ms(3), &own)), "own_id");
}

#[test]
fn a_restarted_router_replaces_what_it_said_before() {
    let (mut a, mut b) = acquainted();
    a.set_own(ms(2), ReplicaKey(5), load(2)).unwrap();
    tell(&mut a, &mut b, ms(2));
    let mut a = router(1, 101);
    a.set_own(ms(3), ReplicaKey(6), load(1)).unwrap();
    tell(&mut b, &mut a, ms(3));
    assert_eq!(tell(&mut a, &mut b, ms(3)), ["taken"]);
    assert_eq!(b.others_all().collect::<Vec<_>>(), [(ReplicaKey(6), load(1))]);
}

#[test]
fn a_router_whose_clock_went_back_outlives_its_former_self() {
    let (_, mut b) = acquainted();
    let mut a = router(1, 50);
    assert_eq!(tell(&mut a, &mut b, ms(2)), ["old"]);
    tell(&mut b, &mut a, ms(2));
    assert_eq!(tell(&mut a, &mut b, ms(2)), ["taken"], "greeted as 100, it took 101");
    assert_eq!(tell(&mut b, &mut a, ms(2)), ["taken"]);
}

#[test]
fn keys_are_replaced_without_a_gap() {
    let keys = |current: u8, previous: Option<u8>| Keys {
        current: [current; 32],
        previous: previous.map(|k| [k; 32]),
    };
    let message = Message {
        router: RouterId(1),
        incarnation: Incarnation(2),
        sequence: Sequence(3),
        heard: Vec::new(),
        entries: vec![Entry { replica: ReplicaKey(4), load: load(5) }],
    };
    let old = message.encode(&keys(1, None));
    assert_eq!(Message::decode(&old, &keys(2, Some(1))), Ok(message.clone()));
    assert_eq!(Message::decode(&old, &keys(2, None)), Err(WireError::Forged));
    assert_eq!(format!("{:?}", keys(1, None)), "Keys(..)");
    let hex: String = old.iter().map(|byte| format!("{byte:02x}")).collect();
    expect_test::expect!["514701010000000000000002000000000000000300000000000000000104000000000000008827059875f27409d362bb8eb818ae6e05d2df8978"].assert_eq(&hex);
}

#[test]
fn what_does_not_fit_a_datagram_goes_into_more_and_none_is_starved() {
    let (mut a, mut b) = acquainted();
    for replica in 0..1024 {
        a.set_own(ms(2), ReplicaKey(replica), load(1 + replica)).unwrap();
    }
    assert_eq!(a.set_own(ms(2), ReplicaKey(5000), load(1)), Err(TableFull { replicas_max: 1024 }));
    for tick in 0..6 {
        let sent = a.tick(ms(2 + tick * 50));
        assert!(sent.len() <= 8 && sent.iter().all(|bytes| bytes.len() <= DATAGRAM_BYTES_MAX));
        sent.iter().for_each(|bytes| b.receive(ms(2 + tick * 50), bytes).unwrap());
    }
    assert_eq!(b.others_all().count(), 1024);
    b.check();
}

#[test]
fn one_router_too_many_takes_the_place_of_a_silent_one_only() {
    let mut us = router(1, 1);
    let meet = |us: &mut Gossip, id: u64, now: Nanos| {
        let mut other = router(id, 1);
        tell(us, &mut other, now);
        tell(&mut other, us, now)
    };
    (2..34).for_each(|id| assert_eq!(meet(&mut us, id, ms(0)), ["taken"], "{id}"));
    assert_eq!(meet(&mut us, 34, ms(1_999)), ["too_many_routers"]);
    assert_eq!(meet(&mut us, 34, ms(2_000)), ["unproven"], "the place came with a new incarnation");
    assert_eq!(meet(&mut us, 34, ms(2_000)), ["taken"]);
    assert_eq!(us.routers_alive(ms(1_999)), 32);
}

/// Three routers, and what is under way between them.
struct Net {
    rng: SplitMix,
    routers: BTreeMap<u64, Gossip>,
    truth: BTreeMap<(u64, ReplicaKey), SeatLoad>,
    /// (arrives, serial) → (to, bytes)
    under_way: BTreeMap<(Nanos, u64), (u64, Vec<u8>)>,
    recorded: Vec<Vec<u8>>,
    serial: u64,
    loss_permille: u64,
}

impl Net {
    fn new(seed: u64, loss_permille: u64) -> Self {
        let routers = (1..=3).map(|id| (id, router(id, 1000 + id))).collect();
        Self {
            rng: SplitMix::new(seed),
            routers,
            truth: BTreeMap::new(),
            under_way: BTreeMap::new(),
            recorded: Vec::new(),
            serial: 0,
            loss_permille,
        }
    }

    fn run(&mut self, from_ms: u64, to_ms: u64, changes_permille: u64) {
        for at in (from_ms..to_ms).step_by(10) {
            let now = ms(at);
            self.arrive(now);
            let ids: Vec<u64> = self.routers.keys().copied().collect();
            for id in ids {
                if self.rng.below(1000) < changes_permille {
                    self.change(now, id);
                }
                if at % 100 == id * 10 {
                    self.tick(now, id);
                }
            }
        }
    }

    fn change(&mut self, now: Nanos, id: u64) {
        let replica = ReplicaKey(self.rng.below(40));
        let total = load(self.rng.below(5));
        self.routers.get_mut(&id).unwrap().set_own(now, replica, total).unwrap();
        self.truth.insert((id, replica), total);
    }

    fn tick(&mut self, now: Nanos, id: u64) {
        let sent = self.routers.get_mut(&id).unwrap().tick(now);
        for bytes in sent {
            let others: Vec<u64> = self.routers.keys().copied().filter(|other| *other != id).collect();
            others.into_iter().for_each(|to| self.send(now, to, &bytes));
            self.recorded.push(bytes);
        }
    }

    /// Lost, or delayed by up to 150 ms and so out of order, sometimes twice; now and then a recording.
    fn send(&mut self, now: Nanos, to: u64, bytes: &[u8]) {
        let copies = if self.rng.below(1000) < self.loss_permille { 0 } else { 1 + self.rng.below(10) / 9 };
        (0..copies).for_each(|_| self.deliver_later(now, to, bytes.to_vec()));
        if !self.recorded.is_empty() && self.rng.below(4) == 0 {
            let old = self.rng.below(self.recorded.len() as u64) as usize;
            self.deliver_later(now, to, self.recorded[old].clone());
        }
    }

    fn deliver_later(&mut self, now: Nanos, to: u64, bytes: Vec<u8>) {
        let delay_ms = if self.rng.below(10) == 0 { self.rng.below(150) } else { self.rng.below(5) };
        self.serial += 1;
        self.under_way.insert((now.plus(Duration::from_millis(delay_ms)), self.serial), (to, bytes));
    }

    fn arrive(&mut self, now: Nanos) {
        while let Some((&(at, serial), _)) = self.under_way.first_key_value()
            && at <= now
        {
            let (to, bytes) = self.under_way.remove(&(at, serial)).unwrap();
            if let Some(gossip) = self.routers.get_mut(&to) {
                let _ = gossip.receive(now, &bytes);
                gossip.check();
            }
        }
    }

    fn expected(&self, at: u64, replica: ReplicaKey) -> SeatLoad {
        let others = self.routers.keys().filter(|id| **id != at);
        others
            .filter_map(|id| self.truth.get(&(*id, replica)))
            .fold(SeatLoad::NONE, |sum, total| sum + *total)
    }

    fn assert_converged(&self) {
        for (id, gossip) in &self.routers {
            for replica in (0..40).map(ReplicaKey) {
                assert_eq!(gossip.others(replica), self.expected(*id, replica), "router {id}, {replica:?}");
            }
        }
    }
}

#[test]
fn three_routers_converge_within_the_ttl_over_a_bad_channel() {
    for seed in 0..20 {
        let mut net = Net::new(seed, 200);
        net.run(0, 10_000, 300);
        net.loss_permille = 0;
        net.run(10_000, 12_000, 0);
        net.assert_converged();
    }
}

#[test]
fn a_killed_routers_reservations_vanish_after_the_ttl_and_recordings_do_not_raise_it() {
    for seed in 0..20 {
        let mut net = Net::new(seed, 200);
        net.run(0, 5_000, 300);
        let dead = net.routers.remove(&2).unwrap();
        net.loss_permille = 0;
        net.run(5_000, 7_300, 0);
        net.assert_converged();
        net.run(7_300, 20_000, 100);
        net.run(20_000, 22_000, 0);
        net.assert_converged();
        assert!(dead.stats().taken > 0);
        net.routers.insert(2, router(2, 5_000));
        net.truth.retain(|(id, _), _| *id != 2);
        net.run(22_000, 27_000, 300);
        net.run(27_000, 29_000, 0);
        net.assert_converged();
    }
}

fn message() -> impl Strategy<Value = Message> {
    let greeting = (any::<u64>(), any::<u64>())
        .prop_map(|(r, i)| Greeting { router: RouterId(r), incarnation: Incarnation(i) });
    let values = (0..1u64 << 48, 0..1000u64, 0..1u64 << 20);
    let entry = (any::<u64>(), values).prop_map(|(replica, (a, b, c))| Entry {
        replica: ReplicaKey(replica),
        load: SeatLoad::of_values([a, b, c]),
    });
    (any::<[u64; 3]>(), proptest::collection::vec(greeting, 0..=32)).prop_flat_map(move |(numbers, heard)| {
        let entries = proptest::collection::vec(entry.clone(), 0..=Message::entries_max(heard.len()));
        entries.prop_map(move |entries| Message {
            router: RouterId(numbers[0]),
            incarnation: Incarnation(numbers[1]),
            sequence: Sequence(numbers[2]),
            heard: heard.clone(),
            entries,
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_message_comes_back_as_it_was_and_has_one_encoding(message in message()) {
        let bytes = message.encode(&KEYS);
        prop_assert!(bytes.len() <= DATAGRAM_BYTES_MAX);
        prop_assert_eq!(Message::decode(&bytes, &KEYS), Ok(message));
    }

    #[test]
    fn signed_nonsense_is_refused_without_harm(body in proptest::collection::vec(any::<u8>(), 0..400)) {
        let signed = super::wire::sign_for_tests(&body, &KEYS);
        match Message::decode(&signed, &KEYS) {
            Ok(message) => prop_assert_eq!(message.encode(&KEYS), signed, "one encoding"),
            Err(error) => prop_assert!(["malformed", "length"].contains(&error.kind()), "{error}"),
        }
    }
}
