//! What a router hears.

use base::{ChainHash, NamespaceId};
use quire_kvcache::{Cache, CacheConfig, KvChange, KvEvent, TreeKey};

use crate::common::*;

fn telling(pages: u32, events_max: usize) -> Cache {
    with(CacheConfig { events_max, ..CacheConfig::new(pages, SIZE as u32) })
}

fn names(cache: &Cache, prompt: &[u32]) -> Vec<ChainHash> {
    cache.names(&key(), &tokens(prompt)).unwrap()
}

/// `+12^0` stores a run of pages below a parent, `-` removes, by the pages' places in `prompt`.
fn show(events: &[KvEvent], names: &[ChainHash]) -> String {
    let place = |name: &ChainHash| names.iter().position(|n| n == name).unwrap().to_string();
    let places = |of: &[ChainHash]| of.iter().map(place).collect::<String>();
    let one = |event: &KvEvent| match &event.change {
        KvChange::Stored(s) => {
            format!("+{}^{}", places(&s.names), s.parent.as_ref().map_or("root".into(), place))
        }
        KvChange::Removed { names } => format!("-{}", places(names)),
        KvChange::Cleared => "cleared".into(),
        KvChange::Lost { events } => format!("lost {events}"),
    };
    events.iter().map(|e| format!("{}:{}", e.sequence, one(e))).collect::<Vec<_>>().join(" ")
}

#[test]
fn stored_and_removed_tell_the_life_of_each_page() {
    let mut cache = telling(4, 100);
    let names = names(&cache, &[1, 2, 3, 4]);
    warm(&mut cache, &[1, 2]);
    warm(&mut cache, &[1, 2, 3, 4]);
    cache.evict(3);
    cache.clear(|_| true);
    let events = cache.drain_events();
    assert_eq!(show(&events, &names), "1:+01^root 2:+23^1 3:-321 4:cleared");
    let KvChange::Stored(stored) = &events[1].change else { panic!() };
    assert_eq!((stored.namespace, stored.page_tokens), (NamespaceId(1), 16));
    assert_eq!(stored.tokens, tokens(&[3, 4]));
    assert_eq!(cache.drain_events(), []);
}

#[test]
fn a_duplicate_is_not_told_twice() {
    let mut cache = telling(8, 100);
    let names = names(&cache, &[1, 2, 3]);
    let mut late = cache.lease(&key(), &[]);
    let pages = cache.reserve(3).unwrap();
    warm(&mut cache, &[1, 2]);
    publish(&mut cache, &mut late, &[1, 2, 3], &pages);
    assert_eq!(show(&cache.drain_events(), &names), "1:+01^root 2:+2^1");
}

#[test]
fn a_clear_that_leaves_leased_pages_is_told_as_removals() {
    let mut cache = telling(8, 100);
    let names = names(&cache, &[1, 2, 3]);
    let lease = serve(&mut cache, &[1]);
    warm(&mut cache, &[1, 2, 3]);
    cache.clear(|_| true);
    assert_eq!(show(&cache.drain_events(), &names), "1:+0^root 2:+12^0 3:-21");
    drop(lease);
}

#[test]
fn a_reader_that_lost_events_restarts_from_a_snapshot() {
    let mut cache = telling(8, 3);
    let names = names(&cache, &[1, 2, 3, 4]);
    warm(&mut cache, &[1, 2]);
    warm(&mut cache, &[1, 2, 3, 4]);
    assert_eq!(show(&cache.drain_events(), &names), "1:+01^root 2:lost 1");
    assert_eq!(cache.stats().counters.events_lost, 1);
    let snapshot: Vec<_> = cache.snapshot().into_iter().map(|s| (s.parent, s.names)).collect();
    assert_eq!(snapshot, [(None, names[..2].to_vec()), (Some(names[1]), names[2..].to_vec())]);
}

#[test]
fn a_namespace_without_a_key_is_cached_but_not_told() {
    let mut cache = telling(8, 100);
    let other = TreeKey { namespace: NamespaceId(9), ..key() };
    drop(serve_as(&mut cache, &other, &[1, 2]));
    assert_eq!(cache.peek(&other, &tokens(&[1, 2])), 32);
    assert_eq!(cache.names(&other, &tokens(&[1, 2])), None);
    cache.evict(2);
    assert_eq!((cache.drain_events(), cache.snapshot()), (vec![], vec![]));
}

#[test]
fn no_events_when_switched_off() {
    let mut cache = cache(8);
    warm(&mut cache, &[1, 2]);
    cache.clear(|_| true);
    assert_eq!((cache.drain_events(), cache.snapshot()), (vec![], vec![]));
    assert_eq!(cache.stats().counters.events_lost, 0);
}
