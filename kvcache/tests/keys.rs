//! Tenants never meet: a request finds only what was cached under the very same key.

use base::{AdapterId, Generation, ModelDigest, NamespaceId};
use quire_kvcache::TreeKey;

use crate::common::*;

fn others() -> Vec<TreeKey> {
    vec![
        TreeKey { namespace: NamespaceId(2), ..key() },
        TreeKey { generation: Generation(1), ..key() },
        TreeKey { model: ModelDigest([2; 32]), ..key() },
        TreeKey { adapter: AdapterId(1), ..key() },
        TreeKey { salt: b"salt".to_vec(), ..key() },
    ]
}

#[test]
fn the_same_tokens_under_another_key_share_nothing() {
    for other in others() {
        let mut cache = cache(8);
        warm(&mut cache, &[1, 2]);
        assert_eq!(cache.peek(&other, &tokens(&[1, 2])), 0, "{other:?}");
        let lease = serve_as(&mut cache, &other, &[1, 2]);
        assert_eq!(lease.pages(), ids(&[2, 3]), "{other:?}");
        assert_eq!(cache.stats().pages_leased, 2);
        drop(lease);
        let same = cache.lease(&key(), &tokens(&[1, 2]));
        assert_eq!(same.pages(), ids(&[0, 1]));
    }
}

#[test]
fn the_same_tokens_under_another_key_have_other_names() {
    let mut cache = cache(8);
    cache.register_namespace(NamespaceId(2), base::NamespaceKey([8; 32]));
    let names = cache.names(&key(), &tokens(&[1, 2])).unwrap();
    for other in others() {
        let theirs = cache.names(&other, &tokens(&[1, 2])).unwrap();
        assert!(names.iter().all(|name| !theirs.contains(name)), "{other:?}");
    }
}

#[test]
fn clearing_one_key_leaves_the_others() {
    let mut cache = cache(16);
    warm(&mut cache, &[1, 2]);
    for other in others() {
        let lease = serve_as(&mut cache, &other, &[1, 2]);
        cache.release(lease, STEP);
    }
    let purged = Generation(0);
    assert_eq!(cache.clear(|k| k.namespace == NamespaceId(1) && k.generation == purged), 8);
    sound(&cache, &[]);
    assert_eq!(cache.peek(&key(), &tokens(&[1, 2])), 0);
    assert_eq!(cache.peek(&others()[0], &tokens(&[1, 2])), 32);
    assert_eq!(cache.peek(&others()[1], &tokens(&[1, 2])), 32);
}

#[test]
fn a_namespace_at_its_quota_gives_up_its_own_leaves_however_far_back_they_stand() {
    let mut cache = cache(256);
    let other = TreeKey { namespace: NamespaceId(2), ..key() };
    // A hundred leaves of somebody else, all colder than ours.
    for page in 100..200 {
        let lease = serve_as(&mut cache, &other, &[page]);
        cache.release(lease, STEP);
    }
    warm(&mut cache, &[1]);
    warm(&mut cache, &[2]);
    cache.set_quota(NamespaceId(1), Some(2));
    warm(&mut cache, &[3]);
    assert_eq!([1, 2, 3].map(|p| super::common::cached(&cache, &[p])), [0, 1, 1], "the coldest of its own");
    assert_eq!((cache.used(NamespaceId(1)), cache.used(NamespaceId(2))), (2, 100));
}

#[test]
fn a_namespace_at_its_quota_with_all_leaves_held_caches_no_more_and_takes_nothing() {
    let mut cache = cache(256);
    let other = TreeKey { namespace: NamespaceId(2), ..key() };
    for page in 100..200 {
        let lease = serve_as(&mut cache, &other, &[page]);
        cache.release(lease, STEP);
    }
    let held = serve(&mut cache, &[1]);
    cache.set_quota(NamespaceId(1), Some(1));
    let tokens = tokens(&[2]);
    let mut lease = cache.lease(&key(), &tokens);
    let pages = cache.reserve(1).unwrap();
    cache.publish(&mut lease, &tokens, &pages, STEP);
    sound(&cache, &[&held, &lease]);
    assert_eq!(cached(&cache, &[2]), 0);
    assert_eq!((cache.used(NamespaceId(1)), cache.used(NamespaceId(2))), (1, 100));
}
