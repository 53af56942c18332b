//! What the cache shows of itself.

use expect_test::expect;
use quire_kvcache::{CacheConfig, EvictionKind, TreeKey};

use crate::common::*;

#[test]
fn the_dump_shows_trees_holds_and_the_order_of_eviction() {
    let mut cache = with(CacheConfig { policy: EvictionKind::Gdsf, ..CacheConfig::new(16, 16) });
    warm(&mut cache, &[1, 2, 3, 4]);
    warm(&mut cache, &[1, 2, 5]);
    let lease = serve(&mut cache, &[1, 2, 6]);
    let salted = TreeKey { salt: b"secret".to_vec(), ..key() };
    let _other = serve_as(&mut cache, &salted, &[1]);
    let _private = cache.reserve(2).unwrap();
    expect![[r#"
        pages 16 = 7 free + 2 private + 4 leased + 3 cached + 0 fenced
        namespace 1 generation 0 model 0101010101010101 adapter 0 held
          [0-1] x3 held
            [2-3] x1
            [4] x1
            [5] x1 held, 1 end here
        namespace 1 generation 0 model 0101010101010101 adapter 0 salted held
          [6] x1 held, 1 end here
        evict 2-3, 4 | gdsf clock 0
    "#]]
    .assert_eq(&cache.dump());
    sound(&cache, &[&lease]);
}

#[test]
fn policies_are_parsed_by_the_name_they_print() {
    for kind in EvictionKind::ALL {
        assert_eq!(kind.to_string().parse(), Ok(kind));
    }
    let error = "fifo".parse::<EvictionKind>().unwrap_err();
    expect![[r#"unknown eviction policy "fifo": reuse, gdsf, lru or slru"#]].assert_eq(&error.to_string());
}
