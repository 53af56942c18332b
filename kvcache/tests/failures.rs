//! The ways in which prefix caches of this field have failed their users, each a claim that ours does not.

use base::{PageId, StepId};
use quire_kvcache::{CacheConfig, OutOfPages};

use crate::common::*;

#[test]
fn a_prompt_of_exactly_a_page_is_cached_and_hit_whole() {
    let mut cache = cache(4);
    warm(&mut cache, &[1]);
    assert_eq!(cache.peek(&key(), &tokens(&[1])), 16);
    assert_eq!(cache.peek(&key(), &tokens(&[1])[..15]), 0);
    let lease = cache.lease(&key(), &tokens(&[1, 2])[..17]);
    assert_eq!((lease.tokens(), lease.pages()), (16, ids(&[0]).as_slice()));
}

#[test]
fn a_full_prompt_hit_needs_no_page() {
    let mut cache = cache(3);
    warm(&mut cache, &[1, 2, 3]);
    let mut lease = cache.lease(&key(), &tokens(&[1, 2, 3]));
    assert_eq!(lease.tokens(), 48);
    assert_eq!(publish(&mut cache, &mut lease, &[1, 2, 3], &[]).pages, []);
    assert_eq!(cache.available(), 0);
}

/// A full hit still computes the last token for its logits, so the last page is computed again.
#[test]
fn recomputing_the_last_page_of_a_full_hit_keeps_the_trees_page() {
    let mut cache = cache(4);
    warm(&mut cache, &[1, 2]);
    let mut lease = cache.lease(&key(), &tokens(&[1, 2])[..31]);
    assert_eq!(lease.tokens(), 16);
    let own = cache.reserve(1).unwrap();
    let published = publish(&mut cache, &mut lease, &[1, 2], &own);
    assert_eq!((published.pages, published.duplicates), (ids(&[1]), 1));
    assert_eq!(lease.pages(), ids(&[0, 1]));
}

#[test]
fn a_page_is_visible_only_once_published() {
    let mut cache = cache(4);
    let mut lease = cache.lease(&key(), &tokens(&[1, 2]));
    let pages = cache.reserve(2).unwrap();
    assert_eq!(cached(&cache, &[1, 2]), 0);
    publish(&mut cache, &mut lease, &[1, 2], &pages[..1]);
    assert_eq!(cached(&cache, &[1, 2]), 1);
    publish(&mut cache, &mut lease, &[1, 2], &pages[1..]);
    assert_eq!(cached(&cache, &[1, 2]), 2);
}

#[test]
fn a_parent_is_never_evicted_under_a_sequence_that_will_add_a_child() {
    let mut cache = cache(4);
    warm(&mut cache, &[1, 2]);
    let mut lease = cache.lease(&key(), &tokens(&[1, 2, 3]));
    let pages = cache.reserve(1).unwrap();
    assert_eq!(cache.evict(4), 0);
    cache.clear(|_| true);
    publish(&mut cache, &mut lease, &[1, 2, 3], &pages);
    assert_eq!(cached(&cache, &[1, 2, 3]), 3);
}

#[test]
fn evicts_leaf_before_trunk() {
    let mut cache = cache(6);
    warm(&mut cache, &[1, 2]);
    warm(&mut cache, &[1, 2, 3]);
    warm(&mut cache, &[1, 2, 4, 5]);
    for (left_by_3, left_by_5) in [(2, 4), (2, 3), (2, 2), (1, 1), (0, 0)] {
        assert_eq!(cache.evict(1), 1);
        sound(&cache, &[]);
        assert_eq!((cached(&cache, &[1, 2, 3]), cached(&cache, &[1, 2, 4, 5])), (left_by_3, left_by_5));
    }
    assert_eq!(cache.evict(1), 0);
}

#[test]
fn a_leased_path_is_never_evicted() {
    let mut cache = cache(6);
    let lease = serve(&mut cache, &[1, 2, 3]);
    warm(&mut cache, &[1, 2, 9]);
    assert_eq!(cache.available(), 3);
    assert_eq!(cache.reserve(4), Err(OutOfPages { needed: 4, free: 2, evictable: 1 }));
    assert_eq!(cached(&cache, &[1, 2, 9]), 3, "a refused reservation evicts nothing");
    assert_eq!(cache.reserve(3).unwrap().len(), 3);
    sound(&cache, &[&lease]);
    assert_eq!((cached(&cache, &[1, 2, 3]), cached(&cache, &[1, 2, 9])), (3, 2));
}

