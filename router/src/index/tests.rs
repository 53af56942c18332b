//! The index against a naive reference under churn: sets of names, walked from the root.

use std::collections::{BTreeSet, HashMap};

use base::{Bytes, Generation, SplitMix, Tier};
use proptest::prelude::*;

use super::*;
use crate::{Held, Seat};

const SEATS: u16 = 5;
const TIERS_USED: [Tier; 2] = [Tier::Device, Tier::Host];
/// Seats from here on evict anyhow.
const UNRULY: u16 = 3;
const PATHS: usize = 24;

/// Who holds what, by the book.
#[derive(Default)]
struct Truth(HashMap<(Scope, Tier, u16), BTreeSet<u64>>);

impl Truth {
    fn of(&mut self, scope: &Scope, tier: Tier, seat: u16) -> &mut BTreeSet<u64> {
        self.0.entry((scope.clone(), tier, seat)).or_default()
    }

    fn held(&self, scope: &Scope, names: &[u64], seat: u16) -> Held {
        let mut held = Held::default();
        for tier in Tier::ALL {
            let set = self.0.get(&(scope.clone(), tier, seat));
            let count = names.iter().take_while(|name| set.is_some_and(|set| set.contains(name))).count();
            held.blocks[tier.index()] = count as u32;
        }
        held
    }

    fn drop(&mut self, seat: u16, gone: impl Fn(&Scope) -> bool) -> ([u64; 4], u64) {
        let (mut memberships, mut blocks) = ([0; 4], BTreeSet::new());
        for ((scope, tier, _), set) in self.0.iter_mut().filter(|((of, _, s), _)| *s == seat && gone(of)) {
            memberships[tier.index()] += set.len() as u64;
            blocks.extend(std::mem::take(set).into_iter().map(|name| (scope.clone(), name)));
        }
        (memberships, blocks.len() as u64)
    }
}

/// Prompts that share beginnings, in three scopes of two families; names of different scopes differ.
struct World {
    index: Index,
    truth: Truth,
    scopes: Vec<Scope>,
    paths: Vec<Vec<Vec<u64>>>,
}

impl World {
    fn new(seed: u64, bytes_max: Bytes) -> Self {
        let scopes = vec![
            Scope::namespace("a", Generation(1)),
            Scope::namespace("a", Generation(2)),
            Scope::foreign("m", ""),
        ];
        let mut rng = SplitMix::new(seed);
        let paths = scopes.iter().map(|_| Self::paths(&mut rng)).collect();
        let index = Index::new(IndexConfig { bytes_max, scopes_max: 8 });
        for seat in 0..SEATS {
            index.replace(Seat(seat), evicts(seat));
        }
        Self { index, truth: Truth::default(), scopes, paths }
    }

    fn paths(rng: &mut SplitMix) -> Vec<Vec<u64>> {
        let mut paths: Vec<Vec<u64>> = Vec::new();
        for _ in 0..PATHS {
            let mut path = match paths.len() as u64 {
                0 => Vec::new(),
                some => paths[rng.below(some) as usize].clone(),
            };
            path.truncate(rng.below(path.len() as u64 + 1) as usize);
            path.extend((0..1 + rng.below(60)).map(|_| rng.next_u64()));
            paths.push(path);
        }
        paths
    }

    fn step(&mut self, rng: &mut SplitMix) {
        let seat = rng.below(SEATS.into()) as u16;
        let scope = rng.below(self.scopes.len() as u64) as usize;
        let path = self.paths[scope][rng.below(PATHS as u64) as usize].clone();
        let (scope, tier) = (self.scopes[scope].clone(), TIERS_USED[rng.below(2) as usize]);
        let cut = rng.below(path.len() as u64) as usize;
        match rng.below(100) {
            0..50 if seat < UNRULY => self.store(seat, &scope, tier, &path[..=cut]),
            0..50 => self.store_part(seat, &scope, tier, &path, cut, rng),
            50..94 if seat < UNRULY => self.evict_leaves(seat, &scope, tier, &path, cut),
            50..94 => self.evict_any(seat, &scope, tier, &path[cut..]),
            94..96 => self.drop(seat, |index, seat| index.clear(seat), |_| true),
            96..97 => self.drop(seat, |index, seat| index.replace(seat, evicts(seat.0)), |_| true),
            _ => {
                let up_to = Generation(1 + rng.below(2));
                let family = Family::Namespace("a".into());
                let gone = |of: &Scope| of.family == family && of.generation <= up_to;
                self.drop(seat, |index, seat| index.purge(seat, "a", up_to), gone);
            }
        }
    }

