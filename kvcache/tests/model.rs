//! Random operations against the naive model, under every policy.

use proptest::prelude::*;
use quire_kvcache::{Cache, EvictionKind};

use crate::naive::{Op, World, config};

fn ops() -> impl Strategy<Value = Vec<Op>> {
    proptest::collection::vec(op(), 1..120)
}

fn op() -> impl Strategy<Value = Op> {
    let any = 0..64usize;
    prop_oneof![
        6 => (0..4usize, pages(7)).prop_map(|(key, prompt)| Op::Start { key, prompt }),
        2 => (any.clone(), pages(2)).prop_map(|(sequence, pages)| Op::Extend { sequence, pages }),
        2 => any.clone().prop_map(|sequence| Op::Rematch { sequence }),
        8 => (any.clone(), 0..5usize).prop_map(|(sequence, n)| Op::Reserve { sequence, n }),
        8 => (any.clone(), 0..5usize).prop_map(|(sequence, n)| Op::Publish { sequence, n }),
        1 => (any.clone(), 0..3usize).prop_map(|(sequence, n)| Op::Free { sequence, n }),
        3 => any.clone().prop_map(|sequence| Op::Finish { sequence }),
        1 => any.clone().prop_map(|sequence| Op::Drop { sequence }),
        3 => Just(Op::BeginStep),
        3 => (0..3u64).prop_map(|back| Op::Complete { back }),
        1 => (0..6usize).prop_map(|n| Op::Evict { n }),
        1 => (0..4usize).prop_map(|key| Op::Clear { key }),
    ]
}

/// Few kinds of page, so that prefixes are shared.
fn pages(max: usize) -> impl Strategy<Value = Vec<u32>> {
    proptest::collection::vec(0..3u32, 0..=max)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_cache_does_what_the_naive_model_does(
        ops in ops(),
        pages in 4..40u32,
        policy in proptest::sample::select(EvictionKind::ALL.to_vec()),
    ) {
        let mut world = World::new(Cache::new(config(pages, policy)));
        for op in &ops {
            world.apply(op);
        }
        world.finish_all();
    }
}

#[test]
fn no_leak_and_no_wrong_page_over_a_long_run() {
    for policy in EvictionKind::ALL {
        let evicted = crate::soak::run(Cache::new(config(32, policy)), 20_000, 5).counters.evicted_pages;
        assert!(evicted > 1000, "{policy}: {evicted} evictions are too few to have tried anything");
    }
}
