//! Prompts that come back from below the device: computed once, restored in the step that needs them,
//! waited for no longer than the policy says, and gone after a purge.

use std::time::Duration;

use base::{Generation, NamespaceId, Tier};
use kvcache::{EvictionKind, LowerConfig, PurgeState, WritePolicy};

use super::harness::Harness;
use crate::executor::Restores;
use crate::executor::sim::SimConfig;
use crate::request::{Finish, Refusal};
use crate::scheduler::{PrefetchPolicy, PurgeRunning, SchedulerConfig};
use crate::stats::EngineStats;

const PAGE: u32 = 16;

fn prompt(from: u32, pages: u32) -> Vec<u32> {
    (0..pages * PAGE + 1).map(|i| (from + i) % 900).collect()
}

fn tiered(device: u32, host: u32, nvme: u32, prefetch: PrefetchPolicy) -> Harness {
    Harness::new(SimConfig::new(device, PAGE, 1000), config(host, nvme, prefetch), 2)
}

fn config(host: u32, nvme: u32, prefetch: PrefetchPolicy) -> SchedulerConfig {
    let lower = |tier, pages| LowerConfig { policy: EvictionKind::Lru, ..LowerConfig::new(tier, pages) };
    let mut tiers = vec![lower(Tier::Host, host)];
    if nvme > 0 {
        tiers.push(lower(Tier::Nvme, nvme));
    }
    SchedulerConfig { tiers, prefetch, eviction: EvictionKind::Lru, ..SchedulerConfig::default() }
}

/// As `tiered`, where a restore takes `steps` steps.
fn beside(device: u32, host: u32, steps: u64) -> Harness {
    let mut sim = SimConfig::new(device, PAGE, 1000);
    sim.shape.restores = Restores::Beside;
    sim.landing_steps = steps;
    Harness::new(sim, config(host, 0, PrefetchPolicy::Wait), 2)
}

fn computed(h: &Harness) -> u64 {
    EngineStats::get(&h.stats.computed_tokens)
}

/// Asks, runs to the end, and holds the answer against what must come. Answers with cached tokens.
fn ask(h: &mut Harness, tokens: &[u32]) -> u32 {
    let id = h.ask(tokens, 4);
    h.run(1000);
    assert_eq!(h.heard(id).tokens, h.expected(&h.clients[&id].request));
    h.heard(id).cached.expect("it started")
}

#[test]
fn a_prompt_evicted_from_the_device_comes_back_from_the_host() {
    let mut h = tiered(12, 64, 0, PrefetchPolicy::Wait);
    assert_eq!(ask(&mut h, &prompt(0, 6)), 0);
    assert_eq!(ask(&mut h, &prompt(300, 9)), 0, "another prompt takes the device");
    let before = computed(&h);
    assert_eq!(ask(&mut h, &prompt(0, 6)), 6 * PAGE);
    assert_eq!(computed(&h) - before, 1, "only the last token is computed");
    assert!(EngineStats::get(&h.stats.host_hit_tokens) > 0);
}

#[test]
fn a_prompt_evicted_from_the_host_comes_back_from_the_disk() {
    for prefetch in [PrefetchPolicy::Wait, PrefetchPolicy::Timeout(Duration::from_secs(60))] {
        let mut h = tiered(12, 14, 64, prefetch);
        ask(&mut h, &prompt(0, 6));
        ask(&mut h, &prompt(300, 9));
        ask(&mut h, &prompt(600, 9));
        let before = computed(&h);
        assert_eq!(ask(&mut h, &prompt(0, 6)), 6 * PAGE, "{prefetch}");
        assert_eq!(computed(&h) - before, 1);
    }
}

#[test]
fn a_crowd_on_a_prefix_in_a_cold_tier_loads_it_once() {
    let mut h = tiered(24, 24, 64, PrefetchPolicy::Wait);
    ask(&mut h, &prompt(0, 6));
    for from in [200, 400, 600] {
        ask(&mut h, &prompt(from, 18));
    }
    let before = computed(&h);
    let ids: Vec<_> = (0..8).map(|_| h.ask(&prompt(0, 6), 2)).collect();
    h.run(2000);
    assert_eq!(EngineStats::get(&h.stats.prefetched_pages), 6, "one load");
    assert_eq!(computed(&h) - before, 8, "the last token of each");
    assert!(ids.into_iter().all(|id| h.heard(id).cached == Some(6 * PAGE)));
}

#[test]
fn nobody_waits_longer_than_the_policy_says() {
    for (prefetch, waits) in
        [(PrefetchPolicy::BestEffort, 0), (PrefetchPolicy::Timeout(Duration::from_millis(40)), 1)]
    {
        let mut h = tiered(12, 14, 64, prefetch);
        ask(&mut h, &prompt(0, 6));
        ask(&mut h, &prompt(300, 9));
        ask(&mut h, &prompt(600, 9));
        let id = h.ask(&prompt(0, 6), 4);
        // The disk does not answer.
        for _ in 0..60 {
            h.tick();
            h.now = h.now.plus(Duration::from_millis(1));
        }
        assert_eq!(h.heard(id).end, Some(Ok(Finish::Length)), "{prefetch}");
        assert_eq!(h.heard(id).cached, Some(0));
        assert_eq!(EngineStats::get(&h.stats.prefetch_timeouts), waits);
        h.run(1000);
    }
}