#[test]
fn duplicates_by_simultaneous_computation_are_freed_once() {
    let mut cache = cache(9);
    let mut leases: Vec<_> = (0..3).map(|_| cache.lease(&key(), &tokens(&[1, 2, 3]))).collect();
    let pages: Vec<_> = (0..3).map(|_| cache.reserve(3).unwrap()).collect();
    for (i, (lease, pages)) in leases.iter_mut().zip(&pages).enumerate() {
        let published = cache.publish(lease, &tokens(&[1, 2, 3]), pages, StepId(5));
        assert_eq!((published.pages, published.duplicates), (ids(&[0, 1, 2]), if i == 0 { 0 } else { 3 }));
    }
    sound(&cache, &leases.iter().collect::<Vec<_>>());
    assert_eq!((cache.stats().pages_fenced, cache.available()), (6, 0));
    cache.complete(StepId(5));
    assert_eq!((cache.stats().pages_fenced, cache.available()), (0, 6));
}

#[test]
fn the_part_of_a_chunk_that_others_published_first_is_switched() {
    let mut cache = cache(8);
    let mut slow = cache.lease(&key(), &tokens(&[1, 2, 3, 4]));
    let own = cache.reserve(4).unwrap();
    warm(&mut cache, &[1, 2, 9]);
    let published = publish(&mut cache, &mut slow, &[1, 2, 3, 4], &own);
    assert_eq!((published.pages, published.duplicates), (ids(&[4, 5, 2, 3]), 2));
    assert_eq!(slow.pages(), ids(&[4, 5, 2, 3]));
}

#[test]
fn a_waiting_sequence_takes_over_what_another_has_computed() {
    let mut cache = cache(8);
    let mut waits = cache.lease(&key(), &tokens(&[1, 2, 3, 4]));
    warm(&mut cache, &[1, 2, 3, 9]);
    assert_eq!(cache.extend(&mut waits, &tokens(&[1, 2, 3, 4])[..40]), 32);
    assert_eq!(cache.extend(&mut waits, &tokens(&[1, 2, 3, 4])), 16);
    assert_eq!(cache.extend(&mut waits, &tokens(&[1, 2, 3, 4])), 0);
    sound(&cache, &[&waits]);
    assert_eq!(waits.pages(), ids(&[0, 1, 2]));
    assert_eq!(cache.evict(8), 1);
    assert_eq!((cache.stats().counters.hits, cache.stats().counters.hit_tokens), (1, 48));
}

#[test]
fn cancels_with_a_shared_prefix_free_only_their_own() {
    let mut cache = cache(8);
    let keeper = serve(&mut cache, &[1, 2, 3]);
    let cancelled = cache.lease(&key(), &tokens(&[1, 2, 4]));
    let private = cache.reserve(2).unwrap();
    cache.free(private, STEP);
    cache.release(cancelled, STEP);
    sound(&cache, &[&keeper]);
    let dropped = cache.lease(&key(), &tokens(&[1, 2, 3]));
    drop(dropped);
    assert_eq!((cache.evict(8), cache.available()), (0, 5));
    sound(&cache, &[&keeper]);
}

#[test]
fn splitting_a_node_under_leases_keeps_them_right() {
    let mut cache = cache(8);
    let whole = serve(&mut cache, &[1, 2, 3, 4]);
    let half = cache.lease(&key(), &tokens(&[1, 2, 9]));
    let quarter = cache.lease(&key(), &tokens(&[1, 8]));
    sound(&cache, &[&whole, &half, &quarter]);
    assert_eq!((half.pages(), quarter.pages()), (ids(&[0, 1]).as_slice(), ids(&[0]).as_slice()));
    cache.release(whole, STEP);
    sound(&cache, &[&half, &quarter]);
    assert_eq!(cache.evict(8), 2);
    cache.release(half, STEP);
    assert_eq!(cache.evict(8), 1);
    cache.release(quarter, STEP);
    assert_eq!(cache.evict(8), 1);
    assert_eq!(cache.stats().trees, 0);
}

#[test]
fn two_leases_at_one_end_extend_apart() {
    let mut cache = cache(8);
    let mut one = serve(&mut cache, &[1]);
    let mut two = cache.lease(&key(), &tokens(&[1]));
    let pages = cache.reserve(3).unwrap();
    publish(&mut cache, &mut one, &[1, 2], &pages[..1]);
    sound(&cache, &[&one, &two]);
    publish(&mut cache, &mut two, &[1, 3], &pages[1..2]);
    publish(&mut cache, &mut one, &[1, 2, 4], &pages[2..]);
    sound(&cache, &[&one, &two]);
    assert_eq!((one.tokens(), two.tokens()), (48, 32));
}

#[test]
fn a_sequence_that_publishes_page_by_page_stays_one_node() {
    let mut cache = cache(32);
    let mut lease = serve(&mut cache, &[0]);
    let prompt: Vec<u32> = (0..32).collect();
    for n in 2..=32 {
        let page = cache.reserve(1).unwrap();
        publish(&mut cache, &mut lease, &prompt[..n], &page);
    }
    assert_eq!(cache.stats().nodes, 2, "the root and one run");
}

