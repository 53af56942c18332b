//! Hit equals miss, shared work is done once, and the failures that the field is known for.

use std::sync::Arc;

use base::NamespaceId;
use kernels::SamplingParams;
use proptest::prelude::*;

use super::harness::Harness;
use crate::executor::sim::SimConfig;
use crate::request::{Finish, Request, Tenant};
use crate::scheduler::{PrefixCache, SchedulerConfig};
use crate::stats::EngineStats;

fn prompt(from: u32, len: u32) -> Vec<u32> {
    (0..len).map(|i| (from + i * 7) % 900).collect()
}

fn computed(h: &Harness) -> u64 {
    EngineStats::get(&h.stats.computed_tokens)
}

#[test]
fn a_lone_request_gets_the_tokens_its_prompt_determines() {
    let mut h = Harness::small(64, 16);
    let id = h.ask(&prompt(0, 37), 20);
    h.run(100);
    let heard = h.heard(id);
    assert_eq!(heard.tokens, h.expected(&h.clients[&id].request));
    assert_eq!((heard.cached, heard.end), (Some(0), Some(Ok(Finish::Length))));
}

#[test]
fn a_prompt_of_exactly_one_page_hits_nothing_and_stays_right() {
    let mut h = Harness::small(64, 16);
    let first = h.ask(&prompt(0, 16), 8);
    h.run(100);
    let second = h.ask(&prompt(0, 16), 8);
    h.run(100);
    // The page is there, but its last token must be computed to have logits.
    assert_eq!(h.heard(second).cached, Some(0));
    assert_eq!(h.heard(first).tokens, h.heard(second).tokens);
}

#[test]
fn a_full_prompt_hit_computes_only_the_last_page() {
    let mut h = Harness::small(64, 16);
    let first = h.ask(&prompt(0, 64), 8);
    h.run(100);
    let before = computed(&h);
    let second = h.ask(&prompt(0, 64), 8);
    h.run(100);
    assert_eq!(h.heard(second).cached, Some(48));
    assert_eq!(computed(&h) - before, 16);
    assert_eq!(h.heard(first).tokens, h.heard(second).tokens);
}

#[test]
fn generated_pages_are_hits_for_the_next_turn() {
    let mut h = Harness::small(64, 16);
    let first = h.ask(&prompt(0, 20), 30);
    h.run(100);
    let mut turn = prompt(0, 20);
    turn.extend(h.heard(first).tokens);
    turn.extend(prompt(500, 5));
    let second = h.ask(&turn, 4);
    h.run(100);
    assert_eq!(h.heard(second).cached, Some(48));
    let client = &h.clients[&second];
    h.verify(client);
}

#[test]
fn thirty_two_simultaneous_requests_compute_a_cold_prefix_once() {
    let mut h = Harness::small(512, 16);
    let mut shared = prompt(0, 16 * 40);
    shared.push(3);
    let ids: Vec<_> = (0..32).map(|_| h.ask(&shared, 4)).collect();
    h.run(1000);
    assert_eq!(computed(&h), 641 + 31, "each later request computes its last token only");
    for id in ids {
        assert_eq!(h.heard(id).tokens, h.expected(&h.clients[&id].request));
    }
}

#[test]
fn waiters_go_on_when_the_one_who_computes_is_cancelled() {
    for cancel_after in 0..6 {
        let config = SchedulerConfig { chunk_tokens: 32, ..SchedulerConfig::default() };
        let mut h = Harness::new(SimConfig::new(256, 16, 1000), config, 2);
        let shared = prompt(0, 200);
        let ids: Vec<_> = (0..4).map(|_| h.ask(&shared, 6)).collect();
        for _ in 0..cancel_after {
            h.tick();
        }
        h.abort(ids[0]);
        h.run(1000);
        for &id in &ids[1..] {
            assert_eq!(h.heard(id).tokens, h.expected(&h.clients[&id].request));
        }
    }
}

