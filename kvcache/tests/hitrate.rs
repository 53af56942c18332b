//! Which policy hits how often: the bench's workload, small, against what a few lines say it should be.

use std::collections::{BTreeMap, BTreeSet};

use expect_test::expect;
use quire_kvcache::EvictionKind;

use crate::workload::{Family, Request, clairvoyant, distinct, generate, replay};

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
    expect!["[[4812, 5306, 4747, 4932], [7645, 7810, 7662, 6699], [10276, 10129, 10274, 8894]]"]
        .assert_eq(&format!("{:?}", [100, 400, 1_500].map(hits)));
}

const REQUESTS: usize = 1_500;
const SHARES: [u32; 5] = [1, 3, 10, 25, 50];

/// Pools as shares of the distinct blocks, in percent; none too small for the longest prompt of 200.
fn pools(requests: &[Request]) -> [u32; 5] {
    SHARES.map(|share| (distinct(requests) * share / 100).max(256))
}

/// A policy that learns pays for it: the tolerance is what these runs cost, rounded up.
#[test]
fn the_default_is_below_lru_by_a_tenth_of_a_point_at_most_on_any_family() {
    for (family, seed) in Family::ALL.into_iter().flat_map(|f| [(f, 1), (f, 2)]) {
        let requests = family.requests(seed, REQUESTS);
        let blocks: usize = requests.iter().map(Vec::len).sum();
        for pool in pools(&requests) {
            let [ours, lru] =
                [EvictionKind::default(), EvictionKind::Lru].map(|kind| replay(&requests, pool, kind));
            assert!(ours + blocks / 1_000 >= lru, "{family:?} {seed}, {pool} pages: {ours} of {lru}");
        }
    }
}

#[test]
fn nobody_hits_more_than_the_clairvoyant() {
    for family in Family::ALL {
        let requests = family.requests(4, REQUESTS);
        for pool in pools(&requests) {
            let best = clairvoyant(&requests, pool);
            let hits = EvictionKind::ALL.map(|kind| replay(&requests, pool, kind));
            assert!(hits.iter().all(|&hits| hits <= best), "{family:?}, {pool} pages: {hits:?} of {best}");
        }
    }
}

#[test]
fn the_clairvoyant_hits_all_that_was_seen_when_all_fits() {
    let requests = generate(2, 400);
    assert_eq!(clairvoyant(&requests, 20_000), unbounded(&requests));
}

/// Per mille of the blocks: the default, LRU and the bound.
#[test]
fn the_default_closes_part_of_the_gap_on_every_family_that_has_more_than_recency() {
    let line = |family: Family| {
        let requests = family.requests(3, REQUESTS);
        let blocks: usize = requests.iter().map(Vec::len).sum();
        let rates = pools(&requests).map(|pool| {
            let [ours, lru] =
                [EvictionKind::default(), EvictionKind::Lru].map(|kind| replay(&requests, pool, kind));
            let [ours, lru, best] =
                [ours, lru, clairvoyant(&requests, pool)].map(|hits| hits * 1_000 / blocks);
            format!("{ours:>4}/{lru:>3}/{best:>3}")
        });
        format!("{:>9} {}\n", format!("{family:?}"), rates.join(" "))
    };
    expect![[r#"
          Resumed  287/288/431  309/308/460  416/415/567  513/513/621  584/584/621
          Recency  370/370/528  370/370/528  508/508/648  601/601/691  663/663/691
            Turns  249/195/442  249/195/442  444/445/659  660/660/719  713/712/719
           Agents  898/899/924  898/899/924  923/923/939  945/945/952  951/951/952
        Documents  309/259/408  319/268/420  395/356/476  443/425/476  466/463/476
            Scans   22/ 20/ 51   32/ 26/ 51   40/ 35/ 51   46/ 46/ 51   51/ 51/ 51
            Shift  341/327/409  341/327/409  396/394/410  397/397/410  403/403/410
           Bursts  671/671/671  671/671/671  671/671/671  671/671/671  671/671/671
          Popular  114/ 82/262  114/ 82/262  182/144/340  251/245/381  329/327/381
             Loop  104/ 64/163  104/ 64/163  124/106/225  137/133/367  176/146/489
           Phases  252/245/362  295/296/394  402/402/416  416/416/416  416/416/416
    "#]]
    .assert_eq(&Family::ALL.map(line).concat());
}