#[test]
fn frees_wait_for_their_step() {
    let mut cache = cache(2);
    let pages = cache.reserve(2).unwrap();
    cache.free(pages, StepId(7));
    sound(&cache, &[]);
    cache.complete(StepId(6));
    assert_eq!(cache.available(), 0);
    assert_eq!(cache.reserve(1), Err(OutOfPages { needed: 1, free: 0, evictable: 0 }));
    cache.complete(StepId(7));
    assert_eq!(cache.available(), 2);
    let pages = cache.reserve(1).unwrap();
    cache.free(pages, StepId(7));
    assert_eq!(cache.available(), 2, "a completed step is not waited for");
}

#[test]
fn a_released_path_is_not_evicted_while_its_step_runs() {
    let mut cache = cache(2);
    let lease = serve(&mut cache, &[1, 2]);
    cache.release(lease, StepId(3));
    sound(&cache, &[]);
    assert_eq!((cache.evict(2), cache.available(), cache.clear(|_| true)), (0, 0, 0));
    cache.complete(StepId(3));
    sound(&cache, &[]);
    assert_eq!(cache.evict(2), 2);
}

#[test]
fn a_dropped_lease_waits_for_the_newest_step_begun() {
    let mut cache = cache(2);
    let lease = serve(&mut cache, &[1, 2]);
    cache.begin_step(StepId(4));
    std::thread::scope(|s| {
        s.spawn(move || drop(lease));
    });
    assert_eq!(cache.evict(2), 0);
    cache.complete(StepId(3));
    assert_eq!(cache.evict(2), 0);
    cache.complete(StepId(4));
    sound(&cache, &[]);
    assert_eq!(cache.evict(2), 2);
}

#[test]
fn a_lease_may_outlive_its_cache() {
    let mut cache = cache(2);
    let lease = serve(&mut cache, &[1]);
    drop(cache);
    assert_eq!(lease.pages(), ids(&[0]));
}

#[test]
#[should_panic(expected = "page 0 is Fenced, not Private")]
fn no_double_free() {
    let mut cache = cache(2);
    let pages = cache.reserve(1).unwrap();
    cache.free(pages.clone(), StepId(1));
    cache.free(pages, StepId(1));
}

#[test]
#[should_panic(expected = "not Private")]
fn a_page_is_not_published_twice() {
    let mut cache = cache(4);
    let mut lease = cache.lease(&key(), &[]);
    let pages = cache.reserve(1).unwrap();
    publish(&mut cache, &mut lease, &[1], &pages);
    publish(&mut cache, &mut lease, &[1, 2], &pages);
}

#[test]
#[should_panic(expected = "do not fill")]
fn a_part_filled_page_is_not_published() {
    let mut cache = cache(4);
    let mut lease = cache.lease(&key(), &[]);
    let pages = cache.reserve(2).unwrap();
    cache.publish(&mut lease, &tokens(&[1, 2])[..31], &pages, STEP);
}

#[test]
fn clear_drops_all_that_is_unleased_and_nothing_else() {
    let mut cache = cache(8);
    let lease = serve(&mut cache, &[1, 2]);
    warm(&mut cache, &[1, 2, 3, 4]);
    warm(&mut cache, &[5]);
    assert_eq!(cache.clear(|_| true), 3);
    sound(&cache, &[&lease]);
    assert_eq!((cached(&cache, &[1, 2, 3]), cached(&cache, &[5]), cache.available()), (2, 0, 6));
    drop(lease);
    assert_eq!((cache.clear(|_| true), cache.stats().trees), (2, 0));
}

#[test]
fn clear_forgets_what_was_evicted_too() {
    let gdsf = |cleared: usize| {
        let mut cache = with(CacheConfig::new(4, 16));
        warm(&mut cache, &[1]);
        warm(&mut cache, &[1]);
        cache.evict(1);
        (0..cleared).for_each(|_| assert_eq!(cache.clear(|_| true), 0));
        warm(&mut cache, &[1]);
        cache.dump()
    };
    assert!(gdsf(0).contains("[0] x3") && gdsf(1).contains("[0] x1"), "{}", gdsf(1));
}

#[test]
fn a_thousand_at_once_on_a_cold_prefix_end_with_one_copy() {
    let mut cache = cache(1000);
    let prompt = tokens(&[1]);
    let mut leases: Vec<_> = (0..1000).map(|_| cache.lease(&key(), &prompt)).collect();
    let pages = cache.reserve(1000).unwrap();
    for (lease, page) in leases.iter_mut().zip(&pages) {
        assert_eq!(cache.publish(lease, &prompt, &[*page], STEP).pages, [PageId(0)]);
    }
    sound(&cache, &leases.iter().collect::<Vec<_>>());
    assert_eq!((cache.stats().pages_leased, cache.available()), (1, 999));
}
