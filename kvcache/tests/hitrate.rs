//! Which policy hits how often: the bench's workload, small, against what a few lines say it should be.

use std::collections::{BTreeMap, BTreeSet};

use expect_test::expect;
use quire_kvcache::EvictionKind;

use crate::workload::{Request, generate, replay};

/// Blocks hit when nothing is ever evicted.
fn unbounded(requests: &[Request]) -> usize {
    let mut seen: BTreeSet<u32> = BTreeSet::new();
    let mut hits = 0;
    for request in requests {
        hits += request.iter().take_while(|id| seen.contains(*id)).count();
        seen.extend(request);
    }
    hits
}

/// Least recently used leaf block, in the plainest way: one request is one tick, deepest first.
fn leaf_lru(requests: &[Request], capacity: usize) -> usize {
    let mut cached: BTreeMap<u32, (usize, usize, Option<u32>)> = BTreeMap::new();
    let mut hits = 0;
    for (now, request) in requests.iter().enumerate() {
        let hit = request.iter().take_while(|id| cached.contains_key(id)).count();
        hits += hit;
        for (depth, &id) in request.iter().enumerate() {
            let parent = depth.checked_sub(1).map(|above| request[above]);
            while depth >= hit && cached.len() >= capacity {
                let parents: BTreeSet<u32> = cached.values().filter_map(|c| c.2).collect();
                let leaves = cached.iter().filter(|(id, _)| !parents.contains(id) && !request.contains(id));
                let Some((&victim, _)) = leaves.min_by_key(|(_, c)| (c.0, usize::MAX - c.1)) else { break };
                cached.remove(&victim);
            }
            if depth >= hit && cached.len() >= capacity {
                break;
            }
            cached.insert(id, (now, depth, parent));
        }
    }
    hits
}

#[test]
fn a_pool_that_never_evicts_hits_all_that_was_seen() {
    let requests = generate(2, 400);
    for policy in EvictionKind::ALL {
        assert_eq!(replay(&requests, 20_000, policy), unbounded(&requests));
    }
}

#[test]
fn lru_hits_what_the_plainest_leaf_lru_hits() {
    let requests = generate(3, 200);
    for capacity in [50, 200, 700] {
        assert_eq!(replay(&requests, capacity, EvictionKind::Lru), leaf_lru(&requests, capacity as usize));
    }
}

#[test]
fn hit_counts_are_the_same_on_every_machine() {
    let requests = generate(1, 1_000);
    let hits = |capacity| EvictionKind::ALL.map(|policy| replay(&requests, capacity, policy));
    expect!["[[5297, 4747, 4949], [7812, 7662, 6689], [10129, 10274, 8929]]"]
        .assert_eq(&format!("{:?}", [100, 400, 1_500].map(hits)));
}