#[test]
fn tenants_with_the_same_prompt_share_nothing() {
    let tenants = [
        Tenant::default(),
        Tenant { namespace: NamespaceId(1), ..Tenant::default() },
        Tenant { salt: b"pepper".to_vec(), ..Tenant::default() },
    ];
    let mut h = Harness::small(256, 16);
    let mut ids = Vec::new();
    for tenant in tenants {
        let request = Request { tenant, ..h.request(&prompt(0, 100), 4) };
        ids.push(h.submit(request));
    }
    h.run(1000);
    assert_eq!(computed(&h), 300);
    assert!(ids.into_iter().all(|id| h.heard(id).cached == Some(0)));
}

#[test]
fn switched_off_the_cache_reuses_nothing_and_keeps_nothing() {
    let config = SchedulerConfig { prefix_cache: PrefixCache::Off, ..SchedulerConfig::default() };
    let mut h = Harness::new(SimConfig::new(64, 16, 1000), config, 2);
    let first = h.ask(&prompt(0, 64), 8);
    h.run(100);
    let second = h.ask(&prompt(0, 64), 8);
    h.run(100);
    h.scheduler.publish_stats();
    assert_eq!(EngineStats::get(&h.stats.pages_free), 64);
    assert_eq!(h.heard(second).cached, Some(0));
    assert_eq!(h.heard(first).tokens, h.heard(second).tokens);
}

#[test]
fn prompt_logprobs_cover_every_prompt_token_but_the_first() {
    for chunk_tokens in [5, 16, 512] {
        let config = SchedulerConfig { chunk_tokens, ..SchedulerConfig::default() };
        let mut h = Harness::new(SimConfig::new(64, 16, 1000), config, 2);
        let warm = h.ask(&prompt(0, 50), 2);
        h.run(100);
        let request = Request { prompt_logprobs: Some(2), ..h.request(&prompt(0, 50), 3) };
        let id = h.submit(request);
        h.run(100);
        let heard = h.heard(id);
        let scored: Vec<u32> = heard.prompt.expect("prompt logprobs").iter().map(|s| s.token).collect();
        assert_eq!(scored, prompt(0, 50)[1..]);
        assert_eq!(heard.tokens[..2], h.heard(warm).tokens);
    }
}

#[test]
fn a_stop_token_ends_the_sequence_and_is_delivered() {
    let mut h = Harness::small(64, 16);
    let probe = h.ask(&prompt(0, 10), 12);
    h.run(100);
    let stop = h.heard(probe).tokens[5];
    let params = SamplingParams { temperature: 0.0, stop_ids: vec![stop], ..SamplingParams::default() };
    let request = Request { params: Arc::new(params), ..h.request(&prompt(0, 10), 12) };
    let id = h.submit(request);
    h.run(100);
    let heard = h.heard(id);
    assert_eq!(heard.end, Some(Ok(Finish::Stop(stop))));
    assert_eq!(heard.tokens.last(), Some(&stop));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is cached, however prompts are chunked and whoever shares the batch.
    #[test]
    fn hit_equals_miss(
        page in prop::sample::select(vec![16u32, 32, 64]),
        chunk in 1u32..200,
        depth in 1usize..=2,
        requests in prop::collection::vec((0u32..3, 1u32..150, 1u32..40, 0usize..6), 1..12),
    ) {
        let config = SchedulerConfig { chunk_tokens: chunk, ..SchedulerConfig::default() };
        let mut h = Harness::new(SimConfig::new(4096 / page, page, 1000), config, depth);
        for (family, len, max_tokens, wait) in requests {
            h.ask(&prompt(family * 300, len), max_tokens);
            for _ in 0..wait {
                h.tick();
            }
        }
        h.run(20_000);
        for client in h.clients.values() {
            prop_assert!(client.heard.end.is_some());
            h.verify(client);
        }
    }
}