    /// What an orderly replica says of a prompt: the blocks that it did not have.
    fn store(&mut self, seat: u16, scope: &Scope, tier: Tier, path: &[u64]) {
        let set = self.truth.of(scope, tier, seat);
        let known = path.iter().take_while(|name| set.contains(name)).count();
        set.extend(&path[known..]);
        let parent = known.checked_sub(1).map(|before| path[before]);
        let stored = self.index.stored(Seat(seat), scope, &[tier], parent, &path[known..]);
        assert_eq!(stored, Stored { added: (path.len() - known) as u32, ..Stored::default() });
    }

    /// Any part of a prompt, known or not, with or without what comes before.
    fn store_part(
        &mut self,
        seat: u16,
        scope: &Scope,
        tier: Tier,
        path: &[u64],
        from: usize,
        rng: &mut SplitMix,
    ) {
        let to = from + 1 + rng.below((path.len() - from) as u64) as usize;
        let set = self.truth.of(scope, tier, seat);
        let parent = from.checked_sub(1).map(|before| path[before]);
        let added = path[from..to].iter().filter(|&&name| set.insert(name)).count() as u32;
        let stored = self.index.stored(Seat(seat), scope, &[tier], parent, &path[from..to]);
        assert_eq!((stored.added, stored.repeated), (added, (to - from) as u32 - added));
    }

    /// From the end of a prompt, as far as no other prompt goes on from there.
    fn evict_leaves(&mut self, seat: u16, scope: &Scope, tier: Tier, path: &[u64], keep: usize) {
        let at = self.scopes.iter().position(|of| of == scope).unwrap();
        let set = self.truth.0.entry((scope.clone(), tier, seat)).or_default();
        let held = path.iter().take_while(|name| set.contains(name)).count();
        let mut gone = Vec::new();
        for depth in (keep..held).rev() {
            let is_followed = |other: &Vec<u64>| {
                other.get(depth) == Some(&path[depth])
                    && other.get(depth + 1).is_some_and(|next| set.contains(next))
            };
            if self.paths[at].iter().any(is_followed) {
                break;
            }
            set.remove(&path[depth]);
            gone.push(path[depth]);
        }
        let removed = self.index.removed(Seat(seat), Some(&scope.family), tier, &gone);
        assert_eq!(removed, Removed { removed: gone.len() as u32, unknown: 0 });
    }

    fn evict_any(&mut self, seat: u16, scope: &Scope, tier: Tier, names: &[u64]) {
        let set = self.truth.of(scope, tier, seat);
        let names: Vec<u64> = names.iter().copied().filter(|name| name % 3 == 0).collect();
        let removed = names.iter().filter(|name| set.remove(name)).count() as u32;
        let unknown = names.len() as u32 - removed;
        let told = self.index.removed(Seat(seat), None, tier, &names);
        assert_eq!(told, Removed { removed, unknown });
    }

    fn drop(&mut self, seat: u16, how: impl Fn(&Index, Seat) -> Dropped, gone: impl Fn(&Scope) -> bool) {
        let (memberships, blocks) = self.truth.drop(seat, gone);
        let dropped = how(&self.index, Seat(seat));
        assert_eq!((dropped.memberships, dropped.blocks), (memberships, blocks));
    }

    /// Every score of every prompt.
    fn compare(&self) {
        let mut matches = Matches::default();
        for (scope, paths) in self.scopes.iter().zip(&self.paths) {
            for path in paths {
                self.index.lookup(scope, path, SeatSet::ALL, &mut matches);
                for seat in 0..SEATS {
                    let truth = self.truth.held(scope, path, seat);
                    assert_eq!(matches.held(Seat(seat)), truth, "seat {seat} in {scope}");
                }
            }
        }
        self.index.check(Bytes(0)).unwrap();
    }
}

fn evicts(seat: u16) -> Evicts {
    if seat < UNRULY { Evicts::LeafFirst } else { Evicts::Anyhow }
}