#[test]
fn pages_that_turn_out_wrong_are_computed_again() {
    let mut h = tiered(12, 14, 64, PrefetchPolicy::Wait);
    ask(&mut h, &prompt(0, 6));
    ask(&mut h, &prompt(300, 9));
    ask(&mut h, &prompt(600, 9));
    h.spoil_every(3);
    let cached = ask(&mut h, &prompt(0, 6));
    assert_eq!(cached, 2 * PAGE, "two pages arrive before the spoiled one");
}

#[test]
fn a_failed_step_costs_the_device_and_not_the_host() {
    let mut h = tiered(12, 64, 0, PrefetchPolicy::Wait);
    ask(&mut h, &prompt(0, 6));
    h.tick();
    h.fault_at(base::StepId(h.scheduler.steps() + 1));
    let id = h.ask(&prompt(300, 2), 4);
    h.run(100);
    assert!(matches!(h.heard(id).end, Some(Err(Refusal::Engine(_)))));
    assert_eq!(ask(&mut h, &prompt(0, 6)), 6 * PAGE);
}

fn purge(h: &mut Harness, running: PurgeRunning) -> PurgeState {
    let id = h.scheduler.purge(NamespaceId(0), Generation(0), running);
    for _ in 0..500 {
        h.tick();
        h.cold(64);
        let state = h.scheduler.purge_state(id).expect("an open purge");
        if state.is_done {
            return state;
        }
    }
    panic!("the purge does not end: {:?}", h.scheduler.purge_state(id));
}

#[test]
fn after_a_purge_nothing_is_a_hit_and_every_tier_has_read_back_its_erasure() {
    for write in [WritePolicy::WriteThrough, WritePolicy::WriteBack] {
        let mut h = tiered(16, 24, 64, PrefetchPolicy::Wait);
        for from in [0, 100, 200, 300, 400] {
            ask(&mut h, &prompt(from, 6));
        }
        let state = purge(&mut h, PurgeRunning::Wait);
        assert_eq!(state.up_to, Generation(0));
        for tier in &state.tiers {
            let e = tier.erasure;
            assert!(e.pages > 0 && e.verified >= e.pages && e.failed == 0, "{write}: {tier:?}");
        }
        assert_eq!(ask(&mut h, &prompt(0, 6)), 0);
        assert_eq!(ask(&mut h, &prompt(0, 6)), 6 * PAGE, "the new generation is cached again");
    }
}

#[test]
fn a_purge_waits_for_what_runs_or_cancels_it() {
    for (running, end) in
        [(PurgeRunning::Wait, Ok(Finish::Length)), (PurgeRunning::Cancel, Err(Refusal::Purged))]
    {
        let mut h = tiered(16, 24, 0, PrefetchPolicy::Wait);
        let id = h.ask(&prompt(0, 4), 60);
        for _ in 0..5 {
            h.tick();
        }
        let state = purge(&mut h, running);
        assert!(state.tiers.iter().all(|t| t.erasure.outstanding == 0));
        assert_eq!(h.heard(id).end, Some(end));
        assert_eq!(ask(&mut h, &prompt(0, 4)), 0);
    }
}

#[test]
fn a_long_restore_holds_up_nobody_but_its_own_request() {
    let mut h = beside(30, 64, 12);
    ask(&mut h, &prompt(0, 6));
    ask(&mut h, &prompt(300, 26));
    let decoding = h.ask(&prompt(600, 1), 40);
    for _ in 0..6 {
        h.tick();
    }
    let before = h.heard(decoding).tokens.len();
    let restored = h.ask(&prompt(0, 6), 4);
    for _ in 0..8 {
        h.tick();
    }
    assert_eq!(h.heard(decoding).tokens.len(), before + 8, "a token a step");
    assert!(h.heard(restored).tokens.is_empty(), "its pages are on their way");
    h.run(1000);
    assert_eq!(h.model.waits, 0, "no step waited for a page");
    for id in [decoding, restored] {
        assert_eq!(h.heard(id).tokens, h.expected(&h.clients[&id].request));
    }
    assert_eq!(h.heard(restored).cached, Some(6 * PAGE));
}

#[test]
fn with_nobody_else_to_compute_a_restore_is_waited_for_at_once() {
    let mut h = beside(12, 64, 1000);
    ask(&mut h, &prompt(0, 6));
    ask(&mut h, &prompt(300, 9));
    let steps = h.scheduler.steps();
    assert_eq!(ask(&mut h, &prompt(0, 6)), 6 * PAGE);
    assert_eq!(h.model.waits, 1);
    assert!(h.scheduler.steps() - steps <= 6, "four tokens, and no step that only waits");
}

#[test]
fn frames_of_a_restore_whose_request_is_gone_are_given_back() {
    let mut h = beside(30, 64, 1000);
    ask(&mut h, &prompt(0, 6));
    ask(&mut h, &prompt(300, 26));
    let decoding = h.ask(&prompt(600, 1), 3);
    h.tick();
    let restored = h.ask(&prompt(0, 6), 4);
    h.tick();
    h.abort(restored);
    h.run(1000);
    assert_eq!(h.heard(decoding).tokens.len(), 3);
    assert!(h.scheduler.is_settled(), "a step without work asked for what was still on its way");
}
