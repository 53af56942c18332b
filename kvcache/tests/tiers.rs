//! No tier ever gives a wrong page; what is purged is gone; what was journalled is found again.

use std::collections::BTreeSet;

use base::{ChainHash, Generation, ModelDigest, NamespaceId, StepId, Tier};
use proptest::prelude::*;
use quire_kvcache::{
    Cache, CacheConfig, ColdOutcome, EvictionKind, Fault, Follower, JournalNote, SlotRecord, TreeKey,
    WritePolicy,
};

use crate::world::{Names, Setup, World, build, run, tokens};

fn setups() -> impl Strategy<Value = Setup> {
    let writes = vec![
        WritePolicy::WriteThrough,
        WritePolicy::WriteThroughSelective { uses: 2 },
        WritePolicy::WriteBack,
    ];
    let places = (6..24u32, prop_oneof![Just(0u32), 4..40u32], 0..60u32, prop_oneof![Just(0u32), 4..80u32]);
    let names = prop_oneof![Just(Names::Whole), Just(Names::Weak)];
    let policies = proptest::sample::select(EvictionKind::ALL.to_vec());
    let writes = proptest::sample::select(writes);
    let events = prop_oneof![Just(1usize << 20), 1..12usize];
    (places, writes, policies, 1..4u64, names, events).prop_map(
        |(places, write, policy, tenants, names, events_max)| {
            let (device, host, nvme, object) = places;
            let cold = |pages| if host == 0 { 0 } else { pages };
            Setup {
                device,
                host,
                nvme: cold(nvme),
                object: cold(object),
                write,
                policy,
                tenants,
                names,
                events_max,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_tier_ever_gives_a_wrong_page(setup in setups(), seed in any::<u64>()) {
        run(setup, seed, 150);
    }
}

#[test]
fn every_tier_is_hit_and_purged_over_a_long_run() {
    for write in
        [WritePolicy::WriteThrough, WritePolicy::WriteThroughSelective { uses: 2 }, WritePolicy::WriteBack]
    {
        let setup = Setup {
            device: 12,
            host: 20,
            nvme: 60,
            object: 90,
            write,
            policy: EvictionKind::Lru,
            tenants: 3,
            names: Names::Whole,
            events_max: 1 << 20,
        };
        let hits = run(setup, 7, 20_000);
        assert!(hits.iter().all(|&pages| pages > 10), "{write}: {hits:?} pages hit by tier");
    }
}

#[test]
fn pages_of_many_tenants_never_meet() {
    let setup = Setup {
        device: 64,
        host: 128,
        nvme: 256,
        object: 0,
        write: WritePolicy::WriteThrough,
        policy: EvictionKind::Gdsf,
        tenants: 200,
        names: Names::Whole,
        events_max: 1 << 20,
    };
    run(setup, 11, 10_000);
}

#[test]
fn a_purged_namespace_is_gone_from_every_tree_and_the_others_are_not() {
    let setup = Setup {
        device: 32,
        host: 64,
        nvme: 64,
        object: 0,
        write: WritePolicy::WriteThrough,
        policy: EvictionKind::Lru,
        tenants: 2,
        names: Names::Whole,
        events_max: 1 << 20,
    };
    let mut world = World::new(setup, 1);
    for tenant in [0, 1] {
        world.serve(tenant, &[1, 2, 3]);
    }
    world.wind_up();
    let everywhere = [(Tier::Device, 3), (Tier::Host, 3), (Tier::Nvme, 3)];
    assert_eq!(world.tiers.remaining(NamespaceId(0), Generation(0)), everywhere);
    world.purge_tenant(0);
    world.wind_up();
    let nowhere = [(Tier::Device, 0), (Tier::Host, 0), (Tier::Nvme, 0)];
    assert_eq!(world.tiers.remaining(NamespaceId(0), Generation(0)), nowhere);
    assert_eq!(world.tiers.remaining(NamespaceId(1), Generation(0)), everywhere);
}

#[test]
fn an_erasure_that_fails_is_said_and_tried_again_by_the_next_purge() {
    let setup = Setup {
        device: 16,
        host: 16,
        nvme: 16,
        object: 0,
        write: WritePolicy::WriteThrough,
        policy: EvictionKind::Lru,
        tenants: 1,
        names: Names::Whole,
        events_max: 1 << 20,
    };
    let mut world = World::new(setup, 3);
    world.arrive();
    world.finish_one();
    world.settle();
    world.purge_tenant(0);
    world.refuses_to_erase = true;
    world.settle();
    let state = world.tiers.purge_state(world.purges[0]).unwrap();
    let below = state.tiers.iter().filter(|t| t.tier != Tier::Device);
    assert!(state.is_done && below.clone().all(|t| t.erasure.failed == t.erasure.pages), "{state:?}");
    assert!(below.clone().all(|t| t.erasure.pages > 0));
    world.purges.clear();
    world.purge_tenant(0);
    world.refuses_to_erase = false;
    world.settle();
    let state = world.tiers.purge_state(world.purges[0]).unwrap();
    let below = state.tiers.iter().filter(|t| t.tier != Tier::Device);
    assert!(below.clone().all(|t| t.erasure.failed == 0 && t.erasure.verified > 0), "{state:?}");
    world.wind_up();
}

#[test]
fn what_left_a_tree_is_not_remembered_by_its_tokens() {
    let config = CacheConfig::new(4, 16);
    let mut cache = Cache::new(config);
    let (key, all) = (TreeKey::new(NamespaceId(0), ModelDigest([1; 32])), tokens(&[41, 42]));
    let mut lease = cache.lease(&key, &all);
    let pages = cache.reserve(2).unwrap();
    cache.publish(&mut lease, &all, &pages, StepId(0));
    cache.release(lease, StepId(0));
    assert_eq!(cache.tokens_kept(), 32);
    cache.evict(1);
    assert_eq!(cache.tokens_kept(), 16);
    cache.clear_pages(|_| true, usize::MAX);
    assert_eq!(cache.tokens_kept(), 0);
}

#[test]
fn what_is_purged_while_a_request_runs_is_outstanding_until_it_ends() {
    let setup = Setup {
        device: 16,
        host: 16,
        nvme: 0,
        object: 0,
        write: WritePolicy::WriteThrough,
        policy: EvictionKind::Lru,
        tenants: 1,
        names: Names::Whole,
        events_max: 1 << 20,
    };
    let mut world = World::new(setup, 3);
    world.arrive();
    let held = world.sequences[0].lease.pages().len() as u64;
    world.purge_tenant(0);
    world.run_step();
    let state = world.tiers.purge_state(world.purges[0]).unwrap();
    let device = state.tiers.iter().find(|t| t.tier == Tier::Device).unwrap().erasure;
    assert_eq!((state.is_done, device.outstanding, device.pages), (false, held, 0));
    world.wind_up();
}

#[test]
fn a_restart_finds_every_page_that_was_journalled() {
    let setup = Setup {
        device: 8,
        host: 16,
        nvme: 64,
        object: 0,
        write: WritePolicy::WriteThrough,
        policy: EvictionKind::Lru,
        tenants: 1,
        names: Names::Whole,
        events_max: 1 << 20,
    };
    let mut world = World::new(setup, 5);
    for _ in 0..60 {
        world.arrive();
        (0..4).for_each(|_| world.answer_some());
        world.record_notes();
    }
    while !world.sequences.is_empty() {
        world.finish_one();
    }
    let known: BTreeSet<ChainHash> = world.journal.values().map(|record| record.name).collect();
    assert!(known.len() > 15, "{} pages journalled", known.len());
    let records: Vec<SlotRecord> = world.journal.values().cloned().collect();
    let mut fresh = build(setup);
    let (kept, lost) = fresh.reinstate(records);
    assert_eq!((kept, lost), (known.len(), Vec::new()));
    fresh.check().unwrap();
}

/// Room for everything in host memory and on the disk.
fn roomy() -> Setup {
    Setup {
        device: 16,
        host: 16,
        nvme: 16,
        object: 0,
        write: WritePolicy::WriteThrough,
        policy: EvictionKind::Lru,
        tenants: 1,
        names: Names::Whole,
        events_max: 1 << 20,
    }
}

impl World {
    /// A request of a tenant for just this, which ends at once.
    pub fn serve(&mut self, tenant: u64, prompt: &[u32]) {
        let (key, all) = (self.key(tenant), tokens(prompt));
        let mut lease = self.tiers.device.lease(&key, &all);
        let held = lease.pages().len();
        let pages = self.tiers.device.reserve(prompt.len() - held).expect("there is room");
        for (i, page) in pages.iter().enumerate() {
            self.device[page.0 as usize] = Some((key.clone(), prompt[..=held + i].to_vec()));
        }
        self.tiers.device.publish(&mut lease, &all, &pages, StepId(0));
        self.tiers.published(&key, &all, lease.pages());
        self.tiers.device.release(lease, StepId(0));
    }

    /// How many pages of a tenant's prompt the reader believes to be in a tier.
    pub fn believed(&mut self, tier: Tier, tenant: u64, prompt: &[u32]) -> usize {
        self.listen();
        let names = self.tiers.device.names(&self.key(tenant), &tokens(prompt)).expect("has a key");
        self.follower.prefix(tier, &names)
    }
}

/// Answers the oldest order that waits.
fn answer(world: &mut World, outcome: ColdOutcome) {
    world.pending.extend(world.tiers.take_orders());
    let order = world.pending.pop_front().expect("an order waits");
    world.tiers.answer(order.ticket, outcome);
}

const STORED: ColdOutcome = ColdOutcome::Stored([7; 28]);

#[test]
fn a_restart_is_told_from_the_root_on_and_children_follow() {
    let mut world = World::new(roomy(), 1);
    world.serve(0, &[1, 2, 3]);
    world.run_step();
    (0..3).for_each(|_| answer(&mut world, STORED));
    world.record_notes();
    world.restart();
    assert_eq!(world.believed(Tier::Nvme, 0, &[1, 2, 3, 4]), 3);
    world.serve(0, &[1, 2, 3, 4]);
    world.run_step();
    answer(&mut world, STORED);
    assert_eq!(world.believed(Tier::Nvme, 0, &[1, 2, 3, 4]), 4);
}

#[test]
fn a_page_found_wrong_is_told_gone_though_others_hold_it() {
    let mut world = World::new(roomy(), 1);
    world.serve(0, &[1, 2, 3]);
    world.serve(0, &[1, 2, 4]);
    world.run_step();
    (0..4).for_each(|_| answer(&mut world, STORED));
    world.record_notes();
    world.restart();
    for prompt in [[1, 2, 3], [1, 2, 4]] {
        world.tiers.prefetch(&world.key(0), &tokens(&prompt), Tier::Nvme).expect("something to load");
    }
    answer(&mut world, ColdOutcome::Failed(Fault::Wrong));
    (0..2).for_each(|_| answer(&mut world, ColdOutcome::Loaded));
    assert_eq!(world.tiers.index(Tier::Nvme).unwrap().used(NamespaceId(0)), 3, "held by the second load");
    assert_eq!(world.believed(Tier::Nvme, 0, &[1, 2, 4]), 0);
    let noted = world.tiers.drain_notes().iter().filter(|n| matches!(n, JournalNote::Drop { .. })).count();
    assert_eq!(noted, 4, "the journal forgets them, too");
    answer(&mut world, ColdOutcome::Loaded);
    assert_eq!(world.tiers.index(Tier::Nvme).unwrap().used(NamespaceId(0)), 0);
    assert_eq!(world.believed(Tier::Host, 0, &[1, 2, 4]), 0, "below a page that did not arrive");
}

#[test]
fn what_is_still_on_its_way_is_not_retold() {
    let mut world = World::new(roomy(), 1);
    world.serve(0, &[1, 2, 3]);
    world.run_step();
    (0..2).for_each(|_| answer(&mut world, STORED));
    world.tiers.lose_events();
    assert_eq!(world.believed(Tier::Nvme, 0, &[1, 2, 3]), 0);
    answer(&mut world, ColdOutcome::Failed(Fault::Unavailable));
    assert_eq!((world.believed(Tier::Nvme, 0, &[1, 2, 3]), world.retold), (2, 1));
}

#[test]
fn a_run_that_overtakes_its_parents_is_told_after_them() {
    let mut world = World::new(roomy(), 1);
    world.serve(0, &[1, 2]);
    world.serve(0, &[1, 2, 3]);
    world.run_step();
    world.pending.extend(world.tiers.take_orders());
    world.pending.rotate_right(1);
    answer(&mut world, STORED);
    world.tiers.lose_events();
    assert_eq!(world.believed(Tier::Nvme, 0, &[1, 2, 3]), 0);
    (0..2).for_each(|_| answer(&mut world, STORED));
    assert_eq!(world.believed(Tier::Nvme, 0, &[1, 2, 3]), 3);
}

#[test]
fn pages_without_a_name_are_copied_and_not_told() {
    let mut world = World::new(roomy(), 1);
    world.serve(7, &[1, 2]);
    world.run_step();
    world.listen();
    assert_eq!(world.tiers.index(Tier::Host).unwrap().used(NamespaceId(7)), 2);
    world.tiers.clear();
    world.listen();
    assert_eq!(world.follower, Follower::default());
}