fn churn(seed: u64, steps: usize) {
    let mut world = World::new(seed, Bytes(1 << 30));
    let mut rng = SplitMix::new(seed ^ 0xC0DE);
    for _ in 0..steps {
        world.step(&mut rng);
        world.compare();
    }
    assert_eq!(world.index.view().linear.and(SeatSet(0b111)), SeatSet::EMPTY, "orderly seats stay orderly");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_score_is_the_reference_s_after_every_step(seed: u64) {
        churn(seed, 150);
    }
}

/// `QUIRE_INDEX_SEEDS=N` makes it a long run.
#[test]
fn every_score_is_the_reference_s_over_many_seeds() {
    let seeds = std::env::var("QUIRE_INDEX_SEEDS").map_or(4, |seeds| seeds.parse().expect("a number"));
    (0..seeds).for_each(|seed| churn(seed, 600));
}

pub(super) fn one_scope() -> (Index, Scope) {
    let index = Index::new(IndexConfig::default());
    index.replace(Seat(0), Evicts::LeafFirst);
    (index, Scope::namespace("a", Generation(1)))
}

pub(super) fn names(count: u64) -> Vec<u64> {
    let mut rng = SplitMix::new(count);
    (0..count).map(|_| rng.next_u64()).collect()
}

pub(super) fn score(index: &Index, scope: &Scope, names: &[u64], seat: u16) -> u32 {
    let mut matches = Matches::default();
    index.lookup(scope, names, SeatSet::ALL, &mut matches);
    matches.held(Seat(seat)).anywhere()
}

#[test]
fn a_full_index_refuses_the_newest_and_never_shows_more_than_there_is() {
    for seed in 0..20 {
        let budget = Bytes(12_000 + 1_000 * seed);
        let mut world = World::new(seed, budget);
        let mut rng = SplitMix::new(seed);
        for _ in 0..400 {
            let (seat, at) = (rng.below(SEATS.into()) as u16, rng.below(3) as usize);
            let path = world.paths[at][rng.below(PATHS as u64) as usize].clone();
            let scope = world.scopes[at].clone();
            let _ = world.index.stored(Seat(seat), &scope, &[Tier::Device], None, &path);
            world.truth.of(&scope, Tier::Device, seat).extend(&path);
            for names in &world.paths[at] {
                let truth = world.truth.held(&scope, names, seat).anywhere();
                assert!(score(&world.index, &scope, names, seat) <= truth);
            }
            world.index.check(Bytes(0)).unwrap();
            assert!(world.index.view().bytes <= budget);
        }
        let view = world.index.view();
        assert!(view.refused_blocks > 0, "the bound was not met");
        assert!(SeatSet::ALL.iter().all(|seat| !view.incomplete.has(seat) || view.linear.has(seat)));
        assert!(!view.incomplete.is_empty());
        for seat in 0..SEATS {
            world.index.clear(Seat(seat));
        }
        assert_eq!((world.index.view().bytes, world.index.view().incomplete), (Bytes(0), SeatSet::EMPTY));
    }
}

#[test]
fn scopes_beyond_the_bound_are_refused_and_make_room_when_they_end() {
    let index = Index::new(IndexConfig { scopes_max: 2, ..IndexConfig::default() });
    let scope = |generation| Scope::namespace("a", Generation(generation));
    let store = |generation| index.stored(Seat(0), &scope(generation), &[Tier::Device], None, &names(4));
    assert_eq!((store(1).added, store(2).added, store(3).refused), (4, 4, 4));
    assert!(index.seat(Seat(0)).is_incomplete);
    let purged = index.purge(Seat(0), "a", Generation(1));
    assert_eq!((purged.blocks, purged.scopes, purged.scopes_freed), (4, 1, 1));
    assert_eq!(store(3).added, 4);
}

#[test]
fn a_purge_counts_a_block_once_and_leaves_what_others_hold() {
    let (index, scope) = one_scope();
    let names = names(100);
    let both = &[Tier::Device, Tier::Nvme];
    let _ = index.stored(Seat(0), &scope, both, None, &names);
    let _ = index.stored(Seat(1), &scope, &[Tier::Device], None, &names[..60]);
    index.removed(Seat(0), Some(&scope.family), Tier::Device, &[names[99], names[98]]);
    let purged = index.purge(Seat(0), "a", Generation(1));
    let expected = Dropped { memberships: [98, 0, 100, 0], blocks: 100, scopes: 1, scopes_freed: 0 };
    assert_eq!(purged, expected);
    assert_eq!((score(&index, &scope, &names, 0), score(&index, &scope, &names, 1)), (0, 60));
    let last = index.purge(Seat(1), "a", Generation(9));
    assert_eq!((last.blocks, last.scopes_freed, index.view().bytes), (60, 1, Bytes(0)));
}

#[test]
fn a_missing_parent_and_an_audit_find_who_does_not_evict_leaves_first() {
    let (index, scope) = one_scope();
    let names = names(100);
    let _ = index.stored(Seat(0), &scope, &[Tier::Device], None, &names);
    index.removed(Seat(0), Some(&scope.family), Tier::Device, &names[30..31]);
    assert!(score(&index, &scope, &names, 0) > 30, "jumps over the hole");
    assert_eq!(index.audit(&scope, &names, SeatSet::ALL), SeatSet::of(Seat(0)));
    assert_eq!(score(&index, &scope, &names, 0), 30);
    assert_eq!(index.audit(&scope, &names, SeatSet::ALL), SeatSet::EMPTY);

    index.replace(Seat(0), Evicts::LeafFirst);
    assert!(index.seat(Seat(0)).is_leaf_first);
    let stored = index.stored(Seat(0), &scope, &[Tier::Device], Some(names[30]), &names[31..]);
    assert_eq!(stored.orphans, 69);
    assert!(!index.seat(Seat(0)).is_leaf_first);
    assert_eq!(score(&index, &scope, &names, 0), 0);
}

#[test]
fn names_that_are_no_hashes_are_as_good_as_others() {
    let (index, scope) = one_scope();
    let names: Vec<u64> = (0..5000).collect();
    let _ = index.stored(Seat(0), &scope, &[Tier::Device], None, &names);
    assert_eq!(score(&index, &scope, &names, 0), 5000);
    let backwards: Vec<u64> = names.iter().rev().copied().take(4000).collect();
    index.removed(Seat(0), Some(&scope.family), Tier::Device, &backwards);
    assert_eq!(score(&index, &scope, &names, 0), 1000);
    index.check(Bytes(0)).unwrap();
}

#[test]
fn thousands_of_small_tenants_take_kilobytes_each() {
    let index = Index::new(IndexConfig::default());
    for tenant in 0..5000 {
        let scope = Scope::namespace(&format!("tenant-{tenant}"), Generation(1));
        let _ = index.stored(Seat(0), &scope, &[Tier::Device], None, &[tenant, tenant + 1]);
    }
    let each = index.view().bytes.0 / 5000;
    assert!(each < 1024, "{each} bytes");
    assert_eq!(index.clear(Seat(0)).scopes_freed, 5000);
    index.check(Bytes(0)).unwrap();
}

/// While a table is filled, emptied and replaced, what is held throughout is found and what never was is not.
#[test]
fn a_reader_misses_nothing_and_invents_nothing_while_another_writes() {
    let (index, scope) = one_scope();
    index.replace(Seat(1), Evicts::LeafFirst);
    let (index, scope) = (std::sync::Arc::new(index), std::sync::Arc::new(scope));
    let kept = names(200);
    let _ = index.stored(Seat(0), &scope, &[Tier::Device], None, &kept);
    let is_done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = {
        let (index, scope, is_done) = (index.clone(), scope.clone(), is_done.clone());
        base::spawn("index-writer", move || {
            let mut rng = SplitMix::new(5);
            for round in 0..300 {
                let names: Vec<u64> = (0..rng.below(3000)).map(|_| rng.next_u64()).collect();
                let _ = index.stored(Seat(1), &scope, &[Tier::Device], None, &names);
                let gone = match round % 3 {
                    0 => index.clear(Seat(1)).blocks,
                    _ => index.removed(Seat(1), Some(&scope.family), Tier::Device, &names).removed.into(),
                };
                assert_eq!(gone, names.len() as u64);
            }
            is_done.store(true, Relaxed);
        })
        .unwrap()
    };
    let mut lookups = 0;
    let mut matches = Matches::default();
    while !is_done.load(Relaxed) || lookups < 100 {
        index.lookup(&scope, &kept, SeatSet::ALL, &mut matches);
        assert_eq!((matches.seats(), matches.held(Seat(0)).anywhere()), (SeatSet::of(Seat(0)), 200));
        lookups += 1;
    }
    writer.join().unwrap();
    index.check(Bytes(0)).unwrap();
}
